"""The registries, and the objects that a configuration names."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vaebench import bounds, runtime
from vaebench.config import Config, compose, identity, read
from vaebench.datasets.dataset import Dataset
from vaebench.datasets.dataset import load as load_dataset
from vaebench.encoders import Encoder, GaussianEncoder, HierarchicalEncoder
from vaebench.errors import UserError, did_you_mean
from vaebench.gradients import GradientEstimator
from vaebench.model import GenerativeModel, StandardNormalPrior
from vaebench.nets import Networks
from vaebench.objective import Objective
from vaebench.records import RunFolder
from vaebench.training.checkpoint import Checkpoints

__all__ = ["BOUNDS", "ENCODERS", "PRIORS", "Experiment", "build", "load"]

# A family's own yaml keys are its keyword arguments. One line makes a new family known.
ENCODERS: dict[str, Callable[..., Encoder]] = {
    "gaussian": GaussianEncoder.build,
    "hvm": partial(HierarchicalEncoder.build, learned_reverse=True),
    "iwhvi": partial(HierarchicalEncoder.build, learned_reverse=True),
    "sivi": partial(HierarchicalEncoder.build, learned_reverse=False),
}
PRIORS: dict[str, Callable[..., nn.Module]] = {"standard": StandardNormalPrior}
# A bound's own yaml keys are its keyword arguments, too.
BOUNDS: dict[str, Callable[..., torch.Tensor]] = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
}


@dataclass(frozen=True)
class Experiment:
    """The objects of one run."""

    config: Config
    data: Dataset
    model: GenerativeModel
    encoder: Encoder
    objective: Objective
    device: torch.device

    @property
    def modules(self) -> nn.ModuleDict:
        """Everything with weights, as checkpoints name it."""
        return nn.ModuleDict({"model": self.model, "encoder": self.encoder})

    @property
    def inner_k(self) -> int:
        """Inner samples at the end of training, with which the run is validated and evaluated by default."""
        changes = self.config.trainer.inner_k_schedule
        return changes[max(changes)] if changes else self.config.encoder.inner_k

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision of the networks, as a context."""
        return runtime.autocast(self.device, self.config.trainer.precision)


def build(config: Config | Sequence[str]) -> Experiment:
    """Return the objects that ``vaebench train <overrides>`` trains, with fresh weights.

    Args:
        config: overrides such as ``["encoder=hvm", "objective=iwae", "k=16"]``, or a checked Config.

    Raises:
        UserError: a setting is wrong, or data or the device is missing.
    """
    if not isinstance(config, Config):
        config = compose(list(config))
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    device = runtime.resolve_device(config.device)
    data = _load_data(config)
    # Weights depend on the seed alone: not on what was drawn before, nor on how the data was prepared.
    runtime.seed_everything(config.seed)
    pixels = data.train.shape[1]
    latent = config.latent_dim
    model = GenerativeModel(_prior(config, latent), _decoder(config, data))
    encoder = _chosen("encoder", ENCODERS, config.encoder.name)(
        Networks(config.encoder.trunk, config.encoder.hidden, config.encoder.activation),
        pixels,
        latent,
        **config.encoder.arguments,
    )
    bound = partial(_chosen("bound", BOUNDS, config.objective.bound), **config.objective.arguments)
    objective = Objective(bound, GradientEstimator(config.objective.gradient))
    return Experiment(config, data, model.to(device), encoder.to(device), objective, device)


def load(folder: str | Path, config: Config | None = None) -> Experiment:
    """Return the objects of a run with its best weights (by validation log-likelihood).

    Args:
        folder: a run folder.
        config: the run's configuration, where device or data_dir differ from what is stored.

    Raises:
        UserError: not a run folder, no usable checkpoint, or one of another configuration.
    """
    run = RunFolder.open(Path(folder))
    experiment = build(read(run.path) if config is None else config)
    checkpoint = Checkpoints(run.checkpoints).load(
        "best", identity=identity(experiment.config), map_location=experiment.device
    )
    load_weights(experiment, checkpoint.state)
    return experiment


def load_weights(experiment: Experiment, state: dict[str, Any]) -> None:
    """Put a checkpoint's best weights into the experiment's modules."""
    experiment.modules.load_state_dict(state["modules"])


def _load_data(config: Config) -> Dataset:
    dataset = config.dataset
    return load_dataset(
        dataset.name,
        Path(config.data_dir),
        binarization=dataset.binarization,
        split=dataset.split,
        seed=dataset.seed,
        progress=config.trainer.progress,
    )


def _prior(config: Config, latent_dim: int) -> nn.Module:
    return _chosen("prior", PRIORS, config.prior.name)(latent_dim, **config.prior.arguments)


def _decoder(config: Config, data: Dataset) -> nn.Module:
    networks = Networks(config.decoder.name, config.decoder.hidden, config.decoder.activation)
    pixel_mean = data.train.double().mean(0).div(255).float()
    return networks.bernoulli(config.latent_dim, data.train.shape[1], pixel_mean)


def _chosen(group: str, registry: dict[str, Any], name: str) -> Any:
    if name not in registry:
        raise UserError(f"unknown {group} '{name}'{did_you_mean(name, registry)}; there are: {', '.join(registry)}")
    return registry[name]
