"""Kernels of bfloat16, as `c/matrices.c` multiplies them by AMX, where a CPU has it.

Its products are of bfloat16, its sums of float32. Kernels are rounded so that the nine values by which one channel
counts in another add up to what they did, or nearly: what is even in a picture, which is most of it, comes out as if
they had not been rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.model import compiled
from sapnet_cli.model.arrays import from_bits, of_either, to_bits

if TYPE_CHECKING:
    from torch import Tensor

    from sapnet_cli.model.arrays import Array

SIDE = 16
"""Outputs of a matrix."""

DEEP = 32
"""Inputs of a matrix; and outputs come in two matrices."""

GATES = 4
"""Of an LSTM."""


def are_multiplied(channels: int, kind: str) -> bool:
    """Whether convolutions of planes of so many channels, of a kind (`arrays.KINDS`), are computed so, here."""
    return kind == "bf16" and channels % DEEP == 0 and compiled.program().multiplies_matrices


def shape(outputs: int, inputs: int) -> tuple[int, ...]:
    """Of a kernel that is laid."""
    return outputs // (2 * SIDE), 9, inputs // DEEP, 2, DEEP // 2, SIDE, 2


def outputs_of(kernel: Array) -> int:
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


@of_either
def lay(weight: NDArray[np.float32]) -> NDArray[np.uint16]:
    """A kernel, (O, I, 3, 3), as `native.convolve` takes it for planes of bfloat16: see `shape`.

    O and I are multiples of `DEEP`.
    """
    outputs, inputs = weight.shape[:2]
    matrices = round_taps(weight).reshape(outputs // (2 * SIDE), 2, SIDE, inputs // DEEP, DEEP // 2, 2, 9)
    laid: NDArray[np.uint16] = matrices.transpose(0, 6, 3, 1, 4, 2, 5)
    return laid


@of_either
def lay_gates(weight: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The kernel of an LSTM's gates, (4 C, I, 3, 3), as `native.recur` takes it: all four of some channels, then on."""
    channels = weight.shape[0] // GATES
    together = weight.reshape(GATES, channels // SIDE, SIDE, *weight.shape[1:]).swapaxes(0, 1)
    return cast(NDArray[np.uint16], lay(together.reshape(weight.shape)))


@of_either
def lay_image(weight: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The kernel of a convolution to an image, (3, I, 3, 3), as `native.project` takes it: the sum of two."""
    rounded = from_bits(to_bits(np.ascontiguousarray(weight)))
    both = np.zeros((2, SIDE, *weight.shape[1:]), weight.dtype)
    both[0, : len(weight)], both[1, : len(weight)] = rounded, weight - rounded
    return cast(NDArray[np.uint16], lay(both.reshape(2 * SIDE, *weight.shape[1:])))


@of_either
def round_taps(weight: NDArray[np.float32]) -> NDArray[np.uint16]:
    """A kernel, (O, I, 3, 3), in bfloat16, (O, I, 9); what is lost at one tap is added to the next one."""
    taps = weight.reshape(*weight.shape[:2], -1)
    rounded = np.empty(taps.shape, np.uint16)
    lost = np.zeros(taps.shape[:2], np.float32)
    for tap in range(taps.shape[2]):
        wanted = taps[..., tap] + lost
        rounded[..., tap] = to_bits(wanted)
        lost = wanted - from_bits(rounded[..., tap])
    return rounded
