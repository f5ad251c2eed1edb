"""Lifts the rain off real photos and lays it on dry ones: python weights/real_rain.py DEST SETS RAINY.

SETS holds what `training_sets.py` makes and RainHeavyVal, RAINY the real photos of rain, `*.jpg`. What `sapnet-general`
takes off them, or `sapnet-heavy` where that leaves nearly all, is their rain, as far as it is in streaks. Every second
photo, in order of their names as numbers, is trained on, the others are only looked at. Writes into DEST:

    realB, realX    photos of LightB, and textures of dryX, under such rain; half of them compressed as JPEG
    realP           the photos themselves, whose ground truth lacks what was lifted; those without much of a veil
    realV           to choose weights by: photos of RainHeavyVal under rain of photos that are not trained on

Weights of the day lift other rain than those before, so to make the sets that a run had takes the weights of its day.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from training_sets import read, to_bytes, write_pair

from sapnet_cli import Derainer
from sapnet_cli.data.pictures import Pixels

Layer = NDArray[np.float32]

LARGEST = 640
"""Side that photos are shrunk to: so large are streaks that the weights know."""

LEFT_AS_IT_IS = 2.0
"""Where `sapnet-general` changes a photo by less, in 255ths on average, it has left the rain."""

VEIL = 0.7, 12.0
"""Part of what was taken off all around, and sigma of the blur in pixels that is its measure, that is no streak."""

WITH_THE_SCENE = {5, 24, 68, 82, 86, 124, 135, 139, 146}
"""Photos of `../shared` off which more than rain was lifted, edges of the scene or flakes of snow: by looking at it."""

VEILED = {17, 39, 64, 79, 113}
"""Photos of it that are pale or dark for what was left on them, so no ground truth."""


def shrunk(path: Path) -> Pixels:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    rgb.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def lift(rainy: Pixels, general: Derainer, heavy: Derainer) -> Layer:
    """Streaks of a photo, (H, W) in 255ths, not below 0."""
    for derainer in (general, heavy):
        change = rainy.astype(np.float32) - np.asarray(derainer.derain(rainy))
        if np.abs(change).mean() >= LEFT_AS_IT_IS:
            break
    grey = change.mean(axis=2)
    share, sigma = VEIL
    streaks = grey - share * cv2.GaussianBlur(grey, (0, 0), sigma)
    return np.clip(streaks, 0, 255).astype(np.float32)


def cut(layers: list[Layer], shape: tuple[int, int], random: np.random.Generator) -> Layer:
    """A part of one of the layers, (*shape, 1), mirrored, scaled, and stronger or weaker."""
    layer = layers[random.integers(len(layers))]
    scale = max(random.uniform(0.7, 1.3), *(0.6 * wanted / had for wanted, had in zip(shape, layer.shape)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    layer = np.asarray(cv2.resize(layer, None, fx=scale, fy=scale, interpolation=how))
    lacking = [max(0, wanted - had) for wanted, had in zip(shape, layer.shape)]
    layer = np.pad(layer, ((0, lacking[0]), (0, lacking[1])), mode="reflect")
    top, left = (int(random.integers(had - wanted + 1)) for had, wanted in zip(layer.shape, shape))
    part = layer[top : top + shape[0], left : left + shape[1]]
    part = part[:, ::-1] if random.integers(2) else part
    return (part * np.float32(random.uniform(0.8, 2)))[..., None]


def compressed(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return read(file)


def rain_on(clean: Pixels, layers: list[Layer], random: np.random.Generator, folder: Path, name: str) -> None:
    rainy = to_bytes(clean + cut(layers, clean.shape[:2], random))
    if random.integers(2):
        quality = int(random.integers(70, 96))
        rainy, clean = compressed(rainy, quality), compressed(clean, quality)
    write_pair(rainy, clean, folder, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST")
    parser.add_argument("sets", type=Path, metavar="SETS")
    parser.add_argument("rainy", type=Path, metavar="RAINY")
    given = parser.parse_args()
    dest, sets = given.dest, given.sets

    general, heavy = (Derainer(f"sapnet-{name}", device="cpu") for name in ("general", "heavy"))
    paths = sorted(given.rainy.glob("*.jpg"), key=lambda path: int(path.stem))
    trained: list[Layer] = []
    unseen: list[Layer] = []
    for place, path in enumerate(paths):
        number = int(path.stem)
        if number in WITH_THE_SCENE:
            continue
        rainy = shrunk(path)
        layer = lift(rainy, general, heavy)
        (unseen if place % 2 else trained).append(layer)
        if place % 2 == 0 and number not in VEILED:
            write_pair(rainy, to_bytes(rainy - layer[..., None]), dest / "realP", f"{path.stem}.png")

    random = np.random.default_rng(11)
    for path in sorted((sets / "LightB" / "target").iterdir()):
        for number in range(2):
            rain_on(read(path), trained, random, dest / "realB", f"{path.stem}-{number}.png")
    for path in sorted((sets / "dryX").iterdir())[::2]:
        both = read(path)
        rain_on(both[:, : both.shape[1] // 2], trained, random, dest / "realX", path.name)
    random = np.random.default_rng(12)
    for path in sorted((sets / "RainHeavyVal" / "target").iterdir()):
        clean = read(path)
        write_pair(to_bytes(clean + cut(unseen, clean.shape[:2], random)), clean, dest / "realV", path.name)


if __name__ == "__main__":
    main()
