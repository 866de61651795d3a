"""`vaebench selftest`: exact answers against what this installation computes on this machine.

``catalog`` knows the checks without importing torch; ``checks`` holds them, one module each; ``oracles`` holds the
models whose answers are known, which the package's own tests share.
"""

from vaebench.selftest.catalog import CHECKS, chosen

__all__ = ["CHECKS", "chosen"]
