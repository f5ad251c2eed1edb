"""How far a picture in tiles is from the same picture computed whole, in fp32: in levels of 255.

    python tests/performance/tiles_and_whole.py [PICTURE ...] [--megapixels 5] [--tile 1024] [--precision auto]

Each picture is enlarged or shrunk to so many megapixels. Without a coarser level, and as floats, so that nothing but
tiles and precision makes a difference.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image

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
    parser.add_argument("--weights", default="sapnet-general")
    arguments = parser.parse_args()

    prepare_process()
    model = load_checkpoint(locate_weights(arguments.weights)).eval().requires_grad_(False)
    tiled = Engine(model, EngineConfig("cpu", arguments.precision, tile=arguments.tile, pyramid=1))
    whole = Engine(model, EngineConfig("cpu", "fp32", tile=0, pyramid=1))
    for path in arguments.pictures:
        with Image.open(path) as opened:
            times = math.sqrt(1e6 * arguments.megapixels / (opened.width * opened.height))
            size = round(opened.width * times), round(opened.height * times)
            picture = np.asarray(opened.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32) / 255
        expected = whole.derain(picture)
        off, changed = 255 * np.abs(tiled.derain(picture) - expected), 255 * np.abs(expected - picture).mean()
        print(
            f"{path.name}, {size[0]}x{size[1]}, which changes by {changed:.2f}: off by {off.mean():.4f} on average, "
            f"{(off > VISIBLE).mean():.4%} by more than {VISIBLE:g}, {off.max():.2f} at the worst"
        )


if __name__ == "__main__":
    main()
