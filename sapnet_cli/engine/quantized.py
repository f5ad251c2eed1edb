"""The fused network with convolutions of 8-bit integers, for CPUs that multiply bytes.

With VNNI they run at twice the rate of those in bf16, with AVX2 alone at nearly twice that of those in fp32.

What a convolution reads are unsigned bytes with one step a plane, kernels are signed bytes with one step an output
channel, and what it sums is exact (int32) and rounded once. Attention scales output channels, so it goes into their
steps. What passes the LSTM's gates, and what skips a block, stays floating point: there errors would add up.

What a byte stands for follows the picture: a unit's largest value and some headroom make the range of the next unit.
The first unit's comes from noise, which the network answers with larger values than a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.engine.forward import Ranging
from sapnet_cli.engine.fused import FusedForward
from sapnet_cli.engine.hardware import sums_bytes_exactly
from sapnet_cli.engine.kernels import (
    FusedWeights,
    Kernel,
    Padding,
    embed_kernel,
    parameters,
    residual_blocks,
    unpad,
)
from sapnet_cli.engine.planes import Room, Strip
from sapnet_cli.model.native import lay_for_means
from sapnet_cli.model.sapnet import DilatedResidualBlock, SAPNet

LEVELS = 255

HIDDEN_STEP, HIDDEN_ZERO = 1 / 127, 128
"""The hidden state lies within (-1, 1)."""

_ZERO, _HALF = torch.tensor(0.0), torch.tensor(0.5)

CACHED_VALUES = 2**23
"""As many features as passes that follow one another take at once."""

HEADROOM, LEAST_RANGE = 1.25, 1 / 8
"""By how much the next unit may exceed this one; the share of the first unit's range that no range shrinks below."""


@dataclass(frozen=True)
class Bytes:
    """Features (N, C, H, W) as unsigned bytes, each of which stands for `(byte - zero) * step`."""

    values: Tensor
    step: float
    zero: int = 0


@dataclass(frozen=True)
class ByteKernel:
    """A kernel in signed bytes, as oneDNN lays them out.

    Attributes:
        packed: the bytes.
        steps: what a byte of each output channel stands for, (O,).
        bias: (O,), float32.
        zeros: of the kernel's bytes, all 0, (O,).
        lost: what rounding took from the kernel, (O, I, 3, 3).
        dilation: of the convolution.
    """

    packed: Tensor
    steps: Tensor
    bias: Tensor
    zeros: Tensor
    lost: Tensor
    dilation: int = 1

    def scaled(self, scale: Tensor | None) -> ByteKernel:
        """The kernel with its output channels scaled, (C,)."""
        return self if scale is None else replace(self, steps=self.steps * scale, bias=self.bias * scale)

    def shifted(self, bias: Tensor) -> ByteKernel:
        """The kernel with something added to its bias, (C,)."""
        return replace(self, bias=self.bias + bias)

    def convolve(self, source: Bytes, padding: Padding, dtype: torch.dtype, relu: bool = False) -> Tensor:
        """The convolution, in a floating point."""
        return self._run(source, padding, 1.0, dtype, relu)

    def convolve_to_bytes(self, source: Bytes, padding: Padding, step: float) -> Tensor:
        """`ReLU(convolution) / step`, rounded and cut to unsigned bytes."""
        return self._run(source, padding, step, torch.uint8, relu=True)

    def _run(self, source: Bytes, padding: Padding, step: float, dtype: torch.dtype, relu: bool) -> Tensor:
        values, around = unpad(source.values, padding, source.zero)
        result = torch.ops.onednn.qconv2d_pointwise(
            *(values, source.step, source.zero),
            *(self.packed, self.steps, self.zeros, self.bias),
            *([1, 1], list(around), [self.dilation, self.dilation], 1),
            *(step, 0, dtype, "relu" if relu else "none", [], ""),
        )
        return cast(Tensor, result)


