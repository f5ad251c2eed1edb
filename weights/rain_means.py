"""Measures what rain is to the attention of weights, for `derain --insist`: python weights/rain_means.py.

    python weights/rain_means.py WEIGHTS FOLDER

FOLDER holds pairs, of which each tenth is looked at, or photos of rain (`*.jpg`), of which each second is, as by
`real_truths.py`, and what the weights make of them stands for their ground truths. Photos that the weights take hardly
anything off are no rain to them and do not count. The file of the weights is replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from real_truths import in_order, shrunk, streaks

from sapnet_cli import Derainer
from sapnet_cli.data.pairs import find_pairs
from sapnet_cli.data.pictures import Pixels, read_pair
from sapnet_cli.errors import UsageError
from sapnet_cli.model.checkpoint import load_checkpoint, save_checkpoint

LEAST = 2.0
"""That streaks become darker by, averaged over a photo, in 255ths."""


def main() -> None:
    """Replaces the file when all is measured."""
    weights, folder = (Path(name) for name in sys.argv[1:])
    derainer = Derainer(weights, precision="fp32", pyramid=1)
    pairs = read(folder, derainer)
    model = load_checkpoint(weights)
    model.rain_means = torch.from_numpy(derainer.engine.rain_means(pairs))
    save_checkpoint(model, weights)
    print(f"{weights}: by {len(pairs)} pictures")


def read(folder: Path, derainer: Derainer) -> list[tuple[Pixels, Pixels]]:
    """The rainy pictures of a folder that are looked at, and what they are without rain."""
    try:
        return [read_pair(pair) for pair in find_pairs(folder).pairs[::10]]
    except UsageError:
        photos = [shrunk(path) for path in in_order(folder)[::2]]
    pairs = [(rainy, derainer.derain(rainy)) for rainy in photos]
    return [(rainy, derained) for rainy, derained in pairs if streaks(rainy, derained).mean() >= LEAST]


if __name__ == "__main__":
    main()
