"""Builds the objects of a run from its configuration."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench import __version__, plugins, runtime
from vaebench.config import Config, compose, identity, read
from vaebench.config.schema import DecoderSettings, EncoderSettings
from vaebench.datasets.dataset import Dataset
from vaebench.datasets.dataset import load as load_dataset
from vaebench.direction import Measure
from vaebench.encoders.base import BuildContext, Encoder
from vaebench.errors import UserError
from vaebench.gradients import GradientEstimator, is_curved
from vaebench.model import GenerativeModel
from vaebench.nets.dense import Likelihood
from vaebench.nets.networks import TRUNKS, Networks
from vaebench.objective import Objective
from vaebench.priors import PriorContext
from vaebench.records import Provenance, RunFolder, last_metrics, read_manifest
from vaebench.records.checkpoint import Checkpoints, Loaded
from vaebench.records.manifest import RememberedPlugin, git_state, require_plugins, trained_code
from vaebench.records.provenance import RunState
from vaebench.records.source import source_digest
from vaebench.registry import ENCODERS, LIKELIHOODS, OBJECTIVES, PRIORS, registered

__all__ = [
    "Best",
    "Experiment",
    "Modules",
    "best_of",
    "build",
    "code_notice",
    "load",
    "load_best",
    "notices",
    "provenance",
    "weights_digest",
]


class Modules(nn.Module):
    """Everything with weights; checkpoints use its names."""

    def __init__(self, model: GenerativeModel, encoder: Encoder) -> None:
        super().__init__()
        self.model = model
        self.encoder = encoder


@dataclass(frozen=True)
class Experiment:
    """The objects of one run."""

    config: Config
    data: Dataset
    model: GenerativeModel
    encoder: Encoder
    objective: Objective
    device: torch.device
    measure: Measure
    """What p(x) is: a probability, for example, or a density."""

    @property
    def modules(self) -> Modules:
        """The model and the encoder as one module."""
        return Modules(self.model, self.encoder)

    @property
    def parameters(self) -> dict[str, int]:
        """The numbers of learned parameters of the model and of the encoder."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.modules.named_children()}

    @property
    def k(self) -> int:
        """Importance samples per image at the end of training."""
        return list(self.config.k_by_epoch.values())[-1]

    @property
    def inner_k(self) -> int:
        """Inner samples at the end of training; the default for validation and evaluation."""
        return list(self.config.inner_k_by_epoch.values())[-1]

    @property
    def gradient_note(self) -> str | None:
        """A line for the header if the gradient estimator is biased for this encoder, or None."""
        target, reason = self.objective.for_encoder().maximised, self.encoder.no_total_gradient
        total = not self.objective.gradient.path_only
        if reason and total and any(is_curved(target, k) for k in self.config.k_by_epoch.values()):
            return f"gradient reparam is biased here for k > 1, because {reason}; use objective.gradient=dreg"
        return None

    @cached_property
    def code(self) -> str:
        """A digest of the source of the model's and the encoder's classes, and of plug-ins except the estimator."""
        parts = [*self.model.modules(), *self.encoder.modules()]
        modules = {plugin.module for plugin in self._plugins if plugin.kind != "estimator"}
        return source_digest({type(part) for part in parts}, modules)

    @property
    def _plugins(self) -> list[plugins.Plugin]:
        config = self.config
        names = [
            ("dataset", config.dataset.name),
            ("decoder", config.decoder.name),
            ("decoder", config.encoder.trunk),
            ("encoder", config.encoder.name),
            ("prior", config.prior.name),
            ("likelihood", config.likelihood.name),
            ("objective", config.objective.bound),
            ("estimator", config.estimator.name),
        ]
        found = [plugins.find(kind, name) for kind, name in dict.fromkeys(names)]
        return [plugin for plugin in found if plugin is not None]

    @property
    def remembered_plugins(self) -> list[RememberedPlugin]:
        """What a run remembers of the plug-ins that it uses."""
        return [
            {
                "kind": plugin.kind,
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "file": plugin.file,
                "digest": _digest_of(plugin),
            }
            for plugin in self._plugins
        ]

    @property
    def estimator_code(self) -> str | None:
        """A digest of the source of a plug-in's estimator; None for an estimator of ours."""
        return next((_digest_of(plugin) for plugin in self._plugins if plugin.kind == "estimator"), None)

    def estimating(self, **changes: Any) -> "Experiment":
        """Return the experiment with other settings of its estimator."""
        return replace(self, config=replace(self.config, estimator=replace(self.config.estimator, **changes)))

    def autocast(self, precision: str | None = None) -> AbstractContextManager[Any]:
        """Return the precision of the networks, as a context: the training's precision, unless another is given."""
        return runtime.in_precision(self.device, precision or self.config.trainer.precision)


