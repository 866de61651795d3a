"""What depends on x alone runs once for each image, whatever the numbers of draws and of inner samples."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vaebench.config import compose
from vaebench.estimators.importance import log_likelihood
from vaebench.experiment import Experiment, build
from vaebench.objective import Objective

X, B, K, L = 784, 2, 3, 4
HIERARCHICAL = ["hvm", "adgm", "sivi", "iwhvi", "uivi"]
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


class ImageRows(TorchDispatchMode):
    """Notes how many rows the products over X columns have, and which of them there are."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            left = args[-2]
            if left.shape[-1] == X:
                self.rows.append(left.shape[:-1].numel())
        return func(*args, **(kwargs or {}))


def made(encoder: str) -> Experiment:
    words = [f"encoder={encoder}", "encoder.hidden=[8,7]", "decoder.hidden=[8,7]", "latent_dim=4", "device=cpu"]
    return build(compose([*words, "trainer.progress=false"]))


def images() -> Tensor:
    return torch.bernoulli(torch.full((B, X), 0.3))


@pytest.mark.parametrize("encoder", HIERARCHICAL)
@pytest.mark.parametrize("evaluates", [False, True], ids=["training", "evaluation"])
def test_products_over_pixels_have_a_row_for_each_image(encoder: str, evaluates: bool):
    run = made(encoder)
    k = 1 if encoder == "uivi" and not evaluates else K
    with ImageRows() as seen:
        if evaluates:
            log_likelihood(run.model, run.encoder, images(), k=k, inner_k=L)
        else:
            run.objective(run.model, run.encoder, images(), k, inner_k=L)
    networks = sum(isinstance(m, nn.Linear) and m.in_features == X for m in run.encoder.modules())
    assert networks >= 2
    assert seen.rows
    assert max(seen.rows) <= B


def test_control_an_encoder_that_repeats_the_images_is_caught():
    class Repeating(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input.repeat(K, 1), self.weight, self.bias)[: len(input)]

    run = made("iwhvi")
    for module in run.encoder.modules():
        if isinstance(module, nn.Linear) and module.in_features == X:
            module.__class__ = Repeating
    with ImageRows() as seen:
        Objective(run.objective.bound)(run.model, run.encoder, images(), K, inner_k=L)
    assert max(seen.rows) == K * B
