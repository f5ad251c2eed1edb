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
    included, so that they behave like parts of one image from the first layer on. A group that passes again
    replaces what it contributed before.
    """

    def __init__(self) -> None:
        self._sums: dict[int, list[Tensor]] = {}  # what each group contributes to each pool
        self._given: dict[int, list[Tensor]] = {}  # the vectors that it got there
        self._totals: list[Tensor] = []
        self._area = 0
        self._group, self._tiles = -1, list[Tile]()
        self._replaced: list[Tensor] = []

    def begin(self, group: int, tiles: Sequence[Tile]) -> None:
        """Says which group the next forward is given, and its tiles."""
        if group not in self._sums:
            self._area += sum(tile.area for tile in tiles)
        self._group, self._tiles = group, list(tiles)
        self._replaced = self._sums.get(group, [])
        self._sums[group], self._given[group] = [], []

    def __call__(self, features: Tensor) -> Tensor:
        """The pool to give to the network."""
        sums = core_sums(features, self._tiles)
        position = len(self._sums[self._group])
        if position == len(self._totals):
            self._totals.append(sums)
        else:
            change = sums - self._replaced[position] if self._replaced else sums
            self._totals[position] = self._totals[position] + change
        vector = self._totals[position] / self._area
        self._sums[self._group].append(sums)
        self._given[self._group].append(vector)
        return vector.to(features.dtype)

    def vectors(self) -> list[Tensor]:
        """The estimates so far, (1, C, 1, 1) each, float32, in the order of the pools of a forward."""
        return [total / self._area for total in self._totals]

    def stalest(self) -> tuple[int, float]:
        """The group whose vectors are the furthest from the present estimate, and how far relative to their mean."""
        present = torch.cat(self.vectors()).flatten(1)
        scale = present.abs().mean(dim=1, keepdim=True) + 1e-6
        distances = {
            group: float(((torch.cat(given).flatten(1) - present).abs() / scale).max())
            for group, given in self._given.items()
        }
        group = max(distances, key=distances.__getitem__)
        return group, distances[group]


class RecordedPool:
    """Gives recorded vectors to the tiles of one forward."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        self._vectors = iter(vectors)

    def __call__(self, features: Tensor) -> Tensor:
        """The pool to give to the network."""
        return next(self._vectors).to(features.dtype)