def build(config: Config | Sequence[str]) -> Experiment:
    """Return the objects of ``vaebench train <overrides>``, with initial weights.

    Args:
        config: overrides such as ``["encoder=hvm", "objective=iwae", "k=16"]``, or a checked Config.

    Raises:
        UserError: an invalid setting or combination, or missing data or device.
    """
    if not isinstance(config, Config):
        config = compose(list(config))
    runtime.set_threads(config.trainer.threads)
    device = runtime.resolve_device(config.device)
    runtime.set_arithmetic(device)
    data = _load_data(config)
    # Seed after the data is loaded: weights depend on the seed alone, not on earlier draws.
    runtime.seed_everything(config.seed)
    with runtime.parameters_within_memory("use a smaller latent_dim, decoder.hidden, encoder.hidden or k"):
        return _built(config, data, device)


def _built(config: Config, data: Dataset, device: torch.device) -> Experiment:
    likelihood, pixel_mean = _likelihood(config, data), data.pixel_mean
    with _naming("decoder", config.decoder):
        decoding = _networks(config.decoder.name, config.decoder, data)
    with _naming("prior", config.prior):
        prior = registered("prior", PRIORS, config.prior.name)(
            PriorContext(config.latent_dim, decoding, pixel_mean), **config.prior.arguments
        )
    decoder_inputs = prior.layers[0]
    with _naming("decoder", config.decoder):
        decoder = decoding.decoder(decoder_inputs, len(pixel_mean), likelihood, pixel_mean)
    model = GenerativeModel(prior, decoder, decoder_inputs)
    with _naming("encoder", config.encoder):
        networks = _networks(config.encoder.trunk, config.encoder, data)
        context = BuildContext(networks, data.train.shape[1], config.latent_dim, model)
        encoder = registered("encoder", ENCODERS, config.encoder.name)(context, **config.encoder.arguments)
    with _naming("prior", config.prior):
        prior.attach_encoder(encoder)
    _check_inner_samples(config, encoder)
    objective = _objective(config, encoder)
    experiment = Experiment(
        config, data, model.to(device), encoder.to(device), objective, device, _measure(likelihood, data)
    )
    _try_once(experiment)
    return experiment


def _networks(trunk: str, part: DecoderSettings | EncoderSettings, data: Dataset) -> Networks:
    plugin = plugins.foreign("decoder", trunk, TRUNKS)
    network = plugin.load() if plugin is not None else None
    return Networks(trunk, part.hidden, part.activation, data.image_shape, network)


def load(folder: str | Path, config: Config | None = None) -> Experiment:
    """Return the objects of a run with its best weights (by validation log-likelihood).

    Args:
        folder: a run folder.
        config: overrides the stored configuration, for example with another device or data_dir.

    Raises:
        UserError: not a run folder, no usable checkpoint, or a checkpoint of another configuration.
    """
    run = RunFolder.open(Path(folder))
    require_plugins(run)
    experiment = build(read(run.path) if config is None else config)
    load_best(experiment, run)
    return experiment


class Best(NamedTuple):
    """The best weights of a run, as loaded."""

    epoch: int
    weights: str
    """Their digest."""
    seal: str
    """The SHA-256 of their checkpoint."""


def load_best(experiment: Experiment, run: RunFolder) -> Best:
    """Load a run's best weights into the experiment's modules.

    Raises:
        UserError: other data than those of the run; no usable checkpoint, a checkpoint of another configuration, or
            other weights than those that a finished training kept.
    """
    manifest = read_manifest(run)
    now = {"protocol": str(experiment.data.protocol), "fingerprint": experiment.data.fingerprint}
    trained = manifest.get("dataset", now)
    if trained != now:
        raise UserError(
            f"{run.path} was trained on {trained}, but the data are now {now}: restore the data, or give their folder "
            "(data_dir=...)."
        )
    loaded = Checkpoints(run.checkpoints).load("best", identity=identity(experiment.config))
    with loaded.fitting():
        experiment.modules.load_state_dict(loaded.state["modules"])
    return best_of(loaded, manifest)


