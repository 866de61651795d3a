"""Checkpoints survive kills and full disks, damage is found and named, and loading never runs code."""

import enum
import errno
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy
import omegaconf
import pytest
import torch

from vaebench.errors import UserError
from vaebench.records.checkpoint import Checkpoints, _sealed
from vaebench.records.provenance import sealed


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def state(step: int = 1) -> dict[str, Any]:
    return {"identity": "abc", "step": step, "weights": torch.full((50,), float(step))}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# what goes in comes out


def test_a_training_state_comes_back_exactly(checkpoints: Checkpoints):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    generator = torch.Generator().manual_seed(3)
    checkpoints.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "python": {
                "tuple": (1, 2.5, None, True),
                "bytes": b"\x00\xff",
                "big": 2**127,
                "nan": float("nan"),
            },
            "half": torch.ones(3, dtype=torch.bfloat16),
        }
    )
    loaded, _, notice, _ = checkpoints.load()
    assert notice is None
    twin = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    twin.load_state_dict(loaded["model"])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    other = torch.optim.Adam(twin.parameters(), lr=1.0)
    other.load_state_dict(loaded["optimizer"])
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert other.param_groups[0]["lr"] == 1e-3
    restored = torch.Generator()
    restored.set_state(loaded["generator"])
    assert torch.equal(torch.randn(5, generator=restored), torch.randn(5, generator=generator))
    python = loaded["python"]
    assert python["tuple"] == (1, 2.5, None, True)
    assert type(python["tuple"]) is tuple
    assert (python["bytes"], python["big"]) == (b"\x00\xff", 2**127)
    assert python["nan"] != python["nan"]
    assert loaded["half"].dtype == torch.bfloat16


def test_plain_torch_reads_it(checkpoints: Checkpoints):
    path = checkpoints.save(state(4))
    assert torch.load(path, weights_only=True)["step"] == 4


def test_a_view_is_stored_alone_and_the_state_is_untouched(checkpoints: Checkpoints):
    whole = torch.zeros(1_000_000)
    given = {"view": whole[:10], "weight": torch.nn.Parameter(torch.ones(2))}
    path = checkpoints.save(given)
    assert path.stat().st_size < 10_000
    assert set(given) == {"view", "weight"}
    assert checkpoints.load().state["weight"].requires_grad is False


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tensors_from_the_gpu_load_without_one(checkpoints: Checkpoints):
    path = checkpoints.save({"weights": torch.ones(3, device="cuda")})
    assert torch.load(path, weights_only=True)["weights"].device.type == "cpu"
    assert checkpoints.load(map_location="cuda").state["weights"].is_cuda


def test_tensors_are_moved_before_they_are_written(checkpoints: Checkpoints):
    """The same on a machine without a GPU: a meta tensor cannot be moved, and says so."""
    with pytest.raises(NotImplementedError):
        checkpoints.save({"weights": torch.ones(3, device="meta")})
    assert not checkpoints.exists()


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        Path("x"),
        omegaconf.OmegaConf.create({"k": 1}),
        numpy.float64(1.0),
        numpy.zeros(2),
        Colour.RED,
        namedtuple("Pair", "a b")(1, 2),
        {1, 2},
        lambda: None,
        torch.Size([1]),
        torch.float32,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_back_is_refused_with_its_place(checkpoints: Checkpoints, value: Any):
    with pytest.raises(TypeError, match=r"^state\['a'\]\['b'\]\[1\] is a "):
        checkpoints.save({"a": {"b": [0, value]}})
    assert not checkpoints.exists()


def test_keys_must_be_plain_too(checkpoints: Checkpoints):
    checkpoints.save({"a": OrderedDict({0: 1, "x": 2})})
    with pytest.raises(TypeError, match=r"state\['a'\] has the key \(1, 2\)"):
        checkpoints.save({"a": {(1, 2): 3}})
    with pytest.raises(ValueError, match="reserved"):
        checkpoints.save({"format": 7})


# generations and damage


