"""One run in several processes, each with a part of every batch: ``torchrun ... -m vaebench train ...``.

All processes hold the same weights, optimisers and random states, and draw every batch alike. Each works on images of
its own, with the noise that these have in a run of one process, and the gradients are added up. So a run is the same
for any number of processes, but for the rounding of sums, and a checkpoint knows nothing of them.
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
from vaebench.runtime import use_gpu_in_turn

__all__ = ["Replicas", "joined", "started_by_torchrun"]


class Replicas:
    """The processes of a run, seen from one of them; by default there is only this one."""

    def __init__(self, rank: int = 0, count: int = 1, control: Any = None) -> None:
        """Take part as process ``rank`` of ``count``; ``control`` is a group for what lies on the CPU."""
        self.rank = rank
        self.count = count
        self._control = control
        self._has_broadcast = False

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """Return which of ``total`` things are this process's; the parts differ by one at most."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    @contextlib.contextmanager
    def share(self, x: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield this process's images of a batch x, (B, X), and their share of the batch.

        Within the block noise is that of these images in the whole batch. Where there are fewer images than
        processes, some work on a first image that counts for nothing, to draw what the others draw.
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
        """Make gradients, loss and metrics, each this process's share, those of the whole batch, in every process."""
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
        """Return the largest ``value`` of all processes."""
        if self.count == 1:
            return value
        found = value.detach().clone()
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def joined_up(self, own: Tensor, total: int) -> Tensor:
        """Return all ``total`` numbers, (N,), of which each process has those of its :meth:`part`."""
        if self.count == 1:
            return own
        whole = own.new_zeros(total)
        whole[self.part(total)] = own
        return self.sum(whole)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        return bool(flags)

    def broadcast(self, state: Any = None) -> Any:
        """Return, in every process, what the first one passes."""
        self._has_broadcast = True
        if self.count == 1:
            return state
        box = [state]
        dist.broadcast_object_list(box, group=self._control)
        return box[0]

    def release(self) -> None:
        """Let the other processes go where the first one ends before it told them anything."""
        if self.leads and not self._has_broadcast:
            self.broadcast(None)

    def same_start(self, modules: nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.count > 1:
            for tensor in modules.state_dict().values():
                dist.broadcast(tensor, 0)


def started_by_torchrun() -> bool:
    """Whether this is one of several processes of one run."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[Replicas]:
    """Meet the other processes of this run, if torchrun started any; ``device`` is what the configuration says.

    Raises:
        UserError: the devices cannot be divided.
    """
    if not started_by_torchrun():
        yield Replicas()
        return
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        _take_gpu(device, int(os.environ.get("LOCAL_RANK", rank)))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Replicas(rank, count, dist.new_group(backend="gloo") if cuda else None)
    finally:
        dist.destroy_process_group()


def _take_gpu(device: str, number: int) -> None:
    found = torch.cuda.device_count()
    if device not in ("auto", "cuda"):
        raise UserError(f"device={device} is one GPU, and each process needs its own: write device=cuda")
    if number >= found:
        raise UserError(f"process {number + 1} of this machine has no GPU, there are {found}: --nproc-per-node={found}")
    use_gpu_in_turn(number)
