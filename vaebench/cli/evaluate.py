"""`vaebench evaluate`: estimate log p(x) of finished runs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vaebench.cli.each_run import RunJob, each_run, run_words
from vaebench.cli.explain import help_of
from vaebench.cli.flags import EVALUATE
from vaebench.config.catalog import config_folders
from vaebench.errors import UserError

if TYPE_CHECKING:
    from vaebench.records import ResultRecord

__all__ = ["evaluations_of", "run"]

HELP = """usage: vaebench evaluate RUN... [estimator=CHOICE,...] [KEY=VALUE,... ...]

Estimate log p(x) with a run's best weights and add the results to its results.json.
RUN is a run folder or a folder of runs. Each run is evaluated once for each combination of comma-separated values.
If several estimators are chosen, each gets the settings that it has.

keys: estimator.k, estimator.inner_k, estimator.split (train|validation|test), estimator.images,
      estimator.repeats, estimator.seed, estimator.batch, estimator.chunk, ...
      device, processes, precision (float32|bf16, of the networks), compile (auto|true|false), data_dir, threads,
      progress
      (without estimator=..., these settings change the run's own estimator)

examples:
  vaebench evaluate outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench evaluate outputs/mnist5k estimator=iwae,ais estimator.k=1,10,100 estimator.chains=16
  vaebench evaluate outputs/mnist/iwhvi-iwhvi-k1 estimator=diwhvi estimator.tau=learned,prior
  vaebench evaluate outputs/mnist/gaussian-elbo-k1 estimator.repeats=10 device=cuda processes=8 precision=bf16
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench evaluate <words>`` and return the exit code."""
    if {"-h", "--help"} & set(words) and (text := help_of(words, config_folders())):
        print(text)
        return 0
    given = run_words(words, EVALUATE, HELP)
    jobs = [job for folder in given.folders for job in evaluations_of(folder, given.settings)]
    return each_run(jobs, "evaluations", headings=True)


def evaluations_of(folder: Path, overrides: list[str]) -> Iterator[RunJob]:
    """Yield the evaluations of one run; their settings are checked before torch is imported.

    A run that cannot be read fails as a job, so that the other runs are evaluated.

    Raises:
        UserError: a setting is invalid.
    """
    from vaebench.config import evaluations, for_evaluation, read
    from vaebench.config.words import key_of
    from vaebench.evaluate.ranges import check_ranges
    from vaebench.records import RunFolder
    from vaebench.records.manifest import require_plugins

    try:
        config = read(folder)
        require_plugins(RunFolder(folder), estimator=not any(key_of(word) == "estimator" for word in overrides))
    except UserError as error:
        yield RunJob(folder, overrides, partial(fail, error))
        return
    for words in evaluations(config.estimator.name, overrides):
        check_ranges(for_evaluation(config, words).estimator)
        yield RunJob(folder, words, partial(evaluate_run, folder, words))


def fail(error: UserError) -> None:
    """Raise ``error``."""
    raise error


def evaluate_run(folder: Path, overrides: list[str]) -> "list[ResultRecord]":
    """Carry out one evaluation and return its results."""
    from vaebench.evaluate.run import evaluate

    return evaluate(folder, overrides)
