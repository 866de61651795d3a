"""The same trained encoder, weighed with other inner samples: tau forced to q(psi|x), and psi shared by all draws."""

from collections.abc import Callable

import pytest
import torch
from toys import Mean, exact_reverse, gaussian, hamiltonian, learned, linear_gaussian, one_image, sivi, unbiased

from vaebench.encoders.base import Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.estimators.importance import log_likelihood
from vaebench.objective import evidence

pytestmark = pytest.mark.usefixtures("float64")


def test_without_its_tau_an_encoder_is_sivi_of_the_same_parameters():
    model, x, trained = linear_gaussian(), one_image(5), learned()
    rescored = trained.with_inner_samples(tau="prior")
    assert {id(p) for p in rescored.parameters()} < {id(p) for p in trained.parameters()}
    both = [log_likelihood(model, encoder, x, 7, 3, seed=1) for encoder in (rescored, sivi())]
    assert torch.equal(*both)
    # Control: with its tau it is another.
    assert (log_likelihood(model, trained, x, 7, 3, seed=1) - both[0]).abs().min() > 1e-4


@pytest.mark.parametrize("tau", ["learned", "prior"])
def test_draws_of_z_are_the_same(tau: str):
    x = one_image(4)
    draws = []
    for encoder in (learned(), learned().with_inner_samples(tau=tau)):  # pyright: ignore[reportArgumentType]
        torch.manual_seed(2)
        draws.append(encoder.draw(x, 3, inner_k=0).z)
    assert torch.equal(*draws)


def test_shared_psi_is_that_of_an_encoder_trained_so():
    model, x = linear_gaussian(), one_image(5)
    shared = [
        sivi(share_psi=True),
        sivi().with_inner_samples(share_psi=True),
        learned().with_inner_samples(tau="prior", share_psi=True),
    ]
    values = [log_likelihood(model, encoder, x, 9, 3, chunk=4, inner_chunk=2, seed=1) for encoder in shared]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    apart = log_likelihood(model, sivi(share_psi=True).with_inner_samples(share_psi=False), x, 9, 3, seed=1)
    assert (apart - values[0]).abs().min() > 1e-5


@pytest.mark.parametrize("share_psi", [False, True])
def test_every_weight_still_has_mean_p_of_x(share_psi: bool):
    model, x = linear_gaussian(), one_image(20_000)
    encoder = learned().with_inner_samples(tau="prior", share_psi=share_psi)
    with torch.no_grad():
        log_w = evidence(model, encoder, x, 3, inner_k=4).log_weights()
    mean = Mean.of((log_w - model.log_evidence(x)).exp().mean(0))
    assert mean.stderr < 0.01
    assert abs(mean.errors_above(1)) < 4


def test_bounds_are_in_their_order():
    """An exact tau is tighter than q(psi|x), whose own psi are tighter than shared ones; all lie below log p(x)."""
    model, x = linear_gaussian(), one_image(20_000)
    exact = exact_reverse()
    makes = (exact.with_inner_samples(tau="prior", share_psi=True), exact.with_inner_samples(tau="prior"), exact)
    shared, prior, tau = (log_likelihood(model, encoder, x, 10, 1, seed=1) for encoder in makes)
    # From the same draws of z.
    assert Mean.of(prior - shared).errors_above(0) > 4
    assert Mean.of(tau - prior).errors_above(0) > 4
    assert Mean.of(tau - model.log_evidence(x)).errors_above(0) < 0


@pytest.mark.parametrize("make", [gaussian, learned, sivi, unbiased, hamiltonian])
def test_what_changes_nothing_is_the_encoder_itself(make: Callable[[], Encoder]):
    encoder = make()
    assert encoder.with_inner_samples() is encoder


def test_more_that_changes_nothing():
    encoder, implicit = learned(), sivi()
    assert encoder.with_inner_samples(tau="learned", share_psi=False) is encoder
    assert implicit.with_inner_samples(tau="prior") is implicit
    uivi = unbiased()
    assert uivi.with_inner_samples(tau="prior") is uivi
    assert isinstance(uivi.with_inner_samples(share_psi=True), HierarchicalEncoder)


@pytest.mark.parametrize(
    ("make", "asked", "reason"),
    [
        (gaussian, {"tau": "prior"}, "no inner samples psi"),
        (hamiltonian, {"share_psi": True}, "no inner samples psi"),
        (sivi, {"tau": "learned"}, "no learned tau"),
        (unbiased, {"tau": "learned"}, "no learned tau"),
        (learned, {"share_psi": True}, "cannot be shared"),
        (learned, {"tau": "learned", "share_psi": True}, "cannot be shared"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Encoder], asked: dict[str, object], reason: str):
    with pytest.raises(ValueError, match=reason):
        make().with_inner_samples(**asked)  # pyright: ignore[reportArgumentType]
