"""One loop over runs for every command that takes several: a run that fails does not stop the others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vaebench.cli.failure import expected, report_failure
from vaebench.errors import RunFailed

__all__ = ["RunJob", "each_run"]


class RunJob(NamedTuple):
    """The work of a command on one run."""

    folder: Path
    words: list[str]
    """The settings, for messages about a failure."""
    do: Callable[[], object]


def each_run(jobs: Sequence[RunJob], plural: str, *, headings: bool = False) -> int:
    """Do all jobs and return exit code 0; report each failure on its own line.

    Args:
        jobs: the work; a single job raises its own error.
        plural: the name of the jobs in the last message, such as "evaluations".
        headings: print each run folder before its first job.

    Raises:
        RunFailed: some of several jobs failed.
    """
    if len(jobs) == 1:
        jobs[0].do()
        return 0
    failed, folder = 0, None
    for job in jobs:
        if headings and job.folder != folder:
            folder = job.folder
            print(folder, flush=True)
        failed += not try_one(job)
    if failed:
        raise RunFailed(f"{failed} of {len(jobs)} {plural} failed: see the messages above")
    return 0


def try_one(job: RunJob) -> bool:
    """Do one of several jobs, report its failure, and return whether it succeeded."""
    try:
        job.do()
    except Exception as error:
        # A broken pipe: nobody reads the output any more.
        if isinstance(error, OSError) and not expected(error):
            raise
        report_failure(error, [str(job.folder), *job.words])
        return False
    return True
