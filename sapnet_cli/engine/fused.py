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
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.engine.hardware import free_memory
from sapnet_cli.errors import OutOfMemoryError
from sapnet_cli.model.sapnet import DilatedResidualBlock, SAPNet

Kernel: TypeAlias = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""

Pool: TypeAlias = Callable[[Tensor, int], Tensor]
"""See `FusedForward`."""

PLANES, IMAGE_BYTES = 4, 24
"""Planes of features that a forward in strips stores, and bytes a pixel of images beside them."""

WHOLE_PIXELS = {"cpu": 2**20, "cuda": 2**22}
"""Up to so many pixels planes are worked on whole: faster than in strips, for twice the memory."""

STRIP_PIXELS = {"cpu": 2**16, "cuda": 2**21}
LSTM_PIXELS = {"cpu": 2**15, "cuda": 2**21}
"""Pixels of a strip, of the wide and short-lived features of the LSTM fewer: so that a CPU's caches hold them."""

PROJECT_CHANNELS = 8
"""A convolution to 3 channels takes twice the time of one to 8."""


def stored_bytes(model: SAPNet, dtype: torch.dtype, pixels: int) -> int:
    """How much a forward in strips stores for so many pixels."""
    return (PLANES * model.config.channels * dtype.itemsize + IMAGE_BYTES) * pixels


class FusedWeights:
    """The kernels of one network in the layout, precision and place that they are computed in."""

    def __init__(self, model: SAPNet, dtype: torch.dtype, device: torch.device) -> None:
        """Takes a network in float32, on `device`, which it keeps the blocks of."""
        self.model, self.dtype, self.device = model, dtype, device
        width = model.config.channels
        self.embed = self.put(*_parameters(model.embed))
        # input, output and forget gate, which all pass a sigmoid, apart from the candidate, which passes a tanh
        blocks = list(zip(*(torch.split(each, width) for each in _parameters(model.gates))))
        gates = [torch.cat([blocks[index][part] for index in (0, 2, 3)]) for part in (0, 1)]
        self.gates, self.candidate = self.put(gates[0], gates[1]), self.put(*blocks[1])
        # the state before the first unit is zero: see `SAPNet.lstm`
        self.first_gates = self.put(gates[0][: 2 * width, :width], gates[1][: 2 * width])
        self.first_candidate = self.put(blocks[1][0][:, :width], blocks[1][1])
        weight, bias = _parameters(model.project)
        more = PROJECT_CHANNELS - weight.shape[0]
        self.project = self.put(functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)), functional.pad(bias, (0, more)))

    def put(self, weight: Tensor, bias: Tensor) -> Kernel:
        """A kernel as convolutions here want it."""
        layout = torch.channels_last
        return weight.to(self.device, self.dtype).contiguous(memory_format=layout), bias.to(self.device, self.dtype)

    def scaled(self, convolution: nn.Conv2d, attention: nn.Module, pooled: Tensor) -> Kernel:
        """A kernel with attention folded in, `pooled` being the mean of what it gives without, (C,)."""
        scale = attention(pooled.view(1, -1, 1, 1)).view(-1)
        weight, bias = _parameters(convolution)
        return self.put(weight * scale.view(-1, 1, 1, 1), bias * scale)


def _parameters(convolution: nn.Conv2d) -> Kernel:
    return convolution.weight.detach(), cast(Tensor, convolution.bias).detach()


@dataclass(frozen=True)
class _Strip:
    """Rows [start, stop) of picture `picture` of the batch, or of all of them where it is None."""

    picture: int | None
    start: int
    stop: int

    def of(self, plane: Tensor) -> Tensor:
        """The part of a plane (N, H, W, C)."""
        return self.rows(plane, self.start, self.stop)

    def rows(self, plane: Tensor, start: int, stop: int) -> Tensor:
        """The same part of a plane (N, H, W, C), other rows of it."""
        pictures = slice(None) if self.picture is None else slice(self.picture, self.picture + 1)
        return plane[pictures, start:stop]


