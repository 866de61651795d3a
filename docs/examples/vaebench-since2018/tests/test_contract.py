"""Every part keeps the contract of its kind, with the settings of its yaml file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from vaebench import testing

import vaebench_since2018
from vaebench_since2018.aisivi import ImportanceScoredEncoder
from vaebench_since2018.jvi import jackknifed, objective
from vaebench_since2018.student import StudentPrior
from vaebench_since2018.uha import AnnealedEncoder

COMMON = {"name", "trunk", "hidden", "activation", "inner_k", "bound", "gradient"}


def settings(kind: str, name: str, **changes: Any) -> dict[str, Any]:
    """Return the further keys of a yaml file."""
    path = Path(vaebench_since2018.__file__).parent / "configs" / kind / f"{name}.yaml"
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: value for key, value in whole.items() if key not in COMMON} | changes


@pytest.mark.parametrize("changes", [{}, {"steps": 1}], ids=str)
def test_uha(changes: dict[str, Any]):
    testing.check_encoder(AnnealedEncoder.build, **settings("encoder", "uha", **changes))


def test_aisivi():
    testing.check_encoder(ImportanceScoredEncoder.build, **settings("encoder", "aisivi", psi_dim=2))


def test_the_objective():
    testing.check_objective(objective, **settings("objective", "jvi"))


def test_the_estimator():
    testing.check_estimator(jackknifed, **settings("estimator", "jvi"))


def test_the_prior():
    testing.check_prior(StudentPrior.build, **settings("prior", "student"))
