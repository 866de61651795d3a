"""Kinds of damage to one file, each drawn from a seed."""

import io
import json
import math
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

__all__ = ["KINDS", "Damage", "damages"]

KINDS = {
    "empty": "no bytes",
    "cut": "the first half, or all but the last bytes",
    "bit": "one bit flipped",
    "zeros": "zeros of the same length",
    "noise": "random bytes of the same length",
    "nested": "100,000 nested lists",
    "huge": "a number that no type holds, or an array that claims to be huge",
    "type": "a key with a value of a wrong type, NaN or infinity",
    "edited": "a valid file with another number",
    "foreign": "the same file of another run",
    "missing": "no file",
    "folder": "a folder with the file's name",
    "link": "a link to a file outside",
}

_WRONG = (None, "text", [], {}, math.nan, math.inf, True, -1, [[1]], 10**400, "\ud800", 0.5)
_DEPTH = 100_000


@dataclass(frozen=True)
class Damage:
    """One damage to the file ``name`` of a tree."""

    name: str
    kind: str
    detail: str
    apply: Callable[[Path], None]
    """Damages the file at a path."""

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}{self.detail and f' ({self.detail})'}"


def damages(tree: Path, name: str, other: Path | None, outside: Path, seed: int, variants: int) -> Iterator[Damage]:
    """Yield the damages to one file.

    Args:
        tree: the folder that has the file.
        name: the file, relative to the tree.
        other: the same file of another run, if there is one.
        outside: a folder outside the tree, for what links point to.
        seed: of the choices.
        variants: how many bit flips, wrong types and edits to draw.
    """
    chance = random.Random(f"{seed} {name}")
    path = tree / name

    def made(kind: str, detail: str, data: Callable[[], bytes]) -> Damage:
        return Damage(name, kind, detail, lambda target: _replace(target, data()))

    if path.is_dir() and not path.is_symlink():
        yield Damage(name, "link", "to a copy of the folder", lambda target: _linked_folder(target, outside))
        yield Damage(name, "folder", "a file instead", lambda target: _file_for_folder(target))
        yield Damage(name, "missing", "", lambda target: shutil.rmtree(target))
        return
    yield Damage(name, "link", "to a copy", lambda target: _linked(target, outside, None))
    yield Damage(name, "link", "to another text", lambda target: _linked(target, outside, b"export PATH=/bin\n"))
    yield Damage(name, "folder", "", _folder_for_file)
    if not path.exists() or path.name.endswith(".lock"):
        return
    data = path.read_bytes()
    yield Damage(name, "missing", "", lambda target: target.unlink())
    yield made("empty", "", lambda: b"")
    for size in sorted({len(data) // 2, len(data) - 1, len(data) - 7}):
        if 0 < size < len(data):
            yield made("cut", f"{size} of {len(data)} bytes", lambda size=size: data[:size])
    for _ in range(variants if data else 0):
        at = chance.randrange(8 * len(data))
        yield made("bit", f"bit {at}", lambda at=at: _flipped(data, at))
    yield made("zeros", "", lambda: bytes(len(data)))
    noise = chance.randbytes(len(data))
    yield made("noise", "", lambda: noise)
    if other is not None and other.is_file() and other.read_bytes() != data:
        yield made("foreign", "", other.read_bytes)
    maker = _MAKERS.get(path.suffix)
    if maker is not None:
        for kind, detail, changed in maker(data, chance, variants):
            yield made(kind, detail, changed)
    if path.suffix in (".json", ".jsonl", ".yaml"):
        yield made("nested", "", lambda: b"[" * _DEPTH + b"]" * _DEPTH + b"\n")
        yield made("nested", "objects", lambda: b'{"a":' * _DEPTH + b"1" + b"}" * _DEPTH + b"\n")
    if path.name.startswith("events.out"):
        yield made("huge", "record of 2**60 bytes", lambda: struct.pack("<Q", 2**60) + data[8:])
        yield made("type", "valid records of noise", lambda: _record(chance.randbytes(40)) * 3)


Changed = Iterator[tuple[str, str, Callable[[], bytes]]]


def _json_changed(data: bytes, chance: random.Random, variants: int) -> Changed:
    yield from _document_changed(json.loads(data), lambda value: json.dumps(value).encode() + b"\n", chance, variants)


def _lines_changed(data: bytes, chance: random.Random, variants: int) -> Changed:
    lines = [json.loads(line) for line in data.splitlines()]

    def text(value: Any) -> bytes:
        return b"".join(json.dumps(line).encode() + b"\n" for line in value)

    yield from _document_changed(lines, text, chance, variants)
    yield (
        "edited",
        "a line in the middle left out",
        lambda: text(lines[: len(lines) // 2] + lines[len(lines) // 2 + 1 :]),
    )
    yield "edited", "the last line left out", lambda: text(lines[:-1])
    yield "edited", "a line twice", lambda: text([*lines, lines[-1]])
    yield "type", "lines that are numbers", lambda: text([1, 2, 3])


def _yaml_changed(data: bytes, chance: random.Random, variants: int) -> Changed:
    yield from _document_changed(yaml.safe_load(data), lambda value: yaml.safe_dump(value).encode(), chance, variants)
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join([f'*{p}'] * 8)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    yield "huge", "aliases of aliases", bomb.encode
    yield "nested", "an alias of itself", lambda: b"a: &a [*a]\n"
    yield "type", "an object", lambda: b"!!python/object/apply:os.system ['touch /tmp/never']\n"


def _document_changed(document: Any, text: Callable[[Any], bytes], chance: random.Random, variants: int) -> Changed:
    leaves = list(_leaves(document, ()))
    if not leaves:
        return
    for _ in range(variants):
        where, value = chance.choice(leaves), chance.choice(_WRONG)
        yield "type", f"{_dotted(where)}={value!r:.20}", lambda w=where, v=value: text(_with(document, w, v))
    numbers = [leaf for leaf in leaves if type(_at(document, leaf)) in (int, float)]
    for where in chance.sample(numbers, min(variants, len(numbers))):
        old = _at(document, where)
        new = old + 1 if isinstance(old, int) else round(old * 1.01 + 0.37, 6)
        yield "edited", f"{_dotted(where)}={new}", lambda w=where, v=new: text(_with(document, w, v))
    for where in chance.sample(numbers, min(2, len(numbers))):
        yield (
            "huge",
            f"{_dotted(where)}=1e999",
            lambda w=where: text(_with(document, w, 12345.678)).replace(b"12345.678", b"1e999"),
        )
        yield (
            "huge",
            f"{_dotted(where)} has 5,000 digits",
            lambda w=where: text(_with(document, w, 12345.678)).replace(b"12345.678", b"9" * 5000),
        )
    yield "type", "a text", lambda: b'"text"\n'
    yield "type", "null", lambda: b"null\n"


def _npz_changed(data: bytes, chance: random.Random, variants: int) -> Changed:
    with numpy.load(io.BytesIO(data)) as stored:
        arrays = {name: stored[name] for name in stored.files}

    def packed(**changes: Any) -> bytes:
        buffer = io.BytesIO()
        numpy.savez(buffer, **(arrays | changes))
        return buffer.getvalue()

    floats = [name for name, array in arrays.items() if array.dtype.kind == "f" and array.size]
    for name in floats[:variants]:
        yield "edited", f"{name}[0] += 0.5", lambda name=name: packed(**{name: _bumped(arrays[name])})
        yield "type", f"{name} nan", lambda name=name: packed(**{name: arrays[name] * math.nan})
        yield "type", f"{name} text", lambda name=name: packed(**{name: numpy.array(["a"])})
    first = next(iter(arrays))
    yield "type", "an object", lambda: packed(**{first: numpy.array([{}], dtype=object)})
    yield "huge", "a header of 10**12 numbers", lambda: _huge_npz(first)


def _checkpoint_changed(data: bytes, chance: random.Random, variants: int) -> Changed:
    from vaebench.records import checkpoint

    def sealed(value: Any) -> bytes:
        return checkpoint._sealed(value)  # pyright: ignore[reportPrivateUsage]  (a valid seal around other content)

    def state() -> Any:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    yield "type", "a list", lambda: sealed([1, 2])
    yield "type", "no keys", lambda: sealed({"format": 1, "identity": state().get("identity")})
    keys = list(state())
    for key in chance.sample(keys, min(variants, len(keys))):
        yield "type", f"{key} is a text", lambda key=key: sealed({**state(), key: "text"})


_MAKERS: dict[str, Callable[[bytes, random.Random, int], Changed]] = {
    ".json": _json_changed,
    ".jsonl": _lines_changed,
    ".yaml": _yaml_changed,
    ".npz": _npz_changed,
    ".pt": _checkpoint_changed,
}


def _bumped(array: numpy.ndarray) -> numpy.ndarray:
    changed = array.copy()
    changed.reshape(-1)[0] += 0.5
    return changed


def _huge_npz(name: str) -> bytes:
    header = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.npy", header.getvalue())
    return buffer.getvalue()


def _record(payload: bytes) -> bytes:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    header = struct.pack("<Q", len(payload))
    return header + struct.pack("<I", masked_crc32c(header)) + payload + struct.pack("<I", masked_crc32c(payload))


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _replace(target: Path, data: bytes) -> None:
    target.unlink(missing_ok=True)
    target.write_bytes(data)


def _linked(target: Path, outside: Path, data: bytes | None) -> None:
    victim = outside / "victim"
    victim.write_bytes(data if data is not None else target.read_bytes() if target.exists() else b"mine\n")
    target.unlink(missing_ok=True)
    target.symlink_to(victim)


def _linked_folder(target: Path, outside: Path) -> None:
    shutil.move(target, outside / "folder")
    target.symlink_to(outside / "folder")


def _folder_for_file(target: Path) -> None:
    target.unlink(missing_ok=True)
    target.mkdir()


def _file_for_folder(target: Path) -> None:
    shutil.rmtree(target)
    target.write_bytes(os.urandom(10))


def _leaves(value: Any, where: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*where, key)
        yield from _leaves(each, (*where, key))


def _at(value: Any, where: tuple[Any, ...]) -> Any:
    for key in where:
        value = value[key]
    return value


def _with(value: Any, where: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of nested containers with ``new`` at one place."""
    if not where:
        return new
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    changed = {key: _with(each, where[1:], new) if key == where[0] else each for key, each in items}
    return changed if isinstance(value, dict) else list(changed.values())


def _dotted(where: tuple[Any, ...]) -> str:
    return ".".join(map(str, where))
