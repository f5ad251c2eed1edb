"""A large picture in tiles, one unit after another: what a unit leaves to the next waits in a temporary file.

All tiles pass the first unit before any passes the second. So attention's means over the whole picture are known of
one unit when the next begins, and each unit begins from what the picture itself has come to. The means of a unit are
what a sample of windows says of them. How far off they were is known once all tiles have passed. Then the sample passes
again, by what they should have been, and tells what that changes: no recurrent state, as attention comes after it, and
the residual much as its colours say, so it is mended before the next unit. Where that was much, the next unit is passed
twice, and the first one, whose input stays, until it is little.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from copy import copy
from functools import partial
from io import FileIO
from queue import SimpleQueue
from threading import Event, Lock
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.engine.forward import Cores, Ranging
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.native import NativePool, Values
from sapnet_cli.engine.pixels import ROWS, Pixels, add_rainy, to_batch
from sapnet_cli.engine.planes import Room, reserve, temporary_folder
from sapnet_cli.engine.progress import Report, in_groups, part_of, work_beside
from sapnet_cli.engine.rows import Lines, read_rows, write_rows
from sapnet_cli.engine.statistics import MeasuringPool, ResidualChange, Sample, SamplePool, residual_change
from sapnet_cli.engine.tiles import Tile, TilePlan
from sapnet_cli.errors import OutOfMemoryError
from sapnet_cli.model import compiled

LARGE_CHANGE, SOME_CHANGE, LITTLE_CHANGE = 0.25 / 255, 0.1 / 255, 0.02 / 255
"""Of a residual, on average, by what means turn out to be: where that of the first unit, or of a later one, changes by
more, the sample is not trusted with the next unit; and by which the first may change when it has been passed again. A
pixel where the network wavers makes a hundred times as much of it, which nothing mends."""

FIRST_PASSES = (0.0, 0.9), (0.9, 0.95), (0.95, 1.0)
"""Of what is told of the first unit's progress, that of each pass it may take: one is enough most often."""

ALL, RESIDUAL, NOTHING = slice(None), slice(-1, None), slice(0)
"""Planes of `Windows.carried` that are kept of a pass."""

Means: TypeAlias = Sequence[tuple[Values, Values]]
"""At each pool of a unit those of the sample's windows, (N, C), and of the picture, (C,)."""


class Windows(Protocol):
    """A forward over windows: a `NativeForward`, or a `TorchWindows`."""

    insistence: Insistence | None
    rainy: Pixels

    @property
    def residual(self) -> Values:
        """What the last estimate adds to the rainy windows, (N, H, W, 3)."""

    @property
    def carried(self) -> tuple[NDArray[Any], ...]:
        """What a unit leaves to the next: hidden and cell state, and residual."""

    def refill(self) -> AbstractContextManager[tuple[NDArray[Any], ...]]:
        """Gives the same to be overwritten by what another unit left."""

    def unit(self, number: int, report: Report | None = None) -> None:
        """One progressive dilated unit."""


Begin: TypeAlias = Callable[[Pixels, Cores, NativePool | None, Ranging | None, Room], Windows]
"""How a forward over windows begins: see `FusedForward`."""


