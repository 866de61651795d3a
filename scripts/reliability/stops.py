"""Kill a command at every write point, or fill its disk from there on; repeat it; compare with a command left alone."""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliability.content import content, differences
from reliability.processes import Ended, forked
from reliability.write_points import Fault, FaultKind, WritePoints

__all__ = ["SCENARIOS", "Scenario", "StopCounts", "stopped_everywhere"]

# The smallest run that has every file: two epochs of two steps.
TINY = (
    "encoder=gaussian",
    "latent_dim=2",
    "decoder.hidden=[8]",
    "device=cpu",
    "estimator.k=3",
    "trainer.epochs=2",
    "trainer.batch_size=2000",
    "trainer.log_every=1",
    "trainer.validation_k=2",
    "trainer.image_every=1",
    "trainer.progress=false",
    "trainer.threads=1",
)


@dataclass(frozen=True)
class Scenario:
    """One command, and the commands whose runs it needs."""

    name: str
    words: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    in_data: bool = False
    """Whether the command starts without prepared data and writes them."""


SCENARIOS = {
    "train": Scenario("train", ["train", *TINY]),
    "evaluate": Scenario(
        "evaluate", ["evaluate", "OUT", "estimator.k=4", "device=cpu", "threads=1"], [["train", *TINY]]
    ),
    "sweep": Scenario("sweep", ["train", "-m", *TINY, "seed=0,1"]),
    "tune": Scenario("tune", ["tune", *TINY, "optimizer.lr=tag(log,interval(1e-3,1e-2))", "--trials", "2"]),
    "diagnose": Scenario(
        "diagnose",
        ["diagnose", "OUT", "draws=4", "gradients=4", "images=50", "device=cpu", "threads=1"],
        [["train", *TINY]],
    ),
    "data": Scenario("data", ["data", "mnist5k"], in_data=True),
}


@dataclass
class StopCounts:
    """The counts of one scenario."""

    scenario: str
    points: int = 0
    cases: dict[str, int] = field(default_factory=lambda: {"kill": 0, "torn": 0, "full": 0})
    faults: dict[str, list[str]] = field(
        default_factory=lambda: {"differences": [], "doubled": [], "leftovers": [], "tracebacks": [], "other": []}
    )


def placed(words: Sequence[str], out: Path, data: Path) -> list[str]:
    """Return the words of a command for the folders of a case."""
    if words[0] in ("train", "tune"):
        return [*words, f"output_dir={out}", f"data_dir={data}"]
    if words[0] == "data":
        return [*words, f"data_dir={data}"]
    return [str(out) if word == "OUT" else word for word in words]


def command(words: Sequence[str]) -> int:
    """Run one command of vaebench in this process."""
    from vaebench.cli import main

    return main(list(words))


def stopped_everywhere(
    scenario: Scenario,
    work: Path,
    data: Path,
    *,
    kinds: Sequence[FaultKind] = ("kill", "torn", "full"),
    most: int | None = None,
    seed: int = 0,
    patch: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
) -> StopCounts:
    """Stop the scenario's command at its write points, repeat it undisturbed, and count what differs.

    Args:
        scenario: the command.
        work: an empty folder. Every case uses the same place, because config.yaml names it.
        data: prepared data.
        kinds: the faults.
        most: try at most so many cases, drawn at random; None: all.
        seed: of that choice.
        patch: called in the stopped process before the command, for a control.
        say: receives a line for each fault.
    """
    counts, start, out = StopCounts(scenario.name), work / "start", work / "out"
    own_data = work / "data" if scenario.in_data else data
    root = own_data if scenario.in_data else out
    words = placed(scenario.words, out, own_data)
    for earlier in scenario.before:
        _expect_success(forked(lambda given=earlier: command(placed(given, out, own_data))), earlier)
    out.mkdir(exist_ok=True)
    shutil.move(out, start)

    def place_cache() -> None:
        if scenario.in_data:  # the cache is the place for prepared data where data_dir is full: fill that disk, too
            os.environ["XDG_CACHE_HOME"] = str(root / "cache")

    def undisturbed() -> dict[str, Any]:
        place_cache()
        code = command(words)
        return {"code": code, "content": _content(scenario, root)}

    def disturbed(fault: Fault | None) -> Any:
        place_cache()
        patch()
        points = WritePoints(root, fault)
        points.install()
        code = command(words)
        points.end()
        return {"code": code, "log": points.log}

    _fresh(start, out, own_data if scenario.in_data else None)
    log = _expect_success(forked(lambda: disturbed(None), 300), words).answer["log"]
    _fresh(start, out, own_data if scenario.in_data else None)
    expected = _expect_success(forked(undisturbed, 300), words).answer["content"]
    counts.points = len(log)
    for fault in _faults(log, kinds, most, random.Random(seed)):
        _fresh(start, out, own_data if scenario.in_data else None)
        first = forked(lambda fault=fault: disturbed(fault), 120)
        second = forked(undisturbed, 120)
        counts.cases[fault.kind] += 1
        at = "after the last change" if fault.at == len(log) else "{}: {} {}".format(fault.at, *log[fault.at][:2])
        for kind, line in _judged(fault, first, second, expected):
            counts.faults[kind].append(f"{fault.kind} at {at}: {line}")
            say(f"{scenario.name}, {kind}: {counts.faults[kind][-1]}")
    return counts


