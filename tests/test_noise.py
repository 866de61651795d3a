"""Keyed noise: numbers that depend on their key alone, and look like independent ones."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import gaussian

from vaebench import noise
from vaebench.estimators.importance import draws
from vaebench.estimators.sampling import Sampling

pytestmark = pytest.mark.usefixtures("float64")

LIKE = torch.zeros((), dtype=torch.float64)
IMAGES = torch.arange(40)


def normals(*shape: int, seed: int = 0, images: Tensor = IMAGES, first: int = 0, draws: int = 1) -> Tensor:
    """Return the last of ``draws`` consecutive draws of keyed normals."""
    with noise.keyed(seed, images, first):
        return [noise.standard_normal(shape, LIKE) for _ in range(draws)][-1]


def independent(first: Tensor, second: Tensor) -> bool:
    """Tell whether two sets of normals are uncorrelated, and their squares too, to 4.5 standard errors."""
    limit = 4.5 / first.numel() ** 0.5
    pairs = [(first, second), (first**2, second**2), (first, second**2)]
    values = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairs]
    return all(abs(value) < limit for value in values)


# Distribution ---------------------------------------------------------------------------------------------


def test_normals_are_normal():
    values = normals(200, 40, 25).flatten()
    n = values.numel()
    moments = [values.mean(), values.var() - 1, (values**3).mean(), (values**4).mean() - 3]
    for moment, variance in zip(moments, (1, 2, 15, 96), strict=True):
        assert abs(moment) < 4.5 * math.sqrt(variance / n)
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    # Beyond four sigma: 6.3e-5 of 200,000.
    assert (values.abs() > 4).sum().item() == pytest.approx(12.7, abs=4 * 12.7**0.5)


def test_uniforms_are_uniform():
    with noise.keyed(0, IMAGES):
        values = noise.uniform((200, 40, 25), LIKE).flatten()
    assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
    assert values.min() > 0
    assert values.max() < 1


def test_float32_uniforms_stay_inside_the_open_interval():
    with noise.keyed(0, torch.arange(1000)):
        values = noise.uniform((200, 1000, 50), torch.zeros((), dtype=torch.float32))
    assert values.dtype == torch.float32
    assert values.min() > 0
    assert values.max() < 1
    assert values.log().isfinite().all()


def test_each_coordinate_sample_and_image_has_mean_zero():
    """No axis has a direction of its own: the largest of the means of all slices is that of noise."""
    values = normals(200, 40, 25)
    for axes in ((0, 1), (0, 2), (1, 2)):
        means = values.mean(axes)
        count = values.numel() / means.numel()
        assert means.abs().max() * count**0.5 < 4.5
        assert stats.kstest((means * count**0.5).flatten().numpy(), "norm").pvalue > 1e-3


# Independence ---------------------------------------------------------------------------------------------


def neighbours() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield pairs of noise whose keys differ by one in one place."""
    base = normals(100, 40, 24)
    yield "samples", base[:-1], base[1:]
    yield "images", base[:, :-1], base[:, 1:]
    yield "coordinates", base[..., :-1], base[..., 1:]
    # The two normals made of one hash.
    yield "halves", base[..., :12], base[..., 12:]
    for shift in (1, 2, 1 << 20, 1 << 32):
        yield f"seeds +{shift}", base, normals(100, 40, 24, seed=shift)
    yield "draws", base, normals(100, 40, 24, draws=2)
    square = normals(40, 40, 24)
    below = torch.tril_indices(40, 40, -1)
    yield "samples and images swapped", square[below[0], below[1]], square[below[1], below[0]]
    yield "images far apart", base, normals(100, 40, 24, images=IMAGES + 60_000)
    with noise.keyed(0, IMAGES), noise.inner_samples(0):
        inner = noise.standard_normal((20, 5, 40, 24), LIKE)
    yield "inner samples", inner[:-1], inner[1:]
    yield "inner and outer", inner[0], base[:5]
    yield "samples within inner", inner[:, :-1], inner[:, 1:]


def test_neighbouring_keys_give_independent_noise():
    dependent = [name for name, first, second in neighbours() if not independent(first, second)]
    assert dependent == []


def test_control_independence_is_not_granted_to_a_plain_counter():
    """Weyl sequences, a counter times a constant, fail the same test between neighbouring samples."""
    counter = torch.arange(100).view(-1, 1, 1) * 24 * 40 + torch.arange(40).view(-1, 1) * 24 + torch.arange(24)
    uniform = (counter * 0.6180339887498949).frac().clamp(1e-9, 1 - 1e-9)
    values = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    assert not all(independent(values.roll(shift, 2), values) for shift in (1, 2, 3))


def test_no_number_comes_twice():
    values = normals(500, 40, 50)
    assert values.unique().numel() == values.numel()


# Keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 10, 16])
def test_samples_in_chunks_are_the_samples_at_once(chunk: int):
    whole = normals(16, 40, 7)
    parts = [normals(min(chunk, 16 - first), 40, 7, first=first) for first in range(0, 16, chunk)]
    assert torch.equal(torch.cat(parts), whole)


