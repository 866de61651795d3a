"""Memory that runs out makes chunks smaller, and shows nowhere in the result."""

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
from vaebench.evaluate import loop
from vaebench.evaluate.loop import Numbers, Task

pytestmark = pytest.mark.usefixtures("float64")

CPU = torch.device("cpu")
NOTICE = "vaebench: out of memory: going on with smaller chunks, which does not change the result\n"
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Cramped(Encoder):
    """Another encoder, on a machine that holds so many rows of it at a time."""

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
@pytest.mark.parametrize("rows", [400, 60, 10])
def test_chunks_are_halved_and_the_result_stays(rows: int, error: Exception, capsys: pytest.CaptureFixture[str]):
    model, x = linear_gaussian(), linear_gaussian().simulate(5)[0]
    whole = log_likelihood(model, learned(), x, 90, 7, seed=3)
    cramped = Cramped(learned(), rows, error)
    found = log_likelihood(model, cramped, x, 90, 7, seed=3)
    assert (found - whole).abs().max() < 1e-12
    assert cramped.encoded == 1
    assert cramped.failed > 0
    assert capsys.readouterr().err == NOTICE


def test_later_batches_start_with_the_smaller_chunks(capsys: pytest.CaptureFixture[str]):
    model, x = linear_gaussian(), torch.randint(0, 256, (12, 3), dtype=torch.uint8)
    cramped = Cramped(gaussian(), 32, MemoryError())
    list(log_likelihoods(model, cramped, lambda rows: rows.double(), x, k=64, batch=4))
    # 64 samples of 4 images, then 32, 16, and 8, once.
    assert (cramped.failed, cramped.encoded) == (3, 3)
    assert capsys.readouterr().err == NOTICE


def test_control_other_errors_are_not_swallowed():
    cramped = Cramped(learned(), 10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        log_likelihood(linear_gaussian(), cramped, torch.zeros(5, 3), 90, 7, seed=3)
    assert cramped.failed == 1
    assert not any(map(runtime.out_of_memory, [ValueError("out of memory"), RuntimeError("nan"), KeyboardInterrupt()]))
    assert all(map(runtime.out_of_memory, OUT_OF_MEMORY))


def test_memory_for_not_even_one_sample_is_an_error():
    cramped = Cramped(learned(), 3, MemoryError())
    with pytest.raises(MemoryError):
        log_likelihood(linear_gaussian(), cramped, torch.zeros(5, 3), 90, 7, seed=3)


# Fewer images at a time -----------------------------------------------------------------------------------


def numbers_of(most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Numbers, list[tuple[int, int]]]:
    """Return numbers of images, their places, on a machine that holds so many at a time; and what was tried."""
    tried: list[tuple[int, int]] = []

    def numbers(part: slice) -> torch.Tensor:
        tried.append((part.start, part.stop))
        if part.stop - part.start > most:
            raise MemoryError
        return torch.arange(part.start, part.stop).double().unsqueeze(0)

    monkeypatch.setattr(loop, "planned", lambda experiment: SimpleNamespace(batch=8, numbers=numbers))
    config = SimpleNamespace(estimator=SimpleNamespace(precision="float32"))
    made = SimpleNamespace(modules=torch.nn.Identity(), config=config, autocast=lambda precision: torch.no_grad())
    return Numbers(cast(Any, made)), tried


def test_images_are_halved_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    numbers, tried = numbers_of(3, monkeypatch)
    assert numbers.of(Task(0, 0, 8)).tolist() == [list(range(8))]
    assert numbers.of(Task(0, 8, 13)).tolist() == [list(range(8, 13))]
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 13)]
    assert capsys.readouterr().err.splitlines()[-1].startswith("vaebench: out of memory: going on with 2 images")


def test_no_memory_for_one_image_is_said(monkeypatch: pytest.MonkeyPatch):
    numbers, _ = numbers_of(0, monkeypatch)
    with pytest.raises(RunFailed, match="memory does not suffice for one image"):
        numbers.of(Task(0, 0, 8))


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
    chosen: dict[int, Chunks] = {}
    for free in (40_000, 400_000, 2**40):
        monkeypatch.setattr(importance, "free_memory", lambda device, free=free: free)
        chunks = chosen[free] = chunks_within(1, model, encoder, x, inner_k, batch, None)
        assert batch is None or chunks.batch == batch
        images = torch.zeros(chunks.batch, 3)
        used = peak_bytes(lambda: weighed(model, encoder, images, 3 * chunks.samples, inner_k, chunks))  # noqa: B023
        assert used < free or chunks.samples == 1
    for fewer, more in itertools.pairwise(chosen.values()):
        assert fewer.rows < more.rows
    # Plenty of memory is no reason to leave the caches.
    assert chosen[2**40] == Chunks.automatic(CPU, inner_k, batch)
    assert chosen[2**40].rows <= ROWS["cpu"]


def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importance, "free_memory", lambda device: 1)
    chunks = chunks_within(1, linear_gaussian(), learned(), torch.zeros(1, 3), 0, 20, 30)
    assert (chunks.batch, chunks.samples) == (20, 30)


def test_a_smaller_share_of_the_memory_takes_smaller_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importance, "free_memory", lambda device: 400_000)
    one, many = (
        chunks_within(share, linear_gaussian(), learned(), torch.zeros(1, 3), 0, None, None) for share in (1, 1 / 8)
    )
    assert many.rows < one.rows / 4


def test_trying_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importance, "free_memory", lambda device: 40_000)
    state = torch.get_rng_state()
    chunks_within(1, linear_gaussian(), learned(), torch.zeros(1, 3), 2, None, None)
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