class TiledForward:
    """One forward over one picture, in tiles."""

    def __init__(
        self,
        begin: Begin,
        ranging: Ranging,
        image: Pixels,
        plan: TilePlan,
        batch: int,
        beside: int,
        sample: Sample | None,
    ) -> None:
        """Takes a picture, its tiles, how many share a forward, how many forwards run at the same time, and a sample.

        That is None where there is no attention, which asks for no means.
        """
        self._begin, self._ranging = begin, ranging
        self._image, self._plan, self._batch = image, plan, batch
        self._sample = sample
        self._rooms = [Room() for _ in range(beside)]
        self._insistence: Insistence | None = None  # knows how much rain the first unit saw
        self._change: ResidualChange | None = None  # what the residual of the unit before lacks

    def run(self, stages: int, report: Report) -> Pixels:
        """The derained picture after `stages` units, of the same shape and dtype.

        Raises:
            FloatingPointError: a value is not finite.
            OutOfMemoryError: the disk that holds temporary files is full.
        """
        with CarriedState(self._plan, len(self._rooms)) as carried:
            if self._sample is None:
                for unit in range(stages):
                    part = part_of(report, unit / stages, (unit + 1) / stages)
                    self._pass(unit, (), carried, ALL if unit + 1 < stages else RESIDUAL, part)
                    self._next_unit(carried)
            else:
                self._run_by_sample(self._sample, stages, carried, report)
            return self._result(carried)

    def _run_by_sample(self, sample: Sample, stages: int, carried: CarriedState, report: Report) -> None:
        """All units. The sample passes each before the tiles do, and after them, when the picture's means are known.

        Tiles pass a unit that the sample is not trusted with twice: first only to be measured. The first unit counts at
        once, as its input is the picture and stays: tiles pass it again as long as mending would leave too much.
        """
        before: Means = []
        rainy = self._seen(sample.plan, sample.tiles)
        trusted = False
        with CarriedState(sample.stacked) as kept:  # the sample as it was before the unit
            for unit in range(stages):
                part = part_of(report, unit / stages, (unit + 1) / stages)
                if unit:
                    self._keep(sample, carried, kept)
                counts = ALL if unit + 1 < stages else RESIDUAL
                if unit == 0:
                    passes = [(counts, *told) for told in FIRST_PASSES]
                else:
                    passes = [(counts, 0.0, 1.0)] if trusted else [(NOTHING, 0.0, 0.5), (counts, 0.5, 1.0)]
                pool, guess = self._pass_sample(unit, sample, before, kept)
                for turn, (planes, begin, end) in enumerate(passes):
                    before = self._measure(unit, pool, carried, planes, part_of(part, begin, end))
                    pool, known = self._pass_sample(unit, sample, before, kept)
                    change = residual_change(rainy, guess, known)
                    guess = known
                    off = 0.0 if change is None else change.typical
                    if turn == 0:
                        trusted = not sample.small and off <= (SOME_CHANGE if unit else LARGE_CHANGE)
                    if unit == 0 and (trusted or (turn and off <= LITTLE_CHANGE)):
                        break
                before = list(zip(pool.windows, pool.vectors))
                self._change = change
                self._next_unit(carried)

    def _pass_sample(self, unit: int, sample: Sample, before: Means, kept: CarriedState) -> tuple[SamplePool, Values]:
        """What the sample says of the means of a unit, and the residual that it has then."""
        pool = SamplePool(before)
        forward = self._windows(sample.plan, sample.tiles, self._rooms[0], pool, self._ranging.fork())
        if unit:
            with forward.refill() as planes:
                kept.read(planes, sample.stacked, sample.stacked.tiles)
        self._unit(unit, forward)
        return pool, forward.residual

    def _measure(self, unit: int, pool: SamplePool, carried: CarriedState, planes: slice, report: Report) -> Means:
        """All tiles through a unit, by what the sample says; gives the means of its windows and of the picture."""
        means = self._pass(unit, pool.vectors, carried, planes, report)
        return list(zip(pool.windows, means))

    def _keep(self, sample: Sample, carried: CarriedState, kept: CarriedState) -> None:
        """Puts the sample aside as the last unit left it, before the next one overwrites that."""
        forward = self._windows(sample.plan, sample.tiles, self._rooms[0])
        self._read(forward, sample.plan, sample.tiles, carried)
        kept.write(forward.carried, sample.stacked.tiles)
        kept.next_unit()

    def _next_unit(self, carried: CarriedState) -> None:
        self._ranging.next_unit()
        carried.next_unit()

    def _pass(
        self, unit: int, vectors: Sequence[Values], carried: CarriedState, planes: slice, report: Report
    ) -> list[Values]:
        """All tiles through one unit, by given vectors; some of what they leave to the next one is kept.

        Returns:
            What the vectors should have been.
        """
        groups = [tiles for tiles, _ in in_groups(self._plan.tiles, self._batch, report)]
        pools, were_read = [MeasuringPool(vectors) for _ in groups], [Event() for _ in groups]
        rooms: SimpleQueue[Room] = SimpleQueue()
        for room in self._rooms:
            rooms.put(room)
        threads = compiled.share_of(len(self._rooms))

        def compute(turn: int, part: Report) -> None:
            room, tiles = rooms.get(), groups[turn]
            try:
                with compiled.on_threads(threads):
                    forward = self._windows(self._plan, tiles, room, pools[turn], self._ranging)
                    if unit:
                        self._read(forward, self._plan, tiles, carried)
                    were_read[turn].set()
                    self._unit(unit, forward, part)
                for before in were_read[:turn]:  # what is written may lie where they read
                    before.wait()
                carried.write(forward.carried, tiles, planes)
            finally:
                were_read[turn].set()
                rooms.put(room)

        work_beside([partial(compute, turn) for turn in range(len(groups))], len(self._rooms), report)
        measured = MeasuringPool(vectors)
        for pool in pools:
            measured.add(pool)
        return measured.means

    def _read(self, forward: Windows, plan: TilePlan, tiles: Sequence[Tile], carried: CarriedState) -> None:
        """Windows of the picture as the unit before left it, mended."""
        with forward.refill() as planes:
            carried.read(planes, plan, tiles)
            if self._change is not None:
                self._change.add_to(planes[-1], forward.rainy)

    def _unit(self, unit: int, forward: Windows, report: Report | None = None) -> None:
        """Windows through one unit."""
        if unit:
            forward.insistence = copy(self._insistence)  # it counts what it was asked
        forward.unit(unit, report)
        self._insistence = forward.insistence

    def _windows(
        self,
        plan: TilePlan,
        tiles: Sequence[Tile],
        room: Room,
        pool: NativePool | None = None,
        ranging: Ranging | None = None,
    ) -> Windows:
        """A forward over windows of the picture."""
        cores = [tile.core_in_window for tile in tiles]
        return self._begin(self._seen(plan, tiles), cores, pool, ranging, room)

    def _seen(self, plan: TilePlan, tiles: Sequence[Tile]) -> Pixels:
        """Windows of the picture, (N, H, W, 3)."""
        return to_batch([self._image[plan.seen(tile)] for tile in tiles])

    def _result(self, carried: CarriedState) -> Pixels:
        """What the last unit's residual makes of the picture: mended, often by less than a level, and then rounded."""
        result = np.empty_like(self._image)
        for start in range(0, len(result), ROWS):
            rows = slice(start, min(start + ROWS, len(result)))
            rainy, residual = to_batch([self._image[rows]]), carried.residual(rows)
            if self._change is not None:
                self._change.add_to(residual, rainy)
            result[rows] = add_rainy(residual, rainy, result.dtype)[0]
        return result


