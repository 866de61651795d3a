"""Files, checksums, splits, protocols and the cache of the datasets, on small made-up files."""

import dataclasses
import functools
import gzip
import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat

from vaebench.datasets import cache, checksum, download
from vaebench.datasets.arrays import Arrays, binarize_splits, departure, stream
from vaebench.datasets.catalog import BINARIZATIONS, CATALOG, FINGERPRINTS, IMAGES, NAMES, Sizes
from vaebench.datasets.checksum import CorruptFile, git_blob_id, sha256
from vaebench.datasets.preparation import Prepared, available, prepare
from vaebench.datasets.protocol import protocol_for
from vaebench.datasets.published_files import PUBLISHED_FILES
from vaebench.datasets.read_omniglot_original import ink_records, read_omniglot_original, reduce_ink
from vaebench.datasets.readers import read_amat, read_idx, read_mnist5k, read_omniglot
from vaebench.datasets.splits import SPLITTERS, shuffled_tail, stratified
from vaebench.errors import UserError
from vaebench.files import first_writable, read_npz, replacing, user_cache

MNIST5K_FINGERPRINT = "104206d0d278edc0"
LOCAL = {"download": False, "progress": False}


@pytest.fixture(autouse=True)
def own_user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep every test away from the real user's cache, on every platform, and from proxies and retries."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_RETRIES", 0)
    home = tmp_path_factory.mktemp("home")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(home))
    return home


# Made-up files


def grey(count: int, seed: int = 0) -> np.ndarray:
    """Random grey images, all different, uint8 (count, 784)."""
    return np.random.RandomState(seed).randint(0, 256, size=(count, 784), dtype=np.uint8)


def idx_bytes(images: np.ndarray) -> bytes:
    return struct.pack(">IIII", 0x803, len(images), 28, 28) + images.tobytes()


def amat_bytes(bits: np.ndarray) -> bytes:
    return "".join(" ".join(map(str, row)) + " \n" for row in bits).encode()


