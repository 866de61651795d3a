"""`python -m vaebench`: the same as the command `vaebench`."""

import sys

from vaebench.cli import main

# Worker processes of a launcher import this module again; they must not start over.
if __name__ == "__main__":
    sys.exit(main())
