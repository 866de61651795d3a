"""Objectives other than the plain bounds: exact values, and never in a reported bound."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaebench import bounds, experiment
from vaebench.config import compose
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.errors import UserError
from vaebench.model import GenerativeModel
from vaebench.nets.dense import MLP, BernoulliLikelihood, DenseDecoder, TrunkGaussian
from vaebench.objective import Objective, evidence
from vaebench.priors import StandardNormalPrior
from vaebench.records import RunFolder, read_metrics
from vaebench.train.losses import BoundLoss
from vaebench.train.schedules import StepSettings
from vaebench.train.session import train
from vaebench.train.updates import updates

pytestmark = pytest.mark.usefixtures("float64")

# The finite-state model: z in {0, 1}, p(z) = (.3, .7), p(x|z) = (.05, .4), q(z=1) = .39.
LOG_P_X = math.log(0.295)


def whole_population() -> Tensor:
    """100 log weights that hold each z as often as q does: sample means over them are exact expectations."""
    weight = [math.log(0.3 * 0.05 / 0.61)] * 61 + [math.log(0.7 * 0.4 / 0.39)] * 39
    return torch.tensor(weight).unsqueeze(-1)


@pytest.mark.parametrize(
    ("bound", "exact"),
    [
        (bounds.iwae, LOG_P_X),
        (bounds.elbo, -2.3895286242),
        (lambda log_w: bounds.renyi(log_w, -1), -0.8012448201),
        (lambda log_w: bounds.renyi(log_w, 0), -1.2207799226),
        (lambda log_w: bounds.renyi(log_w, 0.5), -1.7061161329),
        (lambda log_w: bounds.renyi(log_w, 2), -3.2327740339),
        (lambda log_w: bounds.tvo(log_w, [0, 0.25, 0.5, 0.75, 1]), -1.4679479152),
        (lambda log_w: bounds.tvo(log_w, [0, 0.25, 0.5, 0.75, 1], upper=True), -0.9962955298),
        (lambda log_w: bounds.tvo(log_w, torch.linspace(0, 1, 4001).tolist()), LOG_P_X),
        (lambda log_w: bounds.tvo(log_w, bounds.tvo_schedule(1, 0.5)), -2.3895286242),
        (lambda log_w: bounds.renyi(log_w, -math.inf), math.log(0.28 / 0.39)),
        (lambda log_w: bounds.ciwae(log_w, 0.3), 0.3 * -2.3895286242 + 0.7 * LOG_P_X),
    ],
)
def test_the_finite_state_table(bound: bounds.Bound, exact: float):
    assert bound(whole_population()).item() == pytest.approx(exact, abs=5e-4 if exact == LOG_P_X else 1e-9)


def test_the_tvo_schedule_is_even_in_the_logarithm():
    points = bounds.tvo_schedule(4, 0.008)
    assert points == pytest.approx([0, 0.008, 0.04, 0.2, 1])
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        bounds.tvo(whole_population(), [0, 0.5, 0.5, 1])


def small() -> tuple[GenerativeModel, GaussianEncoder, Tensor]:
    torch.manual_seed(0)
    model = GenerativeModel(StandardNormalPrior(2), DenseDecoder(MLP(2, [4], "tanh"), BernoulliLikelihood(), 6))
    return model, GaussianEncoder(TrunkGaussian(MLP(6, [4], "tanh"), 2)), torch.rand(5, 6).round()


@pytest.mark.parametrize(
    "objective",
    [
        Objective(bounds.elbo, kl_weight=4.0),
        Objective(bounds.elbo, free_bits=100.0),
        Objective(bounds.iwae, target=lambda log_w: bounds.renyi(log_w, -2)),
        Objective(bounds.iwae, target=lambda log_w: bounds.tvo(log_w, [0, 0.5, 1])),
    ],
)
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_what_is_maximised_never_leaks_into_the_reported_bound(objective: Objective, beta: float):
    model, encoder, x = small()
    torch.manual_seed(1)
    shown = BoundLoss(objective, model, encoder)(x, StepSettings(8, 0, beta))
    torch.manual_seed(1)
    drawn = evidence(model, encoder, x, 8)
    torch.testing.assert_close(shown.metrics["bound"], objective.bound(drawn.log_weights()).mean())
    torch.testing.assert_close(shown.metrics["objective"], -shown.value.detach())
    assert (shown.metrics["bound"] - shown.metrics["objective"]).abs() > 1e-3


def gradients(objective: Callable[..., tuple[Tensor, object]]) -> list[Tensor]:
    model, encoder, x = small()

    torch.manual_seed(1)
    value, _ = objective(model, encoder, x, 6)
    wanted = [*model.parameters(), *encoder.parameters()]
    return list(torch.autograd.grad(value.mean(), wanted))


def test_free_bits_leave_out_a_kl_below_the_allowance_and_keep_one_above():
    reconstruction = Objective(bounds.elbo, kl_weight=0.0)
    plain = Objective(bounds.elbo)
    for allowance, like in ((100.0, reconstruction), (1e-9, plain)):
        mine = gradients(Objective(bounds.elbo, free_bits=allowance))
        for one, other in zip(mine, gradients(like), strict=True):
            torch.testing.assert_close(one, other)
    assert any(not torch.allclose(a, b) for a, b in zip(gradients(plain), gradients(reconstruction), strict=True))


def overrides(tmp_path: Path, data: Path, *words: str) -> list[str]:
    small = ["latent_dim=2", "decoder.hidden=[8]", "trainer.epochs=1", "trainer.batch_size=2000", "trainer.threads=1"]
    quiet = ["trainer.progress=false", "trainer.image_every=0", "trainer.log_every=1", "estimator.k=2", "device=cpu"]
    return [*small, *quiet, "trainer.validation_k=2", f"output_dir={tmp_path}", f"data_dir={data}", *words]


def test_piwae_moves_each_part_by_its_own_bound(tmp_path: Path, default_data_dir: Path):
    """With M = 3 groups of K = 2, so that a mixed-up axis cannot hide."""
    torch.set_default_dtype(torch.float32)
    words = overrides(tmp_path, default_data_dir, "objective=piwae", "k=6", "objective.groups=3")
    built = experiment.build(words)
    assert built.objective.encoder_target is not None
    log_w = torch.randn(6, 4)
    torch.testing.assert_close(built.objective.maximised(log_w), bounds.iwae(log_w))
    by_hand = torch.stack([bounds.iwae(log_w[2 * m : 2 * m + 2]) for m in range(3)]).mean(0)
    torch.testing.assert_close(built.objective.for_encoder().maximised(log_w), by_hand)
    main, encoder = updates(built)
    x = built.data.observe(built.data.validation[:50])
    before = {name: p.detach().clone() for name, p in built.modules.named_parameters()}
    main.step(x, StepSettings(6, 0, 1.0), 0.0, with_norm=False)
    moved = {name for name, p in built.modules.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("model.")}
    encoder.step(x, StepSettings(6, 0, 1.0), 0.0, with_norm=False)
    moved = {name for name, p in built.modules.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)
    folder = train(compose(words))
    assert {"train/bound", "encoder/bound", "encoder/objective"} <= set().union(*read_metrics(RunFolder(folder)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective=miwae", "k=6"], "objective.groups must be >= 1 and divide the number of samples k=6, got 4"),
        (["objective=vr_max", "k=4", "objective.gradient=dreg"], "second derivatives"),
        (["objective=tvo", "k=4", "objective.gradient=stl"], "stl is biased"),
        (["objective=beta", "objective.gradient=dreg"], "objective.gradient=stl"),
        (["objective=tvo", "k=4", "objective.first=2.0"], "objective.first must be between 0 and 1, got 2.0"),
        (["objective=ciwae", "k=4", "objective.beta=1.5"], "objective.beta must be >= 0 and <= 1, got 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str, tmp_path: Path, default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UserError, match=message):
        experiment.build(overrides(tmp_path, default_data_dir, *words))