class FusedForward:
    """One forward over one picture, or over windows that share their statistics."""

    def __init__(
        self,
        weights: FusedWeights,
        rainy: Tensor,
        vectors: Sequence[Tensor] | None = None,
        cores: Sequence[tuple[slice, slice]] | None = None,
        pool: Pool | None = None,
    ) -> None:
        """Makes room.

        Args:
            weights: of the network.
            rainy: (N, H, W, 3), uint8, or float32 in [0, 1], wherever there is room for it.
            vectors: the pooled vectors of attention, (C,) each, in the order of a forward's convolutions; None takes
                those of the picture itself, or of all windows together.
            cores: rows and columns of each window that count in the pools; None for all of them.
            pool: turns the mean over the cores, (C,), and their area into the vector to pool to; None takes the mean.

        Raises:
            OutOfMemoryError: the planes fit neither into memory nor onto the disk that holds temporary files.
        """
        self.weights, self.rainy = weights, rainy
        self.count, self.height, self.width = rainy.shape[:3]
        self.cores = cores or [(slice(0, self.height), slice(0, self.width))] * self.count
        self._area = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in self.cores)
        self.pooled: list[Tensor] = []
        self._pool = pool or (lambda mean, area: mean)
        self._given = None if vectors is None else iter(vectors)
        device, channels = weights.device, weights.model.config.channels
        pixels = self.count * self.height * self.width
        kind = device.type if device.type in WHOLE_PIXELS else "cuda"
        self.whole = whole = pixels <= WHOLE_PIXELS[kind]
        self.strips = [_Strip(None, 0, self.height)] if whole else list(self._cut(STRIP_PIXELS[kind]))
        self.lstm_strips = list(self._cut(LSTM_PIXELS[kind]))
        place = _place(stored_bytes(weights.model, weights.dtype, pixels), device)
        self.estimate = torch.empty(self.count, self.height, self.width, 3, device=place or "cpu")
        shape = (self.count, self.height, self.width, channels)
        planes = [_plane(shape, weights.dtype, place) for _ in range(3 if whole else PLANES)]
        self.hidden, self.spare, self.cell = planes[:3]
        self.inner = planes[-1]
        self._sums: Tensor | None = None
        self._dilation = 0

    def run(self, stages: int, report: Callable[[float], None] | None = None) -> Tensor:
        """The estimate after `stages` units, not clamped: (N, 3, H, W), float32.

        `report` is told of the progress, 0 to 1.
        """
        blocks = [cast(DilatedResidualBlock, block) for block in self.weights.model.blocks]
        dilations = [block.conv1.dilation[0] for block in blocks]
        for stage in range(stages):
            self._remember(first_unit=stage == 0, dilation=dilations[0])
            features = self.hidden
            for index, block in enumerate(blocks):
                if report is not None:
                    report((stage + index / len(blocks)) / stages)
                source = features
                inner = self._convolve(block.conv1, block.attention1, source, self.inner, dilations[index])

                def add(rows: Tensor, strip: _Strip, source: Tensor = source, first: bool = index == 0) -> Tensor:
                    rows = rows.add_(self._channels_first(strip.of(source)))
                    return rows.relu_() if first else rows  # from the first block on nothing is negative

                following = dilations[index + 1] if index + 1 < len(blocks) else None
                features = self._convolve(block.conv2, block.attention2, inner, self.spare, following, add)
            self._project(features)
        return self.estimate.permute(0, 3, 1, 2)

    def _remember(self, first_unit: bool, dilation: int) -> None:
        """Embeds rainy image and estimate and moves the recurrent state one step on."""
        self._begin(dilation)
        width = self.weights.model.config.channels
        for strip in self.lstm_strips:
            low, high = max(0, strip.start - 1), min(self.height, strip.stop + 1)
            edges = (low - strip.start + 1, strip.stop + 1 - high)
            images = self._images(strip, low - 1, high + 1, first_unit)
            seen = functional.conv2d(images, *self.weights.embed, padding=(0, 1)).relu_()
            if not first_unit:
                seen = torch.cat((seen, self._channels_first(strip.rows(self.hidden, low, high))), dim=1)
            seen = _pad_rows(seen, edges)
            weights = self.weights
            kernels = (
                (weights.first_gates, weights.first_candidate) if first_unit else (weights.gates, weights.candidate)
            )
            gates, candidate = (
                functional.conv2d(seen, *kernel, padding=(0, 1)).permute(0, 2, 3, 1) for kernel in kernels
            )
            gate_in, gate_out, *forget = torch.split(gates.sigmoid_(), width, dim=3)
            _tanh_(candidate)
            if first_unit:
                cell = gate_in * candidate
            else:
                cell = (strip.of(self.cell).to(gates) * forget[0]).addcmul_(gate_in, candidate)
            strip.of(self.cell).copy_(cell)
            hidden = _tanh_(cell).mul_(gate_out)
            strip.of(self.spare).copy_(hidden)  # not over the old state, which the next strip's margin still needs
            self._collect(hidden, strip)
        self.hidden, self.spare = self.spare, self.hidden

    def _convolve(
        self,
        convolution: nn.Conv2d,
        attention: nn.Module | None,
        source: Tensor,
        target: Tensor,
        next_dilation: int | None,
        finish: Callable[[Tensor, _Strip], Tensor] | None = None,
    ) -> Tensor:
        """`ReLU(CRA(convolution(source)))`, finished strip by strip, into `target` or a plane of its own."""
        dilation = convolution.dilation[0]
        if attention is None:
            kernel = self.weights.put(*_parameters(convolution))
        else:
            pooled = self._pooled_of(convolution) if self._given is None else next(self._given)
            self.pooled.append(pooled)
            kernel = self.weights.scaled(convolution, attention, pooled)
        self._begin(next_dilation)
        for strip in self.strips:
            rows, padding = self._around(source, strip, dilation)
            rows = functional.conv2d(rows, *kernel, padding=padding, dilation=dilation).relu_()
            if finish is not None:
                rows = finish(rows, strip)
            values = rows.permute(0, 2, 3, 1)
            self._collect(values, strip)
            if self.whole:
                return values
            strip.of(target).copy_(values)
        return target

    def _project(self, features: Tensor) -> None:
        """The next estimate."""
        for strip in self.strips:
            rows, padding = self._around(features, strip, 1)
            residual = functional.conv2d(rows, *self.weights.project, padding=padding).permute(0, 2, 3, 1)[..., :3]
            rainy = to_float(strip.of(self.rainy).to(residual.device))
            strip.of(self.estimate).copy_(rainy + residual)

    def _images(self, strip: _Strip, low: int, high: int, first_unit: bool) -> Tensor:
        """Rainy image and estimate, rows [low, high) with zeros beyond the edges."""
        inside = max(0, low), min(self.height, high)
        rainy = to_float(strip.rows(self.rainy, *inside).to(self.weights.device)).to(self.weights.dtype)
        estimate = rainy if first_unit else strip.rows(self.estimate, *inside).to(rainy)
        images = torch.cat((rainy, estimate), dim=3).permute(0, 3, 1, 2)
        return _pad_rows(images, (inside[0] - low, high - inside[1]))

    def _around(self, plane: Tensor, strip: _Strip, margin: int) -> tuple[Tensor, tuple[int, int]]:
        """The rows that a strip's convolution sees, and the padding that they still need."""
        if strip.start == 0 and strip.stop == self.height:
            return self._channels_first(strip.of(plane)), (margin, margin)
        low, high = strip.start - margin, strip.stop + margin
        inside = max(0, low), min(self.height, high)
        rows = self._channels_first(strip.rows(plane, *inside))
        return _pad_rows(rows, (inside[0] - low, high - inside[1])), (0, margin)

    def _channels_first(self, values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2).to(self.weights.device)

    def _begin(self, dilation: int | None) -> None:
        """Begins the sums that a convolution of this dilation will need of its input; None where none will."""
        needed = dilation is not None and self.weights.model.config.attention and self._given is None
        channels = self.weights.model.config.channels
        self._dilation = dilation or 0
        self._sums = None
        if needed:
            self._sums = torch.zeros(3, 3, channels, device=self.weights.device)

    def _collect(self, values: Tensor, strip: _Strip) -> None:
        """Adds a strip, (N, rows, W, C), to the sums over the rectangles that the nine taps see from the cores."""
        if self._sums is None:
            return
        offsets = (-self._dilation, 0, self._dilation)
        first = strip.picture or 0
        for picture, plane in enumerate(values, first):
            rows, columns = self.cores[picture]
            whole = _sum_rows(plane)
            for down, offset in enumerate(offsets):
                low, high = max(strip.start, rows.start + offset), min(strip.stop, rows.stop + offset)
                if low >= high:
                    continue
                total = whole
                for start, stop in ((strip.start, low), (high, strip.stop)):  # a few rows, most often none
                    if start < stop:
                        total = total - _sum_rows(plane[start - strip.start : stop - strip.start])
                for right, shift in enumerate(offsets):
                    left, end = max(0, columns.start + shift), max(0, min(self.width, columns.stop + shift))
                    self._sums[down, right] += total[left:end].sum(dim=0)

    def _pooled_of(self, convolution: nn.Conv2d) -> Tensor:
        """What attention pools to, (C,): the mean over the cores of the convolution, from sums over its input."""
        weight, bias = _parameters(convolution)
        mean = torch.einsum("oikl,kli->o", weight, cast(Tensor, self._sums)) / self._area + bias
        return self._pool(mean, self._area)

    def _cut(self, pixels: int) -> Iterator[_Strip]:
        """Strips of about so many pixels, all about as high."""
        parts = math.ceil(self.height * self.width / pixels)
        borders = [round(part * self.height / parts) for part in range(parts + 1)]
        for picture in range(self.count):
            for start, stop in pairwise(borders):
                if start < stop:
                    yield _Strip(picture, start, stop)


