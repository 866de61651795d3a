"""The command line: `vaebench <command> ...`. Each command is one module, imported when it is asked for."""

import importlib
import os
import sys
from collections.abc import Sequence

from vaebench import __version__
from vaebench.cli.failure import exit_code
from vaebench.errors import UserError, did_you_mean

__all__ = ["main"]

# The command, its module in this package, and one line about it.
COMMANDS = {
    "train": ("train", "train a model, evaluate it; the same command goes on where it stopped"),
    "tune": ("tune", "search for settings by validation log-likelihood"),
    "evaluate": ("evaluate", "estimate log p(x) of finished runs"),
    "diagnose": ("diagnose", "active units, rates, information, gradient noise of finished runs"),
    "compare": ("compare", "tables of results: seeds aggregated, only like with like"),
    "report": ("report", "one self-contained page: tables, curves, pictures, commands"),
    "board": ("board", "TensorBoard on the runs in a folder, or on some of them"),
    "show": ("show", "one run's story: settings, command, machine, learning curve, results"),
    "list": ("listing", "show the choices of each config group, or the runs that there are"),
    "data": ("data", "show, download, verify and prepare datasets"),
    "sample": ("sample", "draw images from the prior of finished runs, as a PNG"),
    "reconstruct": ("reconstruct", "draw images beside their reconstructions"),
    "interpolate": ("interpolate", "draw ways between images through latent space"),
    "traverse": ("traverse", "draw an image with one latent coordinate moved"),
    "selftest": ("selftest", "compare what this machine computes with exact answers"),
}

HELP = """usage: vaebench <command> [...]

{commands}

  vaebench <command> --help    more on one command
  vaebench --version           the version

examples:
  vaebench train encoder=hvm objective=iwae k=16
  vaebench train -m encoder=gaussian,hvm,iwhvi objective=elbo,iwae k=1,16
  vaebench evaluate outputs/mnist5k estimator=iwae estimator.k=5000
  eval "$(vaebench -sc install=bash)"    # TAB completion
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (``sys.argv`` without the program's name by default) and return the exit code.

    0: done; 1: the work failed; 2: the request was wrong; 130 and 143: stopped by SIGINT and SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # hydra reads HYDRA_FULL_ERROR too, and is given its own value further down.
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    try:
        return dispatch(words)
    except BaseException as error:
        return exit_code(error, with_traceback=traceback_wanted)


def dispatch(words: list[str]) -> int:
    """Carry out ``words`` and return the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        lines = [f"  {command:<11} {summary}" for command, (_, summary) in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if words[0] == "--version":
        print(f"vaebench {__version__}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return importlib.import_module("vaebench.cli.completion").run(words[1:], list(COMMANDS))
    if words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS)
        raise UserError(f"there is no command '{words[0]}'{hint}; commands: {', '.join(COMMANDS)}")
    return importlib.import_module(f"vaebench.cli.{COMMANDS[words[0]][0]}").run(words[1:])
