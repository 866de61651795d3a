"""`vaebench diagnose`: run folders -> what their posteriors and gradients are like."""

from pathlib import Path
from typing import TYPE_CHECKING

from vaebench.cli.evaluate import told_apart
from vaebench.cli.failure import expected, tell
from vaebench.cli.flags import DIAGNOSE, parse, settings
from vaebench.errors import RunFailed, UserError

if TYPE_CHECKING:
    from vaebench.config.diagnosis import Diagnosis

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
    paths, words = told_apart(parsed.rest)
    if not paths:
        raise UserError("which run? `vaebench diagnose RUN`, RUN being a run folder or a folder of runs")
    from vaebench.config.diagnosis import Diagnosis
    from vaebench.records import RunFolder

    folders = [folder.path for folder in RunFolder.find(paths)]
    return diagnose_all(folders, settings(words, Diagnosis))


def diagnose_all(folders: list[Path], given: "Diagnosis") -> int:
    """Diagnose each run; one that fails does not keep the others from it."""
    from vaebench.cli.core import core

    if len(folders) == 1:
        core().diagnose(folders[0], given)
        return 0
    failed = sum(not went_well(folder, given) for folder in folders)
    if failed:
        raise RunFailed(f"{failed} of {len(folders)} diagnoses failed; the lines above say which and why")
    return 0


def went_well(folder: Path, given: "Diagnosis") -> bool:
    """Diagnose one run of several; tell why, if it fails."""
    from vaebench.cli.core import core

    try:
        core().diagnose(folder, given)
    except Exception as error:
        # A broken pipe: nobody reads the tables any more.
        if isinstance(error, OSError) and not expected(error):
            raise
        tell(error, [str(folder)])
        return False
    return True
