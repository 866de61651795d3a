"""The table of docs/reliability.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from reliability.damaged_runs import DamageCounts
from reliability.stops import StopCounts

__all__ = ["Part", "damage_part", "stop_part", "table", "written"]

BEGIN, END = "<!-- made by scripts/reliability: begin -->", "<!-- end -->"
FAULTS = ("differences", "doubled", "leftovers", "tracebacks", "wrong numbers", "other")
TITLES = ("differences", "doubled points", "leftovers", "tracebacks", "silently wrong numbers", "other faults")


@dataclass
class Part:
    """The counts of one row."""

    name: str
    tried: str
    cases: int
    seconds: float
    faults: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of faults."""
        return sum(map(len, self.faults.values()))

    def count(self, kind: str) -> int:
        """Return the number of faults of a kind; ``other`` counts every kind without a column."""
        if kind != "other":
            return len(self.faults.get(kind, ()))
        return sum(len(lines) for name, lines in self.faults.items() if name not in FAULTS[:-1])


def stop_part(counts: StopCounts, seconds: float) -> Part:
    """Return the row of a command that was stopped."""
    kinds = {"kill": "kills between two changes", "torn": "kills in the middle of a write", "full": "full disks"}
    tried = ", ".join(f"{number} {kinds[kind]}" for kind, number in counts.cases.items() if number)
    cases = sum(counts.cases.values())
    return Part(f"`{counts.scenario}`", f"{counts.points} changes of files: {tried}", cases, seconds, counts.faults)


def damage_part(counts: DamageCounts, seconds: float) -> Part:
    """Return the row of a tree whose files were damaged."""
    damages, kinds = sum(counts.damages.values()), len(counts.damages)
    tried = f"{counts.files} files, {kinds} kinds of damage, {damages} damages, {counts.readings} commands"
    return Part(counts.tree, tried, counts.readings, seconds, counts.faults)


def table(parts: Sequence[Part]) -> str:
    """Return the table as Markdown."""
    lines = ["| what | tried | cases | " + " | ".join(TITLES) + " |", "|---|---|---" + "|---" * len(TITLES) + "|"]
    for part in parts:
        numbers = " | ".join(str(part.count(kind)) for kind in FAULTS)
        lines.append(f"| {part.name} | {part.tried} | {part.cases} | {numbers} |")
    total = " | ".join(str(sum(part.count(kind) for part in parts)) for kind in FAULTS)
    lines.append(f"| all | | {sum(part.cases for part in parts)} | {total} |")
    return "\n".join(lines)


def written(page: str, parts: Sequence[Part]) -> str:
    """Return the page with its table replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(parts)}\n\n{END}{after}"
