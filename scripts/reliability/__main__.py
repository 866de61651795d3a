"""Kill, starve and damage vaebench, and count what does not come back as it was.

Every number of the table is a count of cases that were tried. The exit code is 1 if a case has a fault. Without PART
all parts run, one case at a time on one core. docs/reliability.md explains the parts and shows the full table.

examples:
  python scripts/reliability --quick
  python scripts/reliability train evaluate
  python scripts/reliability damage --most 100 --seed 3
  python scripts/reliability --write docs/reliability.md
"""

import os

# Before torch is imported: a process with threads cannot be forked, and the cases run on one core.
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}

import argparse
import contextlib
import gc
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if not __package__:
    # Run by its folder, which python then searches first. The folder above holds this package.
    sys.path[0] = str(Path(__file__).parents[1])

import torch

from reliability.damaged_runs import damaged_everywhere, trees
from reliability.processes import forked
from reliability.stops import SCENARIOS, TINY, command, placed, stopped_everywhere
from reliability.table import Part, damage_part, stop_part, table, written

DAMAGE, LINES = "damage", "command-lines"
PARTS = (*SCENARIOS, DAMAGE, LINES)
QUICK = {"train": 5, "evaluate": 3, "sweep": 1, "tune": 1, "diagnose": 0, "data": 0, DAMAGE: 5, LINES: 25}
"""Cases of each part in the short form; damages of each tree."""
FULL = dict.fromkeys(PARTS) | {"sweep": 45, "tune": 45, LINES: 1000}
"""Cases of each part; None: all."""
LINES_EACH = 25
"""Command lines in one process."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python scripts/reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    made.add_argument("--quick", action="store_true", help="a few cases of each part")
    made.add_argument("--most", type=int, metavar="N", help="at most N cases of each part")
    made.add_argument("--writers", type=int, default=1, metavar="N", help="changing commands on each damage")
    made.add_argument("--variants", type=int, default=2, metavar="N", help="bit flips, wrong types and edits of a file")
    made.add_argument("--seed", type=int, default=0, help="of all choices")
    made.add_argument("--write", type=Path, metavar="FILE", help="replace the table in FILE")
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the counts and faults to FILE as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print the table, and return the exit code."""
    arguments = parser().parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser().error(f"unknown PART {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)
    parts: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="vaebench-reliability-") as temporary:
        work = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        data = work / "prepared"
        warm_up(work / "warm", data)
        for name in arguments.parts or PARTS:
            most = (QUICK if arguments.quick else FULL)[name] if arguments.most is None else arguments.most
            if most != 0:
                for part in run_part(name, work / name, data, most, arguments):
                    parts.append(part)
                    print(f"{part.name}: {part.cases} cases, {part.total} faults, {part.seconds:.0f} s", flush=True)
    print("\n" + table(parts))
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(part) for part in parts], indent=2) + "\n")
    if arguments.write:
        arguments.write.write_text(written(arguments.write.read_text(), parts))
    return int(any(part.total for part in parts))


def warm_up(out: Path, data: Path) -> None:
    """Import everything and prepare the data, so that no case has to."""
    with contextlib.redirect_stdout(io.StringIO()):
        command(placed(["train", *TINY, "trainer.epochs=1"], out, data))
        (run,) = out.glob("*/*/*")
        for words in (
            ["evaluate", str(run), "estimator.k=2"],
            ["compare", str(out)],
            ["report", str(out), "-o", str(out / "r.html")],
        ):
            command(words)
    gc.freeze()  # the children's garbage collector must not copy the parent's pages


def run_part(name: str, work: Path, data: Path, most: int | None, arguments: argparse.Namespace) -> "list[Part]":
    """Run one part in a new folder."""
    work.mkdir()
    if name in SCENARIOS:
        start = time.monotonic()
        counts = stopped_everywhere(SCENARIOS[name], work, data, most=most, seed=arguments.seed, say=say)
        return [stop_part(counts, time.monotonic() - start)]
    if name == DAMAGE:
        made = []
        for tree in trees(work, data):
            start, place = time.monotonic(), work / f"{tree.path.name}-cases"
            place.mkdir()
            counts = damaged_everywhere(
                tree,
                place,
                seed=arguments.seed,
                variants=arguments.variants,
                writers_each=arguments.writers,
                most=most,
                say=say,
            )
            made.append(damage_part(counts, time.monotonic() - start))
        return made
    return [command_lines(work, most or FULL[LINES] or 0, arguments.seed)]


def command_lines(work: Path, count: int, seed: int) -> Part:
    """Run generated command lines up to the point where work would start, some of them in each process."""
    from reliability.command_lines import command_lines, faults, make_place, outcome

    start, found = time.monotonic(), {"tracebacks": [], "other": []}
    lines = list(command_lines(count, seed))
    make_place(work)

    def run(batch: Sequence[list[str]]) -> list[list[str]]:
        os.chdir(work)
        return [faults(outcome(words)) for words in batch]

    for first in range(0, count, LINES_EACH):
        batch = lines[first : first + LINES_EACH]
        ended = forked(lambda batch=batch: run(batch), 60.0 * len(batch))
        wrong = ended.answer or [[f"one of {len(batch)} lines ended its process with {ended.code}"], *[[]] * len(batch)]
        for words, reasons in zip(batch, wrong, strict=False):
            for reason in reasons:
                found["tracebacks" if reason == "a traceback" else "other"].append(f"{ascii(words)[:300]}: {reason}")
                say(f"command lines: {ascii(words)[:300]}: {reason}")
    return Part("command lines", f"{count} lines", count, time.monotonic() - start, found)


def say(line: str) -> None:
    """Print a fault as soon as it is found."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
