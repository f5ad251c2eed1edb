"""The whole image layer by layer, in strips of rows: exact at any size, for the price of storing its features.

A strip of a layer's output needs its input with a margin of one dilation, so that every pool sees the whole image.
Between layers five planes of features are stored, 160 values a pixel: on the device, in memory, or in unnamed temporary
files, the first where they take no more than half of what is free.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.engine.hardware import free_memory
from sapnet_cli.errors import OutOfMemoryError
from sapnet_cli.model.sapnet import DilatedResidualBlock, SAPNet

STRIP_VALUES = 2**26
"""How many values a strip may hold while it is computed."""

LSTM_VALUES, CONVOLUTION_VALUES = 400, 100
"""Values that those layers hold for each pixel of a strip."""

PLANES = 5

ReadRows = Callable[[int, int], Tensor]
"""Gives rows [start, stop) of an image or a plane of features as (1, C, stop - start, W)."""


def stored_bytes(model: SAPNet, height: int, width: int) -> int:
    """How much a `LayerwiseForward` stores for an image of this size."""
    return PLANES * model.config.channels * height * width * model.embed.weight.dtype.itemsize


class LayerwiseForward:
    """One forward of the network over one image that is never on the device as a whole."""

    def __init__(self, model: SAPNet, read_rainy: ReadRows, height: int, width: int) -> None:
        """Makes room for the planes.

        Args:
            model: on the device and in the precision to compute with.
            read_rainy: the rainy image, float32 in [0, 1], row range by row range, on the device of `model`.
            height: of the image, in pixels.
            width: of the image, in pixels.

        Raises:
            OutOfMemoryError: the features fit neither into memory nor onto the disk that holds temporary files.
        """
        self.model, self.read_rainy, self.height, self.width = model, read_rainy, height, width
        weight = model.embed.weight
        self.device, self.dtype, channels = weight.device, weight.dtype, model.config.channels
        needed = stored_bytes(model, height, width)
        fits = needed <= free_memory(self.device) // 2
        self.storage = self.device if fits else torch.device("cpu")
        self.on_disk = needed > free_memory(self.storage) // 2
        if self.on_disk and needed > shutil.disk_usage(tempfile.gettempdir()).free:
            raise OutOfMemoryError(
                f"exact tile statistics need {needed / 2**30:.0f} GB of memory, or of disk in {tempfile.gettempdir()}; "
                "point TMPDIR to a larger disk, or use --tile-statistics shared"
            )
        try:
            planes = [self._plane(channels, self.dtype) for _ in range(PLANES)]
        except OSError as error:
            raise OutOfMemoryError(f"exact tile statistics: {tempfile.gettempdir()}: {error.strerror}") from error
        self.hidden, self.cell, self.first, self.second, self.features = planes
        self.estimate = torch.empty(1, 3, height, width)

    def run(self, stages: int, report: Callable[[float], None]) -> Tensor:
        """The estimate after `stages` units, not clamped: (1, 3, H, W), float32, on the CPU.

        `report` is told of the progress, 0 to 1.
        """
        for stage in range(stages):
            self._remember(first_unit=stage == 0)
            source = self.hidden
            for index, block in enumerate(self.model.blocks):
                report((stage + index / len(self.model.blocks)) / stages)
                self._block(cast(DilatedResidualBlock, block), source)
                source = self.features
            for start, stop in self._strips():
                residual = self._layer(self.model.project, source, start, stop)
                self.estimate[:, :, start:stop] = residual + self.read_rainy(start, stop)
        return self.estimate

    def _remember(self, *, first_unit: bool) -> None:
        """Embeds rainy image and estimate and moves the recurrent state one step on."""
        for start, stop in self._strips(LSTM_VALUES):
            low, high = max(0, start - 2), min(self.height, stop + 2)  # two 3x3 convolutions
            rainy = self.read_rainy(low, high)
            estimate = rainy if first_unit else self._read(self.estimate, low, high)
            features = functional.relu(self.model.embed(torch.cat((rainy, estimate), dim=1).to(self.dtype)))
            state = None if first_unit else (self._read(self.hidden, low, high), self._read(self.cell, low, high))
            hidden, cell = self.model.lstm(features, state)
            # into planes of their own: the next strip still needs the old state in its margin
            self.first[:, :, start:stop] = hidden[:, :, start - low : stop - low]
            self.second[:, :, start:stop] = cell[:, :, start - low : stop - low]
        self.hidden, self.first = self.first, self.hidden
        self.cell, self.second = self.second, self.cell

    def _block(self, block: DilatedResidualBlock, source: Tensor) -> None:
        """One residual block from the plane `source` into the plane `features`, which may be the same."""
        scale = self._convolve(block.conv1, block.attention1, source, self.first, lambda rows: rows)
        activate = lambda rows: functional.relu(rows * scale)  # noqa: E731
        last_scale = self._convolve(block.conv2, block.attention2, self.first, self.second, activate)
        for start, stop in self._strips():
            inner = functional.relu(self._read(self.second, start, stop) * last_scale)
            self.features[:, :, start:stop] = functional.relu(self._read(source, start, stop) + inner)

    def _convolve(
        self,
        convolution: nn.Conv2d,
        attention: nn.Module | None,
        source: Tensor,
        target: Tensor,
        activate: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Convolves the activated plane `source` into `target`; returns the scale that attention gives to `target`."""
        sums = torch.zeros(1, convolution.out_channels, 1, 1, device=self.device)
        for start, stop in self._strips():
            rows = self._layer(lambda rows: convolution(activate(rows)), source, start, stop, convolution.dilation[0])
            sums += rows.sum(dim=(2, 3), keepdim=True, dtype=torch.float32)
            target[:, :, start:stop] = rows
        if attention is None:
            return torch.ones((), dtype=self.dtype, device=self.device)
        scale: Tensor = attention((sums / (self.height * self.width)).to(self.dtype))
        return scale

    def _layer(
        self, layer: Callable[[Tensor], Tensor], source: Tensor, start: int, stop: int, margin: int = 1
    ) -> Tensor:
        """Rows [start, stop) of a layer's output; its zero padding falls on the image's edge or is cut off."""
        low, high = max(0, start - margin), min(self.height, stop + margin)
        return layer(self._read(source, low, high))[:, :, start - low : stop - low]

    def _read(self, plane: Tensor, start: int, stop: int) -> Tensor:
        return plane[:, :, start:stop].to(self.device)

    def _strips(self, values_per_pixel: int = CONVOLUTION_VALUES) -> Iterator[tuple[int, int]]:
        rows = max(1, STRIP_VALUES // (self.width * values_per_pixel))
        for start in range(0, self.height, rows):
            yield start, min(start + rows, self.height)

    def _plane(self, channels: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised plane of features, channels last, so that a strip of rows is one piece of memory."""
        count = self.height * self.width * channels
        if self.on_disk:
            with tempfile.NamedTemporaryFile(prefix="sapnet-") as file:  # the name goes at once, the mapping stays
                if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
                    os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
                flat = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
        else:
            flat = torch.empty(count, dtype=dtype, device=self.storage)
        return flat.view(1, self.height, self.width, channels).permute(0, 3, 1, 2)
