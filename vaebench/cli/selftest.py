"""`vaebench selftest`: exact answers against what this machine computes."""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

from vaebench import __version__
from vaebench.cli.flags import SELFTEST, Parsed, parse, settings
from vaebench.config.schema import Count, Device, Seed
from vaebench.errors import RunFailed, UserError
from vaebench.selftest import CHECKS, chosen

__all__ = ["run"]

HELP = """usage: vaebench selftest [--only CHECK,...] [KEY=VALUE ...] [-o FILE.json]

Compare bounds, gradients, densities and estimators with exact answers, on this machine and device. Takes about
half a minute. Exit code 0: all passed; 1: some did not, and their names are the last line.

A row passes where `got` is within `tolerance` of `expected`; a row whose rule says `not` is a wrong formula, which
has to be caught: it passes where it is off by more. `s.e.` are standard errors of a Monte Carlo mean.

keys: device (auto|cpu|cuda|cuda:N), threads, seed

flags:
  --only CHECK,...     these checks only
  --list               show the checks
  -o, --output FILE    write everything as JSON too

examples:
  vaebench selftest
  vaebench selftest device=cuda:1 --only gradients,flows
  vaebench selftest -o selftest.json
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the checks run, and with which random numbers."""

    device: Device = "auto"
    threads: Count | None = None
    seed: Seed = 0


def run(words: list[str]) -> int:
    """Carry out ``vaebench selftest <words>`` and return the exit code."""
    parsed = parse(words, SELFTEST)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    if "--list" in parsed.flags:
        width = max(map(len, CHECKS))
        print("\n".join(f"{name:<{width}}  {about}" for name, about in CHECKS.items()))
        return 0
    checks = chosen([word for word in parsed.flags.get("--only", "").split(",") if word])
    given = settings(parsed.rest, Settings)
    output = target(parsed)
    return carry_out(checks, given, output)


def target(parsed: Parsed) -> Path | None:
    """Return where to write the JSON, if anywhere."""
    if "--output" not in parsed.flags:
        return None
    path = Path(parsed.flags["--output"]).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"-o {path}: {'that is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")
    return path


def carry_out(checks: list[str], given: Settings, output: Path | None) -> int:
    """Run the checks and print their rows as they come."""
    import torch

    from vaebench import runtime
    from vaebench.records import write_json
    from vaebench.selftest.running import Outcome
    from vaebench.selftest.running import run as run_checks
    from vaebench.selftest.table import HEADER, as_json, failures, lines, summary, title

    runtime.set_threads(given.threads)
    device = runtime.resolve_device(given.device)
    about = {"vaebench": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about |= {"device": runtime.describe(device), "seed": given.seed}
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{HEADER}", flush=True)
    outcomes: list[Outcome] = []
    started = time.monotonic()
    for number, event in enumerate(run_checks(checks, device, given.seed)):
        if isinstance(event, str):
            print(f"[{number // 2 + 1}/{len(checks)}] {title(event)}", flush=True)
            continue
        outcomes.append(event)
        print("\n".join(lines(event)), flush=True)
    print(summary(outcomes, time.monotonic() - started), flush=True)
    if output is not None:
        write_json(output, as_json(outcomes, about))
    if failures(outcomes):
        raise RunFailed(f"self-test failed: {', '.join(failures(outcomes))}")
    return 0
