"""Random training crops, each a function of the seed and its place in the run and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from sapnet_cli.data.pairs import Pair
from sapnet_cli.data.pictures import CheckedPair, PictureCache, Pixels
from sapnet_cli.data.rain import RainGenerator

Picture = TypeVar("Picture", Pixels, NDArray[np.float32])
LARGER_CROPS = (1.5, 2.0)
"""Scales that `Augmentation.fine` shrinks crops by."""

COARSER = (1.25, 2.5)
"""Scales that `Augmentation.coarse` enlarges rain by, and `Augmentation.enlarge` pictures."""

SLANTED = 60.0
"""Degrees, to either side, that `Augmentation.slant` turns rain by."""

PATCHWORK = (0.03, 0.6)
"""Share of a crop that `Augmentation.patchwork` fills with something else."""

SEEN = (0.05, 0.5)
"""Share of a crop where rain is seen, of `Augmentation.partial`."""

SOFT_GREY, SOFT_EDGE = (3.0, 25.0), (0.005, 0.1)
"""How slowly it goes over into what is dry: in 255ths, and in sides of the crop."""

DIMMED, TINTED = (0.35, 1.0), 0.7
"""Brightness that `Augmentation.dim` leaves to a crop's brightest channel, and how much less of it others may have."""

NOISE, GRAIN = (1.0, 12.0), (0.4, 1.0)
"""Standard deviation of `Augmentation.noise`, in 255ths, and sigma in pixels of the blur that half of it passes."""

WHITE = 255

LAYER_TRIES, MOST_WHITE = 5, 0.15
"""How often to look for a crop to lift rain off, and the share of white pixels that it should be below."""

INPAINTING_RADIUS = 3
"""In pixels, about the width of a streak."""


@dataclass(frozen=True)
class Augmentation:
    """How a crop is changed; the last ten because real rain has more faces than the public sets.

    Attributes:
        flip: whether crops are mirrored, left to right and upside down: rain stays upright.
        turn: whether crops are turned by quarters, so that rain may come from any side.
        recombine: probability that a crop's rain is lifted off another pair of the same set.
        mix: probability that rain of any pair of any set, weakened, falls on top: light with heavy.
        faint: probability that the rain is weakened, to anything from nothing to all of it.
        fine: probability that a larger crop is shrunk, by 1.5 or 2, which makes streaks finer and denser.
        coarse: probability that the rain is enlarged, by up to 2.5, as photos of many pixels have it.
        enlarge: probability that a part of the crop is enlarged to all of it, by up to 2.5, scene and rain alike:
            photos of many pixels are smooth.
        slant: probability that the rain of a pair, lifted off another one of its set, is turned by up to 60 degrees:
            in the public sets rain falls within some 20 of the vertical, in a storm it does not.
        partial: probability that rain is seen before half of the crop or less: it shows before what is dark, and often
            falls on one side only.
        patchwork: probability that a part of the crop is of another one, with its rain or dry, or a plain bar:
            attention sees means over the whole, and photos have sheltered parts and black borders.
        dim: probability that the crop is darkened and tinted, rain and all, as in the evening and under lamps.
        noise: probability that crop and ground truth have the same noise of a sensor, half of it blurred as cameras do.
    """

    flip: bool = True
    turn: bool = True
    recombine: float = 0.0
    mix: float = 0.0
    faint: float = 0.0
    fine: float = 0.0
    coarse: float = 0.0
    enlarge: float = 0.0
    slant: float = 0.0
    partial: float = 0.0
    patchwork: float = 0.0
    dim: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class CropSource:
    """One set to draw from.

    Attributes:
        pairs: the good pairs; of clean photos, each is its own partner.
        weight: share of the crops, next to the other sets' weights.
        rain: what rains on clean photos; None for pairs.
    """

    pairs: tuple[CheckedPair, ...]
    weight: float = 1.0
    rain: RainGenerator | None = None


@dataclass(frozen=True)
class BatchRequest:
    """Which crops a step wants.

    Attributes:
        iteration: number of the step.
        first: place of the first crop in the step's batch over all processes.
        count: how many crops.
        patch: their side in pixels.
    """

    iteration: int
    first: int
    count: int
    patch: int


