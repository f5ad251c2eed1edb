"""Measures what weights are chosen by, never on Rain100L or Rain100H: python weights/judge.py.

    python weights/judge.py SETS RAINY TEXTURES WEIGHTS ... --parts light heavy photos other dry textures

SETS is what `training_sets.py` was given and wrote, RAINY holds photos of rain, and TEXTURES pictures without rain, in
folders of any depth.
Prints a row of a Markdown table for each measure as it is done, a column for each of the weights, in fp32:

    light, heavy   PSNR and SSIM of Y by the protocol of PReNet: LightVal2; HeavyD, HeavyE and the first six pairs of
                   RainHeavyVal; after three units; in the light of sodium lamps (each third pair); under noise of 5;
                   above a black bar and beside their dry photo
    photos         how much darker streaks become, in 255ths, as by `real_streaks.py`; how far photos change; which
                   lose over 0.8 less than by the first of the weights
    other          Rain800, the 24 smallest that no set trains on; drawn and frozen rain; rain enlarged twice
    dry            PSNR of Y between dry pictures and what comes out: RainHeavyVal's photos, those with
                   noise of 5, pictures of scikit-image
    textures       likewise; each tenth of those of 256 to 1024 pixels
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image
from real_truths import in_order, shrunk, streaks
from training_sets import read, to_bytes

from sapnet_cli import Derainer
from sapnet_cli.data.pairs import find_pairs
from sapnet_cli.data.pictures import Pixels, read_pair
from sapnet_cli.metrics.fidelity import HIGHEST_PSNR, psnr, structural_similarity

RainyAndClean = tuple[Pixels, Pixels]
Change = Callable[[Pixels, Pixels], RainyAndClean]

PARTS = "light", "heavy", "photos", "other", "dry", "textures"

LEAST_KEPT = 45.0
"""In dB, of dry pictures that are to stay as they are."""

LESS = 0.8
"""Of streaks, that a photo loses less than by the first of the weights to be named."""

FAINT = "20", "106", "128"
"""Photos of which the most rain stays."""

DRY_PICTURES = "brick", "moon", "grass", "gravel", "page", "text", "rocket"
"""Of scikit-image: what weights have taken for rain."""


def read_pairs(folder: Path) -> list[RainyAndClean]:
    return [read_pair(pair) for pair in find_pairs(folder).pairs]


def read_textures(folder: Path) -> list[Pixels]:
    """Each tenth of those that are neither small nor large, without transparency, in order of their paths."""
    fitting = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".jpg", ".png"):
            with Image.open(path) as image:
                if min(image.size) >= 256 and max(image.size) <= 1024 and image.mode in ("RGB", "L"):
                    fitting.append(path)
    return [read(path) for path in fitting[::10]]


def noisy(*pictures: Pixels) -> list[Pixels]:
    """With the same noise of a deviation of 5 levels in all."""
    noise = np.random.default_rng(5).normal(0, 5, pictures[0].shape)
    return [to_bytes(pixels + noise) for pixels in pictures]


def under_noise(rainy: Pixels, clean: Pixels) -> RainyAndClean:
    first, second = noisy(rainy, clean)
    return first, second


def in_sodium_light(rainy: Pixels, clean: Pixels) -> RainyAndClean:
    colour = np.array([1, 0.75, 0.45])
    return to_bytes(rainy * colour), to_bytes(clean * colour)


def above_bar(rainy: Pixels, clean: Pixels) -> RainyAndClean:
    """With 40 black rows below."""
    rows = ((0, 40), (0, 0), (0, 0))
    return np.pad(rainy, rows), np.pad(clean, rows)


def beside_dry(rainy: Pixels, clean: Pixels) -> RainyAndClean:
    return np.hstack([rainy, clean]), np.hstack([clean, clean])


def enlarged(rainy: Pixels, clean: Pixels) -> RainyAndClean:
    first, second = (cv2.resize(x, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for x in (rainy, clean))
    return first, second


class Judge:
    """Prints rows about some weights."""

    def __init__(self, weights: list[str]) -> None:
        self.derainers = [Derainer(name, precision="fp32", pyramid=1) for name in weights]
        self.of_three = [Derainer(name, precision="fp32", pyramid=1, stages=3) for name in weights]
        print(f"| | {' | '.join(weights)} |\n|{'---|' * (len(weights) + 1)}")

    @staticmethod
    def row(name: str, cells: Iterable[str]) -> None:
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    def pairs(
        self, name: str, pairs: Iterable[RainyAndClean], change: Change | None = None, three: bool = False
    ) -> None:
        """Mean PSNR and SSIM."""
        changed = [change(*pair) if change else pair for pair in pairs]
        cells = []
        for derainer in self.of_three if three else self.derainers:
            derained = [(derainer.derain(rainy), clean) for rainy, clean in changed]
            scores = np.mean([(psnr(*each), structural_similarity(*each)) for each in derained], axis=0)
            cells.append(f"{scores[0]:.3f} / {scores[1]:.4f}")
        self.row(name, cells)

    def kept(self, pictures: Iterable[Pixels]) -> list[list[float]]:
        """PSNR of what comes out, for each of the weights."""
        pictures = list(pictures)
        return [[min(HIGHEST_PSNR, psnr(d.derain(x), x)) for x in pictures] for d in self.derainers]

    def photos(self, folder: Path) -> None:
        """Photos of rain, which have no ground truth."""
        names = [path.stem for path in in_order(folder)]
        rainy = [shrunk(path) for path in in_order(folder)]
        derained = [[derainer.derain(pixels) for pixels in rainy] for derainer in self.derainers]
        taken = np.array([[streaks(*each).mean() for each in zip(rainy, results)] for results in derained])
        self.row("streaks off every second, all", (f"{each[1::2].mean():.2f}, {each.mean():.2f}" for each in taken))
        faint = [names.index(name) for name in FAINT if name in names]
        levels = [[f"{np.abs(np.subtract(rainy[i], of[i], dtype=float)).mean():.1f}" for i in faint] for of in derained]
        self.row(f"levels that {', '.join(names[i] for i in faint)} change by", map(", ".join, levels))
        less = taken[0] - taken
        worst = [[int(i) for i in np.argsort(-each) if each[i] > LESS] for each in less]
        lost = [
            ", ".join(f"{names[i]}: {now[i]:.1f} of {taken[0][i]:.1f}" for i in of) for of, now in zip(worst, taken)
        ]
        self.row("photos that lose less", lost)

    def dry(self, name: str, pictures: Iterable[Pixels]) -> None:
        """Mean, worst and the share under 45 dB."""
        kept = map(np.array, self.kept(pictures))
        self.row(name, (f"{x.mean():.1f}, {x.min():.1f}, {(x < LEAST_KEPT).mean():.1%}" for x in kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sets", "rainy", "textures"):
        parser.add_argument(name, type=Path)
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    sets, judge = given.sets, Judge(given.weights)
    if "light" in given.parts:
        light = read_pairs(sets / "LightVal2")
        judge.pairs("`LightVal2`", light)
        judge.pairs("three units", light, three=True)
        judge.pairs("sodium light", light[::3], in_sodium_light)
        judge.pairs("noise 5", light[::3], under_noise)
    if "heavy" in given.parts:
        judge.pairs("`HeavyD`", read_pairs(sets / "HeavyD"))
        judge.pairs("`HeavyE`", read_pairs(sets / "HeavyE"))
        six = read_pairs(sets / "RainHeavyVal")[:6]
        judge.pairs("six pairs", six)
        judge.pairs("three units", six, three=True)
        for name, change in (
            ("sodium light", in_sodium_light),
            ("noise 5", under_noise),
            ("black bar", above_bar),
            ("beside dry", beside_dry),
        ):
            judge.pairs(name, six, change)
    if "photos" in given.parts:
        judge.photos(given.rainy)
    if "other" in given.parts:
        rain800 = [read_pair(pair) for pair in find_pairs(sets / "r800val", "clean-left").pairs]
        judge.pairs("Rain800", sorted(rain800, key=lambda pair: pair[0].size)[:24])
        judge.pairs("drawn", read_pairs(sets / "FineVal2")[::2])
        judge.pairs("frozen", read_pairs(sets / "FrozenVal2")[::2])
        judge.pairs("light, enlarged twice", read_pairs(sets / "LightVal2")[::5], enlarged)
    if "dry" in given.parts:
        clean = [clean for _, clean in read_pairs(sets / "RainHeavyVal")]
        judge.dry("dry photos: mean, worst, under 45", clean)
        judge.dry("with noise of 5", (noisy(pixels)[0] for pixels in clean))
        pictures = [np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB")) for name in DRY_PICTURES]
        named = (", ".join(f"{value:.0f}" for value in values) for values in judge.kept(pictures))
        judge.row(", ".join(f"`{name}`" for name in DRY_PICTURES), named)
    if "textures" in given.parts:
        judge.dry("textures: mean, worst, under 45", read_textures(given.textures))


if __name__ == "__main__":
    main()
