"""Start a run from the last checkpoint of a run that differs from it in ``trainer.epochs`` alone."""

import shutil
from dataclasses import asdict
from typing import Any

from vaebench.config import Config, identity, read
from vaebench.errors import UserError
from vaebench.records import RunFolder, read_manifest, write_json
from vaebench.records.checkpoint import Checkpoints
from vaebench.records.metrics import are_altered
from vaebench.train.trainer import Progress

__all__ = ["lengthen"]

_EVENTS = "events.out.tfevents.*"
_OF_THE_END = ("stopped_early", "doubts", "best", "written")
"""Facts in a manifest about the end of a run."""


def lengthen(source: RunFolder, target: RunFolder, config: Config) -> str:
    """Copy the training of ``source`` so far to ``target``, a new run of ``config``; return one line about the start.

    ``source`` stays as it is. The longer run is bitwise the run that ``config`` trains from the start, except for
    rounding if ``trainer.compile=auto`` compiles only one of them. If the two differ from the start, nothing is copied.

    Raises:
        UserError: ``source`` has completed ``trainer.epochs``, stopped early, or has no usable checkpoint.
        Busy: another process trains one of the two runs.
    """
    old, checkpoints = read(source.path), Checkpoints(source.checkpoints)
    anew = f"training from the start in {target.path}"
    with source.lock():
        if not checkpoints.exists():
            return f"{source.path} has no checkpoint: {anew}"
        found = checkpoints.load(identity=identity(old))
        state = found.state
        with found.fitting():
            progress = Progress.restored(state["progress"])
        _check_length(source, config, progress)
        if reason := _difference(old, config, progress):
            return f"{reason}: {anew}"
        target.refuse_links()
        target.path.mkdir(parents=True, exist_ok=True)
        with target.lock():
            if not Checkpoints(target.checkpoints).exists():
                _copy(source, target, state, old, config)
    written = read_manifest(source).get("written")
    altered = written is not None and are_altered(source, written, complete=False)
    doubt = f" ({source.metrics.name} is not as the run wrote it: the curves of both may be wrong)" if altered else ""
    return f"continuing {source.path} in {target.path}{doubt}"


def _check_length(source: RunFolder, config: Config, progress: Progress) -> None:
    """Refuse a run that ends before its training so far, or that stopped early."""
    if config.trainer.epochs <= progress.epoch:
        raise UserError(
            f"trainer.epochs must be > {progress.epoch}, the epochs that {source.path} has completed, "
            f"got {config.trainer.epochs}"
        )
    if progress.stopped:
        raise UserError(
            f"{source.path} stopped early at epoch {progress.epoch}, and with more epochs it would stop there too: "
            "train a new run with a larger trainer.patience"
        )


def _difference(old: Config, new: Config, progress: Progress) -> str | None:
    """Return why the run so far differs from one of the new length, or None."""
    if new.optimizer.schedule == "cosine":
        return "optimizer.schedule=cosine depends on trainer.epochs"
    if new.trainer.patience is not None and old.schedules_end != new.schedules_end:
        return "trainer.patience counts from the end of the schedules, which depends on trainer.epochs"
    # The last epoch of a run is always validated.
    if _is_unplanned(old, progress) and (progress.best_epoch == progress.epoch or new.trainer.patience is not None):
        every = new.trainer.validate_every
        return f"epoch {progress.epoch} is not validated in a longer run (trainer.validate_every={every})"
    return None


def _is_unplanned(old: Config, progress: Progress) -> bool:
    """Whether the last validation took place only because the run ended there."""
    ended = progress.epoch == old.trainer.epochs
    return ended and progress.epoch % old.trainer.validate_every != 0


def _copy(source: RunFolder, target: RunFolder, state: dict[str, Any], old: Config, new: Config) -> None:
    """Copy the files of the training; ``last.pt`` comes last, so that a copy that was killed starts again."""
    progress = Progress.restored(state["progress"])
    continues = {"run": str(source.path), "epoch": progress.epoch, "step": progress.step}
    facts = {key: value for key, value in read_manifest(source).items() if key not in _OF_THE_END}
    facts["command"] = _of_length(facts.get("command", []), new.trainer.epochs)
    write_json(target.manifest, {**facts, "identity": identity(new), "continues": continues})
    for stale in target.path.glob(_EVENTS):
        stale.unlink()
    for path in [source.metrics, *source.path.glob(_EVENTS)]:
        if path.exists():
            shutil.copyfile(path, target.path / path.name)
    kept, copied = Checkpoints(source.checkpoints), Checkpoints(target.checkpoints)
    if kept.exists("best"):
        best = kept.load("best", identity=identity(old)).state
        copied.save({**best, "identity": identity(new)}, "best")
    if progress.epoch == old.trainer.epochs:
        state = {**state, **_as_if_longer(state, progress, old)}
    copied.save({**state, "identity": identity(new)})


def _of_length(command: list[str], epochs: int) -> list[str]:
    """Return the command that trains the longer run from the start; another program's command stays as it is."""
    if command[1:2] != ["train"]:
        return command
    return [*(word for word in command if not word.startswith("trainer.epochs=")), f"trainer.epochs={epochs}"]


def _as_if_longer(state: dict[str, Any], progress: Progress, old: Config) -> dict[str, Any]:
    """Return what a longer run would have in place of the progress and the tags at the end of ``old``."""
    patience, images = old.trainer.patience, old.trainer.image_every
    progress.stopped = patience is not None and progress.without_gain >= patience
    left_out = ["validation/"] if _is_unplanned(old, progress) else []
    if not progress.stopped and (images == 0 or progress.epoch % images != 0):
        left_out += ["samples", "reconstructions"]
    tags = [tag for tag in state.get("recorded", []) if not tag.startswith(tuple(left_out))]
    recorded = {"recorded": tags} if "recorded" in state else {}
    # Lines and events are deleted with their tags, so what the shorter run wrote up to its end does not count.
    return {"progress": asdict(progress), "written": None, **recorded}
