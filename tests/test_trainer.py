"""The trainer: what it reports, keeps, refuses and stops at."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from vaebench import bounds, experiment
from vaebench.config import compose, run_folder
from vaebench.distributions import standard_normal
from vaebench.encoders.base import AuxiliaryLoss, BuildContext, Direction, Draw, Encoder
from vaebench.errors import RunFailed
from vaebench.objective import evidence
from vaebench.records import RunFolder, read_metrics, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.registry import ENCODERS
from vaebench.train import session, update, validation
from vaebench.train.losses import BoundLoss
from vaebench.train.schedules import StepSettings
from vaebench.train.session import train
from vaebench.train.trainer import Progress
from vaebench.train.update import Loss, Update
from vaebench.train.updates import updates

SMALL = [
    "latent_dim=2",
    "decoder.hidden=[8]",
    "trainer.batch_size=1000",
    "trainer.epochs=2",
    "trainer.log_every=1",
    "trainer.validation_k=2",
    "trainer.image_every=0",
    "trainer.progress=false",
    "trainer.threads=1",
    "estimator.k=2",
    "device=cpu",
]


@pytest.fixture
def overrides(tmp_path: Path, default_data_dir: Path) -> list[str]:
    return [*SMALL, f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]


def metrics(folder: Path, key: str) -> list[float]:
    return [line[key] for line in read_metrics(RunFolder(folder)) if key in line]


def test_what_is_logged_is_the_bound_itself(overrides: list[str]):
    """Also during a KL warm-up, and with a gradient estimator whose backward pass is not the bound's."""
    built = experiment.build([*overrides, "encoder=hvm", "objective=iwae", "k=5", "objective.gradient=dreg"])
    loss = BoundLoss(built.objective, built.model, built.encoder)
    x = built.data.observe(built.data.validation[:50])
    torch.manual_seed(1)
    shown = loss(x, StepSettings(k=5, inner_k=0, beta=0.25)).metrics
    torch.manual_seed(1)
    drawn = evidence(built.model, built.encoder, x, 5)
    log_w = drawn.log_weights()
    torch.testing.assert_close(shown["bound"], bounds.iwae(log_w).mean())
    torch.testing.assert_close(shown["objective"], bounds.iwae(drawn.log_weights(0.25)).mean())
    torch.testing.assert_close(shown["reconstruction"], drawn.log_likelihood.mean())
    torch.testing.assert_close(shown["kl"], (drawn.log_q - drawn.log_prior).mean())
    surrogate = (log_w.softmax(0) * log_w).sum(0).mean()
    assert (surrogate - shown["bound"]).item() > 0.01  # the control: the surrogate would flatter


