"""Rain that stays because attention, which judges a picture as a whole, takes it for nearly dry."""

from __future__ import annotations

import math

from torch import Tensor


class Insistence:
    """Lets attention see at least so much rain, in one forward.

    How much the first unit sees is where its pooled vectors lie, all together, on the way from those of pictures
    without rain, 0, to those of pictures with it, 1. Of the further units they are moved along that way by what is
    missing; what sees enough is left alone.

    Attributes:
        seen: how much rain, (); of no meaning before the first unit is over.
    """

    def __init__(self, means: Tensor, at_least: float, known: float = -math.inf) -> None:
        """Takes `SAPNet.rain_means`, how much rain there is to be, and how much is known to be there anyway."""
        self._dry, self._way = means[0, 0], means[1] - means[0]
        self._missing = max(0.0, at_least - known)
        self._at_least = at_least
        self._scale = 1 / self._way[0].square().sum().clamp_min(1e-12)
        self._position = 0
        self.seen = means.new_zeros(())

    def begin(self, unit: int) -> None:
        """From here on vectors are those of a unit, counted from 0; they go on to the next by themselves."""
        self._position = unit * len(self._dry)

    def __call__(self, vector: Tensor) -> Tensor:
        """What a picture's vector, (C,), becomes: the next pool's in order."""
        unit, pool = divmod(self._position, len(self._dry))
        self._position += 1
        way = self._way[unit, pool]
        if unit == 0:
            self.seen = self.seen + (vector - self._dry[pool]) @ way * self._scale
            return vector
        return vector + (self._at_least - self.seen).clamp(0, self._missing) * way
