"""Which file is read and where its result goes, decided before anything runs."""

from __future__ import annotations

import glob
import mimetypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sapnet_cli.errors import UsageError
from sapnet_cli.files import find_remote, fixed_parts, identity, is_url, name_here, open_path
from sapnet_cli.imaging.picture import FORMAT_OF_SUFFIX, FORMATS, is_picture_file

Found: TypeAlias = tuple[Path | None, Path | None]
"""A source and its place below the output folder; (None, None) is standard input."""

STREAM = "-"
"""Stands for standard input or standard output."""

COMPARE_SUFFIX = "_compare"

MOST_ENDINGS = 4
"""So many of the endings of files that were left alone are named."""


@dataclass(frozen=True)
class Job:
    """One picture to derain.

    Attributes:
        source: file to read, None for standard input.
        target: file to write, None for standard output.
        format: Pillow's name of the format to write, None for that of the source.
        compare: file for before and after side by side, or None.
    """

    source: Path | None
    target: Path | None
    format: str | None = None
    compare: Path | None = None

    @property
    def source_name(self) -> str:
        """The source as the user knows it."""
        return STREAM if self.source is None else str(self.source)

    @property
    def target_name(self) -> str:
        """The target as the user knows it."""
        return STREAM if self.target is None else str(self.target)


