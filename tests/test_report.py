"""`vaebench report`: one page that needs nothing else, shown in a real browser where there is one."""

import base64
import cProfile
import csv
import itertools
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
import scipy.stats
from browser import Browser, available, browser
from made_runs import made_run, record

from vaebench.cli import main
from vaebench.config import compose
from vaebench.direction import Direction
from vaebench.records import Diagnostic, Diagnostics, Recorder, RunFolder, read_metrics, write_diagnostics
from vaebench.report.charts import FRAME, Chart, Point, Series, axes_of, ticks
from vaebench.report.curves import Curve
from vaebench.report.groups import MeanCurve, RunGroup

METHODS = [("gaussian", "elbo", 1), ("gaussian", "iwae", 5), ("hvm", "iwae", 5), ("avb", "elbo", 1)]


def with_curves(folder: RunFolder, level: float, *, pictures: bool = True) -> None:
    """Record curves and pictures as a training does."""
    with Recorder(folder) as recorder:
        for epoch in range(1, 6):
            fall = 100.0 * math.exp(-epoch)
            parts = {
                "train/bound": level - fall,
                "train/reconstruction": level - fall - 20.0,
                "train/kl": 20.0 - fall / 50,
            }
            recorder.scalars(40 * epoch, epoch, parts, wall=2.0 * epoch)
            recorder.scalars(40 * epoch, epoch, {"validation/log_likelihood": level - fall}, wall=2.0 * epoch)
        for step in (40, 200) if pictures else ():
            recorder.image("samples", numpy.full((16, 28, 28), step, dtype=numpy.uint8), step)


DIAGNOSTICS = Diagnostics(
    epoch=5,
    split="test",
    protocol="mnist5k/dynamic-v1",
    n_images=500,
    seconds=1.0,
    settings={"draws": 10},
    measures={
        "active_units": Diagnostic(title="active units", value=3.0, definition="those that <vary>", unit="of 4"),
        "rate": Diagnostic(
            title="rate", value=6.231, stderr=0.021, definition="KL", unit="nats", direction=Direction.UPPER_BOUND
        ),
        "ess": Diagnostic(title="effective weights", value=None, definition="refused"),
    },
    coordinates={"variance_of_mean": [1.0, 0.5, 2.0, 0.0], "kl": [1.0, 0.5, 2.0, 0.0]},
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small grid with three seeds, one run under way, one failed, pictures and diagnostics."""
    root = tmp_path_factory.mktemp("runs")
    for index, (encoder, objective, k) in enumerate(METHODS):
        overrides = (f"encoder={encoder}", f"objective={objective}", f"k={k}")
        for seed in range(3):
            level = -100.0 + 3 * index + seed / 3
            direction = "estimate" if encoder == "avb" else "lower_bound"
            inner: dict[str, Any] = {"estimator": "DIWHVI", "inner_k": 0} if encoder == "hvm" else {}
            results = [record(level, epoch=5, stderr=0.8, direction=direction, **inner)]
            folder = made_run(root, *overrides, seed=seed, results=results, device="cpu (1 threads)")
            with_curves(folder, level, pictures=seed == 0)  # those of one seed are shown
    with_curves(made_run(root, "encoder=realnvp", state="interrupted"), -95.0)
    made_run(root, "encoder=planar", state="failed")
    first = next(RunFolder.find([root]).__iter__())
    write_diagnostics(first, DIAGNOSTICS)
    (first.path / "pictures").mkdir()
    with Recorder(RunFolder(root / "elsewhere").create("k: 1\n")) as recorder:
        recorder.image("x", numpy.zeros((1, 28, 28)), 1)
    (root / "elsewhere" / "config.yaml").unlink()
    from vaebench.records.events import read_pictures

    (first.path / "pictures" / "latent_traversal.png").write_bytes(read_pictures(root / "elsewhere")["x"][1])
    return root


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    path = runs / "made" / "report.html"
    assert main(["report", str(runs), "-o", str(path), "--title", "a <b>title</b>"]) == 0
    return path


class Read(HTMLParser):
    """What a page is made of; refuses tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: Path) -> Read:
    parser = Read()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_the_page_needs_nothing_else(page: Path):
    tags = read(page).tags
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    sources = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "data")]
    assert sources
    assert all(value and value.startswith(("data:", "#")) for value in sources)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page.read_text(encoding="utf-8"))