class CarriedState:
    """What a unit leaves to the next, of every pixel of a picture, in unnamed temporary files, one for each plane.

    Rows lie in a ring that has room for one row of tiles more than the picture, and each unit writes that much above
    where it reads: so no tile overwrites what the next ones look at.
    """

    def __init__(self, plan: TilePlan, beside: int = 1) -> None:
        """Takes the tiles of a picture, in rows from the top, and how many groups of them go at the same time."""
        self._lag = max(tile.rows.core_stop - tile.rows.start for tile in plan.tiles)
        height, self._width = plan.size
        self._rows = height + self._lag
        self._top = 0  # where the picture's first row is read
        self._rings: list[Ring] = []
        # the largest plane, and both others
        self._threads = ThreadPoolExecutor(max(2, beside), thread_name_prefix="carried")
        self._made = Lock()

    def __enter__(self) -> CarriedState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()
        for ring in self._rings:
            ring.file.close()

    def next_unit(self) -> None:
        """What was written can be read."""
        self._top = (self._top - self._lag) % self._rows

    def read(self, planes: Sequence[NDArray[Any]], plan: TilePlan, tiles: Sequence[Tile]) -> None:
        """Fills windows of the picture: all planes that are carried, (N, H, W, C) each."""

        def fill(plane: NDArray[Any], ring: Ring) -> None:
            for window, tile in zip(plane, tiles):
                rows, columns = plan.seen(tile)
                ring.read(self._top + rows.start, columns.start, window)

        list(self._threads.map(fill, planes, self._rings))

    def residual(self, rows: slice) -> Values:
        """That of some rows of the picture, (1, rows, W, 3)."""
        residual = np.empty((1, rows.stop - rows.start, self._width, 3), np.float32)
        self._rings[-1].read(self._top + rows.start, 0, residual[0])
        return residual

    def write(self, carried: Sequence[NDArray[Any]], tiles: Sequence[Tile], planes: slice = ALL) -> None:
        """Takes the cores of windows, of all planes that are carried or some.

        Raises:
            OutOfMemoryError: the disk that holds temporary files is full, or there is none.
        """
        folder = temporary_folder()

        def keep(plane: NDArray[Any], ring: Ring) -> None:
            for window, tile in zip(plane, tiles):
                rows, columns = tile.core
                ring.write(self._top + rows.start - self._lag, columns.start, window[tile.core_in_window])

        try:
            with self._made:
                if not self._rings:
                    rings = [Ring(self._rows, self._width, plane) for plane in carried]
                    self._rings.extend(rings)
                    for ring in rings:
                        ring.reserve()  # better full now than after half of the work
            list(self._threads.map(keep, carried[planes], self._rings[planes]))
        except OSError as error:
            size = self._rows * self._width * sum(map(_stored_bytes, carried))
            raise OutOfMemoryError(
                f"tiles keep {size / 1e9:.1f} GB in {folder}: "
                f"{error.strerror}; point TMPDIR to a larger disk, or use --tile-statistics exact where there is memory"
            ) from error


