"""Makes the rainy example photos: free photos out of PyPI packages, with rain rendered here.

python examples/make_examples.py CHINA.jpg ROCKET.jpg

CHINA.jpg is sklearn/datasets/images/china.jpg of scikit-learn, ROCKET.jpg is skimage/data/rocket.jpg of scikit-image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

RAINY = Path(__file__).parent / "rainy"

# a layer each: drops a megapixel, length and width of a streak in pixels, its slant in degrees, its brightness
LAYERS = ((1500, 34, 1.1, 8, 0.55), (4000, 20, 0.8, 10, 0.38))


def rain(height: int, width: int, slant: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A layer of light that falling drops add during the exposure, (H, W) in [0, 1]."""
    light = np.zeros((height, width), np.float32)
    for density, length, thickness, spread, brightness in LAYERS:
        margin = 2 * length
        layer = np.zeros((height + 2 * margin, width + 2 * margin), np.float32)
        for _ in range(int(density * layer.size / 1e6)):
            angle = np.deg2rad(slant + random.normal(0, spread / 4))
            reach = length * random.uniform(0.6, 1.4)
            x, y = random.uniform(0, layer.shape[1]), random.uniform(0, layer.shape[0])
            start, end = (x, y), (x + reach * np.sin(angle), y + reach * np.cos(angle))
            streak = [tuple(int(16 * value) for value in point) for point in (start, end)]
            cv2.line(layer, *streak, brightness * random.uniform(0.4, 1.0), 1, cv2.LINE_AA, 4)
        layer = cv2.GaussianBlur(layer, (0, 0), thickness)
        light += 1.6 * layer[margin:-margin, margin:-margin]
    return light


def main() -> None:
    """Renders the pictures."""
    for seed, (source, slant) in enumerate(zip(sys.argv[1:], (12, -18))):
        clean = np.asarray(Image.open(source).convert("RGB")).astype(np.float32) / 255
        light = rain(*clean.shape[:2], slant, np.random.default_rng(seed))
        rainy = np.clip(clean + light[..., None], 0, 1)
        name = f"{Path(source).stem}.jpg"
        Image.fromarray(np.rint(rainy * 255).astype(np.uint8)).save(RAINY / name, quality=92, subsampling=0)


if __name__ == "__main__":
    main()
