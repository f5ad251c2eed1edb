"""`sapnet derain`: photos in, photos without rain out."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sapnet_cli.cli.output import EXIT_FAILED, Output, exit_codes
from sapnet_cli.cli.process import importing
from sapnet_cli.engine.tiles import OVERLAP
from sapnet_cli.errors import SapnetError, UsageError
from sapnet_cli.files import standard_stream
from sapnet_cli.hub import DEFAULT_WEIGHTS
from sapnet_cli.imaging.shard import read_shard

if TYPE_CHECKING:
    from sapnet_cli.engine.config import EngineConfig
    from sapnet_cli.imaging.jobs import Job
    from sapnet_cli.pipeline import FileOptions, Record

NAMED = 5
"""Of the photos that hardly changed; the others are counted."""


class Precision(str, Enum):
    """Choices of --precision."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class TileStatistics(str, Enum):
    """Choices of --tile-statistics."""

    shared = "shared"
    exact = "exact"


class Existing(str, Enum):
    """Choices of --existing."""

    overwrite = "overwrite"
    skip = "skip"
    error = "error"


class EngineName(str, Enum):
    """Choices of --engine."""

    local = "local"
    ray = "ray"


class Format(str, Enum):
    """Choices of --format."""

    png = "png"
    jpeg = "jpeg"
    webp = "webp"
    tiff = "tiff"
    bmp = "bmp"
    avif = "avif"
    heic = "heic"


def _auto_or_number(value: str) -> str:
    if value != "auto" and not value.isdecimal():
        raise typer.BadParameter(f"{value!r} is neither auto nor a number")
    return value


def _number(value: str) -> int | Literal["auto"]:
    """What `_auto_or_number` let pass, as `EngineConfig` takes it."""
    return "auto" if value == "auto" else int(value)


def _auto_or_amount(value: str) -> str:
    return value if re.fullmatch(r"\d+\.\d*|\.\d+", value) else _auto_or_number(value)


FILES, NETWORK, FLEET, REPORT = "Files", "Network", "Many machines", "Reporting"


