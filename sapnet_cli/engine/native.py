"""The fused network in C, where it is compiled: see `model/native.py`.

All rows go in one pass, not in strips: tiles are rows a dilation apart, and would reach far beyond a low strip.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from sapnet_cli.engine.fused import PLANES, FusedForward
from sapnet_cli.engine.kernels import (
    FusedWeights,
    embed_kernel,
    gates_kernel,
    parameters,
    residual_blocks,
)
from sapnet_cli.engine.planes import Room
from sapnet_cli.model import matrices, native
from sapnet_cli.model.convolution import lay_for_means
from sapnet_cli.model.sapnet import ChannelResidualAttention, SAPNet


class NativeKernel:
    """A convolution as `native.convolve` takes it, or the gates of an LSTM as `native.recur` does.

    Attributes:
        bias: (O,).
        dilation: of the convolution.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1, laid: Tensor | None = None) -> None:
        """Takes a kernel, (O, I, 3, 3), and what `matrices.py` makes of it, if it is to be taken."""
        self.bias, self.dilation, self._weight, self._laid = bias, dilation, weight, laid
        sides = native.POINTS if laid is None else ()
        self._transformed = {side: native.transform(weight, side) for side in sides}

    @cached_property
    def for_means(self) -> Tensor:
        """See `lay_for_means`."""
        return lay_for_means(self._weight)

    def transformed(self, plane: Tensor) -> Tensor:
        """For tiles of the side that takes least time by a plane of this size, (N, H, W, C); or as it is laid."""
        if self._laid is not None:
            return self._laid
        return self._transformed[native.choose_side(plane.shape[1], plane.shape[2], self.dilation)]


class NativeWeights(FusedWeights):
    """The kernels of one network as C takes them; `dtype` is what planes are of."""

    def __init__(self, model: SAPNet, dtype: torch.dtype, device: torch.device) -> None:
        """Takes a network in float32 that is computed so: see `is_native`."""
        super().__init__(model, dtype, device)
        weight, bias = embed_kernel(model)
        self.embedding = lay_for_means(weight), bias
        multiplies = matrices.are_multiplied(model.config.channels, dtype)
        if multiplies:
            weight, bias = gates_kernel(model, first_unit=False)
            self.first_step = self.step = NativeKernel(weight, bias, laid=matrices.lay_gates(weight))
        else:
            self.first_step, self.step = (NativeKernel(*gates_kernel(model, first)) for first in (True, False))
        weight, bias = parameters(model.project)
        self.projection = matrices.lay_image(weight) if multiplies else weight.permute(2, 3, 0, 1).contiguous(), bias
        self.convolutions: dict[nn.Conv2d, NativeKernel] = {}
        self.attention: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = {}
        for block in residual_blocks(model):
            for convolution, attention in block.layers:
                weight, bias = parameters(convolution)
                laid = matrices.lay(weight) if multiplies else None
                self.convolutions[convolution] = NativeKernel(weight, bias, convolution.dilation[0], laid)
                if attention is not None:
                    self.attention[attention] = lay_attention(attention)


def is_native(model: SAPNet, device: torch.device, precision: torch.dtype) -> bool:
    """Whether all of a network can be computed so, here, and is to be."""
    width = model.config.channels
    return precision in native.PLANES and native.suits(width, width, device, torch.float32)


def lay_attention(attention: ChannelResidualAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Its matrices as `native.attend` takes them."""
    direct, squeeze, expand = (
        layer.weight.detach().flatten(1) for layer in (attention.direct, attention.squeeze, attention.expand)
    )
    return direct.t().contiguous(), squeeze.contiguous(), expand.t().contiguous()


class NativeForward(FusedForward):
    """A `FusedForward` in C."""

    weights: NativeWeights
    _pooled: native.Pooled | None

    def _make_planes(self, shape: tuple[int, ...], room: Room) -> None:
        self.hidden, self.spare, self.cell, self.inner = (room.take(shape, self.weights.dtype) for _ in range(PLANES))

    def _begin(self, following: nn.Conv2d | None) -> None:
        self._pooled = None
        if following is not None and self.weights.model.config.attention:
            kernel = self.weights.convolutions[following]
            means = torch.empty(self.count, len(kernel.bias))
            self._pooled = native.Pooled(means, self._edges, kernel.for_means, kernel.bias, kernel.dilation)

    def _remember(self, first_unit: bool, following: nn.Conv2d) -> None:
        self._begin(following)
        native.embed(self.rainy, self.residual, *self.weights.embedding, self.inner)
        kernel = self.weights.first_step if first_unit else self.weights.step
        state = None if first_unit else (self.hidden, self.cell)
        gates = kernel.transformed(self.inner), kernel.bias
        # not over the old state, whose neighbours still need it
        native.recur(self.inner, state, *gates, self.spare, self.cell, self._pooled)
        self.hidden, self.spare = self.spare, self.hidden

    def _convolve(
        self,
        convolution: nn.Conv2d,
        attention: nn.Module | None,
        source: Tensor,
        target: Tensor,
        following: nn.Conv2d | None,
        skip: Tensor | None = None,
        positive: bool = True,
    ) -> Tensor:
        kernel = self.weights.convolutions[convolution]
        scale, bias = self._scaled(kernel.bias, attention)
        self._begin(following)
        # what skips may lie in the target, as each pixel is read before it is written
        kernel_in = kernel.transformed(source), scale, bias, kernel.dilation
        return native.convolve(source, *kernel_in, relu=True, skip=skip, out=target, pooled=self._pooled)

    def _scaled(self, bias: Tensor, attention: nn.Module | None) -> tuple[Tensor, Tensor]:
        """What attention scales a convolution by, (C,), and its bias, scaled."""
        if attention is None:
            return torch.ones_like(bias), bias
        vector = self._vector_of(cast(native.Pooled, self._pooled).means)
        return native.attend(vector, *self.weights.attention[attention], bias)

    def _project(self, features: Tensor) -> None:
        native.project(features, *self.weights.projection, self.residual)
