"""Rain that stays because attention, which judges a picture as a whole, takes it for nearly dry."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sapnet_cli.model.arrays import AnyArray, Array


class Insistence:
    """Lets attention see at least so much rain, in one forward.

    How much the first unit sees is where its pooled vectors lie, all together, on the way from those of pictures
    without rain, 0, to those of pictures with it, 1. Of the further units they are moved along that way by what is
    missing; what sees enough is left alone.

    Attributes:
        seen: how much rain; of no meaning before the first unit is over.
    """

    def __init__(self, means: Array, at_least: float, known: float = -math.inf) -> None:
        """Takes `SAPNet.rain_means`, how much rain there is to be, and how much is known to be there anyway."""
        self._dry, self._way = means[0, 0], means[1] - means[0]
        self._missing = max(0.0, at_least - known)
        self._at_least = at_least
        self._scale = 1 / max(float((self._way[0] ** 2).sum()), 1e-12)
        self._position = 0
        self.seen = 0.0

    def begin(self, unit: int) -> None:
        """From here on vectors are those of a unit, counted from 0; they go on to the next by themselves."""
        self._position = unit * len(self._dry)

    def __call__(self, vector: AnyArray) -> AnyArray:
        """What a picture's vector, (C,), becomes: the next pool's in order."""
        unit, pool = divmod(self._position, len(self._dry))
        self._position += 1
        way = self._way[unit, pool]
        if unit == 0:
            self.seen += float((vector - self._dry[pool]) @ way) * self._scale
            return vector
        return vector + min(max(0.0, self._at_least - self.seen), self._missing) * way
