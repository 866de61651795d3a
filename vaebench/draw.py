"""Pictures of a run's best weights: samples, reconstructions, interpolations, traversals.

The functions that return tensors leave the global random state unchanged. Shapes: B images of X pixels, D latent
coordinates. Pixel means are from 0 to 1.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.config import Config, read
from vaebench.config.pictures import Interpolate, PictureSettings, Reconstruct, Sample, Traverse
from vaebench.errors import UserError
from vaebench.experiment import Experiment, Modules, build, load_best, notices, provenance
from vaebench.records import RunFolder
from vaebench.records.manifest import require_plugins
from vaebench.records.pictures import Sheet
from vaebench.records.text import counted

__all__ = [
    "LatentSpread",
    "decoded",
    "draw",
    "interpolations",
    "latent_positions",
    "latent_spread",
    "observed",
    "reconstructions",
    "samples",
]

COUNT = 64
SPREAD_IMAGES, SPREAD_DRAWS = 500, 8


# Images ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def samples(experiment: Experiment, modules: Modules, count: int = COUNT, seed: int = 0) -> Tensor:
    """Return pixel means of ``count`` draws from the prior, (count, X); the same seed gives the same draws."""
    with runtime.forked_randomness(experiment.device, seed):
        z = modules.model.prior().sample((count,))
        return modules.model.likelihood(z).mean


@torch.no_grad()
def observed(experiment: Experiment, intensities: Tensor, seed: int = 0) -> Tensor:
    """Return the encoder's input for pixel bytes, (B, X): binarized if the protocol binarizes."""
    with runtime.forked_randomness(experiment.device, seed):
        return experiment.data.observe(intensities.to(experiment.device))


