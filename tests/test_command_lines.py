"""What a person types, and what a file says: odd words, paths, numbers and texts end in one short message."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_runs import made_run, record
from reliability.command_lines import YAML, Outcome, command_lines, faults, make_place, outcome

from vaebench import runtime
from vaebench.cli import main
from vaebench.cli.failure import describe
from vaebench.config import compose, for_evaluation, from_yaml, to_yaml
from vaebench.config.words import as_typed, for_hydra
from vaebench.errors import UserError
from vaebench.typed import printable

EVIL = "\x1b]0;title\x07=HYPERLINK(1)|<script>\u202e\n%"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of command lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAEBENCH_DATA_DIR", raising=False)
    make_place(tmp_path)
    return tmp_path


# Command lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(5))
def test_random_command_lines_end_in_success_or_one_short_message(part: int, place: Path):
    found = [outcome(words) for words in command_lines(8, seed=100 + part)]
    assert {str(one.words): (wrong, one.err) for one in found if (wrong := faults(one))} == {}


def test_control_faults_are_found():
    found = Outcome(["compare"], "KeyError: 1", "", "Traceback ...\nvaebench: a\x1b\nvaebench: " + "b" * 2000)
    assert len(faults(found)) == 5
    assert faults(Outcome(["show"], 2, "", "vaebench: missing RUN\n")) == []


@pytest.mark.parametrize("choice", YAML)
def test_a_users_yaml_never_ends_in_a_traceback(choice: str, place: Path):
    found = outcome(["train", "--config-dir=mine", f"encoder={choice}"])
    assert faults(found) == []
    # The registry refuses an unknown name when it builds.
    assert found.code == (0 if choice == "name" else 2), found.err


REFUSED = {
    "trainer=[0]": "trainer must be the name of a choice, got [0]",
    "encoder=[gaussian]": "encoder must be the name of a choice: `vaebench list encoder`",
    "k=[1]": "k must be an integer, got [1]",
    "latent_dim=99999999999": "latent_dim must be <= 1000000000, got 99999999999",
    "decoder.hidden=[100000]": "decoder.hidden[0] must be <= 65536, got 100000",
    "encoder.psi_dim=99999999999": "encoder.psi_dim must be from -1000000000 to 1000000000, got 99999999999",
    "trainer.epochs=10000000000": "trainer.epochs must be <= 1000000000, got 10000000000",
    "trainer.epochs=2000000": "trainer.epochs must be <= 1000000, got 2000000",
    "name=a\x1b[0m": r"name must be UTF-8 text without control characters, got 'a\x1b[0m'",
    "output_dir=a\udcff": r"output_dir must be UTF-8 text without control characters, got 'a\udcff'",
    "+hydra.callbacks.a._target_=os.getcwd": "hydra.callbacks is not supported",
    "+hydra.job_logging.handlers.a.class=os.getcwd": "hydra.job_logging is not supported",
}


@pytest.mark.parametrize("word", REFUSED)
def test_refused_with_its_value(word: str, place: Path):
    encoder = ["encoder=hvm", "objective=hvm"] if "psi_dim" in word else []
    found = outcome(["train", *encoder, word])
    assert (found.code, faults(found)) == (2, [])
    assert REFUSED[word] in found.err


@pytest.mark.parametrize("word", ["hydra/launcher=mine", "k=range(10000000000)", "k=range(0,200) seed=range(0,200)"])
def test_refused_sweep(word: str, place: Path):
    found = outcome(["train", "-m", *word.split()])
    assert (found.code, faults(found)) == (2, [])


def test_a_message_repeats_at_most_200_characters_of_a_word(place: Path):
    for word in ("k=" + "x" * 5000, "y" * 5000, "z" * 5000 + "=1", "encoder=" + "x" * 5000, "k=[" + "1," * 3000 + "1]"):
        error = outcome(["train", word]).err
        assert all(error.count(letter * 210) == 0 for letter in "xyz")
        assert len(error) < 1000
    assert len(describe(UserError("long " * 1000))) < 1000


# Paths and names --------------------------------------------------------------------------------------------

TYPED = [
    "/home/müller/data", "it's (1)", "a#b", "a,b", "a=b", "a b", " a ", '"a', "C:\\x\\", "2026_11_28", "20261128",
    "1e5", "true", "Null", "[x]", "{x}", "a:b", "名前", "x'y\"z", "\\'", "a\\,b", "%s", "$x", "`a`", "!x", "@a", "a/b",
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_paths_and_names_are_taken_as_typed(text: str):
    for key in ("data_dir", "output_dir", "name"):
        word = f"{key}={text}"
        assert as_typed(for_hydra(word)) == word
        assert for_hydra(for_hydra(word)) == for_hydra(word)
    config = compose([f"data_dir={text}", f"output_dir={text}", f"+name={text}"])
    assert (config.data_dir, config.output_dir, config.name) == (text, text, text)
    assert from_yaml(to_yaml(config)) == config
    assert for_evaluation(compose([]), [f"data_dir={text}"]).data_dir == text


def test_quotes_and_null_keep_their_meaning():
    assert compose(["name='a b'"]).name == "a b"
    assert compose(["name=null"]).name is None
    assert compose(["name=${encoder.name} x"]).name == "gaussian x"


def test_a_comma_in_a_path_does_not_sweep(place: Path):
    found = outcome(["train", "-m", "output_dir=a,b", "k=1,2"])
    assert (found.code, (place / "a,b").is_dir()) == (0, True)
    assert "output_dir=a,b" in found.out
    assert "2 jobs" in found.out
    assert "left out 1 of 2 combinations" in outcome(["train", "-m", "output_dir=choice(c,d)"]).out


# Memory and threads -----------------------------------------------------------------------------------------


def test_networks_too_large_for_memory_are_refused_before_they_fill_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "free_memory", lambda device: 16 * 1000)
    with runtime.parameters_within_memory("use less"):
        torch.nn.Linear(30, 30)
    message = r"the networks have 90,000 parameters or more, too many for 1.6e-05 GB of free memory: use less"
    with pytest.raises(UserError, match=message), runtime.parameters_within_memory("use less"):
        torch.nn.Linear(300, 300)
    torch.nn.Linear(300, 300)  # the limit ends with the block


def test_memory_that_runs_out_while_building_is_a_message():
    with pytest.raises(UserError, match="out of memory: use less"), runtime.parameters_within_memory("use less"):
        torch.empty(1 << 55)


def test_too_many_threads_are_refused():
    with pytest.raises(UserError, match=r"threads must be <= \d+ on this machine of \d+ cores, got 100000"):
        runtime.set_threads(100000)


# Texts from files -------------------------------------------------------------------------------------------


@pytest.fixture
def evil_run(tmp_path: Path) -> Path:
    """A run whose records and folder name hold texts that a terminal, a table or a spreadsheet would obey."""
    root = tmp_path / "runs"
    made_run(root, results=[record(-90.0, estimator=EVIL, protocol=EVIL)], command=["vaebench", EVIL], host=EVIL)
    made_run(root, "k=2", results=[record(-91.0, estimator="=1+1")], state="failed")
    root.rename(tmp_path / "a\x1b[31m\udcff")
    return tmp_path


@pytest.mark.parametrize(
    "words", [["list", "runs"], ["compare"], *(["compare", "--format", form] for form in ("md", "csv", "latex"))]
)
def test_texts_from_files_are_escaped(words: list[str], evil_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*words, str(evil_run), *(["--unfinished"] if words[0] == "compare" else [])]) == 0
    text = capsys.readouterr().out
    assert printable(text) == text
    assert "\\x1b" in text or words[-1] == "latex" or "textbackslash" in text
    if words[-1] == "md":
        assert "<script" not in text
    if words[-1] == "latex":
        assert all(line.startswith("%") or not line.startswith("title") for line in text.splitlines())
    if words[-1] == "csv":
        assert ",=1+1" not in text
        assert "'=1+1" in text


def test_show_escapes_texts(evil_run: Path, capsys: pytest.CaptureFixture[str]):
    for config in evil_run.rglob("config.yaml"):
        assert main(["show", str(config.parent)]) == 0
    text = capsys.readouterr().out
    assert printable(text) == text


def test_the_page_escapes_html(evil_run: Path):
    assert main(["report", str(evil_run), "-o", str(evil_run / "page.html"), "--unfinished"]) == 0
    text = (evil_run / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script" in text


def test_ascii_output_replaces_letters(evil_run: Path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    (evil_run / "a\x1b[31m\udcff").rename(evil_run / "müller")
    words = [sys.executable, "-m", "vaebench", "compare", "müller", "--format", "md", "--unfinished"]
    done = subprocess.run(words, cwd=evil_run, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"\\u2265" in done.stdout


def test_control_an_ascii_stream_refuses_letters():
    with pytest.raises(UnicodeEncodeError):
        print("≥", file=io.TextIOWrapper(io.BytesIO(), "ascii"))
