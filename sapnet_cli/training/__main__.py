"""A first training script: `python -m sapnet_cli.training -o runs/base --data PAIRS [--share 1] ... --minutes 60`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from sapnet_cli.data.crops import CropSampler, PairedPictures, Variety, read_pairs
from sapnet_cli.data.pairs import Pair, find_pairs, find_side_by_side
from sapnet_cli.training.loop import Trainer, TrainingConfig

VALIDATION_SIDE = 256


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m sapnet_cli.training", description="Trains SAPNet on pairs.")
    help_data = (
        "folder of pairs, with @clean-left or @clean-right behind it where each file holds both; may be repeated"
    )
    parser.add_argument("--data", action="append", required=True, help=help_data)
    parser.add_argument(
        "--share", type=float, action="append", help="weight of each --data in a batch; equal if left out"
    )
    parser.add_argument("--hold-out", type=int, action="append", help="last pairs of each --data kept for validation")
    parser.add_argument("--val", type=Path, action="append", default=[], help="further pairs to validate on")
    parser.add_argument("--minutes", type=float, required=True, help="budget")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run; resumes if it holds one")
    parser.add_argument("--faint", type=float, default=0.0, help="probability that a crop's rain is dimmed")
    parser.add_argument("--fine", type=float, default=0.0, help="probability that a crop's rain is made finer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shares = arguments.share or [1.0] * len(arguments.data)
    held_out = arguments.hold_out or [0] * len(arguments.data)
    if not len(shares) == len(held_out) == len(arguments.data):
        parser.error("give --share and --hold-out once for each --data, or not at all")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    sets, validation = [], {}
    for folder, count in zip(arguments.data, held_out):
        pairs = _find(folder)
        sets.append(read_pairs(pairs[: len(pairs) - count]))
        if count:
            validation[Path(folder).name] = _corners(read_pairs(pairs[len(pairs) - count :]))
    for folder in arguments.val:
        validation[folder.name] = _corners(read_pairs(find_pairs(folder)))
    sampler = CropSampler(sets, shares, arguments.seed, Variety(arguments.faint, arguments.fine))
    Trainer(TrainingConfig(arguments.minutes, seed=arguments.seed), sampler, arguments.output).run(validation)


def _find(data: str) -> list[Pair]:
    folder, _, halves = data.partition("@clean-")
    return find_side_by_side(Path(folder), halves == "left") if halves else find_pairs(Path(folder))


def _corners(paired: PairedPictures) -> PairedPictures:
    """Crops that validate in little time."""
    side = VALIDATION_SIDE
    return PairedPictures(tuple((rainy[:side, :side], clean[:side, :side]) for rainy, clean in paired.pictures))


if __name__ == "__main__":
    main()
