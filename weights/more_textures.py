"""Makes `dryG`, 350 more dry textures, of a run that is not shipped: python weights/more_textures.py DEST."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from textures import HEIGHT, MARGIN, WIDTH, Textures, noise

from sapnet_cli.data.pictures import Pixels


class MoreTextures(Textures):
    """Grass, walls, pebbles and craters, two fifths of them grey."""

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

    def further(self, number: int) -> Pixels:
        """The texture of that number, RGB of 320x480."""
        strands, craters, wall = self.strands, self.craters, self.wall
        kinds = (strands, craters, wall, strands, craters, wall, self.pebbles)
        kind, height, width = kinds[number % len(kinds)], int(HEIGHT * MARGIN), int(WIDTH * MARGIN)
        upright = kind == wall and number // len(kinds) % 3 > 0
        if upright:
            height, width = width, height
        pixels = np.asarray(kind(height, width))
        if self.random.random() < 0.4:
            pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
        return self._photographed(np.rot90(pixels) if upright else pixels)


def main() -> None:
    """Writes both halves of each file alike."""
    folder = Path(sys.argv[1]) / "dryG"
    folder.mkdir(parents=True, exist_ok=True)
    textures = MoreTextures(35)
    for number in range(350):
        pixels = textures.further(number)
        Image.fromarray(np.hstack([pixels, pixels])).save(folder / f"{number:03}.png", compress_level=1)


if __name__ == "__main__":
    main()
