"""Checkpoints: each file is written whole, carries its own checksum, and cannot run code when it is read.

A checkpoint is an ordinary ``torch.save`` archive of plain containers and tensors. Such an archive is a zip file, and a
zip file can end in a comment. Here the comment is the SHA-256 of all bytes before it. ``torch.load(path,
weights_only=True)`` reads such a file.
"""

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench.errors import UserError
from vaebench.files import clean_temporaries
from vaebench.records.files import write_failed, write_whole
from vaebench.records.provenance import seal_fault, sealed
from vaebench.typed import clipped

__all__ = ["Checkpoints", "Loaded"]

_FORMAT = 1
_PLAIN = (type(None), bool, int, float, str, bytes)


class Loaded(NamedTuple):
    """A checkpoint that was read. ``notice`` is a message if an older generation had to be used, else None."""

    state: dict[str, Any]
    path: Path
    notice: str | None
    seal: str
    """The SHA-256 that the file carries."""

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Turn an error of the block, which only reads or loads the state, into a UserError that names the file."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, UserError) as error:
            words = f"there is no {error}" if isinstance(error, KeyError) else clipped(" ".join(str(error).split()))
            raise UserError(
                f"the content of {self.path} is not that of a checkpoint of this run ({words}). Restore it from a "
                f"copy, or delete {self.path.parent} to train from the beginning."
            ) from error


class Checkpoints:
    """The checkpoints folder of a run. ``last`` has two generations; other names (``best``) have one."""

    def __init__(self, folder: Path, *, before_save: Callable[[], None] = lambda: None) -> None:
        """Use ``folder``; ``before_save`` raises an exception if this process must not save now."""
        self.folder = folder
        self._before_save = before_save
        self._checked = False  # whether last.pt is known to be intact: then it may replace the older generation

    def exists(self, name: str = "last") -> bool:
        """Return whether a checkpoint ``name`` exists in any generation, intact or corrupt."""
        return any(path.exists() for path in self._generations(name))

    def save(self, state: dict[str, Any], name: str = "last") -> Path:
        """Write ``state`` as checkpoint ``name`` and return its path. Tensors are stored as CPU tensors.

        Raises:
            TypeError: a value is not plain: None, bool, int, float, str, bytes, Tensor, or dict, list, tuple of these.
                Only these can be read back safely. The message names the key.
            UserError: the disk is full; the existing checkpoints are intact.
        """
        if "format" in state:
            raise ValueError('the key "format" is reserved')
        path, *older = self._generations(name)
        data = _sealed(_plain({"format": _FORMAT, **state}, "state"))
        self._before_save()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(self.folder, error) from error
        clean_temporaries(self.folder)
        try:
            # A corrupt file must not replace the older generation.
            keep = older and (self._checked or _is_good(path))
            write_whole(path, data, keep_old_as=older[0] if keep else None)
        except UserError as error:
            raise UserError(f"{error} {self._last_good(name)}") from error
        self._checked = self._checked or bool(older)
        return path

    def load(
        self, name: str = "last", *, identity: str | None = None, map_location: str | torch.device = "cpu"
    ) -> Loaded:
        """Read checkpoint ``name``; if ``last`` is corrupt, read the previous generation and return a notice.

        Args:
            name: ``last`` or ``best``.
            identity: the value that the state's "identity" must have; None for any.
            map_location: the device of the tensors.

        Raises:
            UserError: there is no checkpoint, every generation is corrupt, or the checkpoint has another
                configuration, an unsupported format, or objects that could run code.
        """
        faults = []
        for path in self._generations(name):
            try:
                data = _unsealed(path)
            except _Corrupt as error:
                faults.append(f"{path} {error}")
                continue
            notice = f"{'; '.join(faults)}: using {path}" if faults else None
            return Loaded(_checked_state(path, data, identity, map_location), path, notice, data[-64:].decode())
        raise UserError(self._nothing_good(name, faults))

    def _generations(self, name: str) -> list[Path]:
        """The files of checkpoint ``name``, newest first."""
        names = [name, f"{name}.previous"] if name == "last" else [name]
        return [self.folder / f"{each}.pt" for each in names]

    def _last_good(self, name: str) -> str:
        good = [path for path in self._generations(name) if _is_good(path)]
        return f"The last good checkpoint is {good[0]}." if good else "There is no earlier checkpoint."

    def _nothing_good(self, name: str, faults: list[str]) -> str:
        if not self.exists(name):
            return f"there is no checkpoint {name!r} in {self.folder}: the run has not saved one yet."
        others = [path for path in sorted(self.folder.glob("*.pt")) if _is_good(path)]
        instead = f"{others[0]} is intact" if others else "no other checkpoint is intact"
        return (
            f"no checkpoint {name!r} can be used: {'; '.join(faults)} ({instead}). Restore it from a copy, "
            f"or delete {self.folder} to train from the beginning."
        )


