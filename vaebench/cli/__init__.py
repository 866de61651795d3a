"""The command line: `vaebench <command> ...`. Each command is one module, imported when it is used."""

import importlib
import io
import os
import sys
from collections.abc import Sequence

from vaebench import __version__
from vaebench.cli.failure import exit_code, lasting_output
from vaebench.errors import UserError, did_you_mean
from vaebench.typed import clipped

__all__ = ["main"]

# How often a thread without work looks for it before it sleeps. By default libgomp, torch's threads on Linux, looks
# 300,000 times: beside other busy processes that takes the cores from the threads that work.
SPINS = "10000"

# The command, its function (MODULE:FUNCTION, by default MODULE:run), and one line about it.
COMMANDS = {
    "train": ("train", "train a model and evaluate it; run the same command again to resume"),
    "tune": ("tune", "search for the settings with the best validation log-likelihood"),
    "evaluate": ("evaluate", "estimate log p(x) of finished runs"),
    "export": ("export", "write a finished run as one verified file, which the other commands take as a run"),
    "diagnose": ("diagnose", "measure active units, rates, information, gradient noise of finished runs"),
    "compare": ("compare", "print tables of comparable results, averaged over seeds"),
    "reproduce": ("reproduce", "train the rows of a paper and compare them with its published results"),
    "report": ("report", "write one HTML page: tables, curves, pictures, commands"),
    "curves": ("curves", "write the learning curves of runs as one csv table"),
    "plot": ("plot", "draw a figure for a paper: curves, forest, differences, samples, grid"),
    "board": ("board", "start TensorBoard on runs"),
    "show": ("show", "show one run: settings, command, machine, learning curve, results"),
    "explain": ("explain", "print what a setting means, its values and its default"),
    "list": ("listing", "list the choices of the config groups, or the runs in a folder"),
    "data": ("data", "list, download, verify and prepare datasets"),
    "sample": ("pictures:sample", "draw samples from the prior of finished runs as a PNG"),
    "reconstruct": ("pictures:reconstruct", "draw images and their reconstructions"),
    "interpolate": ("pictures:interpolate", "draw paths between images through latent space"),
    "traverse": ("pictures:traverse", "draw an image with one latent coordinate changed at a time"),
    "check": ("check", "check the contract of an encoder, prior, likelihood, objective, estimator or dataset"),
    "new": ("new", "write a package with an encoder, prior, objective, estimator or dataset of your own"),
    "encode": ("encode", "write latents of images: posterior means, draws, labels; TensorBoard's projector"),
    "selftest": ("selftest", "compare what this machine computes with exact answers"),
}

HELP = """usage: vaebench <command> [...]

{commands}

  vaebench <command> --help    help for one command
  vaebench --version           print the version
  --plugin FILE.py|MODULE      with any command: use the encoders, priors, ... of a file or module (may be repeated)

examples:
  vaebench train encoder=hvm objective=iwae k=16
  vaebench train -m encoder=gaussian,hvm,iwhvi objective=elbo,iwae k=1,16
  vaebench evaluate outputs/mnist5k estimator=iwae estimator.k=5000
  eval "$(vaebench -sc install=bash)"    # TAB completion
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        argv: the words after ``vaebench``; by default from ``sys.argv``.

    Returns:
        0: success; 1: the work failed; 2: the request was invalid; 129, 130, 143: stopped by SIGHUP,
            SIGINT, SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Read it now: `hydra_app` sets HYDRA_FULL_ERROR for hydra.
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is loaded
    with lasting_output():
        try:
            return dispatch_with_plugins(words)
        except BaseException as error:
            return exit_code(error, with_traceback=traceback_wanted)


def dispatch_with_plugins(words: list[str]) -> int:
    """Run the command in ``words`` with the files and modules after ``--plugin``, which every command takes."""
    if not any(word.partition("=")[0] == "--plugin" for word in words):
        return dispatch(words)
    from vaebench import plugins
    from vaebench.cli.flags import take

    taken, rest = take(words, "--plugin", 1)
    with plugins.using([word for (word,) in taken]):
        return dispatch(rest)


def dispatch(words: list[str]) -> int:
    """Run the command in ``words`` and return the exit code."""
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
        hint = did_you_mean(clipped(words[0]), COMMANDS)
        raise UserError(f"there is no command '{clipped(words[0])}'{hint}; commands: {', '.join(COMMANDS)}")
    module, _, function = COMMANDS[words[0]][0].partition(":")
    return getattr(importlib.import_module(f"vaebench.cli.{module}"), function or "run")(words[1:])
