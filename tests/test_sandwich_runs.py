"""The sandwich and the BDMC check of annealing, as a user meets them."""

from pathlib import Path

import pytest
from test_every_config import ONE_STEP

from vaebench.config import compose
from vaebench.errors import UserError
from vaebench.evaluate.run import evaluate
from vaebench.records import ResultRecord, RunFolder, read_results
from vaebench.train.session import train

QUIET = ["progress=false", "device=cpu"]
FEW = ["estimator.images=6", "estimator.k=4", "estimator.inner_k=3", *QUIET]
SHORT = ["estimator.temperatures=15", "estimator.chains=4", "estimator.leapfrog=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> dict[str, Path]:
    """Return run folders of models that have seen one batch, by encoder."""
    common = [*ONE_STEP, f"output_dir={tmp_path_factory.mktemp('runs')}", f"data_dir={default_data_dir}"]
    return {
        encoder: train(compose([f"encoder={encoder}", *common, "trainer.evaluate=false"]))
        for encoder in ("gaussian", "iwhvi", "avb_ac")
    }


Sided = dict[tuple[str, str], ResultRecord]


def sided(records: list[ResultRecord]) -> Sided:
    """Return records by quantity and direction."""
    found = {(record.quantity, record.direction.value): record for record in records}
    assert len(found) == len(records)
    return found


def sandwiched(run: Path, *words: str) -> Sided:
    return sided(evaluate(run, ["estimator=sandwich", *FEW, *words]))


BOTH = ("lower_bound", "upper_bound")


def test_a_hierarchical_encoder_has_two_sides(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    found = sandwiched(runs["iwhvi"])
    two = {"log q(z|x)", "KL(q(z|x)||p(z))", "ELBO", "I_q(z;psi|x)", "I_q(x;z)"}
    expected = {(quantity, side) for quantity in two for side in BOTH}
    expected |= {("log p(x)", "lower_bound"), ("KL(q(z|x)||p(z|x))", "lower_bound"), ("q-gap", "upper_bound")}
    assert found.keys() == expected
    assert all((record.k, record.inner_k, record.n_images) == (4, 3, 6) for record in found.values())
    rate = [found["KL(q(z|x)||p(z))", side].mean for side in BOTH]
    log_q = [found["log q(z|x)", side].mean for side in BOTH]
    gap = found["q-gap", "upper_bound"].mean
    assert rate[1] - rate[0] == pytest.approx(gap, abs=1e-4)
    assert log_q[1] - log_q[0] == pytest.approx(gap, abs=1e-4)
    divergence = found["log p(x)", "lower_bound"].mean - found["ELBO", "upper_bound"].mean
    assert found["KL(q(z|x)||p(z|x))", "lower_bound"].mean == pytest.approx(divergence, abs=1e-4)
    assert found["I_q(x;z)", "lower_bound"].settings == {"aggregate": 6}
    assert found["log q(z|x)", "upper_bound"].extra["draw_stderr"] > 0
    lines = capsys.readouterr().out
    assert "test KL(q(z|x)||p(z)) >= " in lines
    assert "test KL(q(z|x)||p(z)) <= " in lines
    stored = read_results(RunFolder(runs["iwhvi"]))
    assert all(record in stored for record in found.values())


def test_a_gaussian_has_one(runs: dict[str, Path]):
    found = sandwiched(runs["gaussian"])
    exact = {quantity for quantity, direction in found if direction == "exact"}
    assert exact == {"log q(z|x)", "KL(q(z|x)||p(z))", "ELBO"}
    assert {quantity for quantity, direction in found if direction == "upper_bound"} == {"I_q(x;z)"}
    assert all(record.inner_k is None for record in found.values())


def test_an_encoder_without_a_density_is_refused_or_an_estimate(runs: dict[str, Path]):
    with pytest.raises(UserError, match="nothing bounds its log q"):
        sandwiched(runs["avb_ac"])
    found = sandwiched(runs["avb_ac"], "estimator.proposal=own")
    assert {direction for _, direction in found} == {"estimate"}
    assert all(record.settings["proposal"] == "own" for record in found.values())
    # Annealing asks nothing of log q: what it says of log p(x) is a bound all the same.
    annealed = sandwiched(runs["avb_ac"], "estimator.proposal=own", *SHORT, "estimator.initial=encoder")
    assert annealed["log p(x)", "lower_bound"].settings["initial"] == "moments"
    assert ("KL(q(z|x)||p(z|x))", "estimate") in annealed


@pytest.mark.parametrize("annealed", [False, True])
def test_simulated_images_have_both_sides_of_the_evidence(runs: dict[str, Path], annealed: bool):
    found = sandwiched(runs["iwhvi"], "estimator.split=simulated", *(SHORT if annealed else []))
    assert {"log p(x)", "KL(q(z|x)||p(z|x))", "I_p(x;z)"} <= {
        quantity for quantity, side in found if side == "upper_bound"
    }
    assert ("I_q(x;z)", "lower_bound") not in found
    record = found["log p(x)", "upper_bound"]
    assert (record.split, record.protocol) == ("simulated", "own-model/seed0")
    assert record.settings.get("evidence") == ("BDMC" if annealed else None)
    assert "evidence" not in found["log q(z|x)", "upper_bound"].settings
    width = [found[quantity, side].mean for quantity in ("log p(x)", "I_p(x;z)") for side in BOTH]
    assert width[1] - width[0] == pytest.approx(width[3] - width[2], abs=1e-4)


def test_annealing_takes_the_place_of_the_weights(runs: dict[str, Path]):
    found = sandwiched(runs["gaussian"], *SHORT)
    (ais,) = evaluate(
        runs["gaussian"], ["estimator=ais", "estimator.images=6", *SHORT, *QUIET, "estimator.initial=encoder"]
    )
    assert found["log p(x)", "lower_bound"].mean == pytest.approx(ais.mean, abs=1e-3)
    assert found["KL(q(z|x)||p(z|x))", "lower_bound"].settings["evidence"] == "AIS"


def test_batches_do_not_show(runs: dict[str, Path]):
    whole = sandwiched(runs["iwhvi"], "estimator.aggregate=4")
    for words in (["estimator.batch=2"], ["estimator.batch=4"]):
        (run := runs["iwhvi"] / "evaluations").rename(runs["iwhvi"] / f"kept{words[0][-1]}")
        again = sandwiched(runs["iwhvi"], "estimator.aggregate=4", *words)
        assert run.exists()
        assert {key: record.mean for key, record in again.items()} == pytest.approx(
            {key: record.mean for key, record in whole.items()}, abs=1e-4
        )
    repeated = sandwiched(runs["iwhvi"], "estimator.aggregate=4", "estimator.repeats=2")
    assert all(record.repeats == 2 for record in repeated.values())
    # 6 images in groups of at most 4: two of three.
    assert repeated["I_q(x;z)", "lower_bound"].settings["aggregate"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["estimator.split=simulated", "estimator.images=null"], "must be the number of images to simulate"),
        (["estimator.initial=foo", "estimator.temperatures=5"], r"estimator\.initial"),
        (["estimator.aggregate=-1"], r"estimator\.aggregate"),
        (["estimator.temperatures=many"], "temperatures must be a whole number or null, got many"),
        (["estimator.tau=prior"], "tau"),
    ],
)
def test_wrong_settings(runs: dict[str, Path], words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        sandwiched(runs["gaussian"], *words)


def test_other_estimators_have_no_simulated_split(runs: dict[str, Path]):
    with pytest.raises(UserError, match="unknown split=simulated"):
        evaluate(runs["gaussian"], ["estimator=iwae", "estimator.split=simulated", *QUIET])


def test_bidirectional_monte_carlo_certifies_annealing(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    words = ["estimator=ais", "estimator.images=6", *SHORT, *QUIET]
    (record,) = evaluate(runs["gaussian"], [*words, "estimator.bdmc=4", "estimator.batch=3"])
    assert record.n_images == 6
    assert record.extra["bdmc_images"] == 4
    line, note = capsys.readouterr().out.splitlines()[-2:]
    assert line.startswith("test log p(x) >= ")
    assert f"bounds differ by {record.extra['bdmc_gap']:.2f} +- {record.extra['bdmc_gap_stderr']:.2f} nats" in note
    # The same numbers as an evaluation of its own, and the estimate is none the other for it. (In the same batches: a
    # step of a chain is taken or not, so that rounding can tell.)
    words.append("estimator.batch=3")
    own = ["estimator=bdmc", "estimator.images=4", "estimator.batch=3", *SHORT, *QUIET]
    lower, upper = evaluate(runs["gaussian"], own)
    assert record.extra["bdmc_gap"] == pytest.approx(upper.mean - lower.mean, abs=1e-3)
    (bare,) = evaluate(runs["gaussian"], [*words, "estimator.bdmc=null"])
    assert bare.mean == pytest.approx(record.mean, abs=1e-3)
    assert "bdmc_gap" not in bare.extra
    assert "BDMC" not in bare.note
    with pytest.raises(UserError, match=r"estimator\.bdmc"):
        evaluate(runs["gaussian"], [*words, "estimator.bdmc=1"])
