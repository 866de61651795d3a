"""Long work shows a bar on a terminal and in a notebook, and a line a minute in a log file."""

import sys
import types

import pytest

from vaebench.progress import ItemProgress, shows_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test moves."""
    now = [0.0]
    monkeypatch.setattr("vaebench.progress.time.monotonic", lambda: now[0])
    return now


def finish(clock: list[float], progress: ItemProgress, count: int, *, seconds: float) -> None:
    with progress:
        for _ in range(count):
            clock[0] += seconds
            progress.update(1)


def test_a_log_has_a_line_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]):
    finish(clock, ItemProgress("test iwae", 2_880, "image"), 2_880, seconds=0.0625)
    assert capsys.readouterr().out.splitlines() == [
        "test iwae: 960 of 2,880 images  16 images/s  0:02:00 left",
        "test iwae: 1,920 of 2,880 images  16 images/s  0:01:00 left",
    ], "none when all are finished: the result has its own line"


def test_short_work_and_work_without_a_title_add_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]):
    finish(clock, ItemProgress("encode", 50, "image"), 50, seconds=1.0)
    finish(clock, ItemProgress(None, 500, "image"), 500, seconds=1.0)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")


def test_a_terminal_has_a_bar_and_no_lines(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    finish(clock, ItemProgress("test iwae", 200, "image", leave=True), 200, seconds=1.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "test iwae" in err
    assert "200/200" in err


@pytest.mark.parametrize("shell", [None, types.SimpleNamespace(), types.SimpleNamespace(kernel=object())])
def test_a_notebook_is_told_by_its_shell(monkeypatch: pytest.MonkeyPatch, shell: object):
    # A library may import ipykernel outside of a notebook.
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert shows_bar() == hasattr(shell, "kernel")
