"""Memory beyond what a process has already: flat in k in evaluation, linear in k in training, less by microbatch.

Tensors are counted, so that nothing depends on timing or on an allocator.
"""

from pathlib import Path

import pytest
import torch
from benchmark import footprint
from benchmark.__main__ import main
from benchmark.memory import EVALUATING, MIB, TRAINING, Added, added, measured

SMALL = ["device=cpu", "trainer.threads=1", "decoder.hidden=[16]", "encoder.hidden=[16]", "latent_dim=4"]


def tensors(work: str, k: int, *words: str, images: int) -> float:
    return measured(work, k, [*SMALL, *words], images).tensors


@pytest.mark.parametrize("words", [["encoder=gaussian"], ["encoder=iwhvi", "estimator.inner_k=3"], ["encoder=iaf"]])
def test_evaluation_is_flat_in_k(words: list[str]):
    few, many = (tensors(EVALUATING, k, *words, "estimator.chunk=4", images=10) for k in (8, 160))
    assert many == pytest.approx(few, rel=0.05)


def test_control_one_chunk_for_all_samples_is_not_flat():
    few, many = (tensors(EVALUATING, k, f"estimator.chunk={k}", images=10) for k in (8, 80))
    assert many > 5 * few


def test_training_is_linear_in_k_and_microbatch_takes_less():
    at = [tensors(TRAINING, k, images=16) for k in (4, 8, 16)]
    assert at[2] - at[1] == pytest.approx(2 * (at[1] - at[0]), rel=0.02)
    parts = tensors(TRAINING, 16, "trainer.microbatch=4", images=16)
    # The gradients and the images of the whole batch stay.
    assert at[2] / 4 < parts < at[2] / 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts peaks anew")
def test_what_is_resident_is_what_a_known_computation_takes():
    torch.zeros(2**23).add_(1)  # an earlier peak, which does not count
    found = added(lambda: torch.ones(2**24).add_(1), torch.device("cpu"))
    assert found.tensors == 2**26 / MIB
    # What the interpreter takes meanwhile is a MiB or two.
    assert found.resident == pytest.approx(64, abs=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_its_own_allocator_is_asked():
    found = added(lambda: torch.ones(2**22, device="cuda").add_(1), torch.device("cuda"))
    assert found.resident == found.tensors == 16


def test_the_table_says_how_flat_and_how_linear(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    asked = []

    def fake(work: str, k: int, words: list[str]) -> Added:
        asked.append((work, k, *words))
        whole = 20 + k / 50_000 if work == EVALUATING else 10.0 + k
        return Added(5.0, None) if "trainer.microbatch=32" in words else Added(whole, whole)

    monkeypatch.setattr(footprint, "in_a_fresh_process", fake)
    assert main(["--memory", "--device=cpu", "--threads=1"]) == 0
    printed = capsys.readouterr().out
    assert {words[2:4] for words in asked} == {("device=cpu", "trainer.threads=1")}
    assert "tensors 21.0; the count within 5 % of it; +5.0%" in printed
    assert "if linear; 2.00" in printed
    assert "1/14.8 of it" in printed