def _tanh_(values: Tensor) -> Tensor:
    """The hyperbolic tangent, in place; in float32 by the sigmoid, which is five times as fast on a CPU."""
    if values.dtype == torch.float32 and values.device.type == "cpu":
        return values.mul_(2).sigmoid_().mul_(2).sub_(1)
    return values.tanh_()


def _sum_rows(values: Tensor) -> Tensor:
    """(rows, W, C) to (W, C) in float32."""
    rows = values.flatten(1)
    # a CPU widens bfloat16 by a pass of its own; it sums in float32 anyway, and one rounding is far below the noise
    wide = None if values.dtype == torch.bfloat16 and values.device.type == "cpu" else torch.float32
    return rows.sum(dim=0, dtype=wide).float().view(values.shape[1:])


def _pad_rows(images: Tensor, rows: tuple[int, int]) -> Tensor:
    """(N, C, H, W) with so many rows of zeros above and below."""
    return functional.pad(images, (0, 0, *rows)) if any(rows) else images


def to_float(images: Tensor) -> Tensor:
    """Images in uint8 to float32 in [0, 1]; those that are float32 already, as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _place(needed: int, device: torch.device) -> torch.device | None:
    """Where planes go: onto the device, into memory, or, None, onto the disk; the first with twice as much free."""
    for place in dict.fromkeys((device, torch.device("cpu"))):
        if needed <= free_memory(place) // 2:
            return place
    if needed > shutil.disk_usage(tempfile.gettempdir()).free:
        raise OutOfMemoryError(
            f"exact tile statistics need {needed / 2**30:.0f} GB of memory, or of disk in {tempfile.gettempdir()}; "
            "point TMPDIR to a larger disk, or use --tile-statistics shared"
        )
    return None


def _plane(shape: tuple[int, ...], dtype: torch.dtype, place: torch.device | None) -> Tensor:
    """An uninitialised plane (N, H, W, C): in a place, or in an unnamed temporary file."""
    if place is not None:
        return torch.empty(shape, dtype=dtype, device=place)
    count = math.prod(shape)
    try:
        with tempfile.NamedTemporaryFile(prefix="sapnet-") as file:  # the name goes at once, the mapping stays
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
                os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
    except OSError as error:
        raise OutOfMemoryError(f"exact tile statistics: {tempfile.gettempdir()}: {error.strerror}") from error
