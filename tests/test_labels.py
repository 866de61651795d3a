"""The label of log q beside every result: each encoder with each estimator, against the direction of its class.

``pytest -s tests/test_labels.py`` prints the table.
"""

import contextlib
import itertools
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from made_runs import composed, made_run, record

from vaebench.cli import main
from vaebench.config.catalog import config_dir
from vaebench.config.schema import EstimatorSettings
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.evaluate.job import Estimate, EstimatorInputs, job_for
from vaebench.experiment import build
from vaebench.records import ResultRecord
from vaebench.records.results import WITHOUT_WEIGHTS
from vaebench.registry import ENCODERS, ESTIMATORS
from vaebench.report import compare

LABELS = {
    Direction.EXACT: "exact log q",
    Direction.UPPER_BOUND: "upper bound on log q",
    Direction.ESTIMATE: "learned log q",
}
TINY = ("decoder.hidden=[8]", "encoder.hidden=[8]", "latent_dim=4", "trainer.threads=1", "device=cpu")
WITHOUT_LOG_Q = ("ais", "bdmc")


@cache
def settings_of(estimator: str) -> EstimatorSettings:
    choice = sorted(path.stem for path in (config_dir() / "estimator").glob(f"{estimator}.yaml"))[0]
    return composed((f"estimator={choice}", "estimator.images=2")).estimator


def estimates(inputs: EstimatorInputs, estimator: str, proposal: str) -> list[Estimate]:
    """Return the results of one cell from made-up numbers; UserError if the cell is refused."""
    given = replace(settings_of(estimator), proposal=proposal)
    job = job_for(replace(inputs, settings=given))
    return job.summarise(torch.full((len(job.rows), 2), 0.5, dtype=torch.float64))


def as_record(estimate: Estimate, estimator: str) -> ResultRecord:
    split = {"split": "simulated"} if estimator == "bdmc" else {}
    return record(-100.0, **estimate.record_fields(), **split)


def labels_in(text: str) -> set[str]:
    return {label for label in LABELS.values() if label in text}


def estimator_cells(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the estimator column of all tables of `vaebench compare`; the page of `vaebench report` has the same."""
    assert main(["compare", str(root), "--format", "md"]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    place = lines[0].index("estimator") - len(lines[0])
    cells = [line[place] for line in lines if line[place] not in ("estimator", "---")]
    page = root / "report.html"
    assert main(["report", str(root), "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert all(f">{cell}</td>" in text for cell in cells)
    capsys.readouterr()
    return cells


TABLE: dict[str, list[str]] = defaultdict(list)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_every_cell_has_the_label_of_its_encoder(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In compare and in the report: the class of the encoder that made the draws decides."""
    built = build(composed((f"encoder={encoder}", *TINY)))
    inputs = EstimatorInputs.of(built)
    valid, _ = replace(inputs, settings=settings_of("iwae")).proposal()
    expected: dict[tuple[str, str], set[str]] = {}
    records: dict[tuple[str, str], list[ResultRecord]] = {}
    for estimator, proposal in itertools.product(ESTIMATORS, ("valid", "own") if valid is not built.encoder else ("",)):
        drawn_by = built.encoder if proposal == "own" else valid
        expected[estimator, proposal] = set() if estimator in WITHOUT_LOG_Q else {LABELS[type(drawn_by).direction]}
        with contextlib.suppress(UserError):  # a refused cell
            found = estimates(inputs, estimator, proposal or "valid")
            records[estimator, proposal] = [as_record(one, estimator) for one in found if one.quantity == "log p(x)"]
    TABLE[encoder].append(LABELS[type(built.encoder).direction])
    made_run(tmp_path, f"encoder={encoder}", results=[one for group in records.values() for one in group])
    shown = estimator_cells(tmp_path, capsys)
    for estimator in ESTIMATORS:
        cells: list[str] = []
        for cell in (cell for cell in expected if cell[0] == estimator):
            if cell not in records:
                text = "refused"
            elif records[cell][0].split == "simulated":  # in no table
                text = records[cell][0].estimator
                assert {one.log_q for one in records[cell]} == {None}
            else:
                (text,) = [one for one in shown if is_of(one, records[cell][0])]
                assert labels_in(text) == expected[cell]
            cells.append(text)
        TABLE[encoder].append("; ".join(dict.fromkeys(cells)))


def is_of(text: str, one: ResultRecord) -> bool:
    """Whether ``text`` names the estimator and the proposal of a record."""
    name, proposal = one.estimator, one.settings.get("proposal")
    return text.split(",")[0] == name and (f"proposal {proposal}" in text if proposal else "proposal" not in text)


def test_the_table_is_whole():
    """Print it, with the direction of every class in the first column."""
    if set(TABLE) != set(ENCODERS):
        pytest.skip("the other tests of this file make the table")
    print("\n| encoder | log_q of its class | " + " | ".join(ESTIMATORS) + " |")
    print("|" + "---|" * (len(ESTIMATORS) + 2))
    for encoder, cells in TABLE.items():
        assert len(cells) == 1 + len(ESTIMATORS)
        print(f"| {encoder} | " + " | ".join(cells) + " |")


def test_a_record_without_the_field_has_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Control: records of early versions. An encoder without inner samples may still have an upper bound."""
    made_run(tmp_path, "encoder=hvae", results=[record(-100.0)])
    made_run(tmp_path, "encoder=iwhvi", results=[record(-99.0, estimator="DIWHVI", inner_k=5)])
    assert sorted(estimator_cells(tmp_path, capsys)) == ["DIWHVI", "IWAE"]


def test_k_stands_beside_the_gaps_that_use_weights_only(tmp_path: Path):
    """A k beside the others would part tables that are comparable; records of early versions have it."""
    inputs = EstimatorInputs.of(build(composed(("encoder=iwhvi", *TINY))))
    found = {one.quantity: one.k for one in estimates(inputs, "gaps", "valid")}
    without = {quantity for quantity, k in found.items() if k is None}
    assert without == set(WITHOUT_WEIGHTS)
    assert {"log p(x)", "inference gap", "approximation gap"} <= found.keys() - without
    for seed, k in enumerate([100, None]):
        results = [record(-90.0, estimator="gaps", k=k, quantity="ELBO of q")]
        made_run(tmp_path, "encoder=gaussian", seed=seed, results=results)
    ((row,),) = [table.rows for table in compare([tmp_path], quantity="ELBO of q").tables]
    assert row.n == 2