def best_of(loaded: Loaded, manifest: Mapping[str, Any]) -> Best:
    """Return what a checkpoint ``best`` holds. UserError if a finished training kept other weights."""
    with loaded.fitting():
        best = Best(int(loaded.state["epoch"]), weights_digest(loaded.state["modules"]), loaded.seal)
    kept = manifest.get("best")  # from the end of the training on
    if kept is not None and (kept["epoch"], kept["weights"]) != (best.epoch, best.weights):
        raise UserError(
            f"{loaded.path} holds other weights ({best.weights}, epoch {best.epoch}) than the run kept "
            f"({kept['weights']}, epoch {kept['epoch']}): restore it from a copy, or train anew (--fresh)."
        )
    return best


def _digest_of(plugin: plugins.Plugin) -> str:
    plugin.load()
    return source_digest((), {plugin.module})


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of named tensors: names, dtypes, shapes and bytes. The device does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def provenance(
    experiment: Experiment,
    run: RunFolder,
    best: Best,
    *,
    precision: str | None = None,
    state: RunState | None = None,
) -> Provenance:
    """Return the provenance of numbers made now with a run's best weights.

    Args:
        experiment: the objects of the run.
        run: its folder.
        best: the weights.
        precision: of the networks; None for that of the training.
        state: of the run; None for that in its folder.
    """
    config, git = experiment.config, git_state() or {}
    state = state or (run.read_status().state if run.status.exists() else "not started")
    return Provenance(
        run=identity(config),
        weights=best.weights,
        checkpoint=best.seal,
        epoch=best.epoch,
        state=state,
        epochs_done=_epochs_done(run, state, config.trainer.epochs),
        epochs=config.trainer.epochs,
        data=experiment.data.fingerprint,
        code=experiment.code,
        version=__version__,
        commit=git.get("commit"),
        dirty=git.get("dirty"),
        torch=torch.__version__,
        device=runtime.describe(experiment.device),
        precision=precision or config.trainer.precision,
    )


def _epochs_done(run: RunFolder, state: RunState, epochs: int) -> float:
    """Return the epochs that a run has trained; the metrics count only as long as it is not finished."""
    if state == "finished":
        stopped = read_manifest(run).get("stopped_early")
        return float(stopped["epoch"] if stopped else epochs)
    last = last_metrics(run)
    return float(last["epoch"]) if last else 0.0


def notices(experiment: Experiment, run: RunFolder, made_by: Provenance) -> Iterator[str]:
    """Yield a line if the run is not finished, and a line if its code has changed since its training."""
    if made_by.state != "finished":
        yield f"{run.path} is not finished ({made_by.progress}): its best weights so far are of epoch {made_by.epoch}"
    yield from code_notice(experiment, run)


def code_notice(experiment: Experiment, run: RunFolder) -> Iterator[str]:
    """Yield a line if the code of the model has changed since the run was trained."""
    trained, now = trained_code(read_manifest(run)), experiment.code
    if trained not in (None, now):
        yield (
            f"the code of the model (encoder={experiment.config.encoder.name}) has changed since this run was trained "
            f"(digest {trained}, now {now}): old and new results are of two models. `vaebench train --fresh ...` "
            "trains anew."
        )


@contextmanager
def _naming(group: str, choice: Any) -> Iterator[None]:
    """Turn a ValueError of a class into a UserError that names the key (``group.key``) or the choice."""
    try:
        yield
    except ValueError as error:
        argument = str(error).partition(" ")[0]
        known = {field.name for field in fields(choice)} | choice.arguments.keys()
        prefix = f"{group}." if argument in known else f"{group}={choice.name}: "
        raise UserError(f"{prefix}{error}") from error


def _likelihood(config: Config, data: Dataset) -> Likelihood:
    """Return the family of p(x|z). UserError if it is for other pixels than those of the data."""
    name = config.likelihood.name
    with _naming("likelihood", config.likelihood):
        likelihood = registered("likelihood", LIKELIHOODS, name)(**config.likelihood.arguments)
    measure, kind = likelihood.measure, data.pixel_kind
    if measure in (Measure.EIGHT_BIT, Measure.DENSITY) and kind == "binary":
        raise UserError(
            f"likelihood={name} needs grey levels, and {data.protocol} has binary pixels: set "
            "dataset.binarization=none, or use likelihood=bernoulli"
        )
    if measure is Measure.EIGHT_BIT and kind == "continuous":
        raise UserError(
            f"likelihood={name} is for 8-bit pixels, and {data.protocol} has other numbers than bytes / 255: use "
            "likelihood=continuous_bernoulli, or likelihood=gaussian likelihood.discretized=false"
        )
    if measure is Measure.PROBABILITY and kind != "binary" and data.image_shape[0] > 1:
        raise UserError(
            f"likelihood={name} is for binary pixels, and {data.protocol} has the grey levels of "
            f"{data.image_shape[0]} channels: use another one of `vaebench list likelihood`"
        )
    return likelihood


