"""Evaluations of trained runs: estimators applied to images, resumable, in one process or several."""
