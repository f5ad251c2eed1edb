"""One process or many: what `torchrun` started, on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sapnet_cli.engine.hardware import choose_device
from sapnet_cli.errors import UsageError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process among its fellows; all of them hold the same weights at any step.

    Data-parallel training averages the gradients of all processes. Here they are 0.7 MB: one all-reduce of all of them
    after the backward pass costs less than the hooks of `DistributedDataParallel`, which exist to overlap the
    transfer of gradients a thousand times larger, and it leaves the compiled step whole.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
        device: what this one computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over the processes."""
        if self.count > 1:
            gradients = [each.grad for each in parameters if each.grad is not None]
            for gradient, mean in zip(gradients, self._mean(gradients)):
                gradient.copy_(mean)

    def average(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        return values if self.count == 1 else self._mean([values])[0]

    def agree(self, progress: float, stop: bool) -> tuple[float, bool]:
        """What the first process's clock says, and whether any process was asked to stop; the same in all of them."""
        if self.count == 1:
            return progress, stop
        said = torch.tensor([progress if self.first else 0.0, float(stop)], dtype=torch.float64, device=self.device)
        dist.all_reduce(said)
        return float(said[0]), bool(said[1])

    def share(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, in all of them: the others may be on machines without its files."""
        if self.count == 1:
            return make()
        made = [make() if self.first else None]
        dist.broadcast_object_list(made, src=0)
        return cast(Value, made[0])

    def _mean(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.count, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]


def join_processes(device_name: str) -> Processes:
    """Joins the processes that `torchrun` announces in the environment, over NCCL on GPUs and gloo on CPUs.

    Args:
        device_name: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; with several processes each takes the GPU of its number.

    Raises:
        UsageError: no such device, or fewer GPUs than processes on this machine.
    """
    device, count = torch.device(str(choose_device(device_name))), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes(0, 1, device)
    if device.type == "cuda":
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise UsageError(f"more processes than the {there} GPUs of this machine; lower --nproc-per-node")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), count, device)


def leave_processes() -> None:
    """Ends what `join_processes` began."""
    if dist.is_initialized():
        dist.destroy_process_group()
