"""The estimators that a user can name, each a function from an experiment to a plan for it."""

from vaebench.experiment.estimators.annealing import annealed, bidirectional
from vaebench.experiment.estimators.gaps import inference_gaps
from vaebench.experiment.estimators.importance import importance_weighted
from vaebench.experiment.estimators.plan import Estimator, Finding, Plan, at_a_time, repeated
from vaebench.experiment.estimators.sandwich import sandwiched

__all__ = ["ESTIMATORS", "Estimator", "Finding", "Plan", "at_a_time", "repeated"]

# One line makes a new estimator known; its yaml's keys are in ``experiment.config.estimator``.
ESTIMATORS: dict[str, Estimator] = {
    "ais": annealed,
    "bdmc": bidirectional,
    "gaps": inference_gaps,
    "iwae": importance_weighted,
    "sandwich": sandwiched,
}