class CropSampler:
    """Draws random crops from weighted sets.

    Crop j of step i is drawn by a generator seeded with (seed, i, j). So a run that is taken up again goes on with the
    very crops that it would have seen, and several processes draw together what one would have drawn alone.
    """

    def __init__(
        self, sources: Sequence[CropSource], cache: PictureCache, seed: int, augmentation: Augmentation | None = None
    ) -> None:
        self.sources, self.cache, self.seed = sources, cache, seed
        self.augmentation = augmentation or Augmentation()
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self._shares = weights / weights.sum()

    def batch(self, request: BatchRequest) -> tuple[Pixels, Pixels]:
        """Rainy crops and their ground truth, each (count, patch, patch, 3) uint8.

        Raises:
            ImageError: a file that was good when the run began cannot be read any more.
        """
        places = range(request.first, request.first + request.count)
        crops = [self.crop(request.iteration, place, request.patch) for place in places]
        return np.stack([rainy for rainy, _ in crops]), np.stack([clean for _, clean in crops])

    def crop(self, iteration: int, place: int, patch: int) -> tuple[Pixels, Pixels]:
        """One rainy crop and its ground truth, each (patch, patch, 3) uint8."""
        random = np.random.default_rng((self.seed, iteration, place))
        rainy, clean = self._rained_on(patch, random)
        if random.random() < self.augmentation.partial:
            seen = _before_dark(clean, random) if random.integers(2) else _soft_part(patch, random)
            rainy = np.rint(clean + seen * (rainy.astype(np.float32) - clean)).astype(np.uint8)
        if random.random() < self.augmentation.patchwork:
            part = _side_part(patch, random)
            other_rainy, other_clean = self._elsewhere(patch, random)
            rainy, clean = np.where(part, other_rainy, rainy), np.where(part, other_clean, clean)
        if random.random() < self.augmentation.enlarge:
            scale = random.uniform(*COARSER)
            rainy, clean = _enlarged(rainy, scale), _enlarged(clean, scale)
        if random.random() < self.augmentation.dim:
            tint = 1 - TINTED * random.random(3)
            light = random.uniform(*DIMMED) * tint / tint.max()
            rainy, clean = (np.rint(picture * light).astype(np.uint8) for picture in (rainy, clean))
        if random.random() < self.augmentation.noise:
            noise = np.rint(_noise(patch, random))  # before it is added: else the two may be rounded differently
            rainy, clean = (np.clip(picture + noise, 0, WHITE).astype(np.uint8) for picture in (rainy, clean))
        return rainy, clean

    def _elsewhere(self, patch: int, random: np.random.Generator) -> tuple[Pixels, Pixels]:
        """What patchwork puts into a crop and its ground truth: another crop, with its rain or dry, or one grey."""
        kind = random.integers(3)
        if kind == 0:
            bar = np.full((patch, patch, 3), (0, WHITE, random.integers(WHITE))[random.integers(3)], np.uint8)
            return bar, bar
        rainy, clean = self._rained_on(patch, random)
        return (rainy if kind == 1 else clean), clean

    def _rained_on(self, patch: int, random: np.random.Generator) -> tuple[Pixels, Pixels]:
        """A rainy crop of one scene and its ground truth, each (patch, patch, 3) uint8."""
        change = self.augmentation
        source = self._source(random)
        rainy, clean = self._cut(source, patch, random)
        if source.rain is not None:
            rainy, clean = source.rain.draw(clean, random)
        chances = (change.recombine, change.mix, change.faint, change.coarse, change.slant)
        recombined, mixed, faint, coarse, slanted = (random.random() < chance for chance in chances)
        if not (recombined or mixed or faint or coarse or slanted):
            return rainy, clean
        if slanted and source.rain is None:
            layer = _turned(rain_layer(*self._cut_uncovered(source, math.ceil(patch * 2**0.5), random)), patch, random)
        elif recombined and source.rain is None:
            layer = rain_layer(*self._cut_uncovered(source, patch, random))
        else:
            layer = rain_layer(rainy, clean)
        if coarse:
            layer = _enlarged(layer, random.uniform(*COARSER))
        if faint:
            layer = layer * np.float32(random.random())
        if mixed:
            other = self._source(random)
            crops = self._cut(other, patch, random)
            if other.rain is not None:
                crops = other.rain.draw(crops[1], random)
            layer = layer + np.float32(random.random()) * rain_layer(*crops)
        return np.clip(np.rint(clean + layer), 0, 255).astype(np.uint8), clean

    def _source(self, random: np.random.Generator) -> CropSource:
        return self.sources[int(random.choice(len(self.sources), p=self._shares))]

    def _cut(self, source: CropSource, patch: int, random: np.random.Generator) -> tuple[Pixels, Pixels]:
        """The same random square of both pictures of a random pair, flipped, turned and scaled alike."""
        pair: Pair = source.pairs[int(random.integers(len(source.pairs)))].pair
        pictures = self.cache.read(pair)
        height, width = pictures[0].shape[:2]
        side = patch
        if random.random() < self.augmentation.fine:
            side = max(patch, min(int(patch * random.choice(LARGER_CROPS)), height, width))
        top, left = (int(random.integers(max(0, size - side) + 1)) for size in (height, width))
        turns, mirrored = self._view(random)
        rainy, clean = (
            _square(picture[top : top + side, left : left + side], side, patch, turns, mirrored) for picture in pictures
        )
        return rainy, clean

    def _cut_uncovered(self, source: CropSource, patch: int, random: np.random.Generator) -> tuple[Pixels, Pixels]:
        """As `_cut`, not of white skies, which hide the rain before them; the last of a few tries is taken anyway."""
        for _ in range(LAYER_TRIES):
            rainy, clean = self._cut(source, patch, random)
            if (rainy == WHITE).all(axis=2).mean() < MOST_WHITE:
                break
        return rainy, clean

    def _view(self, random: np.random.Generator) -> tuple[int, bool]:
        """Quarter turns, and whether to mirror after them."""
        change = self.augmentation
        turns = int(random.integers(4)) if change.turn else 2 * int(random.integers(2)) if change.flip else 0
        return turns, change.flip and bool(random.integers(2))


