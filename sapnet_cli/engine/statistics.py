"""Attention's pooled vectors where an image is too large to keep its features: a sample of it, and what that lacks.

Channel residual attention scales each channel by what a pool over the *whole* image sees, and each pool follows from
those before it. Tiles that pool over themselves give every tile a look of its own, and seams between them. So a
sample of windows pools first, for the whole image; then the image passes, pooled to what the sample gave, and is
measured: what was found of it and of the sample says what the means should have been, and what the sample means for it
in the next unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.cores import computing_cores
from sapnet_cli.engine.native import Values
from sapnet_cli.engine.pixels import ROWS, Pixels, to_batch, to_float
from sapnet_cli.engine.tiles import Span, Tile, TilePlan, plan_tiles
from sapnet_cli.model import compiled, native

SAMPLE_WINDOWS, SAMPLE_SIDES = (16, 32), (64, 192)
"""Of the windows that stand for a tiled image, the fewest and the most, and the smallest and the largest side."""

SAMPLE_MARGIN = 1 / 6
"""The context in them, as a share of the side. Of the largest, it moves the last means by less than 1 %."""

ENOUGH_PIXELS = 500_000
"""A sample of so many is near enough to a large image; with a smaller one, more is measured."""

RIDGE = 0.1
"""How much `calibrate` is held back, as a share of how far apart windows are."""

LEAST_SPREAD = 1e-3
"""Windows that differ by less of their mean tell nothing."""

EXCHANGES = 20
"""At most so many times each window is exchanged for a better one; on photos three to six times were enough."""


class SamplePool:
    """Pools a sample to what it says of the image's mean.

    That is its own mean at first. Once both were found to be something before, the image is taken to have changed as
    the sample has, of which each window weighs as `calibrate` says.

    Attributes:
        windows: mean over each window so far, (N, C) each, in the order of the pools of a forward.
        vectors: that it gave.
    """

    def __init__(self, before: Sequence[tuple[Values, Values]] = ()) -> None:
        """Takes what windows and image had before at each pool, (N, C) and (C,)."""
        self._known, self._before = before, iter(before)
        self._weights: Values | None = None
        self.windows: list[Values] = []
        self.vectors: list[Values] = []

    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self, means: Values, areas: Values) -> Values:
        """Takes the mean over each window, (N, C), and their areas, (N,); returns the vector to pool to."""
        if self._weights is None:
            self._weights = calibrate(self._known, areas)
        windows, image = next(self._before, (np.float32(0), np.float32(0)))
        self.windows.append(means)
        self.vectors.append(image + self._weights @ (means - windows))
        return self.vectors[-1]


class MeasuringPool:
    """Pools to given vectors, and finds out what would have been the image's, as its tiles pass one by one."""

    def __init__(self, given: Sequence[Values]) -> None:
        """Takes the vectors, (C,) each, in the order of the pools of a forward."""
        self._given = given
        self._sums = [np.zeros_like(vector) for vector in given]
        self._area = 0.0
        self._position = 0

    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self, means: Values, areas: Values) -> Values:
        """Takes the mean over the core of some tiles each, (N, C), and areas, (N,); returns the vector to pool to."""
        position = self._position
        self._sums[position] += areas @ means
        self._area += float(areas.sum()) if position == 0 else 0
        self._position = (position + 1) % len(self._given)
        return self._given[position]

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, other: MeasuringPool) -> None:
        """Takes over what another, of the same vectors, found of other tiles."""
        for total, more in zip(self._sums, other._sums):
            total += more
        self._area += other._area

    @property
    def means(self) -> list[Values]:
        """Over all tiles that passed, (C,) each."""
        return [total / np.float32(self._area) for total in self._sums]


@np.errstate(over="ignore", invalid="ignore")
def calibrate(known: Sequence[tuple[Values, Values]], areas: Values) -> Values:
    """What windows are to weigh so that they mean what the image does: by their areas, and some more or less.

    As much so as these few can tell, and none less than nothing: a ridge regression, survey sampling's calibration of
    weights.

    Args:
        known: of windows and image, (N, F) and (F,); each such group counts as much as another.
        areas: of windows, (N,).

    Returns:
        (N,), which adds up to 1; by their areas alone where nothing is known, or what is not finite.
    """
    shares = areas.astype(np.float64) / float(areas.sum())
    if not known or not all(bool(np.isfinite(each).all()) for both in known for each in both):
        return shares.astype(np.float32)
    apart, missing = [], []
    for windows, image in ((windows.astype(np.float64), image.astype(np.float64)) for windows, image in known):
        mean = shares @ windows
        scale = max(float(np.sqrt(np.square(windows - mean).mean())), LEAST_SPREAD * float(np.abs(mean).mean()) + 1e-12)
        apart.append((windows - mean) / scale)
        missing.append((image - mean) / scale)
    features = np.concatenate(apart, axis=1)
    alike = features @ features.T + RIDGE * features.shape[1] * np.eye(len(features))
    more = np.linalg.solve(alike, features @ np.concatenate(missing))
    more -= shares * more.sum()
    as_much = min(1.0, float((shares / np.maximum(-more, 1e-12)).min()))
    return (shares + as_much * more).astype(np.float32)


