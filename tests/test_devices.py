"""Devices by name, what float32 means on each of them, and float64 where a device has none."""

import ast
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from test_layers import MATHS, room, sources

from vaebench import runtime
from vaebench.config import compose, identity
from vaebench.errors import UserError
from vaebench.isolation import isolated
from vaebench.model import GenerativeModel
from vaebench.train.session import train

CUDA = torch.device("cuda", 0)
TINY = ["latent_dim=2", "decoder.hidden=[8]", "encoder.hidden=[8]", "trainer.epochs=1", "trainer.batch_size=2000"]
TINY += ["trainer.validation_k=2", "trainer.progress=false", "trainer.image_every=0", "trainer.threads=1"]
TINY += ["estimator.k=2", "estimator.images=4", "device=cpu"]


# Names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "count", "wanted", "found"),
    [
        ("cuda", 2, "auto", "cuda:0"),
        ("cuda", 2, "cuda:1", "cuda:1"),
        ("mps", 1, "mps", "mps:0"),
        ("xpu", 2, "xpu", "xpu:0"),
        # Untested devices are used on request only.
        ("mps", 1, "auto", "cpu"),
        ("xpu", 2, "cpu", "cpu"),
    ],
)
def test_a_device_by_its_name(kind: str, count: int, wanted: str, found: str, accelerators: Callable[[str, int], None]):
    accelerators(kind, count)
    assert str(runtime.resolve_device(wanted)) == found


@pytest.mark.parametrize(
    ("kind", "count", "wanted", "message"),
    [
        ("cuda", 0, "cuda", "device=cuda: torch finds no CUDA device on this machine; use device=cpu"),
        ("cuda", 1, "mps", "device=mps: torch finds no MPS device on this machine; use device=cpu"),
        ("xpu", 2, "xpu:2", "device=xpu:2: there are 2 XPU devices, use xpu:0 to xpu:1"),
    ],
)
def test_a_device_that_is_not_there(
    kind: str, count: int, wanted: str, message: str, accelerators: Callable[[str, int], None]
):
    accelerators(kind, count)
    with pytest.raises(UserError, match=message):
        runtime.resolve_device(wanted)


# Arithmetic -----------------------------------------------------------------------------------------------


def arithmetic() -> dict[str, Any]:
    """Return torch's switches of precision and of determinism."""
    cudnn = torch.backends.cudnn
    return {
        "tf32 products": torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32,
        "tf32 convolutions": cudnn.allow_tf32,
        "benchmark": cudnn.benchmark,
        "deterministic": (cudnn.deterministic, torch.are_deterministic_algorithms_enabled()),
        "filled": getattr(torch.utils.deterministic, "fill_uninitialized_memory"),  # noqa: B009 (unknown to its type),
    }


EXACT = {"tf32 products": False, "tf32 convolutions": False, "benchmark": False, "filled": False}
EXACT |= {"deterministic": (True, True)}


@pytest.fixture
def of_torch() -> Iterator[None]:
    """Start from a user's own switches, and restore torch's."""
    with isolated():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, True
        torch.backends.cudnn.deterministic = False
        yield


@pytest.mark.usefixtures("of_torch")
def test_on_a_gpu_float32_is_float32_and_operations_are_deterministic(recwarn: pytest.WarningsRecorder):
    before = arithmetic()
    with isolated():
        runtime.set_arithmetic(CUDA)
        assert arithmetic() == EXACT
        with runtime.in_precision(CUDA, "tf32"):
            assert arithmetic() == EXACT | {"tf32 products": True, "tf32 convolutions": True}
            with runtime.in_precision(CUDA, "float32"):
                assert arithmetic() == EXACT
        with runtime.in_precision(torch.device("cpu"), "tf32"):
            assert arithmetic() == EXACT
        assert arithmetic() == EXACT
    assert arithmetic() == before
    assert not recwarn.list


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has the older names only")
@pytest.mark.usefixtures("of_torch")
def test_a_user_s_newer_switches_are_restored():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision = "ieee", "tf32", "ieee"
    with isolated():
        runtime.set_arithmetic(CUDA)
    assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision) == ("ieee", "tf32", "ieee")


@pytest.mark.usefixtures("of_torch")
@pytest.mark.parametrize(("precision", "stages"), [("tf32", [False, True, False]), ("float32", [False])])
def test_a_run_trains_in_its_precision_and_is_evaluated_in_float32(
    precision: str, stages: list[bool], tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """The stages: the first try, the training with its backward passes and validation, the evaluation at the end."""
    seen: list[bool] = []
    tf32, log_joint = runtime.tf32, GenerativeModel.log_joint

    def noted(*arguments: Any) -> Any:
        found = log_joint(*arguments)
        seen.append(arithmetic()["tf32 products"])
        assert seen[-1] is arithmetic()["tf32 convolutions"]
        if found.log_likelihood.requires_grad:
            found.log_likelihood.register_hook(lambda _: seen.append(arithmetic()["tf32 products"]))
        return found

    monkeypatch.setattr(GenerativeModel, "log_joint", noted)
    # The CPU's switches stay as they are without this.
    monkeypatch.setattr(runtime, "tf32", lambda device, allowed: tf32(CUDA, allowed))
    monkeypatch.setattr(runtime, "require_tf32", lambda device: None)
    words = [f"trainer.precision={precision}", f"data_dir={default_data_dir}", f"output_dir={tmp_path}"]
    train(compose([*TINY, *words]))
    assert [stage for stage, _ in groupby(seen)] == stages


def test_tf32_is_refused_where_there_is_none(tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    config = compose([*TINY, "trainer.precision=tf32", f"data_dir={default_data_dir}", f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match=r"trainer.precision=tf32 needs an NVIDIA GPU .* got cpu \(1 thread\): use"):
        train(config)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"got cuda:0 \(a card\)"):
        runtime.require_tf32(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    runtime.require_tf32(CUDA)


def test_tf32_is_a_part_of_the_identity():
    assert identity(compose(["trainer.precision=tf32"])) != identity(compose([]))


# float64 --------------------------------------------------------------------------------------------------


def on_a_device_in_float64(text: str) -> list[int]:
    """Return the lines of code that make float64 on any device: ``.double()``, or a factory with dtype and device."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        words = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        doubled = isinstance(node.func, ast.Attribute) and node.func.attr == "double"
        if doubled or ("device" in words and words.get("dtype") == "torch.float64"):
            lines.append(node.lineno)
    return lines


def test_the_maths_asks_whether_a_device_has_float64():
    found = {name: on_a_device_in_float64(text) for name, text in sources() if room(name) in MATHS | {"encode"}}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("code", ["x.double().sum()", "torch.zeros(3, dtype=torch.float64, device=x.device)"])
def test_control_float64_on_a_device_is_found(code: str):
    assert on_a_device_in_float64(f"y = in_float64(x)\nz = {code}") == [2]


def test_a_device_without_float64_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch):
    assert runtime.float64_device(torch.device("mps", 0)).type == "cpu"
    assert runtime.float64_device(CUDA) == CUDA
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: type("", (), {"has_fp64": False}))
    assert runtime.float64_device(torch.device("xpu", 0)).type == "cpu"
    assert runtime.in_float64(torch.ones(2)).dtype is torch.float64
