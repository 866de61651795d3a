"""Pictures of a run's best weights: samples, reconstructions, interpolations, traversals."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebench.config import Config, read
from vaebench.config.pictures import Interpolate, PictureSettings, Reconstruct, Sample, Traverse
from vaebench.draw import images as drawn
from vaebench.errors import UserError
from vaebench.experiment import Experiment, Modules, build, load_best
from vaebench.records import RunFolder
from vaebench.records.pictures import Sheet

__all__ = ["draw"]


@dataclass(frozen=True)
class _Subject:
    """What is drawn."""

    experiment: Experiment
    modules: Modules

    def chosen(self, look: Reconstruct | Interpolate, count: int) -> tuple[Tensor, list[int]]:
        """Return pixel bytes, (N, X), and the images' numbers: those asked for, or the first ``count``."""
        images = self.experiment.data.split(look.split)
        numbers = list(range(count) if look.images is None else look.images)
        return images[self.within(numbers, len(images), look.split)], numbers

    def within(self, numbers: list[int], size: int, split: str) -> list[int]:
        """Return ``numbers``; UserError for one that is not there."""
        if max(numbers) >= size:
            raise UserError(f"there is no image {max(numbers)} in {split}: {size:,} images, from 0 to {size - 1}")
        return numbers

    def place(self, known: bool) -> str:
        """Say what stands for an image in latent space."""
        return "means of q(z|x)" if known else "draws from q(z|x)"


def draw(look: PictureSettings, folder: str | Path, output: str | Path | None = None) -> Path:
    """Draw what ``look`` asks for from a run's best weights, and return the PNG's path.

    Args:
        look: one of :mod:`vaebench.config.pictures`; it says what is drawn, and how.
        folder: a run folder.
        output: where to; ``pictures/<command>.png`` in the run folder if None.

    Raises:
        UserError: not a run folder, no usable checkpoint, an image or coordinate that is not there, a file that
            cannot be written.
    """
    run = RunFolder.open(Path(folder))
    config = _placed(read(run.path), look)
    experiment = build(config)
    epoch = load_best(experiment, run)
    modules = experiment.modules.eval()
    command = type(look).__name__.lower()
    sheet = _SHEETS[type(look)](_Subject(experiment, modules), look)
    about = f"{_method(config)}, epoch {epoch}\n{sheet.title}"
    path = Path(output) if output is not None else run.path / "pictures" / f"{command}.png"
    # No path in the file: the same run drawn elsewhere is the same file.
    replace(sheet, title=about, scale=look.scale).save(path, about.replace("\n", "; "))
    return path


def _placed(config: Config, look: PictureSettings) -> Config:
    """Return the run's configuration on the machine at hand."""
    trainer = replace(config.trainer, threads=look.threads, progress=False)
    return replace(config, device=look.device, data_dir=look.data_dir or config.data_dir, trainer=trainer)


def _method(config: Config) -> str:
    return f"{config.dataset.name} {config.encoder.name} {config.objective.name} k={config.k}, seed {config.seed}"


def _sheet(subject: _Subject, images: Tensor, columns: int, title: str, **labels: Any) -> Sheet:
    """Return a sheet of images, (..., X)."""
    shape = subject.experiment.data.image_shape[1:]
    return Sheet(images.reshape(-1, *shape), columns, title, **labels)


def _sample(subject: _Subject, look: Sample) -> Sheet:
    images = drawn.samples(subject.experiment, subject.modules, look.n, look.seed)
    prior = subject.experiment.config.prior.name
    return _sheet(subject, images, look.columns, f"pixel means of draws from the prior ({prior})")


def _reconstruct(subject: _Subject, look: Reconstruct) -> Sheet:
    intensities, _ = subject.chosen(look, look.n)
    images = drawn.reconstructions(subject.experiment, subject.modules, intensities, look.draws, look.seed)
    group = 1 + look.draws
    title = f"{look.split} images, each with {look.draws} reconstruction{'s' if look.draws > 1 else ''} to its right"
    columns = group * min(look.columns, len(intensities))
    return _sheet(subject, images, columns, title, breaks=range(group, columns, group))


def _interpolate(subject: _Subject, look: Interpolate) -> Sheet:
    intensities, numbers = subject.chosen(look, 2 * look.n)
    if len(numbers) % 2:
        raise UserError(f"images={numbers} has {len(numbers)} numbers, and interpolation goes between pairs")
    x = drawn.observed(subject.experiment, intensities, look.seed)
    z, known = drawn.latents(subject.experiment, subject.modules, x, look.seed)
    way = drawn.interpolations(subject.modules, z[::2], z[1::2], look.steps, look.path)
    images = torch.cat([x[::2].unsqueeze(1), way, x[1::2].unsqueeze(1)], 1)
    title = f"{look.path} ways between {subject.place(known)} of {look.split} images, which stand at both ends"
    heads = ["x", *_shares(look.steps), "x'"]
    return _sheet(subject, images, len(heads), title, heads=heads, breaks=(1, len(heads) - 1))


def _shares(steps: int) -> list[str]:
    return [f"{step / (steps - 1):.2g}" for step in range(steps)]


def _traverse(subject: _Subject, look: Traverse) -> Sheet:
    data = subject.experiment.data.split(look.split)
    (number,) = subject.within([look.image], len(data), look.split)
    x = drawn.observed(subject.experiment, data[number : number + 1], look.seed)
    z, known = drawn.latents(subject.experiment, subject.modules, x, look.seed)
    spread = drawn.spread(subject.experiment, subject.modules, data, look.seed)
    coordinates = _coordinates(subject, look, spread)
    steps = torch.linspace(-look.reach, look.reach, look.steps, dtype=z.dtype, device=z.device)
    moved = z.expand(len(coordinates), look.steps, -1).clone()
    for row, coordinate in enumerate(coordinates):
        moved[row, :, coordinate] += steps * spread.std[coordinate]
    images = drawn.decoded(subject.modules, moved)
    title = (
        f"{look.split} image {number}, at {'the mean' if known else 'a draw'} of q(z|x), with one coordinate moved\n"
        "by standard deviations over images; in brackets, the share of its variance that lies between images"
    )
    sides = [f"z{coordinate} ({spread.activity[coordinate].item():.2f})" for coordinate in coordinates]
    heads = [f"{step:+.3g}" if step else "0" for step in steps.tolist()]
    return _sheet(subject, images, look.steps, title, heads=heads, sides=sides)


def _coordinates(subject: _Subject, look: Traverse, spread: drawn.Spread) -> list[int]:
    """Return the coordinates to move: those asked for, or the most active ones that the decoder sees."""
    seen = len(spread.std[: subject.experiment.model.seen])
    if look.coordinates is None:
        return spread.activity[:seen].argsort(descending=True, stable=True)[: look.n].tolist()
    if max(look.coordinates) >= seen:
        raise UserError(
            f"there is no coordinate {max(look.coordinates)}: the decoder sees {seen} of them, from 0 to {seen - 1}"
        )
    return list(look.coordinates)


_SHEETS: dict[type[PictureSettings], Callable[[_Subject, Any], Sheet]] = {
    Sample: _sample,
    Reconstruct: _reconstruct,
    Interpolate: _interpolate,
    Traverse: _traverse,
}
