"""The kernels of a network as the engine computes with them, and how attention's scales go into them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.model import native
from sapnet_cli.model.sapnet import DilatedResidualBlock, SAPNet

PROJECT_CHANNELS = 8
"""A convolution to 3 channels takes twice the time of one to 8."""

MOST_BYTES = (2**15 - 1) // 255
"""So many of them add up to a 16-bit integer."""

Padding: TypeAlias = tuple[int, int, int]
"""Rows of zeros above, and below, and columns at either side."""


@dataclass(frozen=True)
class Kernel:
    """A kernel as PyTorch's convolutions take it.

    Attributes:
        weight: (O, I, 3, 3).
        bias: (O,).
        dilation: of the convolution.
    """

    weight: Tensor
    bias: Tensor
    dilation: int = 1

    def convolve(
        self,
        features: Tensor,
        padding: Padding,
        relu: bool = False,
        skip: Tensor | None = None,
        positive: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        """A convolution of (N, I, H, W), and what skips it, if anything: `ReLU(ReLU(convolution) + skip)`, or neither.

        If `positive` is true nothing in `skip` is negative. What comes out, on the device of the kernel, goes into
        `out`, (N, H', W', O), too, if there is such a place.
        """
        rows, around = unpad(features.to(self.weight.dtype), padding)
        result = functional.conv2d(rows, self.weight, self.bias, padding=around, dilation=self.dilation)
        if relu:
            result.relu_()
        if skip is not None:
            result.add_(skip)
            if relu and not positive:
                result.relu_()
        if out is not None:
            out.copy_(result.permute(0, 2, 3, 1))
        return result


@dataclass(frozen=True)
class NativeKernel:
    """A kernel as `native.convolve` takes it.

    Attributes:
        transformed: for tiles of each side, see `native.transform`.
        scale: of the output channels, (O,).
        bias: (O,).
        dilation: of the convolution.
    """

    transformed: dict[int, Tensor]
    scale: Tensor
    bias: Tensor
    dilation: int = 1

    def scaled(self, scale: Tensor | None) -> NativeKernel:
        """The kernel with its output channels scaled, (O,)."""
        return self if scale is None else replace(self, scale=self.scale * scale, bias=self.bias * scale)

    def convolve(
        self, features: Tensor, skip: Tensor | None, out: Tensor, rectangles: native.Rectangles | None
    ) -> None:
        """`ReLU(ReLU(convolution) + skip)` of (N, I, H, W), at the same size: see `native.convolve`."""
        kernel = self._for(*features.shape[2:]), self.scale, self.bias
        native.convolve(features, *kernel, self.dilation, True, skip, out, rectangles)

    def recur(
        self,
        features: Tensor,
        state: Tensor | None,
        cell: Tensor,
        hidden: Tensor,
        rectangles: native.Rectangles | None,
    ) -> None:
        """A step of the LSTM whose gates this is the kernel of, see `native.recur`."""
        native.recur(features, state, self._for(*features.shape[2:]), self.bias, cell, hidden, rectangles)

    def _for(self, height: int, width: int) -> Tensor:
        """The kernel for what gives so many pixels."""
        return self.transformed[native.choose_side(height, width, self.dilation)]


@dataclass(frozen=True)
class NativeEmbedding:
    """A kernel as `native.embed` takes it.

    Attributes:
        weight: (54, O).
        bias: (O,).
    """

    weight: Tensor
    bias: Tensor

    def embed(self, rainy: Tensor, residual: Tensor, out: Tensor) -> None:
        """Rainy image and residual, (N, H, W, 3), into (N, H, W, O)."""
        native.embed(rainy.contiguous(), residual, self.weight, self.bias, out)


@dataclass(frozen=True)
class NativeProjection:
    """A kernel as `native.project` takes it.

    Attributes:
        weight: (3, I, 3, 3).
        bias: (3,).
    """

    weight: Tensor
    bias: Tensor

    def project(self, features: Tensor, out: Tensor) -> None:
        """A convolution of (N, H, W, I) that keeps the size, into (N, H, W, 3)."""
        native.project(features, self.weight, self.bias, out)


Gates: TypeAlias = NativeKernel | tuple[Kernel, Kernel]
"""The LSTM's, see `gates_kernel` where they are computed in C, and else `split_gates`."""


