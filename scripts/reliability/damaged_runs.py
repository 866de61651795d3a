"""Damage every file of a tree of runs, run every command that reads it, and judge what the commands say and do."""

import contextlib
import hashlib
import io
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reliability.content import content, differences
from reliability.damage import Damage, damages
from reliability.processes import Ended, forked
from reliability.stops import TINY, command, placed
from reliability.write_points import Fault, WritePoints

__all__ = ["DamageCounts", "Tree", "damaged_everywhere", "trees"]

_NOTICE = re.compile(
    r"vaebench: |corrupt|damaged|altered|cannot |left out|checksum|not read|invalid|does not|is not|no longer|missing"
    r"|earlier weights|another run|other data|ignor|incomplete|lost|differ|changed|copied|must be|restarting|unknown",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
_TIME = re.compile(
    r"\d+ (?:s|min|h|d|days?|hours?|minutes?|seconds?) ago|\d{4}-\d\d-\d\d.\d\d:\d\d(?::\d\d)?|[\d.]+ (?:[kM]?B|s)\b"
)


@dataclass(frozen=True)
class Tree:
    """A folder with runs, the files to damage, and the commands that read them."""

    name: str
    path: Path
    data: Path
    files: Sequence[str]
    """Relative to the tree."""
    twins: dict[str, str]
    """File -> the same file of another run, both relative to the tree."""
    readers: dict[str, Sequence[str]]
    """Commands that change nothing, by name; the words may hold TREE and TMP."""
    writers: dict[str, Sequence[str]]
    sound: Sequence[str] = ()
    """Run folders that stay sound, as `list runs` prints them."""


@dataclass
class DamageCounts:
    """The counts of one tree."""

    tree: str
    files: int = 0
    damages: Counter[str] = field(default_factory=Counter)
    """Kind -> how many."""
    readings: int = 0
    """Commands run on damaged files."""
    faults: dict[str, list[str]] = field(
        default_factory=lambda: {
            "tracebacks": [],
            "wrong numbers": [],
            "doubled": [],
            "leftovers": [],
            "sound runs lost": [],
            "files outside changed": [],
            "endless": [],
            "no message": [],
        }
    )


def trees(work: Path, data: Path) -> list[Tree]:
    """Make the trees: finished runs with all that commands add to them, and an interrupted run."""
    return [
        _finished(work / "finished", data),
        _interrupted(work / "interrupted", data),
        _search(work / "search", data),
    ]


def _run(words: Sequence[str]) -> None:
    ended = forked(lambda: command(words), 300)
    if ended.answer:
        raise RuntimeError(f"vaebench {' '.join(words)} failed:\n{ended.output}")


def _files(tree: Path, below: Path, *more: str) -> list[str]:
    found = [path for path in sorted(below.rglob("*")) if not path.name.endswith((".lock", ".tmp"))]
    return [
        str(path.relative_to(tree)) for path in found if path.is_file() or path.name in ("checkpoints", "evaluations")
    ] + [str((below / name).relative_to(tree)) for name in more]


def _twins(tree: Path, files: Sequence[str], run: Path, other: Path) -> dict[str, str]:
    """Map each file of ``run`` to the file of ``other`` in the same place of the sorted list of its kind."""
    twins = {}
    for name in files:
        path = tree / name
        if run in path.parents:
            place = other / path.parent.relative_to(run)
            like = sorted(place.glob("events.out*" if path.name.startswith("events") else f"*{path.suffix}"))
            same = [each for each in like if each.name == path.name] or like
            if same and same[0].is_file():
                twins[name] = str(same[0].relative_to(tree))
    return twins


DIAGNOSE = ["draws=4", "gradients=4", "images=50", "device=cpu", "threads=1"]
EVALUATE = ["device=cpu", "threads=1"]


def _finished(tree: Path, data: Path) -> Tree:
    sweep = ["train", "-m", *TINY, "seed=0,1"]
    _run(placed(sweep, tree, data))
    for seed in (0, 1):
        _run(placed(["train", *TINY, "objective=iwae", "k=2", f"seed={seed}"], tree, data))
    runs = sorted((tree / "mnist5k").glob("*/*"))
    run, other = runs[0], runs[1]
    _run(["evaluate", str(tree), "estimator.k=4", *EVALUATE])
    _run(["diagnose", str(tree), *DIAGNOSE])
    _run(["sample", str(run), "n=4", "device=cpu", "threads=1"])
    files = _files(tree, run, ".lock", ".results.lock") + _files(tree, tree / ".sweeps")
    here = str(run.relative_to(tree))
    folder = f"TREE/{here}"
    pair = ["compare", "TREE", "--pair", "objective=elbo,k=1", "objective=iwae,k=2"]
    return Tree(
        "finished runs",
        tree,
        data,
        files,
        _twins(tree, files, run, other),
        {
            "list runs": ["list", "runs", "TREE"],
            "show": ["show", folder, "--settings"],
            "compare": ["compare", "TREE", "--diff"],
            "compare --pair": pair,
            "compare --format json": ["compare", "TREE", "--format", "json"],
            "report": ["report", "TREE", "-o", "TMP/page.html"],
            "board": ["board", "TREE"],
            "board --filter": ["board", "TREE", "--filter", "objective=elbo,iwae"],
        },
        {
            "evaluate again": ["evaluate", folder, "estimator.k=4", *EVALUATE],
            "evaluate anew": ["evaluate", folder, "estimator.k=5", *EVALUATE],
            "train again": ["train", *TINY],
            "train --resume": ["train", "--resume", folder],
            "train -m again": sweep,
            "diagnose": ["diagnose", folder, *DIAGNOSE],
            "sample": ["sample", folder, "n=4", "device=cpu", "threads=1"],
            "reconstruct": ["reconstruct", folder, "n=4", "device=cpu", "threads=1"],
        },
        [str(each.relative_to(tree)) for each in runs[1:]],
    )


def _interrupted(tree: Path, data: Path) -> Tree:
    three = ["train", *TINY, "trainer.epochs=3"]
    words = placed(three, tree, data)

    def killed(fault: Fault | None) -> Any:
        points = WritePoints(tree, fault)
        points.install()
        command(words)
        return points.log

    tree.mkdir()
    log = forked(lambda: killed(None)).answer
    ends = [at for at, (operation, name, _) in enumerate(log) if (operation, name) == ("replace", "last.pt")]
    shutil.rmtree(tree)
    tree.mkdir()
    # In the last epoch: both generations of the checkpoint are there, and records of steps after it.
    forked(lambda: killed(Fault("kill", (ends[-2] + ends[-1]) // 2)))
    (run,) = (tree / "mnist5k").glob("*/*")
    folder = f"TREE/{run.relative_to(tree)}"
    return Tree(
        "an interrupted run",
        tree,
        data,
        _files(tree, run, ".lock"),
        {},
        {"list runs": ["list", "runs", "TREE"], "show": ["show", folder]},
        {
            "train again": three,
            "train --resume": ["train", "--resume", folder],
            "evaluate": ["evaluate", folder, "estimator.k=4", *EVALUATE],
        },
    )


def _search(tree: Path, data: Path) -> Tree:
    words = ["tune", *TINY, "optimizer.lr=tag(log,interval(1e-3,1e-2))", "--trials"]
    _run(placed([*words, "2"], tree, data))
    files = [str(path.relative_to(tree)) for path in sorted((tree / ".studies").iterdir())]
    files += [str(path.relative_to(tree)) for path in sorted((tree / "mnist5k").rglob("metrics.jsonl"))[:1]]
    return Tree(
        "a search",
        tree,
        data,
        files,
        {},
        {"list runs": ["list", "runs", "TREE"]},
        {"tune again": [*words, "2"], "tune longer": [*words, "3"]},
    )


def damaged_everywhere(
    tree: Tree,
    work: Path,
    *,
    seed: int = 0,
    variants: int = 3,
    writers_each: int = 1,
    most: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> DamageCounts:
    """Damage each file of the tree in every way, run the commands, and count what is wrong.

    Args:
        tree: the runs.
        work: an empty folder.
        seed: of the damages.
        variants: how many bit flips, wrong types and edits of each file.
        writers_each: how many of the commands that change the tree to run on each damage; they take turns.
        most: try at most so many damages, drawn at random; None: all.
        say: receives a line for each fault.
    """
    judge, counts = _Judge(tree, work), DamageCounts(tree.name, len(tree.files))
    chance, turns = random.Random(seed), _turns(list(tree.writers))
    outside = work / "outside"
    chosen = [
        damage
        for name in tree.files
        for damage in damages(
            tree.path, name, tree.path / tree.twins[name] if name in tree.twins else None, outside, seed, variants
        )
    ]
    if most is not None and len(chosen) > most:
        chosen = sorted(chance.sample(chosen, most), key=str)
    for damage in chosen:
        counts.damages[damage.kind] += 1
        names = [next(turns) for _ in range(min(writers_each, len(tree.writers)))]
        for groups in ([list(tree.readers)], [[name] for name in names]):
            for group in groups:
                counts.readings += len(group)
                for kind, line in judge.faults(damage, group):
                    counts.faults[kind].append(f"{damage}: {line}")
                    say(f"{tree.name}, {kind}: {counts.faults[kind][-1]}")
    return counts


def _turns(names: list[str]) -> Iterator[str]:
    while True:
        yield from names


class _Judge:
    """Runs commands on a damaged copy of a tree. The copy is always in the place where the tree was made."""

    def __init__(self, tree: Tree, work: Path) -> None:
        self.tree, self.outside, self.temporary = tree, work / "outside", work / "temporary"
        self.kept = work / "kept"
        shutil.copytree(tree.path, self.kept, symlinks=True)
        self.usual: dict[str, Ended] = {}
        self.lines: set[str] = set()
        self.numbers: set[str] = set()
        self.all_numbers_known = False

    def learn(self, names: Sequence[str]) -> None:
        """Note what commands say and do on sound runs."""
        for name in names:
            if name not in self.usual:
                ended = self.usual[name] = self._on(None, [name])
                if ended.answer is None or ended.answer["codes"] != [0]:
                    raise RuntimeError(f"{name} failed on sound runs:\n{ended.answer or ended.output}")
                self.lines |= set(_text(ended).splitlines())
                self.numbers |= set(_NUMBER.findall(_text(ended)))

    def _is_wrong(self, number: str) -> bool:
        """Return whether no command shows this number on sound runs, nor without a run or a part of it."""
        if number not in self.numbers and not self.all_numbers_known:
            self.all_numbers_known = True
            self.learn([*self.tree.readers, *self.tree.writers])
            self.numbers |= self._numbers_of_earlier_steps()
            if self.tree.sound:
                run = str(Path(next(name for name in self.tree.files if name.endswith("config.yaml"))).parent)
                for part in ("", "results.json", "metrics.jsonl", "diagnostics.json", "manifest.json", "status.json"):
                    self.numbers |= self._numbers_without(run, part)
        return number not in self.numbers

    def _numbers_of_earlier_steps(self) -> set[str]:
        """Return the numbers that the readers show if the last lines of the metrics are missing: those of that step."""
        found: set[str] = set()
        names = [name for name in ("list runs", "show", "report") if name in self.tree.readers]
        for name in [name for name in self.tree.files if name.endswith("metrics.jsonl")]:
            lines = (self.kept / name).read_bytes().splitlines(keepends=True)
            for count in range(len(lines)):
                cut = Damage(name, "cut", "", partial(_write, b"".join(lines[:count])))
                found |= set(_NUMBER.findall(_text(self._on(cut, names))))
        return found

    def _numbers_without(self, run: str, part: str) -> set[str]:
        """Return the numbers that the readers show without a run, or without one of its files."""

        def removed(target: Path) -> None:
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()

        name = f"{run}/{part}" if part else run
        return set(_NUMBER.findall(_text(self._on(Damage(name, "missing", "", removed), list(self.tree.readers)))))

    def faults(self, damage: Damage, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield (kind of fault, one line) for commands that run one after another on a fresh damaged copy."""
        self.learn(names)
        ended = self._on(damage, names)
        if ended.timed_out or ended.answer is None:
            yield "endless" if ended.timed_out else "tracebacks", f"{', '.join(names)}: ended with {ended.code}"
            return
        if not ended.answer["outside"]:
            yield "files outside changed", ", ".join(names)
        for name, code, text in zip(names, ended.answer["codes"], ended.answer["texts"], strict=True):
            yield from ((kind, f"{name}: {line}") for kind, line in self._of_one(damage, name, code, text, ended))

    def _of_one(self, damage: Damage, name: str, code: int, raw: str, ended: Ended) -> Iterator[tuple[str, str]]:
        single = Ended(code, raw, None)
        if single.traceback:
            yield "tracebacks", single.traceback
            return
        text = _stable(raw)
        new_lines = [line for line in text.splitlines() if line not in self.lines]
        noticed = [line for line in new_lines if _NOTICE.search(line)]
        if code != 0:
            if not noticed:
                yield "no message", f"exit code {code}: {text.strip()[-100:]}"
            if name in ("list runs", "compare", "report") and self.tree.sound:
                yield "sound runs lost", text.strip().splitlines()[-1][:200]
            return
        if name == "list runs" and (lost := [run for run in self.tree.sound if run not in raw]):
            yield "sound runs lost", ", ".join(lost)
        if noticed:
            return
        numbers = [] if damage.kind == "missing" else [n for n in _NUMBER.findall(text) if self._is_wrong(n)]
        if numbers:
            line = next(line for line in new_lines if numbers[0] in line)
            yield "wrong numbers", f"{', '.join(numbers[:3])} in: {line.strip()[:150]}"
        if name in self.tree.writers:
            expected, got = self.usual[name].answer["content"], ended.answer["content"]
            for kind in ("doubled", "leftovers"):
                if got[kind] != expected[kind] and damage.name not in ended.answer["unchanged"]:
                    yield kind, f"{len(got[kind])}: {', '.join(got[kind][:2])[:200]}"
            rest = [self._compared(each, damage, ended.answer["unchanged"]) for each in (expected, got)]
            if (lines := differences(*rest)) and damage.kind != "missing":
                yield "wrong numbers", f"{len(lines)} files: {'; '.join(lines[:2])[:400]}"

    def _compared(self, found: dict[str, Any], damage: Damage, unchanged: Sequence[str]) -> dict[str, Any]:
        """Return the content without the damaged file, unless a command has written it anew."""
        skipped = {"doubled", "leftovers"}
        if damage.kind in ("link", "folder") or damage.name in unchanged:
            skipped |= {damage.name, f"{Path(damage.name).parent}/events"}
        inside = damage.name + "/"
        return {name: said for name, said in found.items() if name not in skipped and not name.startswith(inside)}

    def _on(self, damage: Damage | None, names: Sequence[str]) -> Ended:
        """Run commands on a copy of the tree with one damage."""
        path = self.tree.path
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.kept, path, symlinks=True)
        for folder in (self.outside, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        if damage is not None:
            damage.apply(path / damage.name)
        before, outside = _digests(path), _digests(self.outside)
        commands = self.tree.readers | self.tree.writers

        def run() -> dict[str, Any]:
            codes, texts = [], []
            for name in names:
                code, text = _captured(self._words(commands[name]))
                codes.append(code)
                texts.append(text)
            after = _digests(path)
            return {
                "codes": codes,
                "texts": texts,
                "outside": _digests(self.outside) == outside,
                "unchanged": [name for name in after if after[name] == before.get(name)] if damage else [],
                "content": content(path) if any(name in self.tree.writers for name in names) else None,
            }

        return forked(run, 120)

    def _words(self, words: Sequence[str]) -> list[str]:
        if words[0] in ("train", "tune") and "--resume" not in words:
            return placed(words, self.tree.path, self.tree.data)
        return [word.replace("TREE", str(self.tree.path)).replace("TMP", str(self.temporary)) for word in words]


def _write(data: bytes, target: Path) -> None:
    target.write_bytes(data)


def _captured(words: list[str]) -> tuple[int, str]:
    """Run one command in this process; return its exit code and its output, with the text of a page that it wrote."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = _board(words) if words[0] == "board" else command(words)
    page = Path(words[-1])
    if words[0] == "report" and code == 0 and page.is_file():
        text.write(_words_of_page(page.read_text()))
    return code, text.getvalue()


def _board(words: list[str]) -> int:
    """Do what `vaebench board` does before it starts TensorBoard."""
    from vaebench.cli.board import SettingsNames, Shown, linked
    from vaebench.cli.failure import exit_code

    try:
        folders = Shown([Path(words[1])], words[3:]).look()
        with linked(SettingsNames().of(folders)):
            print(len(folders), "runs")
    except BaseException as error:
        return exit_code(error, with_traceback=False)
    return 0


def _words_of_page(page: str) -> str:
    for tag in ("svg", "style", "script"):
        page = re.sub(rf"<{tag}\b.*?</{tag}>", " ", page, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", " ", page)


def _text(ended: Ended) -> str:
    return _stable("\n".join(ended.answer["texts"])) if ended.answer else ""


def _stable(text: str) -> str:
    """Return the text without times."""
    return _TIME.sub("TIME", text)


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
