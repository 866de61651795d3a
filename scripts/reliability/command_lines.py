"""Random command lines, and what each does up to the point where work would start.

A line is made from the words of the grammar: real keys, groups, choices and flags, and values that a user
might type by mistake. The lines are the same for the same seed. Nothing is trained, evaluated, drawn or downloaded.
"""

import contextlib
import functools
import io
import os
import random
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from vaebench.cli import main
from vaebench.config import Config, compose, from_yaml, run_folder, to_yaml
from vaebench.config.catalog import config_dir, described, groups
from vaebench.typed import printable

__all__ = ["Outcome", "command_lines", "faults", "make_place", "outcome"]

SECONDS = 60
"""After this time a command counts as one that hangs."""
LONGEST = 1100
"""Characters of a message, with the name of the program."""

# fmt: off
NUMBERS = [
    "0", "1", "-1", "3", "2147483648", "99999999999", "10000000000", "1e30", "1e400", "-1e400", "nan", "inf",
    "-inf", "0.5", "1" * 400, "9" * 5000, "0x10", "1_000", "1e-400", ".5", "-0.0", "00017",
]
TEXTS = [
    "", "a", "true", "null", "Null", "???", "auto", "a b", " a ", "it's (1)", "'a'", "'a", '"a b"', "a,b",
    "a#b", "a=b", "a:b", "müller", "名前", "a\udcffb", "\x1b[31mred", "a\nb", "a\tb", "\x07", "\u202eabc",
    "=HYPERLINK(1)", "<script>", "%s%n{0}", "~", "~/x", "../x", "/dev/null", "/root/none", "C:\\x\\",
    "2026_11_28", "20261128", "2026-11-28", "2026-02-31", "x" * 3000, "[", "]", "{", "}", "(", ")", "\\", "$",
    "$x", "${", "${k}", "${oc.env:HOME}", "${oc.env:NONE}", "${nothing}", "${k:1}", "${now:%Y}", "choice(1,2)",
    "range(3)", "range(0,1,0)", "range(10000000000)", "range(0,inf)", "interval(0,1)", "glob(*)",
    "shuffle(1,2)", "tag(a,1)", "int(x)", "float(inf)", "sort(3,1)", "extend_list(1)", "--", "@", "&a", "*a",
    "!!python/name:os", "!x", "| a", "> a", "? a", "%", "`",
]
NESTED = [
    "[]", "[1]", "[1,2]", "[[1]]", "[a]", "[null]", "[1,a]", "{}", "{0:1}", "{a:1}", "{0:0}", "{-1:2}",
    "{0:{1:2}}", "{0:1,5:2}", "[300,99999999999]", "[" * 200 + "]" * 200, "[" + ",".join(["9"] * 300) + "]",
    "{_target_:os.system}", "[1,2", "{a",
]
HYDRA = [
    "hydra/launcher=joblib", "hydra/launcher=mine", "hydra/launcher=submitit_slurm", "hydra/sweeper=basic",
    "hydra/output=x", "hydra.run.dir=/dev/null/x", "hydra.mode=MULTIRUN", "hydra.mode=x", "hydra.verbose=true",
    "hydra.job.chdir=true", "+hydra.callbacks.a._target_=os.getcwd",
    "+hydra.job_logging.handlers.a.class=os.getcwd", "hydra/job_logging=colorlog",
    "hydra.launcher._target_=os.getcwd", "hydra.sweeper._target_=os.getcwd", "hydra.sweeper.params={k:[1]}",
    "hydra=x", "hydra.job.name=a b", "hydra.sweep.dir=x", "hydra.searchpath=[none]", "hydra.searchpath=1",
    "hydra.job.env_set={A:b}", "hydra.output_subdir=x", "~hydra", "hydra.foo=1",
    "hydra.job.config.override_dirname.kv_sep=1", "hydra/help=default",
]
# fmt: on
YAML = {
    "broken": "a: [\n",
    "itself": "defaults: [itself]\nname: gaussian\n",
    "unknown": "defaults: [gaussian]\nfoo: 3\n",
    "target": "defaults: [gaussian]\n_target_: os.getcwd\n",
    "kind": "defaults: [hvm]\npsi_dim: many\n",
    "alone": "hidden: [3]\n",
    "list": "- 1\n",
    "scalar": "3\n",
    "empty": "",
    "other": "defaults: [{override /prior: mixture}, gaussian]\n",
    "absent": "defaults: [absent_too]\n",
    "defaults": "defaults: 3\n",
    "everywhere": "# @package _global_\nhydra:\n  callbacks:\n    a:\n      _target_: os.getcwd\n",
    "package": "# @package a.b.c\nname: gaussian\n",
    "python": "!!python/object/apply:os.getcwd []\n",
    "bomb": "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{to}: &{to} [{','.join(['*' + one] * 9)}]\n" for one, to in zip("ab", "bc", strict=True)),
    "huge": "defaults: [gaussian]\nhidden: [99999999999]\n",
    "name": "defaults: [gaussian]\nname: none\n",
    "reference": "defaults: [gaussian]\ninner_k: ${encoder.inner_k}\n",
}
"""Yaml files of a user's own, by the name of the choice."""
RUNS = ("run", "it's (1)", "no run", "", "müller", "a\udcffb", "x" * 300)
COMMANDS = [
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "tune",
    "evaluate",
    "evaluate",
    "diagnose",
    "sample",
    "reconstruct",
    "interpolate",
    "traverse",
    "list",
    "data",
    "compare",
    "report",
    "show",
    "selftest",
    "check",
    "new",
]
FLAGS = [
    "-m",
    "--cfg=job",
    "--cfg=x",
    "--cfg",
    "--resolve",
    "--help",
    "--config-dir=mine",
    "--config-dir=none",
    "--config-dir",
    "--resume=none",
    "--info=config",
    "--info",
    "--run",
    "--package=x",
    "--hydra-help",
    "--trials=3",
    "--trials=x",
    "--trials=99999999999",
    "--prune",
    "--seed=-1",
    "--filter",
    "--filter=k>1",
    "--filter=[",
    "--pair",
    "--format=csv",
    "--format=x",
    "--columns=k",
    "--diff",
    "--quantity=x",
    "--unfinished",
    "--output=",
    "--output=x.png",
    "--title=a",
    "--settings",
    "--folder=x",
    "--only=x",
    "--list",
    "--rebuild",
    "--no-download",
    "--foo",
    "-x",
    "-",
    "--config-name=x",
    "--config-name=../train",
    "-cd=mine",
]


