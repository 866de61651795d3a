"""`vaebench diagnose`: run folders -> what their posteriors and gradients are like."""

from functools import partial
from pathlib import Path

from vaebench.cli.each_run import RunJob, each_run
from vaebench.cli.evaluate import split_paths
from vaebench.cli.flags import DIAGNOSE, parse, settings
from vaebench.errors import UserError

__all__ = ["run"]

HELP = """usage: vaebench diagnose RUN... [KEY=VALUE ...]

Look at a run's best weights: active units, rates, mutual information, effective weights, noise of gradients. Each
number is printed with its definition; all go into diagnostics.json in the run folder.
RUN is a run folder, or a folder that holds run folders: each of them is diagnosed.

keys: split (train|validation|test), images (500, at random; null: all), draws (100, in two halves),
      k (weights; null: as in training), inner_k, gradients (100; 0: none), seed, batch,
      device, data_dir, threads, progress

examples:
  vaebench diagnose outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench diagnose outputs/mnist images=1000 k=50
  vaebench diagnose outputs/mnist gradients=0 device=cuda
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench diagnose <words>`` and return the exit code."""
    parsed = parse(words, DIAGNOSE)
    if parsed.flags:
        print(HELP, end="")
        return 0
    paths, words = split_paths(parsed.rest)
    if not paths:
        raise UserError("missing RUN: give a run folder or a folder of runs")
    from vaebench.config.diagnosis import Diagnosis
    from vaebench.records import RunFolder

    folders = [folder.path for folder in RunFolder.find(paths)]
    given = settings(words, Diagnosis)

    def work(folder: Path) -> None:
        from vaebench.diagnose import diagnose

        diagnose(folder, given)

    return each_run([RunJob(folder, [], partial(work, folder)) for folder in folders], "diagnoses")
