"""`vaebench export`: a run as one file gives the numbers of the run; a damaged or hostile file is refused."""

import hashlib
import io
import json
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_runs import made_run
from test_every_config import ONE_STEP
from test_plugins import lab, where  # noqa: F401  (fixtures)

import vaebench
from vaebench.cli import main
from vaebench.config import compose, read
from vaebench.config.run import changed, to_yaml
from vaebench.experiment import weights_digest
from vaebench.records import RunFolder, exported, read_manifest, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.records.provenance import checksum, sealed
from vaebench.train.session import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> RunFolder:
    """A finished run of one step."""
    words = [*ONE_STEP, f"data_dir={default_data_dir}", f"output_dir={tmp_path_factory.mktemp('outputs')}"]
    return RunFolder(train(compose(words)))


@pytest.fixture(scope="module")
def content(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the exported run."""
    path = tmp_path_factory.mktemp("exported") / "run.vae.zip"
    assert main(["export", str(trained.path), "-o", str(path)]) == 0
    return path.read_bytes()


@pytest.fixture
def file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_data_dir: Path) -> Path:
    """The exported file, in the working folder of a reader with the same data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAEBENCH_DATA_DIR", str(default_data_dir))
    (tmp_path / "run.vae.zip").write_bytes(content)
    return Path("run.vae.zip")


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], *deflated: str) -> bytes:
    """Return a zip archive with a valid seal around any members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text, zipfile.ZIP_DEFLATED if name in deflated else zipfile.ZIP_STORED)
    return sealed(buffer.getvalue())


# What the file gives --------------------------------------------------------------------------------------


def test_an_evaluation_of_the_file_gives_exactly_the_number_of_the_run(
    trained: RunFolder, file: Path, capsys: pytest.CaptureFixture[str]
):
    (here,) = read_results(trained)
    assert main(["evaluate", str(file), "device=cpu", "threads=1"]) == 0
    said = capsys.readouterr()
    assert "log p(x) before: >= " in said.out
    assert "the same" in said.out
    assert said.err == "run.vae.zip is intact: unpacked to run.vae, where new results are added\n"
    (there,) = read_results(RunFolder(Path("run.vae")))
    assert (there.mean, there.stderr, there.direction) == (here.mean, here.stderr, here.direction)
    assert there.provenance is not None
    assert here.provenance is not None
    assert (there.provenance.weights, there.provenance.data) == (here.provenance.weights, here.provenance.data)
    # The numbers were computed: the file holds none of single images.
    assert there.per_image is not None
    assert there.per_image == here.per_image
    assert (Path("run.vae") / there.per_image.partition(":")[0]).exists()


def test_control_another_number_in_the_file_is_told(file: Path, capsys: pytest.CaptureFixture[str]):
    files = members(file.read_bytes())
    (entry,) = json.loads(files["results.json"])
    entry["mean"] += 0.25
    entry["checksum"] = checksum(entry)
    file.write_bytes(zipped(files | {"results.json": json.dumps([entry]).encode()}))
    assert main(["evaluate", str(file), "device=cpu", "threads=1"]) == 0
    assert "the new mean minus the old is -0.25" in capsys.readouterr().out


def test_the_commands_on_runs_take_the_file(trained: RunFolder, file: Path, capsys: pytest.CaptureFixture[str]):
    for words in (["show"], ["sample", "n=4"], ["compare"], ["list", "runs"]):
        assert main([words[0], *words[1:2], str(file), *words[2:]] if words[0] == "list" else [*words, str(file)]) == 0
    assert "run         run.vae" in capsys.readouterr().out
    assert (Path("run.vae") / "pictures" / "sample.png").exists()
    loaded = vaebench.load(file).modules.state_dict()
    assert weights_digest(loaded) == read_manifest(trained)["best"]["weights"]


def test_the_file_says_nothing_of_the_machine(trained: RunFolder, content: bytes, default_data_dir: Path):
    manifest, files = read_manifest(trained), members(content)
    texts = b"".join(text for name, text in files.items() if name != exported.WEIGHTS).decode()
    assert not [
        word for word in (str(default_data_dir), str(trained.path.parents[2]), manifest["host"]) if word in texts
    ]
    assert json.loads(files["manifest.json"])["dataset"] == manifest["dataset"]
    assert torch.load(io.BytesIO(files[exported.WEIGHTS]), weights_only=True)["epoch"] == 1


def test_the_same_run_gives_the_same_file(trained: RunFolder, content: bytes, tmp_path: Path):
    assert main(["export", str(trained.path), "-o", str(tmp_path / "again.vae.zip")]) == 0
    assert hashlib.sha256((tmp_path / "again.vae.zip").read_bytes()).digest() == hashlib.sha256(content).digest()


def test_a_session_in_the_manifest_loses_its_absolute_paths(tmp_path: Path):
    from vaebench.cli.export import public

    plugin = {"kind": "encoder", "name": "lab", "file": "/home/ada/lab.py", "digest": "0"}
    command = [
        "/usr/bin/vaebench",
        "train",
        "--plugin=/home/ada/lab.py",
        "data_dir=/home/ada/d",
        "experiment=iwae/mnist",
    ]
    session = {"command": command, "host": "ada-pc", "pid": 7, "plugins": [plugin], "code": "c"}
    found = public({**session, "continues": {"run": "/home/ada/r"}, "restarts": [session | {"step": 3}]})
    kept = {
        "command": ["vaebench", "train", "--plugin=lab.py", "experiment=iwae/mnist"],
        "plugins": [plugin | {"file": "lab.py"}],
        "code": "c",
    }
    assert found == {**kept, "restarts": [kept | {"step": 3}]}


# What is refused ------------------------------------------------------------------------------------------


def edited(name: str, old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Return a function that replaces text in a member, and seals the archive again."""

    def edit(content: bytes) -> bytes:
        files = members(content)
        assert old in files[name]
        return zipped(files | {name: files[name].replace(old, new, 1)})

    return edit


