"""Dry textures as they are photographed, drawn: what `training_sets.py` puts into `dryX` and `dryG`.

Mortar, gaps of boards, blades of grass, railings and the relief of snow and rock are thin, bright and of one direction,
as rain is, and weights that never saw them dry take them for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from sapnet_cli.data.pictures import Pixels

HEIGHT, WIDTH = 320, 480  # of what is drawn
MARGIN = 1.4  # a texture is larger by so much, for the perspective
Kind = Callable[[int, int], NDArray[np.floating]]  # draws so many rows and columns
Values = NDArray[np.float32]  # any number of rows and columns; colours of 0 to 255, which may be passed


def noise(
    random: np.random.Generator,
    shape: tuple[int, int],
    coarsest: float,
    finest: float,
    stretch: Sequence[float] = (1, 1),
) -> Values:
    """Noise of many scales, its grains between so many pixels wide, stretched down and right; deviation 1."""
    total, size = np.zeros(shape, np.float32), finest
    while size <= coarsest:
        rows, columns = (max(2, int(side / (size * by)) + 2) for side, by in zip(shape, stretch, strict=True))
        grains = random.normal(size=(rows, columns)).astype(np.float32)
        total += cv2.resize(grains, shape[::-1], interpolation=cv2.INTER_CUBIC) * size ** random.uniform(0, 0.5)
        size *= 2
    return total / total.std()


def uneven_light(random: np.random.Generator, darkest: float, brightest: float, shape: tuple[int, int]) -> Values:
    """Brightness that changes slowly over a picture, to multiply its colours by."""
    few = random.uniform(darkest, brightest, (3, 4)).astype(np.float32)
    return cv2.resize(few, shape[::-1], interpolation=cv2.INTER_CUBIC)[..., None]


def to_bytes(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def to_edge(values: Values, period: float) -> Values:
    """How far each is from the nearest multiple of the period."""
    return np.minimum(values % period, period - values % period)


class Textures:
    """Draws one texture after another, each kind in turn."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def picture(self, number: int, photo: Pixels) -> Pixels:
        """The texture of that number, RGB of 320x480; `photo` is what stands behind a railing."""
        kinds = (
            self.wall, self.boards, self.strands, self.pebbles, self.cloth, partial(self.railing, photo),
            self.relief, self.relief, self.veins, self.patches, self.strands, self.wall,
        )  # fmt: skip
        kind, upright, pixels = self._drawn(number, kinds, (self.wall, self.boards))
        if kind == self.cloth and self.random.random() < 0.25:
            pixels = pixels.transpose(1, 0, 2)
        return self._photographed(np.rot90(pixels) if upright else pixels)

    def further(self, number: int) -> Pixels:
        """More of what stayed hard to tell from rain, and craters; two fifths are grey."""
        strands, craters, wall = self.strands, self.craters, self.wall
        kinds = (strands, craters, wall, strands, craters, wall, self.pebbles)
        _, upright, pixels = self._drawn(number, kinds, (wall,))
        if self.random.random() < 0.4:
            pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
        return self._photographed(np.rot90(pixels) if upright else pixels)

    def _drawn(
        self, number: int, kinds: Sequence[Kind], standing: Sequence[Kind]
    ) -> tuple[Kind, bool, NDArray[np.floating]]:
        """Which of some kinds, in turn, whether it is to be turned upright, as two thirds of those that stand are."""
        kind, height, width = kinds[number % len(kinds)], int(HEIGHT * MARGIN), int(WIDTH * MARGIN)
        upright = kind in standing and number // len(kinds) % 3 > 0
        return kind, upright, kind(width, height) if upright else kind(height, width)

    def _photographed(self, pixels: NDArray[np.floating]) -> Pixels:
        """Seen from aside, most of them lit unevenly, blurred, some of them noisy."""
        random, pixels = self.random, np.ascontiguousarray(pixels, np.float32)
        height, width = pixels.shape[:2]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        inwards = np.array([[width, height], [-width, height], [-width, -height], [width, -height]], np.float32)
        most = 0.0 if random.random() < 0.3 else 0.22
        seen = corners + random.uniform(0, most, (4, 2)).astype(np.float32) * inwards
        frame = np.array([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], np.float32)
        perspective = cv2.getPerspectiveTransform(seen, frame)
        pixels = cv2.warpPerspective(pixels, perspective, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        if random.random() < 0.7:
            pixels = pixels * uneven_light(random, 0.55, 1.25, (HEIGHT, WIDTH))
        pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.3, 1.1))
        if random.random() < 0.4:
            pixels = pixels + random.normal(0, random.uniform(1, 5), (HEIGHT, WIDTH, 1))
        return to_bytes(pixels)

    def _colour(self) -> NDArray[np.float64]:
        if self.random.random() < 0.4:
            return np.full(3, self.random.uniform(30, 200))
        return self.random.uniform(20, 210, 3) * 0.5 + self.random.uniform(20, 210) * 0.5

    def _grain(self, height: int, width: int, coarsest: float, least: float, most: float) -> Values:
        """Noise down to single pixels, of a deviation between those two."""
        return (noise(self.random, (height, width), coarsest, 1) * self.random.uniform(least, most))[..., None]

    @staticmethod
    def _tones(*indices: Values) -> Values:
        """A number between -0.5 and 0.5 for each index, or pair of indices: the tone of a brick or board."""
        return (np.sin(sum(i * by for i, by in zip(indices, (12.9898, 78.233), strict=False))) * 43758.5453) % 1 - 0.5

    def wall(self, height: int, width: int) -> NDArray[np.floating]:
        """Bricks or slabs in rows, the mortar mostly brighter, rough at its edges."""
        random, shape = self.random, (height, width)
        long, high, mortar = random.uniform(24, 110), random.uniform(9, 40), random.uniform(1, 8)
        down, right = np.mgrid[:height, :width].astype(np.float32)
        rough = random.uniform(0, 2.5)
        down = down + noise(random, shape, 32, 4) * rough
        right = right + noise(random, shape, 32, 4) * rough
        row = np.floor(down / high)
        right = right + row * long * (0.5 if random.random() < 0.7 else random.uniform(0, 1))
        between = np.clip(mortar / 2 - np.minimum(to_edge(down, high), to_edge(right, long)) + 0.5, 0, 1)[..., None]
        tones = self._tones(row, np.floor(right / long))
        colour = self._colour()
        brighter = random.choice([-1, 1], p=[0.25, 0.75]) * random.uniform(20, 120)
        fill = np.clip(colour + brighter + random.normal(0, 6, 3), 0, 255)
        face = colour + (tones * random.uniform(0, 70))[..., None] + self._grain(height, width, 16, 2, 25)
        return face * (1 - between) + (fill + self._grain(height, width, 4, 1, 14)) * between

    def boards(self, height: int, width: int) -> NDArray[np.floating]:
        """Planks with their grain, lying, and dark or bright gaps between them."""
        random = self.random
        high, gap = random.uniform(8, 90), random.uniform(0.7, 5)
        down = np.mgrid[:height, :width][0].astype(np.float32)
        down = down + noise(random, (height, width), 128, 32) * random.uniform(0, 1.5)
        colour = self._colour()
        tones = self._tones(np.floor(down / high))
        coarsest = random.choice([2, 4, 8])
        grain = noise(random, (height, width), coarsest, 1, (1, random.uniform(8, 40)))
        wood = colour + (tones * random.uniform(0, 60))[..., None] + (grain * random.uniform(3, 30))[..., None]
        between = np.clip(gap / 2 - to_edge(down, high) + 0.5, 0, 1)[..., None] * random.uniform(0.4, 1)
        fill = np.clip(colour + random.choice([-100, -60, 60, 110], p=[0.4, 0.3, 0.15, 0.15]), 0, 255)
        return wood * (1 - between) + between * fill

    def strands(self, height: int, width: int) -> NDArray[np.floating]:
        """Grass, hair, fur, straw: thousands of thin bent strands, the later ones brighter."""
        random = self.random
        ground, colour = np.empty((height, width, 3), np.float32), self._colour()
        ground[:] = colour * random.uniform(0.2, 0.8)
        count, longest = int(height * width / random.uniform(15, 120)), random.uniform(10, 80)
        spread, lean = random.uniform(0.05, 0.9), random.normal(0, 0.4)
        if random.random() < 0.3:
            spread = 3  # all directions
        wind = noise(random, (height, width), 256, 64) * random.uniform(0, 0.6)
        leans = random.normal(lean, spread, count)
        canvas, along = np.clip(ground, 0, 255).astype(np.uint8), np.linspace(0, 1, 5)
        variety, dark, bright = random.uniform(10, 50), random.uniform(0.4, 0.9), random.uniform(1, 1.6)
        thick = random.random() * 0.5
        for number in range(count):
            left, top = random.uniform(0, width), random.uniform(0, height)
            angle = leans[number] + wind[int(top), int(left)]
            length, bend = longest * random.uniform(0.4, 1.3), random.normal(0, 0.3)
            right = left + length * np.sin(angle) * along + bend * length * along * along
            points = np.round(np.stack([right, top - length * np.cos(angle) * along], 1) * 8).astype(np.int32)
            tone = dark + (bright - dark) * number / count
            shade = np.clip(colour * tone + random.normal(0, variety) + random.normal(0, 6, 3), 0, 255)
            thickness = 2 if random.random() < thick else 1
            cv2.polylines(canvas, [points], False, shade.tolist(), thickness, cv2.LINE_AA, 3)
        return canvas.astype(np.float32)

    def pebbles(self, height: int, width: int) -> NDArray[np.floating]:
        """Stones, scales or cells: all that is nearest to the same one of scattered points."""
        random = self.random
        count, points = int(height * width / random.uniform(40, 900)), np.full((height, width), 255, np.uint8)
        rows, columns = random.integers(0, height, count), random.integers(0, width, count)
        points[rows, columns] = 0
        away, stone = cv2.distanceTransformWithLabels(points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        colour = self._colour()
        tones = random.normal(0, random.uniform(10, 45), stone.max() + 1)[stone]
        away = np.clip(away / (np.sqrt(height * width / count) * 0.7), 0, 1.3)
        face = colour + (tones - away**2 * random.uniform(-30, 90))[..., None]
        return face + self._grain(height, width, 8, 2, 18)

    def cloth(self, height: int, width: int) -> NDArray[np.floating]:
        """Ribs, blinds, corrugated sheet or a weave: waves, a little bent."""
        random, shape = self.random, (height, width)
        down, right = np.mgrid[:height, :width].astype(np.float32)
        right = right + noise(random, shape, 128, 32) * random.uniform(0, 3)
        down = down + noise(random, shape, 128, 32) * random.uniform(0, 3)
        period = random.uniform(4, 40)
        wave = np.sin(2 * np.pi * right / period)
        wave = np.sign(wave) * abs(wave) ** random.uniform(0.3, 1.5)
        if random.random() < 0.4:
            wave = wave * np.sin(2 * np.pi * down / (period * random.uniform(0.5, 2)))
        return self._colour() + (wave * random.uniform(8, 70))[..., None] + self._grain(height, width, 8, 1, 15)

    def railing(self, photo: Pixels, height: int, width: int) -> NDArray[np.floating]:
        """Posts, bars, wires or stems in front of a photo."""
        random, canvas = self.random, cv2.resize(photo, (width, height))
        left = random.uniform(0, 30)
        colour = self._colour() + random.choice([-60, 60])
        thick, step = random.uniform(1, 7), random.uniform(8, 70)
        regular, lean = random.random() < 0.6, random.normal(0, 0.08)
        top, bottom = random.uniform(0, 0.4) * height, height * random.uniform(0.6, 1.05)

        def line(points: list[tuple[float, float]], shade: NDArray[np.float64], thickness: int) -> None:
            start, end = ((int(x * 8), int(y * 8)) for x, y in points)
            cv2.line(canvas, start, end, shade.tolist(), thickness, cv2.LINE_AA, 3)

        while left < width:
            thickness = max(1, round(thick * (1 if regular else random.uniform(0.5, 1.6))))
            shade = np.clip(colour + random.normal(0, 8), 0, 255)
            start = left, top if regular else random.uniform(0, height * 0.5)
            end = (
                left + (lean if regular else random.normal(0, 0.15)) * height,
                bottom if regular else random.uniform(height * 0.4, height),
            )
            line([start, end], shade, thickness)
            if thickness > 2 and random.random() < 0.7:  # its lit side
                lit = np.clip(shade + random.uniform(10, 70), 0, 255)
                line([(x - thickness / 3, y) for x, y in (start, end)], lit, 1)
            left += step * (1 if regular else random.uniform(0.3, 2))
        if regular and random.random() < 0.6:
            for row in (top, bottom):
                line([(0, int(row)), (width, int(row))], np.clip(colour, 0, 255), max(1, int(thick)))
        return canvas.astype(np.float32)

    def relief(self, height: int, width: int) -> NDArray[np.floating]:
        """Rock, snow, sand or plaster: a rough surface, lit from one side."""
        random, stretch = self.random, (1.0, 1.0)
        if random.random() >= 0.6:
            stretch = (1, random.uniform(1.5, 5)) if random.random() < 0.5 else (random.uniform(1.5, 5), 1)
        surface = np.zeros((height, width), np.float32)
        power, ridged = random.uniform(0.5, 1.15), random.random() < 0.4
        for size in 2 ** np.arange(8, random.integers(0, 2) - 1, -1.0):
            bumps = noise(random, (height, width), size, size, stretch)
            surface += (-abs(bumps) if ridged else bumps) * size**power
        from_where = random.uniform(0, 2 * np.pi)
        down, right = np.gradient(surface)
        light = np.cos(from_where) * right + np.sin(from_where) * down
        light /= light.std()
        if random.random() < 0.5:
            light = np.tanh(light / 2) * 2
        grey = random.random() >= 0.6
        colour = np.full(3, random.uniform(90, 235)) + random.normal(0, 6, 3) if grey else self._colour()
        high = surface / surface.std()
        return colour + (light * random.uniform(6, 60))[..., None] + (high * random.uniform(0, 25))[..., None]

    def veins(self, height: int, width: int) -> NDArray[np.floating]:
        """Marble, cracks, frost: thin lines where noise passes zero."""
        random, shape, pixels = self.random, (height, width), np.empty((height, width, 3), np.float32)
        pixels[:] = self._colour()
        pixels += self._grain(height, width, 128, 2, 25)
        for _ in range(random.integers(1, 4)):
            coarsest, finest = random.choice([16, 32, 64, 128]), random.choice([2, 4, 8])
            values = noise(
                random, shape, coarsest, finest, (1, 1) if random.random() < 0.5 else (random.uniform(1, 4), 1)
            )
            vein = np.exp(-abs(values) / random.uniform(0.02, 0.25))
            vein *= np.clip(noise(random, shape, 64, 32) + random.uniform(0, 1.5), 0, 1.5)
            pixels += vein[..., None] * (random.choice([-1, 1]) * random.uniform(20, 130) + random.normal(0, 10, 3))
        return pixels

    def patches(self, height: int, width: int) -> NDArray[np.floating]:
        """Snow on grass, moss, rust: two textures, parted by a noise."""
        random = self.random
        below = (self.relief if random.random() < 0.6 else self.strands)(height, width)
        above = (self.relief if random.random() < 0.6 else self.pebbles)(height, width)
        coarsest, finest = random.choice([8, 32, 128]), random.choice([1, 2, 4])
        values = noise(random, (height, width), coarsest, finest)
        share = np.clip(values * random.uniform(1, 8) + random.uniform(-1, 1), 0, 1)[..., None]
        return below * (1 - share) + above * share

    def craters(self, height: int, width: int) -> NDArray[np.floating]:
        """Bowls of many sizes with their rims, lit from one side."""
        random = self.random
        surface = noise(random, (height, width), 64, 2) * random.uniform(0, 1.5)
        count = int(height * width / random.uniform(150, 2000))
        smallest, largest = random.uniform(1, 3), random.uniform(15, 70)
        for _ in range(count):
            radius = min(largest, smallest * (1 - random.random()) ** (-1 / random.uniform(1.2, 2.2)))
            x, y, reach = random.uniform(0, width), random.uniform(0, height), int(radius * 2) + 2
            left, right = max(0, int(x) - reach), min(width, int(x) + reach + 1)
            top, bottom = max(0, int(y) - reach), min(height, int(y) + reach + 1)
            if right <= left or bottom <= top:
                continue
            rows, columns = np.mgrid[top:bottom, left:right]
            away = np.hypot(rows - y, columns - x) / radius
            depth = radius * random.uniform(0.1, 0.5)
            rim = depth * 0.3 * np.exp(-(((away - 1) * 2.5) ** 2))
            bowl = np.where(away < 1, depth * (away**2 - 1) + depth * 0.3, rim)
            surface[top:bottom, left:right] += bowl.astype(np.float32)
        from_where = random.uniform(0, 2 * np.pi)
        down, across = np.gradient(surface)
        light = np.cos(from_where) * across + np.sin(from_where) * down
        light = np.tanh(light / (light.std() + 1e-6) / 2) * 2
        grey = random.random() < 0.7
        colour = np.full(3, random.uniform(60, 200)) + random.normal(0, 6, 3) if grey else self._colour()
        shades = (light * random.uniform(8, 45))[..., None]
        return colour + shades + (noise(random, (height, width), 128, 8) * random.uniform(0, 15))[..., None]
