"""All that a run learns from and is validated on, from what the user named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sapnet_cli.data.crops import CropSource
from sapnet_cli.data.pairs import Pair, SideBySide, find_pairs, list_tree
from sapnet_cli.data.pictures import (
    CheckedPair,
    PictureCache,
    Pixels,
    check_pairs,
    describe_sizes,
    fingerprint,
    split_scenes,
)
from sapnet_cli.data.rain import RainGenerator
from sapnet_cli.errors import ImageError, UsageError

FEWEST_PAIRS = 2

NAMED_PROBLEMS = 3
"""How many are in the message that there are too few pairs."""

VALIDATION_SIDE = 512
"""Larger pictures are validated on a square of this many pixels from their middle."""

MEMORY_SHARE = 0.5
"""Of the free memory that decoded pictures may fill, all processes of this machine together."""

Progress = Callable[[str, int, int], None]
"""Is told of a set's name, pairs read and pairs in all."""


@dataclass(frozen=True)
class DataConfig:
    """What to learn from.

    Attributes:
        data: folders or CSV files of pairs, each with its weight.
        clean: folders of clean photos, each with its weight, on which rain is drawn.
        rain_layers: folders of real rain layers, which half of the clean photos get instead of drawn rain.
        side_by_side: how pictures hold both halves in folders without pairs of files.
        validation: folders of pairs to validate on, none of which is trained on.
        held_out: fraction of each set's scenes to validate on, if there are no such folders.
        seed: of the choice of the scenes held out.
    """

    data: tuple[tuple[str, float], ...] = ()
    clean: tuple[tuple[str, float], ...] = ()
    rain_layers: tuple[str, ...] = ()
    side_by_side: SideBySide | None = None
    validation: tuple[str, ...] = ()
    held_out: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class ValidationPicture:
    """One rainy picture with its ground truth, each (H, W, 3) uint8, and the set that it comes from."""

    name: str
    rainy: Pixels
    clean: Pixels


@dataclass(frozen=True)
class TrainingData:
    """Everything read and checked.

    Attributes:
        sources: what crops are drawn from.
        validation: what is never trained on.
        cache: the decoded pictures.
        summary: one line for each set: pairs, sizes, what is held out.
        problems: one line for each pair that cannot be used.
        fingerprint: digest of the pictures trained on.
    """

    sources: tuple[CropSource, ...]
    validation: tuple[ValidationPicture, ...]
    cache: PictureCache
    summary: tuple[str, ...]
    problems: tuple[str, ...]
    fingerprint: str

    @property
    def pixels(self) -> int:
        """Pixels of all rainy pictures that are trained on."""
        return sum(pair.size[0] * pair.size[1] for source in self.sources for pair in source.pairs)


@dataclass
class _Set:
    name: str
    layout: str
    pairs: list[CheckedPair]
    weight: float
    rain: RainGenerator | None = None