def _faults(log: Sequence[Any], kinds: Sequence[FaultKind], most: int | None, chance: random.Random) -> list[Fault]:
    """Return the faults to try. A disk fills up at a write or a new folder; only a write can be torn."""
    points = {
        "kill": range(len(log) + 1),
        "torn": [n for n, (operation, _, size) in enumerate(log) if operation == "write" and size > 1],
        "full": [n for n, (operation, _, _) in enumerate(log) if operation in ("write", "mkdir")],
    }
    faults = [Fault(kind, at) for kind in kinds for at in points[kind]]
    return faults if most is None else chance.sample(faults, min(most, len(faults)))


def _judged(fault: Fault, first: Ended, second: Ended, expected: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (kind of fault, one line) for all that is wrong in a case."""
    for ended, which in ((first, "stopped"), (second, "repeated")):
        if ended.traceback:
            yield "tracebacks", f"{which}: {ended.traceback}"
        if ended.timed_out:
            yield "other", f"{which}: does not end"
    if fault.kind == "full" and first.answer and first.answer["code"] not in (0, 1, 2):
        yield "other", f"stopped: exit code {first.answer['code']}"
    if second.answer is None or second.answer["code"] != 0:
        last = second.output.strip().splitlines()[-1:] or [""]
        yield "differences", f"repeated: exit code {second.answer and second.answer['code']}, {last[0][:200]}"
        return
    got = second.answer["content"]
    for kind in ("doubled", "leftovers"):
        if got[kind] and got[kind] != expected[kind]:
            yield kind, f"{len(got[kind])}: {', '.join(got[kind][:2])[:200]}"
    rest = [{k: v for k, v in each.items() if k not in ("doubled", "leftovers")} for each in (expected, got)]
    if lines := differences(*rest):
        yield "differences", f"{len(lines)} files: {'; '.join(lines[:2])[:500]}"


def _content(scenario: Scenario, root: Path) -> dict[str, Any]:
    found = content(root)
    if scenario.name == "sweep":
        found["sweep"] = _sweep(root)
    if scenario.name == "tune":
        found["trials"] = _trials(root)
    return found


def _sweep(root: Path) -> list[Any]:
    """Return what the newest table of a sweep says of each job."""
    import json

    newest = max((root / ".sweeps").iterdir())
    done = {"finished", "resumed", "skipped"}
    jobs = json.loads((newest / "sweep.json").read_text())["jobs"]
    return [["done" if job["status"] in done else job["status"], job["overrides"], job["results"]] for job in jobs]


def _trials(root: Path) -> list[Any]:
    """Return the settings and the value of each finished trial."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (path,) = (root / ".studies").glob("*.jsonl")
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
    (name,) = optuna.study.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return sorted(([trial.params, trial.value] for trial in trials if trial.state.name == "COMPLETE"), key=str)


def _fresh(start: Path, out: Path, data: Path | None) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(start, out)
    if data is not None:
        shutil.rmtree(data, ignore_errors=True)


def _expect_success(ended: Ended, words: Sequence[str]) -> Ended:
    answer = ended.answer
    if answer is None or (answer if isinstance(answer, int) else answer["code"]):
        raise RuntimeError(f"vaebench {' '.join(words)} failed undisturbed:\n{ended.output}")
    return ended
