"""Planes of features: what strips of rows they are worked on in, and where there is room for them."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sapnet_cli.engine.hardware import free_memory
from sapnet_cli.errors import OutOfMemoryError


@dataclass(frozen=True)
class Strip:
    """Rows [start, stop) of picture `picture` of the batch, or of all of them where it is None."""

    picture: int | None
    start: int
    stop: int

    def of(self, plane: Tensor) -> Tensor:
        """The part of a plane (N, H, W, C)."""
        return self.rows(plane, self.start, self.stop)

    def parts(self, rows: int) -> Iterator[tuple[Strip, slice]]:
        """The strip in lower ones, and the rows of it that each has."""
        for start in range(self.start, self.stop, rows):
            stop = min(start + rows, self.stop)
            yield Strip(self.picture, start, stop), slice(start - self.start, stop - self.start)

    def rows(self, plane: Tensor, start: int, stop: int) -> Tensor:
        """The same part of a plane (N, H, W, C), other rows of it."""
        pictures = slice(None) if self.picture is None else slice(self.picture, self.picture + 1)
        return plane[pictures, start:stop]


class Room:
    """Memory for the planes of forwards, one after the other: what is freed and taken anew is faulted in anew."""

    def __init__(self) -> None:
        """Takes nothing yet."""
        self._place: torch.device | None = None
        self._taken = 0
        self._kept: dict[tuple[int, torch.dtype], Tensor] = {}

    def begin(self, place: torch.device | None) -> None:
        """For the next forward; what it needs beyond the one before goes to a place, or, None, onto the disk."""
        self._place, self._taken = place, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A plane (N, H, W, C) with what a forward before left in it.

        Raises:
            OutOfMemoryError: there is none.
        """
        key, count = (self._taken, dtype), math.prod(shape)
        self._taken += 1
        if key not in self._kept or self._kept[key].numel() < count:
            self._kept.pop(key, None)  # before there is another
            self._kept[key] = make_plane((count,), dtype, self._place)
        return self._kept[key][:count].view(shape)


def choose_place(needed: int, device: torch.device) -> torch.device | None:
    """Where planes go: onto the device, into memory, or, None, onto the disk; the first with twice as much free.

    Raises:
        OutOfMemoryError: not even the disk has room for so many bytes.
    """
    for place in dict.fromkeys((device, torch.device("cpu"))):
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


def make_plane(shape: tuple[int, ...], dtype: torch.dtype, place: torch.device | None) -> Tensor:
    """An uninitialised plane: in a place, or in an unnamed temporary file."""
    if place is not None:
        return torch.empty(shape, dtype=dtype, device=place)
    count, folder = math.prod(shape), temporary_folder()
    try:
        with tempfile.NamedTemporaryFile(prefix="sapnet-") as file:  # the name goes at once, the mapping stays
            reserve(file.fileno(), count * dtype.itemsize)  # a disk that fills up later would kill the process
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
    except OSError as error:
        raise OutOfMemoryError(f"exact tile statistics: {folder}: {error.strerror}") from error
