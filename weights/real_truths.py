"""Makes ground truths for real photos of rain out of what several weights take off: python weights/real_truths.py.

The default leaves the rain of some photos that other weights take off, and that it takes off itself where a part is cut
out and derained alone, or the photo enlarged or shrunk. So each place of a photo gets what takes off most there:

    python weights/real_truths.py DEST RAINY WEIGHTS ... --earlier FOLDER ...

RAINY holds the photos, `*.jpg`, WEIGHTS names the weights; the first derain the photo in parts and at other sizes, too.
Each FOLDER holds what this wrote before, by other weights, so that nothing is left that was taken off once.
Writes pairs into DEST/realT, of every second photo, in order of their names as numbers, at their own size (640 pixels
at most), 0.7 and half of it. The other photos are only looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from training_sets import read, to_bytes, write_pair

from sapnet_cli import Derainer
from sapnet_cli.data.pictures import Pixels

Values = NDArray[np.float32]

LARGEST = 640
"""Side that photos are shrunk to: so large are streaks that the weights know."""

SCALES, SMALLEST = (1.0, 0.7, 0.5), 192
"""Of the pairs, and the shorter side below which there is none: that of a crop."""

PART = 192
"""Side of the parts that are derained alone; they overlap by half and go over into each other as a Hann window does."""

SIZES = 0.6, 1.5
"""At which a photo is derained, too."""

VEIL = 0.7, 12.0
"""Part of what was taken off all around, and sigma of the blur in pixels that is its measure, that is no streak."""

AROUND = 20.0
"""Sigma in pixels of the blur by which the weights are compared at a place."""

CLOSE = 0.02, 0.01
"""How much less, as a share of the most and in 255ths, counts 1/e of that."""


def in_order(folder: Path) -> list[Path]:
    """Photos, in order of their names as numbers."""
    return sorted(folder.glob("*.jpg"), key=lambda path: int(path.stem))


def shrunk(path: Path) -> Pixels:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    rgb.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def streaks(rainy: Pixels, derained: Pixels | Values) -> Values:
    """What of the change is streaks, (H, W) in 255ths, not below 0."""
    grey = np.subtract(rainy, derained, dtype=np.float32).mean(axis=2)
    share, sigma = VEIL
    return np.clip(grey - share * cv2.GaussianBlur(grey, (0, 0), sigma), 0, None)


def starts(length: int) -> list[int]:
    """Where parts begin along a side."""
    rest = max(0, length - PART)
    return [round(start) for start in np.linspace(0, rest, 1 - -rest // (PART // 2))]


def in_parts(derain: Callable[[Pixels], Pixels], rainy: Pixels) -> Values:
    """A photo, each part of which was derained alone."""
    height, width = (min(side, PART) for side in rainy.shape[:2])
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])[..., None] + 1e-3
    total, weight = np.zeros(rainy.shape), np.zeros((*rainy.shape[:2], 1))
    for top in starts(rainy.shape[0]):
        for left in starts(rainy.shape[1]):
            part = np.s_[top : top + height, left : left + width]
            total[part] += window * derain(np.ascontiguousarray(rainy[part]))
            weight[part] += window
    return (total / weight).astype(np.float32)


def resized(pixels: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """To a width and height: smaller by area, larger by cubic splines."""
    smaller = size[0] < pixels.shape[1]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def at_size(derain: Callable[[Pixels], Pixels], rainy: Pixels, scale: float) -> Values:
    """A photo with what changed when it was enlarged or shrunk."""
    other = resized(rainy, [round(side * scale) for side in rainy.shape[1::-1]])
    change = np.subtract(derain(other), other, dtype=np.float32)
    return np.asarray(rainy + resized(change, rainy.shape[1::-1]), np.float32)


def most_derained(rainy: Pixels, candidates: list[Values]) -> Values:
    """At each place the candidate off which most was taken around it, going over softly."""
    taken = np.stack([cv2.GaussianBlur(streaks(rainy, derained), (0, 0), AROUND) for derained in candidates])
    most = taken.max(axis=0)
    shares = np.exp((taken - most) / (CLOSE[0] * most + CLOSE[1]))
    shares /= shares.sum(axis=0)
    return np.einsum("nhw,nhwc->hwc", shares, np.stack(candidates)).astype(np.float32)


def name_of(photo: str, scale: float) -> str:
    """Of a pair's files."""
    return f"{photo}-{int(10 * scale)}.png"


def read_truth(folder: Path, photo: str) -> Values:
    """What was written before, at the size of `shrunk`."""
    return np.asarray(read(folder / "realT" / "target" / name_of(photo, 1)), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path)
    parser.add_argument("rainy", type=Path)
    parser.add_argument("weights", nargs="*")
    parser.add_argument("--earlier", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    if not arguments.weights and not arguments.earlier:
        parser.error("neither WEIGHTS nor --earlier")
    derainers = [Derainer(weights, pyramid=1) for weights in arguments.weights]
    for path in in_order(arguments.rainy)[::2]:
        rainy = shrunk(path)
        candidates = [np.asarray(derainer.derain(rainy), np.float32) for derainer in derainers]
        if derainers:
            candidates.append(in_parts(derainers[0].derain, rainy))
            candidates += [at_size(derainers[0].derain, rainy, size) for size in SIZES]
        candidates += [read_truth(folder, path.stem) for folder in arguments.earlier]
        truth = to_bytes(most_derained(rainy, candidates))
        for scale in SCALES:
            size = [round(side * scale) for side in rainy.shape[1::-1]]
            if scale == 1 or min(size) >= SMALLEST:
                small = (resized(x, size) for x in (rainy, truth))
                write_pair(*small, arguments.dest / "realT", name_of(path.stem, scale))


if __name__ == "__main__":
    main()