def pack(weight: Tensor, bias: Tensor, dilation: int = 1) -> ByteKernel:
    """Rounds a kernel (O, I, 3, 3) to bytes."""
    largest = weight.abs().amax(dim=(1, 2, 3))
    if not sums_bytes_exactly():
        # products of neighbouring channels are summed in 16 bits first, which hold 255 times 128
        even = functional.pad(weight, (0, 0, 0, 0, 0, weight.shape[1] % 2))
        for part in (even.clamp_min(0), -even.clamp_max(0)):
            largest = torch.maximum(largest, (part[:, ::2] + part[:, 1::2]).amax(dim=(1, 2, 3)))
    steps = (largest / 127).clamp_min(1e-12)
    rounded = (weight / steps.view(-1, 1, 1, 1)).round().to(torch.int8)
    around = ([1, 1], [dilation, dilation], [dilation, dilation], 1)
    packed = torch.ops.onednn.qconv_prepack(rounded, steps, 1.0, 0, *around, None)
    lost = weight - rounded * steps.view(-1, 1, 1, 1)
    return ByteKernel(packed, steps, bias.float(), torch.zeros(len(steps), dtype=torch.int32), lost, dilation)


@dataclass(frozen=True)
class Ranges:
    """The largest values that bytes have to hold: of the embedding's channels, (C,), within and between blocks."""

    embedded: Tensor
    inner: tuple[float, ...]
    features: float

    @classmethod
    @torch.inference_mode()
    def of_noise(cls, model: SAPNet) -> Ranges:
        """What a network in float32, on a CPU, makes of noise."""
        seen: list[Tensor] = []
        modules = [*(block.conv2 for block in residual_blocks(model)), model.project, model.gates]
        hooks = [module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for module in modules]
        try:
            model.stage_images(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 2)
        finally:
            for hook in hooks:
                hook.remove()
        # the first unit computes its gates without the module
        *inner, features, embedded = seen[: len(modules)]
        channels = embedded[:, : model.config.channels].amax(dim=(0, 2, 3))
        least = max(LEAST_RANGE * float(channels.amax()), 1e-6)
        return cls(channels.clamp_min(least), tuple(map(_largest, inner)), _largest(features))

    def next(self, embedded: Tensor, inner: Sequence[float], features: float) -> Ranges:
        """The ranges of a unit after one whose values were at most so large; `self` is those of the first."""
        return Ranges(
            torch.maximum(embedded * HEADROOM, self.embedded * LEAST_RANGE),
            tuple(max(value * HEADROOM, least * LEAST_RANGE) for value, least in zip(inner, self.inner)),
            max(features * HEADROOM, self.features * LEAST_RANGE),
        )


class ByteRanging(Ranging):
    """The ranges of a unit, and the largest values that its windows had so far."""

    def __init__(self, first: Ranges, current: Ranges | None = None) -> None:
        """Takes the ranges of the first unit, and of the current one."""
        self._first, self.current = first, current or first
        self._forget()

    def _forget(self) -> None:
        self._embedded, self._features = torch.zeros_like(self._first.embedded), 0.0
        self._inner = [0.0] * len(self._first.inner)

    def see_embedded(self, largest: Tensor) -> None:
        """The embedding's channels had values up to these, (C,)."""
        self._embedded = torch.maximum(self._embedded, largest)

    def see_inner(self, index: int, largest: float) -> None:
        """Within a block there were values up to this."""
        self._inner[index] = max(self._inner[index], largest)

    def see_features(self, largest: float) -> None:
        """Between blocks there were values up to this."""
        self._features = max(self._features, largest)

    def next_unit(self) -> None:
        """See `Ranges.next`."""
        self.current = self._first.next(self._embedded, self._inner, self._features)
        self._forget()

    def fork(self) -> ByteRanging:
        """With the same ranges in the current unit."""
        return ByteRanging(self._first, self.current)


def _largest(values: Tensor) -> float:
    return max(float(values.amax()), 1e-6)


