"""Measure how fast this machine trains and evaluates, beside loops written by hand for the same models.

The speed table has medians over rounds, ratios, and the rate that the machine's matrix products alone would allow.
WORD selects the cases whose name contains it. Leave the machine otherwise idle. If Pythae is installed
(pip install pythae), it takes part in the cases that it has. docs/results/speed.md shows the output of --all.

examples:
  python scripts/benchmark
  python scripts/benchmark gaussian --threads 1 -o speed.json
  python scripts/benchmark --start-up --memory
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:
    # Run by its folder, which python then searches first. The folder above holds this package.
    sys.path[0] = str(Path(__file__).parents[1])

import torch

from benchmark.cases import CASES, PRECISIONS, Bench
from benchmark.cost import cost, costs_text
from benchmark.footprint import memory, start_up
from benchmark.optimisations import OPTIMISATIONS, gain, gains_text
from benchmark.report import run
from vaebench import runtime
from vaebench.config import config_dir
from vaebench.config.catalog import described
from vaebench.errors import RunFailed, UserError

MEASUREMENTS = ("speed", "optimisations", "cost", "start-up", "memory")
DEFAULTS = Bench(torch.device("cpu"), 1)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python scripts/benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("words", nargs="*", metavar="WORD", help="measure only what contains one of the words")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--threads", type=positive(int), default=torch.get_num_threads())
    made.add_argument("--rounds", type=positive(int), default=DEFAULTS.rounds)
    made.add_argument("--seconds", type=positive(float), default=DEFAULTS.seconds, help="for each candidate and round")
    made.add_argument("--batch", type=positive(int), default=DEFAULTS.batch, help="images in a batch")
    made.add_argument("--precision", choices=PRECISIONS, help="time this one alone; bf16 is slow on some processors")
    made.add_argument(
        "--compiled", action="store_true", help="time compiled losses too, ours and the hand-written ones"
    )
    made.add_argument("--speed", action="store_true", help="the speed table (the default)")
    made.add_argument("--optimisations", action="store_true", help="a step with and without each optimisation")
    made.add_argument(
        "--cost", action="store_true", help="count, predict and time a step of each encoder and objective"
    )
    made.add_argument("--start-up", action="store_true", help="start-up times")
    made.add_argument("--memory", action="store_true", help="memory of evaluations and training steps")
    made.add_argument("--all", action="store_true", help="all of these")
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the numbers to FILE as JSON")
    return made


def positive(kind: type[int] | type[float]) -> Any:
    """Return a reader of positive numbers for argparse."""

    def read(text: str) -> float:
        number = kind(text)
        if number <= 0:
            raise argparse.ArgumentTypeError(f"must be > 0, got {text}")
        return number

    read.__name__ = "number"
    return read


def main(argv: list[str] | None = None) -> int:
    """Measure, print tables, and return the exit code: 2 for a wrong request, 1 for a failure."""
    try:
        arguments = parser().parse_args(argv)
        asked = [name for name in MEASUREMENTS if arguments.all or getattr(arguments, name.replace("-", "_"))]
        bench = Bench(
            runtime.resolve_device(arguments.device),
            arguments.threads,
            arguments.batch,
            arguments.seconds,
            arguments.rounds,
            arguments.compiled,
            arguments.precision,
        )
        found: dict[str, Any] = {}
        for name in asked or ["speed"]:
            found |= MEASURE[name](bench, arguments.words)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def selected(kind: str, names: list[str], words: list[str]) -> list[str]:
    """Return the names that contain one of the words; all of them without words.

    Raises:
        UserError: a word is in no name.
    """
    for word in words:
        if not any(word in name for name in names):
            raise UserError(f"no {kind} contains '{word}'; valid: {'; '.join(names)}")
    return [name for name in names if not words or any(word in name for word in words)]


def progress(name: str) -> None:
    """Print what is being measured."""
    print(name, file=sys.stderr, flush=True)


def speed(bench: Bench, words: list[str]) -> dict[str, Any]:
    """Measure the cases and print the table."""
    names = selected("case", [case.name for case in CASES], words)
    report = run([case for case in CASES if case.name in names], bench, progress)
    print(report.text())
    about = report.machine
    print(f"{about['processor']}; {about['device']}; batches of {bench.batch}; medians of {bench.rounds} rounds")
    return report.to_dict()


def optimisations(bench: Bench, words: list[str]) -> dict[str, Any]:
    """Measure a step with and without each optimisation and print the gains."""
    names = selected("optimisation", [one.name for one in OPTIMISATIONS], words)
    found = []
    for one in OPTIMISATIONS:
        if one.name in names:
            progress(one.name)
            found.append(gain(one, bench))
    print(gains_text(found))
    return {"optimisations": [asdict(one) for one in found]}


def costs(bench: Bench, words: list[str]) -> dict[str, Any]:
    """Count, predict and time a step of each encoder, and of each objective with the Gaussian encoder."""
    encoders = selected("encoder", [listed.choice for listed in described("encoder", [config_dir()])], words)
    runtime.set_threads(bench.threads)
    asked = [
        [f"encoder={one}", *bound] for bound in (["objective=elbo"], ["objective=iwae", "k=16"]) for one in encoders
    ]
    if "gaussian" in encoders:
        others = [listed.choice for listed in described("objective", [config_dir()]) if listed.choice != "iwae"]
        others = [[f"objective={one}"] for one in others]
        others += [["objective=iwae", f"objective.gradient={gradient}"] for gradient in ("stl", "dreg")]
        asked += [["encoder=gaussian", *words, "k=16"] for words in others]
    found = []
    for settings in asked:
        progress(" ".join(settings))
        found.append(cost(settings, bench))
    counted = [one for one in found if one is not None]
    print(costs_text(counted))
    return {"costs": [asdict(one) for one in counted]}


def start_ups(bench: Bench, words: list[str]) -> dict[str, Any]:
    """Measure start-up times and print them."""
    del bench, words
    return printed(start_up(tries=5))


def memories(bench: Bench, words: list[str]) -> dict[str, Any]:
    """Measure the memory of evaluations and training steps and print it."""
    del words
    return printed(memory(str(bench.device), bench.threads))


def printed(lines: list[Any]) -> dict[str, Any]:
    """Print footprints and return their numbers."""
    for line in lines:
        print(line.text(), flush=True)
    return {line.name: {"value": line.value, "unit": line.unit} for line in lines}


MEASURE = {"speed": speed, "optimisations": optimisations, "cost": costs, "start-up": start_ups, "memory": memories}

if __name__ == "__main__":
    sys.exit(main())
