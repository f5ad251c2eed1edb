"""Attention's pooled vectors where an image is too large to keep its features: a sample of it, and what that lacks.

Channel residual attention scales each channel by what a pool over the *whole* image sees, and each pool follows from
those before it. Tiles that pool over themselves give every tile a look of its own, and seams between them. So a
sample of windows pools first, for the whole image; then the image passes, pooled to what the sample gave, and is
measured: how much its means differ from the sample's shifts what the sample gives in the next unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sapnet_cli.engine.tiles import Tile, TilePlan, plan_tiles

MANY_WINDOWS = 64
"""So many windows stand for an image well enough; with fewer, more is measured."""

SAMPLE_WINDOWS, SAMPLE_SIDES, SAMPLE_MARGIN = 24, (64, 128), 8
"""Of the windows that stand for a tiled image: how many at least, if they are not to be smaller than the first side;
the largest side; and the context in them."""


class ShiftedPool:
    """Pools a sample to its own mean, shifted towards that of the image.

    Attributes:
        means: of the sample itself so far, (C,) each, in the order of the pools of a forward.
        vectors: that it gave instead.
    """

    def __init__(self, shifts: Sequence[Tensor] = ()) -> None:
        """Takes the shift at each pool, (C,), of as many as are known."""
        self._shifts = iter(shifts)
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


def colour_change(before: Tensor, after: Tensor) -> Tensor:
    """The affine map that comes nearest to what changed in the colours of images: least squares over all pixels.

    Args:
        before: (N, 3, H, W).
        after: the same shape.

    Returns:
        (4, 3): what each channel of a colour, and one, adds to the channels of the result.
    """
    colours, changes = (
        images.cpu().double().permute(0, 2, 3, 1).flatten(0, 2) for images in (_with_one(before), after - before)
    )
    change: Tensor = torch.linalg.pinv(colours.T @ colours, hermitian=True) @ (colours.T @ changes)
    return change.float()


def change_colours(images: Tensor, change: Tensor) -> Tensor:
    """Images (N, 3, H, W) with what `colour_change` gave added, in [0, 1]."""
    return (images + torch.einsum("nchw,cd->ndhw", _with_one(images), change)).clamp_(0, 1)


def _with_one(images: Tensor) -> Tensor:
    return functional.pad(images, (0, 0, 0, 0, 0, 1), value=1.0)


def choose_sample(image: NDArray[Any], room: int) -> tuple[TilePlan, list[Tile]]:
    """Windows of at most `room` pixels together that stand for an image (H, W, 3), and the plan that they are of."""
    side = min(max(math.isqrt(room // SAMPLE_WINDOWS), SAMPLE_SIDES[0]), SAMPLE_SIDES[1])
    height, width = image.shape[:2]
    plan = plan_tiles(height, width, side, SAMPLE_MARGIN)
    count = min(room // math.prod(plan.window), MANY_WINDOWS)
    return plan, representative(image, plan, max(1, count))


def representative(image: NDArray[Any], plan: TilePlan, count: int) -> list[Tile]:
    """So many of the tiles of an image (H, W, 3), from the smoothest to the most textured, at even distances."""

    def texture(tile: Tile) -> float:
        return float(np.abs(np.diff(image[plan.seen(tile)][:, :, 1].astype(np.float32), axis=1)).mean())

    ranked = sorted(plan.tiles, key=texture)
    count = min(count, len(ranked))
    return [ranked[(2 * index + 1) * len(ranked) // (2 * count)] for index in range(count)]
