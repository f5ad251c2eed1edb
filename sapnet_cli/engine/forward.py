"""One forward over one picture, or over windows that share their statistics: what all ways to compute it have alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.engine.progress import Report, part_of

Values = TypeVar("Values")
"""NumPy's arrays, or tensors."""

Cores = Sequence[tuple[slice, slice]]
"""Rows and columns of each window that count in the pools."""


class Ranging:
    """What the forwards over one picture agree on from unit to unit: in floating point nothing."""

    def next_unit(self) -> None:
        """All of the picture has passed a unit."""

    def fork(self) -> Ranging:
        """The same so far, for windows that are not to be counted."""
        return self


class Forward(ABC, Generic[Values]):
    """Progressive dilated units, one after the other; attention's pools are those of a picture or as they are told.

    Attributes:
        count, height, width: of the windows.
        rainy: (N, H, W, 3), uint8, or float32 in [0, 1].
        residual: what the last estimate adds to it, (N, H, W, 3), float32.
        hidden, cell: the recurrent state, (N, H, W, C).
        cores: of each window what counts in the pools.
        pooled: the vectors that attention pooled so far, (C,) each.
        insistence: moves these; other windows of the picture may go on with it.
    """

    rainy: Values
    residual: Values
    hidden: Values
    cell: Values

    def __init__(
        self,
        shape: tuple[int, ...],
        blocks: int,
        cores: Cores | None,
        pool: Callable[[Values, Values], Values] | None,
        insistence: Insistence | None,
    ) -> None:
        """Takes the shape of the windows, how many residual blocks a unit has, and what `FusedForward` does."""
        self.count, self.height, self.width = shape[:3]
        self._blocks, self._pool = blocks, pool or average
        self.cores = cores or [(slice(0, self.height), slice(0, self.width))] * self.count
        self.pooled: list[Values] = []
        self.insistence = insistence

    def _find_edges(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """First row and end, first column and end of each core, (N, 4), and their areas, (N,)."""
        edges = np.array([(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in self.cores])
        areas = (edges[:, 1] - edges[:, 0]) * (edges[:, 3] - edges[:, 2])
        return edges.astype(np.int64), areas.astype(np.float32)

    @property
    def carried(self) -> tuple[Values, Values, Values]:
        """What a unit leaves to the next: hidden and cell state, and residual."""
        return self.hidden, self.cell, self.residual

    def units(self, stages: int, report: Report | None = None) -> None:
        """The first `stages` units. `report` is told of the progress, 0 to 1."""
        for stage in range(stages):
            if stage:
                self._next_unit()
            self.unit(stage, part_of(report, stage / stages, (stage + 1) / stages))

    def unit(self, number: int, report: Report | None = None) -> None:
        """One progressive dilated unit, counted from 0; the first ignores what is carried."""
        if self.insistence is not None:
            self.insistence.begin(number)
        self._remember(number == 0)
        features = self.hidden
        for index in range(self._blocks):
            if report is not None:
                report(index / self._blocks)
            features = self._block(index, features)
        self._project(features)

    @abstractmethod
    def pixels(self, dtype: np.dtype[Any]) -> list[Pixels]:
        """The estimate after the last unit as pictures of a dtype. No unit can follow.

        Raises:
            FloatingPointError: a value is not finite.
        """

    def _next_unit(self) -> None:
        """All of the picture has passed a unit."""

    @abstractmethod
    def _remember(self, first_unit: bool) -> None:
        """Embeds rainy image and estimate and moves the recurrent state one step on."""

    @abstractmethod
    def _block(self, index: int, features: Values) -> Values:
        """A residual block."""

    @abstractmethod
    def _project(self, features: Values) -> None:
        """What the next estimate adds to the rainy image."""

    def _vector_of(self, means: Values, areas: Values) -> Values:
        """What attention looks at, (C,), of what each core has on average, (N, C), and their areas, (N,)."""
        pooled = self._pool_of(means, areas)
        return pooled if self.insistence is None else self.insistence(pooled)  # type: ignore[type-var]

    def _pool_of(self, means: Values, areas: Values) -> Values:
        """What the picture has, (C,)."""
        self.pooled.append(self._pool(means, areas))
        return self.pooled[-1]


def average(means: Any, areas: Any) -> Any:
    """The mean over cores, of the means over each, (N, C), and their areas, (N,)."""
    return means[0] if len(means) == 1 else (areas / areas.sum()) @ means
