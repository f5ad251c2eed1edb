"""The kernels of a network as the engine computes with them, and how attention's scales go into them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.engine.forward import Ranging
from sapnet_cli.model.arrays import name_of
from sapnet_cli.model.native import lay_for_means
from sapnet_cli.model.sapnet import DilatedResidualBlock, SAPNet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
"""Of `hardware.PRECISIONS`."""

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


class FusedWeights:
    """The kernels of one network in the layout, precision and place that they are computed in."""

    def __init__(self, model: SAPNet, dtype: torch.dtype, device: torch.device) -> None:
        """Takes a network in float32, on `device`, which it keeps the blocks of, and what features are to lie in."""
        self.model, self.dtype, self.device = model, dtype, device
        # CPUs are slow in halves, but fetch and store them in half of the time
        self.computed_in = torch.float32 if (device.type, dtype) == ("cpu", torch.float16) else dtype
        self._means: dict[nn.Conv2d, Tensor] = {}

    @cached_property
    def project(self) -> Kernel:
        """Of the last convolution, to `PROJECT_CHANNELS`."""
        weight, bias = parameters(self.model.project)
        more = PROJECT_CHANNELS - weight.shape[0]
        weight, bias = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)), functional.pad(bias, (0, more))
        return self.put(weight, bias)

    @property
    def precision(self) -> str:
        """What stands for all of it: see `EngineConfig`."""
        return name_of(self.dtype)

    @cached_property
    def embed(self) -> Kernel:
        """See `embed_kernel`."""
        return self.put(*embed_kernel(self.model))

    @cached_property
    def first_gates(self) -> tuple[Kernel, Kernel]:
        """Of the LSTM, at the first unit: see `split_gates`."""
        return self._put_gates(first_unit=True)

    @cached_property
    def gates(self) -> tuple[Kernel, Kernel]:
        """Of the LSTM, at the others."""
        return self._put_gates(first_unit=False)

    def _put_gates(self, first_unit: bool) -> tuple[Kernel, Kernel]:
        gates, candidate = split_gates(self.model, first_unit)
        return self.put(*gates), self.put(*candidate)

    def ranging(self) -> Ranging:
        """For the forwards over one picture."""
        return Ranging()

    def put(self, weight: Tensor, bias: Tensor, dilation: int = 1) -> Kernel:
        """A kernel, (O, I, 3, 3), and bias, (O,)."""
        layout = torch.channels_last
        weight = weight.to(self.device, self.computed_in).contiguous(memory_format=layout)
        return Kernel(weight, bias.to(self.device, self.computed_in), dilation)

    def means(self, convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """A convolution for means of what its taps see, (9 I, O), and its bias, (O,): see `lay_for_means`."""
        weight, bias = parameters(convolution)
        if convolution not in self._means:
            self._means[convolution] = lay_for_means(weight)
        return self._means[convolution], bias

    def scaled(self, convolution: nn.Conv2d, scale: Tensor | None) -> Kernel:
        """The kernel of a convolution with attention's scale folded in, (C,), if any."""
        (weight, bias), dilation = parameters(convolution), convolution.dilation[0]
        if scale is not None:
            weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale
        return self.put(weight, bias, dilation)


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
