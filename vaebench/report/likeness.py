"""What makes two results alike, so that they may stand in one table.

Two results are alike when they are of one quantity on the same images under one protocol, by the same estimator with
the same effort and precision, of models trained for the same number of epochs. Each set of such conditions is a table
of its own. What an estimator takes from the encoder is the row's and not the table's: the name IWAE or DIWHVI (the
latter with an exact density is the former), whose draws are weighed, what annealing starts from. A number of inner
samples must agree among the rows that have one; an exact density has none, and stands in the table of each.
"""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from vaebench.records import ResultRecord
from vaebench.report.runs import Run

__all__ = ["FOLLOWS_ENCODER", "LOG_LIKELIHOOD", "SIMULATED", "Conditions", "Result"]

_SAME_ESTIMATOR = {"IWAE": "IWAE/DIWHVI", "DIWHVI": "IWAE/DIWHVI"}
FOLLOWS_ENCODER = ("proposal", "initial")
SIMULATED = "simulated"
LOG_LIKELIHOOD = "log p(x)"


class Result(NamedTuple):
    """One run's result."""

    run: Run
    record: ResultRecord


@dataclass(frozen=True)
class Conditions:
    """What must agree for two results to stand in one table."""

    quantity: str
    split: str
    protocol: str
    fingerprint: str | None
    """Of the data themselves; None where a run did not record it."""
    n_images: int
    repeats: int
    estimator: str
    k: int | None
    inner_k: int | None
    """Of the rows that have inner samples."""
    settings: tuple[tuple[str, str], ...]
    precision: str
    """Of the networks in the evaluation."""
    epochs: int
    """The budget, trainer.epochs."""
    upper: bool
    """Whether the numbers are upper bounds, which rank nothing."""

    @classmethod
    def of(cls, result: Result) -> "Conditions":
        run, record = result
        settings = {k: json.dumps(v) for k, v in record.settings.items() if k not in FOLLOWS_ENCODER}
        return cls(
            quantity=record.quantity,
            split=record.split,
            protocol=record.protocol,
            fingerprint=run.manifest.get("dataset", {}).get("fingerprint"),
            n_images=record.n_images,
            repeats=record.repeats,
            estimator=_SAME_ESTIMATOR.get(record.estimator, record.estimator),
            k=record.k,
            inner_k=record.inner_k,
            settings=tuple(sorted(settings.items())),
            precision=record.precision or run.config.trainer.precision,
            epochs=run.config.trainer.epochs,
            upper=record.direction == "upper_bound",
        )

    def without_inner(self) -> "Conditions":
        return self.with_inner(None)

    def with_inner(self, inner_k: int | None) -> "Conditions":
        return Conditions(**{**self.__dict__, "inner_k": inner_k})

    def title(self) -> str:
        """Return what the numbers of the table are, for example ``test log p(x), mnist/dynamic-v1``."""
        return f"{self.split} {self.quantity}, {self.protocol}"

    def words(self) -> list[str]:
        """Return the further conditions, each in a few words."""
        words = [f"{self.n_images:,} image{'s' * (self.n_images != 1)}", self.estimator]
        numbers = {"k": self.k, "inner_k": self.inner_k, **dict(self.settings)}
        words += [f"{name}={value}" for name, value in numbers.items() if value is not None]
        words += [f"precision={self.precision}"] if self.precision != "float32" else []
        words += [f"{self.repeats} repeats"] if self.repeats > 1 else []
        words += ["upper bounds"] if self.upper else []
        return [*words, f"trainer.epochs={self.epochs}"]

    def facts(self) -> dict[str, Any]:
        """Return everything, for programs."""
        return {**self.__dict__, "settings": {name: json.loads(text) for name, text in self.settings}}
