"""docs/extending.md does what it says."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toys

from vaebench import noise
from vaebench.cli import main
from vaebench.encoders.base import Encoder
from vaebench.gradients import GradientEstimator
from vaebench.records import RunFolder, read_results
from vaebench.registry import ENCODERS, Lazy

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


@pytest.fixture
def laplace(monkeypatch: pytest.MonkeyPatch) -> type[Encoder]:
    """The page's encoder, registered as the page says."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 50
    namespace: dict = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    family = namespace["LaplaceEncoder"]
    (line,) = re.findall(r'^    "laplace": (.*),$', PAGE.read_text(), re.MULTILINE)
    monkeypatch.setitem(sys.modules, "vaebench.encoders.laplace", SimpleNamespace(**namespace))
    monkeypatch.setitem(ENCODERS, "laplace", eval(line, {"Lazy": Lazy}))
    return family


def test_the_page_names_a_list_that_exists():
    assert "`FAMILIES`, the list that `tests/toys.py` imports" in PAGE.read_text()
    assert all(isinstance(family, toys.Family) for family in toys.FAMILIES)


@pytest.mark.usefixtures("laplace")
def test_the_page_s_message(configs: Path, capsys: pytest.CaptureFixture[str], default_data_dir: Path):
    words = ["encoder=laplace", "encoder.width=0.0", "device=cpu", f"data_dir={default_data_dir}"]
    assert main(["train", "--config-dir", str(configs), *words]) == 2
    assert "encoder.width must be" in capsys.readouterr().err


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder for --config-dir with the page's yaml in it."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "configs" / "encoder").mkdir(parents=True)
    (tmp_path / "configs" / "encoder" / "laplace.yaml").write_text(text)
    return tmp_path / "configs"


@pytest.mark.usefixtures("laplace")
@pytest.mark.parametrize("gradient", [estimator.value for estimator in GradientEstimator])
def test_the_page_trains_and_evaluates(gradient: str, configs: Path, tmp_path: Path, default_data_dir: Path):
    objective = ["objective=elbo"] if gradient == "stl" else ["objective=iwae", "k=3"]
    small = ["latent_dim=2", "decoder.hidden=[8]", "trainer.epochs=1", "trainer.batch_size=1000", "estimator.k=3"]
    quiet = ["trainer.progress=false", "trainer.image_every=0", "device=cpu", "encoder.width=0.5"]
    where = [f"output_dir={tmp_path / 'outputs'}", f"data_dir={default_data_dir}"]
    words = ["encoder=laplace", *objective, f"objective.gradient={gradient}", *small, *quiet, *where]
    assert main(["train", "--config-dir", str(configs), *words]) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    (record,) = read_results(run)
    assert record.direction == "lower_bound"


def test_the_page_keeps_the_contract(laplace: type[Encoder], float64: None):
    """The density integrates to one under its own draws: E[N(z; 0, s^2) / q(z)] = 1."""

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.distributions.Distribution:
            from vaebench.distributions import DiagonalNormal

            return DiagonalNormal(x, torch.ones_like(x))

    encoder = laplace(Fixed(), 0.8)  # pyright: ignore[reportCallIssue]
    x = torch.full((1, 2), 0.3)
    with noise.keyed(0, torch.arange(1)):
        draw = encoder.draw(x, 200_000)
    z, log_q = draw.z, draw.log_q
    target = torch.distributions.Normal(0.0, 0.6).log_prob(z).sum(-1)
    weights = (target - log_q).exp()
    assert (weights.mean() - 1).abs() < 4 * weights.std() / len(weights) ** 0.5
    assert ((weights * 2).mean() - 1).abs() > 40 * weights.std() / len(weights) ** 0.5  # log 2 left out
