"""One run in several processes, each with a part of every batch: ``torchrun ... -m vaebench train ...``.

All processes hold the same weights, optimisers and random states, and draw the same batches. Each process computes a
part of every batch, with the noise that these images have in a run of one process. Then gradients are summed. So a run
is the same for any number of processes, except for rounding, and checkpoints do not depend on the number.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vaebench.batch import sharing
from vaebench.errors import UserError
from vaebench.runtime import resolve_device, use_gpu_in_turn

__all__ = ["Replicas", "joined", "started_by_torchrun"]


class Replicas:
    """The processes of a run, seen from one of them; by default a run has one process."""

    def __init__(self, rank: int = 0, count: int = 1, control: Any = None) -> None:
        """Take part as process ``rank`` of ``count``; ``control`` is the process group for objects on the CPU."""
        self.rank = rank
        self.count = count
        self._control = control
        self._has_broadcast = False

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which alone writes and prints."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """Return the slice of ``total`` items of this process; the parts differ by at most one item."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    @contextlib.contextmanager
    def share(self, x: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield this process's images of a batch x, (B, X), and their share of the batch.

        Within the block, these images get the same noise as in the whole batch. If a batch has fewer images than there
        are processes, then some processes compute its first image with weight 0, to draw the same random numbers.
        """
        if self.count == 1:
            yield x, 1.0
            return
        own = self.part(len(x))
        weight = (own.stop - own.start) / len(x)
        with sharing(own if weight else slice(0, 1), len(x), weight, self.sum, self.largest):
            yield x[own] if weight else x[:1], weight

    def add_up(
        self, parameters: Iterable[nn.Parameter], value: Tensor, metrics: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum gradients, loss and metrics over all processes; each process passes the share of its images."""
        if self.count == 1:
            return value, dict(metrics)
        gradients = [p.grad for p in parameters if p.grad is not None]
        numbers = torch.stack([number.to(gradients[0].dtype) for number in (value, *metrics.values())])
        flat = torch.cat([numbers, *(gradient.reshape(-1) for gradient in gradients)])
        dist.all_reduce(flat)
        numbers, *sums = flat.split([len(numbers), *(gradient.numel() for gradient in gradients)])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        return numbers[0], dict(zip(metrics, numbers[1:], strict=True))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over all processes."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def largest(self, value: Tensor) -> Tensor:
        """Return the largest ``value`` over all processes."""
        if self.count == 1:
            return value
        found = value.detach().clone()
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def joined_up(self, own: Tensor, total: int) -> Tensor:
        """Return all ``total`` numbers, (N,), in every process; each process passes the numbers of its :meth:`part`."""
        if self.count == 1:
            return own
        whole = own.new_zeros(total)
        whole[self.part(total)] = own
        return self.sum(whole)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        return bool(flags)

    def broadcast(self, state: Any = None) -> Any:
        """Return the first process's ``state`` in every process."""
        self._has_broadcast = True
        if self.count == 1:
            return state
        box = [state]
        dist.broadcast_object_list(box, group=self._control)
        return box[0]

    def release(self) -> None:
        """End the wait of the other processes if the first one ends before its first broadcast."""
        if self.leads and not self._has_broadcast:
            self.broadcast(None)

    def same_start(self, modules: nn.Module) -> None:
        """Copy the first process's weights to every process."""
        if self.count > 1:
            for tensor in modules.state_dict().values():
                dist.broadcast(tensor, 0)


def started_by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[Replicas]:
    """Connect to the other processes of this run, if torchrun started any; ``device`` is the config's.

    Raises:
        UserError: there are not enough GPUs, or ``device`` names one of them.
    """
    if not started_by_torchrun():
        yield Replicas()
        return
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.startswith(("mps", "xpu")):
        raise UserError(f"a run in several processes supports device=cuda and device=cpu, got device={device}")
    cuda = resolve_device(device).type == "cuda"
    if cuda:
        _take_gpu(device, int(os.environ.get("LOCAL_RANK", rank)))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Replicas(rank, count, dist.new_group(backend="gloo") if cuda else None)
    finally:
        dist.destroy_process_group()


def _take_gpu(device: str, number: int) -> None:
    found = torch.accelerator.device_count()
    if device not in ("auto", "cuda"):
        raise UserError(f"device={device} names one GPU, but each process needs its own: use device=cuda")
    if number >= found:
        raise UserError(
            f"no GPU for process {number + 1} on this machine, which has {found}: use --nproc-per-node={found}"
        )
    use_gpu_in_turn(number)
