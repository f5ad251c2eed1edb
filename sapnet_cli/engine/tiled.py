"""A large picture in tiles, one unit after another: what a unit leaves to the next waits in a temporary file.

All tiles pass the first unit before any passes the second. So attention's means over the whole picture are known of
one unit when the next begins, and each unit begins from what the picture itself has come to. The means of a unit are
what a sample of windows says of them. How far off they were is known once all tiles have passed. Then the sample passes
again, by what they should have been, and tells what that changes: no recurrent state, as attention comes after it, and
the residual much as its colours say, so it is mended before the next unit.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sapnet_cli.engine.fused import FusedForward, Pool
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.kernels import Ranging
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.engine.planes import Room, reserve, temporary_folder
from sapnet_cli.engine.progress import Report, in_groups, part_of
from sapnet_cli.engine.rows import Lines, can_move, read_rows, write_rows
from sapnet_cli.engine.statistics import MeasuringPool, ResidualChange, Sample, SamplePool, residual_change
from sapnet_cli.engine.tensors import finite, to_float, to_pixels, to_tensor
from sapnet_cli.engine.tiles import Tile, TilePlan
from sapnet_cli.engine.windows import NativeWindows
from sapnet_cli.errors import OutOfMemoryError

ROWS = 64
"""Of a window, that are converted at once between memory and disk."""

SERIAL = 2**15 - 1
"""So many values PyTorch converts in the thread that asks it to. More it would share out to threads of its own, and as
long as OpenMP has more threads than there are cores, all that wait for another sleep at once: units took a fifth
longer."""

RESULT_ROWS = 16
"""Of a result, that are made at once."""

LARGE_CHANGE = 0.25 / 255
"""Of the first unit's residual, on average: tiles pass it again, as mending leaves too much of such a one."""

ALL, RESIDUAL, NOTHING = slice(None), slice(-1, None), slice(0)
"""Planes of `FusedForward.carried` that are kept of a pass."""

Means: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""At each pool of a unit those of the sample's windows, (N, C), and of the picture, (C,)."""


Windows: TypeAlias = FusedForward | NativeWindows
"""A forward over them."""