@dataclass(frozen=True)
class OutputOptions:
    """Where results go.

    Attributes:
        output: a file, a folder, or `-`; None only with `in_place`.
        in_place: replace each input by its result.
        format: key of `FORMATS` to write in, None for each input's own.
        suffix: put between the stem and the ending of each output's name.
        compare: also write before and after side by side.
    """

    output: str | None
    in_place: bool = False
    format: str | None = None
    suffix: str = ""
    compare: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        jobs: in the order of the inputs.
        left_alone: such as `12 .nef, 2 .xmp`: the files in folders and patterns whose endings are none that `FORMATS`
            has, and the linked folders in folders; empty if there are none.
    """

    jobs: list[Job]
    left_alone: str


def plan_jobs(inputs: Sequence[str], listed: Iterable[str], options: OutputOptions) -> Plan:
    """Finds the pictures and decides where each result goes.

    Args:
        inputs: files, folders (walked with their subfolders), glob patterns, URLs of such, or `-`.
        listed: further files, from a list; relative ones keep their folders below the output.
        options: where results go.

    Raises:
        UsageError: an input is not there, nothing is found, an input would be overwritten, or two inputs would
            write one output.
    """
    _check_options(options)
    others: Counter[str] = Counter()
    found = list(_find(inputs, listed, options, others))
    left_alone = _describe(others)
    if not found:
        there = f"only {left_alone}; " if left_alone else ""
        raise UsageError(f"no pictures found in {' '.join(inputs) or 'the list'}; {there}looked for {_endings()}")
    jobs = _to_jobs(found, options)
    _refuse_collisions(jobs, options.in_place)
    return Plan(jobs, left_alone)


def _check_options(options: OutputOptions) -> None:
    if options.in_place:
        if options.output is not None:
            raise UsageError("--in-place replaces the inputs; leave out --output")
        if options.format or options.suffix:
            raise UsageError("--in-place keeps names and formats; leave out --format and --suffix")
    elif options.output is None:
        raise UsageError("say where the results go: --output FOLDER, --output FILE, --output -, or --in-place")
    elif options.output.startswith(("http://", "https://")):
        raise UsageError(f"--output {options.output}: nothing can be written there")
    if os.sep in options.suffix or "/" in options.suffix:
        raise UsageError(f"--suffix {options.suffix!r} must not contain a path separator")
    if options.compare and options.output == STREAM:
        raise UsageError("--compare writes a second file; give --output a file or a folder")


def _find(
    inputs: Sequence[str], listed: Iterable[str], options: OutputOptions, others: Counter[str]
) -> Iterator[Found]:
    """Yields each source once; counts the endings of other files in folders and patterns."""
    seen: set[Path] = set()
    output = None if options.output in (None, STREAM) else identity(open_path(str(options.output)))

    def once(source: Path, place: Path) -> Iterator[tuple[Path, Path]]:
        resolved = identity(source)
        if resolved not in seen:
            seen.add(resolved)
            yield source, place

    for name in inputs:
        path = open_path(name)
        if name == STREAM:
            yield None, None
        elif is_url(name):
            for source, place in _walk_remote(path, output, others):
                yield from once(source, place)
        elif path.is_dir():
            for source in _walk(path, output, others):
                yield from once(source, source.relative_to(path))
        elif path.exists():
            yield from once(path, Path(path.name))
        elif glob.has_magic(name):
            root = Path(*fixed_parts(path))
            # Path.glob takes no absolute patterns
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            files = [match for match in matches if match.is_file()]
            pictures = [file for file in files if file.suffix.lower() in FORMAT_OF_SUFFIX]
            for file in files:
                _count_other(file, others)
            if not pictures:
                raise UsageError(f"{name}: no picture matches this pattern")
            for source in pictures:
                yield from once(source, source.relative_to(root))
        else:
            raise UsageError(f"{name}: no such file or folder")
    for line in listed:
        name = line.rstrip("\r\n")
        if not name.strip():
            continue
        path = open_path(name)
        alone = is_url(name) or path.is_absolute() or ".." in path.parts
        yield from once(path, Path(name_here(path)) if alone else path)


def _walk(folder: Path, output: Path | None, others: Counter[str]) -> Iterator[Path]:
    """The pictures of a folder and its subfolders, without hidden or linked ones and the output folder's own.

    A folder that cannot be listed is given as if it were a picture, so that it fails by name and the rest goes on.
    """
    locked: list[Path] = []
    inside = output is not None and output != identity(folder)
    for parent, folders, files in os.walk(folder, onerror=lambda error: locked.append(Path(error.filename))):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and not (inside and identity(Path(parent, name)) == output)
        )
        if links := sum(Path(parent, name).is_symlink() for name in folders):
            others["linked folders"] += links  # which may lead anywhere, and back
        for name in sorted(files):
            path = Path(parent, name)
            if is_picture_file(path):
                yield path
            else:
                _count_other(path, others)
    yield from locked


def _walk_remote(path: Path, output: Path | None, others: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """The same of a URL; a single file is taken whatever its name."""
    inside = output is not None and output != path
    for source, place in find_remote(path):
        hidden = any(part[0] == "." for part in place.parts) or (inside and output in source.parents)
        if source == path or (source.suffix.lower() in FORMAT_OF_SUFFIX and not hidden):
            yield source, Path(place)
        elif not hidden:
            _count_other(source, others)


def _count_other(path: Path, others: Counter[str]) -> None:
    """Counts a file by its ending, if that is none of `FORMATS` and the file is not hidden."""
    ending = path.suffix.lower()
    if ending not in FORMAT_OF_SUFFIX and not path.name.startswith("."):
        others[ending or "without an ending"] += 1


def _describe(endings: Counter[str]) -> str:
    """Counts and names the most frequent endings."""
    most = endings.most_common(MOST_ENDINGS)
    named = [f"{count} {ending}" for ending, count in most]
    rest = endings.total() - sum(count for _, count in most)
    return ", ".join([*named, f"{rest} others"] if rest else named)


def _to_jobs(found: Sequence[Found], options: OutputOptions) -> list[Job]:
    output = options.output
    if output == STREAM:
        if len(found) > 1:
            raise UsageError(f"standard output takes one picture, not {len(found)}; give --output a folder")
        return [Job(found[0][0], None, options.format)]
    if output is not None and _names_a_file(output):
        if len(found) > 1:
            raise UsageError(f"--output {output} is one file, but there are {len(found)} inputs; give a folder")
        target = open_path(output)
        target = target.with_name(target.stem + options.suffix + target.suffix)
        named = FORMAT_OF_SUFFIX[target.suffix.lower()]
        if options.format not in (None, named):
            raise UsageError(f"--output {output} and --format {options.format} contradict each other; leave one out")
        return [Job(found[0][0], target, named, _compare_path(target, options))]
    jobs = []
    folder = None if output is None else open_path(output)
    if output is not None and not is_url(output) and not Path(output).is_dir():
        if Path(output).exists():
            raise UsageError(f"--output {output} is no folder, and its name does not end like a picture's; give either")
        kind, _ = mimetypes.guess_type(output)
        if kind is not None and kind.startswith(("image/", "video/")):
            raise UsageError(f"--output {output}: {kind} cannot be written; {_endings()} can")
    for source, place in found:
        if source is None or place is None:
            raise UsageError("standard input needs --output FILE or --output -")
        target = source if folder is None else folder / place
        if folder is not None:
            ending = FORMATS[options.format][0] if options.format else target.suffix
            target = target.with_name(target.stem + options.suffix + ending)
        jobs.append(Job(source, target, options.format, _compare_path(target, options)))
    return jobs


def _endings() -> str:
    return " ".join(sorted(FORMAT_OF_SUFFIX))


def _names_a_file(output: str) -> bool:
    return (
        Path(output).suffix.lower() in FORMAT_OF_SUFFIX
        and not output.endswith(("/", os.sep))
        and not Path(output).is_dir()
    )


def _compare_path(target: Path, options: OutputOptions) -> Path | None:
    return target.with_name(f"{target.stem}{COMPARE_SUFFIX}{target.suffix}") if options.compare else None


def _refuse_collisions(jobs: Sequence[Job], in_place: bool) -> None:
    sources = {identity(job.source) for job in jobs if job.source is not None}
    writers: dict[Path, Job] = {}
    for job in jobs:
        for target in (job.target, job.compare):
            if target is None:
                continue
            resolved = identity(target)
            if resolved in writers:
                first = writers[resolved].source_name
                raise UsageError(
                    f"{first} and {job.source_name} would both write {target}; "
                    "pass their common folder, so that its tree is mirrored, or run them apart"
                )
            writers[resolved] = job
            if resolved in sources and not (in_place and target is job.target):
                raise UsageError(
                    f"{target} is an input and would be overwritten; choose another --output, add --suffix, "
                    "or say --in-place"
                )