class CropLoader:
    """Draws batches ahead in threads, so that the network never waits for them."""

    def __init__(self, sampler: CropSampler, workers: int) -> None:
        """Draws in so many threads, with twice as many batches under way; nothing ahead if there are none."""
        self._sampler, self._ahead = sampler, 2 * workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="crops") if workers else None
        self._coming: dict[BatchRequest, Future[tuple[Pixels, Pixels]]] = {}

    def get(self, request: BatchRequest, last: int | None = None) -> tuple[Pixels, Pixels]:
        """The crops of a step; those of the following steps, up to `last`, are begun. Raises as `CropSampler.batch`."""
        if self._pool is None:
            return self._sampler.batch(request)
        coming: dict[BatchRequest, Future[tuple[Pixels, Pixels]]] = {}
        for iteration in range(request.iteration, request.iteration + self._ahead + 1):
            if last is not None and iteration > max(last, request.iteration):
                break
            wanted = BatchRequest(iteration, request.first, request.count, request.patch)
            begun = self._coming.pop(wanted) if wanted in self._coming else None
            coming[wanted] = begun or self._pool.submit(self._sampler.batch, wanted)
        for future in self._coming.values():  # of another size than is wanted now
            future.cancel()
        self._coming = coming
        return coming.pop(request).result()

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _enlarged(picture: Picture, scale: float) -> Picture:
    """The upper left part of a square crop, in as many pixels as the whole."""
    side, part = len(picture), int(len(picture) / scale)
    return np.asarray(cv2.resize(picture[:part, :part], (side, side), interpolation=cv2.INTER_CUBIC), picture.dtype)


def _noise(patch: int, random: np.random.Generator) -> NDArray[np.float32]:
    """White or blurred, of one strength for the crop, in 255ths, (patch, patch, 3)."""
    noise = random.standard_normal((patch, patch, 3), np.float32)
    if random.integers(2):
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), random.uniform(*GRAIN)), np.float32)
    deviation = np.exp(random.uniform(*np.log(NOISE)))
    return noise * np.float32(deviation / noise.std())


