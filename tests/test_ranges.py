"""Ranges of an estimator's settings: every documented value works, every other one is refused with key and value."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_by
from test_every_config import ONE_STEP

from vaebench.config import compose
from vaebench.config.schema import EstimatorSettings
from vaebench.errors import UserError
from vaebench.evaluate.job import Estimate, EstimatorInputs, job_for
from vaebench.evaluate.ranges import LEAST, POSITIVE, check_ranges
from vaebench.evaluate.run import estimate
from vaebench.experiment import Experiment, build
from vaebench.records import ResultRecord, RunFolder
from vaebench.signals import Interruption

ESTIMATORS = ("iwae", "diwhvi", "ais", "bdmc", "gaps", "sandwich")
FIELDS = {f.name for f in fields(EstimatorSettings)}


def changed(settings: EstimatorSettings, **changes: Any) -> EstimatorSettings:
    """Return settings without the checks of the command line."""
    own = {key: value for key, value in changes.items() if key not in FIELDS}
    common = {key: value for key, value in changes.items() if key in FIELDS}
    return replace(settings, **common, arguments=settings.arguments | own)


def settings_with(key: str) -> EstimatorSettings:
    """Return the settings of an estimator that has this key."""
    for name in ESTIMATORS:
        settings = compose([f"estimator={name}"]).estimator
        if key in FIELDS or key in settings.arguments:
            return settings
    raise AssertionError(f"no estimator has the setting {key}")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_defaults_are_valid_and_every_number_has_a_range(name: str):
    settings = compose([f"estimator={name}"]).estimator
    check_ranges(settings)
    values = {**vars(settings), **settings.arguments}
    numbers = {key for key, value in values.items() if type(value) in (int, float)}
    assert numbers <= LEAST.keys() | POSITIVE


@pytest.mark.parametrize(
    ("key", "least"),
    [
        ("k", 1),
        ("inner_k", 0),
        ("images", 2),
        ("image_seed", 0),
        ("repeats", 1),
        ("batch", 1),
        ("chunk", 1),
        ("seed", 0),
        ("temperatures", 0),
        ("chains", 1),
        ("leapfrog", 1),
        ("bdmc", 2),
        ("aggregate", 0),
        ("draws", 1),
        ("steps", 1),
        ("fit_draws", 1),
    ],
)
def test_whole_numbers(key: str, least: int):
    settings = settings_with(key)
    for value in (least, least + 1, 1000):
        check_ranges(changed(settings, **{key: value}))
    for value in (least - 1, -7):
        with pytest.raises(UserError, match=rf"^estimator\.{key} must be >= {least}, got {value}$"):
            check_ranges(changed(settings, **{key: value}))
    with pytest.raises(UserError, match=rf"^estimator\.{key} must be a whole number.*, got many$"):
        check_ranges(changed(settings, **{key: "many"}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("processes", 0, "processes must be >= 1, got 0"),
        ("seed", 2**32, "estimator.seed must be <= 4294967295, got 4294967296"),
        ("lr", 0.0, "estimator.lr must be > 0, got 0.0"),
        ("finetune_lr", -0.1, "estimator.finetune_lr must be > 0, got -0.1"),
        ("chains", None, "estimator.chains must be a whole number, got null"),
        ("aggregate", True, "estimator.aggregate must be a whole number, got True"),
    ],
)
def test_other_wrong_values(key: str, value: object, message: str):
    with pytest.raises(UserError) as refusal:
        check_ranges(changed(settings_with(key), **{key: value}))
    assert str(refusal.value) == message


def test_null_is_a_number_of_temperatures_for_the_sandwich_alone():
    check_ranges(changed(compose(["estimator=sandwich"]).estimator, temperatures=None))
    with pytest.raises(UserError, match="temperatures must be a whole number, got null"):
        check_ranges(changed(compose(["estimator=ais"]).estimator, temperatures=None))


NO_TORCH = """
import sys
from vaebench.config import compose
from vaebench.evaluate.ranges import check_ranges
check_ranges(compose(["estimator=ais"]).estimator)
assert "torch" not in sys.modules
"""


def test_a_command_can_check_ranges_without_torch():
    subprocess.run([sys.executable, "-c", NO_TORCH], check=True)


# In a run -------------------------------------------------------------------------------------------------


def experiment(default_data_dir: Path, name: str, **changes: Any) -> Experiment:
    words = [word for word in ONE_STEP if not word.startswith("estimator.")]
    config = compose([*words, f"estimator={name}", f"data_dir={default_data_dir}"])
    return build(replace(config, estimator=changed(config.estimator, images=3, **changes)))


def test_a_job_is_refused_before_it_starts(default_data_dir: Path):
    run = experiment(default_data_dir, "ais", chains=0)
    with pytest.raises(UserError, match=r"estimator\.chains must be >= 1, got 0"):
        job_for(EstimatorInputs.of(run))


@pytest.mark.parametrize("training", [False, True])
def test_a_job_leaves_the_mode_of_the_networks(training: bool, default_data_dir: Path):
    """The sandwich tries a blank image in evaluation mode to learn which numbers there will be."""
    run = experiment(default_data_dir, "sandwich")
    run.modules.train(training)
    assert "elbo.value" in job_for(EstimatorInputs.of(run)).rows
    assert all(module.training is training for module in (run.model, run.encoder))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ais", {"temperatures": 0, "bdmc": None}),
        ("ais", {"temperatures": 0, "bdmc": 2, "chains": 1, "leapfrog": 1}),
        ("bdmc", {"temperatures": 0}),
        ("sandwich", {"aggregate": 0, "k": 1, "inner_k": 0}),
        ("sandwich", {"aggregate": 1, "k": 2, "temperatures": 0}),
        ("iwae", {"k": 1, "inner_k": 0, "chunk": 1, "batch": 1}),
    ],
)
def test_the_smallest_values_give_results(name: str, changes: dict[str, Any], default_data_dir: Path, tmp_path: Path):
    """No temperature is importance sampling from the prior, whose weights are often too uneven to be reported."""
    run = experiment(default_data_dir, name, **changes)
    records = estimate(run, RunFolder(tmp_path), made_by(), Interruption())
    assert records
    assert all(record.mean == record.mean for record in records)
    numbers = [value for record in records for value in record.extra.values() if isinstance(value, float)]
    # NaN is no valid JSON.
    assert all(value == value for value in numbers)
    if "temperatures" in changes:
        assert not any("acceptance" in record.extra for record in records)
    if changes.get("aggregate") == 0:
        assert not any(record.quantity == "I_q(x;z)" for record in records)


# One list of fields ---------------------------------------------------------------------------------------


def test_an_estimate_carries_fields_of_a_record():
    theirs, ours = ({f.name for f in fields(kind)} for kind in (ResultRecord, Estimate))
    assert ours - theirs == {"values"}
