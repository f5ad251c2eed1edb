"""A large picture in tiles, one unit after another: what a unit leaves to the next waits in a temporary file.

All tiles pass the first unit before any passes the second. So attention's means over the whole picture are known of
one unit when the next begins, and each unit begins from what the picture itself has come to. The means of a unit are
those of a sample of windows, and what the sample lacked in the unit before. What they still are off is known once all
tiles have passed, and the sample tells what that did to colours: nearly the same everywhere, so it is taken back.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from io import FileIO
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.engine.fused import FusedForward, Pool, Ranging, reserve
from sapnet_cli.engine.pixels import Pixels, finite, to_float, to_pixels, to_tensor
from sapnet_cli.engine.progress import Report, in_groups, part_of
from sapnet_cli.engine.statistics import MANY_WINDOWS, MeasuringPool, ShiftedPool, change_colours, colour_change
from sapnet_cli.engine.tiles import Tile, TilePlan
from sapnet_cli.errors import OutOfMemoryError

ROWS = 64
"""Of a window, that are read or written at once."""


class Begin(Protocol):
    """How a forward over windows begins: see `FusedForward`."""

    def __call__(
        self, rainy: Tensor, cores: Sequence[tuple[slice, slice]], pool: Pool | None, ranging: Ranging | None
    ) -> FusedForward:
        """Makes room."""


class TiledForward:
    """One forward over one picture, in tiles."""

    def __init__(
        self,
        begin: Begin,
        ranging: Ranging,
        image: Pixels,
        plan: TilePlan,
        batch: int,
        sample: tuple[TilePlan, Sequence[Tile]] | None,
    ) -> None:
        """Takes a picture, its tiles, how many of them go together, and windows that stand for it.

        The sample is None where there is no attention, which asks for no means.
        """
        self._begin, self._ranging = begin, ranging
        self._image, self._plan, self._batch, self._sample = image, plan, batch, sample
        self._given: list[Tensor] = []
        self._found: list[Tensor] = []

    def run(self, stages: int, report: Report) -> Pixels:
        """The derained picture after `stages` units, of the same shape and dtype.

        Raises:
            FloatingPointError: a value is not finite.
            OutOfMemoryError: the disk that holds temporary files is full.
        """
        result = np.empty_like(self._image)
        shifts: list[Tensor] = []
        passes = list(self._passes(stages))
        with CarriedState(self._plan, *self._image.shape[:2]) as carried:
            for done, (unit, last) in enumerate(passes):
                target = None if not last else carried if unit + 1 < stages else result
                part = part_of(report, done / (len(passes) + 1), (done + 1) / (len(passes) + 1))
                if self._sample is None:
                    self._pass(unit, None, carried, target, part)
                    continue
                sampled = ShiftedPool(shifts)
                self._unit(unit, *self._sample, sampled, self._ranging.fork(), carried)
                measured = MeasuringPool(sampled.vectors)
                self._pass(unit, measured, carried, target, part)
                shifts = [whole - own for whole, own in zip(measured.means, sampled.means)]
                if last:
                    self._given += sampled.vectors
                    self._found += measured.means
        if self._sample is not None:
            self._mend_colours(result, *self._sample, stages)
        return result

    def _passes(self, stages: int) -> Iterator[tuple[int, bool]]:
        """The unit of each pass of all tiles, and whether it counts, or only measures.

        A unit's means differ from the sample's much as those of the unit before did. But the first has none before it,
        and with few windows that is not near enough.
        """
        for unit in range(stages):
            if self._sample is not None:
                few = len(self._sample[1]) < MANY_WINDOWS
                yield from [(unit, False)] * ((unit == 0) + few)
            yield unit, True

    def _pass(
        self, unit: int, pool: Pool | None, carried: CarriedState, target: CarriedState | Pixels | None, report: Report
    ) -> None:
        """All tiles through one unit, on to the next one or to the result; or only to be measured."""
        for tiles, part in in_groups(self._plan.tiles, self._batch, report):
            forward = self._unit(unit, self._plan, tiles, pool, self._ranging, carried, part)
            if isinstance(target, CarriedState):
                target.write(forward, tiles)
            elif target is not None:
                for tile, pixels in zip(tiles, to_pixels(finite(forward.estimate()).clamp_(0, 1), target.dtype)):
                    target[tile.core] = pixels[tile.core_in_window]
            del forward  # the next one makes room of its own
        if target is not None:
            self._ranging.next_unit()
            carried.next_unit()

    def _unit(
        self,
        unit: int,
        plan: TilePlan,
        tiles: Sequence[Tile],
        pool: Pool | None,
        ranging: Ranging,
        carried: CarriedState,
        report: Report | None = None,
    ) -> FusedForward:
        """Windows through one unit, from where the picture is."""
        forward = self._windows(plan, tiles, pool, ranging)
        if unit:
            carried.read(forward, plan, tiles)
        forward.unit(unit == 0, report)
        return forward

    def _windows(
        self, plan: TilePlan, tiles: Sequence[Tile], pool: Pool | None, ranging: Ranging | None = None
    ) -> FusedForward:
        """A forward over windows of the picture. Their cores count in the pools."""
        rainy = to_tensor([self._image[plan.seen(tile)] for tile in tiles])
        return self._begin(rainy, [tile.core_in_window for tile in tiles], pool, ranging)

    def _mend_colours(self, result: Pixels, plan: TilePlan, tiles: Sequence[Tile], stages: int) -> None:
        """Adds to the result what the sample says that the means would have changed which were found afterwards."""
        own = MeasuringPool(self._given)
        before = self._windows(plan, tiles, own).run(stages)
        shifts = [whole - mean for whole, mean in zip(self._found, own.means)]
        after = self._windows(plan, tiles, ShiftedPool(shifts)).run(stages)
        if not bool(torch.isfinite(after - before).all()):
            return
        change = colour_change(before, after)
        for tile in self._plan.tiles:
            derained = to_float(to_tensor([result[tile.core]])).permute(0, 3, 1, 2)
            result[tile.core] = to_pixels(change_colours(derained, change), result.dtype)[0]


class CarriedState:
    """What a unit leaves to the next, of every pixel of a picture, in an unnamed temporary file.

    Floats are stored in half precision. Rows lie in a ring that has room for one row of tiles more than the picture,
    and each unit writes that much above where it reads: so no tile overwrites what the next ones look at.
    """

    def __init__(self, plan: TilePlan, height: int, width: int) -> None:
        """Takes the tiles, in rows from the top, of a picture of a size."""
        self._lag = max(tile.rows.core_stop - tile.rows.start for tile in plan.tiles)
        self._rows, self._width = height + self._lag, width
        self._top = 0  # where the picture's first row is read
        self._file: FileIO | None = None

    def __enter__(self) -> CarriedState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def next_unit(self) -> None:
        """What was written can be read."""
        self._top = (self._top - self._lag) % self._rows

    def read(self, forward: FusedForward, plan: TilePlan, tiles: Sequence[Tile]) -> None:
        """Fills the windows of a forward."""
        for window, tile in enumerate(tiles):
            rows, columns = plan.seen(tile)
            for part in _parts(rows):
                lines = _lines(forward, part, columns)
                for row, line in enumerate(lines.numpy(), part.start):
                    self._seek(row, columns, line).readinto(line)
                for plane, stored in _stored(forward, lines):
                    plane[window, part.start - rows.start : part.stop - rows.start].copy_(stored)

    def write(self, forward: FusedForward, tiles: Sequence[Tile]) -> None:
        """Takes the cores of a forward's windows.

        Raises:
            OutOfMemoryError: the disk that holds temporary files is full.
        """
        for window, tile in enumerate(tiles):
            rows, columns = tile.core
            inner_rows, inner_columns = tile.core_in_window
            for part in _parts(rows):
                lines = _lines(forward, part, columns)
                first = inner_rows.start + part.start - rows.start
                for plane, stored in _stored(forward, lines):
                    stored.copy_(plane[window, first : first + len(lines), inner_columns])
                try:
                    for row, line in enumerate(lines.numpy(), part.start - self._lag):
                        if self._seek(row, columns, line).write(line) != line.nbytes:
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as error:
                    size = self._rows * self._width * lines.shape[2] / 1e9
                    raise OutOfMemoryError(
                        f"tiles keep {size:.1f} GB in {tempfile.tempdir or 'a temporary file'}: {error.strerror}; "
                        "point TMPDIR to a larger disk, or use --tile-statistics exact where there is memory"
                    ) from error

    def _seek(self, row: int, columns: slice, line: NDArray[np.uint8]) -> FileIO:
        """The file, at some pixels (columns, bytes) of a row of the picture, which may lie above it."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="sapnet-", buffering=0)  # noqa: SIM115 (closed on exit)
            # better full now than after half of the work
            reserve(self._file.fileno(), self._rows * self._width * line.shape[1])
        self._file.seek(((self._top + row) % self._rows * self._width + columns.start) * line.shape[1])
        return self._file


def _parts(rows: slice) -> Iterator[slice]:
    """Rows in lower parts."""
    for start in range(rows.start, rows.stop, ROWS):
        yield slice(start, min(start + ROWS, rows.stop))


def _lines(forward: FusedForward, rows: slice, columns: slice) -> Tensor:
    """Room for what a forward carries of some pixels: (rows, columns, bytes)."""
    size = sum(_bytes(plane) for plane in forward.carried)
    return torch.empty(rows.stop - rows.start, columns.stop - columns.start, size, dtype=torch.uint8)


def _stored(forward: FusedForward, lines: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each plane that a forward carries, and the part of `_lines` that holds it."""
    start = 0
    for plane in forward.carried:
        stored = lines[..., start : start + plane.shape[3] * _kind(plane).itemsize]
        yield plane, stored.view(_kind(plane))
        start += _bytes(plane)


def _kind(plane: Tensor) -> torch.dtype:
    return torch.float16 if plane.is_floating_point() else plane.dtype


def _bytes(plane: Tensor) -> int:
    """Of a pixel of a plane, (N, H, W, C), an even number."""
    size = plane.shape[3] * _kind(plane).itemsize
    return size + size % 2
