"""Binarization with exact probabilities, and a dataset as tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vaebench.datasets.arrays import draw_pixels
from vaebench.datasets.binarization import binarize
from vaebench.datasets.dataset import load
from vaebench.errors import UserError

DRAWS = 40_000
LIMIT = 4.5  # standard errors; 254 frequencies at once: a right sampler passes 4 in one seed of 60
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def own_user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("home")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(home))


def every_byte() -> Tensor:
    """All 256 intensities, each repeated: uint8 (256, DRAWS)."""
    return torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, DRAWS)


def worst_error(drawn: Tensor) -> float:
    """The largest deviation of a frequency from byte / 255, in standard errors; 0 and 255 must be exact."""
    frequency = drawn.double().mean(dim=1)
    probability = torch.arange(256, dtype=torch.float64) / 255
    if frequency[0] != 0 or frequency[255] != 1:
        return float("inf")
    inner = slice(1, 255)
    error = (probability * (1 - probability) / DRAWS).sqrt()
    return float(((frequency - probability)[inner] / error[inner]).abs().max())


@pytest.mark.parametrize("device", DEVICES)
def test_binarize_draws_with_probability_byte_over_255(device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator(device).manual_seed(0)
    drawn = binarize(every_byte().to(device), generator)
    assert drawn.dtype == torch.float32
    assert drawn.device.type == device
    assert worst_error(drawn.cpu()) < LIMIT


def test_bytes_that_do_not_come_in_eights_are_drawn_alike():
    # (256, DRAWS) without its last column is no multiple of eight in all, and takes the other way.
    odd = every_byte()[:, :-1].flatten()[:-1]
    assert odd.numel() % 8
    drawn = torch.cat([binarize(odd, torch.Generator().manual_seed(0)), torch.ones(1)]).view(256, DRAWS - 1)
    assert worst_error(drawn) < LIMIT


def test_neighbouring_pixels_are_independent():
    # Eight pixels share one random word: no two of them may go together. A count of coincidences is binomial.
    x = torch.full((DRAWS, 8), 100, dtype=torch.uint8)
    drawn = binarize(x, torch.Generator().manual_seed(0)).double()
    mean = 100 / 255
    together = ((drawn - mean).T @ (drawn - mean) / DRAWS).fill_diagonal_(0)
    assert together.abs().max() < LIMIT * mean * (1 - mean) / DRAWS**0.5


def test_the_first_digit_alone_is_refused():
    # Control: what a tie gives up is just enough to be seen.
    uniform = torch.randint(0, 256, (256, DRAWS), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    wrong = (uniform <= every_byte()).float()
    assert worst_error(wrong) == float("inf")
    wrong[0] = 0
    assert worst_error(wrong) > 6


def test_fixed_draws_have_the_same_probabilities():
    drawn = draw_pixels(every_byte().numpy(), seed=0, split="test")
    assert set(np.unique(drawn)) == {0, 255}
    assert worst_error(torch.from_numpy(drawn) / 255) < LIMIT


def test_the_check_refuses_byte_over_256():
    # Control: a uniform byte compared with the intensity draws with probability byte / 256.
    uniform = torch.randint(0, 256, (256, DRAWS), generator=torch.Generator().manual_seed(0))
    wrong = (uniform < every_byte()).float()
    assert worst_error(wrong) == float("inf")  # 255 is not always ink
    wrong[255] = 1
    assert worst_error(wrong) > 6  # and 254 and its neighbours are off too


def test_binarize_repeats_from_the_generators_state():
    x = torch.randint(0, 256, (7, 784), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first, second = binarize(x, generator), binarize(x, generator)
    generator.set_state(state)
    assert torch.equal(binarize(x, generator), first)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(binarize(x), first)


def test_black_and_white_images_pass_unchanged():
    x = torch.randint(0, 2, (5, 784), dtype=torch.uint8) * 255
    assert torch.equal(binarize(x), x.float() / 255)


def test_a_dataset_holds_bytes_and_observes_pixels(tmp_path: Path):
    data = load("mnist5k", tmp_path, progress=False)
    assert str(data.protocol) == "mnist5k/dynamic-v1"
    assert data.image_shape == (1, 28, 28)
    assert "benchmarks: dataset=mnist" in data.note
    for split, count in (("train", 4_000), ("validation", 500), ("test", 500)):
        assert data.split(split).shape == (count, 784)
        assert data.split(split).dtype == torch.uint8
    x = data.observe(data.train[:9], torch.Generator().manual_seed(0))
    assert torch.equal(x, binarize(data.train[:9], torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match="unknown split=valid"):
        data.split("valid")
    assert load("mnist5k", tmp_path, progress=False).fingerprint == data.fingerprint


def test_rebinarized_splits_come_from_the_grey_levels(tmp_path: Path):
    data = load("mnist5k", tmp_path, progress=False)
    assert torch.equal(data.rebinarized("test", seed=data.protocol.seed), data.test)
    fresh = data.rebinarized("test", seed=7)
    assert torch.equal(fresh, data.rebinarized("test", seed=7))
    assert not torch.equal(fresh, data.test)
    sure = (data.grey["test"] == 0) | (data.grey["test"] == 255)
    assert torch.equal(fresh[sure], data.grey["test"][sure])
    with pytest.raises(UserError, match="no grey levels for train"):
        data.rebinarized("train", seed=7)


@pytest.mark.parametrize("binarization", ["none", "threshold"])
def test_protocols_without_draws_refuse_to_draw_again(tmp_path: Path, binarization: str):
    data = load("mnist5k", tmp_path, binarization=binarization, progress=False)
    assert data.grey["test"] is data.test
    with pytest.raises(UserError, match="no grey levels"):
        data.rebinarized("test", seed=7)


def test_grey_pixels_are_observed_as_they_are(tmp_path: Path):
    data = load("mnist5k", tmp_path, binarization="none", progress=False)
    assert data.continuous
    assert "pixels are grey levels" in data.note
    assert torch.equal(data.observe(data.test), data.test.float() / 255)
