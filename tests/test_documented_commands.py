"""Every command of the pages and of every ``--help`` runs in this process, with small settings and without a network.

A training is composed, checked and built, but not trained; a sweep is listed. Other commands read small runs, which are
made once. tests/test_readme.py also trains the examples of README.md.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import PAGES, ROOT, commands, examples_of_help
from PIL import Image

from vaebench import experiment
from vaebench.cli import COMMANDS, board, main, tune
from vaebench.config import Config, compose
from vaebench.evaluate.job import EstimatorInputs, job_for
from vaebench.train import session
from vaebench.train.session import train

TINY = ["latent_dim=8", "decoder.hidden=[8]", "trainer.epochs=1", "trainer.batch_size=2000", "trainer.validation_k=2"]
TINY += ["trainer.compile=false", "trainer.progress=false", "trainer.image_every=0", "device=cpu"]
TINY += ["estimator.k=2", "estimator.images=20"]
RUNS = ["encoder=gaussian", "encoder=hvm", "encoder=iwhvi", "objective=iwae k=16", "encoder=hvm objective=iwae k=16"]
"""The runs that the commands read. Pairs of encoders need equal other settings."""

OF_THE_EXAMPLE = re.compile(r"\b(uha|aisivi|jvi|student)\b")
"""Parts of the example package, which is not installed here."""

EACH_RUN = {"evaluate", "diagnose", "encode", "sample", "reconstruct", "interpolate", "traverse"}
"""Commands that work on every run below a folder; here on one run."""
ONE_RUN = {"show", "export", *EACH_RUN}
SMALL = {
    "iwae": ["k=2"],
    "diwhvi": ["k=2", "inner_k=1"],
    "ais": ["temperatures=50", "chains=2", "leapfrog=2", "bdmc=2"],
    "bdmc": ["temperatures=50", "chains=2", "leapfrog=2"],
    "gaps": ["k=2", "draws=2", "inner_k=1", "steps=1", "fit_draws=1"],
    "sandwich": ["k=2", "inner_k=1", "aggregate=2"],
}
"""Small settings of each estimator; without one, those of the run's own."""
ADDED = {
    "diagnose": ["device=cpu", "images=20", "draws=4", "gradients=0"],
    "encode": ["device=cpu", "images=20"],
    "sample": ["device=cpu", "n=4"],
    "selftest": ["--list"],  # the checks themselves are tests/test_selftest.py
}


def not_run(words: list[str]) -> str | None:
    """Return the reason why a command is not run here, or None."""
    command, *rest = words
    named = [word for word in rest if "=" not in word and not word.startswith("-")]
    if command == "data" and set(named) - {"own"}:
        return "it may download; tests/test_datasets.py"
    if command == "check" and not rest[0].startswith("dataset="):
        return "it takes up to a minute; tests/test_contract.py and tests/test_plugins.py"
    if "--plugin" not in rest and any(map(OF_THE_EXAMPLE.search, rest)):
        return "it needs the example package; tests/test_since2018.py"
    if "--resume" in rest:
        return "tests/test_resume.py"
    if any(word.startswith("<") for word in words):
        return "it is a pattern of commands"
    return None


def small(words: list[str]) -> list[str]:
    """Return the words of a command with small settings, for the folder of this test."""
    command, *rest = words
    rest = [re.sub(r"^(data_dir=)?~", rf"\1{Path.home()}", word) for word in rest if word not in ("...", "RUN...")]
    rest = [str(ROOT / word) if word.startswith("docs/examples/") else word for word in rest]
    rest = [re.sub(r"^device=cuda.*", "device=cpu", re.sub(r"^processes=.*", "processes=1", word)) for word in rest]
    rest = [re.sub(r"^seed=range\(.*\)$", "seed=0", word) for word in rest]
    if command in ONE_RUN:
        rest = ["RUN" if command in EACH_RUN and re.match(r"outputs(/|$)", word) else word for word in rest]
        rest = ["RUN" if re.search(r"/0-1a2b3c4d$", word) else word for word in rest]
    if command == "evaluate":
        chosen = next((word[10:] for word in rest if word.startswith("estimator=")), "iwae").split(",")
        added = {f"estimator.{word}" for name in chosen for word in SMALL[name]} | {"estimator.images=4"}
        keys = {"estimator.repeats", *(word.partition("=")[0] for word in added)}
        rest = [word for word in rest if word.partition("=")[0] not in keys] + [*sorted(added), "device=cpu"]
        rest = [re.sub(r"^(estimator\.temperatures=).*", r"\g<1>50", word) for word in rest]
    if command == "train" and {"-m", "--multirun"} & set(rest) and "--dry-run" not in rest:
        rest += ["--dry-run"]
    if command == "report" and "-o" not in rest:
        rest += ["-o", "report.html"]
    if command != "new" and "--plugin" not in rest and any("laplace" in word for word in rest):
        rest += ["--plugin", "mylab.py"]  # docs/extending.md adds it to the package
    return [command, *rest, *ADDED.get(command, [])]