class Begin(Protocol):
    """How a forward over windows begins: see `FusedForward`."""

    def __call__(
        self,
        rainy: Tensor,
        cores: Sequence[tuple[slice, slice]],
        pool: Pool | None,
        ranging: Ranging | None,
        room: Room,
    ) -> Windows:
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
        sample: Sample | None,
    ) -> None:
        """Takes a picture, its tiles, how many of them go together, and windows that stand for it.

        The sample is None where there is no attention, which asks for no means.
        """
        self._begin, self._ranging = begin, ranging
        self._image, self._plan, self._batch = image, plan, batch
        self._sample = sample
        self._room = Room()
        self._insistence: Insistence | None = None  # knows how much rain the first unit saw
        self._change: ResidualChange | None = None  # what the residual of the unit before lacks

    @torch.inference_mode()
    def run(self, stages: int, report: Report) -> Pixels:
        """The derained picture after `stages` units, of the same shape and dtype.

        Raises:
            FloatingPointError: a value is not finite.
            OutOfMemoryError: the disk that holds temporary files is full.
        """
        with CarriedState(self._plan) as carried:
            if self._sample is None:
                for unit in range(stages):
                    part = part_of(report, unit / stages, (unit + 1) / stages)
                    self._pass(unit, None, carried, ALL if unit + 1 < stages else RESIDUAL, part)
                    self._next_unit(carried)
            else:
                self._run_by_sample(self._sample, stages, carried, report)
            return self._result(carried)

    def _run_by_sample(self, sample: Sample, stages: int, carried: CarriedState, report: Report) -> None:
        """All units. The sample passes each before the tiles do, and after them, when the picture's means are known."""
        before: Means = []
        rainy = self._rainy(sample.plan, sample.tiles)
        passes = stages * (2 if sample.small else 1) + 1
        parts = (part_of(report, done / passes, (done + 1) / passes) for done in range(passes))
        with CarriedState(sample.stacked) as kept:  # the sample as it was before the unit
            for unit in range(stages):
                planes = ALL if unit + 1 < stages else RESIDUAL
                if unit:
                    self._keep(sample, carried, kept)
                if sample.small:  # its means differ from the picture's much as they will when that counts
                    pool, _ = self._pass_sample(unit, sample, before, kept)
                    before = self._measure(unit, pool, carried, NOTHING, next(parts))
                pool, guess = self._pass_sample(unit, sample, before, kept)
                before = self._measure(unit, pool, carried, planes, next(parts))
                pool, known = self._pass_sample(unit, sample, before, kept)
                self._change = residual_change(rainy, guess, known)
                if unit == 0 and self._change is not None and self._change.typical > LARGE_CHANGE:
                    before = self._measure(unit, pool, carried, planes, next(parts))
                    pool, again = self._pass_sample(unit, sample, before, kept)
                    self._change = residual_change(rainy, known, again)
                before = list(zip(pool.windows, pool.vectors))
                self._next_unit(carried)

    def _pass_sample(self, unit: int, sample: Sample, before: Means, kept: CarriedState) -> tuple[SamplePool, Tensor]:
        """What the sample says of the means of a unit, and the residual that it has then."""
        pool = SamplePool(before)
        forward = self._windows(sample.plan, sample.tiles, pool, self._ranging.fork())
        if unit:
            kept.read(forward, sample.stacked, sample.stacked.tiles)
        self._unit(unit, forward)
        return pool, forward.residual

    def _measure(self, unit: int, pool: SamplePool, carried: CarriedState, planes: slice, report: Report) -> Means:
        """All tiles through a unit, by what the sample says; gives the means of its windows and of the picture."""
        measured = MeasuringPool(pool.vectors)
        self._pass(unit, measured, carried, planes, report)
        return list(zip(pool.windows, measured.means))

    def _keep(self, sample: Sample, carried: CarriedState, kept: CarriedState) -> None:
        """Puts the sample aside as the last unit left it, before the next one overwrites that."""
        forward = self._windows(sample.plan, sample.tiles, None)
        self._read(forward, sample.plan, sample.tiles, carried)
        kept.write(forward, sample.stacked.tiles)
        kept.next_unit()

    def _next_unit(self, carried: CarriedState) -> None:
        self._ranging.next_unit()
        carried.next_unit()

    def _pass(self, unit: int, pool: Pool | None, carried: CarriedState, planes: slice, report: Report) -> None:
        """All tiles through one unit; some of what they leave to the next one is kept."""
        for tiles, part in in_groups(self._plan.tiles, self._batch, report):
            forward = self._windows(self._plan, tiles, pool, self._ranging)
            if unit:
                self._read(forward, self._plan, tiles, carried)
            self._unit(unit, forward, part)
            carried.write(forward, tiles, planes)
            del forward  # before the next one makes room

    def _read(self, forward: Windows, plan: TilePlan, tiles: Sequence[Tile], carried: CarriedState) -> None:
        """Windows of the picture as the unit before left it, mended."""
        carried.read(forward, plan, tiles)
        if self._change is not None:
            self._change.add_to(forward.residual, forward.rainy)

    def _unit(self, unit: int, forward: Windows, report: Report | None = None) -> None:
        """Windows through one unit."""
        if unit:
            forward.insistence = self._insistence
        forward.unit(unit, report)
        self._insistence = forward.insistence

    def _windows(
        self, plan: TilePlan, tiles: Sequence[Tile], pool: Pool | None, ranging: Ranging | None = None
    ) -> Windows:
        """A forward over windows of the picture."""
        cores = [tile.core_in_window for tile in tiles]
        return self._begin(self._rainy(plan, tiles), cores, pool, ranging, self._room)

    def _rainy(self, plan: TilePlan, tiles: Sequence[Tile]) -> Tensor:
        """Windows of the picture, (N, H, W, 3)."""
        return to_tensor([self._image[plan.seen(tile)] for tile in tiles])

    def _result(self, carried: CarriedState) -> Pixels:
        """What the last unit's residual makes of the picture: mended, often by less than a level, and then rounded."""
        result = np.empty_like(self._image)
        for start in range(0, len(result), RESULT_ROWS):
            rows = slice(start, min(start + RESULT_ROWS, len(result)))
            rainy, residual = to_tensor([self._image[rows]]), carried.residual(rows)
            if self._change is not None:
                self._change.add_to(residual, rainy)
            derained = finite(residual.add_(to_float(rainy))).clamp_(0, 1)
            result[rows] = to_pixels(derained.permute(0, 3, 1, 2), result.dtype)[0]
        return result


