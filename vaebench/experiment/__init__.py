"""From a checked configuration to objects, and from objects to trained and evaluated runs."""

from vaebench.experiment.assembly import ENCODERS, PRIORS, Experiment, build, load
from vaebench.experiment.evaluating import evaluate
from vaebench.experiment.training import resume, train

__all__ = ["ENCODERS", "PRIORS", "Experiment", "build", "evaluate", "load", "resume", "train"]