def derain(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Photos, folders, glob patterns, URLs (s3://...), or - for standard input."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="File, folder (trees are mirrored), URL, or - for standard output."
        ),
    ] = None,
    from_file: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Read further input paths from a text file, one a line (or as find -print0 writes them); - for "
            "standard input.",
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace each input by its result.", rich_help_panel=FILES)
    ] = False,
    existing: Annotated[
        Existing, typer.Option(help="Where an output is already there. skip resumes a batch.", rich_help_panel=FILES)
    ] = Existing.overwrite,
    format: Annotated[  # noqa: A002
        Format | None, typer.Option(help="Write in this format instead of each input's own.", rich_help_panel=FILES)
    ] = None,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Of JPEG (always 4:4:4), WebP, AVIF and HEIC.", rich_help_panel=FILES)
    ] = 95,
    suffix: Annotated[
        str, typer.Option(metavar="TEXT", help="Added to each output's name, before its ending.", rich_help_panel=FILES)
    ] = "",
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also write NAME_compare: before and after side by side.", rich_help_panel=FILES
        ),
    ] = False,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, help="Refuse larger pictures as decompression bombs.", rich_help_panel=FILES)
    ] = 256,
    weights: Annotated[
        str, typer.Option("--weights", "-w", help="Registered name, or path of a file.", rich_help_panel=NETWORK)
    ] = DEFAULT_WEIGHTS,
    stages: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            help="Stop after so many units, 1 to 6: fewer are faster and weaker.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="auto, cpu, cuda, cuda:N, cuda:0,1 (several GPUs) or mps.", rich_help_panel=NETWORK
        ),
    ] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="auto is the fastest that is safe on this machine.", rich_help_panel=NETWORK)
    ] = Precision.auto,
    tile: Annotated[
        str,
        typer.Option(
            metavar="auto|0|N",
            callback=_auto_or_number,
            help="Side of the square that is computed at once, in pixels; 0 for the whole image.",
            rich_help_panel=NETWORK,
        ),
    ] = "auto",
    overlap: Annotated[
        int,
        typer.Option(
            min=0, help="Context on each side of a tile, in pixels; below 32 seams may show.", rich_help_panel=NETWORK
        ),
    ] = OVERLAP,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="auto|N", callback=_auto_or_number, help="Tiles or small images at once.", rich_help_panel=NETWORK
        ),
    ] = "auto",
    tile_statistics: Annotated[
        TileStatistics,
        typer.Option(
            help="Attention looks at the whole image. Where memory allows, that is computed. Else shared estimates it "
            "from windows and keeps some 140 bytes a pixel on disk (TMPDIR), and exact keeps 248 to 536, read and "
            "written ten times as often.",
            rich_help_panel=NETWORK,
        ),
    ] = TileStatistics.shared,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Mean over flips, and turns where the weights know them: better, 4 or 8 times slower.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    pyramid: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            callback=_auto_or_number,
            help="Levels, each a quarter as wide and high: the result is derained again, for the wide streaks of large "
            "photos. 1 is the photo alone; auto goes down to a tenth of a megapixel.",
            rich_help_panel=NETWORK,
        ),
    ] = "auto",
    insist: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            callback=_auto_or_amount,
            help="Where rain stays: take each picture to have at least so much, up to 2. Rainy photos have 1 on "
            "average. auto takes 1.5 for those that hardly change without.",
            rich_help_panel=NETWORK,
        ),
    ] = "0",
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only the I-th of N parts of the list, from 1/N to N/N; auto takes both from SLURM's or Kubernetes' "
            "array variables, auto/N the part.",
            rich_help_panel=FLEET,
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="ray deals the pictures out to the cluster of RAY_ADDRESS, or to this machine's cores or GPUs.",
            rich_help_panel=FLEET,
        ),
    ] = EngineName.local,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Of --engine ray. (default: one a GPU, or one for 4 cores)", rich_help_panel=FLEET),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be done, and do nothing.", rich_help_panel=REPORT)
    ] = False,
    json_lines: Annotated[
        bool,
        typer.Option(
            "--json",
            help="One JSON object a line on standard output for each image, and a summary.",
            rich_help_panel=REPORT,
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel=REPORT)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=REPORT)] = False,
) -> None:
    """Remove rain from photos.

    sapnet derain photos/ -o clean/

    Exit codes: 0 all done, 1 some images failed (the rest is done), 2 wrong usage, 130 interrupted.
    """
    with exit_codes("finished files are whole, run again with --existing skip to go on"):
        from sapnet_cli.imaging.jobs import STREAM, OutputOptions, plan_jobs

        if json_lines and output == STREAM:
            raise UsageError("--json and --output - both want standard output; write to a file")
        if in_place and existing is not Existing.overwrite:
            raise UsageError("--in-place always finds its outputs there; leave out --existing")
        if workers is not None and engine is not EngineName.ray:
            raise UsageError("--workers is of --engine ray; on this machine name several GPUs with --device cuda:0,1")
        if engine is EngineName.ray and (output == STREAM or STREAM in (inputs or [])):
            raise UsageError("--engine ray works on files, not on standard input or output")
        if not inputs and from_file is None:
            raise UsageError("nothing to derain: name photos or folders, or give --from-file; see sapnet derain --help")
        if STREAM in (inputs or []) and from_file == STREAM:
            raise UsageError("standard input can be the picture or the list, not both")
        formats = {None: None, Format.heic: "HEIF"}
        image_format = formats.get(format, format.value.upper() if format else None)
        _refuse_unwritable(image_format)
        options = OutputOptions(output, in_place, image_format, suffix, compare)
        part = None if shard is None else read_shard(shard, os.environ)
        plan = plan_jobs(inputs or [], _read_list(from_file), options)
        jobs = plan.jobs if part is None else part.of(plan.jobs)
        out = Output(quiet=quiet, verbose=verbose, json_lines=json_lines)
        if plan.left_alone:
            out.info(f"left alone, as no pictures that sapnet reads: {plan.left_alone}")
        if dry_run:
            _show_plan(jobs, existing, out)
            return

        with importing():
            from sapnet_cli.engine.config import EngineConfig
            from sapnet_cli.engine.engine import HARDLY_CHANGED
            from sapnet_cli.imaging.read import prepare_decoders
            from sapnet_cli.pipeline import FileOptions

        prepare_decoders()
        config = EngineConfig(
            device=device,
            precision=precision.value,
            tile=_number(tile),
            overlap=overlap,
            stages=stages,
            batch_size=_number(batch_size),
            tile_statistics=tile_statistics.value,
            tta=tta,
            pyramid=_number(pyramid),
            insist="auto" if insist == "auto" else float(insist),
        )
        file_options = FileOptions(existing.value, quality, max_megapixels)
        if engine is EngineName.ray and jobs:  # a shard may be empty, which is not worth a cluster
            from sapnet_cli.fleet import run_jobs_on_ray

            records = run_jobs_on_ray(jobs, weights, config, file_options, workers, out.computed)
        else:
            records = _run_here(jobs, weights, config, file_options, out)
        start = time.perf_counter()
        counts: Counter[str] = Counter(done=0, skipped=0, failed=0)
        hardly_changed: list[str] = []
        with out.progress(len(jobs), "deraining"):
            for record in records:
                counts[record.status] += 1
                _report(record, out)
                if record.status == "done" and record.changed is not None and record.changed < HARDLY_CHANGED:
                    hardly_changed.append(record.job.source_name)
        seconds = time.perf_counter() - start
        out.json({"summary": True, **counts, "seconds": round(seconds, 3)})
        if len(jobs) > 1 or counts["skipped"]:
            out.info(
                ", ".join(f"{count} {status}" for status, count in counts.items() if count) + f" in {seconds:.1f} s"
            )
        if hardly_changed and weights == DEFAULT_WEIGHTS and not config.insist and stages != 1:
            more = len(hardly_changed) - NAMED
            names = ", ".join(hardly_changed[:NAMED]) + (f" and {more} more" if more > 0 else "")
            out.info(f"hardly changed: {names}; where it rains there, derain again with --insist auto")
        if counts["failed"]:
            raise typer.Exit(EXIT_FAILED)


