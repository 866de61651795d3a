"""`vaebench board`: TensorBoard on some runs or all, with the charts and rows that it should show."""

import contextlib
import ctypes
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import available, browser
from made_runs import made_run, record

from vaebench.cli import main
from vaebench.cli.board import FolderNames, Links, Names, SettingsNames, Shown
from vaebench.config import describe, identity, read
from vaebench.records import Recorder, RunFolder
from vaebench.records.result_events import show_results
from vaebench.train.session import CHARTS

SECONDS = 60
TGKILL = {"x86_64": 234, "aarch64": 131}.get(platform.machine())
"""The number of Linux's system call that sends a signal to one thread."""


def trained(root: Path, encoder: str, seed: int, *words: str) -> RunFolder:
    """Make a run with the events of a short training."""
    folder = made_run(root, f"encoder={encoder}", *words, seed=seed)
    config = read(folder.path)
    hparams, group = describe.hparams(config), describe.hparams_title(config)
    with Recorder(folder, hparams=hparams, group=group) as recorder:
        recorder.charts(CHARTS)
        for step in range(1, 4):
            parts = {"train/bound": -100.0 - seed, "train/reconstruction": -80.0, "train/kl": 20.0 + seed}
            recorder.scalars(step, step, parts, wall=1.0)
            recorder.scalars(step, step, {"validation/log_likelihood": -90.0 - seed}, wall=1.0)
    # A resumed session says it all again, and TensorBoard must see it once.
    with Recorder(folder, resume_step=2, hparams=hparams, group=group) as recorder:
        recorder.charts(CHARTS)
        recorder.scalars(3, 3, {"train/bound": -100.0}, wall=1.0)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for encoder in ("gaussian", "hvm"):
        for seed in range(2):
            trained(root, encoder, seed, *(["trainer.ema=0.999"] if encoder == "hvm" else []))
    trained(root, "planar", 0)
    return root


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Of a board with a filter: links to four of the five runs."""
    with started(runs) as (board, address):
        yield address
        board.send_signal(signal.SIGINT)
        assert board.wait(SECONDS) == 0


@contextlib.contextmanager
def started(runs: Path, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start a board with a filter; yield its process and its address."""
    board = subprocess.Popen(
        [sys.executable, "-m", "vaebench", "board", str(runs), "--filter", "encoder=gaussian,hvm"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment,
    )
    assert board.stdout
    with board:
        try:
            assert select.select([board.stdout], [], [], SECONDS)[0], "the board says nothing"
            line = board.stdout.readline()
            found = re.fullmatch(r"TensorBoard on 4 runs at (http://\S+/) \(Ctrl-C stops it\)\n", line)
            assert found, line
            yield board, found[1]
        finally:
            board.kill()


def fetched(address: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=SECONDS) as answer:
        return json.loads(answer.read())


def test_run_names_are_the_settings_that_differ(address: str):
    expected = [f"encoder={encoder} seed={seed}" for encoder in ("gaussian", "hvm ema=0.999") for seed in (0, 1)]
    end = time.monotonic() + SECONDS
    while (found := sorted(fetched(f"{address}data/runs"))) != expected and time.monotonic() < end:
        time.sleep(0.2)
    assert found == expected


def test_all_runs_share_one_layout(address: str):
    end = time.monotonic() + SECONDS
    while not (layout := fetched(f"{address}data/plugin/custom_scalars/layout")) and time.monotonic() < end:
        time.sleep(0.2)
    charts = {
        (category["title"], chart["title"]): chart["multiline"]["tag"]
        for category in layout["category"]
        for chart in category["chart"]
    }
    assert charts["bounds", "validation log-likelihood"] == ["validation/log_likelihood$"]
    assert charts["bounds", "training bound"] == ["train/bound$"]
    assert len(charts) == sum(len(category["chart"]) for category in layout["category"]) == 4
    assert all(len(tags) == 1 for tags in charts.values())


# What the page says, inside of its components too.
TEXT = """(() => {
  const texts = node => node.nodeType == 3 ? [node.data] : ['style', 'script'].includes(node.localName) ? []
    : [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].flatMap(texts)
  return texts(document.body).join(' ')
})()"""


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="there is no chromium with its chromedriver on PATH")
def test_in_a_browser(address: str, tmp_path: Path):
    with browser(tmp_path) as shown:
        shown.open(f"{address}#custom_scalars", width=1280, dark=False)
        # One tag of each of four runs, in each of four charts.
        shown.wait_for(f"return ({TEXT}.match(/Matches\\s+\\(4\\)/g) || []).length == 4")
        shown.open(f"{address}#hparams", width=1280, dark=False)
        shown.wait_for(f"return {TEXT}.includes('encoder.name')")
        hosts = {url.split("/")[2] for url in shown.requests() if url.startswith("http")}
        assert hosts == {address.split("/")[2]}


