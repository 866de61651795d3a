"""The lines that a run prints before it starts."""

from pathlib import Path

from vaebench import runtime
from vaebench.config import describe
from vaebench.direction import Measure
from vaebench.encoders.base import Direction
from vaebench.experiment import Experiment
from vaebench.train.validation import described
from vaebench.typed import printable

__all__ = ["header"]

_LOG_Q = {
    Direction.EXACT: "log q(z|x) exact",
    Direction.UPPER_BOUND: "log q(z|x) by an upper bound",
    Direction.ESTIMATE: "log q(z|x) by a learned estimate, so the training objective is not a bound",
}


_MEASURES = {
    Measure.EIGHT_BIT: "p(x) is the probability of an 8-bit image",
    Measure.DENSITY: "p(x) is a density of pixels in [0, 1], not a probability",
    Measure.CROSS_ENTROPY: "of grey levels, so log p(x) is a cross-entropy and not a log-likelihood",
}


def _likelihood(experiment: Experiment) -> str:
    """Return the likelihood and the meaning of p(x), or nothing for Bernoulli's probability of binary pixels."""
    meaning = _MEASURES.get(experiment.measure)
    return f"{describe.likelihood(experiment.config)}, {meaning}" if meaning else ""


def header(experiment: Experiment, folder: Path) -> str:
    """Return the lines that open a run."""
    config, data = experiment.config, experiment.data
    channels, height, width = data.image_shape
    size = f"{height}x{width}" if channels == 1 else f"{channels}x{height}x{width}"
    sizes = f"{len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test"
    encoder = f"{config.encoder.name}, {_LOG_Q[experiment.encoder.direction]}"
    if experiment.encoder.has_inner_samples:
        encoder += f", {describe.by_epoch('inner_k', config.inner_k_by_epoch)}"
    proposal = experiment.encoder.proposal(experiment.model)
    if proposal is not experiment.encoder:
        encoder += f"; likelihoods by draws from the {proposal.proposal_label} of q, {_LOG_Q[proposal.direction]}"
    count, words = described(experiment)
    lines = [
        ("name", printable(config.name or "")),
        ("dataset", f"{data.protocol}: {sizes} images of {size}"),
        ("", data.note),
        ("encoder", encoder),
        ("decoder", describe.decoder(config)),
        ("likelihood", _likelihood(experiment)),
        ("objective", describe.objective(config)),
        ("parameters", " + ".join(f"{count:,} {part}" for part, count in experiment.parameters.items())),
        ("training", describe.training(config)),
        ("validation", f"{experiment.measure.named('log p(x)')} of {count} images, {words}"),
        ("device", f"{runtime.describe(experiment.device)}, {config.trainer.precision}"),
        ("", runtime.bf16_note(experiment.device, "trainer.precision") if config.trainer.precision == "bf16" else ""),
        *(("note", line) for line in (experiment.gradient_note, *describe.schedules_past_the_end(config))),
        ("folder", str(folder)),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in lines if text)