def test_two_generations_of_last_and_one_of_best(checkpoints: Checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(state(step))
        checkpoints.save(state(10 + step), "best")
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "best.pt",
        "last.previous.pt",
        "last.pt",
    ]
    assert checkpoints.load().state["step"] == 3
    assert torch.load(checkpoints.folder / "last.previous.pt", weights_only=True)["step"] == 2
    assert checkpoints.load("best").state["step"] == 13


def test_every_truncation_is_found_and_the_previous_generation_serves_with_a_notice(checkpoints: Checkpoints):
    checkpoints.save(state(1))
    path = checkpoints.save(state(2))
    whole = path.read_bytes()
    for length in (
        0,
        1,
        100,
        len(whole) // 2,
        len(whole) - 81,
        len(whole) - 80,
        len(whole) - 22,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:length])
        loaded = checkpoints.load()
        assert (loaded.state["step"], loaded.path.name) == (1, "last.previous.pt")
        assert loaded.notice is not None
        assert str(path) in loaded.notice
        assert "truncated" in loaded.notice
    path.write_bytes(whole)
    assert checkpoints.load()[1:3] == (path, None)


def test_every_altered_byte_is_found(checkpoints: Checkpoints):
    path = checkpoints.save(state(1), "best")
    whole = path.read_bytes()
    for position in range(0, len(whole), 41):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError, match=r"best\.pt (was altered|is truncated)"):
            checkpoints.load("best")
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="truncated, or was not written by vaebench"):
        checkpoints.load("best")


def test_torch_alone_would_not_notice(checkpoints: Checkpoints):
    """Control: without the checksum an altered weight is loaded without a word."""
    path = checkpoints.save(state(1))
    data = path.read_bytes()
    weight = struct.pack("<f", 1.0) * 50
    assert data.count(weight) == 1
    path.write_bytes(data.replace(weight, struct.pack("<f", 2.0) * 50))
    assert torch.load(path, weights_only=True)["weights"][0] == 2.0
    with pytest.raises(UserError, match="was altered"):
        checkpoints.load()


def test_a_kill_between_the_two_moves_leaves_the_previous_generation(checkpoints: Checkpoints):
    path = checkpoints.save(state(1))
    path.rename(checkpoints.folder / "last.previous.pt")
    assert checkpoints.exists()
    loaded = checkpoints.load()
    assert loaded.state["step"] == 1
    assert "last.pt is missing" in str(loaded.notice)


def test_both_generations_bad(checkpoints: Checkpoints):
    for step in (1, 2):
        damage(checkpoints.save(state(step)))
    with pytest.raises(UserError, match=r"last\.pt was altered .*last\.previous\.pt was altered .* train from the"):
        checkpoints.load()


def test_a_damaged_last_never_replaces_a_good_previous(checkpoints: Checkpoints):
    checkpoints.save(state(1))
    damage(checkpoints.save(state(2)))
    resumed = Checkpoints(checkpoints.folder)
    resumed.save(state(3))
    assert resumed.load().state["step"] == 3
    damage(checkpoints.folder / "last.pt")
    assert resumed.load().state["step"] == 1


def test_no_checkpoint_yet(checkpoints: Checkpoints):
    assert not checkpoints.exists()
    with pytest.raises(UserError, match="there is no checkpoint 'best'"):
        checkpoints.load("best")


# whose checkpoint it is


def test_another_configuration_is_refused(checkpoints: Checkpoints):
    checkpoints.save(state(1))
    assert checkpoints.load(identity="abc").state["step"] == 1
    with pytest.raises(UserError, match=r"another configuration \(abc, not xyz\)"):
        checkpoints.load(identity="xyz")


def test_another_format_is_refused(checkpoints: Checkpoints):
    path = checkpoints.save(state(1))
    path.write_bytes(_sealed({"format": 99, "identity": "abc"}))
    with pytest.raises(UserError, match="has format 99"):
        checkpoints.load()


