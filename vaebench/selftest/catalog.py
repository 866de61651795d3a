"""Which checks there are; free of torch."""

from collections.abc import Sequence

from vaebench.errors import UserError, did_you_mean

__all__ = ["CHECKS", "chosen"]

CHECKS = {
    "finite_states": "every bound by enumeration on a model with two states; psi_0 left out is caught",
    "linear_gaussian": "weights without variance at the exact posterior; ELBO = log p(x) - KL",
    "semi_implicit": "the gaps of HVM and SIVI, and log q(z|x) from an exact reverse model",
    "unbiased_weights": "E[w] = p(x) for every family of encoders; psi_0 left out and a wrong count are caught",
    "asymptotics": "the gap of IWAE against quadrature, and against chi^2(p(z|x) || q) / 2K",
    "gradients": "reparam and DReG against the exact gradient; STL at K = 5 is caught",
    "annealing": "AIS from below and BDMC from above on annealed Gaussians; a start off the posterior is caught",
    "discriminator": "T* = log q(z|x) - log p(z) and its loss; swapped labels are caught",
    "flows": "every flow's log-determinant and inverse against autograd; no steps = the Gaussian",
    "chunks": "estimates of log p(x) do not depend on chunk, batch or a pause",
    "keyed_noise": "a number for each key, the same on every device, and normal",
    "precision": "float32 densities, also under bf16 networks",
    "checkpoints": "what was saved is what is loaded; altered and cut files are refused",
    "resume": "three training steps with a stop in between are bitwise three steps",
}
"""Each check, a module of :mod:`vaebench.selftest.checks`, and a line about it."""


def chosen(words: Sequence[str]) -> list[str]:
    """Return the checks that ``words`` name, in the order of ``CHECKS``; all of them for none.

    Raises:
        UserError: there is no such check.
    """
    for word in words:
        if word not in CHECKS:
            hint = did_you_mean(word, CHECKS)
            raise UserError(f"there is no check '{word}'{hint}; checks: {', '.join(CHECKS)}")
    return [name for name in CHECKS if name in words or not words]
