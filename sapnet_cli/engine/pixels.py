"""Pictures as the engine takes and gives them, to tensors and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels: TypeAlias = NDArray[Any]
"""(H, W, 3) RGB: uint8, uint16, or float32 in [0, 1]."""

ROWS = 16
"""Of pictures, that are compared at once: all would take as much memory again, and single ones take longer."""


def to_tensor(images: Sequence[Pixels]) -> Tensor:
    """Pictures of one size to (B, H, W, 3), uint8 or float32 in [0, 1]."""
    batch = np.stack(images) if len(images) > 1 else images[0][None]
    if batch.dtype == np.uint16:
        batch = batch.astype(np.float32) / 65535
    if not batch.flags.writeable:  # torch warns of memory that it could write to; nothing here does
        batch = batch.copy()
    return torch.from_numpy(np.ascontiguousarray(batch))


def to_float(images: Tensor) -> Tensor:
    """Images in uint8 to float32 in [0, 1]; those that are float32 already, as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def to_pixels(images: Tensor, dtype: np.dtype[np.generic]) -> list[Pixels]:
    """(B, 3, H, W) in [0, 1] to pictures of a dtype, rounded to the nearest value."""
    rows = images.permute(0, 2, 3, 1)
    if dtype == np.uint8:
        return list((rows * 255).round().to(torch.uint8).cpu().numpy())
    pixels: NDArray[np.float32] = rows.cpu().numpy()
    return list(np.rint(pixels * 65535).astype(np.uint16) if dtype == np.uint16 else pixels.copy())


def mean_change(before: Pixels, after: Pixels) -> float:
    """By how much the values of a picture changed on average, in levels of 255."""
    total = 0.0
    for start in range(0, len(before), ROWS):
        old, new = before[start : start + ROWS], after[start : start + ROWS]
        total += float((np.maximum(old, new) - np.minimum(old, new)).sum(dtype=np.float64))
    white = 1 if before.dtype == np.float32 else np.iinfo(before.dtype).max
    return 255 * total / (white * before.size)


def finite(values: Tensor) -> Tensor:
    """The values themselves.

    Raises:
        FloatingPointError: some are not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError("not finite")
    return values
