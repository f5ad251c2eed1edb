"""Pairs of pictures on disk: a rainy one and its ground truth, in the layouts that exist."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Literal

from sapnet_cli.errors import UsageError
from sapnet_cli.imaging.picture import FORMAT_OF_SUFFIX, is_picture_file

RAINY_FOLDERS = ("input", "rainy", "rain", "rainy_image", "rainy_images", "data", "in", "lq")
CLEAN_FOLDERS = ("target", "gt", "clean", "norain", "no_rain", "ground_truth", "groundtruth", "hq")

FOLDER_LAYOUTS = (*product(RAINY_FOLDERS, CLEAN_FOLDERS), ("rainy", "."), (".", "."))
"""Folders of the rainy and of the clean files, relative to the set's own; the first two that have pairs count."""

_RAINY_WORDS = r"rainy?|input|in"
_CLEAN_WORDS = r"no[-_ ]?rain|clean|gt|ground[-_ ]?truth|target"
_AFFIX = r"^(?:{0})(?=[-_ .\d])[-_ .]*|[-_ .]+(?:{0})$|(?<=\d)(?:{0})$"
_RAINY_AFFIX, _CLEAN_AFFIX = (re.compile(_AFFIX.format(words)) for words in (_RAINY_WORDS, _CLEAN_WORDS))
"""A word at the beginning or end of a name that says which of two pictures it is: `1_clean`, `rain-1`, `000gt`."""

_GT_RAIN = re.compile(r"(.*-)([rc])-(\d+)")
"""How GT-RAIN names the frames of a scene, rainy (R) or clean (C): `Oinari_0-3-Webcam-R-017`."""

SideBySide = Literal["clean-left", "clean-right"]


@dataclass(frozen=True)
class Pair:
    """Paths of one rainy picture and of its ground truth.

    Attributes:
        rainy: the rainy picture.
        clean: its ground truth; the same path where one file holds both halves.
        side_by_side: which half of such a file is the clean one, None for two files.
        name: of the rainy picture within its listing, with as many folders as tell it apart from all others.
        output: where to write what is made of it, relative to a folder: the name as PNG, unlike that of any other.
    """

    rainy: Path
    clean: Path
    side_by_side: SideBySide | None = None
    name: str = field(default="", compare=False)
    output: str = field(default="", compare=False)


@dataclass(frozen=True)
class PairListing:
    """What was found in one folder or list.

    Attributes:
        source: the folder or CSV file.
        layout: how the pairs lie in it, in words.
        pairs: in natural order: 2 before 10; named.
        problems: one line for each picture without a partner.
    """

    source: Path
    layout: str
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", _named(self.pairs))


