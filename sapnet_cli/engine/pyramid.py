"""Streaks that are wider than the network knows: a derained picture is derained again at a quarter of its size.

Streaks in the public sets are a few pixels wide, in a sixth of a megapixel. In a photo of twelve they may be eight
times as wide, and the network takes what it cannot span for a part of the scene. Finest first: streaks that the network
knows are gone before the picture is shrunk, which would make a veil of them that it takes away unevenly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from sapnet_cli.engine.pixels import Pixels, to_float, to_pixels, to_tensor

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
        band = to_float(to_tensor([image[start * FACTOR : (start + ROWS) * FACTOR]])).permute(0, 3, 1, 2)
        band = functional.pad(band, (0, -width % FACTOR, 0, -band.shape[2] % FACTOR), mode="replicate")
        coarse[start : start + ROWS] = functional.avg_pool2d(band, FACTOR)[0].permute(1, 2, 0)
    return coarse


def add_enlarged(image: Pixels, change: Pixels) -> None:
    """Adds to a picture, in place, what was changed at the next coarser level, enlarged.

    Args:
        image: as for `shrink`.
        change: as `shrink` returns, in [-1, 1].
    """
    height, width = image.shape[:2]
    for start in range(0, len(change), ROWS):
        low, high = max(0, start - MARGIN), min(start + ROWS + MARGIN, len(change))
        part = torch.from_numpy(change[low:high]).permute(2, 0, 1)[None]
        enlarged = functional.interpolate(part, scale_factor=FACTOR, mode="bicubic")[0].permute(1, 2, 0)
        rows = slice(start * FACTOR, min((start + ROWS) * FACTOR, height))
        inside = enlarged[rows.start - low * FACTOR : rows.stop - low * FACTOR, :width]
        band = to_float(to_tensor([image[rows]]))[0] + inside
        image[rows] = to_pixels(band.clamp_(0, 1).permute(2, 0, 1)[None], image.dtype)[0]
