"""How fast this machine trains and evaluates, beside loops written by hand and the limit of its matrix products."""

from vaebench.benchmark.cases import CASES, Bench, Case
from vaebench.benchmark.cost import Cost, cost, costs_text
from vaebench.benchmark.report import Report, run

__all__ = ["CASES", "Bench", "Case", "Cost", "Report", "cost", "costs_text", "run"]
