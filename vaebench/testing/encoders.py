"""The contract of an encoder, against a linear-Gaussian model whose log p(x) is known.

Shapes: K samples first, B images, D latent coordinates; nats.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vaebench import bounds, noise
from vaebench.direction import Direction
from vaebench.encoders.base import BuildContext, Encoder
from vaebench.estimators.importance import log_likelihood
from vaebench.gradients import GradientEstimator
from vaebench.nets.networks import Networks
from vaebench.objective import Objective, evidence
from vaebench.priors import ChainedPrior
from vaebench.runtime import forked_randomness
from vaebench.selftest.oracles.gaussian import AffineGaussian, LinearGaussian
from vaebench.selftest.rows import CheckRow, Mean, Side, distance, exact, near
from vaebench.selftest.running import default_dtype
from vaebench.testing.contract import CPU, Contract, no_problem, verify
from vaebench.testing.quadrature import grid

__all__ = ["check_encoder", "encoder_contract", "images", "moved", "reference_model", "reloaded"]

REPLICATES = 9_000
LARGEST_ERROR = 0.1
"""The largest standard error of E[w] / p(x): with a larger one, the mean shows nothing."""
ROWS, FEW_ROWS = 500, 50
"""Images at a time. A proposal in place of an encoder whose log_q is an estimate takes many draws for each."""
ENTROPY_DRAWS, SPACING = 60_000, 20
ENTROPY_ERROR = 0.02
"""Nats: larger than the error of the entropy of the draws, smaller than a missing Jacobian."""
BATCHES, BATCH = 48, 180
TRAINING_STEPS, LEARNING_RATES = 60, (0.02, 0.002)
"""The second rate is for an encoder that the first one makes worse, for example with wide networks."""
STEP = 1e-6
"""Of finite differences in float64."""


def check_encoder(build: Callable[..., Encoder], /, *, inner_k: int = 3, **settings: Any) -> None:
    """Print the checks of an encoder, and raise AssertionError with one line for each that fails.

    Args:
        build: what the entry point of the encoder names: (context, **settings) -> the encoder.
        inner_k: number of inner samples, for encoders that have them.
        settings: the keys of its yaml besides ``name``, ``trunk``, ``hidden``, ``activation`` and ``inner_k``.
    """
    verify(encoder_contract(build, settings, inner_k))


def encoder_contract(
    build: Callable[..., Encoder], settings: Mapping[str, Any] | None = None, inner_k: int = 3
) -> Contract:
    """Return the checks of an encoder; for the arguments see :func:`check_encoder`."""
    subject = _Subject(build, settings or {}, max(1, inner_k))
    checks = [shapes, training, weights, order, direction, independence, chunks, gradients, auxiliary_losses, storage]
    return {check.__name__.replace("_", " "): partial(check, subject) for check in checks}


# The subject ----------------------------------------------------------------------------------------------


def reference_model(latent_dim: int = 2) -> LinearGaussian:
    """Return the model z ~ N(0, I), x|z ~ N(W z + b, I / 4) of three pixels, with posterior variances 1/2.

    Args:
        latent_dim: 1 or 2.
    """
    weight = torch.tensor([[2.0, 1.0], [2.0, -0.5], [1.0, -1.0]])[:, :latent_dim]
    return LinearGaussian(weight / weight.norm(dim=0) * 0.5, torch.tensor([0.5, 0.4, 0.6]), 0.5)


def layered_model() -> LinearGaussian:
    """Return the model of one latent coordinate z1 with a second layer, z2 ~ N(0, 1), z1|z2 ~ N(0.6 z2, 0.8^2).

    z1 ~ N(0, 1), so that log p(x) is that of the model without z2.
    """
    model = reference_model(1)
    model.latent_prior = ChainedPrior(
        AffineGaussian(torch.tensor([[0.6]]), torch.zeros(1), torch.tensor([0.8])), (1, 1)
    )
    model.decoder_inputs = 1
    return model


def images(replicates: int = 1) -> Tensor:
    """Return three images with pixels in [0, 1], ``replicates`` rows of each in turn, (3 * replicates, 3)."""
    return torch.tensor([[0.5, 0.4, 0.6], [0.7, 0.5, 0.6], [0.4, 0.5, 0.9]]).repeat(replicates, 1)


def moved(module: nn.Module) -> nn.Module:
    """Move all parameters from their initial values, at which wrong terms may be zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@dataclass(frozen=True)
