"""How far a picture in tiles is from the same picture computed whole, in fp32: in levels of 255.

    python tests/performance/tiles_and_whole.py [PICTURE ...] [--megapixels 5] [--tile 1024] [--precision auto]
        [--side-by-side]

Each picture is enlarged or shrunk to so many megapixels, or all of them are put side by side in one such. Without a
coarser level, and as floats, so that nothing but tiles and precision makes a difference.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.hardware import prepare_process
from sapnet_cli.hub import locate_weights
from sapnet_cli.model.checkpoint import load_checkpoint

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "rainy").glob("*.jpg"))
VISIBLE = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, default=EXAMPLES)
    parser.add_argument("--megapixels", type=float, default=5)
    parser.add_argument("--tile", type=int, default=1024, help="small enough for what it holds to be tiled")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--side-by-side", action="store_true", help="one picture of all, which no sample stands for")
    parser.add_argument("--weights", default="sapnet-general")
    arguments = parser.parse_args()

    prepare_process()
    model = load_checkpoint(locate_weights(arguments.weights)).eval().requires_grad_(False)
    tiled = Engine(model, EngineConfig("cpu", arguments.precision, tile=arguments.tile, pyramid=1))
    whole = Engine(model, EngineConfig("cpu", "fp32", tile=0, pyramid=1))
    prepared = side_by_side if arguments.side_by_side else one_by_one
    for name, pixels in prepared(arguments.pictures, 1e6 * arguments.megapixels):
        picture = pixels.astype(np.float32) / 255
        expected = whole.derain(picture)
        off, changed = 255 * np.abs(tiled.derain(picture) - expected), 255 * np.abs(expected - picture).mean()
        print(
            f"{name}, {picture.shape[1]}x{picture.shape[0]}, which changes by {changed:.2f}: "
            f"off by {off.mean():.4f} on average, {(off > VISIBLE).mean():.4%} by more than {VISIBLE:g}, "
            f"{off.max():.2f} at the worst"
        )


def one_by_one(paths: Sequence[Path], pixels: float) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Each enlarged or shrunk to so many pixels."""
    for path in paths:
        with Image.open(path) as opened:
            times = math.sqrt(pixels / (opened.width * opened.height))
            size = round(opened.width * times), round(opened.height * times)
            yield path.name, np.asarray(opened.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def side_by_side(paths: Sequence[Path], pixels: float) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """A square of so many pixels, in equal parts, each the middle of another picture."""
    columns = math.ceil(math.sqrt(len(paths)))
    side = round(math.sqrt(pixels) / columns)
    square = Image.new("RGB", (columns * side, columns * side))
    for place in range(columns**2):
        corner = place % columns * side, place // columns * side
        with Image.open(paths[place % len(paths)]) as opened:
            square.paste(ImageOps.fit(opened.convert("RGB"), (side, side)), corner)
    yield f"{len(paths)} side by side", np.asarray(square)


if __name__ == "__main__":
    main()
