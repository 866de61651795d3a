"""What can be configured: one dataclass per group. The annotations carry the ranges, `check.py` applies them.

Groups whose choices are families (encoder, objective, ...) are open: beside the fields here, a choice has the
further keys of its own yaml, which land in ``arguments`` and read as attributes (``config.encoder.psi_dim``).
So a new family brings its settings with its yaml, and nothing here changes.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

__all__ = [
    "Choice",
    "Config",
    "Dataset",
    "Decoder",
    "Encoder",
    "Estimator",
    "Objective",
    "Optimizer",
    "Prior",
    "Rule",
    "Sweep",
    "Trainer",
]


@dataclass(frozen=True)
class Rule:
    """A condition on one value: ``words`` completes the sentence "k must be ..."."""

    words: str
    holds: Callable[[Any], object]  # true or false, or anything that Python takes for that


Count = Annotated[int, Rule("at least 1", lambda value: value >= 1)]
Several = Annotated[int, Rule("at least 2, for a standard error", lambda value: value >= 2)]
Natural = Annotated[int, Rule("0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Rule("more than 0", lambda value: value > 0)]
NonNegative = Annotated[float, Rule("0 or more", lambda value: value >= 0)]
Fraction = Annotated[float, Rule("at least 0 and less than 1", lambda value: 0 <= value < 1)]
# torch takes any seed below 2^64, numpy only below 2^32.
Seed = Annotated[int, Rule("from 0 to 4294967295", lambda value: 0 <= value < 2**32)]
Device = Annotated[
    str,
    Rule("auto, cpu, cuda or cuda:N", lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None),
]
Word = Annotated[str, Rule("a word", lambda value: value != "")]
Widths = Annotated[tuple[Count, ...], Rule("a list of at least one width, as in [300,300]", len)]
Schedule = Annotated[dict[Natural, Count], Rule("a map such as {0:1,100:5}, or null", len)]
InnerSchedule = Annotated[dict[Natural, Natural], Rule("a map such as {0:0,100:5}, or null", len)]
Precision = Literal["float32", "bf16"]
Compile = Literal["auto", True, False]
Activation = Literal["softplus", "tanh", "relu", "elu", "gelu", "silu"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of an open group: ``name`` is its registry key, ``arguments`` holds the keys of its own."""

    name: Word
    arguments: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, key: str) -> Any:
        """Read one of ``arguments`` like a field."""
        # "arguments" itself is missing only while copy or pickle rebuild the object.
        if key != "arguments" and key in self.arguments:
            return self.arguments[key]
        group, name = type(self).__name__.lower(), self.__dict__.get("name")
        raise AttributeError(f"{group}={name} has no setting '{key}'")


@dataclass(frozen=True, kw_only=True)
class Dataset(Choice):
    """The protocol: which images, how they are split and made binary, and the seed of both."""

    binarization: Word
    split: Word
    seed: Seed


@dataclass(frozen=True, kw_only=True)
class Encoder(Choice):
    """``inner_k`` counts the inner samples of a hierarchical encoder; 0 for all others."""

    trunk: Word
    hidden: Widths
    activation: Activation
    inner_k: Natural = 0


@dataclass(frozen=True, kw_only=True)
class Decoder(Choice):
    """The network from latents to pixels."""

    hidden: Widths
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class Prior(Choice):
    """The distribution of the latents."""


@dataclass(frozen=True, kw_only=True)
class Objective(Choice):
    """``bound`` is what is maximised, ``gradient`` how its gradient is estimated."""

    bound: Word
    gradient: Literal["reparam", "stl", "dreg"]


@dataclass(frozen=True, kw_only=True)
class Estimator(Choice):
    """How log p(x) is estimated at the end; ``inner_k=None`` means as in training.

    ``proposal`` says whose draws are weighed: ``valid`` those of the encoder's proposal (itself, but for an
    encoder whose log q is an estimate), ``own`` the encoder's, whatever its log q is. ``tau`` and ``share_psi`` say
    where a hierarchical encoder's inner samples come from; None means as in training. Images of the ``simulated`` split
    are the model's own; not every estimator takes them.

    ``repeats`` are averaged, each with noise of its own, and with pixels of its own where ``binarize`` is ``fresh``.
    ``image_seed`` chooses a random subset, None by ``seed``. ``processes`` share the images.
    ``precision`` is that of the networks, whatever it was in training. ``compile=auto`` compiles p(x, z) where that
    saves more time, over the whole evaluation, than it takes.
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
    processes: Count = 1
    precision: Precision = "float32"
    compile: Compile = "auto"


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam and the course of its learning rate."""

    name: Literal["adam"]
    lr: Positive
    betas: tuple[Fraction, Fraction]
    eps: Positive
    weight_decay: NonNegative
    schedule: Literal["constant", "exponential", "burda", "cosine"]
    decay: Annotated[float, Rule("more than 0 and at most 1", lambda value: 0 < value <= 1)]
    decay_epochs: Count
    final_lr: NonNegative


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The course of one training run, counted in epochs except for ``log_every`` (steps).

    ``compile=auto`` compiles a loss if the run takes enough steps for the compilation to save time.
    """

    epochs: Count
    batch_size: Count
    kl_warmup: Natural
    clip_norm: Positive | None
    ema: Annotated[float, Rule("more than 0 and less than 1", lambda value: 0 < value < 1)] | None
    patience: Count | None
    k_schedule: Schedule | None
    inner_k_schedule: InnerSchedule | None
    validate_every: Count
    validation_k: Count
    validation_inner_k: Natural | None
    log_every: Count
    image_every: Natural
    checkpoint_every: Count
    precision: Precision
    threads: Count | None
    progress: bool
    evaluate: bool
    microbatch: Count | None = None
    compile: Compile = "auto"

    def reached(self, schedule: dict[int, int] | None) -> dict[int, int]:
        """Return the entries of a schedule that begin before the end of the run."""
        return {epoch: value for epoch, value in (schedule or {}).items() if epoch < self.epochs}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What becomes of the jobs of a sweep; no part of any one run."""

    retry_failed: bool = True
    fail_fast: bool = False
    wait: bool = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything about one run, checked and resolved."""

    k: Count
    seed: Seed
    latent_dim: Count
    device: Device
    data_dir: Word
    output_dir: Word
    name: Word | None
    dataset: Dataset
    decoder: Decoder
    encoder: Encoder
    prior: Prior
    objective: Objective
    optimizer: Optimizer
    trainer: Trainer
    estimator: Estimator
    sweep: Sweep = Sweep()

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
    """Return a config value as plain containers; a choice's ``arguments`` stand beside its other keys."""
    if dataclasses.is_dataclass(value):
        items = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return items | items.pop("arguments", {})
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
