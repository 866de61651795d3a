"""The summary of one run: its settings, data, machine and time, its learning curve and its results."""

import shlex
from collections.abc import Iterator
from typing import Any

from vaebench.config import describe
from vaebench.direction import Direction
from vaebench.records import format_line
from vaebench.records.text import shows_unicode, table, with_sign
from vaebench.report.curves import TRAINING, VALIDATION, curve, meaning, text_plot
from vaebench.report.formats import duration
from vaebench.report.overview import ago
from vaebench.report.runs import Run, outdated_results
from vaebench.typed import printable

__all__ = ["code_of", "command_of", "facts_of", "run_summary"]

_NAME_WIDTH = 12


def run_summary(run: Run, *, every_setting: bool = False) -> str:
    """Return the summary for a terminal; ``every_setting`` adds the settings that define the model."""
    facts = "\n".join(f"{name:<{_NAME_WIDTH}}{printable(text)}" for name, text in facts_of(run, with_age=True) if text)
    values = {key: "null" if value is None else printable(str(value)) for key, value in run.settings.items()}
    settings = "\n".join(f"  {key} = {value}" for key, value in values.items())
    sections = [
        facts,
        settings if every_setting else "",
        *("\n".join(part(run)) for part in (_curve, _results, _files)),
    ]
    return "\n\n".join(section for section in sections if section)


def command_of(run: Run) -> str:
    """Return the command that started the run, quoted for a shell; "" where it was not recorded."""
    return shlex.join(map(str, run.manifest.get("command", [])))


def code_of(session: dict[str, Any]) -> str:
    """Return the versions and the commit of a session in the manifest."""
    versions, git = session.get("versions", {}), session.get("git")
    words = [f"{name} {versions[name]}" for name in ("vaebench", "torch", "python") if versions.get(name)]
    if git:
        changed = " with uncommitted changes" if git.get("dirty") else ""
        words.append(f"commit {str(git.get('commit'))[:12]}{changed}")
    return ", ".join(words)


def facts_of(run: Run, *, with_age: bool = False) -> Iterator[tuple[str, str]]:
    """Yield facts about a run, each as (name, text).

    ``with_age`` adds how long ago the run was updated; a page that is kept must not contain that.
    """
    config, manifest, encoder = run.config, run.manifest, run.config.encoder
    yield "run", str(run.folder.path)
    yield "name", config.name or ""
    yield "state", _state(run, with_age=with_age)
    inner = f", inner_k={encoder.inner_k}" if encoder.inner_k else ""
    network = describe.network(encoder.trunk, encoder.hidden, encoder.activation)
    yield "encoder", f"{encoder.name}{inner}, {network}"
    yield "objective", describe.objective(config)
    yield "decoder", describe.decoder(config)
    yield "parameters", _parameters(manifest.get("parameters", {}))
    yield "data", _data(manifest.get("dataset", {}))
    yield "training", _training(run)
    if run.stopped_early:
        yield "stopped", f"early, at epoch {run.stopped_early['epoch']:g} of {run.stopped_early['of']}"
    yield from (("note", note) for note in describe.schedules_past_the_end(config))
    yield "note", run.metrics_fault
    yield "command", command_of(run)
    yield "device", ", ".join(str(manifest[name]) for name in ("device", "host") if manifest.get(name))
    yield "time", f"{duration(run.wall_seconds)}, started {manifest.get('time', 'at an unknown time')}"
    yield "code", code_of(manifest)
    for restart in manifest.get("restarts", []):
        step = "the beginning" if restart.get("step") is None else f"step {restart['step']}"
        where = ", ".join(str(restart[name]) for name in ("device", "host") if restart.get(name))
        yield "restart", f"from {step} at {restart.get('time')} on {where}"


def _state(run: Run, *, with_age: bool) -> str:
    error = f": {run.status.error}" if run.status and run.status.error else ""
    moment = "" if run.updated is None else f", {run.updated:%Y-%m-%d %H:%M} UTC"
    return f"{run.state}{moment}{f' ({ago(run.updated)})' if with_age and moment else ''}{error}"


def _training(run: Run) -> str:
    trainer, optimizer = run.config.trainer, run.config.optimizer
    steps = f" ({run.last_metrics['step']:,} steps)" if run.last_metrics else ""
    budget = f", {words}" if (words := describe.budget(run.config)) else ""
    return (
        f"{run.epochs_done:.4g} of {trainer.epochs} epochs{steps}, batches of {trainer.batch_size}, seed {run.seed}, "
        f"{optimizer.name} {optimizer.lr:g} {optimizer.schedule}, {trainer.precision}{budget}"
    )


def _parameters(parts: dict[str, int]) -> str:
    named = " + ".join(f"{count:,} {part}" for part, count in parts.items() if part != "total")
    return f"{parts['total']:,} = {named}" if parts and named else f"{parts['total']:,}" if parts else ""


def _data(dataset: dict[str, str]) -> str:
    return ", fingerprint ".join(dataset[name] for name in ("protocol", "fingerprint") if name in dataset)


def _curve(run: Run) -> Iterator[str]:
    """Yield a plot of the validation curve, or of the training curve if there are fewer than two validations."""
    found = next((c for tag in (VALIDATION, TRAINING) if len((c := curve(run, tag)).values) > 1), None)
    if found is None:
        return
    best = max(range(len(found.values)), key=found.values.__getitem__)
    highest = with_sign(Direction.LOWER_BOUND, f"{found.values[best]:.2f}")
    yield f"{meaning(run, found.tag)}, by epoch, nats per image; highest: {highest} at epoch {found.epochs[best]:g}"
    lines = text_plot(found.epochs, found.values, letters="braille" if shows_unicode() else "ascii")
    yield from lines
    margin = min(line.index(mark) for line in lines for mark in "┤│+|" if mark in line) + 1
    first, last = f"{found.epochs[0]:g}", f"{found.epochs[-1]:g}"
    yield " " * margin + first + last.rjust(60 - len(first))


def _results(run: Run) -> Iterator[str]:
    if run.results:
        yield "results"
        yield from (f"  {format_line(record)}" for record in run.results)
    else:
        yield f"no result{'' if run.outdated else ' yet'}: run `vaebench evaluate` to estimate log p(x)"
    yield from outdated_results([run])


def _files(run: Run) -> Iterator[str]:
    """Yield the files of the run with their sizes."""
    yield "files"
    base = run.folder.path
    files = sorted(path for path in base.rglob("*") if path.is_file())
    paths = [(path.relative_to(base), path.stat().st_size) for path in files]
    rows = [(f"  {path}", _size(size)) for path, size in paths if not any(p.startswith(".") for p in path.parts)]
    yield table(("file", "size"), rows, keep=("size",), titles=False)


def _size(count: int) -> str:
    for limit, divisor, unit in ((1000, 1, "B"), (10**6, 10**3, "kB"), (10**9, 10**6, "MB")):
        if count < limit:
            return f"{count / divisor:.3g} {unit}"
    return f"{count / 10**9:.3g} GB"
