"""A job puts itself back into the queue after a preemption or at its time limit, and after no other signal."""

import signal
from collections.abc import Iterator

import pytest

from vaebench.cli.sweep import slurm_commands
from vaebench.errors import RunFailed

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has no SIGUSR2")


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A job of Slurm; the list gets the signals for which submitit's handler is called."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    calls: list[int] = []
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    yield calls
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "state", "preempted", "expected"),
    [
        (signal.SIGUSR2, "RUNNING", "None", True),
        (signal.SIGTERM, "RUNNING", "2026-01-31T10:00:00", True),
        (signal.SIGTERM, "RUNNING", "None", False),  # a person sends SIGTERM
        (signal.SIGTERM, "COMPLETING", "None", False),  # scancel, or scontrol requeue
        (signal.SIGINT, "RUNNING", "2026-01-31T10:00:00", False),
    ],
)
def test_slurm_says_why_a_job_got_a_signal(
    requeued: list[int],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    state: str,
    preempted: str,
    expected: bool,
):
    text = f"JobId=12 JobState={state} PreemptEligibleTime=2026-01-31T09:00:00 PreemptTime={preempted} Power="
    monkeypatch.setattr(slurm_commands, "answer", lambda *words: text)
    assert slurm_commands.requeue(SystemExit(128 + number)) is None
    assert requeued == [signal.SIGUSR2] * expected


def test_a_controller_that_does_not_answer_is_the_reason(requeued: list[int], monkeypatch: pytest.MonkeyPatch):
    def fail(*words: str) -> str:
        raise RunFailed("scontrol failed: connect failure")

    monkeypatch.setattr(slurm_commands, "answer", fail)
    error = slurm_commands.requeue(SystemExit(143))
    assert isinstance(error, RunFailed)
    assert not requeued
