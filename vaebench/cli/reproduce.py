"""`vaebench reproduce`: train the rows of a paper as one sweep, and print published beside measured results."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaebench.cli.flags import REPRODUCE, Parsed, parse
from vaebench.config.catalog import config_folders, described, own_keys
from vaebench.config.check import build
from vaebench.config.schema import PublishedResult
from vaebench.config.words import key_value, override
from vaebench.errors import UserError, did_you_mean
from vaebench.records.text import counted, encodable, wrapped
from vaebench.records.text import table as text_table
from vaebench.typed import clipped

if TYPE_CHECKING:
    from vaebench.cli.sweep.plan import PlannedJob
    from vaebench.report.reproduction import Reproduction

__all__ = ["papers", "run"]

HELP = """usage: vaebench reproduce PAPER [ROW ...] [KEY=VALUE ...] [FLAGS]
       vaebench reproduce [PAPER] --list

Train the rows of a paper (default: all) as one sweep, and compare the results with the published ones. Run the same
command again to resume, also on further machines that share output_dir. budget=0.01 scales each training to 1 % of its
epochs; seed=0,1,2 trains three seeds. Other settings hold for all rows; hydra/launcher=... chooses how jobs run.

flags:
  --list           list the papers and their rows with the published results
  --table          print the table of the runs as they are now, and train nothing
  --dry-run        list the jobs and the expected time, and exit
  --format FORMAT  of the table: table, md, csv or json
  -o, --output F   write the table to file F as well

examples:
  vaebench reproduce --list
  vaebench reproduce iwhvi_paper budget=0.01
  vaebench reproduce iwae_paper mnist_l1_vae_k1 mnist_l1_k50 budget=0.05 seed=0,1,2
  vaebench reproduce iwhvi_paper budget=0.01 --table --format md
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench reproduce <words>`` and return the exit code."""
    parsed = parse(words, REPRODUCE, HELP)
    known = papers()
    names = [word for word in parsed.rest if key_value(word)[1] is None]
    if "--list" in parsed.flags:
        print("\n\n".join(listing(paper, known[paper]) for paper in chosen_names(names, known, "paper") or known))
        return 0
    if not names:
        raise UserError(f"missing PAPER: give one of {', '.join(known)}")
    (paper,) = chosen_names(names[:1], known, "paper")
    rows = {row: known[paper][row] for row in chosen_names(names[1:], known[paper], "row") or known[paper]}
    settings = [word for word in parsed.rest if key_value(word)[1] is not None]
    check_settings(settings)
    output_format = checked_format(parsed.flags.get("--format", "table"))
    trains = not {"--table", "--dry-run"} & parsed.flags.keys()
    sweep = Parsed({"--multirun": ""} | ({} if trains else {"--dry-run": ""}), [experiments(paper, rows), *settings])
    from vaebench.cli.sweep.plan import planned_jobs
    from vaebench.cli.train import through_hydra

    with planned_jobs() as jobs:
        if "--table" in parsed.flags:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                through_hydra(sweep)
        try:
            if "--table" not in parsed.flags:
                through_hydra(sweep)
        finally:
            if jobs and "--dry-run" not in parsed.flags:
                show(found(paper, rows, jobs), output_format, parsed.flags.get("--output"))
    return 0


def papers() -> dict[str, dict[str, PublishedResult]]:
    """Return the published result of each row of each paper, sorted: the experiments PAPER/ROW that have one."""
    folders, results = config_folders(), {}
    for listed in described("experiment", folders):
        paper, _, row = listed.choice.partition("/")
        keys = own_keys("experiment", listed.choice, folders, of="published") if row else None
        if keys:
            results.setdefault(paper, {})[row] = build(PublishedResult, dict(keys), "published.")
    return results


def chosen_names(names: Sequence[str], known: Mapping[str, object], kind: str) -> list[str]:
    """Return the names. UserError if one is unknown."""
    for name in names:
        if name not in known:
            hint = did_you_mean(clipped(name), known)
            raise UserError(f"there is no {kind} '{clipped(name)}'{hint}: `vaebench reproduce --list` lists them")
    return list(dict.fromkeys(names))


def experiments(paper: str, rows: Mapping[str, PublishedResult]) -> str:
    """Return the word that chooses the experiments of a sweep."""
    return f"experiment={','.join(f'{paper}/{row}' for row in rows)}"


def check_settings(settings: Sequence[str]) -> None:
    """Refuse a choice of the experiment, and several values of a key other than the seed: a row is one model."""
    for word in settings:
        parsed = override(word, "train")
        if parsed.key_or_group == "experiment":
            raise UserError(f"'{clipped(word)}': name the rows after the paper, without experiment=")
        if parsed.is_sweep_override() and parsed.key_or_group != "seed":
            raise UserError(f"'{clipped(word)}': only seed takes several values, give one; `train -m` takes more")


def checked_format(name: str) -> str:
    """Return ``name`` if the table has this format."""
    from vaebench.report.reproduction import FORMATS

    if name not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}, not '{name}'{did_you_mean(name, FORMATS)}")
    return name


def found(paper: str, rows: Mapping[str, PublishedResult], jobs: "Sequence[PlannedJob]") -> "Reproduction":
    """Return the results of the jobs of a sweep."""
    from vaebench.report.reproduction import Job, reproduction

    made: list[Job] = []
    for job in jobs:
        (choice,) = [word for word in job.overrides if word.startswith("experiment=")]
        run_folder = None if job.config is None else job.run
        made.append(Job(choice.rpartition("/")[2], job.config, run_folder, job.record.error or ""))
    return reproduction(paper, rows, made)


def show(result: "Reproduction", output_format: str, output: str | None) -> None:
    """Print the table, and write it to a file if one is given."""
    from vaebench.report.reproduction import FORMATS

    text = FORMATS[output_format](result)
    print(text if output_format != "table" else f"\n{text}", end="", flush=True)
    if output is not None:
        try:
            Path(output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror}") from error


def listing(paper: str, rows: Mapping[str, PublishedResult]) -> str:
    """Return the rows of a paper as a table with their published results."""
    cells = [
        (f"  {row}", f"{one.value:g}", "" if one.error is None else f"+- {one.error:g}", one.protocol, one.checked)
        for row, one in rows.items()
    ]
    sources = dict.fromkeys(one.source for one in rows.values())
    lines = [
        f"{paper} ({counted(len(rows), 'row')})",
        *(wrapped(source, first="  ", rest="    ") for source in sources),
    ]
    head = ("  row", "log p(x)", "error", "protocol", "checked")
    return encodable("\n".join([*lines, text_table(head, cells, keep=head[1:4], wrap="protocol")]))