def test_a_checkpoint_that_would_unpack_to_more_than_it_has_is_refused(checkpoints: Checkpoints):
    """torch unpacks a packed archive, whose small file could fill the memory."""
    path = checkpoints.save(state(1))
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w") as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name) + b" " * 10_000, zipfile.ZIP_DEFLATED)
    path.write_bytes(sealed(packed.getvalue()))
    with pytest.raises(UserError, match="would unpack to"):
        checkpoints.load()


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_code_is_never_run(checkpoints: Checkpoints, tmp_path: Path):
    target = tmp_path / "ran"
    path = checkpoints.save(state(1))
    path.write_bytes(_sealed({"format": 1, "x": Malicious(target)}))  # its checksum is right
    with pytest.raises(UserError, match="could run code"):
        checkpoints.load()
    path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(UserError, match="not written by vaebench"):
        checkpoints.load()
    assert not target.exists()
    pickle.loads(path.read_bytes())  # control: it would have run
    assert target.exists()


# kills and full disks

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from vaebench.records.checkpoint import Checkpoints
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)  # a forked child must not wait for the parent's OpenMP threads
random.seed(0)
started = time.monotonic()
Checkpoints(folder).save({"step": 0, "weights": torch.zeros(100_000)})
duration = time.monotonic() - started
litter, step, done = 0, 0, 0
# On a busy machine a round may pass without a save, or without a kill inside one: go on until both were seen.
while done < rounds or ((step <= 10 or not litter) and time.monotonic() - started < 40):
    done += 1
    child = os.fork()
    if not child:
        while True:
            step += 1
            Checkpoints(folder).save({"step": step, "weights": torch.full((100_000,), float(step))})
    time.sleep(random.uniform(0.5, 4) * duration)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    litter += len(list(folder.glob(".*.tmp")))
    if Checkpoints(folder).exists():
        state = Checkpoints(folder).load().state
        assert (state["weights"] == state["step"]).all()
        assert state["step"] >= step, "lost more than the save that was killed"
        step = state["step"]
Checkpoints(folder).save({"step": step, "weights": torch.zeros(1)})
print(step, litter, len(list(folder.glob(".*.tmp"))))
"""


def test_kills_during_saves_always_leave_a_checkpoint(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), "40"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    saves, litter, left = map(int, out.split())
    assert saves > 10
    assert litter > 0  # some kills did fall inside a save
    assert left == 0


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from vaebench.errors import UserError
from vaebench.records.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
checkpoints = Checkpoints(Path(sys.argv[1]))
for step, size in ((1, 10), (2, 10), (3, 10_000)):
    try:
        checkpoints.save({"step": step, "weights": torch.zeros(size)})
    except UserError as error:
        print(error)
"""


def test_a_file_that_does_not_fit_leaves_both_generations(tmp_path: Path):
    out = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True)
    assert "the disk is full" in out.stdout
    assert f"The last good checkpoint is {tmp_path}/last.pt" in out.stdout
    assert Checkpoints(tmp_path).load().state["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.previous.pt", "last.pt"]


@pytest.mark.parametrize("call", ["fsync", "write", "replace"])
def test_a_full_disk_at_any_call(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, call: str):
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints.save(state(1))
    checkpoints.save(state(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(UserError, match=r"the disk is full.*The last good checkpoint is .*last\.pt"):
            checkpoints.save(state(3))
    assert checkpoints.load().state["step"] == 2
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["last.previous.pt", "last.pt"]


def test_what_a_killed_save_left_is_removed_by_the_next(checkpoints: Checkpoints):
    checkpoints.save(state(1))
    (checkpoints.folder / ".last.pt.99999.tmp").write_bytes(b"half")
    checkpoints.save(state(2))
    assert not list(checkpoints.folder.glob(".*"))


def test_the_checksum_is_that_of_the_archive(checkpoints: Checkpoints):
    data = checkpoints.save(state(1)).read_bytes()
    assert data.endswith(hashlib.sha256(data[:-80]).hexdigest().encode())
