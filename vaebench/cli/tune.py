"""`vaebench tune`: search for the settings with the best validation log-likelihood."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vaebench import plugins
from vaebench.cli.flags import TUNE, parse, whole
from vaebench.errors import RunFailed, UserError
from vaebench.records.text import table as text_table

if TYPE_CHECKING:
    from vaebench.tune import Search, TrialResult

__all__ = ["run"]

HELP = """usage: vaebench tune [GROUP=CHOICE ...] [KEY=VALUES ...] [FLAGS]

Search for the settings with the best validation log-likelihood. The search does not use test images.
Each trial is an ordinary run in its own folder. Run the same command again to resume, or with a larger --trials.

values to search:
  k=1,5,16                                       choose one of these values
  'optimizer.lr=tag(log,interval(1e-4,1e-2))'    choose from an interval, uniformly in the logarithm
  'latent_dim=int(interval(8,64))'               choose an integer; without int(...) any number

flags:
  --trials N      total number of trials (default: 20)
  --prune         stop a trial that is below the median of earlier trials at the same epoch
  --seed N        seed of the search (default: 0); seed=N is the seed of each training

examples:
  vaebench tune encoder=hvm objective=iwae 'optimizer.lr=tag(log,interval(1e-4,1e-2))' k=1,5,16 --trials 20
  vaebench tune encoder=gaussian,iaf,hvm 'latent_dim=int(interval(8,64))' trainer.epochs=20 --prune
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench tune <words>`` and return the exit code."""
    parsed = parse(words, TUNE, HELP)
    trials = whole(parsed.flags.get("--trials", "20"), "--trials", 1)
    seed = whole(parsed.flags.get("--seed", "0"), "--seed", 0)
    plugins.use(*plugins.given())
    from vaebench.config.search import split_spaces

    fixed, spaces = split_spaces(parsed.rest)
    if not spaces:
        raise UserError("nothing to search: give a setting several values, for example k=1,5,16 (--help has more)")
    from vaebench.train.replicas import started_by_torchrun
    from vaebench.tune import Search

    if started_by_torchrun():
        raise UserError("vaebench tune does not support torchrun: each trial is a run of one process")
    return carry_out(Search(fixed, spaces, prune="--prune" in parsed.flags, seed=seed), trials)


def carry_out(search: "Search", trials: int) -> int:
    """Run the remaining trials and print the table, also if a signal stops the search."""
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
        raise RunFailed("no trial finished: see the table above")
    return 0


def best_of(found: Sequence["TrialResult"]) -> "TrialResult | None":
    """Return the finished trial with the best value, or None."""
    finished = [one for one in found if one.state == "finished" and one.value is not None]
    return max(finished, key=lambda one: one.value or 0.0) if finished else None


def table(found: Sequence["TrialResult"]) -> str:
    """Return the table of trials: finished ones first, best first."""
    ranked = sorted(found, key=lambda one: (one.state != "finished", -(one.value or float("-inf"))))
    head = ["trial", "status", "validation log p(x)", "settings"]
    rows: list[list[str] | str] = []
    for one in ranked:
        value = "" if one.value is None else f">= {one.value:.2f}"
        rows.append([str(one.number), one.state, value, " ".join(one.words)])
        rows += [one.error] if one.error else []
    return text_table(head, rows, wrap="settings", keep=("settings",))


def ending(search: "Search", best: "TrialResult") -> str:
    """Return the commands to evaluate and repeat the best trial, with a warning about its value."""
    evaluation = shlex.join(["vaebench", "evaluate", *plugins.flags(), best.folder or "RUN"])
    command = shlex.join(["vaebench", "train", *plugins.flags(), *search.fixed, *best.words])
    return (
        "These values are bounds from few samples on the images that chose the best epoch and trial,\n"
        "so the best value is too high. To estimate the test log-likelihood of the best trial:\n"
        f"  {evaluation}\nTo train it with another seed:\n  {command} seed=1"
    )
