"""Seconds for a folder: the whole command against the forward passes alone, and the start of the command.

python tests/performance/folder.py [--count 30] [--stages 6]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples" / "rainy"
SIZE = (481, 321)


def command(folder: Path, stages: int) -> float:
    """Seconds of `sapnet derain` over a folder."""
    start = time.perf_counter()
    arguments = [folder, "-o", folder.with_name("out"), "--stages", stages, "--quiet"]
    subprocess.run([sys.executable, "-m", "sapnet_cli", "derain", *map(str, arguments)], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--stages", type=int, default=6)
    arguments = parser.parse_args()

    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(EXAMPLES.iterdir())]
    with tempfile.TemporaryDirectory() as work:
        folder, tiny = Path(work, "rainy"), Path(work, "tiny")
        folder.mkdir()
        tiny.mkdir()
        cuts = []
        for index in range(arguments.count):
            picture = pictures[index % len(pictures)]
            top, left = (index * 7 % max(1, length - side + 1) for length, side in zip(picture.shape, SIZE[::-1]))
            cuts.append(np.ascontiguousarray(picture[top : top + SIZE[1], left : left + SIZE[0]]))
            Image.fromarray(cuts[-1]).save(folder / f"{index}.png")
        Image.fromarray(cuts[0][:16, :16]).save(tiny / "0.png")
        start_up = min(command(tiny, 1) for _ in range(3))
        whole = command(folder, arguments.stages)

        from sapnet_cli import Derainer
        from sapnet_cli.engine.hardware import prepare_process

        prepare_process()
        derainer = Derainer(stages=arguments.stages)
        derainer.derain(cuts[0])
        start = time.perf_counter()
        for cut in cuts:
            derainer.derain(cut)
        forwards = time.perf_counter() - start
        whole_again = command(folder, arguments.stages)
    best = min(whole, whole_again)
    print(f"start to the first output of a 16x16 picture {start_up:.2f} s")
    print(f"{arguments.count} pictures: command {whole:.1f} and {whole_again:.1f} s, forwards alone {forwards:.1f} s")
    print(f"command / forward passes: {best / forwards:.2f}, without the start {(best - start_up) / forwards:.2f}")


if __name__ == "__main__":
    main()