def _run_here(
    jobs: list[Job], weights: str, config: EngineConfig, options: FileOptions, out: Output
) -> Iterator[Record]:
    """On this machine, with an engine for each device."""
    from dataclasses import replace

    from sapnet_cli.engine.engine import Engine
    from sapnet_cli.engine.hardware import prepare_process, split_devices
    from sapnet_cli.hub import locate_weights
    from sapnet_cli.model.weights import read_weights
    from sapnet_cli.pipeline import run_jobs

    prepare_process(config.device)
    network = read_weights(locate_weights(weights))
    engines = [Engine(network, replace(config, device=name)) for name in split_devices(config.device)]
    for engine in engines if out.verbose else ():
        out.info(f"weights {weights}, {engine.stages} stages, {engine.device}, {engine.precision}")
    return run_jobs(jobs, engines, options, out.computed)


def _read_list(name: str | None) -> list[str]:
    """The paths of the list of inputs, a line each, or each ended by a NUL (`find -print0`); none without a list."""
    if name is None:
        return []
    try:
        data = standard_stream(sys.stdin).read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: cannot read this list: {error.strerror or error}") from error
    separator = "\0" if data.endswith(b"\0") else "\n"
    # names on a disk may be in any encoding, and are taken as Python gives them
    paths = data.decode("utf-8-sig", errors="surrogateescape").split(separator)
    if any("\0" in path for path in paths):
        raise UsageError(f"{name}: not a text file of paths, one a line")
    return paths


def _refuse_unwritable(image_format: str | None) -> None:
    if image_format is None:
        return
    from sapnet_cli.imaging.write import writable_formats

    if image_format not in writable_formats():
        advice = "pip install 'sapnet-cli[heic]'" if image_format == "HEIF" else "install a Pillow that has it"
        raise UsageError(f"{image_format} cannot be written here; {advice}")


def _show_plan(jobs: list[Job], existing: Existing, out: Output) -> None:
    from sapnet_cli.files import exists

    for job in jobs:
        try:
            there = job.target is not None and exists(job.target)
        except OSError as error:
            raise SapnetError(str(error)) from error
        status = f"would {existing.value}" if there and existing is not Existing.overwrite else "would write"
        if existing is Existing.error and there:
            status = "would fail"
        out.info(f"{job.source_name} -> {job.target_name}: {status}")
        out.json({"input": job.source_name, "output": job.target_name, "status": "planned"})
    out.info(f"{len(jobs)} image{'' if len(jobs) == 1 else 's'}")


def _report(record: Record, out: Output) -> None:
    job = record.job
    if record.error is not None:
        out.error(f"{job.source_name}: {record.error}")
    else:
        size = "" if record.size is None else f" ({record.size[0]}x{record.size[1]}, {record.seconds:.2f} s)"
        out.finished(f"{job.source_name} -> {job.target_name}: {record.status}{size}")
    for note in record.notes:
        out.warn(f"{job.source_name}: {note}")
    fields: dict[str, Any] = {
        "input": job.source_name,
        "output": job.target_name,
        "status": record.status,
        "size": record.size,
        "seconds": round(record.seconds, 3),
        "error": record.error,
        "notes": record.notes,
        "changed": None if record.changed is None else round(record.changed, 2),
    }
    out.json(fields)
