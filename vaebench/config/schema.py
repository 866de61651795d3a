"""The settings of a run: one dataclass for each group. The annotations declare types and ranges for `check.py`.

Groups of families (encoder, objective, ...) are open. A choice of such a group has the fields here and the further keys
of its yaml file. These keys are stored in ``arguments`` and can be read as attributes (``config.encoder.psi_dim``).
The comments of the yaml files are the source of what each key means; see `meanings.py`.
A new family declares its settings in its yaml file; this module does not change. `check.py` checks the types of these
settings, and the class that uses a setting checks its range.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vaebench.typed import Rule

__all__ = [
    "MOST",
    "Choice",
    "Config",
    "DatasetSettings",
    "DecoderSettings",
    "EncoderSettings",
    "EstimatorSettings",
    "LikelihoodSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "PriorSettings",
    "PublishedResult",
    "SweepSettings",
    "TrainerSettings",
]

MOST = 10**9
"""The largest integer of a setting, except a seed."""

# Bounds far above every sensible value, so that a slip of the keyboard is a message and not a crash.
_MOST = Rule(f"<= {MOST}", lambda value: value <= MOST)  # products of two such numbers still fit torch's 64 bits
_WIDEST = Rule("<= 65536", lambda value: value <= 65536)  # two such layers have 4e9 weights, 17 GB
Count = Annotated[int, Rule(">= 1", lambda value: value >= 1), _MOST]
Several = Annotated[int, Rule(">= 2 (a standard error needs two)", lambda value: value >= 2), _MOST]
Natural = Annotated[int, Rule(">= 0", lambda value: value >= 0), _MOST]
Epochs = Annotated[Count, Rule("<= 1000000", lambda value: value <= 10**6)]
Processes = Annotated[Count, Rule("<= 1024", lambda value: value <= 1024)]
Width = Annotated[Count, _WIDEST]
Positive = Annotated[float, Rule("> 0", lambda value: value > 0)]
NonNegative = Annotated[float, Rule(">= 0", lambda value: value >= 0)]
Budget = Annotated[float, Rule(">= 1e-5 and <= 1000", lambda value: 1e-5 <= value <= 1000)]
Fraction = Annotated[float, Rule(">= 0 and < 1", lambda value: 0 <= value < 1)]
# torch accepts any seed below 2^64, numpy only seeds below 2^32.
Seed = Annotated[int, Rule("from 0 to 4294967295", lambda value: 0 <= value < 2**32)]
Device = Annotated[
    str,
    Rule(
        "auto, cpu, cuda, cuda:N, mps, xpu or xpu:N",
        lambda value: re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value) is not None,
    ),
]
Word = Annotated[str, Rule("a non-empty string", lambda value: value != "")]
Widths = Annotated[
    tuple[Width, ...],
    Rule("a list of at least one width, for example [300,300]", len),
    Rule("a list of at most 100 widths", lambda value: len(value) <= 100),
]
Schedule = Annotated[dict[Natural, Count], Rule("a map, for example {0:1,100:5}, or null", len)]
InnerSchedule = Annotated[dict[Natural, Natural], Rule("a map, for example {0:0,100:5}, or null", len)]
Precision = Literal["float32", "bf16"]
TrainingPrecision = Literal["float32", "tf32", "bf16"]
Compile = Literal["auto", True, False]
Activation = Literal["softplus", "tanh", "relu", "elu", "gelu", "silu"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of an open group. ``name`` is its registry key; ``arguments`` holds the further keys of its yaml."""

    name: Word
    arguments: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, key: str) -> Any:
        """Return one of ``arguments``."""
        # While copy or pickle rebuild the object, "arguments" itself is missing.
        if key != "arguments" and key in self.arguments:
            return self.arguments[key]
        group, name = type(self).__name__.removesuffix("Settings").lower(), self.__dict__.get("name")
        raise AttributeError(f"{group}={name} has no setting '{key}'")


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Choice):
    """The protocol: the images, their split, their binarization, and the seed of both."""

    binarization: Word
    split: Word
    seed: Seed


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Choice):
    """``inner_k`` is the number of inner samples of a hierarchical encoder, and 0 for all others."""

    trunk: Word
    hidden: Widths
    activation: Activation
    inner_k: Natural = 0


@dataclass(frozen=True, kw_only=True)
class DecoderSettings(Choice):
    """The network from latents to pixels."""

    hidden: Widths
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class PriorSettings(Choice):
    """The distribution of the latents."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings(Choice):
    """The family of p(x|z)."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Choice):
    """``bound`` is the quantity to maximise, ``gradient`` the estimator of its gradient."""

    bound: Word
    gradient: Literal["reparam", "stl", "dreg"]


