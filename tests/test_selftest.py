"""`vaebench selftest`: every check passes here, and a broken formula makes it fail and is named."""

import importlib
import json
import math
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.gaussian import posterior_hierarchy
from oracles.scalar import HIERARCHICAL, Named, exact_gradient, expected_iwae, normal_nodes
from torch import Tensor

from vaebench import cli, encoders, noise, objective
from vaebench.distributions import Bernoulli
from vaebench.encoders import hierarchical
from vaebench.encoders.base import Encoder
from vaebench.encoders.moments import MomentMatchedEncoder
from vaebench.estimators import annealing
from vaebench.flows.flow import StepParameters, Transformed
from vaebench.flows.radial import RadialFlow
from vaebench.records import checkpoint
from vaebench.registry import FLOWS
from vaebench.selftest import CHECKS, chosen
from vaebench.selftest.catalog import REMOVED
from vaebench.selftest.checks import gradients
from vaebench.selftest.oracles.families import FAMILIES, FLOW_SETTINGS, Affine, adversarial
from vaebench.selftest.oracles.gaussian import exact_hierarchical, one_image
from vaebench.selftest.rows import CAUGHT, ERRORS, CheckRow, Mean, differs, exact, near
from vaebench.selftest.running import Outcome, run
from vaebench.selftest.table import as_json, as_text, summary, title
from vaebench.train import batches

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


@pytest.mark.usefixtures("float64")
def test_every_encoder_is_checked():
    for module in pkgutil.iter_modules(encoders.__path__):
        importlib.import_module(f"vaebench.encoders.{module.name}")
    families = {kind for kind in Encoder.__subclasses__() if kind.__module__.startswith("vaebench.encoders.")}
    # Not a family: a proposal made from another encoder. tests/test_adversarial.py checks it.
    assert {type(make()) for make, _ in FAMILIES.values()} == families - {MomentMatchedEncoder}


# The known answers ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_the_slopes_are_those_of_quadrature():
    nodes, probability = normal_nodes(1, 1001)

    def bound(mean: float) -> float:
        log_w = -0.5 * (mean + 1.3 * nodes[:, 0]) ** 2 + 0.5 * nodes[:, 0] ** 2 + math.log(1.3)
        return expected_iwae(log_w, probability, gradients.K).item()

    assert (bound(0.701) - bound(0.699)) / 0.002 == pytest.approx(gradients.IWAE_SLOPE, abs=1e-6)
    exact_slopes = exact_gradient(HIERARCHICAL, Named("iwae", gradients.K), 1)
    for key, slope in gradients.HIERARCHY_SLOPES.items():
        assert exact_slopes[key] == pytest.approx(slope, abs=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_exact_reverse_model_is_that_of_the_closed_form():
    known, found = posterior_hierarchy().exact_reverse(), exact_hierarchical().reverse
    assert found is not None
    z, x = torch.randn(20, 2), torch.randn(20, 3)
    one, other = (tau(z, tau.condition(x)) for tau in (known, found))
    assert torch.allclose(one.mean, other.mean, atol=1e-14)
    assert torch.allclose(one.stddev, other.stddev, atol=1e-14)


@pytest.mark.usefixtures("float64")
def test_the_log_ratio_is_the_optimal_one():
    encoder, x = adversarial(), one_image(50)
    assert isinstance(encoder.sampler, Affine)
    q = torch.distributions.MultivariateNormal(encoder.sampler.bias, scale_tril=encoder.sampler.factor)
    drawn = encoder.draw(x, 3)
    assert torch.allclose(drawn.log_q, q.log_prob(drawn.z), atol=1e-12)


def test_another_seed_draws_other_numbers_and_passes():
    one, other = outcome("unbiased_weights"), outcome("unbiased_weights", seed=5)
    assert other.passed
    assert [row.got for row in one.rows] != [row.got for row in other.rows]
    assert outcome("unbiased_weights").rows == one.rows


def test_nothing_global_changes():
    torch.manual_seed(4)
    before = torch.get_rng_state(), torch.get_default_dtype()
    outcome("gradients")
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.get_default_dtype() == before[1]


# Broken formulas ------------------------------------------------------------------------------------------


def without_psi_0(patch: pytest.MonkeyPatch) -> None:
    def value(self: hierarchical._Terms) -> Tensor:
        ratios = torch.cat(self.parts[1:] or self.parts)
        return torch.logsumexp(ratios, 0) - math.log(len(ratios))

    patch.setattr(hierarchical._Terms, "value", value)


def divided_by_l(patch: pytest.MonkeyPatch) -> None:
    def value(self: hierarchical._Terms) -> Tensor:
        ratios = torch.cat(self.parts)
        return torch.logsumexp(ratios, 0) - math.log(max(1, len(ratios) - 1))

    patch.setattr(hierarchical._Terms, "value", value)


def no_rescaling(patch: pytest.MonkeyPatch) -> None:
    """DReG without its hooks is STL."""
    patch.setattr(objective, "rescale_paths", lambda *arguments: None)


def sign_turned(patch: pytest.MonkeyPatch) -> None:
    original = RadialFlow.forward

    def forward(self: RadialFlow, z: Tensor, conditioned: StepParameters) -> Transformed:
        moved = original(self, z, conditioned)
        return moved._replace(log_det=-moved.log_det)

    patch.setattr(RadialFlow, "forward", forward)


def moves_that_accept_everything(patch: pytest.MonkeyPatch) -> None:
    def move(self: annealing.Hamiltonian, t: int, beta: Tensor, ends: annealing.Ends) -> tuple[Tensor, Tensor]:
        position = ends.initial.position
        return position + 0.5 * torch.randn_like(position), torch.ones_like(position[..., 0])

    patch.setattr(annealing.Hamiltonian, "__call__", move)


def the_same_numbers_in_every_chunk(patch: pytest.MonkeyPatch) -> None:
    original = noise._Keyed.__init__
    patch.setattr(noise._Keyed, "__init__", lambda self, seed, images, first: original(self, seed, images, 0))


def no_seal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoint, "_unsealed", lambda path: path.read_bytes())