def png_bytes(ink: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(~ink).save(buffer, "PNG")
    return buffer.getvalue()


def small_drawings(part: str, characters: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Names as in the official tree, 20 drawings a character, and their ink, bool (N, 105, 105)."""
    names = [
        f"images_{part}/Alphabet/character{character:02d}/{character:04d}_{drawer:02d}.png"
        for character in range(1, characters + 1)
        for drawer in range(1, 21)
    ]
    return names, np.random.RandomState(seed).rand(len(names), 105, 105) < 0.3


def write_zip(path: Path, names: list[str], ink: np.ndarray) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, drawing in reversed(list(zip(names, ink, strict=True))):
            archive.writestr(name, png_bytes(drawing))


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace a dataset's sizes, checksums and addresses by those of made-up files."""

    def replace(name: str, sizes: Sizes, digests: list[str], urls: Sequence[tuple[str, ...]] = ()) -> None:
        entry = CATALOG[name]
        monkeypatch.setitem(CATALOG, name, dataclasses.replace(entry, splits=dict.fromkeys(entry.splits, sizes)))
        urls = urls or tuple(() for _ in digests)
        sources = tuple(
            dataclasses.replace(source, digest=digest, urls=addresses)
            for source, digest, addresses in zip(PUBLISHED_FILES[name], digests, urls, strict=True)
        )
        monkeypatch.setitem(PUBLISHED_FILES, name, sources)
        for protocol in [protocol for protocol in FINGERPRINTS if protocol.startswith(f"{name}/")]:
            monkeypatch.delitem(FINGERPRINTS, protocol)
        for key in [key for key in IMAGES if key[0] == name]:
            monkeypatch.delitem(IMAGES, key)

    return replace


@pytest.fixture
def small_mnist(tmp_path: Path, install: Callable[..., None]) -> Path:
    """A data folder with 50 training and 20 test images in torchvision's layout."""
    train, test = idx_bytes(grey(50)), idx_bytes(grey(20, 1))
    written(tmp_path / "data/MNIST/raw/train-images-idx3-ubyte", train)
    written(tmp_path / "data/MNIST/raw/t10k-images-idx3-ubyte.gz", gzip.compress(test))
    install("mnist", (40, 10, 20), [sha256(train), sha256(test)])
    return tmp_path / "data"


def small_prepare(data_dir: Path, name: str = "mnist", **words: object) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    return prepare(name, data_dir, say=said.append, **LOCAL, **words), said  # type: ignore[arg-type]


Answer = Callable[[BaseHTTPRequestHandler], None]


def whole(content: bytes, *, length: int | None = None) -> Answer:
    """Answer with ``content``; a larger ``length`` breaks the connection before the announced end."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(length or len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def status(code: int) -> Answer:
    return lambda request: request.send_error(code)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Return a function that serves its answers at a new loopback address, in turn; the last one repeats."""
    answers: list[list[Answer]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left = answers[int(self.path.strip("/"))]
            (left.pop(0) if len(left) > 1 else left[0])(self)

        def log_message(self, *_: object) -> None:
            pass

    def add(*these: Answer) -> str:
        answers.append(list(these))
        return f"http://127.0.0.1:{server.server_port}/{len(answers) - 1}"

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield add
        server.shutdown()


@pytest.fixture
def nowhere() -> str:
    """An address that refuses connections."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/"


def present(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


# Readers: exact values, and refusal before parsing


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_pixels_are_exact_plain_and_packed(tmp_path: Path, pack: Callable[[bytes], bytes]):
    images = grey(3)
    content = idx_bytes(images)
    path = written(tmp_path / "any-name", pack(content))
    assert np.array_equal(read_idx(path, sha256(content))["images"], images)


def test_idx_refuses_a_header_that_does_not_fit(tmp_path: Path):
    content = struct.pack(">IIII", 0x803, 4, 28, 28) + grey(3).tobytes()
    with pytest.raises(CorruptFile, match="header does not describe"):
        read_idx(written(tmp_path / "f", content), sha256(content))
    labels = struct.pack(">II", 0x801, 3) + b"\1\2\3"
    with pytest.raises(CorruptFile, match="shorter than an IDX header"):
        read_idx(written(tmp_path / "f", labels), sha256(labels))


@pytest.mark.parametrize("spoil", [lambda c: c[:-1], lambda c: c[:100] + b"\xff" + c[101:], lambda c: b""])
def test_idx_refuses_truncated_and_altered_files(tmp_path: Path, spoil: Callable[[bytes], bytes]):
    content = idx_bytes(grey(3) // 2)
    for name, bad in (("plain", spoil(content)), ("packed", gzip.compress(spoil(content)))):
        with pytest.raises(CorruptFile, match=f"{name} is truncated or altered"):
            read_idx(written(tmp_path / name, bad), sha256(content))


def test_a_truncated_gzip_file_is_corrupt(tmp_path: Path):
    content = idx_bytes(grey(3))
    with pytest.raises(CorruptFile, match="truncated or altered"):
        read_idx(written(tmp_path / "f.gz", gzip.compress(content)[:-20]), sha256(content))


def test_git_blob_id_is_gits():
    # `printf 'hello\n' | git hash-object --stdin`
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_amat_becomes_black_and_white_bytes(tmp_path: Path):
    bits = np.random.RandomState(0).randint(0, 2, size=(4, 784))
    content = amat_bytes(bits)
    images = read_amat(written(tmp_path / "f.amat", content), git_blob_id(content))["images"]
    assert images.dtype == np.uint8
    assert np.array_equal(images, 255 * bits)


ROW = amat_bytes(np.ones((1, 784), int))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"0 1 0 1\n", "line 1: 4 numbers, expected 784 zeros and ones"),
        (amat_bytes(np.full((1, 784), 2)), "line 1: not 784 zeros and ones"),
        (b"1 " * 783 + b"x", "line 1: not 784 zeros and ones"),
        (ROW + b"1 " * 780 + b"\n" + b"1 " * 788 + b"\n", "line 2: 780 numbers"),  # 784 numbers a line on average
        (ROW + ROW + ROW.replace(b"1 1 ", b"11 ", 1), "line 3: not 784 zeros and ones with spaces between"),
        (ROW + b"\n" + ROW[:-5] + b" 1 1 1 1\n", "line 3: 78[0-9] numbers"),
    ],
)
def test_amat_refuses_anything_but_rows_of_bits(tmp_path: Path, bad: bytes, message: str):
    with pytest.raises(CorruptFile, match=message):
        read_amat(written(tmp_path / "f.amat", bad), git_blob_id(bad))


def test_amat_takes_other_spaces_and_empty_lines(tmp_path: Path):
    content = ROW.replace(b" ", b"\t") + b"\r\n" + ROW.rstrip()
    images = read_amat(written(tmp_path / "f.amat", content), git_blob_id(content))["images"]
    assert images.shape == (2, 784)


def mat_bytes(upright: np.ndarray, **more: np.ndarray) -> bytes:
    """Images (N, 28, 28) in [0, 1] as in chardata.mat: each a column of its pixels, column by column."""
    buffer = io.BytesIO()
    savemat(buffer, {"data": np.stack([image.flatten(order="F") for image in upright], axis=1), **more})
    return buffer.getvalue()


def test_omniglot_is_turned_upright(tmp_path: Path):
    upright = np.zeros((2, 28, 28))
    upright[0, 3, 5:20] = 1.0  # a horizontal stroke in row 3
    upright[1] = grey(1).reshape(28, 28) / 255
    content = mat_bytes(upright, testdata=upright[1].flatten(order="F")[:, None])
    arrays = read_omniglot(written(tmp_path / "c.mat", content), git_blob_id(content))
    assert np.array_equal(arrays["data"].reshape(2, 28, 28), np.rint(255 * upright))
    assert np.array_equal(arrays["testdata"], arrays["data"][1:])
    assert arrays["data"][0, 3 * 28 + 5 : 3 * 28 + 20].all()
    # Control: read row by row, the stroke would stand upright in column 3.
    as_stored = np.rint(255 * upright[0].flatten(order="F"))
    assert not np.array_equal(as_stored, arrays["data"][0])
    assert as_stored.reshape(28, 28)[5:20, 3].all()


def test_omniglot_refuses_wrong_levels_shapes_and_checksums(tmp_path: Path):
    good = np.zeros((1, 28, 28))
    cases = {
        "outside": mat_bytes(good + 7, testdata=np.zeros((784, 1))),
        "784 pixels": mat_bytes(good, testdata=np.zeros((100, 1))),
        "784 pixels an": mat_bytes(good),
    }
    for message, content in cases.items():
        with pytest.raises(CorruptFile, match=message):
            read_omniglot(written(tmp_path / "c.mat", content), git_blob_id(content))
    with pytest.raises(CorruptFile, match="checksum"):
        read_omniglot(written(tmp_path / "c.mat", b"not even a mat file"), "0" * 40)


def test_omniglot_original_does_not_depend_on_the_zip_file(tmp_path: Path):
    names, ink = small_drawings("background", 3, 0)
    write_zip(tmp_path / "a.zip", names, ink)
    expected = sha256(ink_records(names, ink))
    arrays = read_omniglot_original(tmp_path / "a.zip", expected)
    assert np.array_equal(arrays["images"], reduce_ink(ink))
    assert np.array_equal(arrays["characters"], np.repeat([0, 1, 2], 20))


def test_omniglot_original_refuses_one_changed_pixel_a_cut_zip_and_other_sizes(tmp_path: Path):
    names, ink = small_drawings("background", 1, 0)
    expected = sha256(ink_records(names, ink))
    changed = ink.copy()
    changed[7, 50, 50] ^= True
    write_zip(tmp_path / "changed.zip", names, changed)
    write_zip(tmp_path / "cut.zip", names, ink)
    cut = (tmp_path / "cut.zip").read_bytes()
    written(tmp_path / "cut.zip", cut[: len(cut) // 2])
    write_zip(tmp_path / "small.zip", names, ink[:, :100, :100])
    write_zip(tmp_path / "empty.zip", [], ink[:0])
    for name in ("changed", "cut", "small", "empty"):
        with pytest.raises(CorruptFile, match=rf"{name}\.zip is truncated or altered"):
            read_omniglot_original(tmp_path / f"{name}.zip", expected)


def test_the_reduction_is_the_mean_ink_of_each_cell():
    ink = np.random.RandomState(0).rand(3, 105, 105) < 0.4
    # The same by brute force: every pixel as 4x4 quarters, every cell 15x15 of them.
    quarters = ink.repeat(4, axis=1).repeat(4, axis=2)
    means = quarters.reshape(3, 28, 15, 28, 15).mean(axis=(2, 4))
    assert np.abs(reduce_ink(ink) - 255 * means.reshape(3, 784)).max() <= 0.5 + 1e-9
    assert reduce_ink(np.ones((1, 105, 105), bool)).min() == 255
    assert reduce_ink(np.zeros((1, 105, 105), bool)).max() == 0


def test_mnist5k_table_is_verified(tmp_path: Path):
    table = np.hstack([grey(4), np.array([[0], [1], [0], [1]], np.uint8)])
    text = "\n".join(",".join(map(str, row)) for row in table).encode()
    path = written(tmp_path / "t.csv.gz", gzip.compress(text))
    arrays = read_mnist5k(path, sha256(table.tobytes()))
    assert np.array_equal(arrays["images"], table[:, :784])
    assert arrays["labels"].tolist() == [0, 1, 0, 1]
    for bad in (text[:-9], b"a,b\n", b""):
        with pytest.raises(CorruptFile):
            read_mnist5k(written(tmp_path / "t.csv.gz", gzip.compress(bad)), sha256(table.tobytes()))


# Protocols and the catalog


def test_protocol_names():
    assert str(protocol_for("mnist")) == "mnist/dynamic-v1"
    assert str(protocol_for("mnist", split="iwae")) == "mnist/dynamic-iwae_split-v1"
    assert str(protocol_for("mnist", "static", seed=3)) == "mnist/static-seed3-v1"
    assert str(protocol_for("binarized_mnist")) == "binarized_mnist/static-v1"
    assert protocol_for("mnist", split="iwae").sizes == (59_600, 400, 10_000)
    assert protocol_for("omniglot").slug == "omniglot-dynamic-v1"


def test_a_seed_that_changes_no_pixel_is_not_part_of_the_name():
    assert protocol_for("mnist", "threshold", seed=5) == protocol_for("mnist", "threshold")
    assert protocol_for("binarized_mnist", seed=5) == protocol_for("binarized_mnist")
    assert protocol_for("mnist5k", "threshold", seed=5).seed == 5  # it moves the split
    assert protocol_for("mnist", "dynamic", seed=5).seed == 5  # it draws validation and test


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "mnits"}, r"did you mean 'mnist'"),
        (
            {"name": "mnist", "binarization": "dynamc"},
            r"dataset\.binarization=dynamc.*did you mean 'dynamic'",
        ),
        ({"name": "binarized_mnist", "binarization": "dynamic"}, r"choose from: static"),
        ({"name": "omniglot", "split": "iwae"}, r"dataset\.split=iwae"),
        ({"name": "mnist", "seed": -1}, r"dataset\.seed must be >= 0 and < 2\*\*32, got -1"),
    ],
)
def test_unknown_words_are_refused(words: dict, message: str):
    with pytest.raises(UserError, match=message):
        protocol_for(**words)


def test_the_catalog_is_complete_and_needs_neither_numpy_nor_torch():
    assert set(NAMES) == set(PUBLISHED_FILES) == set(SPLITTERS)
    for entry in CATALOG.values():
        assert set(entry.how_split) == set(entry.splits)
        assert set(entry.binarizations) <= set(BINARIZATIONS)
    code = (
        "import sys, vaebench.datasets as d; d.CATALOG; d.protocol_for('mnist');"
        "assert not {'torch', 'numpy', 'scipy', 'PIL'} & set(sys.modules);"
        "d.available, d.prepare; assert not {'torch', 'scipy', 'mlxtend'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


@pytest.mark.parametrize("name", NAMES)
def test_each_dataset_has_a_config_that_names_its_default_protocol(name: str):
    text = (Path(__file__).parents[1] / f"configs/dataset/{name}.yaml").read_text()
    words = OmegaConf.to_object(OmegaConf.create(text))
    assert isinstance(words, dict)
    assert text.startswith(f"# vaebench train dataset={name}\n")
    assert protocol_for(**{str(key): word for key, word in words.items()}) == protocol_for(name)


# Splits


def test_stratified_parts_are_exact_disjoint_and_repeatable():
    labels = np.repeat(np.arange(5), 10)
    parts = stratified(labels, (6, 3, 1), np.random.RandomState(0))
    for part, share in zip(parts, (6, 3, 1), strict=True):
        assert np.bincount(labels[part]).tolist() == [share] * 5
        assert not np.all(np.diff(labels[part]) >= 0)  # mixed, not class after class
    assert sorted(np.concatenate(parts)) == list(range(50))
    again = stratified(labels, (6, 3, 1), np.random.RandomState(0))
    other = stratified(labels, (6, 3, 1), np.random.RandomState(1))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[0], other[0])
    # Control: cutting a plain shuffle does not balance the classes.
    head, _ = shuffled_tail(50, 20, np.random.RandomState(0))
    assert len(set(np.bincount(labels[head]).tolist())) > 1
    with pytest.raises(ValueError, match="10 members"):
        stratified(labels, (6, 3), np.random.RandomState(0))


def test_streams_differ_by_seed_and_purpose():
    first = [stream(seed, purpose).randint(2**31) for seed in (0, 1) for purpose in ("train", "split")]
    assert len(set(first)) == 4
    assert stream(0, "split").randint(2**31) == first[1]


def test_mnist_splits_go_by_position(small_mnist: Path):
    pool = grey(50)
    default, _ = small_prepare(small_mnist, binarization="none")
    assert np.array_equal(default.arrays.validation, pool[:10])
    assert np.array_equal(default.arrays.train, pool[10:])
    iwae, _ = small_prepare(small_mnist, binarization="none", split="iwae")
    assert np.array_equal(iwae.arrays.train, pool[:40])
    assert np.array_equal(iwae.arrays.validation, pool[40:])
    assert np.array_equal(iwae.arrays.test, grey(20, 1))


def test_omniglot_validates_on_the_tail_of_the_papers_shuffle(tmp_path: Path, install: Callable[..., None]):
    pool, test = grey(30).reshape(30, 28, 28) / 255, grey(8, 1).reshape(8, 28, 28) / 255
    content = mat_bytes(pool, testdata=np.stack([image.flatten(order="F") for image in test], axis=1))
    written(tmp_path / "chardata.mat", content)
    install("omniglot", (25, 5, 8), [git_blob_id(content)])
    order = np.random.RandomState(seed=123).permutation(30)
    for seed in (0, 9):
        arrays = small_prepare(tmp_path, "omniglot", binarization="none", seed=seed)[0].arrays
        assert np.array_equal(arrays.train, grey(30)[order[:-5]])
        assert np.array_equal(arrays.validation, grey(30)[order[-5:]])
        assert np.array_equal(arrays.test, grey(8, 1))


def test_omniglot_original_tests_on_a_quarter_of_each_character(tmp_path: Path, install: Callable[..., None]):
    parts = [small_drawings("background", 3, 0), small_drawings("evaluation", 2, 1)]
    for (names, ink), part in zip(parts, ("background", "evaluation"), strict=True):
        (tmp_path / "omniglot-py").mkdir(exist_ok=True)
        write_zip(tmp_path / f"omniglot-py/images_{part}.zip", names, ink)
    install("omniglot_original", (55, 20, 25), [sha256(ink_records(*part)) for part in parts])
    arrays = small_prepare(tmp_path, "omniglot_original", binarization="none")[0].arrays
    reduced = np.concatenate([reduce_ink(ink) for _, ink in parts])
    character_of = {image.tobytes(): number // 20 for number, image in enumerate(reduced)}
    tested = [character_of[image.tobytes()] for image in arrays.test]
    assert np.bincount(tested).tolist() == [5] * 5
    everything = np.concatenate([arrays.train, arrays.validation, arrays.test])
    assert sorted(image.tobytes() for image in everything) == sorted(image.tobytes() for image in reduced)


def test_binarized_mnist_keeps_its_own_split(tmp_path: Path, install: Callable[..., None]):
    bits = [np.random.RandomState(seed).randint(0, 2, size=(count, 784)) for seed, count in enumerate((6, 3, 4))]
    contents = [amat_bytes(part) for part in bits]
    for part, content in zip(("train", "valid", "test"), contents, strict=True):
        written(tmp_path / f"MNIST_static/binarized_mnist_{part}.amat", content)
    install("binarized_mnist", (6, 3, 4), [git_blob_id(content) for content in contents])
    arrays = small_prepare(tmp_path, "binarized_mnist")[0].arrays
    for got, part in zip((arrays.train, arrays.validation, arrays.test), bits, strict=True):
        assert np.array_equal(got, 255 * part)
    assert arrays.grey_test is None


def test_mnist5k_is_stratified_disjoint_and_always_the_same(tmp_path: Path):
    prepared, _ = small_prepare(tmp_path, "mnist5k")
    assert prepared.fingerprint == MNIST5K_FINGERPRINT
    path = PUBLISHED_FILES["mnist5k"][0].found(tmp_path)[0]
    source = read_mnist5k(path, PUBLISHED_FILES["mnist5k"][0].digest)
    digit_of = {image.tobytes(): label for image, label in zip(source["images"], source["labels"], strict=True)}
    arrays = prepared.arrays
    parts = (arrays.train, present(arrays.grey_validation), present(arrays.grey_test))
    for images, share in zip(parts, (400, 50, 50), strict=True):
        assert np.bincount([digit_of[image.tobytes()] for image in images]).tolist() == [share] * 10
    assert len({image.tobytes() for images in parts for image in images}) == 5_000
    assert small_prepare(tmp_path, "mnist5k", seed=1)[0].fingerprint != MNIST5K_FINGERPRINT


# Binarization of the splits


def test_what_each_binarization_keeps_grey(small_mnist: Path):
    made = {word: small_prepare(small_mnist, binarization=word)[0].arrays for word in BINARIZATIONS}
    pool, test = grey(50), grey(20, 1)
    assert np.array_equal(made["dynamic"].train, pool[10:])
    for word in ("dynamic", "static"):
        assert np.array_equal(present(made[word].grey_test), test)
        assert set(np.unique(made[word].test)) == {0, 255}
    assert set(np.unique(made["static"].train)) == {0, 255}
    assert np.array_equal(made["dynamic"].test, made["static"].test)
    assert np.array_equal(made["threshold"].test, np.where(test / 255 > 0.5, 255, 0))
    assert np.array_equal(made["none"].test, test)
    assert len({arrays.fingerprint() for arrays in made.values()}) == 4


def test_the_seed_draws_validation_and_test(small_mnist: Path):
    first, again = (small_prepare(small_mnist, rebuild=True)[0] for _ in range(2))
    other, _ = small_prepare(small_mnist, seed=1)
    assert first.fingerprint == again.fingerprint
    assert not np.array_equal(first.arrays.test, other.arrays.test)
    assert np.array_equal(first.arrays.train, other.arrays.train)


# The cache


def test_the_second_time_reads_one_file_and_no_source(small_mnist: Path):
    first, said = small_prepare(small_mnist)
    assert not first.reused
    assert first.cache == small_mnist / "vaebench/mnist-dynamic-v1.npz"
    for path in small_mnist.glob("MNIST/raw/*"):
        path.unlink()
    second, said_again = small_prepare(small_mnist)
    assert second.reused
    assert second.fingerprint == first.fingerprint
    assert all(np.array_equal(second.arrays.parts()[name], array) for name, array in first.arrays.parts().items())
    assert said == said_again == []
    assert not list(small_mnist.rglob("*.tmp"))


def rewrite_header(path: Path, protocol_name: str) -> None:
    cache.write(path, protocol_for("mnist", protocol_name), cache.read(path, protocol_for("mnist")))


def write_header(path: Path, header: object) -> None:
    arrays = cache.read(path, protocol_for("mnist"))
    np.savez(path, header=np.array(header), **arrays.parts())  # type: ignore[arg-type]


def swap_pixels(path: Path) -> None:
    """Change one pixel but keep the header: only the fingerprint can tell."""
    arrays = cache.read(path, protocol_for("mnist"))
    header = np.load(path)["header"]
    arrays.train[0, 0] ^= 1
    np.savez(path, header=header, **arrays.parts())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80\x04K\x01."),  # a pickle is not opened
        lambda path: rewrite_header(path, "static"),
        swap_pixels,
        lambda path: write_header(path, "[" * 100_000),
        lambda path: write_header(path, "9" * 5_000),
        lambda path: write_header(path, 7),
    ],
)
def test_a_corrupt_cache_is_named_and_made_again(small_mnist: Path, spoil: Callable[[Path], None]):
    first, _ = small_prepare(small_mnist)
    assert first.cache is not None
    spoil(first.cache)
    second, said = small_prepare(small_mnist)
    assert not second.reused
    assert second.fingerprint == first.fingerprint
    assert len(said) == 1
    assert str(first.cache) in said[0]
    assert small_prepare(small_mnist)[0].reused


# A cache file that agrees with itself


@functools.cache
def mnist5k_pixels(binarization: str, seed: int) -> Arrays:
    protocol = protocol_for("mnist5k", binarization, seed=seed)
    return binarize_splits(SPLITTERS["mnist5k"]([mnist5k_table()], protocol), protocol)


@functools.cache
def mnist5k_table() -> dict[str, np.ndarray]:
    source = PUBLISHED_FILES["mnist5k"][0]
    return read_mnist5k(source.found(Path())[0], source.digest)


def moved(images: np.ndarray | None) -> np.ndarray:
    """The images three pixels further to the right."""
    return np.roll(present(images).reshape(-1, 28, 28), 3, axis=2).reshape(-1, 784)


@pytest.mark.parametrize("binarization", BINARIZATIONS)
def test_the_published_pixels_of_mnist5k_are_in_the_catalog(binarization: str):
    assert mnist5k_pixels(binarization, 0).fingerprint() == FINGERPRINTS[f"mnist5k/{binarization}-v1"]
    assert departure(mnist5k_pixels(binarization, 7), protocol_for("mnist5k", binarization, seed=7)) == ""


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("binarization", "spoil"),
    [
        ("dynamic", lambda arrays: {"test": moved(arrays.test)}),
        ("dynamic", lambda arrays: {"train": moved(arrays.train)}),
        ("dynamic", lambda arrays: {"grey_test": moved(arrays.grey_test)}),
        ("threshold", lambda arrays: {"test": moved(arrays.test)}),
        ("none", lambda arrays: {"test": moved(arrays.test)}),
        ("static", lambda arrays: {"validation": arrays.grey_validation}),
    ],
)
def test_a_cache_of_other_pixels_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    binarization: str,
    spoil: Callable[[Arrays], dict[str, np.ndarray]],
    seed: int,
):
    protocol, arrays = protocol_for("mnist5k", binarization, seed=seed), mnist5k_pixels(binarization, seed)
    cache.write(tmp_path / "f.npz", protocol, dataclasses.replace(arrays, **spoil(arrays)))
    with pytest.raises(CorruptFile, match=r"not the published ones|not those that seed"):
        cache.read(tmp_path / "f.npz", protocol)
    # Control: the file agrees with itself.
    monkeypatch.setattr(cache, "departure", lambda *_: "")
    assert cache.read(tmp_path / "f.npz", protocol).fingerprint() != arrays.fingerprint()


def test_a_cache_of_other_pixels_is_named_once_and_made_again(tmp_path: Path):
    protocol, arrays = protocol_for("mnist5k"), mnist5k_pixels("dynamic", 0)
    path = cache.cache_paths(protocol, tmp_path)[0]
    cache.write(path, protocol, dataclasses.replace(arrays, test=moved(arrays.test)))
    prepared, said = small_prepare(tmp_path, "mnist5k")
    assert prepared.fingerprint == MNIST5K_FINGERPRINT
    assert len(said) == 1
    assert f"{path} is truncated or altered (its pixels are not the published ones): ignoring this cache" in said[0]
    again, said = small_prepare(tmp_path, "mnist5k")
    assert (again.fingerprint, again.reused, said) == (MNIST5K_FINGERPRINT, True, [])


def test_static_pixels_of_other_seeds_come_from_grey_levels(tmp_path: Path):
    """The catalog holds the grey levels, but no cache file holds them for the training images of a static protocol."""
    forged = cache.cache_paths(protocol_for("mnist5k", "static", seed=7), tmp_path)[0]
    arrays = mnist5k_pixels("static", 7)
    cache.write(
        forged, protocol_for("mnist5k", "static", seed=7), dataclasses.replace(arrays, train=moved(arrays.train))
    )
    for _ in range(2):
        prepared, said = small_prepare(tmp_path, "mnist5k", binarization="static", seed=7)
        assert (prepared.fingerprint, said) == (arrays.fingerprint(), [])
    assert prepared.reused


def test_pixels_that_this_installation_makes_otherwise_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FINGERPRINTS, "mnist5k/none-v1", "0" * 16)
    with pytest.raises(UserError, match=r"mnist5k/none-v1 is not .its pixels are not the published ones"):
        small_prepare(tmp_path, "mnist5k", binarization="none")


# Files that claim to be huge


def npz_of(path: Path, member: bytes, claim: int | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", member)
        if claim is not None:
            archive.filelist[0].file_size = claim
    return path


def npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def npy_of(shape: str, descr: str = "'|u1'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


MIB = 1 << 20


@pytest.mark.parametrize(
    ("member", "claim", "message"),
    [
        (npy(npy_of("(1000000000000,)")), None, "header does not describe its content"),
        (npy(npy_of("(-1, -10)"), bytes(10)), None, "negative"),
        (npy(npy_of("(0, 10**40)")), None, "."),
        (npy(npy_of("(0, 1" + "0" * 40 + ")")), None, "."),
        (npy(npy_of("()", "'|O'"), b"\x80\x04K\x01."), None, "holds Python objects"),
        (npy("(" * 5000), None, "."),
        (bytes(64 * MIB), None, "67108864 bytes, expected at most"),
        (bytes(64 * MIB), 1000, "Bad CRC"),
        (b"1", 10 << 30, "10737418240 bytes, expected at most"),
        (b"not an array", None, "magic string"),
    ],
)
def test_an_npz_file_that_claims_too_much(tmp_path: Path, member: bytes, claim: int | None, message: str):
    path = npz_of(tmp_path / "f.npz", member, claim)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_npz(path, MIB)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
    with pytest.raises(CorruptFile, match=r"f\.npz is truncated or altered"):
        cache.read(path, protocol_for("mnist5k"))


def test_arrays_come_back_as_they_were(tmp_path: Path):
    arrays = {"empty": np.zeros((0, 3)), "text": np.array(["a", "bc"]), "order": np.asfortranarray(grey(3)[:, :5])}
    np.savez_compressed(tmp_path / "f.npz", **arrays)  # type: ignore[arg-type]
    found = read_npz(tmp_path / "f.npz", MIB)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable


def test_a_gzip_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checksum, "LARGEST", MIB)
    bomb = written(tmp_path / "f.gz", gzip.compress(bytes(64 * MIB)))
    plain = written(tmp_path / "f", bytes(64 * MIB))
    tracemalloc.start()
    try:
        for path in (bomb, plain):
            with pytest.raises(CorruptFile, match="more than 1048576 bytes"):
                read_idx(path, "")
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_a_zip_of_drawings_that_claims_too_much(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "f.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(64 * MIB))
    with pytest.raises(CorruptFile, match=r"a\.png has 67108864 bytes"):
        read_omniglot_original(tmp_path / "f.zip", "")


def test_a_read_only_folder_sends_the_cache_to_the_user(small_mnist: Path, own_user_cache: Path):
    small_mnist.chmod(0o555)  # refused even to root, whom the system lets write
    try:
        prepared, said = small_prepare(small_mnist)
        assert prepared.cache is not None
        assert own_user_cache in prepared.cache.parents
        assert len(said) == 1
        assert "cannot write to" in said[0]
        assert small_prepare(small_mnist)[1] == []
        assert sorted(path.name for path in small_mnist.iterdir()) == ["MNIST"]
    finally:
        small_mnist.chmod(0o755)


def test_without_any_folder_to_write_the_data_stay_in_memory(small_mnist: Path, own_user_cache: Path):
    written(small_mnist / "vaebench", b"a file where the folder should be")
    for name in (".cache", "vaebench", "Library"):
        written(own_user_cache / name, b"and here")
    prepared, said = small_prepare(small_mnist)
    assert prepared.cache is None
    assert len(said) == 1
    assert "in memory" in said[0]


def test_a_full_disk_costs_only_the_cache(small_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write", full)
    prepared, said = small_prepare(small_mnist)
    assert prepared.cache is None
    assert len(said) == 1


def test_processes_that_prepare_at_once_leave_a_valid_cache(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from vaebench.datasets import prepare;"
        "print(prepare('mnist5k', Path(sys.argv[1]), rebuild=True).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {run.communicate(timeout=60)[0].strip() for run in runs} == {MNIST5K_FINGERPRINT}
    assert [path.name for path in (tmp_path / "vaebench").iterdir()] == ["mnist5k-dynamic-v1.npz"]
    assert small_prepare(tmp_path, "mnist5k")[0].reused


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path):
    path = written(tmp_path / "f", b"old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("half\udc80", encoding="utf-8")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert first_writable([path / "below a file", tmp_path / "new"]) == tmp_path / "new"


def test_replacing_moves_the_old_file_only_for_a_complete_new_one(tmp_path: Path):
    path, old = written(tmp_path / "f", b"old"), tmp_path / "f.old"
    with pytest.raises(UnicodeEncodeError), replacing(path, keep_old_as=old) as temporary:
        temporary.write_text("half\udc80", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    with replacing(path, keep_old_as=old) as temporary:
        temporary.write_bytes(b"new")
    assert (path.read_bytes(), old.read_bytes()) == (b"new", b"old")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other cache folders")
def test_the_user_cache_is_where_the_documentation_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "vaebench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache/vaebench"


# Finding and downloading


def test_a_file_lying_directly_in_data_dir_is_found(small_mnist: Path):
    for path in list(small_mnist.glob("MNIST/raw/*")):
        path.rename(small_mnist / path.name)
    assert small_prepare(small_mnist)[0].arrays.train.shape == (40, 784)


def test_a_corrupt_file_is_named_and_never_used(small_mnist: Path):
    path = small_mnist / "MNIST/raw/train-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is truncated or altered.*delete or replace"):
        small_prepare(small_mnist)
    assert not (small_mnist / "vaebench").exists()
    written(small_mnist / "train-images-idx3-ubyte", content)  # a valid copy elsewhere is used
    assert small_prepare(small_mnist)[0].arrays.train.shape == (40, 784)


def test_fashion_files_are_not_corrupt_mnist_files(small_mnist: Path, install: Callable[..., None]):
    fashion = [idx_bytes(grey(50, 5)), idx_bytes(grey(20, 6))]
    install("fashion_mnist", (40, 10, 20), [sha256(content) for content in fashion])
    for path in list(small_mnist.glob("MNIST/raw/*")):
        path.rename(small_mnist / path.name)
    with pytest.raises(UserError, match="dataset=fashion_mnist needs train-images-idx3-ubyte"):
        small_prepare(small_mnist, "fashion_mnist")
    for name, content in zip(("train", "t10k"), fashion, strict=True):
        written(small_mnist / f"FashionMNIST/raw/{name}-images-idx3-ubyte", content)
    fashion_arrays = small_prepare(small_mnist, "fashion_mnist", binarization="none")[0].arrays
    assert np.array_equal(fashion_arrays.train, grey(50, 5)[10:])
    assert np.array_equal(small_prepare(small_mnist, binarization="none")[0].arrays.train, grey(50)[10:])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mnist5k"])
def test_without_a_network_one_message_says_what_to_do(
    name: str, tmp_path: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch
):
    files = tuple(dataclasses.replace(file, urls=(nowhere, nowhere)) for file in PUBLISHED_FILES[name])
    monkeypatch.setitem(PUBLISHED_FILES, name, files)
    with pytest.raises(UserError) as caught:
        prepare(name, tmp_path / "data", progress=False)
    message = str(caught.value)
    assert "\n" not in message
    for expected in (
        *(file.names[0] for file in files),
        str(tmp_path / "data"),
        "dataset=mnist5k",
        f"({nowhere}: Connection refused)",
    ):
        assert expected in message
    assert list(tmp_path.iterdir()) == []


SMALL = [idx_bytes(grey(50)), idx_bytes(grey(20, 1))]
SMALL_DIGESTS = [sha256(content) for content in SMALL]


def test_downloads_are_verified_and_mirrors_tried_in_turn(
    tmp_path: Path, install: Callable[..., None], serve: Callable[..., str]
):
    served = [gzip.compress(content) for content in SMALL]
    urls = [(serve(status(404)), serve(whole(packed[: len(packed) // 2])), serve(whole(packed))) for packed in served]
    install("mnist", (40, 10, 20), SMALL_DIGESTS, urls)
    prepared = prepare("mnist", tmp_path / "data", progress=False)
    assert np.array_equal(present(prepared.arrays.grey_test), grey(20, 1))
    kept = {path.name: path for path in (tmp_path / "data/MNIST/raw").iterdir()}
    names = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
    assert {name: path.read_bytes() for name, path in kept.items()} == dict(zip(names, served, strict=True))
    # Other users of a shared folder can read the files: their mode is not that of a temporary file.
    ordinary = written(tmp_path / "ordinary", b"").stat().st_mode
    assert {path.stat().st_mode for path in kept.values()} == {ordinary}


def test_a_download_replaces_another_datasets_file_of_the_same_name(
    tmp_path: Path, install: Callable[..., None], serve: Callable[..., str]
):
    fashion = idx_bytes(grey(50, 5))
    install("fashion_mnist", (40, 10, 20), [sha256(fashion), sha256(b"none")])
    install("mnist", (40, 10, 20), SMALL_DIGESTS, [(serve(whole(content)),) for content in SMALL])
    path = written(tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz", fashion)
    prepare("mnist", tmp_path, progress=False)
    assert path.read_bytes() == SMALL[0]


@pytest.mark.parametrize("failure", [status(503), whole(b"half", length=9)], ids=["status", "broken off"])
def test_a_failed_download_is_retried(
    failure: Answer,
    tmp_path: Path,
    install: Callable[..., None],
    serve: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
):
    install("mnist", (40, 10, 20), SMALL_DIGESTS, [(serve(failure, whole(SMALL[0])),), (serve(whole(SMALL[1])),)])
    monkeypatch.setattr(download, "_RETRIES", 1)
    assert prepare("mnist", tmp_path, progress=False).arrays.train.shape == (40, 784)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (whole(gzip.compress(idx_bytes(grey(50, 1)))), "the downloaded file does not match its checksum"),
        (whole(b"<html>log in first</html>"), "the downloaded file does not match its checksum"),
        (whole(SMALL[0][:900]), "the downloaded file does not match its checksum"),
        (whole(SMALL[0][:900], length=len(SMALL[0])), "900 bytes read"),
        (status(404), "HTTP 404 Not Found"),
    ],
    ids=["altered", "web page", "truncated", "broken off", "not found"],
)
def test_a_wrong_download_is_refused_and_not_kept(
    answer: Answer, reason: str, tmp_path: Path, install: Callable[..., None], serve: Callable[..., str]
):
    install("mnist", (40, 10, 20), SMALL_DIGESTS, [(serve(answer),), (serve(answer),)])
    with pytest.raises(UserError, match=reason):
        prepare("mnist", tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def test_a_download_for_a_read_only_folder_goes_to_the_user(
    tmp_path: Path, own_user_cache: Path, install: Callable[..., None], serve: Callable[..., str]
):
    install("mnist", (40, 10, 20), SMALL_DIGESTS, [(serve(whole(content)),) for content in SMALL])
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o555)
    said: list[str] = []
    prepare("mnist", data_dir, progress=False, say=said.append)
    assert list(data_dir.iterdir()) == []
    assert len(list(own_user_cache.rglob("*-images-idx3-ubyte.gz"))) == 2
    assert prepare("mnist", data_dir, rebuild=True, progress=False, say=said.append, download=False)


def test_the_progress_bar_counts_a_download(
    tmp_path: Path, install: Callable[..., None], serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    install("mnist", (40, 10, 20), SMALL_DIGESTS, [(serve(whole(content)),) for content in SMALL])
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(download, "tqdm", functools.partial(download.tqdm, file=shown))
    prepare("mnist", tmp_path, progress=False)
    assert shown.getvalue() == ""
    prepare("mnist", tmp_path / "again", progress=True)
    assert "train-images-idx3-ubyte.gz: 100%" in shown.getvalue()


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = dataclasses.replace(PUBLISHED_FILES["mnist5k"][0], package="no_such_package_here")
    monkeypatch.setitem(PUBLISHED_FILES, "mnist5k", (source,))
    with pytest.raises(UserError, match="pip install no_such_package_here"):
        small_prepare(tmp_path, "mnist5k")


def test_files_of_another_size_are_refused(small_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    entry = dataclasses.replace(CATALOG["mnist"], splits={"default": (41, 10, 20)})
    monkeypatch.setitem(CATALOG, "mnist", entry)
    with pytest.raises(UserError, match=r"give \(40, 10, 20\) images"):
        small_prepare(small_mnist)


def test_availability(small_mnist: Path):
    states = {entry.name: entry for entry in available(small_mnist)}
    assert tuple(states) == NAMES
    assert states["mnist"].state == "found"
    assert states["mnist"].missing == ()
    assert states["mnist5k"].state == "found"
    assert states["omniglot"].state == "missing"
    assert states["omniglot"].missing == ("chardata.mat",)
    small_prepare(small_mnist)
    after = {entry.name: entry.state for entry in available(small_mnist)}
    assert (after["mnist"], after["omniglot_original"]) == ("prepared", "missing")


def test_fingerprints_see_names_shapes_and_pixels():
    a, b = grey(4), grey(4, 1)
    prints = [
        Arrays(a, b, a).fingerprint(),
        Arrays(b, a, a).fingerprint(),
        Arrays(a, b, a, a).fingerprint(),
        Arrays(a, b, a.reshape(2, -1)).fingerprint(),
    ]
    assert len(set(prints)) == 4
    assert all(len(text) == 16 for text in prints)
