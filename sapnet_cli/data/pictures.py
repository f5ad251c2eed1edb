"""Sets of pictures to learn from: checked once, all of them, and kept in memory as far as it goes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.cores import usable_cores
from sapnet_cli.data.pairs import Pair
from sapnet_cli.errors import ImageError
from sapnet_cli.imaging.read import decode

Pixels: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) RGB."""

SMALLEST_SIDE = 32
"""Pictures below this in either direction teach nothing; smaller than a crop they are mirrored at their edges."""

MEGAPIXELS = 256.0


@dataclass(frozen=True)
class CheckedPair:
    """A pair that was read and found good.

    Attributes:
        pair: where it lies.
        size: width and height of either picture.
        scene: digest of the clean pixels; pairs with equal digests show one scene under different rain.
        rain: digest of the rainy pixels.
    """

    pair: Pair
    size: tuple[int, int]
    scene: str
    rain: str


class PictureCache:
    """Decoded pictures, kept up to a number of bytes; those beyond are decoded whenever they are asked for.

    A ground truth that several rainy pictures share is kept once.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: dict[Path, Pixels] = {}

    def read(self, pair: Pair) -> tuple[Pixels, Pixels]:
        """The rainy and the clean picture, each (H, W, 3) uint8.

        Raises:
            ImageError: one of the files cannot be read, or they differ in size.
        """
        return read_pair(pair, self._read)

    def _read(self, path: Path) -> Pixels:
        if (kept := self._kept.get(path)) is not None:
            return kept
        pixels = _read(path)
        if pixels.nbytes <= self._capacity:
            self._capacity -= pixels.nbytes  # two threads at once may overdraw by a picture, which does no harm
            self._kept[path] = pixels
        return pixels

    def __len__(self) -> int:
        return len(self._kept)


def read_pair(pair: Pair, read: Callable[[Path], Pixels] | None = None) -> tuple[Pixels, Pixels]:
    """Decodes a pair; 16 bits are rounded to 8, transparency is ignored.

    Args:
        pair: what to read.
        read: gives the pixels of one file; None decodes it.

    Returns and raises as `PictureCache.read`.
    """
    read = read or _read
    rainy = read(pair.rainy)
    if pair.side_by_side is not None:
        left, right = np.split(rainy[:, : rainy.shape[1] // 2 * 2], 2, axis=1)
        return (right, left) if pair.side_by_side == "clean-left" else (left, right)
    clean = rainy if pair.clean == pair.rainy else read(pair.clean)
    if rainy.shape != clean.shape:
        sizes = [f"{picture.shape[1]}x{picture.shape[0]}" for picture in (rainy, clean)]
        raise ImageError(f"{pair.rainy} is {sizes[0]}, but {pair.clean} is {sizes[1]}")
    return rainy, clean


def check_pairs(
    pairs: Sequence[Pair], cache: PictureCache, report: Callable[[int], None] | None = None
) -> tuple[list[CheckedPair], list[str]]:
    """Decodes all pairs once, several at a time.

    Args:
        pairs: what to read.
        cache: keeps as many as it holds.
        report: is told how many pairs are done.

    Returns:
        The good pairs in the order given, and one line for each pair that cannot be used.
    """
    good: list[CheckedPair] = []
    problems: list[str] = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for done, result in enumerate(pool.map(lambda pair: _check(pair, cache), pairs), start=1):
            if isinstance(result, CheckedPair):
                good.append(result)
            else:
                problems.append(result)
            if report is not None:
                report(done)
    return good, problems


def split_scenes(
    sets: Sequence[Sequence[CheckedPair]], fraction: float, seed: int
) -> tuple[list[list[CheckedPair]], list[list[CheckedPair]]]:
    """Splits sets into what is trained on and what is held out, all pairs of one scene on one side.

    Sets often share photos under different rain; a scene counts by its clean pixels, so that none that is trained on
    in one set is validated on in another. The same pictures and seed give the same split on any machine.

    Args:
        sets: the good pairs of each.
        fraction: of each set's scenes to hold out, at least one, unless it is 0.
        seed: of the choice.

    Returns:
        The pairs to train on and those held out, set by set.
    """
    held: set[str] = set()
    for pairs in sets:
        scenes = sorted({pair.scene for pair in pairs}, key=lambda scene: _shuffled(scene, seed))
        if fraction > 0 and len(scenes) > 1:
            wanted = min(max(1, round(fraction * len(scenes))), len(scenes) - 1)
            missing = wanted - sum(scene in held for scene in scenes)
            held.update([scene for scene in scenes if scene not in held][: max(0, missing)])
    train = [[pair for pair in pairs if pair.scene not in held] for pairs in sets]
    return train, [[pair for pair in pairs if pair.scene in held] for pairs in sets]


def describe_sizes(pairs: Sequence[CheckedPair]) -> str:
    """How many pairs of which sizes, the commonest first: `190 of 481x321, 10 of 321x481`."""
    counts = Counter(pair.size for pair in pairs).most_common()
    shown = [f"{count} of {width}x{height}" for (width, height), count in counts[:3]]
    if len(counts) > 3:
        rest = counts[3:]
        sides = [size for (size, _) in rest]
        smallest, largest = (f"{width}x{height}" for width, height in (min(sides), max(sides)))
        shown.append(f"{sum(count for _, count in rest)} of other sizes, {smallest} to {largest}")
    return ", ".join(shown)


def fingerprint(sets: Sequence[Sequence[CheckedPair]]) -> str:
    """Digest of the pictures and their order, by which a resumed run knows its data again."""
    lines = [f"{number} {pair.size} {pair.scene} {pair.rain}" for number, pairs in enumerate(sets) for pair in pairs]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check(pair: Pair, cache: PictureCache) -> CheckedPair | str:
    try:
        rainy, clean = cache.read(pair)
    except ImageError as error:
        return str(error)
    height, width = clean.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        return f"{pair.rainy}: {width}x{height} is too small to learn from"
    return CheckedPair(pair, (width, height), _digest(clean), _digest(rainy))


def _digest(pixels: Pixels) -> str:
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).hexdigest()


def _read(path: Path) -> Pixels:
    try:
        picture = decode(path.read_bytes(), MEGAPIXELS)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    pixels = picture.rgb
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _shuffled(scene: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {scene}".encode()).hexdigest()