@torch.no_grad()
def reconstructions(
    experiment: Experiment, modules: Modules, intensities: Tensor | None = None, draws: int = 1, seed: int = 0
) -> Tensor:
    """Return images, each followed by ``draws`` reconstructions from draws of z ~ q(z|x), (B (1 + draws), X).

    ``intensities`` are pixel bytes, (B, X); None for the first validation images.
    """
    x = observed(experiment, experiment.data.validation[: COUNT // 2] if intensities is None else intensities, seed)
    with runtime.forked_randomness(experiment.device, seed):
        z = modules.encoder.draw(x, draws).z
        means = modules.model.likelihood(z).mean
        return torch.cat([x.unsqueeze(0), means]).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def latent_positions(experiment: Experiment, modules: Modules, x: Tensor, seed: int = 0) -> tuple[Tensor, bool]:
    """Return a latent for each image, (B, D), and whether it is the mean of q(z|x).

    It is the mean if that is known in closed form, and one draw for all other encoders.
    """
    mean = modules.encoder.posterior_mean(x)
    if mean is not None:
        return mean, True
    with runtime.forked_randomness(experiment.device, seed):
        return modules.encoder.draw(x, 1).z[0], False


@torch.no_grad()
def interpolations(modules: Modules, start: Tensor, end: Tensor, steps: int, path: str = "linear") -> Tensor:
    """Return pixel means on the path between pairs of latents, (P, steps, X), both ends included.

    Args:
        modules: the weights.
        start: (P, D).
        end: (P, D).
        steps: at least 2.
        path: ``linear`` is the straight line. ``spherical`` turns at a constant rate from the direction of ``start`` to
            the direction of ``end``, while the length changes linearly. If D is large, it stays where N(0, I) has its
            mass.
    """
    share = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).view(-1, 1, 1)
    z = torch.lerp(start, end, share) if path == "linear" else _spherical(start, end, share)
    return modules.model.likelihood(z).mean.transpose(0, 1)


def _spherical(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Return points on the arc from ``start`` to ``end``, (S, P, D), at each ``share``, (S, 1, 1), of its angle."""
    near, far = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    first, last = start / near.clamp(min=1e-12), end / far.clamp(min=1e-12)
    # From the chord, because the cosine is inexact for small angles.
    angle = 2 * torch.asin(((first - last).norm(dim=-1, keepdim=True) / 2).clamp(max=1))
    sine = angle.sin()
    # A straight line if the directions are almost equal, if they are opposite (no arc is the shortest), or if one end
    # is 0 (no direction).
    straight = (sine < 1e-6) | (near == 0) | (far == 0)
    sine = torch.where(straight, torch.ones_like(sine), sine)
    arc = (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / sine
    return torch.where(straight, torch.lerp(start, end, share), arc * torch.lerp(near, far, share))


class LatentSpread(NamedTuple):
    """The variation of each latent coordinate over images and draws, (D,) each."""

    std: Tensor
    """Standard deviation of z_d over images and draws."""
    activity: Tensor
    """Share of the variance of z_d that is between images: near 0 if the posterior ignores the image."""


@torch.no_grad()
def latent_spread(experiment: Experiment, modules: Modules, intensities: Tensor, seed: int = 0) -> LatentSpread:
    """Return the variation over the first of these images, pixel bytes (B, X)."""
    x = observed(experiment, intensities[:SPREAD_IMAGES], seed)
    with runtime.forked_randomness(experiment.device, seed):
        z = modules.encoder.draw(x, SPREAD_DRAWS).z
    total = z.flatten(0, 1).var(0)
    within = z.var(0).mean(0)
    return LatentSpread(total.sqrt(), ((total - within) / total.clamp(min=1e-12)).clamp(0, 1))


@torch.no_grad()
def decoded(modules: Modules, z: Tensor) -> Tensor:
    """Return pixel means, (..., X), of latents, (..., D)."""
    return modules.model.likelihood(z).mean


# Labelled sheets ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trained:
    """A run with its best weights."""

    experiment: Experiment
    modules: Modules

    def images(self, split: str, numbers: list[int]) -> Tensor:
        """Return the pixel bytes of these images, (N, X). UserError for a number that does not exist."""
        images = self.experiment.data.split(split)
        if max(numbers) >= len(images):
            raise UserError(
                f"there is no image {max(numbers)} in {split}: it has {len(images):,} images, "
                f"from 0 to {len(images) - 1}"
            )
        return images[numbers]

    def sheet(self, images: Tensor, columns: int, title: str, **labels: Any) -> Sheet:
        """Return a sheet of images, (..., X)."""
        return Sheet(images.reshape(-1, *self.experiment.data.image_shape), columns, title, **labels)


def draw(look: PictureSettings, folder: str | Path, output: str | Path | None = None) -> Path:
    """Draw a picture of a run's best weights and return the path of the PNG file.

    Args:
        look: the settings; their class in :mod:`vaebench.config.pictures` decides which picture it is.
        folder: a run folder.
        output: the PNG file; ``pictures/<command>.png`` in the run folder if None.

    Raises:
        UserError: not a run folder, no usable checkpoint, an image or coordinate that does not exist, a file that
            cannot be written.
    """
    run = RunFolder.open(Path(folder))
    config = _on_this_machine(read(run.path), look)
    require_plugins(run)
    experiment = build(config)
    made_by = provenance(experiment, run, load_best(experiment, run))
    for line in notices(experiment, run, made_by):
        print(line, file=sys.stderr, flush=True)  # stdout has the path of the picture alone
    sheet = _SHEETS[type(look)](_Trained(experiment, experiment.modules.eval()), look)
    about = f"{_method(config)}, epoch {made_by.epoch}\n{sheet.title}"
    path = Path(output) if output is not None else run.path / "pictures" / f"{type(look).__name__.lower()}.png"
    # The description names no folder, so that a copy of the run gives the same file.
    replace(sheet, title=about, scale=look.scale).save(path, about.replace("\n", "; "), made_by)
    return path


def _on_this_machine(config: Config, look: PictureSettings) -> Config:
    """Return the run's configuration with the device, data folder and threads of the command."""
    trainer = replace(config.trainer, threads=look.threads, progress=False)
    return replace(config, device=look.device, data_dir=look.data_dir or config.data_dir, trainer=trainer)


def _method(config: Config) -> str:
    return f"{config.dataset.name} {config.encoder.name} {config.objective.name} k={config.k}, seed {config.seed}"


def _sample(run: _Trained, look: Sample) -> Sheet:
    images = samples(run.experiment, run.modules, look.n, look.seed)
    return run.sheet(images, look.columns, f"pixel means of draws from the prior ({run.experiment.config.prior.name})")


def _reconstruct(run: _Trained, look: Reconstruct) -> Sheet:
    intensities = run.images(look.split, list(range(look.n) if look.images is None else look.images))
    images = reconstructions(run.experiment, run.modules, intensities, look.draws, look.seed)
    group = 1 + look.draws
    title = f"{look.split} images, each with {counted(look.draws, 'reconstruction')} to its right"
    columns = group * min(look.columns, len(intensities))
    return run.sheet(images, columns, title, breaks=range(group, columns, group))


def _interpolate(run: _Trained, look: Interpolate) -> Sheet:
    numbers = list(range(2 * look.n) if look.images is None else look.images)
    if len(numbers) % 2:
        raise UserError(f"images={numbers} has {len(numbers)} numbers: give two numbers for each pair")
    x = observed(run.experiment, run.images(look.split, numbers), look.seed)
    z, is_mean = latent_positions(run.experiment, run.modules, x, look.seed)
    between = interpolations(run.modules, z[::2], z[1::2], look.steps, look.path)
    images = torch.cat([x[::2].unsqueeze(1), between, x[1::2].unsqueeze(1)], 1)
    latents = "means of q(z|x)" if is_mean else "draws from q(z|x)"
    title = f"{look.path} paths between {latents} of {look.split} images; the images are at both ends"
    labels = ["x", *(f"{step / (look.steps - 1):.2g}" for step in range(look.steps)), "x'"]
    return run.sheet(images, len(labels), title, column_labels=labels, breaks=(1, len(labels) - 1))


def _traverse(run: _Trained, look: Traverse) -> Sheet:
    x = observed(run.experiment, run.images(look.split, [look.image]), look.seed)
    z, is_mean = latent_positions(run.experiment, run.modules, x, look.seed)
    spread = latent_spread(run.experiment, run.modules, run.experiment.data.split(look.split), look.seed)
    coordinates = _coordinates(run.experiment, look, spread)
    steps = torch.linspace(-look.reach, look.reach, look.steps, dtype=z.dtype, device=z.device)
    moved = z.expand(len(coordinates), look.steps, -1).clone()
    for row, coordinate in enumerate(coordinates):
        moved[row, :, coordinate] += steps * spread.std[coordinate]
    title = (
        f"{look.split} image {look.image}: {'the mean' if is_mean else 'a draw'} of q(z|x) with one coordinate moved\n"
        "by standard deviations over images; in brackets: the share of its variance between images"
    )
    return run.sheet(
        decoded(run.modules, moved),
        look.steps,
        title,
        column_labels=[f"{step:+.3g}" if step else "0" for step in steps.tolist()],
        row_labels=[f"z{coordinate} ({spread.activity[coordinate].item():.2f})" for coordinate in coordinates],
    )


def _coordinates(experiment: Experiment, look: Traverse, spread: LatentSpread) -> list[int]:
    """Return the given coordinates, or the most active ones; only those that the decoder sees."""
    count = len(spread.std[: experiment.model.decoder_inputs])
    if look.coordinates is None:
        return spread.activity[:count].argsort(descending=True, stable=True)[: look.n].tolist()
    if max(look.coordinates) >= count:
        raise UserError(
            f"there is no coordinate {max(look.coordinates)}: the decoder sees {count} of them, from 0 to {count - 1}"
        )
    return list(look.coordinates)


_SHEETS: dict[type[PictureSettings], Callable[[_Trained, Any], Sheet]] = {
    Sample: _sample,
    Reconstruct: _reconstruct,
    Interpolate: _interpolate,
    Traverse: _traverse,
}
