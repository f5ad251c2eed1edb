"""Paired folders: a rainy and a clean picture of the same scene."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

# (folder of the rainy files, folder of the clean files), relative to the data folder
FOLDER_LAYOUTS = (("input", "target"), ("rainy", "gt"), ("rain", "norain"), ("rainy", "."), (".", "."))


@dataclass(frozen=True)
class Pair:
    """Paths of one rainy picture and of its ground truth; the same path where one file holds both side by side.

    Attributes:
        rainy: the rainy picture.
        clean: its ground truth.
        clean_left: whether the clean half of a file that holds both is the left one.
    """

    rainy: Path
    clean: Path
    clean_left: bool = True


def find_side_by_side(folder: Path, clean_left: bool) -> list[Pair]:
    """Lists the pictures of a folder, each a rainy and a clean half side by side, in natural order.

    Raises:
        FileNotFoundError: the folder holds no pictures.
    """
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES] if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{folder}: no pictures found")
    return [Pair(path, path, clean_left) for path in sorted(files, key=_natural_order)]


def find_pairs(folder: Path) -> list[Pair]:
    """Lists the pairs of a folder, in natural order.

    Understands `input/`+`target/`, `rainy/`+`gt/`, `rain/`+`norain/` with equal names, and `rain-*`+`norain-*`,
    flat or with the rainy ones in `rainy/` (the layouts of Rain100L and RainTrainL).

    Raises:
        FileNotFoundError: the folder holds no pair in any of these layouts.
    """
    for rainy_name, clean_name in FOLDER_LAYOUTS:
        rainy_folder, clean_folder = folder / rainy_name, folder / clean_name
        if not (rainy_folder.is_dir() and clean_folder.is_dir()):
            continue
        clean_files = {path.stem: path for path in clean_folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES}
        pairs = []
        for rainy in rainy_folder.iterdir():
            if rainy.suffix.lower() not in PICTURE_SUFFIXES:
                continue
            clean = clean_files.get(rainy.stem if clean_name != "." else f"no{rainy.stem}")
            if clean is not None:
                pairs.append(Pair(rainy, clean))
        if pairs:
            return sorted(pairs, key=lambda pair: _natural_order(pair.rainy))
    layouts = "input/ + target/, rainy/ + gt/, rain/ + norain/, or rain-*.png + norain-*.png"
    raise FileNotFoundError(f"{folder}: no rainy and clean pairs found; expected {layouts}")


def _natural_order(path: Path) -> tuple[list[int], str]:
    """Sorts 2.png before 10.png."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name