def test_all_text_is_escaped(tmp_path: Path):
    bad = '<b>&"' + "'"
    command = ["vaebench", "train", bad]
    results = [record(-1.0, epoch=5)]
    folder = made_run(tmp_path, "encoder=gaussian", results=results, command=command, device=bad, host=bad)
    with_curves(folder, -1.0)
    write_diagnostics(folder, replace(DIAGNOSTICS, measures={"a": Diagnostic(title=bad, value=1.0, definition=bad)}))
    made_run(tmp_path, "encoder=hvm", state="running").write_status("failed", bad)
    output = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "-o", str(output), "--title", bad]) == 0
    tags = [tag for tag, _ in read(output).tags]
    assert "b" not in tags
    assert output.read_text(encoding="utf-8").count("&lt;b&gt;&amp;&#34;") >= 6


def test_a_run_that_stopped_early_is_marked_in_the_page(tmp_path: Path):
    made_run(tmp_path, "encoder=gaussian", results=[record(-1.0)], stopped_early={"epoch": 12, "of": 50})
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ">≥ \N{MINUS SIGN}1.00^ ± 0.50<" in text
    assert "1 run (marked ^) stopped early: 12 of 50 epochs" in text


def test_dots_and_curves_carry_a_direction(page: Path):
    text = page.read_text(encoding="utf-8")
    for title in (
        "seed 0: ≥ \N{MINUS SIGN}94.00 ± 0.80",  # hvm's dot in the table
        "hvm iwae k=5, seed 0: ≥ \N{MINUS SIGN}94.00 ± 0.80, 10 s",  # and against compute
        "avb elbo k=1, seed 0: ~ \N{MINUS SIGN}91.00 ± 0.80, 10 s",
        "gaussian elbo k=1: ≥ \N{MINUS SIGN}100.34 at epoch 5",  # the end of a curve
    ):
        assert f"<title>{title}</title>" in text
    assert "<figcaption>Validation log p(x), lower bound</figcaption>" in text
    assert "Validation: lower bound by IWAE, k=50, with the weights at that time" in text
    assert "Test log p(x) by training time (500 images, IWAE/DIWHVI, k=64, inner_k=0, trainer.epochs=50)" in text


def test_links_within_the_page_arrive(page: Path):
    tags = read(page).tags
    places = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert len(places) == sum("id" in attributes for _, attributes in tags)  # none twice
    inner = {attributes["href"] for tag, attributes in tags if tag == "a" and "download" not in attributes}
    assert inner <= {f"#{place}" for place in places}


def test_what_the_page_says(page: Path):
    text = page.read_text(encoding="utf-8")
    for expected in (
        "a &lt;b&gt;title&lt;/b&gt;",
        "≥ \N{MINUS SIGN}93.67 ± 0.80<",  # hvm: -94 and a third of 0, 1, 2
        "~ \N{MINUS SIGN}90.67 ± 0.80<",
        "lower bound \N{MINUS SIGN}93.67, error over images 0.80".replace("\N{MINUS SIGN}", "-"),
        "<strong>optimiser</strong> adam, lr",
        "vaebench train encoder=gaussian objective=elbo k=1",
        "interrupted at epoch 5 of 50",
        "failed at epoch 0 of 50",
        "Latent traversal",
        "those that &lt;vary&gt;",
        "active units, of\N{NO-BREAK SPACE}4</th>",
        ">~ 3<",
        ">rate</th>",
        ">≤ 6.23 ± 0.02<",
        ">KL per latent coordinate, largest first</h3>",
        ">KL; nats on one scale, mean and standard deviation over seeds</p>",
        "realnvp elbo k=1 (1 of 1 unfinished)",
    ):
        assert expected in text
    # The latest of two pictures, once for each method that has one.
    assert text.count("seed 0, step 200") == 2 * (len(METHODS) + 1)
    assert "step 40" not in text
    assert " ago" not in text  # a page is read long after