def find_pairs(source: Path, side_by_side: SideBySide | None = None) -> PairListing:
    """Lists the pairs of a folder or of a CSV file.

    Understands `input/`+`target/`, `rainy/`+`gt/`, `rain/`+`norain/` and the like, with equal names in equal folders
    below or with words that tell them apart (`data/1_rain.png` with `gt/1_clean.png`), such words flat (`rain-1` with
    `norain-1`, `1_in` with `1_GT`) or with the rainy ones in `rainy/`, several rainy pictures of one scene
    (`rainy_image/N_k.jpg` with `ground_truth/N.jpg`, `rain/norain-Nx2.png` with `norain/norain-N.png`,
    `in/N_s80_a04.png` with `gt/N.png`), the scenes of GT-RAIN, and CSV files of `rainy,clean` paths.

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
    if listing := find_in_folder(source):
        return listing
    if side_by_side is not None and (files := list_pictures(source)):
        pairs = tuple(Pair(path, path, side_by_side) for path in files)
        return PairListing(source, f"side by side, {side_by_side}", pairs)
    if below := next((path for path in _folders_in(source) if find_in_folder(path)), None):
        raise UsageError(f"{source}: no pairs right in it; name the folder below that has them, as {below}")
    layouts = "input/ + target/, rainy/ + gt/, rain/ + norain/, rainy_image/ + ground_truth/, rain-*.png + norain-*.png"
    advice = "" if side_by_side else "; if each file holds both, give --side-by-side clean-left or clean-right"
    raise UsageError(f"{source}: no rainy and clean pairs found; expected {layouts}, or a CSV file{advice}")


def list_pictures(folder: Path) -> list[Path]:
    """The pictures right in a folder, by their endings, in natural order."""
    return sorted(filter(is_picture_file, folder.iterdir()), key=_natural_order)


def list_tree(folder: Path) -> list[Path]:
    """The pictures of a folder and of those below it, folder by folder, but for linked and hidden folders."""
    files = []
    for parent, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += list_pictures(Path(parent))
    return files


def find_unpaired(source: Path) -> PairListing | None:
    """The pictures right in a folder, or the one picture, each its own partner; None if there is none."""
    files = list_pictures(source) if source.is_dir() else [source] if source.suffix.lower() in FORMAT_OF_SUFFIX else []
    files = [path for path in files if path.is_file()]
    return PairListing(source, "no ground truth", tuple(Pair(path, path) for path in files)) if files else None


def _folders_in(source: Path) -> list[Path]:
    """Those that may be looked into."""
    return sorted(path for path in source.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.X_OK))


def find_in_folder(source: Path) -> PairListing | None:
    """The pairs of a folder, in any layout of `find_pairs` but lists and halves side by side; None if it has none."""
    folders = {path.name.lower(): path for path in source.iterdir() if path.is_dir()} | {".": source}
    for rainy_name, clean_name in FOLDER_LAYOUTS:
        if rainy_name in folders and clean_name in folders:
            listing = _match(source, folders[rainy_name], folders[clean_name])
            if listing.pairs:
                return listing
    return _match_scenes(source)


def _match(source: Path, rainy_folder: Path, clean_folder: Path) -> PairListing:
    """Finds the ground truth of each rainy picture by its name, in the same folder below if there are any."""
    if clean_folder == source:  # only names tell here what is clean
        clean_files = [path for path in list_pictures(source) if _is_named(path, "norain", _CLEAN_AFFIX)]
        taken = set(clean_files)
        others = (path for path in list_pictures(rainy_folder) if path not in taken)
        rainy_files = [path for path in others if _is_named(path, "rain", _RAINY_AFFIX)]
    else:
        rainy_files, clean_files = list_tree(rainy_folder), list_tree(clean_folder)
    clean = {(_place(path, clean_folder), path.stem.lower()): path for path in clean_files}
    scenes = {key: (key[0], _CLEAN_AFFIX.sub("", key[1])) for key in clean}
    counts = Counter(scenes.values())
    for key, scene in scenes.items():  # names without the word, where that leaves one picture of that name
        if counts[scene] == 1:
            clean.setdefault(scene, clean[key])
    pairs, problems = [], []
    for rainy in rainy_files:
        place = _place(rainy, rainy_folder)
        match = next((clean[place, name] for name in _clean_names(rainy.stem.lower()) if (place, name) in clean), None)
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


def _named(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """The same with their names and outputs."""
    paths = [Path(os.path.normpath(pair.rainy.absolute())) for pair in pairs]  # links keep their own names
    try:
        common = os.path.commonpath([path.parent for path in paths]) if paths else ""
        paths = [path.relative_to(common) for path in paths]
    except ValueError:  # on two drives of Windows
        paths = [path.relative_to(path.anchor) for path in paths]
    stems = {path: str(path.with_suffix("")) for path in paths}
    counts = Counter(stem.lower() for stem in stems.values())
    return tuple(
        replace(pair, name=path.as_posix(), output=f"{stems[path] if counts[stems[path].lower()] == 1 else path}.png")
        for pair, path in zip(pairs, paths)
    )


def _is_named(path: Path, beginning: str, affix: re.Pattern[str]) -> bool:
    stem = path.stem.lower()
    return stem.startswith(beginning) or affix.search(stem) is not None


def _place(path: Path, folder: Path) -> str:
    return str(path.parent.relative_to(folder)).lower()


def _clean_names(stem: str) -> Iterator[str]:
    """What the ground truth of a rainy picture may be called, the likeliest first."""
    for name in (stem, _RAINY_AFFIX.sub("", stem)):
        # N_k: rain k on scene N; Nx2: heavy rain on scene N; N_s80_a04: fog and light of scene N
        for scene in (name, re.sub(r"(_\d+|x\d+|(_[a-z]\d+)+)$", "", name)):
            yield scene
            yield f"no{scene}"


def _match_scenes(source: Path) -> PairListing | None:
    """Scenes of GT-RAIN, one or a folder of them: all rainy frames with the clean one, or with that of their number."""
    pairs, problems = [], []
    for folder in (source, *_folders_in(source)):
        named = [(path, name) for path in list_pictures(folder) if (name := _GT_RAIN.fullmatch(path.stem.lower()))]
        clean = {name[1] + name[3]: path for path, name in named if name[2] == "c"}
        for path, name in named:
            if name[2] == "r":
                match = next(iter(clean.values())) if len(clean) == 1 else clean.get(name[1] + name[3])
                if match is None:
                    problems.append(f"{path}: no clean picture of its scene")
                else:
                    pairs.append(Pair(path, match))
    return PairListing(source, "scenes of *-R-* + *-C-*", tuple(pairs), tuple(problems)) if pairs else None


def _read_csv(source: Path) -> PairListing:
    pairs, problems = [], []
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=first.count)  # spreadsheets of many languages write semicolons
            rows = list(enumerate(csv.reader(file, delimiter=separator), start=1))
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
