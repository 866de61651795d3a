"""Check on one GPU, in less than eight minutes, everything that needs a GPU, and print a table.

Each part runs in a process of its own with a time limit, so that a part that hangs costs its own time only. The table
and the JSON file name the card. The exit code is 1 if a part failed. Without PART all parts run.

examples:
  python scripts/gpu_check
  python scripts/gpu_check steps resume -o check.json
  python scripts/gpu_check --device cpu --quick      # a dry run on a machine without a GPU
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    # Run by its folder, which python then searches first. The folder above holds this package.
    sys.path[0] = str(Path(__file__).parents[1])

LIMITS = {
    "steps": 130,
    "graphs": 60,
    "compiled": 100,
    "resume": 90,
    "evaluations": 80,
    "memory": 25,
    "tests": 60,
    "selftest": 60,
}
"""Seconds of each part; the most important parts come first."""
WHOLE = 460
"""Seconds of all parts together."""
ROOT = Path(__file__).parents[2]


@dataclass
class Part:
    """What became of a part."""

    name: str
    outcome: str
    """ok, failed (exit code), time limit, or no time left."""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The checks that it finished: ``what``, ``found``, ``ok`` and numbers."""
    error: str = ""
    """The last line that a failed part printed."""

    @property
    def passed(self) -> bool:
        return self.outcome == "ok" and all(row["ok"] for row in self.rows)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(LIMITS)}")
    made.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a dry run")
    made.add_argument("--quick", action="store_true", help="a case or two of each part, without the tests")
    made.add_argument("-o", "--output", type=Path, default=Path("gpu_check.json"), metavar="FILE", help="JSON file")
    made.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the parts print")
    made.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # run one part here, and write its rows to this file
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print the table, write the JSON file, and return the exit code: 2 for a wrong request."""
    given = parser().parse_args(argv)
    if unknown := set(given.parts) - set(LIMITS):
        parser().error(f"unknown PART {', '.join(sorted(unknown))}; choose from {', '.join(LIMITS)}")
    if given.rows:
        from gpu_check.parts import carry_out

        carry_out(given.parts[0], given.device, given.quick, given.rows)
        return 0
    machine = described(given.device)
    names = [name for name in LIMITS if name in (given.parts or LIMITS)]
    names = [name for name in names if not (given.quick and name == "tests")]
    parts, ends = [], time.monotonic() + WHOLE
    with tempfile.TemporaryDirectory(prefix="vaebench-gpu-check-") as temporary:
        logs = given.logs or Path(temporary)
        logs.mkdir(parents=True, exist_ok=True)
        for name in names:
            words = [name, f"--device={given.device}", *(["--quick"] if given.quick else [])]
            left = min(LIMITS[name], ends - time.monotonic())
            part = Part(name, "no time left")
            if left > 5:
                part = run_part(name, [sys.executable, str(Path(__file__).parent), *words], left, logs, Path(temporary))
            parts.append(part)
            print(f"{name}: {part.outcome}, {part.seconds:.0f} s", file=sys.stderr, flush=True)
    print(table(machine, parts))
    whole = {"machine": machine, "quick": given.quick, "parts": [asdict(part) for part in parts]}
    given.output.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return 0 if all(part.passed for part in parts) else 1


def described(wanted: str) -> dict[str, Any]:
    """Return the card, the driver and the versions; exit with code 2 if there is no such device."""
    import torch

    from vaebench import __version__, runtime
    from vaebench.errors import UserError

    try:
        device = runtime.resolve_device(wanted)
    except UserError as error:
        print(f"gpu_check: {error} --quick for a dry run", file=sys.stderr)
        raise SystemExit(2) from error
    free = runtime.free_memory(device)
    return {
        "device": runtime.describe(device),
        "free memory": "unknown" if free is None else f"{free / 2**30:.0f} GiB",
        "cuda": torch.version.cuda or torch.version.hip,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "vaebench": __version__,
    }


def run_part(name: str, command: list[str], limit: float, logs: Path, cache: Path) -> Part:
    """Run one part in a process of its own, for at most ``limit`` seconds; rows written before its end count.

    ``cache``: the folder of the prepared data set, for all parts.
    """
    rows, log, began = logs / f"{name}.jsonl", logs / f"{name}.log", time.monotonic()
    rows.write_text("")
    with log.open("w") as out, tempfile.TemporaryDirectory(prefix="vaebench-gpu-check-") as work:
        process = subprocess.Popen(
            [*command, f"--rows={rows.absolute()}"],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=os.environ | {"XDG_CACHE_HOME": str(cache / "cache"), "VAEBENCH_DATA_DIR": str(cache / "data")},
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            outcome = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            outcome = f"time limit of {limit:.0f} s"
        finally:
            if process.poll() is None:  # with the processes that it started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    printed = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    error = "" if outcome == "ok" else (printed or [""])[-1]
    return Part(name, outcome, round(time.monotonic() - began, 1), found, error)


def table(machine: dict[str, Any], parts: Sequence[Part]) -> str:
    """Return the table for people."""
    lines = ["", ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += ["| part | check | found | |", "|---|---|---|---|"]
    for part in parts:
        lines.append(f"| **{part.name}** | {part.outcome}, {part.seconds:.0f} s | {part.error[:120]} | |")
        lines += [f"| | {row['what']} | {row['found']} | {'ok' if row['ok'] else 'FAILED'} |" for row in part.rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