class _Subject:
    """An encoder's ``build``, with its settings."""

    build: Callable[..., Encoder]
    settings: Mapping[str, Any]
    inner_k: int

    def make(self, latent_dim: int = 2, seed: int = 0) -> tuple[LinearGaussian, Encoder]:
        """Return the model, and the encoder with weights of ``seed``, away from their initial values."""
        model = layered_model() if latent_dim == 2 and self.needs_layers else reference_model(latent_dim)
        with forked_randomness(CPU, seed):
            encoder = self.built(model, latent_dim)
            moved(encoder)
        return model, encoder

    def built(self, model: LinearGaussian, latent_dim: int) -> Encoder:
        """Return the encoder with initial weights."""
        context = BuildContext(Networks("mlp", [8], "tanh"), len(model.bias), latent_dim, model)
        return self.build(context, **self.settings)

    @cached_property
    def needs_layers(self) -> bool:
        """Whether the encoder refuses the prior N(0, I), and takes a prior of two layers."""
        with forked_randomness(CPU, 0):
            try:
                self.built(reference_model(), 2)
            except ValueError:
                with suppress(ValueError):
                    self.built(layered_model(), 2)
                    return True
        return False

    @cached_property
    def trained(self) -> tuple[LinearGaussian, Encoder]:
        """The model, and the encoder after some steps of training, whose weights then have a small variance."""
        model, before = self.make()
        if before.direction is Direction.ESTIMATE:
            return model, before
        after = before
        for rate in LEARNING_RATES:
            after = self.trained_at(rate)
            if self.gain(before, after).mean() > 0:
                break
        return model, after

    def gain(self, before: Encoder, after: Encoder) -> Tensor:
        """Return by how much the bound of one encoder is above that of another, (B,)."""
        model, inner_k = self.make()[0], self.inner_ks(before)[-1]
        low, high = (log_likelihood(model, each, images(100), 4, inner_k, seed=1) for each in (before, after))
        return high - low

    def trained_at(self, rate: float) -> Encoder:
        """Return the encoder after some steps of training with a learning rate."""
        model, encoder = self.make()
        auxiliary = list(encoder.auxiliary_losses().values())
        exclusive = {id(parameter) for part in auxiliary if part.exclusive for parameter in part.parameters}
        parameters = [p for p in encoder.parameters() if p.requires_grad and id(p) not in exclusive]
        optimizer = torch.optim.Adam(parameters, lr=rate)
        others = [(part, torch.optim.Adam(part.parameters, lr=rate)) for part in auxiliary]
        objective = Objective(bounds.elbo if encoder.only_elbo else bounds.iwae)
        inner_k = self.inner_ks(encoder)[-1]
        with torch.enable_grad():  # some checks have none
            for _ in range(TRAINING_STEPS):
                for part, other in others:
                    other.zero_grad()
                    loss = part.loss(images(10))
                    (loss if isinstance(loss, Tensor) else loss.loss).backward()
                    other.step()
                optimizer.zero_grad()
                value, _ = objective(model, encoder, images(10), 1 if encoder.only_elbo else 4, inner_k=inner_k)
                value.mean().neg().backward()
                optimizer.step()
        return encoder

    def smallest(self) -> tuple[LinearGaussian, Encoder] | None:
        """Return the model and the encoder with one latent coordinate; None if it needs two."""
        try:
            return self.make(1)
        except ValueError:
            return None

    def inner_ks(self, encoder: Encoder) -> list[int]:
        """Return the numbers of inner samples to test."""
        return [0, self.inner_k] if encoder.has_inner_samples else [0]


def _rows(encoder: Encoder) -> int:
    return FEW_ROWS if encoder.direction is Direction.ESTIMATE else ROWS


def _level(encoder: Encoder, inner_k: int) -> str:
    return f", inner_k={inner_k}" if encoder.has_inner_samples else ""


# The checks -----------------------------------------------------------------------------------------------


