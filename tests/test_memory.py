"""After running out of memory, batches become smaller; the result stays the same."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from toys import gaussian, learned, linear_gaussian

from vaebench import runtime
from vaebench.encoders.base import Draw, Encoder
from vaebench.errors import RunFailed
from vaebench.estimators import importance
from vaebench.estimators.importance import ROWS, Chunks, chunks_within, log_likelihood, log_likelihoods, weighed
from vaebench.estimators.memory import peak_bytes
from vaebench.estimators.sampling import Sampling
from vaebench.evaluate import loop
from vaebench.evaluate.loop import Evaluator, Task

pytestmark = pytest.mark.usefixtures("float64")

CPU = torch.device("cpu")
NOTICE = "vaebench: out of memory: continuing with {} images at a time; this does not change the result\n"
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Cramped(Encoder):
    """Another encoder, on a machine whose memory holds a limited number of rows."""

    direction = learned().direction
    has_inner_samples = True

    def __init__(self, encoder: Encoder, rows: int, error: Exception) -> None:
        super().__init__()
        self.inside, self.rows, self.error = encoder, rows, error
        self.encoded = self.failed = 0

    def encode(self, x: torch.Tensor) -> Any:
        self.encoded += 1
        return self.inside.encode(x), len(x)

    def sample(self, encoded: Any, k: int, *, inner_k: int = 0, inner_chunk: int | None = None, **rest: Any) -> Draw:
        encoded, images = encoded
        if images * k * (1 + min(inner_chunk or inner_k, inner_k)) > self.rows:
            self.failed += 1
            raise self.error
        return self.inside.sample(encoded, k, inner_k=inner_k, inner_chunk=inner_chunk, **rest)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("rows", "failed", "batches"), [(3000, 0, 1), (2000, 1, 3), (800, 2, 5)])
def test_batches_are_halved_and_the_result_stays(
    rows: int, failed: int, batches: int, error: Exception, capsys: pytest.CaptureFixture[str]
):
    model, x = linear_gaussian(), linear_gaussian().simulate(5)[0]
    whole = log_likelihood(model, learned(), x, 90, 7, 70, seed=3)
    cramped = Cramped(learned(), rows, error)
    found = log_likelihood(model, cramped, x, 90, 7, 70, seed=3)
    assert (found - whole).abs().max() < 1e-12
    # 70 samples with 8 rows each of 5 images, else of 2, 2 and 1, else of single images.
    assert (cramped.failed, cramped.encoded) == (failed, failed + batches)
    assert capsys.readouterr().err == "".join(NOTICE.format(images) for images in (2, 1)[:failed])


def test_later_batches_start_with_the_smaller_size(capsys: pytest.CaptureFixture[str]):
    model, x = linear_gaussian(), torch.randint(0, 256, (12, 3), dtype=torch.uint8)
    cramped = Cramped(gaussian(), 64, MemoryError())
    list(log_likelihoods(model, cramped, lambda rows: rows.double(), x, Sampling(64, seed=0), batch=4))
    # 64 samples of 4 images, then of 2, and of 1 for all 12.
    assert (cramped.failed, cramped.encoded) == (2, 14)
    assert capsys.readouterr().err == NOTICE.format(2) + NOTICE.format(1)


def test_control_other_errors_are_not_swallowed():
    cramped = Cramped(learned(), 10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        log_likelihood(linear_gaussian(), cramped, torch.zeros(5, 3), 90, 7, seed=3)
    assert cramped.failed == 1
    assert not any(map(runtime.out_of_memory, [ValueError("out of memory"), RuntimeError("nan"), KeyboardInterrupt()]))
    assert all(map(runtime.out_of_memory, OUT_OF_MEMORY))


TOO_LITTLE = "out of memory even for one image: free memory or use another device"


def test_too_little_memory_for_one_image_is_an_error():
    cramped = Cramped(learned(), 3, MemoryError())
    with pytest.raises(RunFailed, match=TOO_LITTLE):
        log_likelihood(linear_gaussian(), cramped, torch.zeros(5, 3), 90, 7, seed=3)


def evaluator_of(most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Evaluator, list[tuple[int, int]]]:
    """Return an evaluator whose numbers are the images' places, on a machine with memory for ``most`` images.

    The list grows by the start and the stop of each batch that it tries.
    """
    tried: list[tuple[int, int]] = []

    def numbers(part: slice) -> torch.Tensor:
        tried.append((part.start, part.stop))
        if part.stop - part.start > most:
            raise MemoryError
        return torch.arange(part.start, part.stop).double().unsqueeze(0)

    monkeypatch.setattr(loop, "job_for", lambda inputs: SimpleNamespace(batch=8, numbers=numbers))
    module, settings = torch.nn.Identity(), SimpleNamespace(precision="float32")
    inputs = SimpleNamespace(model=module, encoder=module, settings=settings, device=CPU)
    inputs.for_repeat = lambda repeat: inputs
    return Evaluator(cast(Any, inputs)), tried


def test_every_estimator_takes_fewer_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    evaluator, tried = evaluator_of(3, monkeypatch)
    assert evaluator.compute(Task(0, 0, 8)).tolist() == [list(range(8))]
    assert evaluator.compute(Task(0, 8, 13)).tolist() == [list(range(8, 13))]
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 13)]
    assert capsys.readouterr().err == NOTICE.format(4) + NOTICE.format(2)


def test_the_evaluation_of_one_image_without_memory_fails(monkeypatch: pytest.MonkeyPatch):
    evaluator, _ = evaluator_of(0, monkeypatch)
    with pytest.raises(RunFailed, match=TOO_LITTLE):
        evaluator.compute(Task(0, 0, 8))


# Chunks that fit ------------------------------------------------------------------------------------------


def test_peak_bytes_of_a_known_computation():
    def compute() -> None:
        first = torch.zeros(1000)
        second = first + 1
        view = second.view(10, 100)
        del first
        view.mul_(2)
        torch.ones(500)

    assert peak_bytes(compute) == 2 * 8000
    assert peak_bytes(lambda: [torch.zeros(100) for _ in range(5)]) == 4000


@pytest.mark.parametrize(("inner_k", "batch"), [(0, None), (7, None), (0, 20)])
def test_chunks_fit_the_memory_there_is(inner_k: int, batch: int | None, monkeypatch: pytest.MonkeyPatch):
    model, encoder, x = linear_gaussian(), learned(), torch.zeros(1, 3)
    sampling, chosen = Sampling(5000, inner_k), dict[int, Chunks]()
    automatic = Chunks.automatic(CPU, sampling, images=500, batch=batch)
    for free in (40_000, 400_000, 2**40):
        monkeypatch.setattr(importance, "free_memory", lambda device, free=free: free)
        chunks = chosen[free] = chunks_within(1, model, encoder, x, sampling, automatic)
        assert chunks.batch == (batch or 100)
        images = torch.zeros(chunks.batch, 3)
        used = peak_bytes(lambda: weighed(model, encoder, images, Sampling(3 * chunks.samples, inner_k), chunks))  # noqa: B023
        assert used < free or chunks.samples == 1
    for fewer, more in itertools.pairwise(chosen.values()):
        assert fewer.rows < more.rows
    # Plenty of memory is no reason to leave the caches.
    assert chosen[2**40] == automatic
    assert chosen[2**40].rows <= ROWS.cpu


def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importance, "free_memory", lambda device: 1)
    sampling = Sampling(5000, chunk=30)
    automatic = Chunks.automatic(CPU, sampling, images=500, batch=20)
    chunks = chunks_within(1, linear_gaussian(), learned(), torch.zeros(1, 3), sampling, automatic)
    assert (chunks.batch, chunks.samples) == (20, 30)


def test_a_smaller_share_of_the_memory_takes_smaller_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importance, "free_memory", lambda device: 400_000)
    sampling = Sampling(5000)
    automatic = Chunks.automatic(CPU, sampling, images=100)
    one, many = (
        chunks_within(share, linear_gaussian(), learned(), torch.zeros(1, 3), sampling, automatic)
        for share in (1, 1 / 8)
    )
    assert many.rows < one.rows / 4


def test_trying_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importance, "free_memory", lambda device: 40_000)
    state = torch.get_rng_state()
    sampling = Sampling(5000, 2)
    automatic = Chunks.automatic(CPU, sampling, images=100)
    chunks_within(1, linear_gaussian(), learned(), torch.zeros(1, 3), sampling, automatic)
    assert torch.equal(torch.get_rng_state(), state)


# How much there is ----------------------------------------------------------------------------------------


def test_free_memory_of_this_machine():
    free = runtime.free_memory(CPU)
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(("limit", "left"), [("1000", 700), ("max", None), (None, None)])
def test_the_limit_of_a_container(limit: str | None, left: int | None, tmp_path: Path):
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("350\n")
        (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 50\nactive_file 7\n")
    assert runtime._left_to_the_group(tmp_path) == left
