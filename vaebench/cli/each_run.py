"""The runs that a command line names, and one loop over them: a run that fails does not stop the others."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vaebench.cli.failure import expected, report_failure
from vaebench.cli.flags import parse, path_words
from vaebench.errors import RunFailed, UserError

__all__ = ["RunJob", "RunWords", "each_run", "run_words"]


class RunWords(NamedTuple):
    """The words of a command on runs, separated."""

    folders: list[Path]
    """The run folders at or below the paths."""
    settings: list[str]
    flags: dict[str, str]


def run_words(words: Sequence[str], flags: Mapping[str, str], help_text: str) -> RunWords:
    """Separate the words of a command; with ``--help`` among them, print ``help_text`` and exit.

    Raises:
        SystemExit: the help text was printed.
        UserError: a flag is invalid, or a path is missing or holds no run.
    """
    parsed = parse(words, flags, help_text)
    paths, settings = path_words(parsed.rest)
    if not paths:
        raise UserError("missing RUN: give a run folder or a folder of runs")
    from vaebench.records import RunFolder  # here, so that --help stays fast

    folders = [folder.path for folder in RunFolder.find(map(Path, paths))]
    return RunWords(folders, settings, parsed.flags)


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
        # A broken pipe: the reader of the output has gone.
        if isinstance(error, OSError) and not expected(error):
            raise
        report_failure(error, [str(job.folder), *job.words])
        return False
    return True
