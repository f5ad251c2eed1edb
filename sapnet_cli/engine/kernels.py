"""The kernels of a network as the engine computes with them, and how attention's scales go into them."""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.model.sapnet import DilatedResidualBlock, SAPNet

Kernel: TypeAlias = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""

PROJECT_CHANNELS = 8
"""A convolution to 3 channels takes twice the time of one to 8."""


class FusedWeights:
    """The kernels of one network in the layout, precision and place that they are computed in."""

    def __init__(self, model: SAPNet, dtype: torch.dtype, device: torch.device) -> None:
        """Takes a network in float32, on `device`, which it keeps the blocks of."""
        self.model, self.dtype, self.device = model, dtype, device
        weight, bias = parameters(model.project)
        more = PROJECT_CHANNELS - weight.shape[0]
        self.project = self.put(functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)), functional.pad(bias, (0, more)))

    @property
    def precision(self) -> torch.dtype:
        """Of the convolutions."""
        return self.dtype

    @cached_property
    def embed(self) -> Kernel:
        """See `embed_kernel`."""
        return self.put(*embed_kernel(self.model))

    @cached_property
    def first_gates(self) -> list[Kernel]:
        """See `split_gates`, at the first unit."""
        return [self.put(*kernel) for kernel in split_gates(self.model, first_unit=True)]

    @cached_property
    def gates(self) -> list[Kernel]:
        """See `split_gates`, at the others."""
        return [self.put(*kernel) for kernel in split_gates(self.model, first_unit=False)]

    def ranging(self) -> Ranging:
        """For the forwards over one picture."""
        return Ranging()

    def put(self, weight: Tensor, bias: Tensor) -> Kernel:
        """A kernel as convolutions here want it."""
        layout = torch.channels_last
        return weight.to(self.device, self.dtype).contiguous(memory_format=layout), bias.to(self.device, self.dtype)

    def scaled(self, convolution: nn.Conv2d, scale: Tensor | None) -> Kernel:
        """A kernel with attention's scale folded in, (C,), if any."""
        weight, bias = parameters(convolution)
        return self.put(weight, bias) if scale is None else self.put(weight * scale.view(-1, 1, 1, 1), bias * scale)


def parameters(convolution: nn.Conv2d) -> Kernel:
    """As they are in the network."""
    return convolution.weight.detach(), cast(Tensor, convolution.bias).detach()


def residual_blocks(model: SAPNet) -> list[DilatedResidualBlock]:
    """The blocks of a unit, in order."""
    return [cast(DilatedResidualBlock, block) for block in model.blocks]


def embed_kernel(model: SAPNet) -> Kernel:
    """The embedding's kernel for the rainy image in 255ths and for what the last estimate adds to it.

    Half precision holds both better than two images in [0, 1]: bytes are exact in bf16, and the difference is small.
    """
    weight, bias = parameters(model.embed)
    rainy, estimate = weight.chunk(2, dim=1)
    return torch.cat(((rainy + estimate) / 255, estimate), dim=1), bias


def split_gates(model: SAPNet, first_unit: bool) -> tuple[Kernel, Kernel]:
    """The gates that pass a sigmoid (input, output, forget), apart from the candidate, which passes a tanh.

    At the first unit the state is zero, so half of their input and the forget gate drop out: see `SAPNet.lstm`.
    """
    width = model.config.channels
    seen = width if first_unit else 2 * width
    weights, biases = (torch.split(each, width) for each in parameters(model.gates))
    gates = (0, 2) if first_unit else (0, 2, 3)
    weight, bias = (torch.cat([each[gate] for gate in gates]) for each in (weights, biases))
    return (weight[:, :seen], bias), (weights[1][:, :seen], biases[1])


class Ranging:
    """What the forwards over one picture agree on from unit to unit: in floating point nothing."""

    def next_unit(self) -> None:
        """All of the picture has passed a unit."""

    def fork(self) -> Ranging:
        """The same so far, for windows that are not to be counted."""
        return self
