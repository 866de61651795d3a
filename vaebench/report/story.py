"""One run's story in a terminal: what was trained, where, for how long, what came of it."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from vaebench.records import format_line
from vaebench.report.curves import TRAINING, VALIDATION, curve, plotted
from vaebench.report.formats import duration
from vaebench.report.overview import ago
from vaebench.report.runs import Run

__all__ = ["code_of", "command_of", "facts_of", "story"]

_WIDTH = 12


def story(run: Run, *, letters: Literal["braille", "ascii"], every_setting: bool = False) -> str:
    """Return the story; ``letters`` says what the curve is drawn with."""
    facts = [f"{name:<{_WIDTH}}{text}".rstrip() for name, text in facts_of(run, aging=True) if text]
    sections = ["\n".join(facts), "\n".join(_curve(run, letters)), "\n".join(_results(run)), "\n".join(_files(run))]
    if every_setting:
        sections.insert(1, "\n".join(f"  {key} = {_text(value)}" for key, value in run.settings.items()))
    return "\n\n".join(section for section in sections if section)


def command_of(run: Run) -> str:
    """Return the command that started the run, as a shell takes it; "" where it was not recorded."""
    return shlex.join(map(str, run.manifest.get("command", [])))


def code_of(session: dict[str, Any]) -> str:
    """Return versions and commit of a session in the manifest."""
    versions, git = session.get("versions", {}), session.get("git")
    words = [f"{name} {versions[name]}" for name in ("vaebench", "torch", "python") if versions.get(name)]
    if git:
        changed = " with uncommitted changes" if git.get("dirty") else ""
        words.append(f"commit {str(git.get('commit'))[:12]}{changed}")
    return ", ".join(words)


def facts_of(run: Run, *, aging: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the facts about a run by name; ``aging`` ones say how long ago it was, which a kept page must not."""
    config, manifest = run.config, run.manifest
    encoder, objective = config.encoder, config.objective
    yield "run", str(run.folder.path)
    yield "state", _state(run, aging=aging)
    inner = f", inner_k={encoder.inner_k}" if encoder.inner_k else ""
    yield "encoder", f"{encoder.name}{inner}, {encoder.trunk} {_widths(encoder.hidden)} {encoder.activation}"
    yield "objective", f"{objective.name}, k={config.k}, gradient {objective.gradient}"
    decoder = config.decoder
    yield (
        "decoder",
        f"{decoder.name} {_widths(decoder.hidden)} {decoder.activation}, latent_dim={config.latent_dim}, "
        f"prior {config.prior.name}",
    )
    yield "parameters", _parameters(manifest.get("parameters", {}))
    yield "data", _data(manifest.get("dataset", {}))
    yield "training", _training(run)
    yield "command", command_of(run)
    yield "device", ", ".join(str(manifest[name]) for name in ("device", "host") if manifest.get(name))
    yield "time", f"{duration(run.wall_seconds)}, begun {manifest.get('time', 'at an unknown time')}"
    yield "code", code_of(manifest)
    for restart in manifest.get("restarts", []):
        step = "the beginning" if restart.get("step") is None else f"step {restart['step']}"
        where = ", ".join(str(restart[name]) for name in ("device", "host") if restart.get(name))
        yield "restart", f"from {step} at {restart.get('time')} on {where}"


def _state(run: Run, *, aging: bool) -> str:
    error = f": {run.status.error}" if run.status and run.status.error else ""
    moment = "" if run.updated is None else f", {run.updated:%Y-%m-%d %H:%M} UTC"
    return f"{run.state}{moment}{f' ({ago(run.updated)})' if aging and moment else ''}{error}"


def _training(run: Run) -> str:
    trainer, optimizer = run.config.trainer, run.config.optimizer
    steps = f" ({run.metrics[-1]['step']:,} steps)" if run.metrics else ""
    return (
        f"{run.epochs_done:.4g} of {trainer.epochs} epochs{steps}, batches of {trainer.batch_size}, seed {run.seed}, "
        f"{optimizer.name} {optimizer.lr:g} {optimizer.schedule}, {trainer.precision}"
    )


def _parameters(parts: dict[str, int]) -> str:
    named = " + ".join(f"{count:,} {part}" for part, count in parts.items() if part != "total")
    return f"{parts['total']:,} = {named}" if parts and named else f"{parts['total']:,}" if parts else ""


def _data(dataset: dict[str, str]) -> str:
    return ", fingerprint ".join(dataset[name] for name in ("protocol", "fingerprint") if name in dataset)


def _widths(hidden: tuple[int, ...]) -> str:
    return "-".join(map(str, hidden))


def _curve(run: Run, letters: Literal["braille", "ascii"]) -> Iterator[str]:
    """Yield the validation curve, or the training curve of a run that was not validated twice yet."""
    found = next((c for tag in (VALIDATION, TRAINING) if len((c := curve(run, tag)).values) > 1), None)
    if found is None:
        return
    best = max(range(len(found.values)), key=found.values.__getitem__)
    yield f"{found.tag} by epoch, nats per image; highest {found.values[best]:.2f} at epoch {found.epochs[best]:g}"
    lines = plotted(found.epochs, found.values, letters=letters)
    yield from lines
    margin = min(line.index(mark) for line in lines for mark in "┤│+|" if mark in line) + 1
    first, last = f"{found.epochs[0]:g}", f"{found.epochs[-1]:g}"
    yield " " * margin + first + last.rjust(60 - len(first))


def _results(run: Run) -> Iterator[str]:
    if run.results:
        yield "results"
        yield from (f"  {format_line(record)}" for record in run.results)
    else:
        yield "no result yet: `vaebench evaluate` estimates log p(x)"


def _files(run: Run) -> Iterator[str]:
    """Yield the files of the run with their sizes."""
    yield "files"
    paths = sorted(p for p in run.folder.path.rglob("*") if p.is_file() and not _hidden(p, run.folder.path))
    names = [str(path.relative_to(run.folder.path)) for path in paths]
    width = max(map(len, names), default=0)
    for path, name in zip(paths, names, strict=True):
        yield f"  {name:<{width}}  {_size(path.stat().st_size)}"


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def _size(count: int) -> str:
    for limit, divisor, unit in ((1000, 1, "B"), (10**6, 10**3, "kB"), (10**9, 10**6, "MB")):
        if count < limit:
            return f"{count / divisor:.3g} {unit}"
    return f"{count / 10**9:.3g} GB"


def _text(value: object) -> str:
    return "null" if value is None else str(value)
