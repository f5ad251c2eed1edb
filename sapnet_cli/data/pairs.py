"""Pairs of pictures on disk: a rainy one and its ground truth, in the layouts that exist."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sapnet_cli.errors import UsageError
from sapnet_cli.imaging.picture import FORMAT_OF_SUFFIX, is_picture_file

FOLDER_LAYOUTS = (
    ("input", "target"),
    ("input", "gt"),
    ("rainy", "gt"),
    ("rainy", "clean"),
    ("rainy", "norain"),
    ("rain", "norain"),
    ("rain", "gt"),
    ("rainy_image", "ground_truth"),
    ("rainy", "."),
    (".", "."),
)
"""Folders of the rainy and of the clean files, relative to the set's own; the first two that have pairs count."""

SideBySide = Literal["clean-left", "clean-right"]


@dataclass(frozen=True)
class Pair:
    """Paths of one rainy picture and of its ground truth.

    Attributes:
        rainy: the rainy picture.
        clean: its ground truth; the same path where one file holds both halves.
        side_by_side: which half of such a file is the clean one, None for two files.
    """

    rainy: Path
    clean: Path
    side_by_side: SideBySide | None = None


@dataclass(frozen=True)
class PairListing:
    """What was found in one folder or list.

    Attributes:
        source: the folder or CSV file.
        layout: how the pairs lie in it, in words.
        pairs: in natural order: 2 before 10.
        problems: one line for each picture without a partner.
    """

    source: Path
    layout: str
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()


def find_pairs(source: Path, side_by_side: SideBySide | None = None) -> PairListing:
    """Lists the pairs of a folder or of a CSV file.

    Understands `input/`+`target/`, `rainy/`+`gt/`, `rain/`+`norain/` and the like with equal names, `rain-1`+`norain-1`
    flat or with the rainy ones in `rainy/`, several rainy pictures of one scene (`rainy_image/N_k.jpg` with
    `ground_truth/N.jpg`, `rain/norain-Nx2.png` with `norain/norain-N.png`), and CSV files of `rainy,clean` paths.

    Args:
        source: the folder, or a file ending in .csv whose paths count from its own folder.
        side_by_side: how the pictures of a folder without such pairs hold both, left and right.

    Raises:
        UsageError: there is no such folder, or it holds no pair.
    """
    if source.suffix.lower() == ".csv" and source.is_file():
        return _read_csv(source)
    if not source.is_dir():
        raise UsageError(f"{source}: neither a folder of pairs nor a CSV file")
    folders = {path.name.lower(): path for path in source.iterdir() if path.is_dir()} | {".": source}
    for rainy_name, clean_name in FOLDER_LAYOUTS:
        if rainy_name in folders and clean_name in folders:
            listing = _match(source, folders[rainy_name], folders[clean_name])
            if listing.pairs:
                return listing
    if side_by_side is not None and (files := list_pictures(source)):
        pairs = tuple(Pair(path, path, side_by_side) for path in files)
        return PairListing(source, f"side by side, {side_by_side}", pairs)
    layouts = "input/ + target/, rainy/ + gt/, rain/ + norain/, rainy_image/ + ground_truth/, rain-*.png + norain-*.png"
    advice = "" if side_by_side else "; if each file holds both, give --side-by-side clean-left or clean-right"
    raise UsageError(f"{source}: no rainy and clean pairs found; expected {layouts}, or a CSV file{advice}")


def list_pictures(folder: Path) -> list[Path]:
    """The pictures right in a folder, by their endings, in natural order."""
    return sorted(filter(is_picture_file, folder.iterdir()), key=_natural_order)


def find_unpaired(source: Path) -> PairListing | None:
    """The pictures right in a folder, or the one picture, each its own partner; None if there is none."""
    files = list_pictures(source) if source.is_dir() else [source] if source.suffix.lower() in FORMAT_OF_SUFFIX else []
    files = [path for path in files if path.is_file()]
    return PairListing(source, "no ground truth", tuple(Pair(path, path) for path in files)) if files else None


def _match(source: Path, rainy_folder: Path, clean_folder: Path) -> PairListing:
    """Finds the ground truth of each rainy picture by its name."""
    rainy_files, clean_files = list_pictures(rainy_folder), list_pictures(clean_folder)
    if clean_folder == source:  # only names tell here what is clean
        clean_files = [path for path in clean_files if path.stem.lower().startswith("norain")]
        rainy_files = [path for path in rainy_files if path.stem.lower().startswith("rain")]
    clean = {path.stem.lower(): path for path in clean_files}
    pairs, problems = [], []
    for rainy in rainy_files:
        match = next((clean[name] for name in _clean_names(rainy.stem.lower()) if name in clean), None)
        if match is None:
            problems.append(f"{rainy}: no clean picture of that name in {clean_folder}")
        else:
            pairs.append(Pair(rainy, match))
    matched = {pair.clean for pair in pairs}
    problems += [
        f"{path}: no rainy picture of that name in {rainy_folder}" for path in clean_files if path not in matched
    ]
    names = [f"{path.relative_to(source)}/" if path != source else "" for path in (rainy_folder, clean_folder)]
    layout = " + ".join(name or ("norain-*" if index else "rain-*") for index, name in enumerate(names))
    return PairListing(source, layout, tuple(pairs), tuple(problems))


def _clean_names(stem: str) -> Iterator[str]:
    """What the ground truth of a rainy picture may be called, the likeliest first."""
    scene = re.sub(r"(_\d+|x\d+)$", "", stem)  # N_k: rain k on scene N; Nx2: heavy rain on scene N
    for name in (stem, scene):
        yield name
        yield f"no{name}"


def _read_csv(source: Path) -> PairListing:
    pairs, problems = [], []
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = list(enumerate(csv.reader(file), start=1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{source}: not a readable CSV file of rainy,clean paths ({error})") from error
    columns = (0, 1)
    if rows and (header := _header_columns(rows[0][1])):
        columns, rows = header, rows[1:]
    for line, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(columns):
            problems.append(f"{source}:{line}: expected two paths, rainy,clean")
            continue
        rainy, clean = (source.parent / row[column].strip() for column in columns)
        missing = [path for path in (rainy, clean) if not path.is_file()]
        if missing:
            problems.append(f"{source}:{line}: {missing[0]} does not exist")
        else:
            pairs.append(Pair(rainy, clean))
    if not pairs:
        raise UsageError(f"{source}: no line names two files that exist; expected rainy,clean" + _first(problems))
    return PairListing(source, "CSV", tuple(pairs), tuple(problems))


def _header_columns(row: Iterable[str]) -> tuple[int, int] | None:
    """Columns of the rainy and of the clean path, where the first row names them."""
    names: Mapping[str, int] = {name.strip().lower(): column for column, name in enumerate(row)}
    rainy = [names[name] for name in ("rainy", "input", "rain") if name in names]
    clean = [names[name] for name in ("clean", "target", "gt", "norain", "ground_truth") if name in names]
    return (rainy[0], clean[0]) if rainy and clean else None


def _first(problems: list[str]) -> str:
    return f" ({problems[0]})" if problems else ""


def _natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts 2.png before 10.png."""
    return [(int(digits), text) for text, digits in re.findall(r"(\D*)(\d+)", path.stem)], path.name
