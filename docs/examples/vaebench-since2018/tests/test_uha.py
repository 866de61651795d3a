"""Uncorrected Hamiltonian annealing, beyond the contract of encoders: test_contract.py."""

import pytest
import torch
from torch import Tensor
from vaebench.encoders.hamiltonian import StepSizes
from vaebench.objective import evidence
from vaebench.selftest.oracles.gaussian import Z, gaussian, linear_gaussian, one_image

from vaebench_since2018 import uha
from vaebench_since2018.uha import AnnealedEncoder


def encoder(steps: int = 3, refreshment: float = 0.6) -> AnnealedEncoder:
    return AnnealedEncoder(
        gaussian().posterior, linear_gaussian(), StepSizes(Z, 0.3, 0.8), steps=steps, refreshment=refreshment
    )


def deviation(log_w: Tensor, log_p: Tensor) -> float:
    """Return (mean of exp(log_w - log_p) - 1) in standard errors."""
    ratio = (log_w - log_p).exp()
    return ((ratio.mean() - 1) / (ratio.std() / ratio.numel() ** 0.5)).item()


@torch.no_grad()
def test_control_weights_without_the_kinetic_energy_are_biased(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uha, "_kinetic_energy", lambda rho: torch.zeros(()))
    model, x = linear_gaussian(), one_image(1)
    log_w = evidence(model, encoder(), x, 40_000).log_weights()
    assert abs(deviation(log_w, model.log_evidence(x))) > 10


@torch.no_grad()
def test_more_steps_give_a_tighter_bound():
    model, x = linear_gaussian(), one_image(6_000)
    bounds = [evidence(model, encoder(steps), x, 1).log_weights().mean() for steps in (1, 4, 16)]
    plain = evidence(model, gaussian(), x, 1).log_weights().mean()
    assert plain < bounds[0] < bounds[1] < bounds[2] < model.log_evidence(x)[0]


@torch.no_grad()
def test_paths_back_give_an_unbiased_density():
    """The integral of E[exp(log_q_at(z))] over z is 1."""
    annealed, x = encoder(), one_image(1)
    encoded = annealed.encode(x)
    wide = torch.distributions.Normal(encoded.start.mean, 1.5)
    z = wide.sample((20_000,))
    log_ratio = annealed.log_q_at(encoded, z, samples=2) - wide.log_prob(z).sum(-1)
    assert abs(deviation(log_ratio, torch.zeros(()))) < 4


def test_temperatures_rise_between_zero_and_one():
    betas = encoder(4).temperatures()
    assert torch.allclose(betas, torch.tensor([0.2, 0.4, 0.6, 0.8]))


@pytest.mark.parametrize(("setting", "value"), [("steps", 0), ("refreshment", 1.0), ("refreshment", 0.0)])
def test_settings_out_of_range(setting: str, value: float):
    with pytest.raises(ValueError, match=f"^{setting} must be"):
        encoder(**{setting: value})  # pyright: ignore[reportArgumentType]
