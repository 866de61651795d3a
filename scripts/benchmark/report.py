"""Run the cases and print the results as tables."""

import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmark.cases import COMPILED, HAND, OURS, PRECISIONS, PYTHAE, Bench, Case, pythae_is_installed
from benchmark.measure import Timing, seconds_of, side_by_side
from vaebench import runtime
from vaebench.records.manifest import versions

__all__ = ["Report", "Row", "run"]


@dataclass(frozen=True)
class Row:
    """One case, measured."""

    name: str
    unit: str
    rates: dict[str, float]
    """Median units per second of each candidate."""
    ratios: dict[str, float]
    """Median over rounds of our rate to another's, named ``ours : theirs``."""
    limits: dict[str, float]
    """Units per second if a step had only its matrix products, by precision."""
    flops: float
    """Of the matrix products, for each unit."""


@dataclass(frozen=True)
class Report:
    """All rows, and the machine that they were measured on."""

    machine: dict[str, Any]
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for json."""
        return {"machine": self.machine, "rows": [asdict(row) for row in self.rows]}

    def text(self) -> str:
        """Return the table for a terminal or a markdown page."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.rates))
        rates = [[row.rates.get(name) for name in names] for row in self.rows]
        limits = [" / ".join(shown(limit) for limit in row.limits.values()) for row in self.rows]
        works = [f"{row.name}, {row.unit}" for row in self.rows]
        lines = table(
            ["work", *names, f"matrix limit {' / '.join(self.rows[0].limits)}"],
            [[work, *map(shown, some), limit] for work, some, limit in zip(works, rates, limits, strict=True)],
        )
        pairs = [pair for pair in PAIRS if any(pair in row.ratios for row in self.rows)]
        ratios = [[f"{row.ratios[pair]:.2f}" if pair in row.ratios else "" for row in self.rows] for pair in pairs]
        heads = ["times as fast", *(row.name for row in self.rows)]
        return "\n".join([*lines, "", *table(heads, [[pair, *some] for pair, some in zip(pairs, ratios, strict=True)])])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def compared() -> dict[str, tuple[str, str]]:
    """Return the pairs of rates to compare, by name: ours and a loop's in the same precision, ours and pythae's."""
    found = [
        (OURS + ours + suffix, HAND + theirs + suffix)
        for ours, theirs in (("", ""), (COMPILED, ""), (COMPILED, COMPILED))
        for suffix in PRECISIONS.values()
    ]
    found += [(OURS + way + suffix, PYTHAE) for way in ("", COMPILED) for suffix in PRECISIONS.values()]
    return {f"{ours} : {theirs}": (ours, theirs) for ours, theirs in found}


PAIRS = compared()


def shown(rate: float | None) -> str:
    """Return a rate with three significant digits."""
    if rate is None:
        return ""
    digits = max(0, len(str(int(rate))) - 3)
    return f"{round(rate, -digits):,.0f}"


def run(cases: Sequence[Case], bench: Bench, tell: Callable[[str], None]) -> Report:
    """Measure ``cases`` one after the other; ``tell`` gets the name of each before it starts."""
    runtime.set_threads(bench.threads)
    rows = []
    for case in cases:
        tell(case.name)
        with compiled_alone():
            rows.append(measured(case, bench))
    return Report(machine(bench), rows)


@contextmanager
def compiled_alone() -> Iterator[None]:
    """Let torch forget its graphs, so that a case has all of its graphs for one function; fail at torch's limit.

    By default torch runs a function uncompiled at the limit, and a loop would be timed as compiled that is not.
    """
    torch.compiler.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def measured(case: Case, bench: Bench) -> Row:
    """Measure one case."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = case.prepare(bench, Path(folder), stack)
        timing = side_by_side(work.candidates, bench.rounds, bench.device)
        limits = {name: rate / work.flops for name, rate in matrix_rates(work.rows, bench).items()}
    return row_of(case, timing, limits, work.flops)


def row_of(case: Case, timing: Timing, limits: dict[str, float], flops: float) -> Row:
    rates = {name: timing.rate(name) for name in timing.rates}
    ratios = {name: timing.ratio(*pair) for name, pair in PAIRS.items() if set(pair) <= timing.rates.keys()}
    return Row(case.name, case.unit, rates, ratios, limits, flops)


def matrix_rates(rows: int, bench: Bench) -> dict[str, float]:
    """Return floating-point operations per second in products of the networks' shapes, by precision."""
    types = {"float32": torch.float32, "bf16": torch.bfloat16}
    return {name: matrix_rate(rows, bench.device, types[name]) for name in bench.suffixes}


# Inputs and outputs of the most expensive layers.
SHAPES = [(784, 300), (300, 300), (300, 784)]
# Of products for one measurement of their rate.
SECONDS = 0.03


def matrix_rate(rows: int, device: torch.device, dtype: torch.dtype, tries: int = 5) -> float:
    """Return the median rate over ``tries`` of (rows, 784) x (784, 300), (rows, 300) x (300, 300) and back."""
    pairs = [(torch.randn(rows, a, device=device, dtype=dtype), torch.randn(a, b, device=device, dtype=dtype))
             for a, b in SHAPES]  # fmt: skip
    flops = 2 * rows * sum(a * b for a, b in SHAPES)

    def products(repeats: int = 1) -> None:
        for _ in range(repeats):
            for left, right in pairs:
                torch.mm(left, right)

    products()
    # Not a number of operations: a processor without bf16 instructions would take a minute for them.
    repeats = max(1, round(SECONDS / seconds_of(products, device)))
    return flops * repeats / median(seconds_of(partial(products, repeats), device) for _ in range(tries))


def processor() -> str:
    """Return the processor and its vector instructions, in words."""
    if not hasattr(torch.cpu, "get_capabilities"):  # early versions of torch know the widest vectors alone
        return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    found = torch.cpu.get_capabilities()
    known = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
    names = [name for key, name in known.items() if found.get(key)]
    if not any("bf16" in name for name in names):
        names.append("no bf16")
    return ", ".join([found.get("cpu_name") or platform.machine(), *names])


def machine(bench: Bench) -> dict[str, Any]:
    """Return the machine, versions and settings that the numbers depend on."""
    return {
        "device": runtime.describe(bench.device),
        "processor": processor(),
        "threads": bench.threads,
        "batch": bench.batch,
        "rounds": bench.rounds,
        "versions": versions() | ({"pythae": version("pythae")} if pythae_is_installed() else {}),
    }
