"""Where the windows lie that a large image is cut into: pure geometry."""

from __future__ import annotations

import math
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
    (high, rows), (wide, columns) = _spans(height, tile, overlap), _spans(width, tile, overlap)
    return TilePlan((high, wide), tuple(Tile(row, column) for row, column in product(rows, columns)))


def _spans(length: int, tile: int, overlap: int) -> tuple[int, list[Span]]:
    """How long the windows along an axis are, and where they lie."""
    if tile == 0 or length <= tile:
        return length, [Span(0, 0, length)]
    count = math.ceil((length - 2 * overlap) / (tile - 2 * overlap))
    window = math.ceil((length + 2 * overlap * (count - 1)) / count)
    starts = [round(index * (length - window) / (count - 1)) for index in range(count)]
    # neighbours meet in the middle of what both see
    borders = [0, *((left + window + right) // 2 for left, right in pairwise(starts)), length]
    return window, [Span(start, *border) for start, border in zip(starts, pairwise(borders))]
