"""The names of the checks, without torch."""

from collections.abc import Sequence

from vaebench.errors import UserError, did_you_mean

__all__ = ["CHECKS", "chosen"]

CHECKS = {
    "precision": "float32 densities, also with bf16 networks",
    "keyed_noise": "the same noise for a key, in any chunk, on any device",
    "gradients": "reparam and DReG against the exact gradient",
    "flows": "log-determinant and inverse of every flow against autograd",
    "unbiased_weights": "E[w] = p(x) for every family, AIS and BDMC",
    "checkpoints": "a checkpoint loads bitwise; a corrupt file is refused",
    "resume": "interrupted and resumed training is bitwise the same",
}
"""Each module of :mod:`vaebench.selftest.checks`, with one line about it."""
REMOVED = ("finite_states", "linear_gaussian", "semi_implicit", "asymptotics", "annealing", "discriminator", "chunks")
"""Checks of earlier versions. The tests of the package contain them: their answers do not depend on the machine."""


def chosen(words: Sequence[str]) -> list[str]:
    """Return the checks that ``words`` name, in the order of ``CHECKS``; all of them for none.

    Raises:
        UserError: a word does not name a check.
    """
    for word in words:
        if word in REMOVED:
            raise UserError(f"'{word}' is no longer a check: it moved to the package's tests; checks: {_names()}")
        if word not in CHECKS:
            raise UserError(f"there is no check '{word}'{did_you_mean(word, CHECKS)}; checks: {_names()}")
    return [name for name in CHECKS if name in words or not words]


def _names() -> str:
    return ", ".join(CHECKS)
