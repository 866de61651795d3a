"""JSON read back: exact types, and one short message for every fault."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from vaebench import typed
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.files import read_npz
from vaebench.records.stored import read_json
from vaebench.typed import Checker, Rule


@dataclass(frozen=True)
class Part:
    name: str
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    count: Annotated[int, Rule(">= 1", lambda value: value >= 1)]
    mean: float
    state: Literal["good", "bad"] = "good"
    direction: Direction = Direction.ESTIMATE
    error: str | None = None
    part: Part | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.error == "":
            raise ValueError("error must not be empty")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_types_are_as_declared(tmp_path: Path):
    part = '{"name": "n", "values": [1, 2.5]}'
    text = f'{{"count": 2, "mean": 3, "direction": "exact", "part": {part}, "settings": {{"a": []}}}}'
    found = read_json(written(tmp_path, text), Whole, "Delete it.")
    assert found == Whole(2, 3.0, "good", Direction.EXACT, None, Part("n", [1.0, 2.5]), {"a": []})
    assert type(found.mean) is float
    assert isinstance(found.direction, Direction)


def test_unknown_keys_are_ignored(tmp_path: Path):
    """A newer version may have added them."""
    assert read_json(written(tmp_path, '{"count": 1, "mean": 0.5, "new": {"x": 1}}'), Whole, "") == Whole(1, 0.5)


FAULTS = {
    "": "it is not JSON",
    '{"count": 1, "mean": 0.5': "it is not JSON",
    "[1]": "the content must be a map of keys to values, got [1]",
    "null": "the content must be a map of keys to values, got null",
    '{"mean": 0.5}': "count is missing",
    '{"count": 1.0, "mean": 0.5}': "count must be an integer, got 1.0",
    '{"count": true, "mean": 0.5}': "count must be an integer, got true",
    '{"count": 0, "mean": 0.5}': "count must be >= 1, got 0",
    '{"count": 1, "mean": "0.5"}': "mean must be a number, got '0.5'",
    '{"count": 1, "mean": null}': "mean must be a number, got null",
    '{"count": 1, "mean": NaN}': "it has NaN, which is not a JSON number",
    '{"count": 1, "mean": -Infinity}': "it has -Infinity, which is not a JSON number",
    '{"count": 1, "mean": 1e999}': "the number 1e999 is too large",
    '{"count": 1, "mean": 1, "mean": 2}': "the key 'mean' stands twice",
    '{"count": 1, "mean": 1, "state": "god"}': "state must be one of good, bad, got 'god' (did you mean 'good'?)",
    '{"count": 1, "mean": 1, "direction": 3}': "direction must be one of exact, lower_bound, upper_bound, est",
    '{"count": 1, "mean": 1, "error": ""}': "error must not be empty",
    '{"count": 1, "mean": 1, "error": "\\ud800"}': "it is not UTF-8 text",
    '{"count": 1, "mean": 1, "part": {"name": 3}}': "part.name must be a string, got 3",
    '{"count": 1, "mean": 1, "part": {"name": "", "values": [1, "a"]}}': "part.values[1] must be a number, got 'a'",
    '{"count": 1, "mean": 1, "settings": 3}': "settings must be a map of keys to values, got 3",
    "[" * 100_000: "it is nested too deeply",
    '{"count": ' + "9" * 5000 + ', "mean": 1}': "it has an integer of 5000 digits",
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_one_message_with_file_fault_and_advice(text: str, tmp_path: Path):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_json(path, Whole, "Delete it.")
    assert str(caught.value).startswith(f"cannot read {path}: {FAULTS[text]}")
    assert str(caught.value).endswith(". Delete it.")


def test_control_a_plain_reader_fails_otherwise(tmp_path: Path):
    """Without the checker these faults are other exceptions, or values of a wrong type."""
    with pytest.raises(RecursionError):
        json.loads("[" * 100_000)
    with pytest.raises(TypeError):
        Whole(**json.loads('{"count": 1, "mean": 1, "new": 2}'))
    assert Whole(**json.loads('{"count": "many", "mean": NaN}')).count == "many"


@pytest.mark.parametrize("value", ["x" * 10_000, ["x" * 10_000] * 9, {"x" * 10_000: "y" * 10_000}, "\x1b]0;" * 3000])
def test_a_message_repeats_at_most_200_characters(value: object, tmp_path: Path):
    for text in [json.dumps({"count": value, "mean": 1}), json.dumps(value)]:
        with pytest.raises(UserError) as caught:
            read_json(written(tmp_path, text), Whole, "")
        assert len(str(caught.value)) < len(str(tmp_path)) + 300
        assert str(caught.value).isprintable()


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path: Path):
    path = written(tmp_path, '{"count": 1, "mean": 0.5}')
    with pytest.raises(UserError, match="it has 25 bytes, more than 24"):
        read_json(path, Whole, "", limit=24)
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(path)
    os.mkfifo(pipe)
    for other, fault in [(link, "it is a symbolic link"), (pipe, "it is not a regular file"), (tmp_path, "")]:
        with pytest.raises(UserError, match=f"cannot read {other}: {fault}"):
            read_json(other, Whole, "")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", Whole, "")


@pytest.mark.parametrize(
    ("hint", "kept", "others"),
    [
        (float, [1.5], [1, float("nan"), "1", True, None]),
        (int, [1], [True, 1.0, "1"]),
        (str, ["a"], ["a\x1bb", 1]),
        (float | None, [None, 0.5], [2, "a"]),
        (dict[str, str], [{"a": "b"}], [{"a": 1}, {"a\x1b": "b"}, []]),
        (list[int], [[1, 2]], [[True], (1,), "a"]),
        (Annotated[int, Rule(">= 0", lambda value: value >= 0)], [0], [-1, True]),
        (Literal["nan", "inf"], ["nan"], ["x", 1]),
    ],
)
def test_only_a_value_of_the_exact_type_is_kept_unconverted(hint: Any, kept: list[Any], others: list[Any]):
    assert all(typed._exact(hint)(value) for value in kept)
    assert [typed._conversion(hint)(Checker(), value, "") for value in kept] == kept
    assert not any(typed._exact(hint)(value) for value in others)


def test_an_array_with_a_wrong_byte_or_name_is_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, values=np.arange(100.0))
    good = path.read_bytes()
    assert read_npz(path, 10_000)["values"].sum() == 4950  # control
    for place in (good.index(b"values.npy"), good.index(np.float64(50).tobytes()) + 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"directory and the header|checksum"):
            read_npz(path, 10_000)
