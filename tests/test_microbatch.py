"""trainer.microbatch: the gradient of a batch, in parts that take less memory."""

import pytest
import torch
from torch import Tensor, nn

from vaebench import noise
from vaebench.config import compose, identity
from vaebench.errors import UserError
from vaebench.experiment import build
from vaebench.train.schedules import StepSettings, constant
from vaebench.train.update import Loss, Update
from vaebench.train.updates import updates

SMALL = ["latent_dim=3", "decoder.hidden=[8]", "device=cpu", "trainer.threads=1", "trainer.progress=false"]


class Keyed:
    """A loss whose noise belongs to the image, so that it does not depend on which images come together."""

    def __init__(self, loss: nn.Module | object, x: Tensor) -> None:
        self.loss, self.x = loss, x

    def __call__(self, x: Tensor, settings: StepSettings) -> Loss:
        numbers = (x.unsqueeze(1) == self.x).all(-1).int().argmax(1)
        with noise.keyed(0, numbers):
            return self.loss(x, settings)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("encoder", ["gaussian", "iwhvi", "iaf", "avb", "hvae"])
@pytest.mark.parametrize("microbatch", [1, 3, 7, 100])
def test_the_parts_add_up_to_the_gradient_of_the_batch(encoder: str, microbatch: int):
    objective = [] if encoder in ("hvae", "avb") else ["objective=iwae", "k=4", "objective.gradient=dreg"]
    run = build(compose([f"encoder={encoder}", *objective, *SMALL]))
    run.modules.double()
    x = run.data.observe(run.data.train[:7]).double()
    settings = StepSettings(run.config.k, run.config.encoder.inner_k, 1.0)
    gradients = {}
    for size in (None, microbatch):
        (update, *_) = updates(run)
        update.loss, update.microbatch = Keyed(update.loss, x), size
        with torch.no_grad():
            kept = [p.clone() for p in update.parameters]
        update.step(x, settings, 0.0, with_norm=False)
        gradients[size] = [p.grad.clone() for p in update.parameters if p.grad is not None]
        with torch.no_grad():
            for p, before in zip(update.parameters, kept, strict=True):
                p.copy_(before)
    assert len(gradients[None]) > 3
    for whole, parts in zip(gradients[None], gradients[microbatch], strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


def _mean_square(x: Tensor, settings: StepSettings) -> Loss:
    del settings
    value = (x * WEIGHT).square().mean()
    return Loss(value, {"size": torch.tensor(float(len(x)))})


WEIGHT = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))


def test_a_short_last_part_counts_by_its_images():
    x = torch.arange(7, dtype=torch.float64).unsqueeze(1)
    values = []
    for size in (None, 3):
        update = Update("main", _mean_square, torch.optim.SGD([WEIGHT], lr=0.0), constant(0.0), microbatch=size)
        loss = update.step(x, StepSettings(1, 0, 1.0), 0.0, with_norm=False)
        assert WEIGHT.grad is not None
        values.append((loss.value.item(), WEIGHT.grad.item()))
        # Parts of 3, 3 and 1 images: each metric is weighted as the loss is.
        assert loss.metrics["size"].item() == pytest.approx(7 if size is None else (9 + 9 + 1) / 7)
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    means = [part.square().mean().item() for part in x.split(3)]
    assert abs(sum(means) / 3 - values[0][0]) > 1  # the plain mean of the parts is another number


def test_it_is_refused_where_the_objective_is_not_a_mean_over_images():
    with pytest.raises(UserError, match="microbatch is not valid for objective=free_bits"):
        build(compose(["objective=free_bits", "trainer.microbatch=10", *SMALL]))


def test_it_does_not_define_the_model():
    assert identity(compose(["trainer.microbatch=10"])) == identity(compose([]))
