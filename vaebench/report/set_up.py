"""What the runs of a section have in common: data, networks, optimiser and budget, in words."""

from collections.abc import Callable, Mapping, Sequence

from vaebench.config import Config, describe
from vaebench.report.groups import RunGroup

__all__ = ["by_value", "set_up"]

_MOST = 3  # variants of a fact that are spelled out
_LETTERS = 32  # of the name of a method


def set_up(groups: Sequence[RunGroup]) -> list[tuple[str, str]]:
    """Return facts as (name, text). Where methods differ in one, the text has each value with its methods."""
    return [(name, by_value({group.short: fact(group.runs[0].config) for group in groups})) for name, fact in _FACTS]


def by_value(values: Mapping[str, str]) -> str:
    """Return a value that all methods share, or each value with its methods; ``values`` are by method."""
    named: dict[str, list[str]] = {}
    for name, value in values.items():
        named.setdefault(value, []).append(
            name if len(name) <= _LETTERS else f"{name[:_LETTERS]}\N{HORIZONTAL ELLIPSIS}"
        )
    if len(named) == 1:
        return next(iter(named))
    if len(named) > _MOST:
        return f"{len(named)} different ones"
    most = max(named, key=lambda value: len(named[value]))
    others = (f"{value} ({', '.join(names[:_MOST])}{', ...' * (len(names) > _MOST)})" for value, names in named.items())
    listed = [text for value, text in zip(named, others, strict=True) if value != most]
    return "; ".join([most, *listed])


def _data(config: Config) -> str:
    return f"{config.dataset.name}, binarization {config.dataset.binarization}, split {config.dataset.split}"


def _encoder(config: Config) -> str:
    return describe.network(config.encoder.trunk, config.encoder.hidden, config.encoder.activation)


def _optimiser(config: Config) -> str:
    optimizer, trainer = config.optimizer, config.trainer
    of_encoder = f" ({optimizer.encoder_lr:g} of the encoder)" if optimizer.encoder_lr else ""
    words = [f"{optimizer.name}, lr {optimizer.lr:g}{of_encoder}, schedule {optimizer.schedule}"]
    words += [f"weight decay {optimizer.weight_decay:g}"] if optimizer.weight_decay else []
    words += [f"gradient norm at most {trainer.clip_norm:g}"] if trainer.clip_norm else []
    return ", ".join(words)


def _budget(config: Config) -> str:
    trainer = config.trainer
    words = [f"{trainer.epochs} epochs, batches of {trainer.batch_size}"]
    words += [f"KL weight rises over {trainer.kl_warmup} epochs"] if trainer.kl_warmup else []
    words += [f"averaged weights (ema {trainer.ema:g})"] if trainer.ema else []
    words += [f"stops after {trainer.patience} validations without a gain"] if trainer.patience else []
    return ", ".join([*words, trainer.precision])


_FACTS: Sequence[tuple[str, Callable[[Config], str]]] = (
    ("data", _data),
    ("model", lambda config: f"{describe.decoder(config)}, {describe.likelihood(config)}"),
    ("encoder network", _encoder),
    ("objective", describe.objective),
    ("optimiser", _optimiser),
    ("budget", _budget),
)
