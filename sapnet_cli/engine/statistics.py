"""The pooled vectors of a whole image, estimated while groups of its windows pass through the network.

Channel residual attention scales each channel by what a pool over the *whole* image sees. Tiles that pool over
themselves give every tile a look of its own, and seams between them.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RunningPool:
    """Gives each group of windows the mean over all groups that were seen so far, itself included.

    So windows behave like parts of one image from the first layer on. A group that passes again replaces what it
    contributed before.
    """

    def __init__(self) -> None:
        self._means: dict[int, list[Tensor]] = {}  # of each group at each pool
        self._areas: dict[int, int] = {}
        self._given: dict[int, list[Tensor]] = {}  # the vectors that it got there
        self._group = -1

    def begin(self, group: int) -> None:
        """Says which group passes next."""
        self._group, self._means[group], self._given[group] = group, [], []

    def __call__(self, mean: Tensor, area: int) -> Tensor:
        """Takes the mean over a group's cores, (C,), and their area; returns the vector to pool to."""
        position = len(self._given[self._group])
        self._areas[self._group] = area
        self._means[self._group].append(mean)
        vector = self._at(position)
        self._given[self._group].append(vector)
        return vector

    def _at(self, position: int) -> Tensor:
        """The estimate at one pool."""
        known = [(means[position], self._areas[group]) for group, means in self._means.items() if len(means) > position]
        weights = torch.tensor([float(area) for _, area in known], device=known[0][0].device)
        return (torch.stack([mean for mean, _ in known]) * (weights / weights.sum())[:, None]).sum(dim=0)

    def vectors(self) -> list[Tensor]:
        """The estimates so far, (C,) each, float32, in the order of the pools of a forward."""
        return [self._at(position) for position in range(len(self._given[self._group]))]

    def stalest(self) -> tuple[int, float]:
        """The group whose vectors are the furthest from the present estimate, and how far relative to their mean."""
        present = torch.stack(self.vectors())
        scale = present.abs().mean(dim=1, keepdim=True) + 1e-6
        distances = {
            group: float(((torch.stack(given) - present).abs() / scale).max()) for group, given in self._given.items()
        }
        group = max(distances, key=distances.__getitem__)
        return group, distances[group]
