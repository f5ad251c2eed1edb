"""The pooled vectors of a whole image, estimated where it is too large to keep its features.

Channel residual attention scales each channel by what a pool over the *whole* image sees, and each pool follows from
those before it. Tiles that pool over themselves give every tile a look of its own, and seams between them. So a
sample of windows passes through the network together, as if it were the image; then the image is measured through the
first units with the sample's vectors; and the sample passes again, its vectors shifted by what it was found to be off.
What is measured with vectors that are off is off itself, so the first unit is put right before others are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.engine.tiles import Tile, TilePlan


class ShiftedPool:
    """Pools a sample to its own mean, shifted towards that of the image.

    Attributes:
        means: of the sample itself so far, (C,) each, in the order of the pools of a forward.
        vectors: that it gave instead.
    """

    def __init__(self, shifts: Sequence[Tensor] = (), period: int = 0) -> None:
        """Takes the shift at each pool, (C,); those of the last `period` stand for all pools beyond."""
        self._shifts = chain(shifts, cycle(shifts[-period:]))
        self.means: list[Tensor] = []
        self.vectors: list[Tensor] = []

    def __call__(self, mean: Tensor, area: int) -> Tensor:
        """Takes the mean over the sample's cores, (C,), and their area; returns the vector to pool to."""
        self.means.append(mean)
        self.vectors.append(mean + next(self._shifts, 0))
        return self.vectors[-1]


class MeasuringPool:
    """Pools to given vectors, and finds out what would have been the image's, as its tiles pass one by one."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        """Takes the vectors, (C,) each, in the order of the pools of a forward."""
        self._given = given
        self._sums = [torch.zeros_like(vector) for vector in given]
        self._area = 0
        self._position = 0

    def __call__(self, mean: Tensor, area: int) -> Tensor:
        """Takes the mean over the cores of some tiles, (C,), and their area; returns the vector to pool to."""
        position = self._position
        self._sums[position] += mean * area
        self._area += area if position == 0 else 0
        self._position = (position + 1) % len(self._given)
        return self._given[position]

    @property
    def means(self) -> list[Tensor]:
        """Over all tiles that passed, (C,) each."""
        return [total / self._area for total in self._sums]


def representative(image: NDArray[Any], plan: TilePlan, count: int) -> list[Tile]:
    """So many of the tiles of an image (H, W, 3), from the smoothest to the most textured, at even distances."""

    def texture(tile: Tile) -> float:
        return float(np.abs(np.diff(image[plan.seen(tile)][:, :, 1].astype(np.float32), axis=1)).mean())

    ranked = sorted(plan.tiles, key=texture)
    count = min(count, len(ranked))
    return [ranked[(2 * index + 1) * len(ranked) // (2 * count)] for index in range(count)]
