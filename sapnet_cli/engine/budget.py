"""How much of a picture, or how many pictures, the engine computes at once, by the memory that is free."""

from __future__ import annotations

import math

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.hardware import PRECISIONS, AnyDevice, free_memory
from sapnet_cli.engine.planes import stored_bytes
from sapnet_cli.model import compiled

VALUES_PER_PIXEL = 400
"""Peak number of values that a forward over whole planes holds for each pixel of its input, with a margin."""

CPU_BUDGET, GPU_SHARE = 19 * 2**26, 0.6
"""For the tiles at hand: bytes on a CPU, less the result (a quarter of what is free at most); share of a free GPU."""

LEAST_SHARE = 3 / 8
"""Of it, whatever the result takes."""

TORCH_SHARE, INT8_SHARE = 14 / 19, 10 / 19
"""Of `CPU_BUDGET`, where PyTorch computes, which is large itself; in int8 its convolutions take more beside planes."""

TILE_PIXELS = 2**20
"""Tiles that are computed at the same time are to have so many pixels each: of smaller ones more is context."""

GPU_PIXELS = 2**20
"""Up to so many pixels go to a GPU at once by the plain network, whose kernels are few; they keep a large one busy."""

EXACT_PIXELS, EXACT_SHARE = 15_000_000, 1 / 3
"""Up to so many pixels, and so much of what is free, a picture is computed in one; tiles take longer."""

BESIDE_SHARE = 1 / 16
"""Of what is free, for pictures that are computed at the same time, if that is more than one may take anyway."""

MOST_BESIDE = 16
"""Pictures, or tiles, at the same time: of more the threads of Python, one of which runs at a time, were in the way."""

SMALLEST_TILE, LARGEST_TILE = 192, 2048


class Budget:
    """That of one network on one device.

    Everywhere `of_pixels` is the size of the picture that all is for, of which a coarse level is not to take more than
    its finest one would.
    """

    def __init__(
        self, channels: int, config: EngineConfig, device: AnyDevice, precision: str, native: bool = False
    ) -> None:
        """Takes what the engine has chosen, and whether it is computed in C."""
        self._channels, self._config, self._device, self._precision = channels, config, device, precision
        self._native = native

    def plan(self, height: int, width: int, of_pixels: int) -> tuple[int, int]:
        """Tile, 0 for the whole image, and batch size for pictures of a size."""
        affordable = self.pixels(of_pixels)
        together = 1 if self._config.batch_size == "auto" else self._config.batch_size
        if self._config.tile != "auto":
            tile = self._config.tile
        elif height * width <= affordable // together or self.is_exact(height, width, of_pixels):
            tile = 0
        else:
            beside = self.tiles_beside(TILE_PIXELS, of_pixels)
            side = math.isqrt(affordable // (together * beside))
            tile = max(min(side, LARGEST_TILE), SMALLEST_TILE, 3 * self._config.overlap)
        if self._config.batch_size != "auto":
            return tile, self._config.batch_size
        window = min(height, tile or height) * min(width, tile or width)
        # a CPU gains nothing from a second window beside the first, and a GPU nothing once it is busy
        batch = 1 if self._device.type == "cpu" else max(1, min(64, min(affordable, GPU_PIXELS) // window))
        return tile, batch

    def is_exact(self, height: int, width: int, of_pixels: int) -> bool:
        """Whether a picture is computed layer by layer: no tiles, no estimates. Who names a tile has less memory."""
        needed = stored_bytes(self._channels, self._precision, height * width)
        if self._config.tile != "auto":
            return needed <= min(CPU_BUDGET, self._bytes(of_pixels))
        return of_pixels <= EXACT_PIXELS and needed <= free_memory(self._device) * EXACT_SHARE

    def pictures_beside(self, height: int, width: int) -> int:
        """How many pictures of a size are best computed at the same time, each in one."""
        if not self._native:  # PyTorch has all cores at work on one
            return 1
        free = free_memory(self._device)
        room = min(max(CPU_BUDGET, free * BESIDE_SHARE), free / 4)
        return _beside(room / stored_bytes(self._channels, self._precision, height * width))

    def tiles_beside(self, tile_pixels: int, of_pixels: int) -> int:
        """The same of tiles with so many pixels."""
        return _beside(self.pixels(of_pixels) / tile_pixels) if self._native else 1

    def pixels(self, of_pixels: int) -> int:
        """Pixels of all windows of one forward."""
        if self._device.type == "cpu":
            return self.pixels_in_strips(of_pixels, self._precision)
        return int(self._bytes(of_pixels) / (VALUES_PER_PIXEL * PRECISIONS[self._precision]))

    def pixels_in_strips(self, of_pixels: int, precision: str) -> int:
        """The same where they are worked on in strips if they are many."""
        return int(self._bytes(of_pixels) / stored_bytes(self._channels, precision, 1))

    def _bytes(self, of_pixels: int) -> float:
        """That one forward may take."""
        free = free_memory(self._device)
        if self._device.type == "cuda":
            return free * GPU_SHARE
        budget = CPU_BUDGET * (1 if self._native else INT8_SHARE if self._precision == "int8" else TORCH_SHARE)
        # the result grows beside the tiles: of three bytes a pixel most often
        return min(max(budget - 3 * of_pixels, budget * LEAST_SHARE), free / 4)


def _beside(have_room: float) -> int:
    return max(1, min(compiled.threads(), MOST_BESIDE, int(have_room)))
