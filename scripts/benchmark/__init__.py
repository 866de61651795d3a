"""How fast this machine trains and evaluates: `python scripts/benchmark --help`."""
