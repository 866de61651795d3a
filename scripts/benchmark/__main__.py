"""`vaebench bench`: how fast this machine trains and evaluates."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench.cli.flags import BENCH, parse
from vaebench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from benchmark.cases import Bench

__all__ = ["run"]

HELP = """usage: vaebench bench [WORD ...] [KEY=VALUE ...] [FLAGS]

Measure training and evaluation side by side with loops written by hand for the same models, in turn, and print
medians, ratios, and what the machine's matrix products alone would allow. WORD picks the cases that contain it.
The machine should have nothing else to do. Where Pythae is installed (pip install pythae), it takes part in the
cases that it has.

keys: device (auto|cpu|cuda|cuda:N), threads, rounds (5), seconds (1: for each candidate and round), batch (256)

flags:
  --compiled       time compiled losses too, ours (trainer.compile=true) and those of the loops written by hand
  --levers         what each lever gains instead: a step with it and without it, and where the time went
  --cost           instead count what a step asks of the machine, for every encoder and objective, predict its time from
                   the machine's rates, and time it
  --start-up       measure start-up times instead
  --memory         measure memory instead: what evaluations and training steps take beyond importing and loading
  -o FILE          write the numbers to FILE, as json

examples:
  vaebench bench
  vaebench bench gaussian threads=1 -o bench.json
  vaebench bench --start-up --memory
"""
KEYS: dict[str, Any] = {"device": str, "threads": int, "rounds": int, "seconds": float, "batch": int}


def run(words: list[str]) -> int:
    """Carry out ``vaebench bench <words>`` and return the exit code."""
    parsed = parse(words, BENCH)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    settings = dict(setting(word) for word in parsed.rest if "=" in word)
    wanted = [word for word in parsed.rest if "=" not in word]
    found: dict[str, Any] = {}
    if "--cost" in parsed.flags:
        found |= costs(wanted, settings)
    elif "--levers" in parsed.flags:
        found |= levers(wanted, settings)
    elif not {"--start-up", "--memory"} & parsed.flags.keys():
        found |= speeds(wanted, settings, compiled="--compiled" in parsed.flags)
    else:
        refuse_words_of_cases(parsed.rest)
    found |= footprints(parsed.flags, settings)
    if "--output" in parsed.flags:
        Path(parsed.flags["--output"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def refuse_words_of_cases(words: list[str]) -> None:
    """UserError for words that are not about start-up and memory."""
    theirs = [word for word in words if "=" not in word or word.partition("=")[0] not in ("device", "threads")]
    if theirs:
        raise UserError(f"{' '.join(theirs)} belongs to the cases: leave out --start-up and --memory")


def setting(word: str) -> tuple[str, Any]:
    """Return a word such as ``threads=1`` as (key, value)."""
    key, _, value = word.partition("=")
    if key not in KEYS:
        raise UserError(f"unknown key {key}{did_you_mean(key, KEYS)}; keys: {', '.join(KEYS)}")
    try:
        converted = KEYS[key](value)
    except ValueError:
        raise UserError(f"{key} must be a number, not '{value}'") from None
    if KEYS[key] is not str and converted <= 0:
        raise UserError(f"{key} must be more than 0, not {value}")
    return key, converted


def speeds(wanted: list[str], settings: dict[str, Any], *, compiled: bool) -> dict[str, Any]:
    """Measure the cases that contain one of the words, print the table and return its numbers."""
    from benchmark.cases import CASES
    from benchmark.report import run

    names = [case.name for case in CASES]
    for word in wanted:
        if not any(word in name for name in names):
            raise UserError(f"no case contains '{word}'; cases: {'; '.join(names)}")
    cases = [case for case in CASES if not wanted or any(word in case.name for word in wanted)]
    bench = bench_of(dict(settings), compiled=compiled)
    report = run(cases, bench, lambda name: print(name, file=sys.stderr, flush=True))
    print(report.text())
    print(f"medians of {bench.rounds} rounds, {report.machine['device']}, batches of {bench.batch}")
    return report.to_dict()


def bench_of(settings: dict[str, Any], *, compiled: bool = False) -> "Bench":
    """Return how to measure."""
    import torch

    from benchmark.cases import Bench
    from vaebench import runtime

    device = runtime.resolve_device(settings.pop("device", "auto"))
    threads = settings.pop("threads", torch.get_num_threads())
    return Bench(device, threads, compiled=compiled, **settings)


def levers(wanted: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the levers whose name contains one of the words, print what they gain and return the numbers."""
    from dataclasses import asdict

    from benchmark.optimisations import LEVERS, gain, gains_text

    chosen = [lever for lever in LEVERS if not wanted or any(word in lever.name for word in wanted)]
    if not chosen:
        names = "; ".join(lever.name for lever in LEVERS)
        raise UserError(f"no lever contains {' or '.join(wanted)}; levers: {names}")
    bench, found = bench_of(dict(settings)), []
    for lever in chosen:
        print(lever.name, file=sys.stderr, flush=True)
        found.append(gain(lever, bench))
    print(gains_text(found))
    return {"levers": [asdict(one) for one in found]}


def costs(wanted: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Count, predict and time a step of each encoder that contains one of the words, and of each objective once."""
    from dataclasses import asdict

    from benchmark.cost import cost, costs_text
    from vaebench import runtime
    from vaebench.config.catalog import config_dir, described

    bench = bench_of(dict(settings))
    encoders = [listed.choice for listed in described("encoder", [config_dir()])]
    chosen = [name for name in encoders if not wanted or any(word in name for word in wanted)]
    if not chosen:
        raise UserError(f"no encoder contains {' or '.join(wanted)}; encoders: {', '.join(encoders)}")
    runtime.set_threads(bench.threads)
    asked = [[f"encoder={one}", *bound] for bound in (["objective=elbo"], ["objective=iwae", "k=16"]) for one in chosen]
    if "gaussian" in chosen:
        others = [listed.choice for listed in described("objective", [config_dir()]) if listed.choice != "iwae"]
        others = [[f"objective={one}"] for one in others]
        others += [["objective=iwae", f"objective.gradient={gradient}"] for gradient in ("stl", "dreg")]
        asked += [["encoder=gaussian", *words, "k=16"] for words in others]
    found = []
    for words in asked:
        print(*words, file=sys.stderr, flush=True)
        found.append(cost(words, bench))
    counted = [one for one in found if one is not None]
    print(costs_text(counted))
    return {"costs": [asdict(one) for one in counted]}


def footprints(flags: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """Measure start-up and memory where that is asked for."""
    if not {"--start-up", "--memory"} & flags.keys():
        return {}
    from benchmark.footprint import memory, start_up

    lines = start_up(tries=5) if "--start-up" in flags else []
    lines += memory(settings.get("device", "auto"), settings.get("threads")) if "--memory" in flags else []
    for line in lines:
        print(line.text(), flush=True)
    return {line.name: {"value": line.value, "unit": line.unit} for line in lines}
