"""Kernels of bfloat16, as `c/matrices.c` multiplies them by AMX, where a CPU has it.

Its products are of bfloat16, its sums of float32. Kernels are rounded so that the nine values by which one channel
counts in another add up to what they did, or nearly: what is even in a picture, which is most of it, comes out as if
they had not been rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sapnet_cli.model import compiled

SIDE = 16
"""Outputs of a matrix."""

DEEP = 32
"""Inputs of a matrix; and outputs come in two matrices."""

GATES = 4
"""Of an LSTM."""


def are_multiplied(channels: int, dtype: torch.dtype) -> bool:
    """Whether convolutions of planes of so many channels, of a dtype, are computed so, here."""
    return dtype is torch.bfloat16 and channels % DEEP == 0 and compiled.program().multiplies_matrices


def shape(outputs: int, inputs: int) -> tuple[int, ...]:
    """Of a kernel that is laid."""
    return outputs // (2 * SIDE), 9, inputs // DEEP, 2, DEEP // 2, SIDE, 2


def outputs_of(kernel: Tensor) -> int:
    """Of a kernel that is laid."""
    return 2 * SIDE * kernel.shape[0]


def gradient_shape(parts: int, outputs: int, inputs: int) -> tuple[int, ...]:
    """Of the gradient of a kernel, in parts."""
    block = 2 * SIDE
    return parts, inputs // block, outputs // block, 9, block, block


def unlay_gradient(parts: Tensor) -> Tensor:
    """The gradient of a kernel, (O, I, 3, 3), of its parts: see `gradient_shape`."""
    taps = parts.sum(dim=0).permute(1, 4, 0, 3, 2)
    return taps.reshape(taps.shape[0] * taps.shape[1], -1, 3, 3)


def lay(weight: Tensor) -> Tensor:
    """A kernel, (O, I, 3, 3), as `native.convolve` takes it for planes of bfloat16: see `shape`.

    O and I are multiples of `DEEP`.
    """
    outputs, inputs = weight.shape[:2]
    matrices = round_taps(weight).view(outputs // (2 * SIDE), 2, SIDE, inputs // DEEP, DEEP // 2, 2, 9)
    return matrices.permute(0, 6, 3, 1, 4, 2, 5).contiguous()


def lay_gates(weight: Tensor) -> Tensor:
    """The kernel of an LSTM's gates, (4 C, I, 3, 3), as `native.recur` takes it: all four of some channels, then on."""
    channels = weight.shape[0] // GATES
    together = weight.view(GATES, channels // SIDE, SIDE, *weight.shape[1:]).transpose(0, 1)
    return lay(together.reshape(weight.shape))


def lay_image(weight: Tensor) -> Tensor:
    """The kernel of a convolution to an image, (3, I, 3, 3), as `native.project` takes it: the sum of two."""
    rounded = weight.to(torch.bfloat16).to(weight.dtype)
    both = weight.new_zeros(2, SIDE, *weight.shape[1:])
    both[:, : len(weight)] = torch.stack((rounded, weight - rounded))
    return lay(both.flatten(0, 1))


def round_taps(weight: Tensor) -> Tensor:
    """A kernel, (O, I, 3, 3), in bfloat16; what is lost at one tap is added to the next one."""
    taps = weight.flatten(2)
    rounded = torch.empty_like(taps, dtype=torch.bfloat16)
    lost = torch.zeros_like(taps[..., 0])
    for tap in range(taps.shape[2]):
        wanted = taps[..., tap] + lost
        rounded[..., tap] = wanted
        lost = wanted - rounded[..., tap]
    return rounded
