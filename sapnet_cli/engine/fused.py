"""The network as the engine runs it: attention folded into the kernels, one layer after another over whole planes.

Channel residual attention scales what a convolution gives by a function of its mean over the plane. That mean is a
linear function of the convolution's *input*: of the sums over the nine rectangles that its taps see. So the scale `s`
is known before the convolution runs and goes into its kernels, and since `s > 0` it passes through the ReLU as well:

    ReLU(s * (W x + b)) = ReLU((s W) x + s b)

What is left of attention is one read of each plane instead of five passes over it. The planes may be held whole or
worked on in strips of rows, which gives the same result, at any size, for the price of storing four of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from sapnet_cli.engine.forward import Cores, Forward, Ranging
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.kernels import (
    FusedWeights,
    Kernel,
    Padding,
    residual_blocks,
    sum_rows,
)
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.engine.planes import PLANES, Room, Strip, choose_place, stored_bytes
from sapnet_cli.engine.progress import Report
from sapnet_cli.engine.tensors import finite, to_float, to_pixels

Pool: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""See `FusedForward`."""

WHOLE_BYTES = {"cpu": 2**25, "cuda": 2**28}
"""Planes of features up to this size are worked on whole, for twice the memory; larger ones, which a CPU's caches do
not hold, in strips."""

STRIP_BYTES = {"cpu": 2**23, "cuda": 2**27}
LSTM_BYTES = {"cpu": 2**22, "cuda": 2**27}
"""Features of a strip, of the wide and short-lived ones of the LSTM fewer: so that a CPU's caches hold them."""


