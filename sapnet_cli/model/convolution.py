"""A 3x3 convolution that learns fast on a CPU where nothing is in C: its gradient by products of matrices.

PyTorch's own gradient of a kernel takes eight times as long as the convolution itself where that is dilated and its
features lie channels last, which is the layout that all else is fastest in; it was three quarters of a training step.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIP_PIXELS = 4096
"""For each thread, of the features whose neighbours are laid side by side at once, so that a CPU's caches hold them."""


@torch.library.custom_op(
    "sapnet::kernel_gradient", mutates_args=(), schema="(Tensor features, Tensor gradient, int dilation) -> Tensor"
)
def kernel_gradient(features: Tensor, gradient: Tensor, dilation: int) -> Tensor:
    """The gradient of the kernel of a 3x3 convolution that keeps the size, for each tap a product of matrices.

    One operator to `torch.compile`, which would unroll it.

    Args:
        features: what the convolution read, (B, I, H, W).
        gradient: of what it gave, (B, O, H, W).
        dilation: of the convolution, and its padding.

    Returns:
        (O, I, 3, 3).
    """
    inputs, outputs, height, width = features.shape[1], gradient.shape[1], *features.shape[2:]
    offsets = (-dilation, 0, dilation)
    result = gradient.new_zeros(3, outputs, 3 * inputs)
    strip = max(1, min(height, STRIP_PIXELS * torch.get_num_threads() // width))
    columns = features.new_zeros(strip, width, 3, inputs)  # what the taps of each row see, zero beyond the edges
    for seen, given in zip(features.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)):  # a picture each
        for start in range(0, height, strip):
            stop = min(start + strip, height)
            for tap, offset in enumerate(offsets):
                low, high = max(0, -offset), min(width, width - offset)
                if low < high:
                    columns[: stop - start, low:high, tap] = seen[start:stop, low + offset : high + offset]
            for tap, offset in enumerate(offsets):
                low, high = max(0, start - offset), min(height, stop - offset)  # the rows that see some of these
                if low < high:
                    lines = columns[low + offset - start : high + offset - start].view(-1, 3 * inputs)
                    result[tap].addmm_(given[low:high].flatten(0, 1).t(), lines)
    return result.view(3, outputs, 3, inputs).permute(1, 3, 0, 2).contiguous(memory_format=torch.channels_last)


@kernel_gradient.register_fake
def _(features: Tensor, gradient: Tensor, dilation: int) -> Tensor:
    kernel = gradient.new_empty(gradient.shape[1], features.shape[1], 3, 3)
    return kernel.contiguous(memory_format=torch.channels_last)


class _Convolve(torch.autograd.Function):
    """A convolution whose padding is its dilation."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.dilation = dilation
        return functional.conv2d(features, weight, bias, padding=dilation, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        (gradient,), (features, weight) = gradients, ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        before = None
        if ctx.needs_input_grad[0]:  # a convolution, too
            before = functional.conv2d(gradient, turn(weight), padding=ctx.dilation, dilation=ctx.dilation)
        return before, kernel_gradient(features, gradient, ctx.dilation), gradient.sum(dim=(0, 2, 3)), None


def convolve(features: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """A 3x3 convolution that keeps the size, (B, I, H, W) to (B, O, H, W)."""
    learns = torch.is_grad_enabled() and weight.requires_grad and not torch.is_autocast_enabled(features.device.type)
    if learns and bias is not None and features.device.type == "cpu" and features.dtype == torch.float32:
        return cast(Tensor, _Convolve.apply(features, weight, bias, dilation))
    return functional.conv2d(features, weight, bias, padding=dilation, dilation=dilation)


class Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps the size: an `nn.Conv2d` but for the speed of its gradient."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=dilation, dilation=dilation)

    def forward(self, features: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H, W)."""
        return convolve(features, self.weight, self.bias, self.dilation[0])


def turn(weight: Tensor) -> Tensor:
    """The kernel by which a gradient goes back, turned by half, (O, I, 3, 3) to (I, O, 3, 3)."""
    return weight.flip(2, 3).transpose(0, 1)
