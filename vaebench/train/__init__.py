"""Training of a run: session.py is the way in, trainer.py the loop over steps.

`vaebench.train("encoder=hvm", k=16)` trains one run: `help(vaebench.notebook.train)`.
"""

from vaebench.callable_package import make_callable

make_callable(__name__)
