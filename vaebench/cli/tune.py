"""`vaebench tune`: a search for settings by validation log-likelihood."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vaebench.cli.flags import TUNE, parse
from vaebench.errors import RunFailed, UserError

if TYPE_CHECKING:
    from vaebench.tune import Search, TrialResult

__all__ = ["run"]

HELP = """usage: vaebench tune [GROUP=CHOICE ...] [KEY=VALUES ...] [FLAGS]

Search for the settings with the best validation log-likelihood; test images are never looked at. Each trial is an
ordinary run in a folder of its own. The same command goes on where it stopped, or with more trials.

values to search:
  k=1,5,16                                       one of these
  'optimizer.lr=tag(log,interval(1e-4,1e-2))'    from an interval, evenly in the logarithm
  'latent_dim=int(interval(8,64))'               whole numbers; without int(...) any number

flags:
  --trials N      in all (20)
  --prune         give up trials that are below the median of earlier ones at the same epoch
  --seed N        of the choice of settings (0); seed=N is that of the trainings

examples:
  vaebench tune encoder=hvm objective=iwae 'optimizer.lr=tag(log,interval(1e-4,1e-2))' k=1,5,16 --trials 20
  vaebench tune encoder=gaussian,iaf,hvm 'latent_dim=int(interval(8,64))' trainer.epochs=20 --prune
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench tune <words>`` and return the exit code."""
    parsed = parse(words, TUNE)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    trials, seed = (whole(parsed.flags, flag, least) for flag, least in (("--trials", 1), ("--seed", 0)))
    from vaebench.config.search import split_paths

    fixed, spaces = split_paths(parsed.rest)
    if not spaces:
        raise UserError("nothing to search: give a setting several values, as in k=1,5,16 (--help shows intervals)")
    from vaebench.train.replicas import started_by_torchrun
    from vaebench.tune import Search

    if started_by_torchrun():
        raise UserError("vaebench tune and torchrun exclude each other: a trial is a run of one process")
    return carry_out(Search(fixed, spaces, prune="--prune" in parsed.flags, seed=seed), trials)


DEFAULTS = {"--trials": 20, "--seed": 0}


def whole(flags: dict[str, str], flag: str, least: int) -> int:
    """Return the value of a flag as a whole number."""
    text = flags.get(flag, str(DEFAULTS[flag]))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{flag} must be a whole number from {least} on, not '{text}'")
    return int(text)


def carry_out(search: "Search", trials: int) -> int:
    """Run the trials that are missing, and print the table, also when a signal ends them."""
    from vaebench.tune import trial_results

    with search.opened() as study:
        try:
            for _ in search.run(study, trials):
                pass
        finally:
            print(f"\n{table(trial_results(study))}", flush=True)
            best = best_of(trial_results(study))
            if best is not None:
                print(ending(search, best), flush=True)
    if best is None:
        raise RunFailed("no trial was finished; the table says why")
    return 0


def best_of(found: Sequence["TrialResult"]) -> "TrialResult | None":
    """Return the finished trial with the best value."""
    finished = [one for one in found if one.state == "finished" and one.value is not None]
    return max(finished, key=lambda one: one.value or 0.0) if finished else None


def table(found: Sequence["TrialResult"]) -> str:
    """Return the trials, best first, those that were not finished last."""
    ranked = sorted(found, key=lambda one: (one.state != "finished", -(one.value or float("-inf"))))
    rows = [["trial", "status", "validation log p(x)", "settings"]]
    for one in ranked:
        value = "" if one.value is None else f">= {one.value:.2f}"
        rows.append([str(one.number), one.status_text(), value, " ".join(one.words)])
    widths = [max(len(row[column]) for row in rows) for column in range(3)] + [0]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def ending(search: "Search", best: "TrialResult") -> str:
    """Say what to do with the best trial, and what its number is."""
    command = shlex.join(["vaebench", "train", *search.fixed, *best.words])
    return (
        "the numbers are bounds from few samples (trainer.validation_k) at the best epoch, on the validation images by "
        "which\nthe best was chosen: they flatter it. Its test log-likelihood:\n"
        f"  vaebench evaluate {best.folder}\nand to train it again with other seeds:\n  {command} seed=1"
    )