WORK = (
    "vaebench.evaluate.run.evaluate",
    "vaebench.diagnose.diagnose",
    "vaebench.draw.draw",
    "vaebench.cli.data.prepare",
    "vaebench.cli.selftest.carry_out",
    "vaebench.cli.check.carry_out",
    "vaebench.cli.new.write_package",
    "vaebench.cli.tune.carry_out",
)
"""Functions that take time, write results or need the network; a line ends where it would call one of them."""
ON_RUNS = ("evaluate", "diagnose", "sample", "reconstruct", "interpolate", "traverse", "show", "report", "compare")
OWN_KEYS = [
    "data_dir",
    "output_dir",
    "name",
    "k",
    "latent_dim",
    "images",
    "draws",
    "n",
    "columns",
    "scale",
    "split",
    "device",
    "threads",
    "nothing",
]
"""Keys at the top, and keys of commands that have their own."""
KEY_FORMS = ["+{}", "++{}", "~{}", "{}@", "{}@x", "{}.", ".{}", "{}.x", "{}[0]", "{}.name", " {}", "{}{}"]


class Outcome(NamedTuple):
    """What one command line did."""

    words: list[str]
    code: int | str
    """The exit code, or the name of the exception that escaped."""
    out: str
    err: str


def command_lines(count: int, seed: int = 0) -> Iterator[list[str]]:
    """Yield ``count`` command lines, the same for the same seed."""
    chance = random.Random(seed)
    keys = list(_keys(compose([]).to_dict()))
    for _ in range(count):
        command = chance.choice(COMMANDS)
        words = [command]
        if command in ON_RUNS:
            words += chance.choices(RUNS, weights=[8, 2, 1, 1, 1, 1, 1], k=1)
        if command == "tune":
            words += ["k=1,2"]
        words += [_word(chance, keys) for _ in range(chance.choices((0, 1, 2, 3), weights=(1, 12, 5, 2))[0])]
        if command == "train" and chance.random() < 0.1:
            words += ["--config-dir=mine", f"encoder={chance.choice(list(YAML))}"]
        if command == "train" and chance.random() < 0.2:
            words += ["-m"]
        yield words


