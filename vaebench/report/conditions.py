"""The conditions under which two results are comparable and share a table.

Two results are comparable if they estimate the same quantity on the same images under the same protocol. They also need
the same estimator with the same effort and precision, and models trained for the same number of epochs.

Details of the estimator that depend on the encoder are shown per row; they do not split tables. These are the name IWAE
or DIWHVI (DIWHVI without inner samples is IWAE), the proposal, and the initial distribution of annealing. The number of
inner samples must agree among the rows that have inner samples; an encoder without inner samples fits every table.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vaebench.direction import Direction, Measure
from vaebench.records import ResultRecord
from vaebench.report.runs import Run

__all__ = ["FOLLOWS_ENCODER", "LOG_LIKELIHOOD", "SIMULATED", "Conditions", "Result", "comparable", "encoder_details"]

_SAME_ESTIMATOR = {"IWAE": "IWAE/DIWHVI", "DIWHVI": "IWAE/DIWHVI"}
FOLLOWS_ENCODER = ("initial", "proposal")
SIMULATED = "simulated"
LOG_LIKELIHOOD = "log p(x)"


class Result(NamedTuple):
    """A result with its run."""

    run: Run
    record: ResultRecord


@dataclass(frozen=True)
class Conditions:
    """The facts that must agree for two results to share a table."""

    quantity: str
    split: str
    protocol: str
    fingerprint: str | None
    """The hash of the data; None where a run did not record it."""
    n_images: int
    repeats: int
    estimator: str
    k: int | None
    inner_k: int | None
    """The number of inner samples in the rows that have any."""
    settings: tuple[tuple[str, str], ...]
    precision: str
    """The precision of the networks in the evaluation."""
    epochs: int | None
    """The planned length of training, trainer.epochs; None for results of runs of any length."""
    measure: Measure
    """What p(x) is: a density and a probability never share a table."""
    upper: bool
    """Whether the numbers are upper bounds, which give no ranking."""

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
            measure=record.measure,
            upper=record.direction is Direction.UPPER_BOUND,
        )

    def title(self) -> str:
        """Return the quantity and the data, for example ``test log p(x), mnist/dynamic-v1``."""
        return f"{self.split} {self.measure.named(self.quantity)}, {self.protocol}"

    def words(self) -> list[str]:
        """Return the other conditions, each in a few words."""
        words = [f"{self.n_images:,} {'image' if self.n_images == 1 else 'images'}", self.estimator]
        numbers = {"k": self.k, "inner_k": self.inner_k, **dict(self.settings)}
        words += [f"{name}={value}" for name, value in numbers.items() if value is not None]
        words += [f"precision={self.precision}"] if self.precision != "float32" else []
        words += [f"{self.repeats} repeats"] if self.repeats > 1 else []
        words += ["upper bounds"] if self.upper else []
        return words if self.epochs is None else [*words, f"trainer.epochs={self.epochs}"]

    def heading(self) -> str:
        """Return all conditions in one line: ``test log p(x), mnist/dynamic-v1 (500 images, IWAE, k=64), nats ...``."""
        return f"{self.title()} ({', '.join(self.words())}), nats per image"

    def facts(self) -> dict[str, Any]:
        """Return all conditions, for JSON and CSV."""
        return {**self.__dict__, "settings": {name: json.loads(text) for name, text in self.settings}}


def encoder_details(record: ResultRecord) -> str:
    """Return the details of the estimator that depend on the encoder: ``proposal moments``, for example, or nothing."""
    return ", ".join(f"{name} {record.settings[name]}" for name in FOLLOWS_ENCODER if name in record.settings)


def comparable(
    results: Iterable[Result], conditions_of: Callable[[Result], Conditions] = Conditions.of
) -> dict[Conditions, list[Result]]:
    """Return the results that share each set of conditions.

    An encoder without inner samples is comparable with any number of them, so its results may be in several sets.
    """
    alike: dict[Conditions, list[tuple[int | None, Result]]] = defaultdict(list)
    for result in results:
        conditions = conditions_of(result)
        alike[replace(conditions, inner_k=None)].append((conditions.inner_k, result))
    return {
        replace(conditions, inner_k=inner_k): [result for own, result in found if own in (None, inner_k)]
        for conditions, found in alike.items()
        for inner_k in sorted({own for own, _ in found if own is not None}) or [None]
    }
