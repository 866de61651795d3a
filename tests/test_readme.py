"""The examples of README.md run, with small settings and without a network."""

import re
from pathlib import Path

import pytest
from documented import ROOT, blocks, commands

from vaebench.cli import main

README = (ROOT / "README.md").read_text(encoding="utf-8")

NOT_RUN = {
    "board": "it serves TensorBoard until interrupted; tests/test_board.py",
    "selftest": "tests/test_selftest.py",
    "reproduce": "it trains all rows of a paper; tests/test_reproduce.py",
}
"""Commands that are not run here, with the reason."""

TINY = ["latent_dim=2", "decoder.hidden=[8]", "trainer.epochs=1", "trainer.batch_size=2000", "trainer.validation_k=2"]
TINY += ["trainer.compile=false", "trainer.progress=false", "device=cpu"]
ESTIMATOR = ["estimator.k=2", "estimator.images=20"]
ADDED = {
    "train": [*TINY, *ESTIMATOR],
    "tune": [*TINY, "--trials", "2"],
    "evaluate": ["device=cpu", *ESTIMATOR, "estimator.temperatures=2", "estimator.chains=2"],
    "diagnose": ["device=cpu", "images=20", "draws=4", "gradients=0"],
    "sample": ["device=cpu", "n=4"],
    "encode": ["device=cpu", "images=20"],
}
"""Settings added to an example, by command."""
REPLACED = {
    "dataset=mnist": "dataset=mnist5k",
    "outputs/mnist": "outputs/mnist5k/iwhvi-iwae-k16",
    "encoder=gaussian,hvm,iwhvi": "encoder=gaussian,hvm",
    "k=1,16": "k=2",
    "seed=range(3)": "seed=range(1)",
    "processes=2": "processes=1",
}
"""Words of an example that need other data or too much time for a test."""


def small(words: list[str]) -> list[str]:
    """Return an example with small settings."""
    trained = [str(path) for path in Path("outputs/mnist5k/hvm-iwae-k16").glob("0-*")]
    replaced = REPLACED | ({"outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d": trained[0]} if trained else {})
    return [replaced.get(word, word) for word in words] + ADDED.get(words[0], [])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def test_the_first_screen_has_the_picture_the_commands_and_the_results():
    screen = README.partition("\n## ")[0]
    assert len(screen.splitlines()) <= 45
    assert re.search(r"^!\[.+\]\(docs/.+\.png\)$", screen, re.MULTILINE)
    assert len(commands(screen)) == 1
    assert screen.index("<!-- results:begin -->") < screen.index("<!-- results:end -->")


def test_the_page_has_examples():
    found = commands(README)
    assert len(found) >= 12
    assert {"train", "evaluate", "compare", "report", "sample", "list"} <= {words[0] for words in found}


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """In the order of the page: the first examples make the runs that the others read."""
    for words in commands(README):
        if words[0] not in NOT_RUN:
            assert main(small(words)) == 0, f"vaebench {' '.join(words)}\n{capfd.readouterr().err}"
            assert "Traceback" not in capfd.readouterr().err
    (code,) = [block for block in blocks(README) if "vaebench.load" in block]
    trained = next(tmp_path.glob("outputs/mnist5k/hvm-iwae-k16/0-*"))
    code = re.sub(r"outputs/mnist5k/hvm-iwae-k16/0-\w+", str(trained), code).replace("k=5000", "k=5")
    code += "\nassert values.shape == (100,)"
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", ["vaebench train encodr=hvm", "vaebench reprot", "vaebench list --no-such-flag"])
def test_control_a_wrong_example_is_found(line: str):
    (words,) = commands(f"Text:\n\n    {line}   # a comment\n")
    assert main(words if words[0] != "train" else small(words)) == 2
