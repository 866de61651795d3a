"""A contract is a map from the names of checks to functions that yield rows; a part keeps it if every row passes."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from vaebench.selftest.rows import CheckRow
from vaebench.selftest.running import Outcome, outcome_of
from vaebench.selftest.table import as_text

__all__ = ["Contract", "examined", "no_problem", "verify"]

Contract = Mapping[str, Callable[[], Iterable[CheckRow | str]]]
"""The checks of one part, by name. A check yields rows, and a sentence for each comparison that it leaves out."""

CPU = torch.device("cpu")


def examined(contract: Contract, seed: int = 0) -> Iterator[Outcome]:
    """Yield the outcome of each check. The global random state and the default dtype do not change.

    Args:
        contract: the checks.
        seed: of their random numbers.
    """
    for name, check in contract.items():
        yield outcome_of(name, check, CPU, seed)


def verify(contract: Contract, seed: int = 0) -> None:
    """Print the rows of every check.

    Args:
        contract: the checks.
        seed: of their random numbers.

    Raises:
        AssertionError: a row does not pass, or a check raised an exception; the message has one line for each.
    """
    failed = []
    for outcome in examined(contract, seed):
        print(f"{outcome.check}\n{as_text(outcome)}")
        failed += [f"{outcome.check}: {_line(row)}" for row in outcome.rows if not row.passed]
        if outcome.error is not None:
            failed.append(f"{outcome.check}: {outcome.error}")
    if failed:
        raise AssertionError("\n".join(failed))


def _line(row: CheckRow) -> str:
    """Return a row as one line."""
    side = "" if row.side == "=" else f"{row.side} "
    return (
        f"{row.name}: got {row.got:.6g}, expected {side}{row.expected:.6g}, tolerance {row.tolerance:.2g} ({row.rule})"
    )


def no_problem(what: str, problems: Iterable[str]) -> CheckRow:
    """Return the row that counts problems; its name is the problems, or ``what`` if there are none."""
    found = list(problems)
    return CheckRow("; ".join(found) or what, 0, len(found), 0, "exact")
