"""Makes the sets that our weights were trained on out of public ones: python weights/training_sets.py DEST SETS PHOTOS.

SETS holds RainTrainL, RainHeavy200, RainHeavyVal and Rain100L, PHOTOS the 500 of BSDS500 as `*/*.jpg`. None of the
photos that Rain100L or RainHeavyVal shows goes into a set that is trained on. Writes into DEST, the same every time:

    RainHeavyUp                     RainHeavy200 with its portraits, which it stores turned by a quarter, upright
    LightB, HeavyB                  each other photo of BSDS500 under a layer of RainTrainL or RainHeavy200
    LightT, HeavyT                  half of them with signs or in strong colours, under such layers
    clean                           those that BSDS500 does not name `test`
    dryB, hazyB, dryU, dryT, dryX,  without rain, both halves of a file alike: as they are; in haze; sharpened, some
    dryG                            dithered; and drawn: strong colours, signs, pages of text, patterns; textures
    cleanG                          `clean` and each twelfth of `dryX` and `dryG`
    LightVal2, HeavyD, HeavyE       to choose weights by: RainHeavyVal's photos under layers of RainTrainL,
                                    RainHeavy200, or those of its own exchanged
    FineVal2, FrozenVal2            the same photos under drawn rain, in streaks and in drops
    r800train, r800val              with `--rain800 DIR` the files of Rain800's training part: less 60, and these

`--fonts DIR` has the fonts of signs and pages: those of Debian's fonts-dejavu, in /usr/share, unless given.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from textures import HEIGHT, WIDTH, Textures, to_bytes, uneven_light

from sapnet_cli.data.crops import rain_layer
from sapnet_cli.data.pairs import Pair, find_pairs
from sapnet_cli.data.pictures import Pixels, read_pair
from sapnet_cli.data.rain import RainConfig, RainGenerator

Colour = tuple[int, ...]
TEXT = (
    "the quick brown fox jumps over lazy dogs EXIT STOP Taxi 24h illicit Hotel Bar 50 km/h parking OPEN Main Street "
    "Mill Lane File Edit View Help def return import None |||| //// 1984 7.25 $ % @ Bus Platform 12 Lufthansa Bäckerei "
    "Größe"
)


def read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def write_pair(rainy: Pixels, clean: Pixels, folder: Path, name: str) -> None:
    write(rainy, folder / "input" / name)
    write(clean, folder / "target" / name)


def write_dry(pixels: Pixels, path: Path) -> None:
    write(np.hstack([pixels, pixels]), path)


def pairs(folder: Path) -> list[Pair]:
    """In the order of their names as text, 10 before 2, which decides which photo gets which layer."""
    return sorted(find_pairs(folder).pairs, key=lambda pair: pair.rainy)


def layers(folder: Path, most_white: float) -> list[NDArray[np.float32]]:
    """The rain of those pairs whose rainy picture is no more than so far white, where rain cannot be told."""
    pictures = map(read_pair, pairs(folder))
    return [rain_layer(rainy, clean) for rainy, clean in pictures if (rainy == 255).all(2).mean() < most_white]


class Photos:
    """BSDS500, and which of it another set shows."""

    def __init__(self, folder: Path) -> None:
        paths = {path.stem: path for path in folder.glob("*/*.jpg")}
        self.pixels = {name: read(path) for name, path in paths.items()}
        self.tested = {name for name, path in paths.items() if path.parent.name == "test"}
        self._looks = {
            (name, turns): self._look(np.rot90(pixels, turns))
            for name, pixels in self.pixels.items()
            for turns in range(4)
        }

    @staticmethod
    def _look(pixels: Pixels) -> NDArray[np.int16]:
        return cv2.resize(np.ascontiguousarray(pixels), (16, 16), interpolation=cv2.INTER_AREA).astype(np.int16)

    def find(self, pixels: Pixels) -> tuple[str, int]:
        """Name of the photo that a picture shows, and by how many quarter turns it is turned."""
        look = self._look(pixels)
        return min(self._looks, key=lambda which: np.abs(self._looks[which] - look).sum())

    def shown(self, folder: Path) -> set[str]:
        """Names of the photos that a set shows."""
        return {self.find(read(pair.clean))[0] for pair in find_pairs(folder).pairs}


def rain_on(
    photos: Iterable[tuple[str, Pixels]], rain: list[NDArray[np.float32]], random: np.random.Generator, folder: Path
) -> None:
    """Each photo under one of the layers of its shape, half of them mirrored."""
    for name, clean in photos:
        fitting = [layer for layer in rain if layer.shape == clean.shape]
        if fitting:
            layer = fitting[random.integers(len(fitting))]
            layer = layer[:, ::-1] if random.integers(2) else layer
            write_pair(to_bytes(clean + layer), clean, folder, f"{name}.png")


class Drawer:
    """Pictures that are no photos as BSDS500 has them: strong colours, signs, pages, patterns."""

    def __init__(self, fonts: Path, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.words = TEXT.split()
        self.fonts = [str(path) for path in sorted(fonts.glob("*.ttf"))]

    def between(self, smallest: int, end: int) -> int:
        return int(self.random.integers(smallest, end))

    def colour(self) -> Colour:
        return tuple(int(value) for value in self.random.integers(0, 256, 3))

    def pure_colour(self) -> Colour:
        hue, saturation, value = (self.between(*limits) for limits in ((0, 180), (150, 256), (60, 256)))
        rgb = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
        return tuple(int(value) for value in rgb)

    def phrase(self, words: int) -> str:
        return " ".join(self.random.choice(self.words, words))

    def font(self, smallest: int, largest: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(self.random.choice(self.fonts)), self.between(smallest, largest))

    def strong_colours(self, photo: Pixels) -> Pixels:
        """A photo in stronger colours, half of them others."""
        pixels = np.asarray(ImageEnhance.Color(Image.fromarray(photo)).enhance(self.random.uniform(1.5, 4)))
        if self.between(0, 2):
            hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(int)
            hsv[..., 0] = (hsv[..., 0] + self.between(0, 180)) % 180
            pixels = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        return np.ascontiguousarray(pixels)

    def signs(self, photo: Pixels) -> Pixels:
        """A photo with one to four signs or writings."""
        random, image = self.random, Image.fromarray(photo)
        draw, (width, height) = ImageDraw.Draw(image), image.size
        for _ in range(self.between(1, 5)):
            font, text = self.font(9, 48), self.phrase(self.between(1, 5))
            left, top = self.between(0, max(1, width - 60)), self.between(0, height - 20)
            fill = ((255, 255, 255), (235, 235, 225), (0, 0, 0), self.pure_colour(), self.colour())[self.between(0, 5)]
            if random.random() < 0.6:
                box, margin = draw.textbbox((left, top), text, font=font), self.between(2, 10)
                board = ((10, 10, 10), (245, 245, 245), self.pure_colour(), self.colour())[self.between(0, 4)]
                outline = fill if self.between(0, 2) else None
                corners = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
                draw.rectangle(corners, fill=board, outline=outline, width=2)
            draw.text((left, top), text, fill=fill, font=font)
        return np.asarray(image)

    def page(self) -> Pixels:
        """Lines of text, with boxes or a table, dark on light or light on dark."""
        random = self.random
        dark = random.random() < 0.6
        paper = tuple(int(value) for value in (random.integers(0, 50, 3) if dark else random.integers(215, 256, 3)))

        def ink() -> Colour:
            if random.random() < 0.3:
                return self.pure_colour()
            return tuple(int(value) for value in (random.integers(190, 256, 3) if dark else random.integers(0, 70, 3)))

        image = Image.new("RGB", (WIDTH, HEIGHT), paper)
        draw = ImageDraw.Draw(image)
        if random.random() < 0.5:
            for _ in range(self.between(1, 5)):
                left, top = self.between(0, WIDTH - 40), self.between(0, HEIGHT - 30)
                corners = (left, top, left + self.between(30, 240), top + self.between(15, 120))
                fill = self.colour() if self.between(0, 2) else None
                draw.rectangle(corners, fill=fill, outline=ink(), width=self.between(1, 3))
        if random.random() < 0.3:
            cell = self.between(12, 60)
            for left in range(cell // 2, WIDTH, cell):
                draw.line((left, 0, left, HEIGHT), fill=ink())
            for top in range(cell // 2, HEIGHT, max(10, cell // 2)):
                draw.line((0, top, WIDTH, top), fill=ink())
        font, top, fill = self.font(8, 22), self.between(0, 20), ink()
        while top < HEIGHT:
            if random.random() < 0.15:
                fill, font = ink(), self.font(8, 26)
            if random.random() < 0.9:
                left = int(random.choice([6, 14, 30, 60]))
                draw.text((left, top), self.phrase(self.between(2, 14)), fill=fill, font=font)
            top += int(font.size * random.uniform(1.1, 1.6))
        return np.asarray(image)

    def gamut(self) -> Pixels:
        """Colours up to the purest: a wheel, a gradient, or squares."""
        random, kind = self.random, self.between(0, 3)
        if kind == 0:
            down, right = np.mgrid[:HEIGHT, :WIDTH]
            middle = random.uniform(0, WIDTH), random.uniform(0, HEIGHT)
            angle = np.arctan2(down - middle[1], right - middle[0])
            radius = np.hypot(down - middle[1], right - middle[0]) / random.uniform(150, 350)
            hue, saturation = (angle / (2 * np.pi) * 180) % 180, np.clip(radius, 0, 1) * 255
            value = np.clip(random.uniform(0.8, 2) - radius * random.uniform(0, 1), 0, 1) * 255
            return cv2.cvtColor(np.stack([hue, saturation, value], 2).astype(np.uint8), cv2.COLOR_HSV2RGB)
        few = random.uniform(-1, 2, (self.between(2, 7), self.between(2, 9), 3)).astype(np.float32)
        how = cv2.INTER_CUBIC if kind == 1 else cv2.INTER_NEAREST
        return (np.clip(cv2.resize(few, (WIDTH, HEIGHT), interpolation=how), 0, 1) * 255).astype(np.uint8)

    def pattern(self) -> Pixels:
        """Bricks, tiles, boards, bars or dots, in uneven light, with some noise."""
        random, height, width = self.random, 420, 600
        base = np.array(self.colour(), float) * 0.8 + 20
        contrast = random.choice([-1, 1], p=[0.25, 0.75]) * random.uniform(25, 120)
        line = np.clip(base + contrast + random.normal(0, 8, 3), 0, 255)
        pixels = np.empty((height, width, 3))
        pixels[:] = base
        kind = self.between(0, 5)
        across, along, thick = (self.between(*limits) for limits in ((10, 70), (10, 120), (1, 6)))
        if kind == 0:
            for left in range(0, width, across):
                for top in range(-self.between(0, along), height, along):
                    pixels[max(top, 0) : top + along, left : left + across] += random.normal(0, 8)
                    if top >= 0:
                        pixels[top : top + thick, left : left + across] = line
                pixels[:, left : left + thick] = line
            if self.between(0, 2):
                lying = pixels.transpose(1, 0, 2)
                pixels = np.concatenate([lying, lying[:, ::-1]], 1)[:height]
        elif kind == 1:
            for left in range(0, width, across):
                pixels[:, left : left + thick] = line
            for top in range(0, height, along):
                pixels[top : top + thick] = line
        elif kind == 2:
            wave = np.sin(2 * np.pi * np.arange(width) / random.uniform(6, 60))
            wave = np.sign(wave) if self.between(0, 2) else wave
            pixels += (wave * random.uniform(10, 80))[None, :, None]
            if self.between(0, 2):
                pixels = np.rot90(pixels)
        elif kind == 3:
            for left in range(self.between(0, 30), width, across + 10):
                top, bottom = self.between(0, 80), height - self.between(0, 80)
                pixels[top:bottom, left : left + thick + 1] = line
        else:
            dotted = pixels.astype(np.uint8)
            for _ in range(self.between(40, 400)):
                colour = tuple(int(value) for value in np.clip(base + random.normal(0, 50), 0, 255))
                middle = self.between(0, width), self.between(0, height)
                cv2.circle(dotted, middle, self.between(1, 9), colour, -1, cv2.LINE_AA)
            pixels = dotted.astype(float)
        return self._photographed(np.ascontiguousarray(pixels[:height, :width], np.float32))

    def _photographed(self, pixels: NDArray[np.float32]) -> Pixels:
        """Turned a little, lit unevenly, blurred, and noisy."""
        random, size = self.random, pixels.shape[1::-1]
        turn = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), random.normal(0, 8), 1.25)
        turned = cv2.warpAffine(pixels, turn, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        light = uneven_light(random, 0.6, 1.2, turned.shape[:2])
        seen = cv2.GaussianBlur(turned * light, (0, 0), random.uniform(0.3, 1.2))
        noise = random.normal(0, random.uniform(0, 10), seen.shape[:2])
        seen = seen + cv2.GaussianBlur(noise, (0, 0), random.uniform(0.4, 2))[..., None]
        return to_bytes(seen[:HEIGHT, :WIDTH] if size[0] >= WIDTH else seen[: HEIGHT + 80, :HEIGHT])

    def dry(self, number: int, photo: Pixels) -> Pixels:
        """One of the kinds by its number: 4 of 20 strong colours, 4 signs, 4 pages, 2 colours, 6 patterns."""
        kind = number % 20
        if kind < 4:
            return self.strong_colours(photo)
        if kind < 8:
            return self.signs(photo)
        return self.page() if kind < 12 else self.gamut() if kind < 14 else self.pattern()

    def changed(self, number: int, photo: Pixels) -> Pixels:
        """A photo with signs, two of four; in strong colours; or both."""
        kind = number % 4
        if kind < 2:
            return self.signs(photo)
        coloured = self.strong_colours(photo)
        return coloured if kind == 2 else self.signs(coloured)


def sharpened(photo: Pixels, dithered: bool, random: np.random.Generator) -> Pixels:
    """By unsharp masking, perhaps dithered to few colours after."""
    amount, radius = random.uniform(0.5, 2.5), random.uniform(0.5, 1.5)
    pixels = cv2.addWeighted(photo, 1 + amount, cv2.GaussianBlur(photo, (0, 0), radius), -amount, 0)
    if dithered:
        colours = int(random.choice([32, 64, 128]))
        few = Image.fromarray(pixels).quantize(colours, dither=Image.Dither.FLOYDSTEINBERG)
        pixels = np.asarray(few.convert("RGB"))
    return pixels


def share_out(rain800: Path, dest: Path) -> None:
    """Puts each seventh file in order of its number, 60 in all, aside."""
    files = sorted(rain800.glob("*.jpg"), key=lambda path: int(path.stem))
    held_out = files[::7][:60]
    for path in files:
        target = dest / ("r800val" if path in held_out else "r800train") / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST")
    parser.add_argument("sets", type=Path, metavar="SETS")
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--fonts", type=Path, metavar="DIR", default=Path("/usr/share/fonts/truetype/dejavu"))
    parser.add_argument("--rain800", type=Path, metavar="DIR")
    given = parser.parse_args()
    dest, sets, photos = given.dest, given.sets, Photos(given.photos)

    held_out = sorted(photos.shown(sets / "RainHeavyVal"))
    barred = photos.shown(sets / "Rain100L").union(held_out)
    free = [(name, photos.pixels[name]) for name in sorted(photos.pixels.keys() - barred)]
    validation = [(name, photos.pixels[name]) for name in held_out]

    for pair in pairs(sets / "RainHeavy200"):
        rainy, clean = read_pair(pair)
        turns = photos.find(clean)[1]
        write_pair(np.rot90(rainy, -turns), np.rot90(clean, -turns), dest / "RainHeavyUp", pair.rainy.name)
    heavy = layers(dest / "RainHeavyUp", 0.1)
    light = layers(sets / "RainTrainL", 0.05)
    exchanged = layers(sets / "RainHeavyVal", 0.3)

    for seed, name, shown, rain in (
        (1, "HeavyB", free, heavy),
        (2, "LightB", free, light),
        (3, "LightVal2", validation, light),
        (4, "HeavyD", validation, heavy),
        (5, "HeavyE", validation, exchanged),
    ):
        rain_on(shown, rain, np.random.default_rng(seed), dest / name)
    for folder, config, seed in (
        ("FrozenVal2", RainConfig(exposure_time=(1 / 5000, 1 / 1000), jpeg=None), 8),
        ("FineVal2", RainConfig(exposure_time=(1 / 600, 1 / 40)), 9),
    ):
        generator = RainGenerator(config)
        for number, (name, photo) in enumerate(validation):
            drawn = generator.draw(photo, np.random.default_rng([seed, number]))
            write_pair(*drawn, dest / folder, f"{name}.png")

    random = np.random.default_rng(6)
    for name, photo in free:
        if name not in photos.tested:
            for folder in ("clean", "cleanG"):
                write(photo, dest / folder / f"{name}.png")
        write_dry(photo, dest / "dryB" / f"{name}.png")
        share, grey = random.uniform(0.1, 0.6), random.uniform(150, 255)
        write_dry(to_bytes(photo * (1 - share) + grey * share), dest / "hazyB" / f"{name}.png")
    random = np.random.default_rng(5)
    for number, (name, photo) in enumerate(free[::2]):
        write_dry(sharpened(photo, number % 8 == 0, random), dest / "dryU" / f"{name}.png")
    drawer = Drawer(given.fonts, seed=29)
    further = Textures(seed=35).further
    for folder, draw, count, step in (
        ("dryT", drawer.dry, 400, 7),
        ("dryX", Textures(seed=31).picture, 600, 5),
        ("dryG", lambda number, _: further(number), 350, 1),
    ):
        for number in range(count):
            pixels, name = draw(number, free[step * number % len(free)][1]), f"{number:03d}.png"
            write_dry(pixels, dest / folder / name)
            if folder != "dryT" and number % 12 == 0:
                write(pixels, dest / "cleanG" / f"{folder}-{name}")
    for name, rain in (("LightT", light), ("HeavyT", heavy)):
        changed = ((stem, drawer.changed(number, photo)) for number, (stem, photo) in enumerate(free[::2]))
        rain_on(changed, rain, drawer.random, dest / name)
    if given.rain800 is not None:
        share_out(given.rain800, dest)


if __name__ == "__main__":
    main()
