"""`vaebench encode`: what the latents are, that they depend on no batch, and the labels beside them."""

import gzip
import io
import json
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from test_pictures import untrained
from werkzeug.test import Client
from werkzeug.wrappers import Response

from vaebench import cli, experiment
from vaebench.config.encoding import Encoding
from vaebench.datasets.checksum import git_blob_id, md5
from vaebench.datasets.dataset import load
from vaebench.datasets.labels import _chardata, _cifar, _idx, _in_place_of_images, labels_of
from vaebench.datasets.protocol import protocol_for
from vaebench.datasets.published_files import PUBLISHED_FILES
from vaebench.datasets.splits import SPLITTERS
from vaebench.encode import encode, encoded, observed
from vaebench.errors import UserError
from vaebench.evaluate.job import Images
from vaebench.records import RunFolder
from vaebench.records.latents import read_latents

ENCODERS = ["gaussian", "full_gaussian", "sivi", "two_layer"]
FEW = {"device": "cpu", "threads": 1, "progress": False, "images": 30}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> dict[str, Path]:
    """Run folders with fresh weights, by encoder."""
    torch.set_default_dtype(torch.float32)
    place = tmp_path_factory.mktemp("runs")
    words = {"two_layer": ["prior=chained"]}
    return {
        name: untrained(place / name, default_data_dir, [f"encoder={name}", *words.get(name, [])]) for name in ENCODERS
    }


def latents_of(run: Path, place: Path, **settings: object):
    (path,) = encode(run, Encoding(**FEW | settings), place)  # pyright: ignore
    return read_latents(path)


def images_of(run: experiment.Experiment, numbers: np.ndarray, split: str = "test") -> Images:
    chosen = torch.from_numpy(numbers)
    return Images(chosen, run.data.split(split)[chosen], "")


@pytest.mark.parametrize("name", ["gaussian", "full_gaussian"])
def test_means_are_those_of_the_encoder(name: str, runs: dict[str, Path], tmp_path: Path):
    found, run = latents_of(runs[name], tmp_path / "a.npz"), experiment.load(runs[name])
    with torch.no_grad():
        context = run.encoder.encode(run.data.observe(run.data.test[found.images]))
    mean = context.mean if name == "gaussian" else context.diagonal.mean
    assert np.allclose(found.mean, mean.numpy(), atol=1e-6)
    assert (found.mean_draws, found.mean_stderr, found.draws) == (0, None, None)


def test_a_mean_of_draws_has_its_standard_error(runs: dict[str, Path]):
    """The Gaussian has a mean to compare with; here its encoder hides it."""
    run = experiment.load(runs["gaussian"])
    chosen = images_of(run, np.arange(60))
    exact = encoded(run, Encoding(**FEW), chosen).mean
    run.encoder.posterior_mean = lambda x: None  # pyright: ignore
    drawn = encoded(run, Encoding(**FEW, mean_draws=400), chosen)
    assert drawn.stderr is not None
    errors = (drawn.mean - exact) / drawn.stderr
    assert errors.abs().max() < 5
    assert 0.8 < errors.std() < 1.2


@pytest.mark.parametrize("name", ENCODERS)
def test_latents_depend_on_seed_and_image_alone(name: str, runs: dict[str, Path]):
    """Neither on the batch, nor on the other images of the command; the control is another seed."""
    run = experiment.load(runs[name])
    whole = encoded(run, Encoding(**FEW, draws=3), images_of(run, np.arange(20), "train"))
    some = encoded(run, Encoding(**FEW, draws=3, batch=4), images_of(run, np.arange(5, 15), "train"))
    other = encoded(run, Encoding(**FEW, draws=3, seed=1), images_of(run, np.arange(20), "train"))
    assert whole.draws.shape == (20, 3, 4)
    assert torch.allclose(whole.draws[5:15], some.draws, atol=1e-5)
    assert torch.allclose(whole.mean[5:15], some.mean, atol=1e-5)
    assert not torch.allclose(whole.draws, other.draws, atol=1e-2)


def test_training_images_are_drawn_from_their_grey_levels(runs: dict[str, Path]):
    run, numbers = experiment.load(runs["gaussian"]), torch.arange(2000)
    grey = run.data.train[numbers]
    x = observed(run, grey, numbers, 0)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert abs((x.mean() - grey.float().mean() / 255).item()) < 1e-3
    assert torch.equal(x[grey == 255], torch.ones_like(x[grey == 255]))
    assert torch.equal(observed(run, run.data.test, torch.arange(500), 3), run.data.test / 255)


def test_the_file_says_what_made_it(runs: dict[str, Path], tmp_path: Path):
    found = latents_of(runs["two_layer"], tmp_path / "a.npz", draws=2)
    assert found.draws is not None and found.draws.shape == (30, 2, 4)  # noqa: PT018
    origin = found.provenance
    assert (origin["epoch"], origin["split"], origin["encoder"]) == (7, "test", "two_layer")
    assert origin["protocol"] == "mnist5k/dynamic-v1/random30-seed0"
    assert (len(origin["layers"]), sum(origin["layers"])) == (2, 4)
    assert {"weights", "checkpoint", "code", "version", "data", "run"} <= origin.keys()


