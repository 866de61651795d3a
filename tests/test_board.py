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
from made_runs import made_run

from vaebench.cli import main
from vaebench.cli.board import chosen_folders, logdir
from vaebench.records import Recorder, RunFolder
from vaebench.train.session import CHARTS

SECONDS = 60
TGKILL = {"x86_64": 234, "aarch64": 131}.get(platform.machine())
"""The number of Linux's system call that sends a signal to one thread."""


def trained(root: Path, encoder: str, seed: int) -> RunFolder:
    """Make a run with the events of a short training."""
    folder = made_run(root, f"encoder={encoder}", seed=seed)
    with Recorder(folder, hparams={"encoder": {"name": encoder}}, group=encoder) as recorder:
        recorder.charts(CHARTS)
        for step in range(1, 4):
            parts = {"train/bound": -100.0 - seed, "train/reconstruction": -80.0, "train/kl": 20.0 + seed}
            recorder.scalars(step, step, parts, wall=1.0)
            recorder.scalars(step, step, {"validation/log_likelihood": -90.0 - seed}, wall=1.0)
    # A resumed session says it all again, and TensorBoard must see it once.
    with Recorder(folder, resume_step=2, hparams={"encoder": {"name": encoder}}, group=encoder) as recorder:
        recorder.charts(CHARTS)
        recorder.scalars(3, 3, {"train/bound": -100.0}, wall=1.0)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for encoder in ("gaussian", "hvm"):
        for seed in range(2):
            trained(root, encoder, seed)
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


def test_run_names_are_folder_names(address: str, runs: Path):
    expected = sorted(path.parent.relative_to(runs / "mnist5k").as_posix() for path in runs.rglob("config.yaml"))
    expected = [name for name in expected if not name.startswith("planar")]
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
    assert charts["bound", "bound, reconstruction and KL"] == ["train/bound$", "train/reconstruction$", "train/kl$"]
    assert len(charts) == sum(len(category["chart"]) for category in layout["category"]) == 6


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
        # Three tags of each of four runs.
        shown.wait_for(f"return /Matches\\s+\\(12\\)/.test({TEXT})")
        assert "bound, reconstruction and KL" in shown.run(f"return {TEXT}")
        shown.open(f"{address}#hparams", width=1280, dark=False)
        shown.wait_for(f"return {TEXT}.includes('encoder.name')")
        hosts = {url.split("/")[2] for url in shown.requests() if url.startswith("http")}
        assert hosts == {address.split("/")[2]}


def test_a_row_of_hparams_is_a_configuration(address: str):
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 100,
    }
    data = json.dumps(request).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(
        f"{address}data/plugin/hparams/session_groups", data=data, headers={"Content-Type": "application/json"}
    )
    with opener.open(asked, timeout=SECONDS) as answer:
        groups = json.loads(answer.read())["sessionGroups"]
    assert {group["name"]: len(group["sessions"]) for group in groups} == {"gaussian": 2, "hvm": 2}


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


def test_one_folder_is_shown_as_it_is(runs: Path):
    with logdir([runs], chosen_folders([runs], []), everything=True) as place:
        assert place == runs.resolve()


def test_several_folders_are_shown_by_links(runs: Path):
    paths = [runs / "mnist5k" / name for name in ("gaussian-elbo-k1", "planar-elbo-k1")]
    with logdir(paths, chosen_folders(paths, []), everything=True) as place:
        assert {link.parent.name for link in place.glob("*/*")} == {path.name for path in paths}
        assert len(list(place.glob("*/*/events.out.*"))) == 6
    assert not place.exists()


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
