"""Numbers, plurals and tables as text."""

import io
import subprocess
import sys
from collections.abc import Sequence

import pytest

from vaebench.direction import Direction
from vaebench.records import text
from vaebench.records.text import SIGNS, counted, decimals, encodable, number, table, with_error, with_sign

HEAD = ("run", "state", "epoch", "result")
ROWS = [("a", "finished", "50", ">= -98.87"), ("bb", "failed", "9", ">= -1.10")]


class Stream(io.TextIOWrapper):
    """A stream with an encoding, at a terminal or not."""

    def __init__(self, encoding: str, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


# numbers


@pytest.mark.parametrize(
    ("errors", "places"),
    [([0.5], 2), ([0.005], 2), ([0.0049], 3), ([0.0004, 0.5], 4), ([None, 0.0], 2), ([], 2), ([1e-12], 8)],
)
def test_decimals_show_the_smallest_error(errors: list[float | None], places: int):
    assert decimals(*errors) == places


def test_numbers_with_errors():
    assert number(None) == "-"
    assert number(-86.4123, None) == "-86.41"
    assert with_error(-86.4123, 0.0004) == "-86.4123 +- 0.0004"
    assert with_error(-86.4123, 0.0, sign="±") == "-86.41 ± 0.00"
    assert with_error(0.1, 0.0004, places=2) == "0.10 +- 0.00"


def test_signs():
    assert [with_sign(direction, "1") for direction in Direction] == ["= 1", ">= 1", "<= 1", "~ 1"]
    assert SIGNS["lower_bound"] == ">="  # pyright: ignore[reportArgumentType]  # as read from results.json


def test_plurals():
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


# tables


def test_words_begin_and_numbers_end_where_their_column_does():
    assert table(HEAD, ROWS).splitlines() == [
        "run  state     epoch     result",
        "a    finished     50  >= -98.87",
        "bb   failed        9   >= -1.10",
    ]


@pytest.mark.parametrize(
    ("width", "shown"),
    [(31, HEAD), (30, HEAD[:3]), (20, HEAD[:3])],
)
def test_columns_that_do_not_fit_are_left_out_and_named(width: int, shown: Sequence[str]):
    lines = table(HEAD, ROWS, width=width).splitlines()
    assert lines[0].split() == list(shown)
    missing = HEAD[len(shown) :]
    note = f"left out to fit {width} columns: {', '.join(missing)} (to see all: COLUMNS=31)"
    assert (note in " ".join(map(str.strip, lines))) == bool(missing)
    assert max(map(len, lines)) <= width


def test_the_first_left_out_is_the_last_that_need_not_stay():
    lines = table(HEAD, ROWS, keep=("result",), width=24, hint="--format csv").splitlines()
    assert lines[0].split() == ["run", "state", "result"]
    note = "left out to fit 24 columns: epoch (to see all: COLUMNS=31 or --format csv)"
    assert " ".join(map(str.strip, lines[3:])) == note
    # What is to stay goes when all others are gone, and the first column never.
    assert table(HEAD, ROWS, keep=("result",), width=4).splitlines()[0] == "run"


@pytest.mark.parametrize("width", [20, 30, 40, 80, 200])
def test_no_row_is_wider_than_the_width(width: int):
    rows = [("x" * n, "finished", "3", "many words " * n) for n in range(1, 30)]
    lines = table(HEAD, [*rows, "a row across the table " * 5], wrap="result", width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert "".join(lines).count("x") >= sum(range(1, 30))  # a cell of the first column is folded, never cut


def test_a_long_cell_goes_on_below():
    lines = table(("group", "about"), [("a", "word " * 10), ("b", "short")], wrap="about", width=30).splitlines()
    assert lines[1:3] == ["a      word word word word", "       word word word word"]
    assert lines[-1] == "b      short"


def test_a_row_across():
    lines = table(HEAD, [ROWS[0], "the loss was not finite", ROWS[1]]).splitlines()
    assert lines[2] == "    the loss was not finite"
    assert lines[3].split()[0] == "bb"
    assert len(lines) == 4


def test_a_table_without_titles_or_rows():
    assert table(HEAD, ROWS, titles=False).splitlines()[0].split()[0] == "a"
    assert table(HEAD, []) == "run  state  epoch  result"
    assert table(HEAD, [], titles=False) == ""


def test_wide_letters_take_two_places():
    lines = table(("a", "b"), [("日本", "x"), ("ab", "y")]).splitlines()
    assert lines == ["a     b", "日本  x", "ab    y"]


def test_brackets_are_no_markup():
    assert table(("a", "b"), [("[red]x[/red]", ":smile:")]).splitlines()[1] == "[red]x[/red]  :smile:"


def test_the_width_is_80_without_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert text.terminal_width() == 80
    monkeypatch.setenv("COLUMNS", "123")
    assert text.terminal_width() == 123


# colours and encodings


@pytest.mark.parametrize(("terminal", "no_colour", "codes"), [(True, "", True), (True, "1", False), (False, "", False)])
def test_colours_are_for_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, terminal: bool, no_colour: str, codes: bool):
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's own switch does not decide
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Stream("utf-8", terminal))
    made = table(HEAD, ROWS, styles={"failed": "red"})
    assert ("\x1b[31mfailed" in made) == codes
    assert ("\x1b" in made) == codes


def test_letters_that_a_stream_cannot_show_are_replaced():
    assert encodable("≥ 1 … é", Stream("ascii")) == ">= 1 ... ?"
    assert encodable("≥ 1 … é", Stream("utf-8")) == "≥ 1 … é"
    assert encodable("é ≥", Stream("latin-1")) == "é >="


def test_a_table_is_printed_where_only_ascii_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Stream("ascii"))
    table(("a", "b"), [("≥ ö", "x")]).encode("ascii")


def test_nothing_waits_for_rich():
    code = "import sys; import vaebench.records.text; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
