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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapnet_cli.engine.tensors import to_float, to_tensor
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

CHANGED_ROWS = 16
"""Of residuals, that are changed at once."""

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

    def __init__(self, before: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        """Takes what windows and image had before at each pool, (N, C) and (C,)."""
        self._known, self._before = before, iter(before)
        self._weights: Tensor | None = None
        self.windows: list[Tensor] = []
        self.vectors: list[Tensor] = []

    def __call__(self, means: Tensor, areas: Tensor) -> Tensor:
        """Takes the mean over each window, (N, C), and their areas, (N,); returns the vector to pool to."""
        if self._weights is None:
            self._weights = calibrate(self._known, areas).to(means)
        windows, image = next(self._before, (0, 0))
        self.windows.append(means)
        self.vectors.append(image + self._weights @ (means - windows))
        return self.vectors[-1]


class MeasuringPool:
    """Pools to given vectors, and finds out what would have been the image's, as its tiles pass one by one."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        """Takes the vectors, (C,) each, in the order of the pools of a forward."""
        self._given = given
        self._sums = [torch.zeros_like(vector) for vector in given]
        self._area = 0.0
        self._position = 0

    def __call__(self, means: Tensor, areas: Tensor) -> Tensor:
        """Takes the mean over the core of some tiles each, (N, C), and areas, (N,); returns the vector to pool to."""
        position = self._position
        self._sums[position] += areas @ means
        self._area += float(areas.sum()) if position == 0 else 0
        self._position = (position + 1) % len(self._given)
        return self._given[position]

    @property
    def means(self) -> list[Tensor]:
        """Over all tiles that passed, (C,) each."""
        return [total / self._area for total in self._sums]


def calibrate(known: Sequence[tuple[Tensor, Tensor]], areas: Tensor) -> Tensor:
    """What windows are to weigh so that they mean what the image does: by their areas, and some more or less.

    As much so as these few can tell, and none less than nothing: a ridge regression, survey sampling's calibration of
    weights.

    Args:
        known: of windows and image, (N, F) and (F,); each such group counts as much as another.
        areas: of windows, (N,).

    Returns:
        (N,), which adds up to 1; by their areas alone where nothing is known, or what is not finite.
    """
    shares = areas.cpu().double() / float(areas.sum())
    if not known or not all(bool(torch.isfinite(image).all()) for _, image in known):
        return shares.float()
    apart, missing = [], []
    for windows, image in ((windows.cpu().double(), image.cpu().double()) for windows, image in known):
        mean = shares @ windows
        scale = (windows - mean).square().mean().sqrt().clamp_min(LEAST_SPREAD * float(mean.abs().mean()) + 1e-12)
        apart.append((windows - mean) / scale)
        missing.append((image - mean) / scale)
    features = torch.cat(apart, dim=1)
    alike = features @ features.T
    alike.diagonal().add_(RIDGE * features.shape[1])
    more = torch.linalg.solve(alike, features @ torch.cat(missing))
    more -= shares * more.sum()
    as_much = min(1.0, float((shares / (-more).clamp_min(1e-12)).min()))
    weights: Tensor = shares + as_much * more
    return weights.float()


@dataclass(frozen=True)
class ResidualChange:
    """What is added to the residual of a pixel, by its colours.

    Attributes:
        linear: (7, 3): what the rainy colour, the residual and one add to each channel of it.
        most: (3,): by which no channel is changed more.
        typical: how large the change was that it stands for: root of the mean square.
    """

    linear: Tensor
    most: Tensor
    typical: float

    def add_to(self, residual: Tensor, rainy: Tensor) -> None:
        """Mends residuals (N, H, W, 3) of images like them, uint8, or float32 in [0, 1]."""
        if residual.device.type == "cpu" and compiled.is_available():
            native.change(residual, rainy.contiguous(), self.linear, self.most)
            return
        linear, most = self.linear.to(residual.device), self.most.to(residual.device)
        by_rainy, by_residual, always = torch.split(linear, [3, 3, 1])
        for there, seen in zip(torch.split(residual, CHANGED_ROWS, dim=1), torch.split(rainy, CHANGED_ROWS, dim=1)):
            seen = to_float(seen.to(residual.device))
            change = torch.addmm(always, seen.flatten(0, 2), by_rainy).addmm_(there.flatten(0, 2), by_residual)
            there += change.view_as(there).clamp_(-most, most)


def residual_change(rainy: Tensor, before: Tensor, after: Tensor) -> ResidualChange | None:
    """That which comes nearest to what became of the residuals of images: least squares over all pixels.

    Args:
        rainy: (N, H, W, 3), uint8, or float32 in [0, 1].
        before: (N, H, W, 3).
        after: the same shape.

    Returns:
        None where they are not finite.
    """
    alike, missing = torch.zeros(7, 7, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64)
    most, squares = torch.zeros(3), 0.0
    for seen, old, new in zip(rainy, before.cpu(), after.cpu()):
        colours = torch.cat((to_float(seen.cpu()), old, torch.ones_like(old[..., :1])), dim=-1).flatten(0, 1).double()
        changes = (new - old).flatten(0, 1)
        alike += colours.T @ colours
        missing += colours.T @ changes.double()
        most = torch.maximum(most, changes.abs().amax(dim=0))
        squares += float(changes.square().mean()) / len(rainy)
    if not bool(torch.isfinite(alike).all() and torch.isfinite(missing).all()):
        return None
    return ResidualChange((torch.linalg.pinv(alike, hermitian=True) @ missing).float(), most, math.sqrt(squares))


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


def choose_sample(image: NDArray[Any], room: int) -> Sample:
    """Windows of at most `room` pixels together that stand for an image (H, W, 3)."""
    (fewest, most), (smallest, largest) = SAMPLE_WINDOWS, SAMPLE_SIDES
    side = min(max(math.isqrt(room // fewest), smallest), largest)
    height, width = image.shape[:2]
    plan = plan_tiles(height, width, side, int(side * SAMPLE_MARGIN))
    count = min(room // math.prod(plan.window), most)
    return Sample(plan, representative(image, plan, max(1, count)))


def representative(image: NDArray[Any], plan: TilePlan, count: int) -> list[Tile]:
    """So many of the tiles of an image (H, W, 3), from the smooth to the textured, that together look like all of it.

    Tiles at even distances are a beginning. Each is then exchanged for that with which the mean of what `_describe`
    says comes nearest to the image's, until none is: a fifth to a third of the error of attention's means remains.
    """
    described = np.stack([_describe(image[tile.core]) for tile in plan.tiles])
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


def _describe(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Mean colour, how many of the greens lie below some levels, and how much neighbours differ."""
    rgb = to_float(to_tensor([pixels]))[0].numpy()
    green = rgb[..., 1]
    shares = [(green < level).mean() for level in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)]
    steps = [np.abs(np.diff(green, axis=axis, prepend=np.take(green, [0], axis))) for axis in (0, 1)]
    texture = [each.mean() for step in steps for each in (np.sqrt(step), step)]
    return np.array([*rgb.mean(axis=(0, 1)), *shares, *texture], np.float64)