def test_images_in_batches_and_in_any_order_keep_their_noise():
    whole = normals(5, 40, 7)
    order = torch.randperm(40)
    assert torch.equal(normals(5, 40, 7, images=order), whole[:, order])
    assert torch.equal(normals(5, 3, 7, images=torch.tensor([4, 39, 0])), whole[:, [4, 39, 0]])


@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_inner_samples_in_chunks_are_the_inner_samples_at_once(chunk: int):
    def inner(first: int, count: int) -> Tensor:
        with noise.keyed(3, IMAGES, 2), noise.inner_samples(first):
            return noise.standard_normal((count, 5, 40, 7), LIKE)

    parts = [inner(first, min(chunk, 9 - first)) for first in range(0, 9, chunk)]
    assert torch.equal(torch.cat(parts), inner(0, 9))


def test_inner_samples_leave_the_outer_stream_where_it_was():
    with noise.keyed(0, IMAGES):
        noise.standard_normal((5, 40, 7), LIKE)
        with noise.inner_samples(0):
            noise.standard_normal((3, 5, 40, 7), LIKE)
        after = noise.standard_normal((5, 40, 7), LIKE)
    assert torch.equal(after, normals(5, 40, 7, draws=2))


def test_shared_noise_is_the_same_for_every_chunk_of_samples():
    def shared(first: int) -> Tensor:
        with noise.keyed(0, IMAGES, first), noise.inner_samples(0), noise.shared_over_samples():
            return noise.standard_normal((3, 1, 40, 7), LIKE)

    assert torch.equal(shared(0), shared(100))


def test_noise_in_float32_is_that_of_float64():
    single = torch.zeros((), dtype=torch.float32)
    with noise.keyed(0, IMAGES):
        ours = noise.standard_normal((50, 40, 7), single)
    assert ours.dtype == torch.float32
    assert (ours - normals(50, 40, 7)).abs().max() < 1e-4


@pytest.mark.parametrize("seed", [-1, 0, 2**31, 2**63, 2**64 - 1])
def test_any_integer_is_a_seed(seed: int):
    assert abs(normals(50, 40, 10, seed=seed).mean()) < 4.5 / 20_000**0.5


def test_the_table_does_not_change():
    """Recorded results name a seed; a change of the table would change what it means."""
    recorded = [0.12064749913875751, 0.6084961899968968]
    assert normals(1, 1, 2, images=IMAGES[:1]).flatten().tolist() == pytest.approx(recorded, abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_table():
    on_gpu = torch.zeros((), dtype=torch.float64, device="cuda")
    with noise.keyed(0, IMAGES):
        ours = noise.standard_normal((50, 40, 7), on_gpu)
    assert (ours.cpu() - normals(50, 40, 7)).abs().max() < 1e-12


# Outside --------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Counts copies of integers from the CPU to another device: the host waits for each."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._to_copy and not args[0].is_floating_point():
            self.count += args[0].device.type == "cpu" != result.device.type
        return result


def test_the_images_numbers_move_to_a_device_once_for_all_chunks_of_all_draws():
    encoder, x = gaussian().to("meta"), torch.zeros(5, 3, device="meta")
    with torch.no_grad(), Copies() as copies:
        drawn = list(draws(encoder, x, Sampling(90, seed=0, images=IMAGES[:5], chunk=10)))
    assert len(drawn) == 9
    assert copies.count == 1
    # Control: each source of noise moves numbers that are still on the host.
    with Copies() as copies:
        for first in range(3):
            with noise.keyed(0, IMAGES, first):
                noise.standard_normal((1, 40, 2), x)
                noise.standard_normal((1, 40, 2), x)
    assert copies.count == 3


def test_noise_of_a_part_of_a_batch_can_be_viewed_in_another_shape():
    """An encoder views noise of several samples as rows, with one process and with several."""
    like = torch.zeros(())
    torch.manual_seed(0)
    whole = noise.standard_normal((3, 6, 4), like)
    torch.manual_seed(0)
    with noise.part_of_batch(slice(2, 5), 6):
        part = noise.standard_normal((3, 3, 4), like).view(9, 4)
    assert torch.equal(part.view(3, 3, 4), whole[:, 2:5])


def test_without_a_key_noise_is_torchs_own():
    torch.manual_seed(5)
    ours = noise.standard_normal((3, 4), LIKE), noise.uniform((3, 4), LIKE)
    torch.manual_seed(5)
    assert torch.equal(ours[0], torch.randn(3, 4, dtype=torch.float64))
    assert torch.equal(ours[1], torch.rand(3, 4, dtype=torch.float64))


def test_the_key_is_dropped_at_the_end_of_the_block_also_after_an_error():
    with pytest.raises(ZeroDivisionError), noise.keyed(0, IMAGES):
        raise ZeroDivisionError
    first, second = (noise.standard_normal((3, 40, 2), LIKE) for _ in range(2))
    assert not torch.equal(first, second)
    with noise.inner_samples(0), noise.shared_over_samples():
        assert noise.standard_normal((2, 2), LIKE).shape == (2, 2)


def test_keyed_noise_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    normals(3, 40, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_another_size_than_the_keys_is_refused():
    with noise.keyed(0, IMAGES), pytest.raises(ValueError, match="40 images"):
        noise.standard_normal((3, 41, 2), LIKE)
