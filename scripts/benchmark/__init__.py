"""How fast this machine trains and evaluates, beside loops written by hand and the limit of its matrix products."""

from benchmark.cases import CASES, Bench, Case
from benchmark.cost import Cost, cost, costs_text
from benchmark.report import Report, run

__all__ = ["CASES", "Bench", "Case", "Cost", "Report", "cost", "costs_text", "run"]
