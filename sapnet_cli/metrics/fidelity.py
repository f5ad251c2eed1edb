"""PSNR and SSIM by the protocols that the field reports."""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sapnet_cli.losses.fidelity import LUMA, ssim

ScoreProtocol = Literal["prenet", "restormer"]
"""`prenet`: Y in double, SSIM after shrinking large pictures. `restormer`, also MPRNet's: Y rounded, SSIM as it is."""

SSIM_SIDE = 256
"""`prenet` takes SSIM after shrinking by a whole factor that brings the shorter side near to this."""

SMALLEST_SSIM_SIDE = 11

HIGHEST_PSNR = 100.0
"""In dB, for means: equal pictures have none that is finite."""


def luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y of MATLAB's `rgb2ycbcr`, not rounded: (H, W, 3) uint8 to (H, W) from 16 to 235."""
    result: NDArray[np.float64] = 16 + image @ (np.array(LUMA) / 255)
    return result


def psnr(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], protocol: ScoreProtocol = "prenet", in_rgb: bool = False
) -> float:
    """Peak signal-to-noise ratio in dB over the whole picture; infinite for equal pictures.

    Args:
        image: (H, W, 3) uint8.
        truth: the same shape.
        protocol: see `ScoreProtocol`.
        in_rgb: of all three channels, not of Y.
    """
    first, second = (_planes(each, protocol, in_rgb) for each in (image, truth))
    error = float(np.square(first - second).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def structural_similarity(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], protocol: ScoreProtocol = "prenet", in_rgb: bool = False
) -> float:
    """SSIM (Wang et al. 2004) with an 11x11 Gaussian window over its valid region, L = 255.

    By `prenet`, as in the reference code of its authors, after box-downsampling by `max(1, round(min(H, W) / 256))`.

    Args:
        image: (H, W, 3) uint8, both sides at least 11.
        truth: the same shape.
        protocol: see `ScoreProtocol`.
        in_rgb: the mean over all three channels, not of Y.
    """
    factor = max(1, round(min(image.shape[:2]) / SSIM_SIDE)) if protocol == "prenet" else 1
    planes = (_shrink(_planes(each, protocol, in_rgb), factor) for each in (image, truth))
    first, second = (torch.from_numpy(each / 255).permute(2, 0, 1)[None] for each in planes)
    return float(ssim(first, second))


def compare_with_input(image: NDArray[np.uint8], rainy: NDArray[np.uint8]) -> dict[str, float]:
    """What can be said of an output without a ground truth, (H, W, 3) uint8 each. None of it says that it is good.

    Returns:
        By the names that tables show: `change`, the mean absolute difference from the input, in 8-bit levels;
        `brightness`, the mean difference, likewise, which is near 0 unless rain was bright; `gradient`, the mean
        slope of Y between neighbours in levels, which falls as streaks go and, further, as details do.
    """
    difference = image.astype(np.float64) - rainy
    plane = luma(image)
    slopes = (np.abs(np.diff(plane, axis=axis)).mean() for axis in (0, 1) if plane.shape[axis] > 1)
    return {
        "change": float(np.abs(difference).mean()),
        "brightness": float(difference.mean()),
        "gradient": float(sum(slopes)),
    }


def _planes(image: NDArray[np.uint8], protocol: ScoreProtocol, in_rgb: bool) -> NDArray[np.float64]:
    """What is compared, (H, W, 1 or 3) from 0 to 255."""
    if in_rgb:
        return image.astype(np.float64)
    plane = luma(image)
    return (np.rint(plane) if protocol == "restormer" else plane)[..., None]


def _shrink(planes: NDArray[Any], factor: int) -> NDArray[Any]:
    """Every `factor`-th value of the mean over `factor` x `factor`, mirrored at the edges."""
    if factor == 1:
        return planes
    blurred = cv2.blur(planes, (factor, factor), borderType=cv2.BORDER_REFLECT)[::factor, ::factor]
    return blurred if blurred.ndim == 3 else blurred[..., None]
