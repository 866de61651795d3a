"""From a checked configuration to objects, and from objects to trained and evaluated runs."""

from vaebench.experiment.assembly import ENCODERS, OBJECTIVES, PRIORS, Experiment, build, load
from vaebench.experiment.diagnosing import diagnose
from vaebench.experiment.drawing import draw
from vaebench.experiment.estimators import ESTIMATORS
from vaebench.experiment.evaluating import evaluate
from vaebench.experiment.training import resume, train

__all__ = [
    "ENCODERS",
    "ESTIMATORS",
    "OBJECTIVES",
    "PRIORS",
    "Experiment",
    "build",
    "diagnose",
    "draw",
    "evaluate",
    "load",
    "resume",
    "train",
]
