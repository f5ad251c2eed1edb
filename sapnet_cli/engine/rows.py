"""Planes that wait in a file, row by row, moved in C, where it is compiled: see `compiled.py`.

One call moves all rows of a tile, and no thread of Python waits for it: a call for each row took three times as long.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.model import compiled
from sapnet_cli.model.arrays import address


class Rows(ctypes.Structure):
    """Those of `c/rows.c`."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("rows", "count", "apart", "size", "as_halves")),
        *((name, ctypes.c_long) for name in ("file", "lines", "line", "first", "column", "failed")),
    )


@dataclass(frozen=True)
class Lines:
    """A file of lines.

    Attributes:
        file: its descriptor.
        count: how many lines; the first follows the last.
        size: of a line, in bytes.
    """

    file: int
    count: int
    size: int


def write_rows(values: NDArray[Any], lines: Lines, first: int, column: int) -> None:
    """Writes rows of values into a file, each into a line of it, float32 as halves, others as they are.

    Args:
        values: (H, W, C), whose rows are in one piece each.
        lines: of the file.
        first: the line of the first row.
        column: where in its line a row begins, in bytes.

    Raises:
        OSError: the disk is full, or fails.
        ValueError: rows are in pieces.
    """
    _move("sapnet_write_rows", values, lines, first, column)


def read_rows(values: NDArray[Any], lines: Lines, first: int, column: int) -> None:
    """The other way round: fills rows; what was never written is zero."""
    _move("sapnet_read_rows", values, lines, first, column)


def _move(function: str, values: NDArray[Any], lines: Lines, first: int, column: int) -> None:
    if not values[:1].flags.c_contiguous:
        raise ValueError("rows are in pieces")
    height, width, channels = values.shape
    as_halves = values.dtype == np.float32
    job = Rows(address(values), height, width * channels, values.strides[0])
    job.size, job.as_halves = np.dtype(np.float16).itemsize if as_halves else values.itemsize, as_halves
    job.file, job.lines, job.line = lines.file, lines.count, lines.size
    job.first, job.column = first % lines.count, column
    compiled.program().call(function, ctypes.addressof(job))
    if job.failed:
        raise OSError(job.failed, os.strerror(job.failed))
