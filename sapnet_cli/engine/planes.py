"""Planes of features: what strips of rows they are worked on in, and where there is room for them."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.engine.hardware import CPU, PRECISIONS, AnyDevice, fast_float, free_memory
from sapnet_cli.errors import OutOfMemoryError
from sapnet_cli.model.arrays import empty

if TYPE_CHECKING:
    from sapnet_cli.model.arrays import AnyArray

PLANES, IMAGE_BYTES = 4, 24
"""Planes of features that a forward in strips stores, and bytes a pixel of images beside them."""


def stored_bytes(channels: int, precision: str, pixels: int) -> int:
    """How much a forward in strips stores for so many pixels; in 8-bit integers, three planes and two others."""
    bytes_each = 3 + 2 * PRECISIONS[fast_float()] if precision == "int8" else PLANES * PRECISIONS[precision]
    return (channels * bytes_each + IMAGE_BYTES) * pixels


@dataclass(frozen=True)
class Strip:
    """Rows [start, stop) of picture `picture` of the batch, or of all of them where it is None."""

    picture: int | None
    start: int
    stop: int

    def of(self, plane: AnyArray) -> AnyArray:
        """The part of a plane (N, H, W, C)."""
        return self.rows(plane, self.start, self.stop)

    def parts(self, rows: int) -> Iterator[tuple[Strip, slice]]:
        """The strip in lower ones, and the rows of it that each has."""
        for start in range(self.start, self.stop, rows):
            stop = min(start + rows, self.stop)
            yield Strip(self.picture, start, stop), slice(start - self.start, stop - self.start)

    def rows(self, plane: AnyArray, start: int, stop: int) -> AnyArray:
        """The same part of a plane (N, H, W, C), other rows of it."""
        pictures = slice(None) if self.picture is None else slice(self.picture, self.picture + 1)
        return plane[pictures, start:stop]


class Room:
    """Memory for the planes of forwards, one after the other: what is freed and taken anew is faulted in anew."""

    def __init__(self) -> None:
        """Takes nothing yet."""
        self._place: AnyDevice | None = None
        self._taken = 0
        self._kept: dict[tuple[int, Any], Any] = {}

    def begin(self, place: AnyDevice | None) -> None:
        """For the next forward; what it needs beyond the one before goes to a place, or, None, onto the disk."""
        self._place, self._taken = place, 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A plane (N, H, W, C) with what a forward before left in it: an array of NumPy's, or a tensor, by its dtype.

        Raises:
            OutOfMemoryError: there is none.
        """
        key, count = (self._taken, dtype), math.prod(shape)
        self._taken += 1
        if key not in self._kept or len(self._kept[key]) < count:
            self._kept.pop(key, None)  # before there is another
            self._kept[key] = make_plane((count,), dtype, self._place)
        return self._kept[key][:count].reshape(shape)


def choose_place(needed: int, device: AnyDevice) -> AnyDevice | None:
    """Where planes go: onto the device, into memory, or, None, onto the disk; the first with twice as much free.

    Raises:
        OutOfMemoryError: not even the disk has room for so many bytes.
    """
    for place in (device, CPU):
        if needed <= free_memory(place) // 2:
            return place
    folder = temporary_folder()
    if needed > shutil.disk_usage(folder).free:
        raise OutOfMemoryError(
            f"exact tile statistics need {needed / 2**30:.0f} GB of memory, or of disk in {folder}; "
            "point TMPDIR to a larger disk, or use --tile-statistics shared"
        )
    return None


def temporary_folder() -> str:
    """Where temporary files go.

    Raises:
        OutOfMemoryError: nowhere.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OutOfMemoryError("no folder for temporary files is writable; point TMPDIR to one") from error


def reserve(file: int, size: int) -> None:
    """Takes so many bytes of the disk for a file, by its descriptor, where the system can.

    Raises:
        OSError: the disk has not so many.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


def make_plane(shape: tuple[int, ...], dtype: Any, place: AnyDevice | None) -> Any:
    """An uninitialised plane: in a place, or in an unnamed temporary file."""
    if isinstance(dtype, np.dtype):
        return empty(shape, dtype) if place is not None else _map(shape, dtype)
    import torch

    if place is not None:
        return torch.empty(shape, dtype=dtype, device=str(place))
    mapped = torch.from_numpy(_map((math.prod(shape) * dtype.itemsize,), np.dtype(np.uint8)))
    return mapped.view(dtype).view(shape)


def _map(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in an unnamed temporary file.

    Raises:
        OutOfMemoryError: the disk has no room for it.
    """
    folder = temporary_folder()
    try:
        with tempfile.NamedTemporaryFile(prefix="sapnet-") as file:  # the name goes at once, the mapping stays
            size = math.prod(shape) * dtype.itemsize
            file.truncate(size)
            reserve(file.fileno(), size)  # a disk that fills up later would kill the process
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)
    except OSError as error:
        raise OutOfMemoryError(f"exact tile statistics: {folder}: {error.strerror}") from error