@dataclass(frozen=True, kw_only=True)
class EstimatorSettings(Choice):
    """The estimator of log p(x) after training.

    ``proposal="valid"`` is the encoder, except for encoders whose log q is an estimate: there it is a distribution with
    a known density.
    """

    k: Count = 5000
    inner_k: Natural | None = None
    split: Literal["train", "validation", "test", "simulated"] = "test"
    proposal: Literal["valid", "own"] = "valid"
    tau: Literal["learned", "prior"] | None = None
    share_psi: bool | None = None
    images: Several | None = None
    image_seed: Seed | None = None
    binarize: Literal["fixed", "fresh"] = "fixed"
    repeats: Count = 1
    batch: Count | None = None
    chunk: Count | None = None
    seed: Seed = 0
    processes: Processes = 1
    precision: Precision = "float32"
    compile: Compile = "auto"


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimiser and its learning rate schedule. ``rmsprop`` uses the second of ``betas`` alone."""

    name: Literal["adam", "adamax", "rmsprop"]
    lr: Positive
    encoder_lr: Positive | None = None
    betas: tuple[Fraction, Fraction]
    eps: Positive
    weight_decay: NonNegative
    schedule: Literal["constant", "exponential", "burda", "cosine"]
    decay: Annotated[float, Rule("> 0 and <= 1", lambda value: 0 < value <= 1)]
    decay_epochs: Count
    final_lr: NonNegative


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The training loop. Durations are in epochs, except ``log_every``, which is in steps.

    ``compile=auto`` compiles a loss if the whole training becomes faster. ``graph=auto`` replays steps as CUDA graphs
    if these give the results of eager steps.
    """

    epochs: Epochs
    batch_size: Count
    kl_warmup: Natural
    clip_norm: Positive | None
    ema: Annotated[float, Rule("> 0 and < 1", lambda value: 0 < value < 1)] | None
    patience: Count | None
    k_schedule: Schedule | None
    inner_k_schedule: InnerSchedule | None
    validate_every: Count
    validation_k: Count
    validation_inner_k: Natural | None
    log_every: Count
    image_every: Natural
    checkpoint_every: Count
    precision: TrainingPrecision
    threads: Count | None
    progress: bool
    evaluate: bool
    microbatch: Count | None = None
    compile: Compile = "auto"
    graph: Compile = "auto"

    def reached(self, schedule: dict[int, int] | None) -> dict[int, int]:
        """Return the entries of a schedule that begin before the end of the run."""
        return {epoch: value for epoch, value in (schedule or {}).items() if epoch < self.epochs}


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """When a sweep starts a job. These settings do not define a run."""

    retry_failed: bool = True
    fail_fast: bool = False
    wait: bool = False
    submit_only: bool = False


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """The log p(x) of test images that a paper reports for an experiment, nats per image. It does not define a run."""

    value: float
    source: Word
    """The paper, and the place in it."""
    checked: Word
    """How far the number was checked, for example ``read in the paper``."""
    protocol: Word
    """Data, binarization and estimator of the paper."""
    error: NonNegative | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run, checked and resolved."""

    k: Count
    seed: Seed
    latent_dim: Width
    device: Device
    data_dir: Word
    output_dir: Word
    name: Word | None
    dataset: DatasetSettings
    decoder: DecoderSettings
    encoder: EncoderSettings
    prior: PriorSettings
    objective: ObjectiveSettings
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    estimator: EstimatorSettings
    sweep: SweepSettings = SweepSettings()
    likelihood: LikelihoodSettings = LikelihoodSettings(name="bernoulli")
    published: PublishedResult | None = None
    budget: Budget = 1.0
    """The factor by which `vaebench.config.budget` has scaled all lengths of the training."""

    @property
    def k_by_epoch(self) -> dict[int, int]:
        """``k`` in training from each epoch on; entries of ``trainer.k_schedule`` past the end are left out."""
        return {0: self.k} | self.trainer.reached(self.trainer.k_schedule)

    @property
    def inner_k_by_epoch(self) -> dict[int, int]:
        """``encoder.inner_k`` in training from each epoch on, as in ``k_by_epoch``."""
        return {0: self.encoder.inner_k} | self.trainer.reached(self.trainer.inner_k_schedule)

    @property
    def schedules_end(self) -> int:
        """The epoch from which the KL weight, k and inner_k are constant."""
        return max(self.trainer.kl_warmup, *self.k_by_epoch, *self.inner_k_by_epoch)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts and lists, as in config.yaml."""
        return plain(self)


def plain(value: Any) -> Any:
    """Return a config value as plain containers; a choice's ``arguments`` are merged with its other keys."""
    if isinstance(value, str | int | float | None):  # most values: thousands of runs are read
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        items = {name: plain(getattr(value, name)) for name in _names(type(value))}
        return items | items.pop("arguments", {})
    return value


@functools.cache
def _names(schema: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(schema)]
