"""`vaebench evaluate`: run folders -> estimates of log p(x)."""

import sys
from pathlib import Path

from vaebench.cli.failure import describe, expected
from vaebench.cli.flags import EVALUATE, parse
from vaebench.errors import RunFailed, UserError

__all__ = ["run"]

HELP = """usage: vaebench evaluate RUN... [estimator=CHOICE] [KEY=VALUE ...]

Estimate log p(x) with a run's best weights and add the result to its results.json.
RUN is a run folder, or a folder that holds run folders: each of them is evaluated.

keys: estimator.k, estimator.inner_k, estimator.split (train|validation|test), estimator.images,
      estimator.seed, estimator.batch, estimator.chunk, device, data_dir, threads, progress
      (without estimator=..., the run's own estimator is the one that they change)

examples:
  vaebench evaluate outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench evaluate outputs/mnist5k estimator=iwae estimator.k=5000
  vaebench evaluate outputs/mnist/iwhvi-iwhvi-k1 estimator=diwhvi device=cuda
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench evaluate <words>`` and return the exit code."""
    parsed = parse(words, EVALUATE)
    if parsed.flags:
        print(HELP, end="")
        return 0
    paths, overrides = told_apart(parsed.rest)
    if not paths:
        raise UserError("which run? `vaebench evaluate RUN`, RUN being a run folder or a folder of runs")
    from vaebench.records import RunFolder

    folders = [folder.path for folder in RunFolder.find(paths)]
    check(folders, overrides)
    return evaluate_all(folders, overrides)


def told_apart(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return (paths, overrides): a word with a = is a setting, unless it is a path that exists."""
    paths = [word for word in words if "=" not in word or Path(word).exists()]
    return [Path(path) for path in paths], [word for word in words if word not in paths]


def check(folders: list[Path], overrides: list[str]) -> None:
    """Raise UserError for settings that no run can be evaluated with, before torch is imported."""
    from vaebench.config import for_evaluation, read

    for_evaluation(read(folders[0]), overrides)


def evaluate_all(folders: list[Path], overrides: list[str]) -> int:
    """Evaluate each run; one that fails does not keep the others from it."""
    from vaebench.cli.core import core

    if len(folders) == 1:
        core().evaluate(folders[0], overrides)
        return 0
    failed = sum(not evaluated(folder, overrides) for folder in folders)
    if failed:
        raise RunFailed(f"{failed} of {len(folders)} evaluations failed; the lines above say which and why")
    return 0


def evaluated(folder: Path, overrides: list[str]) -> bool:
    """Evaluate one run of several and return whether that went well."""
    from vaebench.cli.core import core

    print(folder, flush=True)
    try:
        core().evaluate(folder, overrides)
    except Exception as error:
        if not expected(error):
            raise
        print(f"vaebench: failed: {folder}: {describe(error)}", file=sys.stderr)
        return False
    return True
