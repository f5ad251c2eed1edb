"""Pictures as the engine takes and gives them, to tensors and back: where PyTorch computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.engine.pixels import Pixels, to_batch


def to_tensor(images: Sequence[Pixels]) -> Tensor:
    """Pictures of one size to (B, H, W, 3), uint8 or float32 in [0, 1]."""
    batch = to_batch(images)
    if not batch.flags.writeable:  # torch warns of memory that it could write to; nothing here does
        batch = batch.copy()
    return torch.from_numpy(batch)


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


def finite(values: Tensor) -> Tensor:
    """The values themselves.

    Raises:
        FloatingPointError: some are not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError("not finite")
    return values
