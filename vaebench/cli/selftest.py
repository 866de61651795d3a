"""`vaebench selftest`: compare what this machine computes with exact answers."""

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

Compare precision, noise, gradients, flows, weights and resuming with exact answers, on this machine and device.
Takes about ten seconds. Exit code 0: all checks passed; 1: the last line names the checks that failed.

A row passes if `got` differs from `expected` by at most `tolerance`. A control is a wrong formula: it passes if it
differs by more, and is then `caught`.

keys: device (auto|cpu|cuda|mps|xpu), threads, seed

flags:
  --only CHECK,...     run only these checks
  --list               list the checks
  -o, --output FILE    also write the rows as JSON

examples:
  vaebench selftest
  vaebench selftest device=cuda:1 --only gradients,flows
  vaebench selftest -o selftest.json
"""


@dataclass(frozen=True, kw_only=True)
class SelftestSettings:
    """The settings of the command."""

    device: Device = "auto"
    threads: Count | None = None
    seed: Seed = 0
    """Seed of the samples of the checks."""


def run(words: list[str]) -> int:
    """Run ``vaebench selftest <words>`` and return the exit code."""
    parsed = parse(words, SELFTEST, HELP)
    if "--list" in parsed.flags:
        width = max(map(len, CHECKS))
        print("\n".join(f"{name:<{width}}  {about}" for name, about in CHECKS.items()))
        return 0
    checks = chosen([word for word in parsed.flags.get("--only", "").split(",") if word])
    given = settings(parsed.rest, SelftestSettings)
    output = target(parsed)
    return carry_out(checks, given, output)


def target(parsed: Parsed) -> Path | None:
    """Return the path of the JSON file, or None."""
    if "--output" not in parsed.flags:
        return None
    path = Path(parsed.flags["--output"]).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"-o {path}: {'is a folder: name a file' if path.is_dir() else f'no folder {path.parent}'}")
    return path


def carry_out(checks: list[str], given: SelftestSettings, output: Path | None) -> int:
    """Run the checks; print the rows of each check when it ends."""
    import torch

    from vaebench import runtime
    from vaebench.records import write_json
    from vaebench.selftest.running import Outcome
    from vaebench.selftest.running import run as run_checks
    from vaebench.selftest.table import as_json, as_text, failures, summary, title

    runtime.set_threads(given.threads)
    device = runtime.resolve_device(given.device)
    about = {"vaebench": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about |= {"device": runtime.describe(device), "seed": given.seed}
    print("  ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    outcomes: list[Outcome] = []
    started = time.monotonic()
    for number, event in enumerate(run_checks(checks, device, given.seed)):
        if isinstance(event, str):
            print(f"[{number // 2 + 1}/{len(checks)}] {title(event)}", flush=True)
            continue
        outcomes.append(event)
        print(as_text(event), flush=True)
    print(summary(outcomes, time.monotonic() - started), flush=True)
    if output is not None:
        write_json(output, as_json(outcomes, about))
    if failures(outcomes):
        raise RunFailed(f"self-test failed: {', '.join(failures(outcomes))}")
    return 0
