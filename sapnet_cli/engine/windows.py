"""What tiles make of the forwards in C: windows, pools and planes as tensors, in the same memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.engine.forward import Cores
from sapnet_cli.engine.fused import Pool
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.kernels import Ranging
from sapnet_cli.engine.native import NativeForward, NativeNetwork, NativePool
from sapnet_cli.engine.planes import Room
from sapnet_cli.engine.progress import Report
from sapnet_cli.model.arrays import as_tensor


class NativeWindows:
    """A `NativeForward` as a `FusedForward` looks to tiles."""

    def __init__(
        self,
        network: NativeNetwork,
        precision: str,
        rainy: Tensor,
        cores: Cores | None = None,
        pool: Pool | None = None,
        ranging: Ranging | None = None,
        room: Room | None = None,
        *,
        insistence: Insistence | None = None,
    ) -> None:
        """Takes what `FusedForward` does."""
        self.rainy = rainy
        pool_of_arrays = None if pool is None else _of_arrays(pool)
        self._forward = NativeForward(
            network.laid(precision), rainy.numpy(), cores, pool_of_arrays, room, insistence=insistence
        )

    @property
    def insistence(self) -> Insistence | None:
        """What moves the pools."""
        return self._forward.insistence

    @insistence.setter
    def insistence(self, insistence: Insistence | None) -> None:
        self._forward.insistence = insistence

    @property
    def residual(self) -> Tensor:
        """What the last estimate adds to the rainy image, (N, H, W, 3), float32."""
        return as_tensor(self._forward.residual)

    @property
    def carried(self) -> tuple[Tensor, ...]:
        """What a unit leaves to the next: hidden and cell state, and residual."""
        return tuple(map(as_tensor, self._forward.carried))

    def unit(self, number: int, report: Report | None = None) -> None:
        """One progressive dilated unit."""
        self._forward.unit(number, report)


def _of_arrays(pool: Pool) -> NativePool:
    def pooled(means: NDArray[np.float32], areas: NDArray[np.float32]) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = pool(as_tensor(means), as_tensor(areas)).numpy()
        return vector

    return pooled