class Ring:
    """Rows of one plane in an unnamed temporary file, the first after the last; floats in half precision."""

    def __init__(self, rows: int, width: int, plane: NDArray[Any]) -> None:
        """Takes a number of rows, how wide they are, and a plane (N, H, W, C) with pixels like theirs."""
        self._rows, self._kind = rows, _stored_kind(plane)
        self._pixel = _stored_bytes(plane)
        self._line = width * self._pixel
        self.file: FileIO = tempfile.TemporaryFile(prefix="sapnet-", buffering=0)  # noqa: SIM115 (its owner closes it)

    def reserve(self) -> None:
        """Takes the disk's room for all rows.

        Raises:
            OSError: there is not enough.
        """
        reserve(self.file.fileno(), self._rows * self._line)

    def read(self, row: int, column: int, target: NDArray[Any]) -> None:
        """Fills (H, W, C), whose rows are contiguous, with what lies there, from a row and a column on."""
        if compiled.is_available():
            read_rows(target, self._lines, row, column * self._pixel)
            return
        stored = np.empty(target.shape[1:], self._kind)
        for below, line in enumerate(target, row):
            self._seek(below, column)
            self.file.readinto(stored.data)
            line[...] = stored

    def write(self, row: int, column: int, source: NDArray[Any]) -> None:
        """Stores (H, W, C), whose rows are contiguous, from a row and a column on.

        Raises:
            OSError: the disk is full.
        """
        if compiled.is_available():
            write_rows(source, self._lines, row, column * self._pixel)
            return
        for below, line in enumerate(source, row):
            self._seek(below, column)
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(line, self._kind)
            if self.file.write(stored.data) != stored.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def _lines(self) -> Lines:
        return Lines(self.file.fileno(), self._rows, self._line)

    def _seek(self, row: int, column: int) -> None:
        self.file.seek(row % self._rows * self._line + column * self._pixel)


def _stored_kind(plane: NDArray[Any]) -> np.dtype[Any]:
    """What a file holds of its values: halves of float32."""
    return np.dtype(np.float16) if plane.dtype == np.float32 else plane.dtype


def _stored_bytes(plane: NDArray[Any]) -> int:
    """Of a pixel of a plane (N, H, W, C)."""
    return int(plane.shape[3] * _stored_kind(plane).itemsize)