class _Corrupt(Exception):
    """A file is not as written; the message is the rest of a sentence that starts with the file's name."""


def _sealed(state: object) -> bytes:
    """Return ``state`` as a torch.save archive that ends in its SHA-256."""
    # In memory, because torch's file writer reports a full disk as an internal error.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return sealed(buffer.getvalue())


def _unsealed(path: Path) -> bytes:
    """Return the bytes of ``path``. _Corrupt if the checksum is wrong or the file is unreadable."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _Corrupt("is missing") from None
    except OSError as error:
        raise _Corrupt(f"cannot be read ({error.strerror})") from error
    if fault := seal_fault(data):
        raise _Corrupt(fault)
    return data


def _is_good(path: Path) -> bool:
    try:
        _unsealed(path)
    except _Corrupt:
        return False
    return True


def _checked_state(path: Path, data: bytes, identity: str | None, map_location: str | torch.device) -> dict[str, Any]:
    """Unpickle ``data``, the intact bytes of ``path``, and check its format and identity."""
    # torch packs nothing, but unpacks: a small file of a stranger could fill the memory.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > len(data):
        raise UserError(f"{path} would unpack to {size} bytes, but has {len(data)}: use only files of vaebench.")
    try:
        state = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} has objects other than plain containers and tensors, and reading them could run code. "
            "Use only checkpoints that vaebench wrote."
        ) from error
    written = state.pop("format", None) if isinstance(state, dict) else None
    if written != _FORMAT:
        raise UserError(
            f"{path} has format {written}, but this version of vaebench reads {_FORMAT}: use the other version."
        )
    if identity is not None and state.get("identity") != identity:
        raise UserError(
            f"{path} has another configuration ({state.get('identity')}, not {identity}): restore the "
            "config.yaml of that run, or choose another folder."
        )
    return state


def _plain(value: Any, where: str) -> Any:
    """Return a copy of ``value`` in plain containers and CPU tensors; TypeError, with the key, for other types."""
    if isinstance(value, Tensor):
        return _compact(value)
    if isinstance(value, dict):
        return {_plain_key(k, where): _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(each, f"{where}[{i}]") for i, each in enumerate(value))
    # Not isinstance: a numpy float is a float and an enum may be a str, but neither can be read back safely.
    if type(value) in _PLAIN:
        return value
    raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, not plain data")


def _plain_key(key: Any, where: str) -> Any:
    if type(key) not in (str, int):
        raise TypeError(f"{where} has the key {key!r}; keys must be str or int")
    return key


def _compact(tensor: Tensor) -> Tensor:
    """Return ``tensor`` on the CPU, in a storage of exactly its size."""
    # torch.save writes the whole storage of a view.
    tensor = tensor.detach().cpu()
    stored = tensor.untyped_storage().nbytes()
    return tensor if stored == tensor.numel() * tensor.element_size() else tensor.clone()