class FusedWeights:
    """The kernels of one network in the layout, precision and place that they are computed in."""

    def __init__(self, model: SAPNet, dtype: torch.dtype, device: torch.device) -> None:
        """Takes a network in float32, on `device`, which it keeps the blocks of, and what features are to lie in."""
        self.model, self.dtype, self.device = model, dtype, device
        # CPUs are slow in halves, but fetch and store them in half of the time
        self.computed_in = torch.float32 if (device.type, dtype) == ("cpu", torch.float16) else dtype
        self._native: dict[nn.Conv2d, NativeKernel] = {}
        self._means: dict[nn.Conv2d, Tensor] = {}

    @property
    def are_native(self) -> bool:
        """Whether all of them are computed in C."""
        width = self.model.config.channels
        return native.suits(width, width, self.device, self.computed_in)

    @cached_property
    def project(self) -> Kernel | NativeProjection:
        """Of the last convolution, for PyTorch to `PROJECT_CHANNELS`."""
        weight, bias = parameters(self.model.project)
        if self.are_native:
            return NativeProjection(weight, bias)
        more = PROJECT_CHANNELS - weight.shape[0]
        weight, bias = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)), functional.pad(bias, (0, more))
        return self.put(weight, bias)

    @property
    def precision(self) -> torch.dtype:
        """What stands for all of it: see `EngineConfig`."""
        return self.dtype

    @cached_property
    def embed(self) -> Kernel | NativeEmbedding:
        """See `embed_kernel`."""
        weight, bias = embed_kernel(self.model)
        return NativeEmbedding(lay_for_means(weight), bias) if self.are_native else self.put(weight, bias)

    @cached_property
    def first_gates(self) -> Gates:
        """Of the LSTM, at the first unit."""
        return self._put_gates(first_unit=True)

    @cached_property
    def gates(self) -> Gates:
        """Of the LSTM, at the others."""
        return self._put_gates(first_unit=False)

    def _put_gates(self, first_unit: bool) -> Gates:
        if self.are_native:
            return self.put_native(*gates_kernel(self.model, first_unit))
        gates, candidate = split_gates(self.model, first_unit)
        return self.put(*gates), self.put(*candidate)

    def ranging(self) -> Ranging:
        """For the forwards over one picture."""
        return Ranging()

    def put(self, weight: Tensor, bias: Tensor, dilation: int = 1) -> Kernel:
        """A kernel, (O, I, 3, 3), and bias, (O,), for PyTorch."""
        layout = torch.channels_last
        weight = weight.to(self.device, self.computed_in).contiguous(memory_format=layout)
        return Kernel(weight, bias.to(self.device, self.computed_in), dilation)

    def put_native(self, weight: Tensor, bias: Tensor, dilation: int = 1) -> NativeKernel:
        """The same to be computed in C."""
        transformed = {side: native.transform(weight, side) for side in native.POINTS}
        return NativeKernel(transformed, torch.ones_like(bias), bias, dilation)

    def means(self, convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """A convolution for means of what its taps see, (9 I, O), and its bias, (O,): see `lay_for_means`."""
        weight, bias = parameters(convolution)
        if convolution not in self._means:
            self._means[convolution] = lay_for_means(weight)
        return self._means[convolution], bias

    def scaled(self, convolution: nn.Conv2d, scale: Tensor | None) -> Kernel | NativeKernel:
        """The kernel of a convolution with attention's scale folded in, (C,), if any."""
        (weight, bias), dilation = parameters(convolution), convolution.dilation[0]
        if self.are_native:
            if convolution not in self._native:
                self._native[convolution] = self.put_native(weight, bias, dilation)
            return self._native[convolution].scaled(scale)
        if scale is not None:
            weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale
        return self.put(weight, bias, dilation)


def lay_for_means(weight: Tensor) -> Tensor:
    """A kernel, (O, I, 3, 3), as a matrix, (9 I, O), whose rows follow each other as in (3, 3, I)."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def parameters(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias as they are in the network."""
    return convolution.weight.detach(), cast(Tensor, convolution.bias).detach()


def residual_blocks(model: SAPNet) -> list[DilatedResidualBlock]:
    """The blocks of a unit, in order."""
    return [cast(DilatedResidualBlock, block) for block in model.blocks]


def embed_kernel(model: SAPNet) -> tuple[Tensor, Tensor]:
    """The embedding's weight and bias for the rainy image in 255ths and for what the last estimate adds to it.

    Half precision holds both better than two images in [0, 1]: bytes are exact in bf16, and the difference is small.
    """
    weight, bias = parameters(model.embed)
    rainy, estimate = weight.chunk(2, dim=1)
    return torch.cat(((rainy + estimate) / 255, estimate), dim=1), bias


def gates_kernel(model: SAPNet, first_unit: bool) -> tuple[Tensor, Tensor]:
    """Weight and bias of the LSTM's gates: input, candidate, output, forget.

    At the first unit the state is zero, so half of their input and the forget gate drop out: see `SAPNet.lstm`.
    """
    weight, bias = parameters(model.gates)
    width = model.config.channels
    return (weight[: 3 * width, :width], bias[: 3 * width]) if first_unit else (weight, bias)


def split_gates(model: SAPNet, first_unit: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The gates that pass a sigmoid (input, output, forget), apart from the candidate, which passes a tanh."""
    weight, bias = gates_kernel(model, first_unit)
    gate_in, candidate, *others = zip(*(torch.split(each, model.config.channels) for each in (weight, bias)))
    weights, biases = zip(gate_in, *others)
    return (torch.cat(weights), torch.cat(biases)), candidate


def sum_rows(values: Tensor) -> Tensor:
    """(rows, W, C) to (W, C) in float32.

    Each thread first sums rows that it had written itself: what another core wrote comes slowly.
    """
    rows = values.flatten(1)
    threads = torch.get_num_threads()
    groups = threads * math.ceil(len(rows) / (threads * MOST_BYTES))
    each = len(rows) // groups
    own, rest = rows[: groups * each], rows[groups * each :]
    wide = torch.float32
    if rows.dtype == torch.uint8:  # torch sums bytes slowly
        own, wide = own.to(torch.int16), torch.int16
    elif rows.dtype == torch.bfloat16 and rows.device.type == "cpu":
        wide = torch.bfloat16  # it sums in float32 anyway; to widen would take a pass, and one rounding is no matter
    total = own.view(groups, each, rows.shape[1]).sum(dim=1, dtype=wide).sum(dim=0, dtype=torch.float32)
    return total.add_(rest.sum(dim=0, dtype=torch.float32)).view(values.shape[1:])


def unpad(features: Tensor, padding: Padding, zero: int = 0) -> tuple[Tensor, tuple[int, int]]:
    """Features with the rows that PyTorch cannot pad, which adds as many above as below, and the padding left to it.

    `zero` is what stands for zero.
    """
    above, below, beside = padding
    least = min(above, below)
    if above != below:
        features = functional.pad(features, (0, 0, above - least, below - least), value=zero)
    return features, (least, beside)


class Ranging:
    """What the forwards over one picture agree on from unit to unit: in floating point nothing."""

    def next_unit(self) -> None:
        """All of the picture has passed a unit."""

    def fork(self) -> Ranging:
        """The same so far, for windows that are not to be counted."""
        return self
