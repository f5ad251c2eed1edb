"""Pictures as the engine takes and gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[Any]
"""(H, W, 3) RGB: uint8, uint16, or float32 in [0, 1]."""

ROWS = 16
"""Of pictures, that are worked on at once: all would take as much memory again, and single ones take longer."""


def to_batch(images: Sequence[Pixels]) -> Pixels:
    """Pictures of one size to (B, H, W, 3), uint8 or float32 in [0, 1]."""
    batch = np.stack(images) if len(images) > 1 else images[0][None]
    if batch.dtype == np.uint16:
        batch = batch.astype(np.float32) / 65535
    return np.ascontiguousarray(batch)


def to_float(images: Pixels) -> NDArray[np.float32]:
    """Images in uint8 to float32 in [0, 1]; those that are float32 already, as they are."""
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def to_pixels(values: NDArray[np.float32], dtype: np.dtype[np.generic]) -> Pixels:
    """Values in [0, 1] to a dtype, rounded to the nearest value; they are overwritten."""
    if dtype == np.float32:
        return values
    values *= np.iinfo(dtype).max  # type: ignore[type-var]
    return np.rint(values, out=values).astype(dtype)


def add_rainy(residual: NDArray[np.float32], rainy: Pixels, dtype: np.dtype[np.generic]) -> Pixels:
    """The derained rows of pictures, in a dtype, of what is added to the rainy ones; that is overwritten.

    Raises:
        FloatingPointError: a value is not finite.
    """
    residual += to_float(rainy)
    if not np.isfinite(residual).all():
        raise FloatingPointError("not finite")
    return to_pixels(np.clip(residual, 0, 1, out=residual), dtype)


def mean_change(before: Pixels, after: Pixels) -> float:
    """By how much the values of a picture changed on average, in levels of 255."""
    total = 0.0
    for start in range(0, len(before), ROWS):
        old, new = before[start : start + ROWS], after[start : start + ROWS]
        total += float((np.maximum(old, new) - np.minimum(old, new)).sum(dtype=np.float64))
    white = 1 if before.dtype == np.float32 else np.iinfo(before.dtype).max
    return 255 * total / (white * before.size)
