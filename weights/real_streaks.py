"""Measures how much rain weights take off real photos, which have no ground truth: python weights/real_streaks.py.

    python weights/real_streaks.py RAINY WEIGHTS ...

RAINY holds the photos, `*.jpg`. Prints a row of a Markdown table for each: how much darker streaks become, in 255ths,
averaged over the photo, by each of the weights, with `derain --insist 1.5`, or `auto`, where `:1.5` or `:auto` follows
their name; then the means over every second photo, which `real_truths.py` leaves alone, and over all. More is better
only as long as textures stay, which pictures without rain tell.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from real_truths import in_order, shrunk, streaks

from sapnet_cli import Derainer


def main() -> None:
    """Takes the photos one by one, so that rows come as they are done."""
    folder, *weights = sys.argv[1:]
    named = [each.partition(":") for each in weights]
    derainers = [
        Derainer(name, pyramid=1, insist="auto" if insist == "auto" else float(insist or 0))
        for name, _, insist in named
    ]
    print(f"| photo | {' | '.join(weights)} |\n|---|{'---|' * len(weights)}")
    rows = []
    for path in in_order(Path(folder)):
        rainy = shrunk(path)
        rows.append([float(streaks(rainy, derainer.derain(rainy)).mean()) for derainer in derainers])
        print_row(path.stem, rows[-1])
    print_row("every second", np.mean(rows[1::2], axis=0))
    print_row("all", np.mean(rows, axis=0))


def print_row(name: str, values: list[float]) -> None:
    print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