def test_csv_and_npz_hold_the_same(runs: dict[str, Path], tmp_path: Path):
    found = latents_of(runs["sivi"], tmp_path / "a.npz", draws=2)
    encode(runs["sivi"], Encoding(**FEW, draws=2), tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    comments = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("# "))
    assert {name: json.loads(value) for name, value in comments.items()} == {"mean_draws": 100, **found.provenance}
    table = pd.read_csv(tmp_path / "a.csv", comment="#", dtype={"vector": str})
    assert found.draws is not None
    vectors = {"mean": found.mean, "stderr": found.mean_stderr, "0": found.draws[:, 0], "1": found.draws[:, 1]}
    assert len(table) == 4 * 30
    for name, values in vectors.items():
        rows = table[table.vector == name]
        assert np.array_equal(rows.filter(regex=r"^z\d").to_numpy(np.float32), values)
        assert np.array_equal(rows.image, found.images)
        assert np.array_equal(rows.labels, found.labels["labels"])


# Labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_labels_belong_to_their_images(seed: int, default_data_dir: Path):
    """The table of mnist5k has images and labels in one row: find each image there."""
    (path,) = PUBLISHED_FILES["mnist5k"][0].found(default_data_dir)
    table = pd.read_csv(path, header=None, dtype=np.uint8).to_numpy()
    by_pixels = {row[:-1].tobytes(): row[-1] for row in table}
    data = load("mnist5k", default_data_dir, binarization="none", seed=seed)
    found = labels_of(data.protocol, default_data_dir, {})
    assert not isinstance(found, str)
    for split in ("train", "validation", "test"):
        assert [by_pixels[row.numpy().tobytes()] for row in data.split(split)] == found["labels"][split].tolist()


def test_own_labels_follow_the_split_of_their_images(tmp_path: Path):
    """Each image has its label as its grey level."""
    classes = np.arange(100) % 7
    np.savez(tmp_path / "a.npz", images=np.full((100, 4, 4), 1, np.uint8) * classes[:, None, None] * 9, y=classes)
    frame = pd.DataFrame(np.repeat(classes[:, None] * 9, 16, 1)).assign(label=[f"c{number}" for number in classes])
    frame.to_csv(tmp_path / "b.csv", index=False)
    for number, digit in enumerate(classes):
        place = tmp_path / "c" / f"c{digit}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), digit * 9, np.uint8)).save(place / f"{number}.png")
    for name, prefix in (("a.npz", ""), ("b.csv", "c"), ("c", "c")):
        own: dict[str, Any] = {"path": str(tmp_path / name)}
        data = load("own", tmp_path, binarization="none", **own)
        found = labels_of(data.protocol, tmp_path, own)
        assert not isinstance(found, str)
        for split in ("train", "validation", "test"):
            expected = [f"{prefix}{row[0].item() // 9}" for row in data.split(split)]
            assert list(map(str, found["labels"][split])) == expected
    np.savez(tmp_path / "d.npz", images=np.zeros((100, 4, 4), np.uint8), y=classes[:50])
    own: dict[str, Any] = {"path": str(tmp_path / "d.npz")}
    data = load("own", tmp_path, **own)
    assert "no label for each image of train" in labels_of(data.protocol, tmp_path, own)


def test_labels_change_no_fingerprint(tmp_path: Path):
    pixels = (np.arange(1600).reshape(100, 4, 4) % 251).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    np.savez(tmp_path / "b.npz", images=pixels, y=np.arange(100))
    one, other = (load("own", tmp_path, path=str(tmp_path / f"{name}.npz")) for name in "ab")
    assert (one.fingerprint, str(one.protocol)) == (other.fingerprint, str(other.protocol))


def test_files_of_labels(tmp_path: Path):
    content = b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes([7, 0, 9])
    (tmp_path / "l.gz").write_bytes(gzip.compress(content))
    assert _idx(tmp_path / "l.gz", "")["labels"].tolist() == [7, 0, 9]
    labels = [int(number) for number in np.random.RandomState(0).randint(0, 10, 3000)]
    for protocol in (2, 4):
        batch = pickle.dumps({"batch_label": "b", "labels": labels, "data": b"x" * 3072, "n": [1, 2]}, protocol)
        (tmp_path / "batch").write_bytes(batch)
        assert _cifar(tmp_path / "batch", md5(batch))["labels"].tolist() == labels


def test_labels_of_chardata_follow_their_images(tmp_path: Path):
    """chardata.mat has a column of zeros and a one for each alphabet, and the number of the character in it."""
    numbers = {"": np.arange(30), "test": np.arange(8)}
    buffer = io.BytesIO()
    targets = {f"{part}target": np.eye(50)[:, n % 50] for part, n in numbers.items()}
    savemat(buffer, targets | {f"{part}targetchar": n[None] + 1 for part, n in numbers.items()})
    (tmp_path / "chardata.mat").write_bytes(buffer.getvalue())
    arrays = _chardata(tmp_path / "chardata.mat", git_blob_id(buffer.getvalue()))
    protocol = protocol_for("omniglot")
    protocol = replace(protocol, info=replace(protocol.info, splits={"default": (25, 5, 8)}))
    images = SPLITTERS["omniglot"]([{"data": numbers[""], "testdata": numbers["test"]}], protocol)
    labels = SPLITTERS["omniglot"]([_in_place_of_images(arrays, "labels")], protocol)
    for rows, named in zip(images, labels, strict=True):
        assert named.tolist() == [f"alphabet{n + 1:02d}/character{n + 1:02d}" for n in rows]
    assert arrays["alphabets"].tolist()[:2] == ["alphabet01", "alphabet02"]