def load_data(config: DataConfig, free_memory: int, report: Progress | None = None) -> TrainingData:
    """Finds, reads and checks all pictures.

    Args:
        config: what the user named.
        free_memory: bytes, of which `MEMORY_SHARE` is filled with decoded pictures at the most.
        report: is told how far the reading is.

    Raises:
        UsageError: a folder holds nothing usable, or too few pairs are good; its text names the first problems.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cache = PictureCache(int(MEMORY_SHARE * free_memory / processes))
    problems: list[str] = []
    sets = [_read_set(name, weight, config, cache, problems, report) for name, weight in config.data]
    if config.clean:
        rain = RainGenerator(real_layers=_read_layers(config.rain_layers))
        sets += [_read_clean(name, weight, rain, cache, problems, report) for name, weight in config.clean]
    elif config.rain_layers:
        raise UsageError("rain layers are laid on clean photos: name those too, with --clean")
    found = sum(len(each.pairs) for each in sets)
    if found < FEWEST_PAIRS:
        first = "".join(f"; {problem}" for problem in problems[:NAMED_PROBLEMS])
        raise UsageError(
            f"only {found} good pairs in {', '.join(each.name for each in sets)}: too few to learn from{first}"
        )

    validation_sets = [_read_set(name, 1.0, config, cache, problems, report) for name in config.validation]
    fraction = 0.0 if validation_sets else config.held_out
    kept, held = split_scenes([each.pairs for each in sets], fraction, config.seed)
    validated = {pair.scene for each in validation_sets for pair in each.pairs}
    overlap = sum(pair.scene in validated for pairs in kept for pair in pairs)
    if overlap:
        problems.append(f"{overlap} pairs show scenes of the validation folders and are left out of training")
        kept = [[pair for pair in pairs if pair.scene not in validated] for pairs in kept]
    for each, pairs in zip(sets, kept):
        if not pairs:
            raise UsageError(f"{each.name}: no pair is left to train on; validate on other pictures")

    summary = []
    for each, pairs, out in zip(sets, kept, held):
        what = "clean photos" if each.rain else "pairs"
        summary.append(
            f"{each.name} ({each.layout}): {len(each.pairs)} {what}, {describe_sizes(each.pairs)}; "
            f"{len(pairs)} to train on, {len(out)} held out"
        )
    for each in validation_sets:
        sizes = describe_sizes(each.pairs)
        summary.append(f"{each.name} ({each.layout}): {len(each.pairs)} pairs, {sizes}; to validate on")

    return TrainingData(
        tuple(CropSource(tuple(pairs), each.weight, each.rain) for each, pairs in zip(sets, kept)),
        tuple(_validation_pictures(sets, held, validation_sets, cache, config.seed)),
        cache,
        tuple(summary),
        tuple(problems),
        fingerprint(kept),
    )


def _read_set(
    name: str, weight: float, config: DataConfig, cache: PictureCache, problems: list[str], report: Progress | None
) -> _Set:
    listing = find_pairs(Path(name), config.side_by_side)
    problems.extend(listing.problems)
    total = len(listing.pairs)
    good, bad = check_pairs(listing.pairs, cache, None if report is None else lambda done: report(name, done, total))
    problems.extend(bad)
    return _Set(name, listing.layout, good, weight)


def _read_clean(
    name: str, weight: float, rain: RainGenerator, cache: PictureCache, problems: list[str], report: Progress | None
) -> _Set:
    folder = Path(name)
    files = list_tree(folder) if folder.is_dir() else []
    if not files:
        raise UsageError(f"{name}: no folder with clean photos in it")
    pairs = [Pair(path, path) for path in files]
    good, bad = check_pairs(pairs, cache, None if report is None else lambda done: report(name, done, len(pairs)))
    problems.extend(bad)
    return _Set(name, "rain drawn on them", good, weight, rain)


def _read_layers(folders: Sequence[str]) -> list[Pixels]:
    layers = []
    for name in folders:
        folder = Path(name)
        files = list_tree(folder) if folder.is_dir() else []
        if not files:
            raise UsageError(f"{name}: no folder with rain layers in it")
        cache = PictureCache(0)
        try:
            layers += [cache.read(Pair(path, path))[0] for path in files]
        except ImageError as error:
            raise UsageError(str(error)) from error
    return layers


def _validation_pictures(
    sets: Sequence[_Set],
    held: Sequence[Sequence[CheckedPair]],
    validation_sets: Sequence[_Set],
    cache: PictureCache,
    seed: int,
) -> list[ValidationPicture]:
    groups = [*zip(sets, held), *((each, each.pairs) for each in validation_sets)]
    pictures = []
    for number, (each, pairs) in enumerate(groups):
        for index, pair in enumerate(pairs):
            rainy, clean = (_middle(picture) for picture in cache.read(pair.pair))
            if each.rain is not None:
                rainy, clean = each.rain.draw(clean, np.random.default_rng((seed, number, index)))
            pictures.append(ValidationPicture(Path(each.name).name, rainy, clean))
    return pictures


def _middle(picture: Pixels) -> Pixels:
    top, left = (max(0, size - VALIDATION_SIDE) // 2 for size in picture.shape[:2])
    return picture[top : top + VALIDATION_SIDE, left : left + VALIDATION_SIDE]
