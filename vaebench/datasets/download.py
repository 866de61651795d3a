"""Find a dataset's files below ``data_dir`` or download them, and return only verified content."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from tqdm import tqdm

from vaebench.datasets.checksum import CorruptFile
from vaebench.datasets.layouts import Search, explained
from vaebench.datasets.published_files import PUBLISHED_FILES, FileArrays, PublishedFile
from vaebench.errors import UserError
from vaebench.files import first_writable, replacing, user_cache

__all__ = ["find_or_download"]

_TIMEOUT = 10  # seconds without an answer
_RETRIES = 1  # of each address, after a failed connection


def find_or_download(
    name: str,
    data_dir: Path,
    files: Sequence[PublishedFile] | None = None,
    *,
    download: bool = True,
    progress: bool = True,
) -> list[FileArrays]:
    """Return the verified arrays of each of ``files``, by default a dataset's files of images, in their order.

    Raises:
        UserError: a file is corrupt, or missing and cannot be downloaded; the message names files and folder.
    """
    contents: list[FileArrays] = []
    files = PUBLISHED_FILES[name] if files is None else files
    search: Search | None = None
    for file in files:
        content, corrupt = _local(file, name, data_dir, progress)
        if content is None and file.package is None:
            search = search or Search(name, data_dir, progress, files)
            content = search.read(file)
        if content is None and corrupt:
            raise UserError(f"{corrupt}: delete or replace this file of dataset={name}, then run the command again")
        failure = "downloads are disabled"
        if content is None and download:
            content, failure = _downloaded(file, data_dir, progress)
        if content is None:
            raise UserError(_missing(name, files, data_dir, failure, search.remarks if search else []))
        contents.append(content)
    return contents


def _local(file: PublishedFile, name: str, data_dir: Path, progress: bool) -> tuple[FileArrays | None, str]:
    """Read the first valid copy under a published name; return it, or None and what the first corrupt copy is."""
    corrupt: list[str] = []
    for path in file.found(data_dir):
        try:
            return file.read(path, file.digest, progress), ""
        except CorruptFile as error:
            if error.digest not in _digests_of_others(name):
                corrupt.append(explained(error, path, name))
    return None, corrupt[0] if corrupt else ""


def _digests_of_others(name: str) -> set[str]:
    """Return the digests of other datasets' files: MNIST and Fashion-MNIST use the same file names."""
    return {file.digest for other, files in PUBLISHED_FILES.items() if other != name for file in files} - {""}


def _downloaded(file: PublishedFile, data_dir: Path, progress: bool) -> tuple[FileArrays | None, str]:
    """Return the file's arrays from the first address that works, or None and the reason of the last failure."""
    folders = [root / file.folders[0] for root in (data_dir, user_cache())]
    folder, reason = first_writable(folders), "no download address is known"
    if folder is None:
        return None, f"cannot write to {folders[0]} or {folders[1]}"
    for url in file.urls:
        try:
            return _fetch(file, url, folder / file.names[-1], progress), ""
        except (OSError, CorruptFile) as error:  # the errors of requests are OSErrors
            reason = f"{url}: {_reason(error)}"
    return None, reason


def _fetch(file: PublishedFile, url: str, path: Path, progress: bool) -> FileArrays:
    """Download to a temporary folder, verify, and only then put the file at ``path``."""
    import pooch  # slow to import, and most starts download nothing

    pooch.get_logger().setLevel("WARNING")  # the progress bar is enough
    headers = {"User-Agent": "vaebench", "Accept-Encoding": "identity"}  # no compression on the way
    # disable=None shows the bar only on a terminal; pooch replaces the total, but takes no bar without a total
    bar = tqdm(total=1, desc=path.name, unit="B", unit_scale=True, disable=None if progress else True)
    with TemporaryDirectory() as folder, bar:
        # Pooch gets no checksum: the published checksum is of the unpacked content, and file.read compares it.
        cache = pooch.create(folder, "", registry={path.name: None}, urls={path.name: url}, retry_if_failed=_RETRIES)
        get: Any = pooch.HTTPDownloader(cast(Any, bar), chunk_size=1 << 16, timeout=_TIMEOUT, headers=headers)
        downloaded = Path(cache.fetch(path.name, downloader=get))
        content = file.read(downloaded, file.digest, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            shutil.copyfile(downloaded, temporary)
    return content


def _reason(error: BaseException) -> str:
    """Return a few words on why a download failed; the messages of requests are long."""
    if isinstance(error, CorruptFile):
        return "the downloaded file does not match its checksum"
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code} {response.reason}"
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error)


def _missing(name: str, wanted: Sequence[PublishedFile], data_dir: Path, failure: str, remarks: list[str]) -> str:
    """Return one message about all missing files of the dataset."""
    files = [file for file in wanted if not file.found(data_dir)] or list(wanted)
    titles = ", ".join(file.title for file in files)
    if package := files[0].package:
        return f"dataset={name} needs {titles} of the package {package}: run `pip install {package}`"
    folders = ", ".join(folder or "." for folder in files[0].folders)
    images = wanted is PUBLISHED_FILES[name]  # labels are missing for one set of images, which is not exchanged
    other = ", or use dataset=mnist5k, which needs no download" if images else ""
    return (
        f"dataset={name} needs {titles}: not found in {data_dir.absolute()} (folders {folders}) and could not be "
        f"downloaded ({failure}); put the files there, or set data_dir to their folder{other}"
        + "".join(f"; {remark}" for remark in remarks)
    )
