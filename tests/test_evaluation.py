"""Importance-weighted likelihoods: how the work is cut up never shows in the result."""

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import (
    CELLS,
    AffineConditional,
    Family,
    Hierarchy,
    gaussian,
    learned,
    linear_gaussian,
    name,
    sivi,
    wide_hierarchy,
)

from vaebench import bounds, noise
from vaebench.bounds import LogMeanExp
from vaebench.encoders.base import Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.estimators.importance import MOST_IMAGES, ROWS, Chunks, PerImage, log_likelihood, log_likelihoods
from vaebench.estimators.sampling import Sampling
from vaebench.objective import evidence

pytestmark = pytest.mark.usefixtures("float64")

CPU = torch.device("cpu")
K, TOLERANCE = 13, 1e-10


def images(count: int = 7) -> Tensor:
    """Return bytes, which ``observe`` turns into x."""
    return torch.randint(0, 256, (count, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def observe(intensities: Tensor) -> Tensor:
    return intensities.double() / 255


def everything(family: Family, inner_k: int, chunk: int | None = None, **arguments: Any) -> Tensor:
    """Return the estimates of all images, gathered from the batches of :func:`log_likelihoods`."""
    sampling = Sampling(K, inner_k, seed=4, chunk=chunk)
    parts = log_likelihoods(linear_gaussian(), family.make(), observe, images(), sampling, **arguments)
    return torch.cat([values for _, values in parts])


# Chunks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_chunks_do_not_show(family: Family, inner_k: int):
    model, encoder, x = linear_gaussian(), family.make(), observe(images())
    whole = log_likelihood(model, encoder, x, K, inner_k, K, inner_chunk=max(1, inner_k), seed=4)
    for chunk in (None, 1, 4, 12, 50):
        for inner_chunk in (None, 1, 3):
            estimate = log_likelihood(model, encoder, x, K, inner_k, chunk, inner_chunk=inner_chunk, seed=4)
            assert estimate.shape == (7,)
            assert estimate.dtype == torch.float64
            assert not estimate.requires_grad
            assert (estimate - whole).abs().max() < TOLERANCE


@pytest.mark.parametrize(("make", "inner_k"), [(gaussian, 0), (learned, 4), (sivi, 4)])
def test_an_estimate_is_the_bound_of_training(make: Callable[[], Encoder], inner_k: int):
    """From the same noise, the same number: there is one maker of log weights."""
    model, encoder, x = linear_gaussian(), make(), observe(images())
    with torch.no_grad(), noise.keyed(4, torch.arange(7)):
        bound = bounds.iwae(evidence(model, encoder, x, K, inner_k=inner_k).log_weights())
    estimate = log_likelihood(model, encoder, x, K, inner_k, chunk=5, inner_chunk=3, seed=4)
    assert (estimate - bound).abs().max() < TOLERANCE


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_batches_do_not_show(family: Family, inner_k: int):
    whole = everything(family, inner_k)
    assert whole.shape == (7,)
    for batch in (1, 3, 7, 100):
        for chunk in (None, 5):
            assert (everything(family, inner_k, batch=batch, chunk=chunk) - whole).abs().max() < TOLERANCE


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_an_interrupted_evaluation_goes_on(family: Family, inner_k: int):
    whole = everything(family, inner_k)
    for first in (0, 2, 6):
        assert (everything(family, inner_k, batch=2, first=first) - whole[first:]).abs().max() < TOLERANCE
    assert everything(family, inner_k, first=6).shape == (1,)


def test_a_subset_keeps_its_images_noise():
    model, encoder, chosen = linear_gaussian(), learned(), torch.tensor([5, 0, 3])
    whole = torch.cat([v for _, v in log_likelihoods(model, encoder, observe, images(), Sampling(K, 2, seed=4))])
    parts = log_likelihoods(model, encoder, observe, images()[chosen], Sampling(K, 2, 4, chosen), batch=2)
    assert (torch.cat([values for _, values in parts]) - whole[chosen]).abs().max() < TOLERANCE


def test_batches_say_which_images_they_are():
    parts = list(
        log_likelihoods(linear_gaussian(), learned(), observe, images(), Sampling(2, seed=0), batch=3, first=1)
    )
    assert [part for part, _ in parts] == [slice(1, 4), slice(4, 7)]
    assert [len(values) for _, values in parts] == [3, 3]


def test_another_seed_is_another_estimate_and_a_fixed_one_the_same():
    model, encoder, x = linear_gaussian(), learned(), observe(images())
    first, again, other = (log_likelihood(model, encoder, x, K, 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().min() > 1e-6


def test_without_a_seed_estimates_follow_torchs_generator():
    model, encoder, x = linear_gaussian(), learned(), observe(images())
    values = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        values.append(log_likelihood(model, encoder, x, K, 2, chunk=4))
    assert torch.equal(values[0], values[1])
    assert (values[0] - values[2]).abs().min() > 1e-6


# The running mean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(10,), (3, 3, 3, 1), (1,) * 10, (9, 1)])
def test_the_running_mean_counts_what_it_was_given(sizes: tuple[int, ...]):
    log_w = 5 * torch.randn(10, 4)
    total = LogMeanExp()
    for part in log_w.split(sizes):
        total.add(part)
    exact = log_w.exp().mean(0).log()
    assert total.count == 10
    assert (total.value() - exact).abs().max() < 1e-12
    # Control: the count of whole chunks, as in a peer, where it is not the count of samples.
    supposed = len(sizes) * sizes[0]
    wrong = torch.logsumexp(log_w, 0) - math.log(supposed)
    assert supposed == 10 or (wrong - exact).abs().min() > 0.1


def test_the_running_mean_of_extreme_weights():
    total = LogMeanExp()
    total.add(torch.full((3, 1), -torch.inf))
    assert total.value().item() == -torch.inf
    total.add(torch.tensor([[-5000.0]]))
    assert total.value().item() == pytest.approx(-5000 - math.log(4))
    total.add(torch.tensor([[5000.0]]))
    assert total.value().item() == pytest.approx(5000 - math.log(5))


def test_the_running_mean_is_kept_in_float64():
    """A hundred thousand float32 weights, one at a time: a float32 sum would lose the last digits."""
    log_w = torch.randn(20_000, 1, dtype=torch.float32)
    total, naive = LogMeanExp(), torch.full((1,), -torch.inf, dtype=torch.float32)
    for part in log_w:
        total.add(part.unsqueeze(0))
        naive = torch.logaddexp(naive, part)
    exact = torch.logsumexp(log_w.double(), 0) - math.log(20_000)
    assert total.value().dtype == torch.float64
    assert (total.value() - exact).abs().max() < 1e-10
    assert (naive - math.log(20_000) - exact).abs().max() > 1e-6


def test_an_empty_running_mean_has_no_value():
    with pytest.raises(ValueError, match="no samples"):
        LogMeanExp().value()


# Side effects ---------------------------------------------------------------------------------------------


def test_the_global_generator_is_left_alone_also_between_batches():
    state = torch.get_rng_state()
    parts = log_likelihoods(linear_gaussian(), learned(), observe, images(), Sampling(5, 2, seed=0), batch=2)
    next(parts)
    assert torch.equal(torch.get_rng_state(), state)
    next(parts)
    # Abandoned in the middle: nothing is left set.
    parts.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(torch.get_rng_state(), state)
    log_likelihood(linear_gaussian(), learned(), observe(images()), 5, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_of_torchs_own_generator_are_seeded_as_well():
    """An encoder, or an ``observe``, that draws from torch's generator still gives a reproducible result."""

    def jittered(intensities: Tensor) -> Tensor:
        return observe(intensities) + 0.1 * torch.randn(len(intensities), 3)

    runs = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        parts = log_likelihoods(linear_gaussian(), learned(), jittered, images(), Sampling(5, seed=0), batch=3)
        runs.append(torch.cat([values for _, values in parts]))
    assert torch.equal(runs[0], runs[1])


# Work and memory ------------------------------------------------------------------------------------------


def counted(reverse: bool) -> tuple[HierarchicalEncoder, list[AffineConditional]]:
    """Return an encoder and those of its modules that count how often they look at x."""
    toy: Hierarchy = wide_hierarchy()
    tau = toy.rough_reverse() if reverse else None
    counters = [module for module in (toy.conditional, tau) if module is not None]
    for module in counters:
        module.conditioned = 0
    return HierarchicalEncoder(toy.mixing, toy.conditional, tau), counters


@pytest.mark.parametrize("reverse", [True, False])
def test_the_encoder_looks_at_an_image_once_however_many_chunks(reverse: bool):
    encoder, counters = counted(reverse)
    calls = []
    encoder.mixing.register_forward_hook(lambda *_: calls.append(1))
    log_likelihood(linear_gaussian(), encoder, observe(images()), k=40, inner_k=6, chunk=3, inner_chunk=2, seed=0)
    assert len(calls) == 1
    assert [module.conditioned for module in counters] == [1] * len(counters)


class LiveBytes(TorchDispatchMode):
    """Records the largest sum of the bytes of tensors alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(tensor, self._freed, size)
        return result

    def _freed(self, size: int) -> None:
        self.live -= size


def peak_bytes(k: int, inner_k: int, chunk: int | None, encoder: HierarchicalEncoder) -> int:
    """Return the peak of the bytes that an estimate holds at once."""
    with LiveBytes() as memory:
        log_likelihood(linear_gaussian(), encoder, observe(images()), k, inner_k, chunk, inner_chunk=2, seed=0)
    return memory.peak


@pytest.mark.parametrize("make", [learned, sivi, lambda: sivi(share_psi=True)])
def test_memory_depends_on_neither_k_nor_inner_k(make: Callable[[], HierarchicalEncoder]):
    peak = peak_bytes(30, 4, 5, make())
    assert peak_bytes(300, 4, 5, make()) <= 1.01 * peak
    assert peak_bytes(30, 40, 5, make()) <= 1.01 * peak
    # Controls: the meter sees a larger chunk, and a number of inner samples that is not cut up.
    assert peak_bytes(300, 4, 50, make()) > 5 * peak
    with LiveBytes() as uncut:
        make().draw(observe(images()), 5, inner_k=40)
    assert uncut.peak > 3 * peak


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("batch", [None, 1, 7, 100, 5_000])
@pytest.mark.parametrize("inner_k", [0, 1, 100, 100_000])
def test_automatic_chunks_keep_few_rows_in_flight_but_not_too_few(inner_k: int, batch: int | None, device: str):
    rows = ROWS.on(torch.device(device))
    for images, k in itertools.product((1, 2, 101, 60_000), (1, 50, 300_000)):
        sizes = Chunks.automatic(torch.device(device), Sampling(k, inner_k), images=images, batch=batch)
        assert min(sizes.batch, sizes.samples, sizes.inner) >= 1
        assert sizes.batch <= images
        assert batch is None or sizes.batch == min(batch, images)
        assert sizes.rows <= max(rows, 2 * sizes.batch)
        # Few images with many samples fill the rows, and so do few samples of many images.
        available = min(images, batch or MOST_IMAGES.on(torch.device(device))) * k * (1 + inner_k)
        assert sizes.rows > min(rows, available) / 5


def test_control_chunks_for_a_hundred_images_leave_two_with_few_rows():
    sampling = Sampling(300_000)
    hundred, two = (Chunks.automatic(CPU, sampling, images=images) for images in (100, 2))
    assert (2 * hundred.samples, 2 * two.samples) == (40, 2_000)


def test_chunks_are_even():
    sizes = Chunks.automatic(CPU, Sampling(50), images=101)
    assert (sizes.batch, sizes.samples) == (51, 25)


# Input and output -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "inner_k", "message"), [(0, 0, "^k must be >= 1, got 0"), (3, -1, "inner_k must be >= 0")]
)
def test_impossible_numbers_are_refused(k: int, inner_k: int, message: str):
    with pytest.raises(ValueError, match=message):
        log_likelihood(linear_gaussian(), learned(), observe(images()), k, inner_k)


def test_a_resumable_estimate_needs_a_seed():
    with pytest.raises(ValueError, match="needs a seed"):
        log_likelihoods(linear_gaussian(), learned(), observe, images(), Sampling(5))


def test_the_mean_over_images_and_its_error():
    values = torch.tensor([-80.0, -90.0, -100.0, -110.0])
    estimate = PerImage(values)
    assert estimate.mean == -95.0
    assert estimate.stderr == pytest.approx(math.sqrt(500 / 3 / 4))
    assert math.isnan(PerImage(values[:1]).stderr)


def chunks_of(total: int, size: int) -> Iterator[int]:
    """Yield the sizes of chunks that cover ``total``."""
    for first in range(0, total, size):
        yield min(size, total - first)


def test_uneven_last_chunks_weigh_what_they_hold():
    """At the exact posterior nothing shows; here a mean of chunk means would, by a nat."""
    log_w = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    total = LogMeanExp()
    for part in log_w.split(list(chunks_of(4, 3))):
        total.add(part)
    means = torch.stack([bounds.log_mean_exp(part) for part in log_w.split(3)])
    assert total.value().item() == pytest.approx(math.log((3 + math.exp(5)) / 4))
    assert bounds.log_mean_exp(means).item() - total.value().item() > 0.5
