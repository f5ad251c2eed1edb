"""Shows what rain `sapnet train --clean` draws: python examples/draw_rain.py OUT.jpg PHOTO..., here rain.jpg."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from sapnet_cli.data.rain import RainGenerator

ROWS, COLUMNS, WIDTH, HEIGHT = 4, 4, 300, 200


def main() -> None:
    """Draws one rain after the other, seeds counting from 0, first on the first photo without any."""
    output, *names = sys.argv[1:]
    photos = []
    for name in names:
        with Image.open(name) as image:
            photos.append(np.asarray(image.convert("RGB").crop((0, 0, 2 * WIDTH, 2 * HEIGHT)).resize((WIDTH, HEIGHT))))
    generator, cells = RainGenerator(), [photos[0]]
    for seed in range(ROWS * COLUMNS - 1):
        rainy, _ = generator.draw(photos[(seed + 1) % len(photos)], np.random.default_rng(seed))
        cells.append(rainy)
    rows = [np.concatenate(cells[row * COLUMNS : (row + 1) * COLUMNS], axis=1) for row in range(ROWS)]
    Image.fromarray(np.concatenate(rows)).save(output, quality=85)


if __name__ == "__main__":
    main()
