"""Streaks that are wider than the network knows: a derained picture is derained again at a quarter of its size.

Streaks in the public sets are a few pixels wide, in a sixth of a megapixel. In a photo of twelve they may be eight
times as wide, and the network takes what it cannot span for a part of the scene. Finest first: streaks that the network
knows are gone before the picture is shrunk, which would make a veil of them that it takes away unevenly.
"""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.engine.pixels import Pixels, to_batch, to_float, to_pixels

FACTOR = 4
"""From level to level: networks trained with `--coarse` know what lies between."""

LEAST_PIXELS = 100_000
"""Of the coarsest level: less than the pictures of the public sets have."""

ROWS = 16
"""Of a coarser level, that are computed at once: what that takes is small beside the picture."""

MARGIN = 2
"""Rows on either side that bicubic interpolation looks at."""


def count_levels(pixels: int) -> int:
    """How many levels a picture of so many pixels has, itself included, down to `LEAST_PIXELS`."""
    levels = 1
    while pixels // FACTOR ** (2 * levels) >= LEAST_PIXELS:
        levels += 1
    return levels


def shrink(image: Pixels) -> Pixels:
    """The next coarser level: means over squares of 4 pixels.

    Args:
        image: (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1].

    Returns:
        (H / 4, W / 4, 3), rounded up, float32 in [0, 1]. The last row and column stand for what the last squares lack.
    """
    height, width = image.shape[:2]
    coarse = np.empty((-(-height // FACTOR), -(-width // FACTOR), 3), np.float32)
    for start in range(0, len(coarse), ROWS):
        band = to_float(to_batch([image[start * FACTOR : (start + ROWS) * FACTOR]])[0])
        band = np.pad(band, ((0, -len(band) % FACTOR), (0, -width % FACTOR), (0, 0)), mode="edge")
        rows = reduce(np.add, (band[each::FACTOR] for each in range(FACTOR)))
        squares = reduce(np.add, (rows[:, each::FACTOR] for each in range(FACTOR)))
        coarse[start : start + ROWS] = squares / np.float32(FACTOR**2)
    return coarse


def add_enlarged(image: Pixels, change: Pixels) -> None:
    """Adds to a picture, in place, what was changed at the next coarser level, enlarged by bicubic interpolation.

    Args:
        image: as for `shrink`.
        change: as `shrink` returns, in [-1, 1].
    """
    height, width = image.shape[:2]
    for start in range(0, len(change), ROWS):
        low, high = max(0, start - MARGIN), min(start + ROWS + MARGIN, len(change))
        enlarged = _enlarge(_enlarge(change[low:high]).swapaxes(0, 1)).swapaxes(0, 1)
        rows = slice(start * FACTOR, min((start + ROWS) * FACTOR, height))
        inside = enlarged[rows.start - low * FACTOR : rows.stop - low * FACTOR, :width]
        band = to_float(to_batch([image[rows]])[0]) + inside
        image[rows] = to_pixels(np.clip(band, 0, 1, out=band), image.dtype)


def _enlarge(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`FACTOR` times as many rows, each of four that are near it; beyond the edges rows are as at them."""
    beyond = np.concatenate([values[:1]] * MARGIN + [values] + [values[-1:]] * MARGIN)
    enlarged = np.empty((FACTOR * len(values), *values.shape[1:]), np.float32)
    for phase in range(FACTOR):
        place = (phase + 0.5) / FACTOR - 0.5 + MARGIN  # of the first such row, in rows of `beyond`
        before = math.floor(place) - 1
        near = [beyond[each : each + len(values)] for each in range(before, before + 4)]
        weights = [_cubic(abs(place - each)) for each in range(before, before + 4)]
        enlarged[phase::FACTOR] = reduce(np.add, (np.float32(weight) * row for weight, row in zip(weights, near)))
    return enlarged


def _cubic(distance: float) -> float:
    """What a row weighs at a distance of less than two: Keys' kernel, as sharp as OpenCV and PyTorch have it."""
    sharp = -0.75
    if distance <= 1:
        return ((sharp + 2) * distance - (sharp + 3)) * distance**2 + 1
    return sharp * (((distance - 5) * distance + 8) * distance - 4)
