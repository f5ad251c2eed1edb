"""Seconds and memory for a large photo: the whole command, and its throughput against that of small pictures.

python tests/performance/large_photo.py [--size 4000x3000] [--stages 6] [--precision auto] [OPTION of sapnet derain ...]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "rainy" / "rocket.jpg"
SMALL, ROUNDS = (481, 321), 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4000x3000", help="width x height of the large photo")
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--precision", default="auto")
    arguments, options = parser.parse_known_args()
    width, height = map(int, arguments.size.split("x"))

    with Image.open(EXAMPLE) as example, tempfile.TemporaryDirectory() as work:
        photo = example.convert("RGB")
        photo.resize((width, height), Image.Resampling.BICUBIC).save(f"{work}/large.jpg", quality=92)
        command = [sys.executable, "-m", "sapnet_cli", "derain", f"{work}/large.jpg", "-o", f"{work}/dry.jpg"]
        start = time.perf_counter()
        same = ["--stages", str(arguments.stages), "--precision", arguments.precision]
        subprocess.run([*command, "--quiet", *same, *options], check=True)
        whole = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of a process that began as small as this one is

    from sapnet_cli import Derainer
    from sapnet_cli.engine.hardware import prepare_process

    prepare_process()
    derainer = Derainer(stages=arguments.stages, precision=arguments.precision)
    small = np.asarray(photo)[: SMALL[1], : SMALL[0]]
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        derainer.derain(small)
        seconds.append(time.perf_counter() - start)
    of_small, of_large = min(seconds[1:]) / (SMALL[0] * SMALL[1]), whole / (width * height)
    print(f"{width}x{height}, the whole command: {whole:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of a CPU")
    print(
        f"resident at most: {used.ru_maxrss / 2**20:.2f} GB, of which the picture is {3 * width * height / 2**30:.2f}"
    )
    print(f"seconds a megapixel: {1e6 * of_large:.2f}, of {SMALL[0]}x{SMALL[1]} in the engine {1e6 * of_small:.2f}")
    print(f"throughput: {of_small / of_large:.0%} of that of small pictures")


if __name__ == "__main__":
    main()