def shapes(subject: _Subject) -> Iterator[CheckRow]:
    """Compare shapes, dtypes and finiteness of draws, in float64 and in float32, with and without ``path_only``."""
    for dtype in (torch.float64, torch.float32):
        with default_dtype(dtype):
            _, encoder = subject.make()
            problems = []
            for count, k in ((3, 4), (1, 1)):
                for path_only in (False, True):
                    drawn = encoder.draw(
                        images()[:count], k, inner_k=subject.inner_ks(encoder)[-1], path_only=path_only
                    )
                    problems += _wrong("z", drawn.z, (k, count, 2), dtype)
                    problems += _wrong("log_q", drawn.log_q, (k, count), dtype)
                    for path in drawn.paths:
                        problems += _wrong("a path", path, (k, count, path.shape[-1]), dtype)
                    if path_only and encoder.no_path_gradient is None and not drawn.paths:
                        problems.append("path_only gives no paths, and no_path_gradient does not state why")
            yield no_problem(f"draws in {str(dtype).removeprefix('torch.')}", dict.fromkeys(problems))
            blank = encoder.draw(torch.stack([torch.zeros(3), torch.ones(3)]), 2)
            wrong = [] if bool(blank.log_q.isfinite().all()) else ["log_q is not finite for a black or a white image"]
            yield no_problem("black and white images", wrong)
    model, encoder = subject.make()
    shared = {id(parameter) for parameter in model.parameters()} & {id(parameter) for parameter in encoder.parameters()}
    wrong = ["the encoder registers the model as a submodule"] if shared else []
    yield no_problem("its parameters are its own", wrong)


