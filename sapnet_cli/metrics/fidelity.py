"""PSNR and SSIM of the Y channel, by the protocol of PReNet that the field reports."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sapnet_cli.losses.ssim import ssim

SSIM_SIDE = 256
"""SSIM is taken after shrinking by a whole factor that brings the shorter side near to this."""

SMALLEST_SSIM_SIDE = 11


def luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y of MATLAB's `rgb2ycbcr`, not rounded: (H, W, 3) uint8 to (H, W) from 16 to 235."""
    weights = np.array([65.481, 128.553, 24.966])
    result: NDArray[np.float64] = 16 + image @ (weights / 255)
    return result


def psnr(image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of Y in dB over the whole picture; infinite for equal pictures.

    Args:
        image: (H, W, 3) uint8.
        truth: the same shape.
    """
    error = float(np.square(luma(image) - luma(truth)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def structural_similarity(image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """SSIM of Y with an 11x11 Gaussian window over its valid region, L = 255, after box-downsampling by
    `max(1, round(min(H, W) / 256))`, as in the reference code of Wang et al. 2004.

    Args:
        image: (H, W, 3) uint8, both sides at least 11.
        truth: the same shape.
    """  # noqa: D205
    factor = max(1, round(min(image.shape[:2]) / SSIM_SIDE))
    planes = [_shrink(luma(each), factor) for each in (image, truth)]
    first, second = (torch.from_numpy(plane / 255)[None, None] for plane in planes)
    return float(ssim(first, second))


def _shrink(plane: NDArray[Any], factor: int) -> NDArray[Any]:
    """Every `factor`-th value of the mean over `factor` x `factor`, mirrored at the edges."""
    if factor == 1:
        return plane
    return cv2.blur(plane, (factor, factor), borderType=cv2.BORDER_REFLECT)[::factor, ::factor]
