"""Many runs at a glance: tables of comparable results, paired differences, and an HTML page.

This package only reads run folders. It never imports torch, and imports TensorBoard only to read pictures.
"""

from vaebench.report.comparison import Comparison, compare
from vaebench.report.conditions import Conditions
from vaebench.report.pairs import Pair, pairs
from vaebench.report.runs import LeftOut, Run, read_runs
from vaebench.report.tables import Row, Table

__all__ = ["Comparison", "Conditions", "LeftOut", "Pair", "Row", "Run", "Table", "compare", "pairs", "read_runs"]
