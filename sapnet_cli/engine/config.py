"""How the engine is to run a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sapnet_cli.engine.tiles import OVERLAP
from sapnet_cli.errors import UsageError

MOST_INSISTENT = 2.0
"""Beyond, parts of the scene go with the rain."""


@dataclass(frozen=True)
class EngineConfig:
    """How to run the network.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32`, `bf16`, `fp16` or `int8`.
        tile: side of the square window that the network sees at once, in pixels; `auto`, or 0 for the whole image.
        overlap: context on each side of a tile that is computed and thrown away, in pixels.
        batch_size: tiles, or small images of one size, in one forward; or `auto`.
        stages: progressive dilated units to run; None for as many as the network was trained with.
        tile_statistics: where attention's pooled vectors come from when an image is tiled: `shared` estimates them
            unit by unit from a sample of it, and keeps what passes from unit to unit in a temporary file, `exact`
            computes them layer by layer over all of it, as is done anyway where memory allows.
        tta: test-time augmentation, also called self-ensemble: the mean over the eight flips and quarter turns of
            each picture, for eight times the time; over the four flips where the weights know upright pictures only.
        pyramid: levels, each a quarter as wide and high as the one before, that a picture is derained at: 1 is the
            picture alone, `auto` goes down to a tenth of a megapixel (`count_levels`).
        insist: how much rain a picture is taken to have at least, for rain that stays, where rainy photos have 1 on
            average: see `Insistence`. At most `MOST_INSISTENT`; `auto` insists where a picture hardly changes.
    """

    device: str = "auto"
    precision: str = "auto"
    tile: int | Literal["auto"] = "auto"
    overlap: int = OVERLAP
    batch_size: int | Literal["auto"] = "auto"
    stages: int | None = None
    tile_statistics: Literal["shared", "exact"] = "shared"
    tta: bool = False
    pyramid: int | Literal["auto"] = "auto"
    insist: float | Literal["auto"] = 0.0

    def __post_init__(self) -> None:
        """Refuses values that make no sense, with a `UsageError`."""
        if self.tile != "auto" and not (isinstance(self.tile, int) and self.tile >= 0):
            raise UsageError(f"tile {self.tile!r} is neither auto, 0 (the whole image) nor a side in pixels")
        if self.overlap < 0:
            raise UsageError(f"overlap {self.overlap} is negative")
        if self.tile != "auto" and self.tile and 2 * self.overlap >= self.tile:
            raise UsageError(
                f"an overlap of {self.overlap} on each side leaves nothing of a tile of {self.tile}; "
                "use a tile of more than twice the overlap"
            )
        if self.batch_size != "auto" and not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise UsageError(f"batch size {self.batch_size!r} is neither auto nor at least 1")
        if self.pyramid != "auto" and not (isinstance(self.pyramid, int) and self.pyramid >= 1):
            raise UsageError(f"pyramid {self.pyramid!r} is neither auto nor at least 1 level")
        if self.insist != "auto" and not 0 <= self.insist <= MOST_INSISTENT:
            raise UsageError(f"insist {self.insist} is neither auto nor from 0 to {MOST_INSISTENT:g}")
        if self.tile_statistics not in ("shared", "exact"):
            raise UsageError(f"tile statistics {self.tile_statistics!r} are neither 'shared' nor 'exact'")
