"""Many runs: reading and comparing them is linear in their number, and TAB completes their folders."""

import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from made_runs import composed, made_run, record

from vaebench.cli import main
from vaebench.config.run import from_yaml, to_yaml
from vaebench.errors import UserError
from vaebench.records import PerImageFile, RunFolder, last_metrics
from vaebench.report.differences import common_values

IMAGES = numpy.arange(20)
METHODS = ("encoder=gaussian", "encoder=hvm")


def seeds(root: Path, count: int) -> None:
    """Make runs of two methods with results per image, and ten lines of metrics each."""
    metrics = [{"step": step, "epoch": step / 10, "wall": 1.0, "train/bound": -100.0} for step in range(10)]
    for shift, method in enumerate(METHODS):
        for seed in range(count):
            values = numpy.random.default_rng(seed).normal(-100.0 + shift, 1.0, (1, len(IMAGES)))
            folder = made_run(root, method, seed=seed, metrics=metrics)
            file = PerImageFile(folder.path / "evaluations" / "key.npz", ["ess"], IMAGES, 1)
            (place,) = file.conclude([values])
            mean, stderr = values.mean(), values.std(ddof=1) / len(IMAGES) ** 0.5
            result = record(float(mean), stderr=float(stderr), n_images=len(IMAGES), per_image=place)
            made_run(root, method, seed=seed, metrics=metrics, results=[result])


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with 3 and with 6 seeds of each method."""
    found = {}
    for count in (3, 6):
        found[count] = tmp_path_factory.mktemp(f"seeds{count}")
        seeds(found[count], count)
    return found


def counted_opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return the number of times that files with each name are opened from now on."""
    opened: Counter[str] = Counter()
    plain: Callable[..., int] = os.open

    def counting(path: object, *arguments: object, **named: object) -> int:
        opened[Path(str(path)).name] += 1
        return plain(path, *arguments, **named)

    monkeypatch.setattr(os, "open", counting)
    return opened


@pytest.mark.parametrize(
    ("words", "reads"),
    [
        (["list", "runs"], {"results.json": 1, "manifest.json": 1, "metrics.jsonl": 2}),
        (["compare"], {"results.json": 1, "manifest.json": 1, "metrics.jsonl": 2, "key.npz": 1}),
        (["compare", "--pair", *METHODS], {"results.json": 1, "metrics.jsonl": 2, "key.npz": 2}),
        (["compare", "--baseline", METHODS[0]], {"results.json": 1, "metrics.jsonl": 2, "key.npz": 1}),
    ],
)
def test_each_file_is_opened_as_often_for_six_seeds_as_for_three(
    words: list[str], reads: dict[str, int], roots: dict[int, Path], monkeypatch: pytest.MonkeyPatch
):
    for count, root in roots.items():
        opened = counted_opens(monkeypatch)
        assert main([*words, str(root)]) == 0
        runs = len(METHODS) * count
        assert {name: opened[name] / runs for name in reads} == reads
        monkeypatch.undo()


def test_the_names_of_pairs_need_the_common_values_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """They are those of the whole table: for each pair, they made the time quadratic in the pairs."""
    for rate in (0.001, 0.002, 0.003):
        for method in METHODS:
            made_run(tmp_path, method, f"optimizer.lr={rate}", results=[record(-100.0)])
    calls = []
    monkeypatch.setattr(
        "vaebench.report.formats.common_values", lambda *given: calls.append(given) or common_values(*given)
    )
    assert main(["compare", str(tmp_path), "--pair", *METHODS]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("no interval over seeds") == 3
    assert len(calls) == 1


def test_an_invalid_setting_of_a_group_names_its_file():
    """Groups that runs share are checked once; a fault is not remembered for another file."""
    text = to_yaml(composed(())).replace("batch_size: 100", "batch_size: 0")
    for place in ("a/config.yaml", "b/config.yaml"):
        with pytest.raises(UserError, match=rf"^{place}: trainer.batch_size must be >= 1, got 0"):
            from_yaml(text, place)
    assert from_yaml(to_yaml(composed(()))) == composed(())


@pytest.mark.parametrize("length", [1, 3000, 5000, 60_000])
def test_the_last_line_is_found_whatever_its_length(length: int, tmp_path: Path):
    folder = RunFolder(tmp_path)
    tag = "x" * length
    lines = [f'{{"step": {step}, "epoch": 1, "wall": 1, "{tag}": 2}}\n' for step in (1, 2)]
    folder.metrics.write_text("".join([*lines, '{"step": 3']))  # the last one is incomplete
    last = last_metrics(folder)
    assert last is not None
    assert (last["step"], last[tag]) == (2, 2)


def test_intervals_of_several_pairs_hold_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for rate in (0.001, 0.002):
        for gain, method in enumerate(METHODS):
            for seed, noise in enumerate((0.0, 1.0, 3.0)):
                result = record(-100.0 + gain * (2 + noise))
                made_run(tmp_path, method, f"optimizer.lr={rate}", seed=seed, results=[result])
    words = ["compare", str(tmp_path), "--pair", *METHODS]
    assert main(words) == 0
    several = " ".join(capsys.readouterr().out.split())
    assert "95% intervals for 2 comparisons together (Bonferroni)" in several
    assert main([*words, "--filter", "optimizer.lr=0.001"]) == 0
    one = " ".join(capsys.readouterr().out.split())
    assert "95% intervals, test log p(x)" in one
    assert "[-0.46, +7.13]" in one
    assert "[-0.46, +7.13]" not in several


def test_one_seed_told_apart_is_one_pair_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seeds(tmp_path, 1)
    assert main(["compare", str(tmp_path), "--baseline", METHODS[0]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(yes)" in out
    assert "1 pair told apart" in out
    assert out.count("(1) ") == 2  # one training does not make a method the first alone


@pytest.mark.parametrize("command", ["evaluate", "show", "compare", "train --resume", "list runs", "sample"])
def test_tab_completes_runs_and_folders_of_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """By the shell's own function, in bash: a name that bash would run as a command is not offered."""
    for name in ("out/mnist", "out/other", "out/run", "out/x$(touch bad)", "out/.sweeps"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "out/run/config.yaml").touch()
    (tmp_path / "out/report.html").touch()
    monkeypatch.chdir(tmp_path)

    def offered(word: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", f"vaebench {command} {word}")
        assert main(["-sc", "query=bash"]) == 0
        words = capfd.readouterr().out
        script = 'compgen -o nospace -W "$1" -- "$2"'
        done = subprocess.run(["bash", "-c", script, "bash", words, word], capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert offered("o") == ["out/"]
    assert offered("out/") == ["out/mnist/", "out/other/", "out/run"]
    assert offered("out/r") == ["out/run"]
    assert not (tmp_path / "bad").exists()