def flipped(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def with_other_weights(content: bytes) -> bytes:
    files = members(content)
    state = torch.load(io.BytesIO(files[exported.WEIGHTS]), weights_only=True)
    state["modules"] = {name: tensor + 1 for name, tensor in state["modules"].items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return zipped(files | {exported.WEIGHTS: sealed(buffer.getvalue())})


def lying(content: bytes) -> bytes:
    """Return an archive whose directory claims 9 bytes for a member of a million."""
    data = zipped(members(content) | {"status.json": b" " * 1_000_000}, "status.json")
    size = (1_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    body = data.replace(size, (9).to_bytes(4, "little"))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return sealed(body[: -len(archive.comment) - 2] + b"\0\0")


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-100], "it is truncated, or was not written by vaebench"),
    "empty": (lambda content: b"", "it is truncated"),
    "another zip": (lambda content: zipped({"a": b"b"}), "it has the members 'a', expected config.yaml"),
    "a flipped bit": (flipped, "it was altered after it was written"),
    "a path outside": (lambda content: zipped(members(content) | {"../x": b"y"}), "it has the members"),
    "a member missing": (
        lambda content: zipped({k: v for k, v in members(content).items() if k != "results.json"}),
        "it has the members",
    ),
    "a bomb": (
        lambda content: zipped(members(content) | {"metrics.jsonl": b" " * (65 << 20)}, "metrics.jsonl"),
        "its metrics.jsonl has 68157440 bytes, more than 67108864",
    ),
    "a bomb of weights": (
        lambda content: zipped(members(content) | {exported.WEIGHTS: b" " * (9 << 20)}, exported.WEIGHTS),
        "its checkpoints/best.pt has 9437184 bytes, more than",
    ),
    "a false size": (lying, "it is not as `vaebench export` writes it"),
    "no settings": (edited("config.yaml", b"k: 1", b"k: one"), "k must be an integer"),
    "another seed": (edited("config.yaml", b"seed: 0", b"seed: 1"), "is not the configuration of this run"),
    "another number": (edited("results.json", b'"mean": -', b'"mean": -1'), "was altered after it was written"),
    "other weights": (with_other_weights, "holds other weights"),
    "other data": (edited("manifest.json", b'"fingerprint": "', b'"fingerprint": "0'), "but the data are now"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_message(damage: str, file: Path, capsys: pytest.CaptureFixture[str]):
    change, words = DAMAGES[damage]
    file.write_bytes(change(file.read_bytes()))
    shown = main(["show", str(file)]) if damage in ("another seed", "another number") else None
    assert shown in (None, 2)
    assert main(["evaluate", str(file), "device=cpu"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not Path("../x").exists()


def test_a_large_file_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(exported, "_LARGEST_FILE", 1000)
    assert main(["show", str(file)]) == 2
    assert "bytes, more than 1000. Download it again" in capsys.readouterr().err


def test_a_folder_of_another_run_is_neither_used_nor_changed(file: Path, capsys: pytest.CaptureFixture[str]):
    Path("run.vae").mkdir()
    assert main(["show", str(file)]) == 2
    assert "run.vae is not the run in run.vae.zip: move it away" in capsys.readouterr().err
    assert list(Path("run.vae").iterdir()) == []
    Path("run.vae").rmdir()
    assert main(["show", str(file)]) == 0


def test_a_member_that_is_a_link_becomes_a_file(file: Path, tmp_path: Path):
    """A zip archive can hold symbolic links; their text is then the content of a file."""
    files, buffer = members(file.read_bytes()), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16 if name == "metrics.jsonl" else 0
            archive.writestr(info, str(tmp_path).encode() if name == "metrics.jsonl" else text)
    file.write_bytes(sealed(buffer.getvalue()))
    main(["show", str(file)])
    assert not Path("run.vae/metrics.jsonl").is_symlink()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["export"], "give one RUN, got 0"),
        (["export", "run.vae.zip"], "-o NAME.vae.zip"),
        (["export", "run.vae.zip", "-o", "x.pt"], "-o NAME.vae.zip"),
        (["evaluate", "none.vae.zip"], "there is no folder none.vae.zip"),
    ],
)
def test_wrong_words(words: list[str], expected: str, file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert expected in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = made_run(tmp_path, state="interrupted")
    assert main(["export", str(run.path), "-o", str(tmp_path / "x.vae.zip")]) == 2
    assert "is interrupted: train it to the end" in capsys.readouterr().err


def test_the_file_of_a_run_of_a_plug_in_names_it(
    lab: Path,  # noqa: F811
    where: list[str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--plugin", str(lab), "encoder=lab_encoder", "trainer.evaluate=false", *where]) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    assert main(["export", str(run.path), "-o", "lab.vae.zip"]) == 0
    for command in ("evaluate", "sample"):
        assert main([command, "lab.vae.zip"]) == 2
        assert f"lab.vae needs encoder 'lab_encoder' of {lab.name}: add --plugin {shlex.quote(lab.name)}" in (
            capsys.readouterr().err
        )


def test_the_unpacked_run_has_the_readers_data_folder(file: Path, default_data_dir: Path):
    run = RunFolder.open(file)
    assert read(run.path).data_dir == str(default_data_dir)
    assert to_yaml(changed(read(run.path), {"data_dir": "data"})).encode() == members(file.read_bytes())["config.yaml"]
    assert Checkpoints(run.checkpoints).exists("best")