def _keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _word(chance: random.Random, keys: Sequence[str]) -> str:
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(FLAGS)
    if kind < 0.2:
        return chance.choice(HYDRA)
    if kind < 0.23:
        return chance.choice(TEXTS)
    if kind < 0.35:
        group = chance.choice(groups([config_dir()]))
        choice = chance.choice([listed.choice for listed in described(group, [config_dir()])])
        form = chance.choice(["{}", "{}", "{}", "{}", "{}x", "{0},{0}", "[{}]"])
        return f"{group}={form.format(choice)}"
    key = chance.choice([chance.choice(keys), chance.choice(OWN_KEYS)])
    form = chance.choice(["{}"] * 20 + KEY_FORMS)
    value = chance.choice([*chance.choices(NUMBERS, k=2), *chance.choices(TEXTS, k=2), chance.choice(NESTED)])
    return f"{form.format(key, key)}={value}" if chance.random() < 0.97 else form.format(key, key)


def make_place(folder: Path) -> None:
    """Make the files that the lines name in the working folder ``folder``: two runs, and yaml files in ``mine``."""
    (folder / "mine" / "encoder").mkdir(parents=True)
    for name, text in YAML.items():
        (folder / "mine" / "encoder" / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name in ("run", "it's (1)", "müller", "a\udcffb"):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(_defaults(), encoding="utf-8")


@functools.cache
def _defaults() -> str:
    return to_yaml(compose([]))


def _instead_of_training(config: Config, *_: object, **__: object) -> Path:
    """Write and read the configuration, as a training does first."""
    assert from_yaml(to_yaml(config)) == config
    return run_folder(config)


@contextlib.contextmanager
def _without_work() -> Iterator[None]:
    """Replace the functions in `WORK`, and training."""
    with contextlib.ExitStack() as stack:
        for target in WORK:
            stack.enter_context(patch(target, lambda *given, **options: 0))
        stack.enter_context(patch("vaebench.train.session.train", _instead_of_training))
        stack.enter_context(patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0", "COLUMNS": "80"}))
        yield


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def outcome(words: list[str]) -> Outcome:
    """Carry out one command line in this process and in the working folder, up to the point where work would start."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        with (
            _without_work(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            warnings.simplefilter("ignore")
            signal.alarm(SECONDS)  # now: the lines above import torch
            code: int | str = main(words)
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    texts = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]  # pyright: ignore[reportAttributeAccessIssue]
    return Outcome(words, code, *texts)


def faults(found: Outcome) -> list[str]:
    """Return what is wrong with the end of a command: nothing if it ended as docs/cli.md says."""
    several = found.words[0] in ("train", "show")  # they print a message for each invalid job or folder
    messages = [line for line in found.err.split("vaebench: ") if line.strip()]
    wrong = {
        f"exit code {found.code}": found.code not in ((0, 1, 2) if several else (0, 2)),
        "a traceback": "Traceback" in found.err + found.out,
        "exit code 2 without a message": found.code == 2 and not messages,
        "several messages": len(messages) > 1 and not several,
        "a long message": any(len(message) > LONGEST for message in messages),
        "a control character": printable(found.err).replace("\\x09", "\t") != found.err,
    }
    return [name for name, holds in wrong.items() if holds]