def poison(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of a step nan."""
    original, taken = BoundLoss.__call__, [0]

    def poisoned(self: BoundLoss, x: Tensor, settings: StepSettings) -> Loss:
        taken[0] += 1
        loss = original(self, x, settings)
        return loss._replace(value=loss.value * float("nan")) if taken[0] == step else loss

    monkeypatch.setattr(BoundLoss, "__call__", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run(overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    config, original = compose([*overrides, "trainer.epochs=3"]), BoundLoss.__call__
    poison(6, monkeypatch)
    with pytest.raises(RunFailed, match=r"not finite at step 6 \(epoch 2\).*last\.pt.*optimizer\.lr"):
        train(config)
    folder = run_folder(config)
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "step 6" in status["error"]
    kept = Checkpoints(folder / "checkpoints").load().state
    assert kept["progress"]["step"] == 4
    assert all(value.isfinite().all() for value in kept["modules"].values())
    # Once the cause is gone, the same command resumes.
    monkeypatch.setattr(BoundLoss, "__call__", original)
    train(config)
    assert RunFolder(folder).read_status().state == "finished"


@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_the_message_names_the_epoch_of_the_step(
    step: int, epoch: int, overrides: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Four steps are an epoch; here losses are checked at its end, after the next epoch has begun to count."""
    poison(step, monkeypatch)
    with pytest.raises(RunFailed, match=rf"not finite at step {step} \(epoch {epoch}\)"):
        train(compose([*overrides, "trainer.log_every=1000"]))


def validations(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make these the validation log-likelihoods of a run."""
    left: Iterator[float] = iter(values)
    monkeypatch.setattr(session, "validate", lambda *_: next(left))


def test_the_best_weights_are_those_of_the_best_validation(overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    validations([-3.0, -1.0, -2.0], monkeypatch)
    folder = train(compose([*overrides, "trainer.epochs=3"]))
    best = Checkpoints(folder / "checkpoints").load("best").state
    assert (best["epoch"], best["validation_log_likelihood"]) == (2, -1.0)
    assert read_results(RunFolder(folder))[0].epoch == 2


def stopped_early(folder: Path) -> dict[str, int] | None:
    return json.loads((folder / "manifest.json").read_text()).get("stopped_early")


def test_early_stopping_counts_validations_without_gain(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    validations([-3.0, -1.0, -2.0, -2.0, 0.0], monkeypatch)
    words = [*overrides, "trainer.epochs=9", "trainer.patience=2"]
    folder = train(compose(words))
    assert metrics(folder, "validation/log_likelihood") == [-3.0, -1.0, -2.0, -2.0]
    assert Checkpoints(folder / "checkpoints").load().state["progress"]["stopped"]
    line = "stopped early at epoch 4 of 9: no gain in the last 2 validations (trainer.patience=2)"
    assert line in capsys.readouterr().out.splitlines()
    assert stopped_early(folder) == {"epoch": 4, "of": 9}
    train(compose(words))
    assert "this run is finished (stopped early at epoch 4 of 9); its results:" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("values", [[-3.0, -1.0, -0.5], [-3.0, -1.0, -2.0]])
def test_control_a_run_to_its_end_did_not_stop_early(
    values: list[float], overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Not even if the last validation is the one that would have stopped it."""
    validations(values, monkeypatch)
    folder = train(compose([*overrides, "trainer.epochs=3", "trainer.patience=1"]))
    assert stopped_early(folder) is None
    assert "stopped early" not in capsys.readouterr().out


def test_a_stop_is_marked_also_if_the_evaluation_after_it_was_interrupted(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    validations([-1.0, -2.0], monkeypatch)
    config = compose([*overrides, "trainer.epochs=9", "trainer.patience=1"])

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "estimate", interrupted)
        with pytest.raises(SystemExit):
            train(config)
        assert f"state saved in {run_folder(config)}; run the same command to resume" in capsys.readouterr().out
        validations([-1.0, -2.0], patch)
        with pytest.raises(SystemExit):
            train(config, fresh=True)
    # The same command would set this run aside.
    how = f"run `vaebench train --resume {run_folder(config)}` to resume"
    assert how in capsys.readouterr().out
    folder = train(config)
    said = capsys.readouterr().out.splitlines()
    assert "resuming from epoch 2, step 8" in said
    assert "stopped early at epoch 2 of 9: no gain in the last validation (trainer.patience=1)" in said
    assert stopped_early(folder) == {"epoch": 2, "of": 9}
    assert RunFolder(folder).read_status().state == "finished"


@pytest.mark.parametrize(
    "schedule",
    [
        ["trainer.kl_warmup=3"],
        ["trainer.k_schedule={0:1,3:2}"],
        ["encoder=iwhvi", "trainer.inner_k_schedule={0:0,3:1}"],
        ["encoder=hvm", "encoder.tau_warmup=3"],
    ],
)
def test_early_stopping_counts_from_the_end_of_every_schedule(
    schedule: list[str], overrides: list[str], monkeypatch: pytest.MonkeyPatch
):
    """A gain is one over the validations since the end; the best weights may still come from before it."""
    values = [-3.0, -1.0, -2.0, -1.5, -1.7, 0.0]
    validations(values, monkeypatch)
    words = [*overrides, "trainer.epochs=6", "trainer.patience=1"]
    folder = train(compose([*words, *schedule]))
    assert metrics(folder, "validation/log_likelihood") == values[:5]
    assert Checkpoints(folder / "checkpoints").load("best").state["epoch"] == 2
    validations(values, monkeypatch)
    control = train(compose([*words, schedule[0]] if "encoder" in schedule[0] else words))
    assert metrics(control, "validation/log_likelihood") == values[:3]


def doubts(folder: Path) -> list[str]:
    return json.loads((folder / "manifest.json").read_text()).get("doubts", [])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([-90.0, -91.0, -90.5], ["the validation log-likelihood never rose above that of epoch 1"]),
        (
            [-900.0, -800.0, -700.0],
            ["the validation log-likelihood -700 is below -205.753, that of independent pixels"],
        ),
        ([-100.0, -90.0, -200.0], ["the training broke down after its best epoch 2"]),
        ([-100.0, -90.0, -200.0, -89.0], []),
        ([-100.0, -90.0, -170.0], []),
        ([-3.0, -2.0, -11.0], []),
        ([-90.0, -91.0, -89.0], []),
        ([-90.0], []),
    ],
)
def test_a_useless_model_is_told_at_the_end(
    values: list[float],
    told: list[str],
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    validations(values, monkeypatch)
    folder = train(compose([*overrides, f"trainer.epochs={len(values)}", "trainer.evaluate=false"]))
    assert [doubt[: len(line)] for doubt, line in zip(doubts(folder), told, strict=True)] == told
    assert [line[: 9 + len(told[0])] for line in capsys.readouterr().out.splitlines() if "warning" in line] == [
        f"warning: {line}" for line in told
    ]


def test_a_breakdown_is_told_when_it_happens(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    validations([-100.0, -90.0, -200.0, -5000.0, -90.5, -80.0, -300.0], monkeypatch)
    train(compose([*overrides, "trainer.epochs=7", "trainer.evaluate=false", "trainer.progress=true"]))
    told = [line for line in capsys.readouterr().out.splitlines() if "log-likelihood fell" in line]
    assert [line.partition(": the training")[0] for line in told] == [
        "warning: the validation log-likelihood fell from -90.00 (epoch 2) to -200.00 (epoch 3)",
        "warning: the validation log-likelihood fell from -80.00 (epoch 6) to -300.00 (epoch 7)",
    ]


def test_the_likelihood_of_independent_pixels(overrides: list[str]):
    data = experiment.build(overrides).data
    mean = (data.train.double().mean(0).div(255) * len(data.train) + 1) / (len(data.train) + 2)
    direct = torch.distributions.Bernoulli(mean.float()).log_prob(data.observe(data.validation)).sum(-1).mean()
    assert validation.log_likelihood_of_pixel_means(data) == pytest.approx(direct.item(), abs=1e-2)


def test_a_run_without_a_finite_validation_fails(overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    validations([float("nan"), float("-inf")], monkeypatch)
    with pytest.raises(RunFailed, match=r"no validation log-likelihood of 2 epochs was finite.*optimizer\.lr"):
        train(compose(overrides))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ([], r"with trainer\.microbatch=500 to resume"),
        (["trainer.microbatch=300"], r"with trainer\.microbatch=150 to resume"),
        (["trainer.microbatch=1"], "a device with more memory"),
        (["objective=free_bits"], r"a new run with trainer\.batch_size=500"),
    ],
)
def test_out_of_memory_names_a_setting(
    settings: list[str], advice: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
):
    original = update.Update.step

    def exhausted(self: Update, *args: Any, **kwargs: Any) -> Loss:
        if self.optimizer.state:  # from the second step on
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(update.Update, "step", exhausted)
    config = compose([*overrides, *settings])
    with pytest.raises(RunFailed, match=rf"^out of memory at step 2 on cpu; nothing was saved\..*{advice}"):
        train(config)
    assert RunFolder(run_folder(config)).read_status().state == "failed"


def test_a_run_is_trained_again_from_the_start(overrides: list[str], capsys: pytest.CaptureFixture[str]):
    words = [*overrides, "trainer.epochs=1"]
    first = train(compose(words))
    before = (first / "metrics.jsonl").read_bytes()
    again = train(compose(words), fresh=True)
    assert again == first
    kept = first.with_name(f"{first.name}.replaced-1")
    assert f"the earlier run is kept in {kept}" in capsys.readouterr().out.splitlines()
    assert (kept / "metrics.jsonl").read_bytes() == before
    assert metrics(again, "train/bound") == metrics(kept, "train/bound")
    assert RunFolder.find([first.parent]) == [RunFolder(first)]


def test_a_checkpoint_of_an_earlier_version_resumes():
    now = asdict(Progress(epoch=3, best=-5.0, best_epoch=2, peak=-5.0, without_gain=1))
    earlier = {key: value for key, value in now.items() if key != "peak"}
    assert asdict(Progress.restored(earlier)) == asdict(Progress.restored(now)) == now


def test_validation_does_not_follow_the_schedule_of_k(overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, int]] = []
    original = validation.log_likelihoods

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.append((args[4].k, args[4].inner_k))
        return original(*args, **kwargs)

    monkeypatch.setattr(validation, "log_likelihoods", watched)
    schedules = ["trainer.k_schedule={0:1,1:3}", "trainer.inner_k_schedule={0:0,1:4}"]
    train(compose([*overrides, "encoder=iwhvi", *schedules]))
    assert asked == [(2, 4), (2, 4)]


