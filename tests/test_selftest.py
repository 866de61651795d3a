"""`vaebench selftest`: every check passes here, and a broken formula makes it fail and is named."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaebench import cli, noise, objective, runtime
from vaebench.encoders import hierarchical
from vaebench.encoders.adversarial import AdversarialEncoder
from vaebench.estimators import annealing
from vaebench.flows.flow import Conditioned, Moved
from vaebench.flows.radial import RadialFlow
from vaebench.records import checkpoint
from vaebench.registry import FLOWS
from vaebench.selftest import CHECKS, chosen
from vaebench.selftest.oracles.families import FLOW_SETTINGS
from vaebench.selftest.rows import CAUGHT, ERRORS, Mean, Row, differs, exact, near
from vaebench.selftest.running import Outcome, run
from vaebench.selftest.table import HEADER, as_json, lines, summary

CPU = torch.device("cpu")


def outcome(check: str, seed: int = 0) -> Outcome:
    started, ended = run([check], CPU, seed)
    assert started == check
    assert isinstance(ended, Outcome)
    return ended


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_passes(check: str):
    found = outcome(check)
    assert found.error is None
    assert [row for row in found.rows if not row.passed] == []
    assert len(found.rows) >= 4
    assert len({row.name for row in found.rows}) == len(found.rows)


def test_every_check_is_a_module_and_every_module_a_check():
    folder = Path(importlib.import_module("vaebench.selftest.checks").__file__ or "").parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(CHECKS)


def test_every_flow_is_checked():
    assert {name.partition("-")[0] for name in FLOW_SETTINGS} == set(FLOWS)


def test_another_seed_draws_other_numbers_and_passes():
    one, other = outcome("semi_implicit"), outcome("semi_implicit", seed=5)
    assert other.passed
    assert [row.got for row in one.rows] != [row.got for row in other.rows]
    assert outcome("semi_implicit").rows == one.rows


def test_nothing_global_changes():
    torch.manual_seed(4)
    before = torch.get_rng_state(), torch.get_default_dtype()
    outcome("gradients")
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.get_default_dtype() == before[1]


# Broken formulas ------------------------------------------------------------------------------------------


def without_psi_0(patch: pytest.MonkeyPatch) -> None:
    def value(self: hierarchical._Gather) -> Tensor:
        ratios = torch.cat(self.parts[1:] or self.parts)
        return torch.logsumexp(ratios, 0) - math.log(len(ratios))

    patch.setattr(hierarchical._Gather, "value", value)


def divided_by_l(patch: pytest.MonkeyPatch) -> None:
    def value(self: hierarchical._Gather) -> Tensor:
        ratios = torch.cat(self.parts)
        return torch.logsumexp(ratios, 0) - math.log(max(1, len(ratios) - 1))

    patch.setattr(hierarchical._Gather, "value", value)


def no_rescaling(patch: pytest.MonkeyPatch) -> None:
    """DReG without its hooks is STL."""
    patch.setattr(objective, "rescale_paths", lambda *arguments: None)


def sign_turned(patch: pytest.MonkeyPatch) -> None:
    original = RadialFlow.forward

    def forward(self: RadialFlow, z: Tensor, conditioned: Conditioned) -> Moved:
        moved = original(self, z, conditioned)
        return moved._replace(log_det=-moved.log_det)

    patch.setattr(RadialFlow, "forward", forward)


def moves_that_accept_everything(patch: pytest.MonkeyPatch) -> None:
    def move(self: annealing.Hamiltonian, t: int, beta: Tensor, ends: annealing.Ends) -> tuple[Tensor, Tensor]:
        position = ends.initial.position
        return position + 0.5 * torch.randn_like(position), torch.ones_like(position[..., 0])

    patch.setattr(annealing.Hamiltonian, "__call__", move)


def labels_swapped(patch: pytest.MonkeyPatch) -> None:
    original = AdversarialEncoder.discriminator_loss

    def loss(self: AdversarialEncoder, x: Tensor) -> object:
        handle = self.discriminator.register_forward_hook(lambda module, inputs, ratio: -ratio)
        try:
            return original(self, x)
        finally:
            handle.remove()

    patch.setattr(AdversarialEncoder, "discriminator_loss", loss)


def the_same_numbers_in_every_chunk(patch: pytest.MonkeyPatch) -> None:
    original = noise._Keyed.__init__
    patch.setattr(noise._Keyed, "__init__", lambda self, seed, images, first: original(self, seed, images, 0))


def no_seal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoint, "_unsealed", lambda path: path.read_bytes())


def random_state_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(runtime, "set_random_state", lambda state, device: None)


BROKEN = [
    ("finite_states", without_psi_0),
    ("finite_states", divided_by_l),
    ("linear_gaussian", divided_by_l),
    ("semi_implicit", divided_by_l),
    ("unbiased_weights", without_psi_0),
    ("gradients", no_rescaling),
    ("annealing", moves_that_accept_everything),
    ("flows", sign_turned),
    ("discriminator", labels_swapped),
    ("chunks", the_same_numbers_in_every_chunk),
    ("keyed_noise", the_same_numbers_in_every_chunk),
    ("checkpoints", no_seal),
    ("resume", random_state_lost),
]


@pytest.mark.parametrize(("check", "break_it"), BROKEN)
def test_a_broken_formula_fails_its_check(
    check: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    break_it(monkeypatch)
    assert cli.main(["selftest", "--only", check, "threads=1"]) == 1
    out, err = capsys.readouterr()
    assert err.strip() == f"vaebench: self-test failed: {check}"
    assert " NO" in out or "ended early" in out
    assert "1 checks failed" in out


def test_a_check_that_raises_fails_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def nothing(*arguments: object) -> None:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(importlib.import_module("vaebench.selftest.checks.semi_implicit"), "check", nothing)
    assert cli.main(["selftest", "--only", "semi_implicit,checkpoints"]) == 1
    out, err = capsys.readouterr()
    assert "ended early: ZeroDivisionError: of course" in out
    assert "refused: cut short" in out
    assert err.strip() == "vaebench: self-test failed: semi_implicit"


# Rows -----------------------------------------------------------------------------------------------------


def test_a_row_passes_within_its_tolerance():
    mean = Mean(1.0, 0.1)
    assert near("x", 1 + 0.99 * ERRORS * 0.1, mean).passed
    assert not near("x", 1 + 1.01 * ERRORS * 0.1, mean).passed
    assert exact("x", 1, 1 + 9e-10).passed
    assert not exact("x", 1, 1 + 2e-9).passed


def test_a_control_passes_where_the_wrong_formula_is_caught():
    assert differs("x", 1, Mean(1 + 1.01 * CAUGHT * 0.1, 0.1)).passed
    assert not differs("x", 1, Mean(1 + 0.99 * CAUGHT * 0.1, 0.1)).passed
    assert not differs("x", 1, 1.0).passed


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(bad: float, control: bool):
    row = Row("x", 1, bad, 1e-9, "exact", control)
    assert not row.passed
    assert not replace(row, got=2.0, tolerance=bad).passed


# The command ----------------------------------------------------------------------------------------------


def test_the_table(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["selftest", "--only", "checkpoints,flows", "device=cpu", "seed=3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("vaebench ")
    assert "cpu" in printed[0]
    assert printed[0].endswith("seed 3")
    assert printed[1].split() == ["check", "expected", "got", "tolerance", "rule", "pass"]
    # In the catalog's order, whatever the words' order.
    assert [line[:6] for line in printed if line.startswith("[")] == ["[1/2] ", "[2/2] "]
    assert printed[2].startswith("[1/2] flows: ")
    table = [line for line in printed if line.startswith("  ")][1:]
    assert all(line.endswith("yes") for line in table)
    assert all(line.index(" yes") <= len(HEADER) for line in table)
    assert printed[-1].startswith(f"{len(table)} rows of 2 checks, ")
    assert "all passed" in printed[-1]


def test_numbers_can_be_read():
    rows = (exact("x", -2.3895286242, math.nan), differs("a name that goes on and on" * 4, 0, 1e-15))
    first, second = lines(Outcome("flows", rows, 1.0))
    assert "-2.3895286242" in first
    assert " nan " in first
    assert first.endswith("NO")
    assert "1.000e-15" in second
    assert "not, exact" in second
    assert "1 checks failed" in summary([Outcome("flows", rows, 1.0)], 2.0)


def test_the_json(tmp_path: Path):
    path = tmp_path / "found.json"
    assert cli.main(["selftest", "--only", "checkpoints", "-o", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["passed"] is True
    assert found["torch"] == torch.__version__
    assert [check["name"] for check in found["checks"]] == ["checkpoints"]
    assert {"name", "expected", "got", "tolerance", "rule", "control", "passed"} == found["checks"][0]["rows"][0].keys()
    odd = as_json([Outcome("flows", (exact("x", 1, math.nan),), 1.0)], {})
    assert odd["checks"][0]["rows"][0]["got"] == "nan"
    assert odd["passed"] is False


def test_list(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["selftest", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CHECKS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "gradient"], "no check 'gradient' (did you mean 'gradients'?)"),
        (["--only", "flows,chunk"], "did you mean 'chunks'"),
        (["--only"], "--only needs a value"),
        (["device=tpu"], "device must be auto, cpu, cuda or cuda:N"),
        (["threads=0"], "threads must be >= 1"),
        (["seed=x"], "seed must be an integer"),
        (["sed=1"], "unknown key sed (did you mean 'seed'?)"),
        (["gradients"], "'gradients' is neither KEY=VALUE"),
        (["--lst"], "unknown flag --lst (did you mean '--list'?)"),
        (["-o", "no/such/folder/x.json"], "there is no folder no/such/folder"),
    ],
)
def test_refused_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["selftest", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["selftest", "device=cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--list"], ["--help"], ["--only", "flow"]])
def test_torch_is_not_imported_before_the_words_are_checked(words: list[str]):
    code = f"import sys; from vaebench.cli import main; main({['selftest', *words]}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_nothing_chosen_is_everything():
    assert chosen([]) == list(CHECKS)
    assert chosen(["resume", "flows"]) == ["flows", "resume"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", CHECKS)
def test_every_check_passes_on_a_gpu(check: str):
    _, found = run([check], torch.device("cuda", 0))
    assert isinstance(found, Outcome)
    assert found.error is None
    assert [row for row in found.rows if not row.passed] == []