def test_filters_and_refusals(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "one.html"
    assert main(["report", str(runs), "--filter", "encoder=hvm", "-o", str(output)]) == 0
    assert "gaussian" not in output.read_text(encoding="utf-8")
    assert main(["report", str(runs), "--filter", "encoder=hvm,k=7", "-o", str(output)]) == 2
    assert main(["report", str(runs), "-o", str(tmp_path)]) == 2
    assert "is a folder: give a file name" in capsys.readouterr().err


def test_a_run_without_its_manifest_keeps_its_table(tmp_path: Path):
    data = {"protocol": "mnist5k/dynamic-v1", "fingerprint": "abc"}
    made_run(tmp_path, "encoder=planar", results=[record(-80.0)], dataset=data)
    for seed in range(2):
        folder = made_run(tmp_path, "encoder=gaussian", seed=seed, results=[record(-90.0 - seed)], dataset=data)
    folder.manifest.unlink()
    made_run(tmp_path, "encoder=hvm", results=[record(-85.0)], dataset=data)
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "-o", str(path)]) == 0
    text = path.read_text()
    assert text.count('<section class="data">') == 1
    assert text.count('<table class="results">') == 2  # without the fingerprint of its data, the run has another table


def test_runs_without_a_result_or_a_curve_make_a_page(tmp_path: Path):
    made_run(tmp_path, "encoder=gaussian", state="failed").manifest.unlink()
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 0
    assert "failed at epoch 0 of 50" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_differences_stand_beside_the_results(tmp_path: Path):
    """Without a baseline they are from the first row; with one they are the first column."""
    for encoder, levels in (("gaussian", (-90.0, -90.1, -90.2)), ("hvm", (-95.0, -95.2, -95.1)), ("planar", (-99.0,))):
        for seed, level in enumerate(levels):
            made_run(tmp_path, f"encoder={encoder}", seed=seed, results=[record(level, stderr=0.8)])
    output, folder = tmp_path / "r.html", tmp_path / "charts"
    assert main(["report", str(tmp_path), "-o", str(output), "--charts", str(folder)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "difference from gaussian</th>" in text
    half = scipy.stats.t.ppf(0.975, 2) * numpy.std([-5.0, -5.1, -4.9], ddof=1) / math.sqrt(3)
    assert f"{-5:.2f} [{-5 - half:.2f}, {-5 + half:.2f}]".replace("-", "\N{MINUS SIGN}") in text
    rows = list(csv.DictReader((folder / "mnist5k-dynamic-v1-results.csv").read_text().splitlines()))
    assert [row["told apart"] for row in rows] == [
        "",
        "True",
        "",
    ]  # planar has one seed and no results per image: no rank
    assert float(rows[1]["difference low end (nats)"]) == pytest.approx(-5 - half)
    assert main(["report", str(tmp_path), "-o", str(output), "--baseline", "encoder=hvm"]) == 0
    text = output.read_text(encoding="utf-8")
    assert ' method</span></th><th class="number">difference</th>' in text
    assert "+5.00 [" in text
    assert "difference: from hvm elbo k=1" in text


def test_charts_of_few_methods_and_a_table_of_all(tmp_path: Path):
    """The style sheet has no :has(), which takes time for every pair of a rule and an element."""
    for number in range(3):
        results = [record(-90.0 - number, epoch=5)]
        with_curves(made_run(tmp_path, "encoder=gaussian", f"latent_dim={2 + number}", results=results), -90.0 - number)
    output = tmp_path / "r.html"
    assert main(["report", str(tmp_path), "-o", str(output), "--methods", "2", "--charts", str(tmp_path / "c")]) == 0
    text = output.read_text(encoding="utf-8")
    style = text[: text.index("</style>")]
    assert style.count(":has") == 0
    assert style.count(":not(:checked) ~ .body .s") == 3  # two methods, and the single seeds
    assert text.count('type="checkbox"') == 2
    assert text.count('<th scope="row">') == 3
    assert text.count("<img ") == 2
    curves = (tmp_path / "c" / "mnist5k-dynamic-v1-validation-by-epoch.csv").read_text()
    names = {line.split(",")[0] for line in curves.splitlines()[1:]}
    assert names == {"gaussian elbo k=1", "gaussian elbo k=1 latent_dim=3"}


def test_work_grows_with_the_runs_and_no_metrics_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each file of metrics is read once, and twice the seeds take at most twice the calls of functions."""
    from vaebench.report import compare, curves, groups, learning_curves
    from vaebench.report.page import page

    for module in (groups, learning_curves):
        monkeypatch.setattr(module, "CURVE_SEEDS", 8)

    read: list[Path] = []

    def counted_read(folder: RunFolder) -> list[dict[str, Any]]:
        read.append(folder.path)
        return read_metrics(folder)

    monkeypatch.setattr(curves, "read_metrics", counted_read)
    line = {"step": 1, "epoch": 5.0, "wall": 2.0, "validation/log_likelihood": -90.0, "train/kl": 1.0}
    calls = []
    for seeds in (range(6), range(6, 12)):
        for seed in seeds:
            made_run(tmp_path, "encoder=gaussian", seed=seed, results=[record(-90.0 - seed, epoch=5)], metrics=[line])
        comparison = compare([tmp_path])
        with cProfile.Profile() as profile:
            page(comparison.selected, comparison)
        calls.append(sum(entry.callcount for entry in profile.getstats()))
    assert len(read) == len(set(read)) + 6 == 14
    assert "first 8 seeds of a method; the largest has 12 seeds" in page(comparison.selected, comparison).text
    assert calls[1] < 2 * calls[0]


def test_the_curves_are_without_a_run_with_corrupt_metrics(tmp_path: Path):
    line = {"step": 1, "epoch": 5.0, "wall": 2.0, "validation/log_likelihood": -90.0}
    made_run(tmp_path, "encoder=gaussian", metrics=[line], results=[record(-90.0, epoch=5)])
    folder = made_run(tmp_path, "encoder=gaussian", seed=1, state="interrupted", metrics=[line])
    folder.metrics.write_text("[]\n" + folder.metrics.read_text())
    output = tmp_path / "r.html"
    assert main(["report", str(tmp_path), "-o", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "The curves are without this run" in text
    assert "gaussian elbo k=1: ≥ \N{MINUS SIGN}90.00 at epoch 5" in text


def test_pictures_of_charts_need_no_style_sheet(page: Path, tmp_path: Path, runs: Path):
    assert main(["report", str(runs), "-o", str(tmp_path / "r.html"), "--charts", str(tmp_path / "c")]) == 0
    pictures = sorted((tmp_path / "c").glob("*.svg"))
    assert len(pictures) >= 7
    for path in pictures:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in path.read_text(encoding="utf-8")
        assert path.with_suffix(".csv").stat().st_size > 50
        title = root.findall("{*}text[@class='heading']")
        assert all(8 * len(line.text or "") <= float(root.attrib["width"]) for line in title)
        head = path.with_suffix(".csv").read_text(encoding="utf-8").partition("\n")[0]
        assert "nats" in head
        assert "direction" in head or "quantity" in head
    colours = re.findall(r"\.c0 \.mean \{[^}]*stroke: (#\w+)", "".join(path.read_text() for path in pictures))
    assert set(colours) == {"#0b62a8"}


# the parts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-182.0, -161.0, [-180, -175, -170, -165]), (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-0.001, 0.001, None)],
)
def test_ticks_are_round_numbers_in_the_range(low: float, high: float, expected: list[float] | None):
    found = ticks(low, high)
    assert all(low - 1e-12 <= value <= high + 1e-12 for value in found)
    assert 3 <= len(found) <= 8
    if expected:
        assert found == pytest.approx(expected)


def test_the_mean_of_seeds_is_taken_where_all_have_values():
    a = Curve("t", [1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [-100.0, -90.0, -80.0])
    b = Curve("t", [1.0, 2.0], [20.0, 40.0], [-110.0, -100.0])
    mean = MeanCurve()
    mean.add(a)
    mean.add(b)
    assert mean.curve("t") == Curve("t", [1.0, 2.0], [15.0, 30.0], [-105.0, -95.0])
    mean.add(Curve("t", [1.0, 2.0], [11.0, 9000.0], [-120.0, -110.0]))  # it stood still
    assert mean.curve("t") == Curve("t", [1.0, 2.0], [11.0, 40.0], [-110.0, -100.0])


def test_the_scale_has_the_ends_of_short_and_of_long_trainings():
    group, long = (
        RunGroup(0, "a", "a", {}, []),
        ([float(x) for x in range(1, 41)], [-90.0 - 0.1 * x for x in range(40)]),
    )
    series = [Series(group, "", long), Series(group, "", ([2.0, 4.0], [-120.0, -110.0])), Series(group, "", ([], []))]
    low, _ = axes_of(series, zoom=True).y
    assert -125.0 < low < -120.0


def test_names_of_curves_overlap_neither_each_other_nor_a_mark():
    """Five curves that end together have their names in the margin; points have them beside their marks."""
    runs = [RunGroup(number, f"method {number}", f"method {number}", {}, []) for number in range(5)]
    lines = [Series(group, "", ([1.0, 2.0, 3.0], [-90.0, -85.0, -80.0 + group.number / 9])) for group in runs]
    longer = Series(RunGroup(5, "longer", "longer", {}, []), "", ([1.0, 2.0, 9.0], [-90.0, -85.0, -70.0]))
    labels = Chart("a", "", "", "epoch", axes_of([*lines, longer]), [*lines, longer]).labels()
    assert {label.x for label in labels} == {FRAME.right + 11}
    heights = sorted(label.y for label in labels)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 11
    marks = [Point(10.0 + x, -80.0, 1.0, Direction.LOWER_BOUND, "") for x in (0.0, 4.0, 8.0, 12.0, 40.0)]
    points = [Series(group, "", points=[mark]) for group, mark in zip(runs, marks, strict=True)]
    chart = Chart("b", "", "", "seconds", axes_of(points), points)
    beside = [label for label in chart.labels() if not label.leader]
    assert len(beside) == 4
    places = [(label.x, label.x + 6 * len(label.text), label.y) for label in beside]
    places += [(x - 5, x + 5, chart.axes.down(-80.0) + 4) for x in (chart.axes.across(mark.x) for mark in marks)]
    for (left, right, y), (start, end, other) in itertools.combinations(places[: len(beside)], 2):
        assert abs(y - other) >= 11 or right < start or end < left
    for left, right, y in places[: len(beside)]:
        for start, end, other in places[len(beside) :]:
            assert abs(y - other) >= 11 or right < start or end < left


# in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not available():
        pytest.skip("there is no chromium with its chromedriver on PATH")
    with browser(tmp_path_factory.mktemp("profile")) as started:
        started.send("url", url="about:blank")
        started.requests()
        yield started


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(chromium: Browser, page: Path, width: int, dark: bool):
    chromium.open(page.as_uri(), width=width, dark=dark)
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
    assert chromium.logged("browser") == []
    fetched = [url for url in chromium.requests() if not url.startswith(("data:", "chrome:", "about:"))]
    assert fetched == [page.as_uri()]
    assert chromium.run("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    brightness = chromium.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(brightness) < 80 if dark else min(brightness) > 200


CONTRAST = """
const luminance = colour => {
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
  const linear = parts.map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
const probe = document.createElement('i')
document.body.append(probe)
const seen = name => { probe.style.color = `var(${name})`; return luminance(getComputedStyle(probe).color) }
return Object.fromEntries(arguments[0].map(name => [name, ratio(seen(name), seen('--panel'))]))
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_stand_out(chromium: Browser, page: Path, dark: bool):
    """WCAG: 4.5 for text, 3 for lines in charts."""
    chromium.open(page.as_uri(), width=1280, dark=dark)
    text = chromium.run(CONTRAST, ["--ink", "--soft", "--accent"])
    lines = chromium.run(CONTRAST, [f"--c{number}" for number in range(8)])
    assert min(text.values()) >= 4.5, text
    assert min(lines.values()) >= 3, lines


def test_a_method_is_hidden_by_its_box_with_the_keyboard(chromium: Browser, page: Path):
    chromium.open(page.as_uri(), width=1280, dark=False)
    shown = "return [...document.querySelectorAll('.s0')].filter(e => getComputedStyle(e).display != 'none').length"
    assert chromium.run(shown) > 5
    chromium.run("document.getElementById('show0').focus()")
    chromium.press(" ")
    assert chromium.run(shown) == 0


def test_single_seeds_appear_with_their_box(chromium: Browser, page: Path):
    chromium.open(page.as_uri(), width=1280, dark=False)
    hidden = "return [...document.querySelectorAll('.seed')].every(e => getComputedStyle(e).display == 'none')"
    assert chromium.run(hidden)
    chromium.run("document.querySelector('.seeds + label').click()")
    assert not chromium.run(hidden)


def test_the_data_of_a_chart_can_be_saved(chromium: Browser, page: Path, tmp_path: Path):
    chromium.chrome("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    chromium.open(page.as_uri(), width=1280, dark=False)
    name = "mnist5k-dynamic-v1-compute.csv"
    link = f"document.querySelector('a[download=\"{name}\"]')"
    chromium.run(f"{link}.closest('details').open = true; {link}.click()")
    end = time.monotonic() + 20
    while not (tmp_path / name).exists() and time.monotonic() < end:
        time.sleep(0.05)
    uri = chromium.run(f"return {link}.href")
    assert (tmp_path / name).read_bytes() == base64.b64decode(uri.partition(",")[2])
    assert (
        (tmp_path / name)
        .read_text()
        .startswith("method,seed,direction,seconds of training,nats per image,standard error")
    )


def test_no_table_scrolls_on_a_laptop(chromium: Browser, page: Path):
    chromium.open(page.as_uri(), width=1280, dark=False)
    script = "return [...document.querySelectorAll('.wide')].map(one => one.scrollWidth - one.clientWidth)"
    assert max(chromium.run(script)) <= 0


def test_on_a_phone_the_result_is_beside_the_name(chromium: Browser, page: Path):
    chromium.open(page.as_uri(), width=390, dark=False)
    script = (
        "return document.querySelector('.results tbody tr').children[1].getBoundingClientRect().right <= innerWidth"
    )
    assert chromium.run(script)
    assert "93.67" in chromium.run("return document.querySelectorAll('.results tbody tr')[0].children[1].innerText")


def test_every_run_opens_to_its_command(chromium: Browser, page: Path):
    chromium.open(page.as_uri(), width=390, dark=False)
    chromium.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
    assert "vaebench train encoder=hvm" in chromium.run("return document.body.innerText")


def test_the_set_up_counts_patience_in_validations():
    from vaebench.report.set_up import _budget

    words = _budget(compose(["trainer.patience=3", "trainer.validate_every=2"]))
    assert ", stops after 3 validations without a gain, " in words