def _before_dark(clean: Pixels, random: np.random.Generator) -> NDArray[np.float32]:
    """How much of its rain is seen before each pixel of a photo, (patch, patch, 1): most before what is darkest."""
    grey = cv2.GaussianBlur(clean.mean(axis=2, dtype=np.float32), (0, 0), random.uniform(2, 12))
    return _lowest(np.asarray(grey, np.float32), SOFT_GREY, random)


def _soft_part(patch: int, random: np.random.Generator) -> NDArray[np.float32]:
    """A side of the crop, any way around, where it rains, (patch, patch, 1), 1 where it does and 0 where not."""
    angle = random.uniform(0, 2 * np.pi)
    place = np.linspace(-0.5, 0.5, patch, dtype=np.float32)
    return _lowest(np.cos(angle) * place[:, None] + np.sin(angle) * place, SOFT_EDGE, random)


def _lowest(plane: NDArray[np.floating], soft: tuple[float, float], random: np.random.Generator) -> NDArray[np.float32]:
    """Where a plane (patch, patch) is lowest, in a share `SEEN` of it, going over softly: (patch, patch, 1), 1 to 0."""
    above = plane - np.quantile(plane, random.uniform(*SEEN))
    # the logistic function, by one that cannot overflow
    return np.asarray(0.5 - 0.5 * np.tanh(above / np.float32(2 * random.uniform(*soft))), np.float32)[..., None]


def _side_part(patch: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Where something else is: a strip along one of the sides, (patch, patch, 1)."""
    reached = np.arange(patch) < max(1, patch * random.uniform(*PATCHWORK))
    part = np.broadcast_to(reached[:, None, None], (patch, patch, 1))
    return np.rot90(part, int(random.integers(4)))


def rain_layer(rainy: Pixels, clean: Pixels) -> NDArray[np.float32]:
    """What rain added to a picture: (H, W, 3), in 255ths, to be added to another one.

    The sum was cut at white, so the difference of the two is too small wherever the photo was bright, and shows its
    outlines. Rain is grey: a channel that was cut has the value of one that was not; where all three were, that of the
    pixels around, or the difference if that is larger.

    Args:
        rainy: (H, W, 3).
        clean: its ground truth, the same shape.
    """
    layer = rainy.astype(np.float32) - clean
    cut = rainy == WHITE
    if not cut.any():
        return layer
    brightest = np.clip(layer.max(axis=2), 0, WHITE).astype(np.uint8)
    unknown = cut.all(axis=2).astype(np.uint8)
    around = cv2.inpaint(brightest, unknown, INPAINTING_RADIUS, cv2.INPAINT_TELEA)
    return np.where(cut, np.maximum(brightest, around)[:, :, None], layer).astype(np.float32)


def _turned(layer: NDArray[np.float32], patch: int, random: np.random.Generator) -> NDArray[np.float32]:
    """The middle, (patch, patch, 3), of a larger layer of rain that is turned by some angle."""
    matrix = cv2.getRotationMatrix2D((layer.shape[1] / 2, layer.shape[0] / 2), random.uniform(-SLANTED, SLANTED), 1)
    matrix[:, 2] += (patch - layer.shape[1]) / 2, (patch - layer.shape[0]) / 2
    turned = cv2.warpAffine(layer, matrix, (patch, patch), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.float32)


def _square(part: Pixels, side: int, patch: int, turns: int, mirrored: bool) -> Pixels:
    """Turns, flips and scales a part of a picture to (patch, patch, 3); what it lacks is mirrored at its edges."""
    lacking = (side - part.shape[0], side - part.shape[1])
    if any(lacking):
        part = np.pad(part, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")
    part = np.rot90(part, turns)
    part = np.ascontiguousarray(part[:, ::-1] if mirrored else part)
    if side != patch:
        part = cv2.resize(part, (patch, patch), interpolation=cv2.INTER_AREA).astype(np.uint8)
    return part