def code_of(page: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> Path:
    """A folder with the files and the runs that the commands name."""
    root = tmp_path_factory.mktemp("documented")
    plugin = 'PLUGINS = {"encoder": {"laplace": LaplaceEncoder.build}}\n'
    files = {
        "mylab.py": f"{code_of('docs/extending.md', 'python')}\n\n{plugin}",
        "configs/encoder/laplace.yaml": code_of("docs/extending.md", "yaml"),
        "mine/encoder/wide.yaml": "# vaebench train encoder=wide\n# Wider.\ndefaults: [iwhvi]\nhidden: [500, 500]\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(root / "images.npz", images=images)
    (root / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(root / "photos" / f"{number}.png")
    shutil.copytree(default_data_dir, root / "data", dirs_exist_ok=True)
    for words in RUNS:
        train(compose([*words.split(), *TINY, f"output_dir={root}/outputs", f"data_dir={root}/data"]))
    for name in ("mnist", "omniglot"):
        shutil.copytree(root / "outputs" / "mnist5k", root / "outputs" / name)
    return root


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``made`` as the working and the home folder; trainings are built, and servers do not start."""
    load = experiment._load_data

    def load_small(config: Config) -> Any:
        if config.dataset.name != "own":  # images of every other data set are those that need no download
            config = replace(config, dataset=replace(config.dataset, name="mnist5k", split="default"))
        return load(config)

    def check(config: Config, *_: object, **__: object) -> None:
        built = experiment.build(config)
        job_for(EstimatorInputs.of(built))

    def served(*_: object) -> str:
        raise SystemExit(0)

    monkeypatch.chdir(made)
    monkeypatch.setenv("HOME", str(made))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("VAEBENCH_DATA_DIR", raising=False)
    monkeypatch.setattr(experiment, "_load_data", load_small)
    monkeypatch.setattr(session, "_train", check)
    monkeypatch.setattr(board, "launched", served)
    monkeypatch.setattr(tune, "carry_out", lambda search, trials: compose(search.fixed) and 0)
    run = next(made.glob("outputs/mnist5k/iwhvi-*/0-*"))
    if not (made / "RUN").exists():
        os.symlink(run, made / "RUN")
    yield made
    for folder in made.glob("**/vaebench-*"):  # written by `vaebench new`
        shutil.rmtree(folder, ignore_errors=True)


ENDED: dict[str, str] = {}
"""The message of each command that was run, empty after success: many pages have the same commands."""


def failures(found: list[list[str]], capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Run commands, and return those that fail with their messages."""
    for words in found:
        line = shlex.join(words)
        if not_run(words) is None and line not in ENDED:
            code, output = main(small(words)), capfd.readouterr()
            failed = code != 0 or "Traceback" in output.err
            ENDED[line] = f"vaebench {line}\n  {shlex.join(small(words))}\n  {output.err[-500:]}" if failed else ""
    return list(filter(None, (ENDED.get(shlex.join(words)) for words in found)))


DOCUMENTED = {
    str(page.relative_to(ROOT)): found
    for page in PAGES
    if page != ROOT / "README.md" and (found := commands(page.read_text(encoding="utf-8")))
}


@pytest.mark.slow
@pytest.mark.parametrize("page", DOCUMENTED)
def test_the_commands_of_a_page_run(page: str, place: Path, capfd: pytest.CaptureFixture[str]):
    assert failures(DOCUMENTED[page], capfd) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_examples_of_help_run(command: str, place: Path, capfd: pytest.CaptureFixture[str]):
    assert main([command, "--help"] if command else ["--help"]) == 0
    found = examples_of_help(capfd.readouterr().out)
    assert found
    assert failures(found, capfd) == []


def test_the_pages_have_commands():
    assert len(DOCUMENTED) >= 20
    assert sum(map(len, DOCUMENTED.values())) >= 120
    assert {words[0] for found in DOCUMENTED.values() for words in found} >= COMMANDS.keys() - {"show"}


def test_most_commands_are_run():
    found = [words for lines in DOCUMENTED.values() for words in lines]
    assert sum(not_run(words) is not None for words in found) <= 0.1 * len(found)


def test_every_command_in_a_sentence_exists():
    words = re.compile(r"`vaebench ([a-z]+)")
    named = {name: set(words.findall((ROOT / name).read_text(encoding="utf-8"))) for name in map(str, PAGES)}
    assert {name: found - COMMANDS.keys() for name, found in named.items() if found - COMMANDS.keys()} == {}


@pytest.mark.parametrize(
    "line",
    [
        "vaebench train encodr=hvm",
        "vaebench train encoder=uivi objective=iwae k=16",
        "vaebench train encoder=planar encoder.steps=-1",
        "vaebench train -m encoder=glob(zzz*)",
        "vaebench compare --baseline encoder=nothing",
        "vaebench evaluate RUN estimator=ais estimator.schedule=none",
        "vaebench reprot",
    ],
)
def test_control_a_wrong_command_is_found(line: str, place: Path, capfd: pytest.CaptureFixture[str]):
    (words,) = commands(f"Text:\n\n    {line}   # a comment\n")
    assert len(failures([words], capfd)) == 1