class CarriedState:
    """What a unit leaves to the next, of every pixel of a picture, in unnamed temporary files, one for each plane.

    Rows lie in a ring that has room for one row of tiles more than the picture, and each unit writes that much above
    where it reads: so no tile overwrites what the next ones look at.
    """

    def __init__(self, plan: TilePlan) -> None:
        """Takes the tiles of a picture, in rows from the top."""
        self._lag = max(tile.rows.core_stop - tile.rows.start for tile in plan.tiles)
        height, self._width = plan.size
        self._rows = height + self._lag
        self._top = 0  # where the picture's first row is read
        self._rings: list[Ring] = []
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="carried")  # the largest plane, and both others

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

    def read(self, forward: Windows, plan: TilePlan, tiles: Sequence[Tile]) -> None:
        """Fills the windows of a forward."""

        def fill(plane: Tensor, ring: Ring) -> None:
            for window, tile in zip(plane, tiles):
                rows, columns = plan.seen(tile)
                ring.read(self._top + rows.start, columns.start, window)

        list(self._threads.map(fill, forward.carried, self._rings))

    def residual(self, rows: slice) -> Tensor:
        """That of some rows of the picture, (1, rows, W, 3), float32."""
        residual = torch.empty(1, rows.stop - rows.start, self._width, 3)
        self._rings[-1].read(self._top + rows.start, 0, residual[0])
        return residual

    def write(self, forward: Windows, tiles: Sequence[Tile], planes: slice = ALL) -> None:
        """Takes the cores of a forward's windows, of all planes that are carried or some.

        Raises:
            OutOfMemoryError: the disk that holds temporary files is full, or there is none.
        """
        folder = temporary_folder()

        def keep(plane: Tensor, ring: Ring) -> None:
            for window, tile in zip(plane, tiles):
                rows, columns = tile.core
                ring.write(self._top + rows.start - self._lag, columns.start, window[tile.core_in_window])

        try:
            if not self._rings:
                for plane in forward.carried:
                    self._rings.append(Ring(self._rows, self._width, plane))
                    self._rings[-1].reserve()  # better full now than after half of the work
            list(self._threads.map(keep, forward.carried[planes], self._rings[planes]))
        except OSError as error:
            size = self._rows * self._width * sum(_stored_bytes(plane) for plane in forward.carried)
            raise OutOfMemoryError(
                f"tiles keep {size / 1e9:.1f} GB in {folder}: "
                f"{error.strerror}; point TMPDIR to a larger disk, or use --tile-statistics exact where there is memory"
            ) from error


class Ring:
    """Rows of one plane in an unnamed temporary file, the first after the last; floats in half precision."""

    def __init__(self, rows: int, width: int, plane: Tensor) -> None:
        """Takes a number of rows, how wide they are, and a plane (N, H, W, C) with pixels like theirs."""
        self._rows, self._kind = rows, _stored_kind(plane.dtype)
        self._pixel = _stored_bytes(plane)
        self._line = width * self._pixel
        self.file: FileIO = tempfile.TemporaryFile(prefix="sapnet-", buffering=0)  # noqa: SIM115 (its owner closes it)

    def reserve(self) -> None:
        """Takes the disk's room for all rows.

        Raises:
            OSError: there is not enough.
        """
        reserve(self.file.fileno(), self._rows * self._line)

    @torch.inference_mode()  # which a thread has of its own
    def read(self, row: int, column: int, target: Tensor) -> None:
        """Fills (H, W, C) with what lies there, from a row and a column on."""
        if can_move(target):
            read_rows(target, self._lines, row, column * self._pixel)
            return
        for start, part in enumerate(torch.split(_bits(target), ROWS)):
            as_stored = part.dtype != torch.float32 and part.device.type == "cpu"
            lines = part.numpy() if as_stored else np.empty(part.shape, self._kind)
            for below, line in enumerate(lines, start * ROWS):
                self._seek(row + below, column)
                self.file.readinto(line)
            if not as_stored:
                _convert(torch.from_numpy(lines), part)

    @torch.inference_mode()
    def write(self, row: int, column: int, source: Tensor) -> None:
        """Stores (H, W, C), whose rows are contiguous, from a row and a column on.

        Raises:
            OSError: the disk is full.
        """
        if can_move(source):
            write_rows(source, self._lines, row, column * self._pixel)
            return
        for start, part in enumerate(torch.split(_bits(source), ROWS)):
            values = part.cpu()
            lines = values.numpy()
            if lines.dtype != self._kind:
                lines = np.empty(part.shape, self._kind)
                for each, line in zip(values, torch.from_numpy(lines)):
                    _convert(each, line)
            for below, line in enumerate(lines, start * ROWS):
                self._seek(row + below, column)
                if self.file.write(line) != line.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def _lines(self) -> Lines:
        return Lines(self.file.fileno(), self._rows, self._line)

    def _seek(self, row: int, column: int) -> None:
        self.file.seek(row % self._rows * self._line + column * self._pixel)


def _stored_kind(dtype: torch.dtype) -> np.dtype[Any]:
    """What a file holds of values: halves of float32, and the bits of bfloat16, which NumPy does not know."""
    kinds = {torch.uint8: np.uint8, torch.float32: np.float16, torch.float16: np.float16, torch.bfloat16: np.int16}
    return np.dtype(kinds[dtype])


def _stored_bytes(plane: Tensor) -> int:
    """Of a pixel of a plane (N, H, W, C)."""
    return plane.shape[3] * _stored_kind(plane.dtype).itemsize


def _convert(values: Tensor, target: Tensor) -> None:
    """Copies contiguous values into a place for as many of another kind."""
    size = SERIAL if target.device.type == "cpu" else values.numel()
    for part, place in zip(torch.split(values.view(-1), size), torch.split(target.view(-1), size)):
        place.copy_(part)


def _bits(values: Tensor) -> Tensor:
    """The same values, bfloat16 as integers of the same bits."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values
