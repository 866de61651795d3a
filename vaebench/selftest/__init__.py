"""`vaebench selftest` compares what this machine computes with exact answers.

``catalog`` names the checks without importing torch. ``checks`` has one module for each. ``oracles`` has models with
exact answers.
"""

from vaebench.selftest.catalog import CHECKS, chosen

__all__ = ["CHECKS", "chosen"]
