"""Estimators of log p(x) and of other quantities of a trained model: tensors in, tensors out."""