def test_clipping_bounds_the_gradient_and_shows_it_unclipped(overrides: list[str]):
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)

    def loss(x: Tensor, settings: StepSettings) -> Loss:
        del x, settings
        return Loss(10 * (parameter * parameter.detach()).sum(), {})

    stepped = Update("main", loss, optimizer, lambda epoch: 1.0, clip_norm=1.0)
    shown = stepped.step(torch.zeros(1), StepSettings(1, 0, 1.0), 0.0, with_norm=True).metrics
    assert shown["gradient_norm"].item() == pytest.approx(50.0)
    torch.testing.assert_close(parameter.detach(), torch.tensor([3.0, 4.0]) * (1 - 1 / 5))


def test_a_limit_that_no_gradient_reaches_changes_no_bit(overrides: list[str]):
    losses = [
        metrics(
            train(compose([*overrides, "encoder=hvm", "trainer.evaluate=false", f"trainer.clip_norm={limit}"])),
            "train/bound",
        )
        for limit in ("null", "1e6", "1")
    ]
    assert losses[0] == losses[1] != losses[2]  # the last is the control


def test_the_learning_rate_is_the_schedules_at_every_step():
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=123.0)
    stepped = Update("main", lambda x, settings: Loss(parameter, {}), optimizer, lambda epoch: epoch)
    for epoch in (0.0, 0.5, 2.0):
        stepped.step(torch.zeros(1), StepSettings(1, 0, 1.0), epoch, with_norm=False)
    assert parameter.item() == pytest.approx(-2.5)