def random_state_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batches, "seed_device", lambda device, seed: None)


def bf16_sums(patch: pytest.MonkeyPatch) -> None:
    original = Bernoulli.log_prob
    patch.setattr(Bernoulli, "log_prob", lambda self, value: original(self, value).bfloat16().float())


BROKEN = [
    ("precision", bf16_sums),
    ("keyed_noise", the_same_numbers_in_every_chunk),
    ("gradients", no_rescaling),
    ("flows", sign_turned),
    ("unbiased_weights", without_psi_0),
    ("unbiased_weights", divided_by_l),
    ("unbiased_weights", moves_that_accept_everything),
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
    assert "1 check failed" in out


def test_a_check_that_raises_fails_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def nothing(*arguments: object) -> None:
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(importlib.import_module("vaebench.selftest.checks.keyed_noise"), "check", nothing)
    assert cli.main(["selftest", "--only", "keyed_noise,checkpoints"]) == 1
    out, err = capsys.readouterr()
    assert "ended early: ZeroDivisionError: of course" in out
    assert "refused: truncated" in out
    assert err.strip() == "vaebench: self-test failed: keyed_noise"


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
    row = CheckRow("x", 1, bad, 1e-9, "exact", control)
    assert not row.passed
    assert not replace(row, got=2.0, tolerance=bad).passed


# The command ----------------------------------------------------------------------------------------------


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["selftest", "--only", "checkpoints,flows", "device=cpu", "seed=3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("vaebench ")
    assert "cpu" in printed[0]
    assert printed[0].endswith("seed 3")
    assert max(map(len, printed[1:])) <= 80
    # In the order of the catalog, not of the words.
    titles = [index for index, line in enumerate(printed) if line.startswith("[")]
    assert [printed[index].split(":")[0] for index in titles] == ["[1/2] flows", "[2/2] checkpoints"]
    for index in titles:
        assert printed[index + 1].split() == ["expected", "got", "tolerance", "passed"]
    rows = sum(line.split()[-1] in ("yes", "caught") for line in printed)
    assert printed[-1].startswith(f"2 checks, {rows} rows, 8 controls; all passed")


@pytest.mark.parametrize("check", CHECKS)
def test_titles_fit_a_narrow_terminal(check: str):
    assert len(f"[7/7] {title(check)}") <= 80


def test_numbers_can_be_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = (exact("x", -2.3895286242, math.nan), differs("long " * 20, 0, 1e-15), differs("y", 0, 1.0))
    failed = Outcome("flows", rows, 1.0, "ZeroDivisionError: of course")
    printed = as_text(failed).splitlines()
    assert printed[1].split() == ["x", "-2.38953", "nan", "1e-09", "NO"]
    assert printed[2].split()[-4:] == ["0", "1e-15", "1e-09", "MISSED"]
    assert printed[-2].split() == ["y", "0", "1", "1e-09", "caught"]
    assert printed[-1].strip() == "the check ended early: ZeroDivisionError: of course"
    assert max(map(len, printed)) <= 80
    assert summary([failed], 2.0) == "1 check, 3 rows, 2 controls; 1 check failed; 2 s"


def test_the_json(tmp_path: Path):
    path = tmp_path / "found.json"
    assert cli.main(["selftest", "--only", "checkpoints", "-o", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["passed"] is True
    assert found["torch"] == torch.__version__
    assert [check["name"] for check in found["checks"]] == ["checkpoints"]
    keys = {"name", "expected", "got", "tolerance", "rule", "control", "side", "passed"}
    assert keys == found["checks"][0]["rows"][0].keys()
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
        (["--only", "flows,chekpoints"], "did you mean 'checkpoints'"),
        (["--only", "flows,chunks"], "'chunks' is no longer a check: it moved to the package's tests"),
        (["--only"], "--only needs a value"),
        (["device=tpu"], "device must be auto, cpu, cuda, cuda:N, mps, xpu or xpu:N"),
        (["threads=0"], "threads must be >= 1"),
        (["seed=x"], "seed must be an integer"),
        (["sed=1"], "unknown key sed (did you mean 'seed'?)"),
        (["gradients"], "'gradients' is neither KEY=VALUE"),
        (["--lst"], "unknown flag --lst (did you mean '--list'?)"),
        (["-o", "no/such/folder/x.json"], "no folder no/such/folder"),
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


def test_removed_checks_are_no_checks():
    assert not set(REMOVED) & set(CHECKS)


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