class QuantizedWeights(FusedWeights):
    """The kernels of one network in bytes; `dtype` is that of the rest."""

    def __init__(self, model: SAPNet, dtype: torch.dtype, device: torch.device) -> None:
        """Takes a network in float32 on a CPU."""
        super().__init__(model, dtype, device)
        self.convolutions: dict[nn.Conv2d, ByteKernel] = {
            convolution: pack(*parameters(convolution), dilation=convolution.dilation[0])
            for block in residual_blocks(model)
            for convolution, _ in block.layers
        }
        self.lost = {
            convolution: (lay_for_means(kernel.lost), torch.zeros(len(kernel.lost)))
            for convolution, kernel in self.convolutions.items()
        }
        """What rounding took from each convolution, as `means` gives what is left."""
        self.project = replace(self.project, weight=self.project.weight * 2)  # of features that are stored as halves
        self.ranges = Ranges.of_noise(model)

    @property
    def precision(self) -> str:
        """Of the convolutions."""
        return "int8"

    def ranging(self) -> ByteRanging:
        """For the forwards over one picture."""
        return ByteRanging(self.ranges)

    def embed_in(self, steps: Tensor) -> Kernel:
        """The embedding's kernel, to give features in units of their channels' steps, (C,), less 128.

        It stays in float32: six channels cost little, and what they lose is lost to all that follows.
        """
        weight, bias = embed_kernel(self.model)
        in_steps = (weight / steps.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        return Kernel(in_steps, bias / steps - 128)

    def gates_from(self, steps: Tensor, first_unit: bool) -> ByteKernel:
        """The gates' kernel, its candidate doubled, for bytes of the embedding and the hidden state.

        At the first unit it is without the gate that forgets, and without the state. `steps` are those of the
        embedding's channels, (C,).
        """
        width = self.model.config.channels
        weight, bias = parameters(self.model.gates)  # input, candidate, output, forget
        if first_unit:
            weight, bias = weight[: 3 * width, :width], bias[: 3 * width]
        seen = torch.cat((steps, torch.full((weight.shape[1] - width,), HIDDEN_STEP)))
        weight = weight * seen.view(1, -1, 1, 1)
        # a convolution knows one zero for all its input; that of the hidden state is a constant for each output
        kernel = pack(weight, bias)
        offset = (weight - kernel.lost)[:, width:].sum(dim=(1, 2, 3)) * HIDDEN_ZERO
        twice = torch.ones_like(bias)
        twice[width : 2 * width] = 2
        return kernel.shifted(-offset).scaled(twice)


class QuantizedForward(FusedForward):
    """A `FusedForward` whose convolutions read bytes. What skips a block stays in floating point.

    The sums that attention needs also mend the mean that rounded kernels shift: it is pooled as those are.
    """

    weights: QuantizedWeights
    ranging: ByteRanging
    features: Tensor

    def _make_planes(self, shape: tuple[int, ...], room: Room) -> None:
        self.hidden, self.spare = (room.take(shape, torch.uint8) for _ in range(2))
        self.cell, self.features = (room.take(shape, self.weights.dtype) for _ in range(2))
        if not self.whole:
            self.inner = room.take(shape, torch.uint8)
        pictures = shape[0] if self.whole else 1  # of a strip
        self._cached_rows = max(1, CACHED_VALUES // (pictures * shape[2] * shape[3]))

    def _remember(self, first_unit: bool) -> None:
        """As that of the base. Leaves the hidden state in bytes, for convolutions, and halved, for the first skip."""
        self._begin(self._modules[0].conv1)
        steps = self.ranging.current.embedded / LEVELS
        embed, gates = self.weights.embed_in(steps), self.weights.gates_from(steps, first_unit)
        width = len(steps)
        border = torch.zeros(width if first_unit else 2 * width, dtype=torch.uint8)
        border[width:] = HIDDEN_ZERO
        largest = torch.full((width,), -128.0)
        for strip in self.lstm_strips:
            (low, high), edges = self._inside(strip.start - 1, strip.stop + 1)
            embedded = embed.convolve(*self._images(strip, low - 1, high + 1, torch.float32)).permute(0, 2, 3, 1)
            seen, inside = _framed(embedded, border, edges)
            rows, columns = self.cores[strip.picture or 0]
            counted = embedded[0, max(0, rows.start - low) : max(0, rows.stop - low)]  # a window's edge is no picture's
            if len(counted):
                largest = torch.maximum(largest, counted.amax(dim=0)[columns].amax(dim=0))
            _to_bytes(embedded.clamp_(-128, 127), inside[..., :width])
            if not first_unit:
                inside[..., width:].copy_(strip.rows(self.hidden, low, high))
            gated = gates.convolve(Bytes(self._channels_first(seen), 1.0), (0, 0, 0), self.weights.dtype)
            half = self._recur_by_halves(gated.permute(0, 2, 3, 1), strip)
            self._collect(half, strip, 2)
            _to_bytes(half * (2 / HIDDEN_STEP), strip.of(self.spare))
        self.ranging.see_embedded((largest + 128) * steps)
        self.hidden, self.spare = self.spare, self.hidden

    def _recur_by_halves(self, gates: Tensor, strip: Strip) -> Tensor:
        """Half of the hidden state, into the features, from what the gates' convolution gave.

        tanh(x) = 2 sigmoid(2x) - 1, in a third of the time; so the cell state is stored twofold. It is off by half a
        step of the hidden state's bytes, and so is good enough here only.
        """
        width = self.weights.model.config.channels
        gate_in, candidate, gate_out, *forget = torch.split(gates.sigmoid_(), width, dim=3)
        cell = strip.of(self.cell)
        candidate.sub_(0.5)
        if forget:
            cell.mul_(forget[0]).addcmul_(gate_in, candidate, value=4)
        else:
            torch.addcmul(_ZERO, gate_in, candidate, value=4, out=cell)
        return torch.mul(torch.sigmoid(cell).sub_(0.5), gate_out, out=strip.of(self.features))

    def _block(self, index: int, features: Tensor) -> Tensor:
        """As that of the base. Takes and gives bytes; `self.features`, halved, are what skips and what is projected."""
        block, following = self._modules[index], self._followings[index]
        ranges = self.ranging.current
        step = ranges.features / LEVELS
        inner = self._enter(index, block, features, *((step, 0) if index else (HIDDEN_STEP, HIDDEN_ZERO)))
        kernel = self._kernel(block.conv2, block.attention2).scaled(_HALF)
        self._begin(following)
        largest = 0
        for strip in self.strips:
            rows, padding = self._around(inner, strip, kernel.dilation)
            source = Bytes(rows, ranges.inner[index] / LEVELS)
            added = kernel.convolve(source, padding, self.weights.dtype, relu=True).permute(0, 2, 3, 1)
            for part, these in strip.parts(self._cached_rows):
                values = part.of(self.features).add_(added[:, these])
                if index == 0:
                    values.relu_()  # from the first block on nothing is negative
                if following is not None:
                    target = part.of(self.spare)  # the old hidden state, which nothing needs any more
                    levels = (values * (2 / step)).round_().to(torch.int16)  # five times as fast as to uint8
                    highest = int(levels.amax())
                    target.copy_(levels.clamp_(max=LEVELS) if highest > LEVELS else levels)
                    largest = max(largest, highest)
                    self._collect(target, part, step)
        self.ranging.see_features(largest * step)
        return self.features if following is None else self.spare

    def _enter(self, index: int, block: DilatedResidualBlock, features: Tensor, step: float, zero: int) -> Tensor:
        """The first convolution of a block, from bytes to bytes."""
        kernel = self._kernel(block.conv1, block.attention1)
        self._begin(block.conv2)
        inner_step, largest = self.ranging.current.inner[index] / LEVELS, 0
        for strip in self.strips:
            rows, padding = self._around(features, strip, kernel.dilation)
            values = kernel.convolve_to_bytes(Bytes(rows, step, zero), padding, inner_step).permute(0, 2, 3, 1)
            self._collect(values, strip, inner_step)
            largest = max(largest, int(values.amax()))
            if self.whole:
                self.inner = values
            else:
                strip.of(self.inner).copy_(values)
        self.ranging.see_inner(index, largest * inner_step)
        return self.inner

    def _kernel(self, convolution: nn.Conv2d, attention: nn.Module | None) -> ByteKernel:
        """With attention folded in, and without the shift that the rounding of the kernel gives the mean."""
        kernel = self.weights.convolutions[convolution]
        scale = self._attend(convolution, attention)
        if self._dilation is not None:
            kernel = kernel.shifted(self._pool_of(self._means_of(*self.weights.lost[convolution]), self._areas))
        return kernel.scaled(scale)


def _framed(values: Tensor, border: Tensor, rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Room for bytes of as many pixels as (N, H, W, C) has, and a border around them; and what lies within it.

    The border, (C',), is a column wide, and as many rows high above and below as `rows` says.
    """
    count, height, width = values.shape[:3]
    framed = border.new_empty(count, height + sum(rows), width + 2, len(border))
    stop = rows[0] + height
    for side in (framed[:, :, 0], framed[:, :, -1], framed[:, : rows[0]], framed[:, stop:]):
        side.copy_(border)
    return framed, framed[:, rows[0] : stop, 1:-1]


def _to_bytes(values: Tensor, target: Tensor) -> None:
    """Values in [-128, 127], which are overwritten, to bytes of 128 more; six times as fast as torch is to uint8."""
    target.view(torch.int8).copy_(values.round_())
    target.bitwise_xor_(128)