def test_missing_labels_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "hold none" in str(labels_of(protocol_for("binarized_mnist"), tmp_path, {}))
    monkeypatch.setattr("vaebench.datasets.download._downloaded", lambda *_: (None, "no network"))
    found = labels_of(protocol_for("mnist"), tmp_path, {})
    assert isinstance(found, str)
    assert "train-labels-idx1-ubyte" in found
    assert "\n" not in found


# Commands -------------------------------------------------------------------------------------------------


def test_each_run_gets_a_file(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    words = ["device=cpu", "images=5", "progress=false", "threads=1"]
    both = [str(runs["gaussian"]), str(runs["sivi"])]
    assert cli.main(["encode", *both, *words]) == 0
    assert capsys.readouterr().out.split() == [f"{run}/latents/test.npz" for run in both]
    assert cli.main(["encode", *both, *words, "-o", "a.npz"]) == 2
    assert cli.main(["encode", both[0], *words, "-o", "a.json"]) == 2
    assert "must end in .npz or .csv" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.npz"
    latents_of(runs["gaussian"], path)
    old = path.read_bytes()
    monkeypatch.setattr("vaebench.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(UserError, match="disk is full"):
        latents_of(runs["gaussian"], path, seed=1)
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]


# TensorBoard's projector ----------------------------------------------------------------------------------


def projector(logdir: Path) -> Client:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    plugin = ProjectorPlugin(TBContext(logdir=str(logdir), data_provider=MultiplexerDataProvider(multiplexer, "")))
    apps = plugin.get_plugin_apps()
    return Client(lambda environ, start: apps[environ["PATH_INFO"]](environ, start), Response)


def test_tensorboard_serves_the_embedding(runs: dict[str, Path]):
    run = runs["gaussian"]
    found = read_latents(encode(run, Encoding(**FEW), run / "latents" / "test.npz")[0])
    assert encode(run, Encoding(**FEW), projector=True) == [run / "projector_config.pbtxt"]
    client = projector(run)
    (embedding,) = client.get("/info", query_string={"run": "."}).get_json()["embeddings"]
    name = embedding["tensorName"]
    assert embedding["tensorShape"] == [30, 4]
    assert "test" in name
    assert "epoch 7" in name
    asked = {"run": ".", "name": name}
    tensor = np.frombuffer(client.get("/tensor", query_string=asked).data, np.float32).reshape(30, 4)
    assert np.allclose(tensor, found.mean, rtol=1e-4)
    rows = client.get("/metadata", query_string={**asked, "num_rows": 100}).get_data(as_text=True).splitlines()
    expected = zip(found.labels["labels"].tolist(), found.images.tolist(), strict=True)
    assert rows == ["labels\timage", *(f"{label}\t{image}" for label, image in expected)]
    with Image.open(io.BytesIO(client.get("/sprite_image", query_string=asked).data)) as sprite:
        assert sprite.size == (6 * 28, 6 * 28)
        corner = np.asarray(sprite)[28:56, 28:56]  # image 7 of rows of 6
    data = experiment.load(run).data
    assert np.array_equal(corner.ravel(), data.test[found.images[7]].numpy())


def test_a_new_embedding_replaces_the_old_one_whole(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    run = runs["sivi"]
    events = set(run.rglob("events.out.*"))
    encode(run, Encoding(**FEW), projector=True)
    first = {path.name for path in (run / "projector").iterdir()}
    old = (run / "projector_config.pbtxt").read_text()
    (run / "projector" / "mine.txt").write_text("kept")

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # a stop before the last write: the old embedding is whole
        patch.setattr("vaebench.records.projector.text_format.MessageToString", fails)
        with pytest.raises(KeyboardInterrupt):
            encode(run, Encoding(**FEW, seed=1), projector=True)
    assert (run / "projector_config.pbtxt").read_text() == old
    assert first < {path.name for path in (run / "projector").iterdir()}
    encode(run, Encoding(**FEW, seed=2), projector=True)
    now = {path.name for path in (run / "projector").iterdir()}
    assert len(now) == 4
    assert not first & now
    assert "mine.txt" in now
    assert set(run.rglob("events.out.*")) == events


@pytest.mark.parametrize("name", ["latents", "projector", "projector_config.pbtxt"])
def test_links_are_refused(name: str, runs: dict[str, Path], tmp_path: Path):
    run = Path(shutil.copytree(runs["gaussian"], tmp_path / "run"))
    place = run / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.symlink_to(tmp_path)
    with pytest.raises(UserError, match="symbolic link"):
        RunFolder.open(run)
