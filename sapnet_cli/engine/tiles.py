"""Where the windows lie that a large image is cut into: pure geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

OVERLAP = 40
"""Context on each side of a tile, in pixels, unless said otherwise. Given the picture's own means, it leaves at most
0.7/255 at a tile's edge; 32 leave 2 or 3 (tests/performance/RESULTS.md)."""


@dataclass(frozen=True)
class Span:
    """One window along one axis: what the network sees, and the core of it that is kept.

    Attributes:
        start: first row or column that the network sees.
        core_start: first row or column that is kept, in image coordinates.
        core_stop: one past the last.
    """

    start: int
    core_start: int
    core_stop: int


@dataclass(frozen=True)
class Tile:
    """One window of an image; all windows of a plan have the same size, their cores share out the image."""

    rows: Span
    columns: Span

    @property
    def core(self) -> tuple[slice, slice]:
        """The core in image coordinates, to index an array with."""
        rows, columns = self.rows, self.columns
        return slice(rows.core_start, rows.core_stop), slice(columns.core_start, columns.core_stop)

    @property
    def core_in_window(self) -> tuple[slice, slice]:
        """The core in the window's own coordinates."""
        rows, columns = self.rows, self.columns
        return (
            slice(rows.core_start - rows.start, rows.core_stop - rows.start),
            slice(columns.core_start - columns.start, columns.core_stop - columns.start),
        )


@dataclass(frozen=True)
class TilePlan:
    """The windows of one image, row by row."""

    window: tuple[int, int]
    tiles: tuple[Tile, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Of the image: height and width."""
        last = self.tiles[-1]
        return last.rows.core_stop, last.columns.core_stop

    def seen(self, tile: Tile) -> tuple[slice, slice]:
        """The whole window of a tile in image coordinates."""
        height, width = self.window
        return slice(tile.rows.start, tile.rows.start + height), slice(tile.columns.start, tile.columns.start + width)


def plan_tiles(height: int, width: int, tile: int, overlap: int) -> TilePlan:
    """Cuts an image into windows of one size whose cores share out its pixels.

    Every core pixel has at least `overlap` pixels of context on each side, or the image's own edge. Windows are
    spread evenly, and no larger than their number asks for.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        tile: longest side of a window, context included; 0 for the whole image in one.
        overlap: context on each side of a core; less than half of `tile`.

    Raises:
        ValueError: `overlap` is negative or leaves no core.
    """
    if tile and not 0 <= 2 * overlap < tile:
        raise ValueError(f"an overlap of {overlap} leaves nothing of a tile of {tile}; it must be less than half of it")
    return _plan(height, width, _count(height, tile, overlap), _count(width, tile, overlap), overlap)


def fit_tiles(height: int, width: int, pixels: int, overlap: int, together: int = 1) -> TilePlan:
    """Cuts an image as `plan_tiles` does, into windows of so many pixels at most, so that the least is computed.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        pixels: of a window, context included.
        overlap: context on each side of a core; less than half of the side of a square with so many pixels.
        together: tiles that are computed at the same time; fewer take as long.

    Raises:
        ValueError: `overlap` is negative or leaves no core.
    """
    side = math.isqrt(pixels)
    if not 0 <= 2 * overlap < side:
        raise ValueError(f"an overlap of {overlap} leaves nothing of {pixels} pixels")
    narrowest = max(side // 2, 2 * overlap + 1)  # narrower ones are mostly context; of squares there always are some
    *_, rows, columns = min(
        (math.ceil(rows * columns / together) * high * wide, rows * columns, rows, columns)
        for rows, high in _windows(height, narrowest, overlap)
        for columns, wide in _windows(width, narrowest, overlap)
        if high * wide <= pixels
    )
    return _plan(height, width, rows, columns, overlap)


def _plan(height: int, width: int, rows: int, columns: int, overlap: int) -> TilePlan:
    """So many rows and columns of windows."""
    window = _window(height, rows, overlap), _window(width, columns, overlap)
    spans = product(_spans(height, window[0], rows), _spans(width, window[1], columns))
    return TilePlan(window, tuple(Tile(row, column) for row, column in spans))


def _count(length: int, tile: int, overlap: int) -> int:
    """How many windows of a length share out an axis."""
    return 1 if tile == 0 or length <= tile else math.ceil((length - 2 * overlap) / (tile - 2 * overlap))


def _windows(length: int, narrowest: int, overlap: int) -> Iterator[tuple[int, int]]:
    """How many windows an axis may have, and how long they are then."""
    for count in range(1, length + 1):
        window = _window(length, count, overlap)
        if count > 1 and window < narrowest:
            break
        yield count, window


def _window(length: int, count: int, overlap: int) -> int:
    """How long each of the windows along an axis is."""
    return math.ceil((length + 2 * overlap * (count - 1)) / count)


def _spans(length: int, window: int, count: int) -> list[Span]:
    """Where the windows along an axis lie."""
    starts = [round(index * (length - window) / max(1, count - 1)) for index in range(count)]
    # neighbours meet in the middle of what both see
    borders = [0, *((left + window + right) // 2 for left, right in pairwise(starts)), length]
    return [Span(start, *border) for start, border in zip(starts, pairwise(borders))]
