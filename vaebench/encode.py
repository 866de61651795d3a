"""Latents of a run's images: posterior means and draws by its best weights, as a file or for TensorBoard's projector.

Shapes: N images, D latent coordinates, K draws. With two stochastic layers z is (z1, z2), the decoder's layer first.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from vaebench import noise, runtime
from vaebench.config import read
from vaebench.config.encoding import Encoding
from vaebench.config.run import with_images
from vaebench.datasets.labels import labels_of
from vaebench.encoders.base import Encoder
from vaebench.errors import RunFailed
from vaebench.estimators.importance import Chunks, draws
from vaebench.estimators.sampling import Sampling, ShrinkingBatches
from vaebench.evaluate.job import Images, choose_images
from vaebench.experiment import Experiment, build, load_best, notices, provenance
from vaebench.priors import Prior
from vaebench.progress import ItemProgress
from vaebench.records import RunFolder
from vaebench.records.latents import Latents, write_latents
from vaebench.records.provenance import Provenance
from vaebench.runtime import in_float64

__all__ = ["Encoded", "encode", "encoded", "observed", "posterior_means"]


class Encoded(NamedTuple):
    """The latents of N images."""

    mean: Tensor
    """E z, (N, D), float32: in closed form, or the mean of ``mean_draws`` draws."""
    stderr: Tensor | None
    """Standard error of ``mean`` over its draws, (N, D); None for a mean in closed form."""
    draws: Tensor
    """(N, K, D), float32."""


def encode(
    folder: str | Path, settings: Encoding | None = None, output: Path | None = None, *, projector: bool = False
) -> list[Path]:
    """Write the latents of a run's images and return the paths of the files.

    Args:
        folder: a run folder.
        settings: None for the defaults.
        output: an .npz or .csv file; None for ``latents/<split>.npz`` in the run folder, or for no such file with
            ``projector``.
        projector: write the means for TensorBoard's projector.

    Raises:
        UserError: not a run folder, no usable checkpoint, a file that cannot be written.
        RunFailed: a latent is not finite.
    """
    settings, run = settings or Encoding(), RunFolder.open(Path(folder))
    experiment = build(with_images(read(run.path), settings))
    made_by = provenance(experiment, run, load_best(experiment, run))
    for line in notices(experiment, run, made_by):
        print(line, file=sys.stderr, flush=True)  # stdout has the paths alone
    images = choose_images(experiment.data, experiment.config.estimator, experiment.device)
    found = encoded(experiment, settings, images)
    latents = Latents(
        images=images.numbers.numpy(),
        mean=found.mean.numpy(),
        provenance=_origin(experiment, settings, images, made_by),
        mean_draws=0 if found.stderr is None else settings.mean_draws,
        mean_stderr=None if found.stderr is None else found.stderr.numpy(),
        draws=found.draws.numpy() if settings.draws else None,
        labels=_labels(experiment, settings.split, images),
    )
    paths = []
    if output is not None or not projector:
        paths.append(output or run.path / "latents" / f"{settings.split}.npz")
        write_latents(paths[0], latents)
    if projector:
        from vaebench.records.projector import write_projector  # here, because it imports TensorBoard

        kind = "means" if found.stderr is None else f"means of {settings.mean_draws} draws"
        title = f"{kind} of q(z|x), {settings.split}, {images.protocol}, epoch {made_by.epoch}"
        paths.append(write_projector(run, latents, _pictures(experiment, settings, images), title, made_by))
    return paths


@torch.no_grad()
def encoded(experiment: Experiment, settings: Encoding, images: Images) -> Encoded:
    """Return the latents of these images; they depend on the seed and each image's number, and on no batch.

    RunFailed if a latent is not finite.
    """
    experiment.modules.eval()
    encoder, numbers = experiment.encoder, images.numbers
    most = Sampling(max(settings.mean_draws, settings.draws))
    size = Chunks.automatic(experiment.device, most, images=len(numbers), batch=settings.batch).batch

    def latents_of(part: slice) -> Encoded:
        x = observed(experiment, images.intensities[part], numbers[part], settings.seed)
        with experiment.autocast(), runtime.forked_randomness(experiment.device, settings.seed):
            mean, stderr = posterior_means(encoder, x, _sampling(settings, "mean").on(numbers[part]))
            drawn = [mean.new_zeros(0, *mean.shape)]
            if settings.draws:
                drawn += _draws(encoder, x, _sampling(settings, "draws").on(numbers[part]))
        return Encoded(
            mean.float().cpu(),
            None if stderr is None else stderr.float().cpu(),
            torch.cat([z.float().cpu() for z in drawn]).transpose(0, 1),
        )

    parts: list[Encoded] = []
    with ItemProgress("encode" if settings.progress else None, len(numbers), "image") as progress:
        for part, found in ShrinkingBatches(size).run(0, len(numbers), latents_of):
            parts.append(found)
            progress.update(part.stop - part.start)
    means, stderrs, drawn = zip(*parts, strict=True)
    result = Encoded(torch.cat(means), None if None in stderrs else torch.cat(stderrs), torch.cat(drawn))
    if not all(bool(part.isfinite().all()) for part in result if part is not None):
        raise RunFailed("a latent is not finite: the weights of the run are not usable")
    return result


def observed(experiment: Experiment, intensities: Tensor, numbers: Tensor, seed: int) -> Tensor:
    """Return the encoder's input, (B, X), for intensities, (B, X): grey, or binarized as the protocol says.

    Training images of a dynamic protocol are drawn with the seed, each pixel by a number of its own. All other
    binary images are fixed, and no draw changes them.
    """
    if experiment.data.continuous:
        return experiment.data.observe(intensities)
    chance = intensities.float() if intensities.is_floating_point() else intensities.float() / 255
    with noise.keyed(runtime.derived_seed(seed, "pixels"), numbers):
        return (noise.uniform((1, *chance.shape), chance)[0] < chance).float()


def posterior_means(encoder: Encoder, x: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return E z for the images x, (B, D), and its standard error: None for a mean in closed form.

    Without a closed form it is the mean of ``sampling.k`` draws, computed in chunks in float64.
    """
    mean = encoder.posterior_mean(x)
    if mean is not None:
        return mean, None
    chunks = _draws(encoder, x, sampling)
    first = in_float64(next(chunks))
    origin = first[0]  # so that no large numbers cancel
    offset = first - origin
    total, square = offset.sum(0), offset.square().sum(0)
    for z in chunks:
        offset = in_float64(z) - origin
        total, square = total + offset.sum(0), square + offset.square().sum(0)
    mean = total / sampling.k
    variance = (square - sampling.k * mean.square()).clamp(min=0) / (sampling.k - 1)
    return origin + mean, (variance / sampling.k).sqrt()