RATES = {
    "one loss": ["encoder=iwhvi"],
    "a loss of its own": ["objective=piwae", "k=4", "objective.groups=2"],
    "a discriminator": ["encoder=avb", "encoder.discriminator_lr=1e-3"],
}


@pytest.mark.parametrize("words", RATES.values(), ids=RATES)
def test_the_encoder_learns_at_its_own_rate(words: list[str], overrides: list[str]):
    # The first step of Adam is the learning rate, whatever the gradient.
    rates = ["optimizer.lr=1e-3", "optimizer.encoder_lr=2e-5", "optimizer.schedule=cosine", "optimizer.eps=1e-30"]
    assert steps_of_rates([*overrides, *words, *rates]) == (1e-3, 2e-5, 1e-3)
    assert steps_of_rates([*overrides, *words, *rates, "optimizer.encoder_lr=null"]) == (1e-3, 1e-3, 1e-3), "control"


def steps_of_rates(words: list[str]) -> tuple[float, ...]:
    """Return the largest change in a first step of the decoder, the encoder and the encoder's discriminator."""
    built = experiment.build(words)
    rivals = {id(p) for auxiliary in built.encoder.auxiliary_losses().values() for p in auxiliary.parameters}
    own = [p for p in built.encoder.parameters() if id(p) not in rivals]
    others = [p for p in built.encoder.parameters() if id(p) in rivals] or list(built.model.parameters())
    watched = [list(built.model.parameters()), own, others]
    before = [[p.detach().clone() for p in group] for group in watched]
    x = built.data.observe(built.data.train[:500])
    for one in updates(built):
        one.step(x, StepSettings(built.config.k_by_epoch[0], 0, 1.0), 0.0, with_norm=False)
    pairs = [zip(group, old, strict=True) for group, old in zip(watched, before, strict=True)]
    return tuple(float(f"{max((a - b).abs().max().item() for a, b in pair):.2g}") for pair in pairs)


class WithRival(Encoder):
    """An encoder with an auxiliary loss, as an adversarial one has."""

    direction: ClassVar[Direction] = Direction.EXACT
    calls: ClassVar[list[int]] = []

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(latent_dim))
        self.rival = nn.Parameter(torch.ones(latent_dim))

    @classmethod
    def build(cls, context: BuildContext) -> "WithRival":
        return cls(context.latent_dim)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def sample(
        self,
        encoded: Tensor,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        q = standard_normal(len(self.mean), encoded)
        z = q.rsample((k, len(encoded)))
        # The rival takes part in the value; the main loss must leave its parameters alone all the same.
        return Draw(z + self.mean, q.log_prob(z) + 0 * self.rival.sum())

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        def loss(x: Tensor) -> Tensor:
            self.calls.append(len(x))
            return self.rival.square().sum()

        return {"rival": AuxiliaryLoss([self.rival], loss, repeats=3)}


def test_auxiliary_losses_have_their_own_optimiser_and_repeats(overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ENCODERS, "gaussian", WithRival.build)
    WithRival.calls.clear()
    folder = train(compose(overrides))
    assert len(WithRival.calls) == 2 * 4 * 3
    state = Checkpoints(folder / "checkpoints").load().state
    assert set(state["optimizers"]) == {"main", "rival"}
    # 24 steps of Adam at 1e-3 against a constant sign: had the main loss stepped too, there would be 32.
    rival = state["modules"]["encoder.rival"]
    torch.testing.assert_close(rival, torch.full_like(rival, 1 - 24e-3), atol=1e-4, rtol=0)
    assert metrics(folder, "rival/loss")


def test_averaged_weights_are_the_ones_validated_and_kept(overrides: list[str]):
    folder = train(compose([*overrides, "trainer.ema=0.5"]))
    checkpoints = Checkpoints(folder / "checkpoints")
    last, best = checkpoints.load().state, checkpoints.load("best").state
    name = "model.decoder.affine.bias"
    torch.testing.assert_close(last["averaged"][f"module.{name}"], best["modules"][name])
    assert not torch.equal(last["modules"][name], best["modules"][name])


def test_the_gradient_norm_is_that_of_all_gradients():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert update.gradient_norm(parameters).item() == pytest.approx(7.0)
