"""What tiles make of the forwards by PyTorch: windows, pools and planes as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.engine.forward import Cores
from sapnet_cli.engine.fused import FusedForward, Pool
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.native import NativePool
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.engine.progress import Report
from sapnet_cli.model.arrays import as_array, as_tensor


class TorchWindows:
    """A `FusedForward` as a `NativeForward` looks to tiles."""

    def __init__(
        self,
        begin: Callable[..., FusedForward],
        rainy: Pixels,
        cores: Cores | None = None,
        pool: NativePool | None = None,
        *more: Any,
    ) -> None:
        """Takes what begins a forward over tensors, and what `FusedForward` takes."""
        self.rainy = rainy
        seen = torch.from_numpy(rainy if rainy.flags.writeable else rainy.copy())  # or PyTorch warns
        self._forward = begin(seen, cores, None if pool is None else _of_tensors(pool), *more)

    @property
    def insistence(self) -> Insistence | None:
        """What moves the pools."""
        return self._forward.insistence

    @insistence.setter
    def insistence(self, insistence: Insistence | None) -> None:
        self._forward.insistence = insistence

    @property
    def residual(self) -> NDArray[np.float32]:
        """What the last estimate adds to the rainy image, (N, H, W, 3)."""
        return as_array(self._forward.residual.cpu())

    @property
    def carried(self) -> tuple[NDArray[Any], ...]:
        """What a unit leaves to the next: hidden and cell state, and residual; copies of what is on a GPU."""
        return tuple(as_array(plane.cpu()) for plane in self._forward.carried)

    @contextmanager
    def refill(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Gives the same to be overwritten by what another unit left."""
        on_gpu = [plane for plane in self._forward.carried if plane.device.type != "cpu"]
        arrays = [as_array(torch.empty_like(plane, device="cpu")) for plane in on_gpu]
        yield tuple(arrays) or self.carried
        with torch.inference_mode():
            for plane, array in zip(on_gpu, arrays):
                plane.copy_(as_tensor(array))

    def unit(self, number: int, report: Report | None = None) -> None:
        """One progressive dilated unit."""
        self._forward.unit(number, report)


def _of_tensors(pool: NativePool) -> Pool:
    def pooled(means: Tensor, areas: Tensor) -> Tensor:
        return torch.from_numpy(pool(means.float().cpu().numpy(), areas.float().cpu().numpy())).to(means)

    return pooled