def asked(address: str, path: str, **request: Any) -> Any:
    """Return what TensorBoard answers to a request of the HParams tab."""
    data = json.dumps({"experimentName": "", **request}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    sent = urllib.request.Request(
        f"{address}data/plugin/hparams/{path}", data=data, headers={"Content-Type": "application/json"}
    )
    with opener.open(sent, timeout=SECONDS) as answer:
        return json.loads(answer.read())


def test_a_row_of_hparams_is_a_configuration(address: str):
    request = {
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_FAILURE", "STATUS_RUNNING"],
        # With numbers and texts in one column, TensorBoard fails to sort.
        "colParams": [{"hparam": "trainer.ema", "order": "ORDER_ASC"}],
        "startIndex": 0,
        "sliceSize": 100,
    }
    groups = asked(address, "session_groups", **request)["sessionGroups"]
    rows = [(group["name"].rpartition(" ")[0], len(group["sessions"])) for group in groups]
    assert rows == [("hvm-elbo-k1", 2), ("gaussian-elbo-k1", 2)]
    assert [group["hparams"]["trainer.ema"] for group in groups] == ["0.999", "null"]


def test_hparams_marks_what_differs_also_with_null(address: str):
    infos = asked(address, "experiment")["hparamInfos"]
    assert {info["name"] for info in infos if info["differs"]} == {"encoder.name", "trainer.ema"}


# how it ends


@pytest.mark.skipif(sys.platform != "linux" or TGKILL is None, reason="no known call sends a signal to one thread")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_receives_ends_it(runs: Path, tmp_path: Path, number: signal.Signals):
    """Without short sleeps the main thread slept for an hour before it handled such a signal."""
    with started(runs, TMPDIR=str(tmp_path)) as (board, _):
        assert list(tmp_path.iterdir())
        threads = [int(name) for name in os.listdir(f"/proc/{board.pid}/task")]
        assert ctypes.CDLL(None).syscall(TGKILL, board.pid, max(set(threads) - {board.pid}), number) == 0
        assert board.wait(SECONDS) == (0 if number == signal.SIGINT else 128 + number)
        assert not list(tmp_path.iterdir())


# which runs


def names_of(shown: Shown, names: Names | None = None) -> list[str]:
    return sorted((names or SettingsNames()).of(shown.look()).values())


def test_folder_names(runs: Path):
    expected = sorted(str(path.parent.relative_to(runs)) for path in runs.rglob("config.yaml"))
    shown = Shown([runs], [])
    assert names_of(shown, FolderNames(shown)) == expected
    shown = Shown([runs / "mnist5k" / name for name in ("gaussian-elbo-k1", "planar-elbo-k1")], [])
    assert {Path(name).parent.name for name in names_of(shown, FolderNames(shown))} == {
        "gaussian-elbo-k1",
        "planar-elbo-k1",
    }


def test_names_are_unique_and_stay_when_runs_are_added(tmp_path: Path):
    made_run(tmp_path / "a", "encoder=hvm", "name=a/b: best")
    made_run(tmp_path / "b", "encoder=hvm")
    shown, names = Shown([tmp_path], []), SettingsNames()
    assert names_of(shown, names) == ["encoder=hvm seed=0", "name=a_b_ best encoder=hvm seed=0"]
    folder = made_run(tmp_path / "c", "encoder=hvm")
    assert names_of(shown, names) == [f"encoder=hvm seed=0 {identity(read(folder.path))}"]
    made_run(tmp_path / "c", "encoder=hvm", "k=4", "encoder.hidden=[7]", "decoder.hidden=[8]")
    assert names_of(shown, names) == ["encoder=hvm k=4 decoder.hidden=[8] encoder.hidden=[7] seed=0"]
    assert names_of(shown, names) == []


def test_a_later_run_is_shown_if_it_meets_the_conditions(tmp_path: Path):
    made_run(tmp_path, "encoder=hvm", "name=mine")
    made_run(tmp_path, "encoder=hvm", "k=2")
    shown = Shown([tmp_path], ["name=mine"])
    assert len(shown.look()) == 1
    made_run(tmp_path, "encoder=hvm", "name=mine", "k=3")
    made_run(tmp_path, "encoder=hvm", "name=yours", "k=4")
    assert [read(folder.path).k for folder in shown.look()] == [3]
    assert shown.look() == []


def test_the_link_of_a_run_with_replaced_results_is_renewed(tmp_path: Path):
    """TensorBoard shows deleted results until the run is gone."""
    (tmp_path / "links").mkdir()
    folder = made_run(tmp_path / "runs", results=[record(-90.0)])
    show_results(folder, identity(read(folder.path)))
    links = Links(tmp_path / "links")
    links.add({folder.path: "mine"})
    link = tmp_path / "links" / "mine"
    links.renew()
    assert link.readlink() == folder.path
    show_results(folder, identity(read(folder.path)))
    links.renew()
    assert not link.is_symlink()
    links.renew()
    assert link.readlink() == folder.path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["--port", "many"], "--port must be an integer"),
        (["--filter", "seed=9"], "no run meets the conditions"),
    ],
)
def test_refused(runs: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["board", *([] if words == ["nowhere"] else [str(runs)]), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(runs: Path, address: str, capsys: pytest.CaptureFixture[str]):
    port = address.rstrip("/").rpartition(":")[2]
    assert main(["board", str(runs), "--port", port]) == 2
    assert "use another port" in capsys.readouterr().err
