"""Finding a dataset's files below ``data_dir``, or downloading them; nothing unverified is ever returned."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from vaebench.datasets.checked import Damaged
from vaebench.datasets.sources import SOURCES, Content, Source
from vaebench.errors import UserError
from vaebench.files import first_writable, replacing, user_cache

__all__ = ["acquire"]

_TIMEOUT = 20  # seconds without an answer
_BLOCK = 1 << 16


def acquire(name: str, data_dir: Path, *, download: bool = True, progress: bool = True) -> list[Content]:
    """The arrays of each of a dataset's files, verified, in the order of ``SOURCES[name]``.

    Raises:
        UserError: a file is damaged, or absent and not to be had; the message names files and folder.
    """
    contents: list[Content] = []
    for source in SOURCES[name]:
        content, failure = _local(source, name, data_dir, progress), "downloads are switched off"
        if content is None and download:
            content, failure = _downloaded(source, data_dir, progress)
        if content is None:
            raise UserError(_absent(name, data_dir, failure))
        contents.append(content)
    return contents


def _local(source: Source, name: str, data_dir: Path, progress: bool) -> Content | None:
    """Read the first sound copy; a damaged one is an error only if there is no sound one."""
    damaged: list[Damaged] = []
    for path in source.found(data_dir):
        try:
            return source.read(path, source.digest, progress)
        except Damaged as error:
            if error.digest not in _digests_of_others(name):
                damaged.append(error)
    if damaged:
        raise UserError(f"{damaged[0]}; dataset={name} does not use it: delete or replace the file and try again")
    return None


def _digests_of_others(name: str) -> set[str]:
    """MNIST and Fashion-MNIST use the same file names: the other one's file is not a damaged one."""
    return {source.digest for other, sources in SOURCES.items() if other != name for source in sources}


def _downloaded(source: Source, data_dir: Path, progress: bool) -> tuple[Content | None, str]:
    """The file's arrays from the first mirror that has it, or None and why not."""
    folders = [root / source.folders[0] for root in (data_dir, user_cache())]
    folder, reason = first_writable(folders), "no address"
    if folder is None:
        return None, f"neither {folders[0]} nor {folders[1]} can be written"
    for url in source.urls:
        try:
            return _fetch(source, url, folder / source.names[-1], progress), ""
        except (OSError, http.client.HTTPException, Damaged) as error:
            reason = f"{url}: {_short(error)}"
    return None, reason


def _fetch(source: Source, url: str, path: Path, progress: bool) -> Content:
    """Download to a temporary file, verify it, and only then give it its name."""
    request = urllib.request.Request(url, headers={"User-Agent": "vaebench"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, _new_file(path) as part:
        size = int(answer.headers.get("Content-Length") or 0) or None
        # disable=None shows the bar on a terminal only
        hidden = None if progress else True
        bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=hidden)
        with part.open("wb") as file, bar:
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        return source.read(part, source.digest, progress)


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        yield temporary


def _short(error: Exception) -> str:
    if isinstance(error, Damaged):
        return "what came is not the file on record"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(reason, "strerror", None) or reason)


def _absent(name: str, data_dir: Path, failure: str) -> str:
    """One message for all files of the dataset that are not there."""
    sources = [source for source in SOURCES[name] if not source.found(data_dir)] or list(SOURCES[name])
    if sources[0].package:
        return f"dataset={name} comes with the package {sources[0].package}: pip install {sources[0].package}"
    files = ", ".join(source.title for source in sources)
    folders = ", ".join(folder or "." for folder in sources[0].folders)
    return (
        f"dataset={name} needs {files}, which {data_dir.absolute()} does not hold (looked in {folders}) and "
        f"which could not be downloaded ({failure}); put the files there, set data_dir to their folder, "
        "or use dataset=mnist5k, which needs no download"
    )
