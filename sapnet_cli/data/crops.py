"""Random training crops from pairs held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
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
        if pair.rainy == pair.clean:
            with Image.open(pair.rainy) as both:
                left, right = np.split(np.asarray(both.convert("RGB"))[:, : both.width // 2 * 2], 2, axis=1)
            pictures.append((right, left) if pair.clean_left else (left, right))
            continue
        with Image.open(pair.rainy) as rainy, Image.open(pair.clean) as clean:
            if rainy.size != clean.size:
                raise ValueError(
                    f"{pair.rainy} is {rainy.size} but {pair.clean} is {clean.size}; resize neither, fix the set"
                )
            pictures.append((np.asarray(rainy.convert("RGB")), np.asarray(clean.convert("RGB"))))
    return PairedPictures(tuple(pictures))


@dataclass(frozen=True)
class Variety:
    """How often a crop is changed beyond flips and quarter turns, since real rain has more faces than the sets.

    Attributes:
        faint: probability that the rain is dimmed, to anything from nothing to all of it.
        fine: probability that a larger crop is shrunk, by 1.5 or 2, which makes streaks finer and denser.
    """

    faint: float = 0.0
    fine: float = 0.0


class CropSampler:
    """Draws batches of random crops, flipped and turned by quarters, from several weighted sets."""

    def __init__(
        self, sets: Sequence[PairedPictures], weights: Sequence[float], seed: int, variety: Variety | None = None
    ) -> None:
        self.sets, self.variety = sets, variety or Variety()
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.random = np.random.default_rng(seed)

    def draw(self, batch: int, patch: int) -> tuple[Pixels, Pixels]:
        """One batch: rainy and clean crops, each (batch, patch, patch, 3) uint8."""
        rainy_crops: list[Pixels] = []
        clean_crops: list[Pixels] = []
        for _ in range(batch):
            pictures = self.sets[self.random.choice(len(self.sets), p=self.shares)].pictures
            rainy, clean = pictures[self.random.integers(len(pictures))]
            side = patch
            if self.random.random() < self.variety.fine:
                side = min(int(patch * self.random.choice((1.5, 2.0))), *rainy.shape[:2])
            top = self.random.integers(rainy.shape[0] - side + 1)
            left = self.random.integers(rainy.shape[1] - side + 1)
            turns, flip = int(self.random.integers(4)), self.random.integers(2)
            crop_pair = []
            for picture in (rainy, clean):
                crop = np.rot90(picture[top : top + side, left : left + side], turns)
                crop = crop[:, ::-1] if flip else crop
                if side != patch:
                    shrunk = cv2.resize(np.ascontiguousarray(crop), (patch, patch), interpolation=cv2.INTER_AREA)
                    crop = shrunk.astype(np.uint8)
                crop_pair.append(crop)
            if self.random.random() < self.variety.faint:
                strength = self.random.random()
                crop_pair[0] = np.rint(strength * crop_pair[0] + (1 - strength) * crop_pair[1]).astype(np.uint8)
            rainy_crops.append(crop_pair[0])
            clean_crops.append(crop_pair[1])
        return np.stack(rainy_crops), np.stack(clean_crops)