@dataclass(frozen=True)
class ResidualChange:
    """What is added to the residual of a pixel, by its colours.

    Attributes:
        linear: (7, 3): what the rainy colour, the residual and one add to each channel of it.
        most: (3,): by which no channel is changed more.
        typical: how large the change was that it stands for: root of the mean square.
    """

    linear: Values
    most: Values
    typical: float

    @np.errstate(over="ignore", invalid="ignore")
    def add_to(self, residual: Values, rainy: Pixels) -> None:
        """Mends residuals (N, H, W, 3) of images like them, uint8, or float32 in [0, 1]."""
        if compiled.is_available():
            native.change(residual, rainy, self.linear, self.most)
            return
        for start in range(0, residual.shape[1], ROWS):
            there, seen = residual[:, start : start + ROWS], to_float(rainy[:, start : start + ROWS])
            change = seen @ self.linear[:3] + there @ self.linear[3:6] + self.linear[6]
            there += np.clip(change, -self.most, self.most)


@np.errstate(over="ignore", invalid="ignore")
def residual_change(rainy: Pixels, before: Values, after: Values) -> ResidualChange | None:
    """That which comes nearest to what became of the residuals of images: least squares over all pixels.

    Args:
        rainy: (N, H, W, 3), uint8, or float32 in [0, 1].
        before: (N, H, W, 3).
        after: the same shape.

    Returns:
        None where they are not finite.
    """
    alike, missing = np.zeros((7, 7)), np.zeros((7, 3))
    most, squares = np.zeros(3, np.float32), 0.0
    for seen, old, new in zip(rainy, before, after):
        both = np.concatenate((to_float(seen), old, np.ones_like(old[..., :1])), axis=-1)
        colours, changes = both.reshape(-1, 7).astype(np.float64), (new - old).reshape(-1, 3)
        alike += colours.T @ colours
        missing += colours.T @ changes.astype(np.float64)
        most = np.maximum(most, np.abs(changes).max(axis=0))
        squares += float(np.square(changes).mean()) / len(rainy)
    if not (np.isfinite(alike).all() and np.isfinite(missing).all()):
        return None
    inverse = np.linalg.pinv(alike, len(alike) * np.finfo(np.float64).eps, hermitian=True)
    return ResidualChange((inverse @ missing).astype(np.float32), most, math.sqrt(squares))


@dataclass(frozen=True)
class Sample:
    """Windows that stand for an image: some of the tiles of a plan."""

    plan: TilePlan
    tiles: Sequence[Tile]

    @property
    def small(self) -> bool:
        """Whether an image is to pass each unit only to be measured, before it counts."""
        return len(self.tiles) * math.prod(self.plan.window) < ENOUGH_PIXELS

    @cached_property
    def stacked(self) -> TilePlan:
        """The windows one below the other, each of them whole."""
        height, width = self.plan.window
        starts = range(0, len(self.tiles) * height, height)
        return TilePlan(
            (height, width), tuple(Tile(Span(start, start, start + height), Span(0, 0, width)) for start in starts)
        )


def choose_sample(image: Pixels, room: int) -> Sample:
    """Windows of at most `room` pixels together that stand for an image (H, W, 3)."""
    (fewest, most), (smallest, largest) = SAMPLE_WINDOWS, SAMPLE_SIDES
    side = min(max(math.isqrt(room // fewest), smallest), largest)
    height, width = image.shape[:2]
    plan = plan_tiles(height, width, side, int(side * SAMPLE_MARGIN))
    count = min(room // math.prod(plan.window), most)
    return Sample(plan, representative(image, plan, max(1, count)))


def representative(image: Pixels, plan: TilePlan, count: int) -> list[Tile]:
    """So many of the tiles of an image (H, W, 3), from the smooth to the textured, that together look like all of it.

    Tiles at even distances are a beginning. Each is then exchanged for that with which the mean of what `_describe`
    says comes nearest to the image's, until none is: a fifth to a third of the error of attention's means remains.
    """
    with ThreadPoolExecutor(computing_cores(), thread_name_prefix="describe") as threads:
        described = np.stack(list(threads.map(_describe, (image[tile.core] for tile in plan.tiles))))
    areas = [math.prod(image[tile.core].shape[:2]) for tile in plan.tiles]
    apart = described - np.average(described, axis=0, weights=areas)
    apart /= apart.std(axis=0) + 1e-6
    ranked = np.argsort(described[:, -1], kind="stable")
    count = min(count, len(ranked))
    chosen = [int(ranked[(2 * index + 1) * len(ranked) // (2 * count)]) for index in range(count)]
    for _ in range(EXCHANGES):
        before = list(chosen)
        for index in range(count):
            others = chosen[:index] + chosen[index + 1 :]
            distances = ((apart[others].sum(axis=0) + apart) ** 2).sum(axis=1)
            distances[others] = np.inf
            chosen[index] = int(distances.argmin())
        if chosen == before:
            break
    return [plan.tiles[tile] for tile in sorted(chosen, key=lambda tile: float(described[tile, -1]))]


def _describe(pixels: Pixels) -> NDArray[np.float64]:
    """Mean colour, how many of the greens lie below some levels, and how much neighbours differ."""
    rgb = to_float(to_batch([pixels]))[0]
    green = rgb[..., 1]
    shares = [(green < level).mean() for level in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)]
    steps = [np.abs(np.diff(green, axis=axis, prepend=np.take(green, [0], axis))) for axis in (0, 1)]
    texture = [each.mean() for step in steps for each in (np.sqrt(step), step)]
    return np.array([*rgb.mean(axis=(0, 1)), *shares, *texture], np.float64)
