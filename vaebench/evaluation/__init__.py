"""Estimators of log p(x)."""

from vaebench.evaluation.importance import PerImage, log_likelihood, log_likelihoods

__all__ = ["PerImage", "log_likelihood", "log_likelihoods"]
