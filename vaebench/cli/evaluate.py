"""`vaebench evaluate`: run folders -> estimates of log p(x)."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vaebench.cli.each_run import RunJob, each_run
from vaebench.cli.flags import EVALUATE, parse
from vaebench.errors import UserError

__all__ = ["run"]

HELP = """usage: vaebench evaluate RUN... [estimator=CHOICE,...] [KEY=VALUE,... ...]

Estimate log p(x) with a run's best weights and add the results to its results.json.
RUN is a run folder, or a folder that holds run folders: each of them is evaluated, once for each
combination of comma-separated values. A setting goes to those of the estimators that have it.

keys: estimator.k, estimator.inner_k, estimator.split (train|validation|test), estimator.images,
      estimator.repeats, estimator.seed, estimator.batch, estimator.chunk, ...
      device, processes, precision (float32|bf16: of the networks), compile (auto|true|false), data_dir, threads,
      progress
      (without estimator=..., the run's own estimator is the one that they change)

examples:
  vaebench evaluate outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench evaluate outputs/mnist5k estimator=iwae,ais estimator.k=1,10,100 estimator.chains=16
  vaebench evaluate outputs/mnist/iwhvi-iwhvi-k1 estimator=diwhvi estimator.tau=learned,prior
  vaebench evaluate outputs/mnist/gaussian-elbo-k1 estimator.repeats=10 device=cuda processes=8 precision=bf16
"""


class Evaluation(NamedTuple):
    """One estimator on one run."""

    folder: Path
    overrides: list[str]
    refusal: UserError | None = None
    """Why the run cannot be evaluated at all."""


def run(words: list[str]) -> int:
    """Carry out ``vaebench evaluate <words>`` and return the exit code."""
    parsed = parse(words, EVALUATE)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    paths, overrides = split_paths(parsed.rest)
    if not paths:
        raise UserError("missing RUN: give a run folder or a folder of runs")
    from vaebench.records import RunFolder

    folders = [folder.path for folder in RunFolder.find(paths)]
    asked = [one for folder in folders for one in asked_for(folder, overrides)]
    jobs = [RunJob(one.folder, one.overrides, partial(carry_out, one)) for one in asked]
    return each_run(jobs, "evaluations", headings=True)


def split_paths(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return (paths, overrides): a word with a = is a setting, unless it is a path that exists."""
    paths = [word for word in words if "=" not in word or Path(word).exists()]
    return [Path(path) for path in paths], [word for word in words if word not in paths]


def asked_for(folder: Path, overrides: list[str]) -> Iterator[Evaluation]:
    """Yield the evaluations of one run, their settings checked, before torch is imported.

    UserError for settings that are wrong; a run that cannot be read is one of those that fail.
    """
    from vaebench.config import evaluations, for_evaluation, read

    try:
        config = read(folder)
    except UserError as error:
        yield Evaluation(folder, overrides, error)
        return
    for words in evaluations(config.estimator.name, overrides):
        for_evaluation(config, words)
        yield Evaluation(folder, words)


def carry_out(one: Evaluation) -> None:
    """Carry out one evaluation."""
    from vaebench.evaluate.run import evaluate

    if one.refusal is not None:
        raise one.refusal
    evaluate(one.folder, one.overrides)
