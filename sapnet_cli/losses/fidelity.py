"""Structural similarity and peak signal-to-noise ratio as differentiable losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03

LUMA = 65.481, 128.553, 24.966
"""Of MATLAB's `rgb2ycbcr`: what red, green and blue, up to 1, add to Y, which is from 16 to 235."""

HIGHEST_PSNR = 50.0
"""In dB: an error of 0.8/255, which nobody sees; crops that are nearer to the truth give hardly any gradient."""


def luma(images: Tensor) -> Tensor:
    """Y, which benchmarks score: (B, 3, H, W) in [0, 1] to (B, 1, H, W) from 16/255 to 235/255."""
    weights = images.new_tensor(LUMA) / 255
    return (images * weights.view(3, 1, 1)).sum(dim=1, keepdim=True) + 16 / 255


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Mean SSIM (Wang et al. 2004, eq. 13) with the 11x11 Gaussian window of sigma 1.5 over its 'valid' region.

    Args:
        images: (B, C, H, W) in [0, 1], H and W at least 11; computed in float32, or in float64 if that comes in.
        targets: the same shape.

    Returns:
        A scalar, 1 for equal images. The paper's loss is its negative (section 3.4).
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    images, targets = images.to(dtype), targets.to(dtype)
    offsets = torch.arange(WINDOW, dtype=dtype, device=images.device) - WINDOW // 2
    window = torch.softmax(-offsets.square() / (2 * SIGMA**2), dim=0)

    maps = torch.cat((images, targets, images * images, targets * targets, images * targets), dim=1)
    groups = maps.shape[1]
    maps = functional.conv2d(maps, window.view(1, 1, 1, -1).expand(groups, 1, 1, -1), groups=groups)
    maps = functional.conv2d(maps, window.view(1, 1, -1, 1).expand(groups, 1, -1, 1), groups=groups)
    mean_x, mean_y, square_x, square_y, product = maps.chunk(5, dim=1)

    variance = square_x - mean_x * mean_x + square_y - mean_y * mean_y
    covariance = product - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    similarity: Tensor = (luminance * (2 * covariance + c2) / (variance + c2)).mean()
    return similarity


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Mean PSNR of the images of a batch, each on its own, in dB; it levels off at `HIGHEST_PSNR`.

    Unlike the mean squared error it gives a crop that is nearly clean as much weight as one that is not, as benchmarks
    do, which average the PSNR of pictures (Chen et al., "HINet", CVPR 2021 workshops).

    Args:
        images: (B, C, H, W), in [0, 1] where they are right, float32.
        targets: the same shape.

    Returns:
        A scalar.
    """
    error = (images - targets).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error + 10 ** (-HIGHEST_PSNR / 10)).mean()