class FusedForward(Forward[Tensor]):
    """One forward by PyTorch, over one picture, or over windows that share their statistics."""

    spare: Tensor
    inner: Tensor

    def __init__(
        self,
        weights: FusedWeights,
        rainy: Tensor,
        cores: Cores | None = None,
        pool: Pool | None = None,
        ranging: Ranging | None = None,
        room: Room | None = None,
        *,
        insistence: Insistence | None = None,
    ) -> None:
        """Makes room.

        Args:
            weights: of the network.
            rainy: (N, H, W, 3), uint8, or float32 in [0, 1], wherever there is room for it.
            cores: rows and columns of each window that count in the pools; None for all of them.
            pool: turns the mean over each core, (N, C), and the cores' areas, (N,), into the vector to pool to, (C,);
                None takes the mean over all of them, `average`.
            ranging: of the picture that these are windows of; None for its own.
            room: where the planes go, if not into room of their own; the forward that had it before is over.
            insistence: moves what attention pools; other windows of the picture may go on with it.

        Raises:
            OutOfMemoryError: the planes fit neither into memory nor onto the disk that holds temporary files.
        """
        blocks = residual_blocks(weights.model)
        super().__init__(rainy.shape, len(blocks), cores, pool, insistence)
        self.weights, self.rainy = weights, rainy
        self._modules, self._followings = blocks, [*(block.conv1 for block in blocks[1:]), None]
        self.ranging = ranging or weights.ranging()
        device, channels = weights.device, weights.model.config.channels
        pixels = self.count * self.height * self.width
        kind = device.type if device.type in WHOLE_BYTES else "cuda"
        pixel = channels * weights.dtype.itemsize
        self.whole = whole = pixels * pixel <= WHOLE_BYTES[kind]
        self.strips = [Strip(None, 0, self.height)] if whole else list(self._cut(STRIP_BYTES[kind] // pixel))
        self.lstm_strips = list(self._cut(LSTM_BYTES[kind] // pixel))
        place = choose_place(stored_bytes(channels, weights.precision, pixels), device)
        self.residual = torch.zeros(self.count, self.height, self.width, 3, device=str(place or "cpu"))
        room = room or Room()
        room.begin(place)
        self._make_planes((self.count, self.height, self.width, channels), room)
        self._dilation: int | None = None
        self._columns: Tensor | None = None
        self._rectangles: Tensor | None = None
        _, areas = self._find_edges()
        self._areas = torch.from_numpy(areas).to(self.weights.device)

    def _make_planes(self, shape: tuple[int, ...], room: Room) -> None:
        # whole, convolutions give planes of their own, and need no fourth
        planes = [room.take(shape, self.weights.dtype) for _ in range(PLANES - self.whole)]
        self.hidden, self.spare, self.cell, self.inner = *planes[:3], planes[-1]

    def run(self, stages: int, report: Report | None = None) -> Tensor:
        """The estimate after `stages` units, not clamped: (N, 3, H, W), float32.

        `report` is told of the progress, 0 to 1.
        """
        self.units(stages, report)
        return self.estimate()

    @torch.inference_mode()
    def unit(self, number: int, report: Report | None = None) -> None:
        """One progressive dilated unit, counted from 0; the first ignores what is carried."""
        super().unit(number, report)

    @torch.inference_mode()
    def pixels(self, dtype: np.dtype[Any]) -> list[Pixels]:
        """The estimate after the last unit as pictures of a dtype. No unit can follow.

        Raises:
            FloatingPointError: a value is not finite.
        """
        return to_pixels(finite(self.estimate()).clamp_(0, 1), dtype)

    def _next_unit(self) -> None:
        self.ranging.next_unit()

    def estimate(self) -> Tensor:
        """The estimate after the last unit, not clamped: (N, 3, H, W), float32. No unit can follow."""
        for strip in self.strips:
            strip.of(self.residual).add_(to_float(strip.of(self.rainy)).to(self.residual.device))
        return self.residual.permute(0, 3, 1, 2)

    def _remember(self, first_unit: bool) -> None:
        self._begin(self._modules[0].conv1)
        kernels = self.weights.first_gates if first_unit else self.weights.gates
        for strip in self.lstm_strips:  # not over the old state, whose neighbours still need it
            self._collect(self._recur(strip, *kernels, first_unit), strip)
        self.hidden, self.spare = self.spare, self.hidden

    def _recur(self, strip: Strip, gates_kernel: Kernel, candidate_kernel: Kernel, first_unit: bool) -> Tensor:
        """Steps the state of a strip on; gives the hidden one, (N, rows, W, C), on the network's device."""
        (low, high), edges = self._inside(strip.start - 1, strip.stop + 1)
        images = self._images(strip, low - 1, high + 1, self.weights.computed_in)
        seen = self.weights.embed.convolve(*images, relu=True)
        if not first_unit:
            seen = torch.cat((seen, self._channels_first(strip.rows(self.hidden, low, high))), dim=1)
        kernels, cell = (gates_kernel, candidate_kernel), strip.of(self.cell)
        gates, candidate = (kernel.convolve(seen, (*edges, 1)).permute(0, 2, 3, 1) for kernel in kernels)
        gate_in, gate_out, *forget = torch.split(gates.sigmoid_(), self.weights.model.config.channels, dim=3)
        _tanh_(candidate)
        new = (cell.to(gates) * forget[0]).addcmul_(gate_in, candidate) if forget else gate_in * candidate
        cell.copy_(new)
        new = _tanh_(new).mul_(gate_out)
        strip.of(self.spare).copy_(new)
        return new

    def _block(self, index: int, features: Tensor) -> Tensor:
        block, following = self._modules[index], self._followings[index]
        inner = self._convolve(block.conv1, block.attention1, features, self.inner, block.conv2)
        positive = index > 0  # from the first block on nothing is negative
        return self._convolve(block.conv2, block.attention2, inner, self.spare, following, features, positive)

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
        """`ReLU(CRA(convolution(source)))` into `target` or a plane of its own; for `skip` see `Kernel.convolve`."""
        kernel = self.weights.scaled(convolution, self._attend(convolution, attention))
        self._begin(following)
        for strip in self.strips:
            rows, padding = self._around(source, strip, kernel.dilation)
            beside = None if skip is None else self._channels_first(strip.of(skip))
            place = None if self.whole else strip.of(target)
            values = kernel.convolve(rows, padding, relu=True, skip=beside, positive=positive, out=place)
            values = values.permute(0, 2, 3, 1)
            self._collect(values, strip)
            if self.whole:
                return values
        return target

    def _attend(self, convolution: nn.Conv2d, attention: nn.Module | None) -> Tensor | None:
        """What attention scales a convolution by, (C,)."""
        if attention is None:
            return None
        vector = self._vector_of(self._means_of(*self.weights.means(convolution)), self._areas)
        return cast(Tensor, attention(vector.view(1, -1, 1, 1))).view(-1)

    def _project(self, features: Tensor) -> None:
        for strip in self.strips:
            rows, padding = self._around(features, strip, 1)
            residual = self.weights.project.convolve(rows, padding)
            strip.of(self.residual).copy_(residual.permute(0, 2, 3, 1)[..., :3])

    def _images(self, strip: Strip, low: int, high: int, dtype: torch.dtype) -> tuple[Tensor, Padding]:
        """Rainy image and residual as `embed_kernel` takes them, rows [low, high), and the padding beyond the edges."""
        inside, beyond = self._inside(low, high)
        rainy = strip.rows(self.rainy, *inside).to(self.weights.device)
        rainy = (rainy if rainy.dtype == torch.uint8 else rainy * 255).to(dtype)
        images = torch.cat((rainy, strip.rows(self.residual, *inside).to(rainy)), dim=3).permute(0, 3, 1, 2)
        return images, (*beyond, 1)

    def _around(self, plane: Tensor, strip: Strip, margin: int) -> tuple[Tensor, Padding]:
        """The rows that a strip's convolution sees, and the padding that they still need."""
        inside, beyond = self._inside(strip.start - margin, strip.stop + margin)
        return self._channels_first(strip.rows(plane, *inside)), (*beyond, margin)

    def _inside(self, low: int, high: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Those of the rows [low, high) that there are, and how many lie beyond the edges, above and below."""
        start, stop = max(0, low), min(self.height, high)
        return (start, stop), (start - low, high - stop)

    def _channels_first(self, values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2).to(self.weights.device)

    def _begin(self, following: nn.Conv2d | None) -> None:
        """Begins the sums that a convolution will need of its input; None where none will."""
        self._dilation = self._columns = self._rectangles = None
        if following is not None and self.weights.model.config.attention:
            self._dilation = following.dilation[0]

    def _collect(self, values: Tensor, strip: Strip, step: float = 1) -> None:
        """Adds a strip, (N, rows, W, C), to the sums over the rectangles that the nine taps see from the cores.

        `step` is what a value of one stands for.
        """
        if self._dilation is None:
            return
        if self._columns is None:  # of each picture, from the rows that each of three taps sees
            self._columns = torch.zeros(self.count, 3, *values.shape[2:], device=self.weights.device)
        offsets = (-self._dilation, 0, self._dilation)
        for index, plane in enumerate(values):
            picture = index + (strip.picture or 0)
            columns, rows = self._columns[picture], self.cores[picture][0]
            columns.add_(sum_rows(plane), alpha=step)
            # what lies above the core as one tap sees it lies above it for all taps below; most often nothing does
            tops, bottoms = ([edge + offset for offset in offsets] for edge in (rows.start, rows.stop))
            beyond = [(above, end, slice(tap, None)) for tap, (above, end) in enumerate(pairwise((0, *tops)))]
            beyond += [(top, end, slice(tap + 1)) for tap, (top, end) in enumerate(pairwise((*bottoms, self.height)))]
            for top, end, taps in beyond:
                low, high = (min(max(each, strip.start), strip.stop) - strip.start for each in (top, end))
                if low < high:
                    columns[taps].sub_(sum_rows(plane[low:high]), alpha=step)

    def _seen(self) -> Tensor:
        """The sums that were collected, over the area of each core, (N, 3, 3, C); the next `_begin` begins anew."""
        if self._rectangles is not None:
            return self._rectangles
        columns, dilation = cast(Tensor, self._columns), cast(int, self._dilation)
        self._rectangles = torch.zeros(self.count, 3, 3, columns.shape[-1], device=columns.device)
        for sums, seen, (_, core) in zip(self._rectangles, columns, self.cores):
            for right, shift in enumerate((-dilation, 0, dilation)):
                left, end = max(0, core.start + shift), max(0, min(self.width, core.stop + shift))
                sums[:, right] = seen[:, left:end].sum(dim=1)
        return self._rectangles.div_(self._areas.view(-1, 1, 1, 1))

    def _means_of(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The mean over each core of what a kernel, see `lay_for_means`, gives of the collected input, (N, C)."""
        return torch.addmm(bias, self._seen().flatten(1), weight)

    def _cut(self, pixels: int) -> Iterator[Strip]:
        """Strips of about so many pixels, all about as high."""
        parts = math.ceil(self.height * self.width / pixels)
        borders = [part * self.height // parts for part in range(parts + 1)]
        for picture in range(self.count):
            for start, stop in pairwise(borders):
                if start < stop:
                    yield Strip(picture, start, stop)


def _tanh_(values: Tensor) -> Tensor:
    """The hyperbolic tangent, in place; in float32 by the sigmoid, which is five times as fast on a CPU."""
    if values.dtype == torch.float32 and values.device.type == "cpu":
        return values.mul_(2).sigmoid_().mul_(2).sub_(1)
    return values.tanh_()
