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
    """Paths of one rainy picture and of its ground truth."""

    rainy: Path
    clean: Path


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
            return sorted(pairs, key=lambda pair: [int(part) for part in re.findall(r"\d+", pair.rainy.stem)])
    layouts = "input/ + target/, rainy/ + gt/, rain/ + norain/, or rain-*.png + norain-*.png"
    raise FileNotFoundError(f"{folder}: no rainy and clean pairs found; expected {layouts}")
