"""What many runs say together: tables of like with like, paired differences, one page with pictures.

Reads run folders only, and imports neither torch nor TensorBoard before a picture is asked for.
"""

from vaebench.report.comparison import Comparison, compare
from vaebench.report.likeness import Conditions
from vaebench.report.pairs import Pair, pairs
from vaebench.report.runs import LeftOut, Run, read_runs
from vaebench.report.tables import Row, Table

__all__ = ["Comparison", "Conditions", "LeftOut", "Pair", "Row", "Run", "Table", "compare", "pairs", "read_runs"]