def _measure(likelihood: Likelihood, data: Dataset) -> Measure:
    """Return what p(x) is for these data: grey levels in the formula of binary pixels give a cross-entropy."""
    if likelihood.measure is Measure.PROBABILITY and data.continuous:
        return Measure.CROSS_ENTROPY
    return likelihood.measure


_REQUIRED_TAU = {"hvm": None, "iwhvi": "learned", "sivi": "prior"}
"""Objectives that name a way to compute log_q, and the distribution of inner samples that each needs; None for any."""


def _check_inner_samples(config: Config, encoder: Encoder) -> None:
    """Refuse settings of inner samples, and objectives that name a way to compute log_q, that the encoder lacks."""
    objective, used = config.objective.name, f"not encoder={config.encoder.name}"
    if config.trainer.inner_k_schedule and not encoder.has_inner_samples:
        raise UserError(f"trainer.inner_k_schedule needs a hierarchical encoder, {used}")
    if objective not in _REQUIRED_TAU:
        return
    if not encoder.has_inner_samples:
        raise UserError(f"objective={objective} needs a hierarchical encoder, {used}: use encoder={objective}")
    if _REQUIRED_TAU[objective] not in (None, encoder.trained_tau):
        tau = {"learned": "from a learned tau(psi|z,x)", "prior": "from q(psi|x)"}[_REQUIRED_TAU[objective]]
        raise UserError(f"objective={objective} trains with inner samples {tau}, {used}: use encoder={objective}")


def _objective(config: Config, encoder: Encoder) -> Objective:
    """Return the objective, unless its gradient would be wrong for this encoder."""
    gradient, ks = GradientEstimator(config.objective.gradient), set(config.k_by_epoch.values())
    with _naming("objective", config.objective):
        objective = registered("objective", OBJECTIVES, config.objective.bound)(gradient, **config.objective.arguments)
        curved = any(is_curved(objective.for_encoder().maximised, k) for k in ks)
    if gradient is GradientEstimator.STL and not objective.linear and max(ks) > 1:
        raise UserError(
            f"objective.gradient=stl is biased for objective={config.objective.name} with k={max(ks)}: "
            "use objective.gradient=dreg"
        )
    if gradient is GradientEstimator.DREG and objective.linear:
        raise UserError(
            "objective.gradient=dreg is for importance-weighted bounds, and "
            f"objective={config.objective.name} maximises an ELBO: use objective.gradient=stl"
        )
    if config.trainer.microbatch is not None and not objective.additive:
        raise UserError(
            f"trainer.microbatch is not valid for objective={config.objective.name}, whose free nats are those of the "
            "whole batch: set trainer.microbatch=null or a smaller trainer.batch_size"
        )
    if gradient.path_only and encoder.no_path_gradient is not None:
        raise UserError(
            f"objective.gradient={gradient.value} is not valid for encoder={config.encoder.name}: "
            f"{encoder.no_path_gradient}; use objective.gradient=reparam"
        )
    if encoder.only_elbo is not None and curved:
        raise UserError(
            f"objective={config.objective.name} with k={max(ks)} is not valid for encoder={config.encoder.name}: "
            f"{encoder.only_elbo}; use objective=elbo"
        )
    return objective


def _try_once(experiment: Experiment) -> None:
    """Evaluate the objective on two images at every k and inner_k, so that invalid settings fail before training."""
    config, objective = experiment.config, experiment.objective
    x = torch.zeros(2, experiment.data.train.shape[1], device=experiment.device)
    ks, inner_ks = set(config.k_by_epoch.values()), set(config.inner_k_by_epoch.values())
    free = runtime.free_memory(experiment.device)
    if free is not None and (least := 4 * max(ks) * x.numel()) > free:  # one float for each pixel of each sample
        raise UserError(f"k={max(ks)} needs {least / 1e9:.2g} GB even for two images, {free / 1e9:.2g} GB are free")
    with runtime.forked_randomness(experiment.device, seed=0):
        for k, inner_k in itertools.product(ks, inner_ks):
            try:
                for one in {objective, objective.for_encoder()}:
                    one(experiment.model, experiment.encoder, x, k, inner_k=inner_k)
            except ValueError as error:
                raise UserError(f"k={k}, inner_k={inner_k}: {error}") from error


def _load_data(config: Config) -> Dataset:
    dataset = config.dataset
    return load_dataset(
        dataset.name,
        Path(config.data_dir),
        binarization=dataset.binarization,
        split=dataset.split,
        seed=dataset.seed,
        progress=config.trainer.progress,
        **dataset.arguments,
    )
