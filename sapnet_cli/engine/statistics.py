"""Pooled vectors for tiles that belong to one image.

Channel residual attention scales each channel by what a pool over the *whole* image sees. Tiles that pool over
themselves give every tile a look of its own, and seams between them. The pools here stand in for
`global_average_pool` in the network's forward, in which they are called in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sapnet_cli.engine.tiles import Tile


def core_sums(features: Tensor, tiles: Sequence[Tile]) -> Tensor:
    """Sums each channel over the cores of a batch of windows: (B, C, H, W) to (1, C, 1, 1), float32."""
    sums = [
        features[(index, slice(None), *tile.core_in_window)].sum(dim=(1, 2), dtype=torch.float32)
        for index, tile in enumerate(tiles)
    ]
    return torch.stack(sums).sum(dim=0).view(1, -1, 1, 1)


class RunningPool:
    """Estimates the whole image's pooled vectors while groups of its tiles pass through the network.

    At each pool all tiles of a group get the mean over the cores of all groups that were seen so far, this one
    included, so that they behave like parts of one image from the first layer on. A group that passes a second time
    replaces what it contributed the first time.
    """

    def __init__(self) -> None:
        self._contributions: dict[int, list[Tensor]] = {}
        self._sums: list[Tensor] = []
        self._area = 0
        self._tiles: Sequence[Tile] = ()
        self._replaced: list[Tensor] = []
        self._current: list[Tensor] = []

    def begin(self, group: int, tiles: Sequence[Tile]) -> None:
        """Says which group the next forward is given, and its tiles."""
        if group not in self._contributions:
            self._area += sum(tile.area for tile in tiles)
        self._replaced = self._contributions.get(group, [])
        self._current = self._contributions[group] = []
        self._tiles = tiles

    def __call__(self, features: Tensor) -> Tensor:
        """The pool to give to the network."""
        position, sums = len(self._current), core_sums(features, self._tiles)
        self._current.append(sums)
        if position == len(self._sums):
            self._sums.append(sums)
        else:
            change = sums - self._replaced[position] if self._replaced else sums
            self._sums[position] = self._sums[position] + change
        return (self._sums[position] / self._area).to(features.dtype)

    def vectors(self) -> list[Tensor]:
        """The estimates so far, (1, C, 1, 1) each, float32, in the order of the pools of a forward."""
        return [sums / self._area for sums in self._sums]


class RecordedPool:
    """Gives recorded vectors to the tiles of one forward."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        self._vectors = iter(vectors)

    def __call__(self, features: Tensor) -> Tensor:
        """The pool to give to the network."""
        return next(self._vectors).to(features.dtype)
