"""Seconds and memory for a large photo: the whole command, and its throughput against that of small pictures.

Small ones are derained before and after it, as a shared machine is not equally fast for minutes; their median counts.

python tests/performance/large_photo.py [--size 4000x3000] [--stages 6] [--precision auto] [OPTION of sapnet derain ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "rainy" / "rocket.jpg"
SMALL, ROUNDS = (481, 321), 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4000x3000", help="width x height of the large photo")
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--precision", default="auto")
    arguments, options = parser.parse_known_args()
    width, height = map(int, arguments.size.split("x"))

    with tempfile.TemporaryDirectory() as work:
        with Image.open(EXAMPLE) as example:
            photo = example.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        photo.save(f"{work}/large.jpg", quality=92)
        del photo
        command = [sys.executable, "-m", "sapnet_cli", "derain", f"{work}/large.jpg", "-o", f"{work}/dry.jpg"]
        same = ["--stages", str(arguments.stages), "--precision", arguments.precision]
        small = small_pictures(arguments.stages, arguments.precision)
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--quiet", *same, *options])
        _, status, used = os.wait4(process.pid, 0)  # of a process that began as small as this one is
        whole, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.returncode)
        small += small_pictures(arguments.stages, arguments.precision)
    of_small, of_large = statistics.median(small) / (SMALL[0] * SMALL[1]), whole / (width * height)
    print(f"{width}x{height}, the whole command: {whole:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of a CPU")
    print(
        f"resident at most: {used.ru_maxrss / 2**20:.2f} GB, of which the picture is {3 * width * height / 2**30:.2f}"
    )
    print(f"seconds a megapixel: {1e6 * of_large:.2f}, of {SMALL[0]}x{SMALL[1]} in the engine {1e6 * of_small:.2f}")
    print(f"throughput: {of_small / of_large:.0%} of that of small pictures")


def small_pictures(stages: int, precision: str) -> list[float]:
    """Seconds for each of some, in a process of their own, so that this one stays small."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(time_small_pictures, (stages, precision))


def time_small_pictures(stages: int, precision: str) -> list[float]:
    """The same, in this process."""
    import numpy as np

    from sapnet_cli import Derainer
    from sapnet_cli.engine.hardware import prepare_process

    prepare_process()
    derainer = Derainer(stages=stages, precision=precision)
    with Image.open(EXAMPLE) as example:
        picture = np.asarray(example.convert("RGB"))[: SMALL[1], : SMALL[0]]
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        derainer.derain(picture)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    main()