def _wrong(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    problems = []
    if tuple(tensor.shape) != shape:
        problems.append(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
    if tensor.dtype != dtype:
        problems.append(f"{name} is {tensor.dtype} where images are {dtype}")
    if not bool(tensor.isfinite().all()):
        problems.append(f"{name} is not finite")
    return problems


def training(subject: _Subject) -> Iterator[CheckRow | str]:
    """Some steps of training raise the bound."""
    (_, before), (_, after) = subject.make(), subject.trained
    if before.direction is Direction.ESTIMATE:
        yield "not trained: log_q is an estimate, which its auxiliary loss has to learn first"
        return
    gain = Mean.of(subject.gain(before, after))
    yield near(f"bound after {TRAINING_STEPS} steps of training - before", 0, gain, ">=")


@torch.no_grad()
def weights(subject: _Subject) -> Iterator[CheckRow | str]:
    """Compare the mean weight, divided by p(x), with 1."""
    model, trained = subject.trained
    encoder = trained.proposal(model)
    if encoder is not trained:
        yield f"log_q is an estimate: the weights are those of the proposal, {type(encoder).__name__}"
    for inner_k in subject.inner_ks(encoder):
        parts = []
        for x in images(REPLICATES // 3).split(_rows(trained)):
            log_w = evidence(model, encoder, x, 2, inner_k=inner_k).log_weights() - model.log_evidence(x)
            parts.append(log_w.exp().mean(0))
        mean = Mean.of(torch.cat(parts))
        yield near(f"E[w] / p(x){_level(encoder, inner_k)}", 1, mean)
        yield exact(f"standard error of E[w] / p(x){_level(encoder, inner_k)}", LARGEST_ERROR, mean.stderr, side="<=")


@torch.no_grad()
def order(subject: _Subject) -> Iterator[CheckRow]:
    """The bound rises with k and inner_k, and lies below log p(x)."""
    model, trained = subject.trained
    encoder = trained.proposal(model)
    x = images(REPLICATES // 9)
    truth = model.log_evidence(x)

    def bound(k: int, inner_k: int) -> Tensor:
        # Keyed noise pairs the samples: the larger number continues where the smaller ends.
        found = []
        for numbers in torch.arange(len(x)).split(_rows(trained)):
            with noise.keyed(0, numbers):
                found.append(bounds.iwae(evidence(model, encoder, x[numbers], k, inner_k=inner_k).log_weights()))
        return torch.cat(found)

    most = subject.inner_ks(encoder)[-1]
    by_k = {k: bound(k, most) for k in (1, 4, 16)}
    for (low, below), (high, above) in pairwise(by_k.items()):
        yield near(f"bound at k={high} - bound at k={low}", 0, Mean.of(above - below), ">=")
    for k, values in by_k.items():
        yield near(f"bound at k={k} - log p(x)", 0, Mean.of(values - truth), "<=")
    if most:
        yield near(f"bound at inner_k={most} - bound at inner_k=0", 0, Mean.of(by_k[1] - bound(1, 0)), ">=")


@torch.no_grad()
def direction(subject: _Subject) -> Iterator[CheckRow | str]:
    """Compare log_q with log q(z|x): the encoder's own density, quadrature, and the entropy of the draws."""
    small = subject.smallest()
    _, encoder = small or subject.make()
    label, x = encoder.direction, images()[:1]
    if label is Direction.ESTIMATE:
        model, _ = subject.make()
        valid = encoder.proposal(model)
        wrong = ["proposal() returns an encoder whose log_q is an estimate"] * (valid.direction is Direction.ESTIMATE)
        yield no_problem("the proposal of an encoder whose log_q is an estimate", wrong)
        return
    wrong = [f"direction is {label}: it must be EXACT, UPPER_BOUND or ESTIMATE"] * (label is Direction.LOWER_BOUND)
    yield no_problem("direction", wrong)
    encoded = encoder.encode(x)
    drawn = encoder.sample(encoded, 50)
    if label is Direction.EXACT and encoder.log_q_at(encoded, drawn.z) is not None:
        at_draws = encoder.log_q_at(encoded, drawn.z)
        assert at_draws is not None
        yield exact("log_q of draws - log_q_at the same z", 0, distance(drawn.log_q, at_draws), 1e-8)
        yield exact("integral of exp(log_q_at)", 1, _integral(encoder, encoded), 5e-3)
    posterior = encoder.exact_posterior(x)
    if posterior is not None:
        yield exact(
            "log_q - log density of exact_posterior", 0, distance(drawn.log_q, posterior.log_prob(drawn.z)), 1e-8
        )
    if small is None:
        yield "the entropy of the draws was not compared: the encoder needs two latent coordinates"
        return
    parts = [encoder.sample(encoded, ENTROPY_DRAWS // 30) for _ in range(30)]
    negative_entropy = -_entropy(torch.cat([part.z for part in parts]).flatten())
    mean = torch.cat([part.log_q for part in parts]).mean().item()
    side: Side = "=" if label is Direction.EXACT else ">="
    yield exact("E[log_q] - E[log q(z|x)]", 0, mean - negative_entropy, ENTROPY_ERROR, side)
    inner_k = subject.inner_ks(encoder)[-1]
    enclosed = encoder.log_q_bounds(encoder.encode(images(ROWS // 3)), 4, inner_k=inner_k)
    if label is Direction.UPPER_BOUND and enclosed.lower is not None:
        yield near(
            "E[lower bound on log q] - E[upper bound]", 0, Mean.of((enclosed.lower - enclosed.upper).mean(0)), "<="
        )


def _integral(encoder: Encoder, encoded: Any) -> float:
    """Return the integral of exp(log_q_at) for one image, by the trapezoidal rule."""
    z = encoder.sample(encoded, 2000).z[:, 0]
    points, sizes = grid(z.median(0).values, z.std(0))
    density = encoder.log_q_at(encoded, points.unsqueeze(1))
    assert density is not None
    return (density.flatten().exp() @ sizes).item()


def _entropy(z: Tensor) -> float:
    """Return the entropy of a distribution on the line from draws, (N,), in nats.

    The mass between order statistics i and i + m is Beta(m, N + 1 - m).
    Source: Vasicek 1976, https://doi.org/10.1111/j.2517-6161.1976.tb01566.x
    """
    ordered, n, m = z.sort().values, len(z), SPACING
    spacing = (ordered[m:] - ordered[:-m]).clamp(min=1e-300).log().mean()
    return (spacing + torch.digamma(torch.tensor(n + 1.0)) - torch.digamma(torch.tensor(float(m)))).item()


@torch.no_grad()
def independence(subject: _Subject) -> Iterator[CheckRow]:
    """Draws of equal images, and draws of one image, are not correlated; a part of a batch has the batch's noise."""
    _, encoder = subject.make()
    rows = _rows(encoder)
    z = torch.cat([encoder.draw(images()[:1].repeat(rows, 1), 2).z for _ in range(4000 // rows)], 1)
    yield exact("correlation of the draws of two images", 0, _correlation(z[0, ::2], z[0, 1::2]), 0.09)
    yield exact("correlation of two draws of an image", 0, _correlation(z[0], z[1]), 0.07)
    x, part = images(2), slice(2, 5)

    def drawn(chosen: slice) -> Tensor:
        torch.manual_seed(1)
        with noise.part_of_batch(chosen, len(x)):
            return encoder.draw(x[chosen], 2).z

    yield exact("z of a part of a batch - z of the batch", 0, distance(drawn(part), drawn(slice(0, 6))[:, part]))


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the correlation of largest size over coordinates of rows (N, D); 1 if nothing varies."""
    pairs = zip(one.T, other.T, strict=True)
    found = [torch.corrcoef(torch.stack(pair))[0, 1].nan_to_num(1.0).item() for pair in pairs]
    return max(found, key=abs)


def chunks(subject: _Subject) -> Iterator[CheckRow]:
    """An estimate depends on the seed and the image alone, not on chunks, batches or the global random state."""
    model, made = subject.make()
    encoder = made.proposal(model)
    inner_k, x = subject.inner_ks(encoder)[-1], images(2)

    def estimate(part: slice = slice(0, 6), seed: int = 1, **how: Any) -> Tensor:
        return log_likelihood(model, encoder, x[part], 7, inner_k, seed=seed, images=torch.arange(6)[part], **how)

    whole = estimate(chunk=7)
    yield exact("the same seed again", 0, distance(whole, estimate(chunk=7)))
    yield exact("k=7 in chunks of 2", 0, distance(whole, estimate(chunk=2)), 1e-8)
    if inner_k > 1:
        yield exact(f"inner_k={inner_k} in chunks of 2", 0, distance(whole, estimate(chunk=7, inner_chunk=2)), 1e-8)
    yield exact("images in parts", 0, distance(whole[2:5], estimate(slice(2, 5), chunk=7)), 1e-8)
    wrong = ["another seed gives the same estimate"] * (distance(whole, estimate(seed=2)) == 0)
    yield no_problem("another seed gives another estimate", wrong)


# Gradients ------------------------------------------------------------------------------------------------


def gradients(subject: _Subject) -> Iterator[CheckRow | str]:
    """Every parameter has a gradient; reparam against finite differences; STL and DReG against reparam."""
    model, encoder = subject.make()
    losses = encoder.auxiliary_losses().values()
    others = {id(parameter) for loss in losses if loss.exclusive for parameter in loss.parameters}
    own = {
        name: parameter
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and id(parameter) not in others
    }
    inner_k = subject.inner_ks(encoder)[-1]
    k = 1 if encoder.only_elbo else 4
    slopes = _Slopes(model, encoder, list(own.values()), inner_k)
    missing = [
        name for name, slope in zip(own, slopes.gradient(k, GradientEstimator.REPARAM, 0), strict=True) if _zero(slope)
    ]
    yield no_problem(f"each of {len(own)} parameters has a gradient", [f"no gradient: {name}" for name in missing])
    reason = encoder.only_elbo or encoder.no_total_gradient
    if reason:
        yield f"reparam was not compared with finite differences: {reason}"
        return
    direction = [torch.randn_like(parameter) for parameter in own.values()]
    if not own:
        return
    if slopes.has_inner_paths(k):
        # The hooks of a reverse model change the gradient of every draw, and not the mean.
        yield near("E[reparam] / finite difference - 1", 0, slopes.errors(k, GradientEstimator.REPARAM))
    else:
        found = torch.tensor([slopes.along(direction, k, GradientEstimator.REPARAM, seed) for seed in range(3)])
        truth = torch.tensor([slopes.difference(direction, k, seed) for seed in range(3)])
        # The median, because a step may cross a kink of a spline or a ReLU.
        error = (found - truth).abs().median().item()
        yield exact("reparam - finite difference", 0, error, 1e-5 * (1 + truth.abs().max().item()))
    if encoder.no_path_gradient is not None:
        yield f"STL and DReG were not compared: {encoder.no_path_gradient}"
        return
    yield near("E[stl] / finite difference - 1, k=1", 0, slopes.errors(1, GradientEstimator.STL))
    yield near(f"E[dreg] / finite difference - 1, k={k}", 0, slopes.errors(k, GradientEstimator.DREG))


def _zero(slope: Tensor | None) -> bool:
    return slope is None or not bool((slope != 0).any())


@dataclass(frozen=True)
class _Slopes:
    """Derivatives of the importance-weighted bound, averaged over a batch."""

    model: LinearGaussian
    encoder: Encoder
    parameters: list[nn.Parameter]
    inner_k: int

    def value(self, k: int, gradient: GradientEstimator, seed: int) -> Tensor:
        """Return the bound with the noise of ``seed``, a scalar."""
        torch.manual_seed(seed)
        objective = Objective(bounds.elbo if k == 1 else bounds.iwae, gradient)
        return objective(self.model, self.encoder, images(BATCH // 3), k, inner_k=self.inner_k)[0].mean()

    def gradient(self, k: int, gradient: GradientEstimator, seed: int) -> tuple[Tensor | None, ...]:
        """Return the gradient of each parameter."""
        return torch.autograd.grad(self.value(k, gradient, seed), self.parameters, allow_unused=True)

    def along(self, direction: list[Tensor], k: int, gradient: GradientEstimator, seed: int) -> float:
        """Return the derivative in a direction by the gradient."""
        pairs = zip(self.gradient(k, gradient, seed), direction, strict=True)
        return sum((slope * step).sum().item() for slope, step in pairs if slope is not None)

    @torch.no_grad()
    def difference(self, direction: list[Tensor], k: int, seed: int) -> float:
        """Return the derivative in a direction by central differences with the same noise."""
        ends = []
        for shift in (STEP, -2 * STEP, STEP):
            for parameter, step in zip(self.parameters, direction, strict=True):
                parameter += shift * step
            ends.append(self.value(k, GradientEstimator.REPARAM, seed).item())
        return (ends[0] - ends[1]) / (2 * STEP)

    def errors(self, k: int, gradient: GradientEstimator) -> Mean:
        """Return the mean over batches of derivative by the gradient / central difference - 1, with the same noise.

        The direction is that of the mean gradient, along which a wrong estimator differs most.
        """
        sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        for seed in range(1000, 1000 + BATCHES // 4):
            for total, slope in zip(sums, self.gradient(k, GradientEstimator.REPARAM, seed), strict=True):
                total += torch.zeros_like(total) if slope is None else slope
        found = torch.tensor([self.along(sums, k, gradient, seed) for seed in range(BATCHES)])
        truth = torch.tensor([self.difference(sums, k, seed) for seed in range(BATCHES)])
        return Mean.of((found - truth) / truth.mean())

    def has_inner_paths(self, k: int) -> bool:
        """Return whether an objective rescales the gradient of inner samples."""
        return bool(self.encoder.draw(images(), k, inner_k=self.inner_k).inner_paths)


def auxiliary_losses(subject: _Subject) -> Iterator[CheckRow | str]:
    """Each auxiliary loss is a finite number with a gradient in each of its parameters."""
    _, encoder = subject.make()
    losses = encoder.auxiliary_losses()
    if not losses:
        yield "the encoder has no auxiliary losses"
    for name, auxiliary in losses.items():
        found = auxiliary.loss(images(4))
        loss = found if isinstance(found, Tensor) else found.loss
        parameters = list(auxiliary.parameters)
        problems = [f"the loss has shape {tuple(loss.shape)}, not ()"] * (loss.dim() != 0)
        problems += ["the loss is not finite"] * (not bool(loss.isfinite().all()))
        slopes = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        lacking = sum(map(_zero, slopes))
        problems += [f"{lacking} of {len(slopes)} parameters have no gradient"] * bool(lacking)
        yield no_problem(f"{name}: a finite loss, and {len(slopes)} gradients", problems)


# Weights in files -----------------------------------------------------------------------------------------


def reloaded(source: nn.Module, target: nn.Module) -> None:
    """Load the weights of ``source`` into ``target`` through a file in memory, as a checkpoint does."""
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))


def storage(subject: _Subject) -> Iterator[CheckRow]:
    """An encoder that loads the weights of another one gives the same estimates."""
    (model, encoder), (_, other) = subject.make(), subject.make(seed=1)
    inner_k = subject.inner_ks(encoder)[-1]

    def estimate(trained: Encoder) -> Tensor:
        return log_likelihood(model, trained.proposal(model), images(), 3, inner_k, seed=1)

    before = estimate(other)
    reloaded(encoder, other)
    yield exact("estimate after save and load", 0, distance(estimate(encoder), estimate(other)))
    wrong = ["other weights give the same estimate"] * (distance(before, estimate(encoder)) == 0)
    yield no_problem("other weights give another estimate", wrong)
