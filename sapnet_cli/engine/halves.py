"""Planes in float32 that wait in a file as halves, converted and moved in C, where it is compiled: see `compiled.py`.

One call moves all rows of a tile, and no thread of Python waits for it: a call for each row took three times as long.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from sapnet_cli.model import compiled


class Rows(ctypes.Structure):
    """Those of `c/halves.c`."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("rows", "count", "apart", "file", "lines", "line", "first", "column")),
        ("failed", ctypes.c_long),
    )


@dataclass(frozen=True)
class Lines:
    """A file of lines, each of as many halves.

    Attributes:
        file: its descriptor.
        count: how many lines; the first follows the last.
        length: of a line, in halves.
    """

    file: int
    count: int
    length: int


def suits(plane: Tensor) -> bool:
    """Whether a plane can be moved so, here."""
    return (plane.device.type, plane.dtype) == ("cpu", torch.float32) and compiled.is_available()


def write_halves(values: Tensor, lines: Lines, first: int, column: int) -> None:
    """Writes rows of values into a file as halves, each into a line of it.

    Args:
        values: (H, W, C), float32, whose rows are in one piece each.
        lines: of the file.
        first: the line of the first row.
        column: where in its line a row begins, in values.

    Raises:
        OSError: the disk is full, or fails.
        ValueError: the values are of another kind, or rows in pieces.
    """
    _move("sapnet_write_halves", values, lines, first, column)


def read_halves(values: Tensor, lines: Lines, first: int, column: int) -> None:
    """The other way round: fills rows; what was never written is zero."""
    _move("sapnet_read_halves", values, lines, first, column)


def _move(function: str, values: Tensor, lines: Lines, first: int, column: int) -> None:
    if values.dtype != torch.float32 or not values[:1].is_contiguous():
        raise ValueError(f"rows are {values.dtype}, or in pieces")
    height, width, channels = values.shape
    half = torch.float16.itemsize
    job = Rows(values.data_ptr(), height, width * channels, values.stride(0), lines.file, lines.count)
    job.line, job.first, job.column = lines.length * half, first % lines.count, column * half
    compiled.program().call(function, ctypes.addressof(job))
    if job.failed:
        raise OSError(job.failed, os.strerror(job.failed))
