"""Random training crops from pairs held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sapnet_cli.data.pairs import Pair

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PairedPictures:
    """The decoded pairs of one set: rainy and clean, each (H, W, 3) uint8."""

    pictures: tuple[tuple[Pixels, Pixels], ...]


def read_pairs(pairs: Sequence[Pair]) -> PairedPictures:
    """Decodes pairs into memory.

    Raises:
        ValueError: a rainy picture and its ground truth differ in size.
    """
    pictures = []
    for pair in pairs:
        with Image.open(pair.rainy) as rainy, Image.open(pair.clean) as clean:
            if rainy.size != clean.size:
                raise ValueError(
                    f"{pair.rainy} is {rainy.size} but {pair.clean} is {clean.size}; resize neither, fix the set"
                )
            pictures.append((np.asarray(rainy.convert("RGB")), np.asarray(clean.convert("RGB"))))
    return PairedPictures(tuple(pictures))


class CropSampler:
    """Draws batches of random crops, flipped and turned by quarters, from several weighted sets."""

    def __init__(self, sets: Sequence[PairedPictures], weights: Sequence[float], seed: int) -> None:
        self.sets = sets
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.random = np.random.default_rng(seed)

    def draw(self, batch: int, patch: int) -> tuple[Pixels, Pixels]:
        """One batch: rainy and clean crops, each (batch, patch, patch, 3) uint8."""
        rainy_crops: list[Pixels] = []
        clean_crops: list[Pixels] = []
        for _ in range(batch):
            pictures = self.sets[self.random.choice(len(self.sets), p=self.shares)].pictures
            rainy, clean = pictures[self.random.integers(len(pictures))]
            top = self.random.integers(rainy.shape[0] - patch + 1)
            left = self.random.integers(rainy.shape[1] - patch + 1)
            turns, flip = int(self.random.integers(4)), self.random.integers(2)
            for picture, crops in ((rainy, rainy_crops), (clean, clean_crops)):
                crop = np.rot90(picture[top : top + patch, left : left + patch], turns)
                crops.append(crop[:, ::-1] if flip else crop)
        return np.stack(rainy_crops), np.stack(clean_crops)
