"""`vaebench diagnose`: measure the posteriors and gradients of finished runs."""

from functools import partial

from vaebench.cli.each_run import RunJob, each_run, run_words
from vaebench.cli.flags import DIAGNOSE, settings
from vaebench.config.diagnosis import Diagnosis

__all__ = ["run"]

HELP = """usage: vaebench diagnose RUN... [KEY=VALUE ...]

Measure active units, rates, mutual information, effective sample size and gradient noise with a run's best weights.
Each number is printed with its definition; all of them are written to diagnostics.json in the run folder.
RUN is a run folder or a folder of runs.

keys: split (train|validation|test), images (random subset: 500; null: all), draws (100, in two halves),
      k (importance weights; null: as in training), inner_k, gradients (100; 0: none), seed, batch,
      device, data_dir, threads, progress

examples:
  vaebench diagnose outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench diagnose outputs/mnist images=1000 k=50
  vaebench diagnose outputs/mnist gradients=0 device=cuda
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench diagnose <words>`` and return the exit code."""
    given = run_words(words, DIAGNOSE, HELP)
    checked = settings(given.settings, Diagnosis)
    from vaebench.diagnose import diagnose  # here, because it imports torch

    jobs = [RunJob(folder, [], partial(diagnose, folder, checked)) for folder in given.folders]
    return each_run(jobs, "diagnoses")
