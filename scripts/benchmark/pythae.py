"""Pythae's own trainer and likelihood estimate for the models of two cases: imported only where pythae is installed.

The networks are the same as in the loops written by hand. Pythae cannot binarize during training, so it gets binary
images. The timing covers one of its epochs, without the copies and files of the model that its `train` makes around
epochs. It runs in float32: it has no bf16, and its mixed precision does not work with binary images.

Source: Chadebec, Vincent and Allassonnière 2022, https://arxiv.org/abs/2206.08309
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset  # pyright: ignore[reportMissingImports]
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig  # pyright: ignore[reportMissingImports]
from pythae.models.base.base_utils import ModelOutput  # pyright: ignore[reportMissingImports]
from pythae.models.nn import BaseDecoder, BaseEncoder  # pyright: ignore[reportMissingImports]
from pythae.trainers import BaseTrainer, BaseTrainerConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmark.baselines import LATENT, PIXELS, mlp
from vaebench import runtime

__all__ = ["evaluation", "model_of", "training"]

ROWS = 500
"""Samples of an image in one batch of its estimate of log p(x): the fastest of several from 100 to 4000 on a CPU."""


class _Encoder(BaseEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(PIXELS, 2 * LATENT)

    def forward(self, x: Tensor) -> Any:
        mean, log_variance = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class _Decoder(BaseDecoder):
    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(LATENT, PIXELS)

    def forward(self, z: Tensor) -> Any:
        return ModelOutput(reconstruction=self.network(z).sigmoid())


def model_of(k: int) -> Any:
    """Return its VAE for k = 1, its IWAE of ``k`` samples otherwise."""
    common: dict[str, Any] = {"input_dim": (PIXELS,), "latent_dim": LATENT, "reconstruction_loss": "bce"}
    if k == 1:
        return VAE(VAEConfig(**common), _Encoder(), _Decoder())
    return IWAE(IWAEConfig(number_samples=k, **common), _Encoder(), _Decoder())


def training(x: Tensor, k: int, batch: int, folder: Path) -> Callable[[], float]:
    """Return its trainer's epoch over binary images x, (N, 784), which returns the mean loss, nats per image."""
    with _contained():
        settings = BaseTrainerConfig(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            learning_rate=1e-3,
            no_cuda=x.device.type != "cuda",
        )
        # It reads data from the host, batch by batch.
        trainer = BaseTrainer(model_of(k), BaseDataset(x.cpu(), torch.zeros(len(x))), training_config=settings)
        trainer.prepare_training()

    def epoch() -> float:
        with _contained():
            about = {"training_config": settings, "epoch": 1, "train_loader": trainer.train_loader, "eval_loader": None}
            trainer.callback_handler.on_epoch_begin(**about)
            loss = trainer.train_step(1)
            trainer.callback_handler.on_epoch_end(training_config=settings)
            return loss

    return epoch


def evaluation(x: Tensor, k: int) -> tuple[int, Callable[[], float]]:
    """Return (image-samples drawn, its estimate of the mean log p(x)) for binary images x, (N, 784).

    It draws whole batches of ``ROWS`` samples for an image: about ``k``, at least one batch.
    """
    model = model_of(1).to(x.device).eval()
    rows = min(k, ROWS)
    samples = k // rows * rows

    @torch.no_grad()
    def estimate() -> float:
        return float(np.mean(model.get_nll(x, n_samples=samples, batch_size=rows)))

    return len(x) * samples, estimate


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Discard the output of pythae, and restore the environment and the random state that it sets."""
    disabled, environment, nowhere = logging.root.manager.disable, dict(os.environ), _Nowhere()
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            runtime.forked_randomness(torch.device("cpu"), 0),
        ):
            yield
    finally:
        logging.disable(disabled)
        os.environ.clear()
        os.environ.update(environment)