def _draws(encoder: Encoder, x: Tensor, sampling: Sampling) -> Iterator[Tensor]:
    return (draw.z for draw in draws(encoder, x, sampling))


def _sampling(settings: Encoding, purpose: str) -> Sampling:
    count = settings.mean_draws if purpose == "mean" else settings.draws
    return Sampling(count, seed=runtime.derived_seed(settings.seed, purpose))


def _origin(experiment: Experiment, settings: Encoding, images: Images, made_by: Provenance) -> dict[str, object]:
    """Return what made the latents, as JSON holds it."""
    config = experiment.config
    return {
        **asdict(made_by),
        "split": settings.split,
        "protocol": images.protocol,
        "dataset": config.dataset.name,
        "encoder": config.encoder.name,
        "objective": config.objective.name,
        "k": experiment.k,
        "run_seed": config.seed,
        "layers": list(cast(Prior, experiment.model.latent_prior).layers),
        "settings": {"draws": settings.draws, "mean_draws": settings.mean_draws, "seed": settings.seed},
    }


def _labels(experiment: Experiment, split: str, images: Images) -> dict[str, np.ndarray]:
    """Return the labels of the images by name; print a line if there are none."""
    config = experiment.config
    found = labels_of(experiment.data.protocol, Path(config.data_dir), config.dataset.arguments)
    if isinstance(found, str):
        print(f"no labels: {found}", file=sys.stderr, flush=True)
        return {}
    return {name: by_split[split][images.numbers.numpy()] for name, by_split in found.items()}


def _pictures(experiment: Experiment, settings: Encoding, images: Images) -> np.ndarray:
    """Return the encoder's input as pictures, (N, H, W) or (N, H, W, 3) bytes."""
    x = observed(experiment, images.intensities, images.numbers, settings.seed)
    pixels = (x * 255).round().byte().cpu().reshape(-1, *experiment.data.image_shape).numpy()
    return pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels[:, 0]
