"""Evaluations of trained runs: estimators applied to images, resumable, in one process or several.

`vaebench.evaluate(run, "estimator=iwae")` evaluates one run or several: `help(vaebench.notebook.evaluate)`.
"""

from vaebench.callable_package import make_callable

make_callable(__name__)
