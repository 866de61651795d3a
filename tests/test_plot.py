"""Figures: their numbers are those of the runs, their text has the labels, their files have what journals ask for."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import pytest
from made_runs import made_run, record
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from vaebench import plot
from vaebench.cli import main
from vaebench.errors import UserError

VALUES = {"gaussian": (-90.0, -90.2, -89.9), "hvm": (-88.0, -88.1, -87.95), "avb": (-87.0, -87.5, -87.2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods with three seeds; the numbers of avb are estimates that are not bounds."""
    root = tmp_path_factory.mktemp("runs")
    for encoder, values in VALUES.items():
        for seed, value in enumerate(values):
            curve = [value - 5.0, value - 2.0, value]
            metrics = [
                {"step": epoch, "epoch": epoch, "wall": 2.0 * epoch, "validation/log_likelihood": at}
                for epoch, at in enumerate(curve, start=1)
            ]
            direction = "estimate" if encoder == "avb" else "lower_bound"
            result = record(value, epoch=3, direction=direction)
            made_run(root, f"encoder={encoder}", results=[result], seed=seed, metrics=metrics)
    return root


def text_of(figure: plot.PaperFigure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")


def test_curves_are_means_and_ranges_over_seeds(runs: Path):
    figure = plot.curves(runs, time="seconds")
    (axes,) = figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    line = lines["hvm elbo k=1 (3 seeds)"]
    hvm = numpy.array(VALUES["hvm"])
    numpy.testing.assert_allclose(numpy.asarray(line.get_ydata()), [hvm.mean() - 5, hvm.mean() - 2, hvm.mean()])
    numpy.testing.assert_allclose(numpy.asarray(line.get_xdata()), [2, 4, 6])
    bands = [band for band in axes.collections if isinstance(band, FillBetweenPolyCollection)]
    assert len(bands) == 3
    text = text_of(figure)
    assert "validation log p(x) (lower bound), nats per image" in text
    assert "mnist5k/dynamic, lower bound by IWAE, k=50" in text


@pytest.mark.parametrize("layers", [1, 12, 60])
def test_the_legend_of_many_methods_is_whole_and_above_the_curves(tmp_path: Path, layers: int):
    for width in range(1, 8):
        metrics = [{"step": 1, "epoch": 1, "wall": 1.0, "validation/log_likelihood": -90.0 - width}]
        made_run(tmp_path, f"decoder.hidden={[width] * layers}", metrics=metrics)
    figure = plot.curves(tmp_path)
    (axes,), (legend,) = figure.axes, figure.legends
    figure.draw_without_rendering()
    place, chart = legend.get_window_extent(), axes.get_window_extent()
    assert len(legend.get_texts()) == 7
    assert figure.bbox.x0 <= place.x0
    assert place.x1 <= figure.bbox.x1
    assert place.y1 <= figure.bbox.y1
    assert place.y0 >= chart.y1
    assert chart.height / figure.dpi == pytest.approx(2.5, abs=0.3)  # inches, with few methods and with many
    assert all(line.get_marker() == "o" for line in axes.lines)


def test_curves_of_short_trainings_are_seen_beside_those_of_long_ones(tmp_path: Path):
    for epochs, value in ((4, -110.0), (40, -90.0)):
        metrics = [
            {"step": at, "epoch": at, "wall": at, "validation/log_likelihood": value - 0.1 * (epochs - at)}
            for at in range(1, epochs + 1)
        ]
        made_run(tmp_path, f"trainer.epochs={epochs}", metrics=metrics)
    assert plot.curves(tmp_path).axes[0].get_ylim()[0] <= -110.0


def test_the_forest_shows_means_errors_and_directions(runs: Path):
    figure = plot.forest(runs)
    text = text_of(figure)
    assert "#1  hvm elbo k=1" in text
    assert "\N{GREATER-THAN OR EQUAL TO} \N{MINUS SIGN}88.02 ± 0.50" in text
    assert "~ \N{MINUS SIGN}87.23 ± 0.50" in text
    assert "mnist5k/dynamic-v1, 500 images, IWAE/DIWHVI, k=64" in text
    assert "▷ lower bound; ○ estimate, not a bound" in text
    assert "standard error over images" in text
    markers = [line.get_marker() for line in figure.axes[0].lines if line.get_marker() in (">", "o")]
    assert markers == [">", ">", "o"]


def test_differences_are_those_over_common_seeds(runs: Path):
    figure = plot.differences(runs, baseline="encoder=gaussian")
    found = numpy.array(VALUES["hvm"]) - numpy.array(VALUES["gaussian"])
    marks = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "d")]
    assert marks[0].get_xdata()[0] == pytest.approx(found.mean())  # pyright: ignore[reportIndexIssue]
    text = text_of(figure)
    assert "difference in test log p(x) from gaussian elbo k=1, nats per image" in text
    assert "95% for 2 comparisons together (Bonferroni)" in text
    assert "a difference that involves an estimate, which is not a bound" in text


def test_all_panels_in_one_figure(runs: Path):
    assert len(plot.grid(runs, n=0).axes) == 2
    assert len(plot.grid(runs, baseline="encoder=gaussian", n=0).axes) == 3


def test_files_have_the_fonts_that_journals_ask_for(runs: Path, tmp_path: Path):
    figure = plot.forest(runs)
    with matplotlib.rc_context({"pdf.fonttype": 3}):  # the user's own setting
        figure.savefig(tmp_path / "f.pdf")
    pdf = (tmp_path / "f.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    Figure.savefig(figure, tmp_path / "control.pdf")
    assert b"/Type3" in (tmp_path / "control.pdf").read_bytes()
    figure.savefig(tmp_path / "f.svg")
    assert b"<svg" in (tmp_path / "f.svg").read_bytes()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_settings_of_the_user_change_nothing_and_stay(runs: Path):
    with matplotlib.rc_context({"font.size": 30, "axes.spines.top": True}):
        before = dict(matplotlib.rcParams)
        axes = plot.curves(runs).axes[0]
        assert axes.xaxis.label.get_fontsize() == 8
        assert not axes.spines["top"].get_visible()
        assert dict(matplotlib.rcParams) == before


def test_what_cannot_be_drawn_is_refused(runs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no run has a metric 'train/none'"):
        plot.curves(runs, quantity="train/none")
    with pytest.raises(UserError, match="no run has saved weights yet"):
        plot.samples(runs)
    with pytest.raises(UserError, match="no method meets"):
        plot.differences(runs, baseline="encoder=iaf")
    made_run(tmp_path, "encoder=hvm")
    with pytest.raises(UserError, match="no results to compare"):
        plot.forest(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diferences"], "did you mean 'differences'?"),
        (["forest"], "-o must name a file that ends in .pdf, .svg, .png, got ''"),
        (["forest", "-o", "a.gif"], "got 'a.gif'"),
        (["differences", "-o", "a.pdf"], "add --baseline CONDITION"),
        (["forest", "-o", "a.pdf", "--baseline", "k=1"], "--baseline is for differences and grid, not for forest"),
    ],
)
def test_the_command_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plot", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_a_file(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "new" / "f.pdf"
    assert main(["plot", "differences", str(runs), "--baseline", "encoder=gaussian", "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert output.read_bytes().startswith(b"%PDF")


def test_a_message_names_the_missing_package():
    code = "import sys; sys.modules['matplotlib'] = None; from vaebench.cli import main; sys.exit(main(sys.argv[1:]))"
    command: Any = [sys.executable, "-c", code, "plot", "curves", "-o", "a.pdf"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "vaebench: vaebench.plot needs matplotlib: pip install 'vaebench[plot]'\n"
