"""`sapnet benchmark`: how good weights are on a set of pairs, and how fast."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapnet_cli.cli.derain import Precision
from sapnet_cli.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, Output, exit_codes
from sapnet_cli.cli.process import importing
from sapnet_cli.cli.train import SideBySide
from sapnet_cli.errors import ImageError, SapnetError, UsageError
from sapnet_cli.files import identity
from sapnet_cli.hub import DEFAULT_WEIGHTS, cache_folder

if TYPE_CHECKING:
    from sapnet_cli.benchmark.score import ImageScore, Judge, Result, Scoring
    from sapnet_cli.benchmark.score_log import ScoreLog
    from sapnet_cli.benchmark.tables import Row
    from sapnet_cli.data.benchmarks import BenchmarkSet
    from sapnet_cli.data.pairs import Pair, PairListing
    from sapnet_cli.engine.engine import Engine


class Protocol(str, Enum):
    """Choices of --protocol."""

    prenet = "prenet"
    restormer = "restormer"


class Downstream(str, Enum):
    """Choices of --downstream."""

    classify = "classify"
    segment = "segment"
    detect = "detect"


RAINY_TOLERANCE = 0.02
"""Difference in dB of the rainy pictures' mean PSNR above which a set is not the published one."""

REPORT_PAGE = "index.html"

PIPE_WIDTH = 140
"""Columns of the table where it does not go to a terminal."""

FILES, MACHINE = "Files", "Machine"


def benchmark(
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME|PATH", help="A public set (see --list), or any pairs.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", "-w", help="Registered name, path or hf://...; may be repeated, side by side."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the public sets and whether they are here.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder with the sets; SAPNET_DATA names it too.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the set from a dataset repository on the Hub if it is not here.")
    ] = False,
    repo: Annotated[str | None, typer.Option("--repo", help="That repository; SAPNET_DATA_REPO names it too.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of that repository.")] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="prenet: Y not rounded, outputs truncated. restormer: Y and outputs rounded.")
    ] = Protocol.prenet,
    rgb: Annotated[bool, typer.Option("--rgb", help="Score all three channels, not Y.")] = False,
    lpips: Annotated[bool, typer.Option("--lpips", help="Also LPIPS, through VGG-16.")] = False,
    downstream: Annotated[
        list[Downstream] | None,
        typer.Option(
            help="Also whether other networks see in a picture what they see in its ground truth: ResNet-50's class, "
            "DeepLabV3's regions, Faster R-CNN's boxes; may be repeated."
        ),
    ] = None,
    backbones: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with those networks; else SAPNET_BACKBONES, the caches, the network."),
    ] = None,
    stages: Annotated[
        str | None, typer.Option(metavar="N|all", help="Units to run; all draws the quality-time curve.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Also each with the mean over flips and turns.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pictures.")] = None,
    images: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only rainy pictures of these names.")] = None,
    side_by_side: Annotated[
        SideBySide | None, typer.Option(help="How pictures hold both, in folders without pairs of files.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Everything, for programs.", rich_help_panel=FILES)
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="A line for each picture.", rich_help_panel=FILES)
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="The table.", rich_help_panel=FILES)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            help="One HTML page: table, distribution, best and worst pictures to compare.",
            rich_help_panel=FILES,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="Keep the outputs, as PNG, and the scores: a run that was broken off goes on.",
            rich_help_panel=FILES,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MACHINE)] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="auto is the fastest that is safe on this machine.", rich_help_panel=MACHINE)
    ] = Precision.auto,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the table.")] = False,
) -> None:
    """Score weights on pairs of rainy and clean photos.

    sapnet benchmark --dataset rain100l --data sets/

    sapnet benchmark --dataset pairs/ -w sapnet-general -w runs/mine/best.safetensors

    Exit codes: 0 done, 1 a picture could not be scored, 2 wrong usage, 130 interrupted (prints what it has).
    """
    with exit_codes("nothing was scored"):
        out = Output(quiet=quiet, verbose=False, json_lines=False)
        if listing:
            _list(data, out)
            return
        if dataset is None:
            raise UsageError("name a set or a folder of pairs with --dataset; --list shows the sets")
        with importing():
            from sapnet_cli.benchmark.score import Scoring, count_pictures, output_path, summarise
            from sapnet_cli.benchmark.score_log import ScoreLog
            from sapnet_cli.benchmark.tables import to_rows
            from sapnet_cli.engine.hardware import prepare_process
            from sapnet_cli.imaging.read import prepare_decoders

        prepare_process()
        prepare_decoders()
        files = (json_file, csv_file, markdown_file)
        fetch = (lambda title: _download(title, repo, revision)) if download else None
        known, pairs, paired = _find(dataset, data, side_by_side.value if side_by_side else None, fetch, out)
        _refuse_inputs(files, pairs)
        _make_folders((*files, None if report is None else report / REPORT_PAGE))
        chosen = [pair for pair in pairs.pairs if images is None or fnmatch.fnmatch(pair.rainy.name, images)][:limit]
        if not chosen:
            raise UsageError(f"{pairs.source}: no rainy picture is named {images}")
        engines = _engines(weights or [DEFAULT_WEIGHTS], stages, device, precision.value, tta)
        if save is not None:
            _refuse_inputs((output_path(save, name, pair) for name, _ in engines for pair in chosen), pairs)
        for name, _ in engines:
            out.info(f"{name} on {len(chosen)} pictures of {pairs.source} ({pairs.layout})")
        if not paired and (lpips or downstream):
            raise UsageError(f"{dataset} has no ground truths, which --lpips and --downstream compare with")
        judges = _judges(lpips, downstream or [], backbones, engines[0][1])
        scoring = Scoring(protocol.value, rgb, judges, paired, save)
        log = None if save is None else ScoreLog(save, _settings(weights or [DEFAULT_WEIGHTS], engines), scoring)
        scores, failed, interrupted = _score(chosen, engines, scoring, log, out)
        if not scores:
            raise typer.Exit(EXIT_INTERRUPTED if interrupted else EXIT_FAILED)

        results = summarise(scores)
        whole = not rgb and known is not None and len(chosen) == len(pairs.pairs) and not (failed or interrupted)
        if whole and known is not None and results[0].psnr is not None:
            _check(known, len(pairs.pairs), results[0].psnr, protocol.value, out)
        what = f"{'RGB' if rgb else 'Y'}, protocol {protocol.value}" if paired else "no ground truth"
        table = to_rows(results, known.published if known and not rgb else ())
        _write(results, scores, table, (dataset, protocol.value, rgb, what), engines, files, out)
        if report is not None:
            _report(report, (dataset, what), results, scores, table, chosen, engines[0], out)
        if interrupted:
            out.error(f"interrupted after {count_pictures(scores)} of {len(chosen)} pictures")
            raise typer.Exit(EXIT_INTERRUPTED)
        if failed:
            raise typer.Exit(EXIT_FAILED)


def _list(data: Path | None, out: Output) -> None:
    from sapnet_cli.data.benchmarks import BENCHMARKS, data_folders, find_benchmark

    folders = data_folders(data, cache_folder())
    for name, each in BENCHMARKS.items():
        pairs = find_benchmark(each, folders)
        place = f"{pairs.source}, {len(pairs.pairs)} pairs" if pairs else "not here"
        typer.echo(f"{name:10} {each.count:5} pictures, {each.sizes}; {each.paper}; {each.source}: {place}")
    if not folders:
        out.info("name the folder that holds sets with --data or SAPNET_DATA")


def _download(title: str, repository: str | None, revision: str | None) -> Path:
    """The folder in the Hub's cache that a public set was fetched into."""
    from sapnet_cli.hub.download import DATASETS, DATASETS_VARIABLE, download_dataset

    return download_dataset(repository or os.environ.get(DATASETS_VARIABLE) or DATASETS, title, revision)


def _find(
    dataset: str, data: Path | None, side_by_side: Any, fetch: Callable[[str], Path] | None, out: Output
) -> tuple[BenchmarkSet | None, PairListing, bool]:
    """The set of a name, fetched if it is not here and is to be, or the pairs of a path; whether they are pairs."""
    from sapnet_cli.data.benchmarks import BENCHMARKS, data_folders, find_benchmark
    from sapnet_cli.data.pairs import find_pairs, find_unpaired

    paired = True
    known = BENCHMARKS.get(dataset.lower())
    if known is None and not Path(dataset).exists():
        raise UsageError(f"{dataset}: neither a folder of pairs, nor a CSV file, nor one of {', '.join(BENCHMARKS)}")
    if known is None or (Path(dataset).is_dir() and os.sep in dataset):
        try:
            pairs = find_pairs(Path(dataset), side_by_side)
        except UsageError:
            alone = find_unpaired(Path(dataset)) if side_by_side is None else None
            if alone is None:
                raise
            pairs, paired = alone, False
            out.warn(f"{dataset}: no ground truths here, so nothing says how good the outputs are; only what changed")
    else:
        folders = data_folders(data, cache_folder())
        found = find_benchmark(known, folders)
        if found is None and fetch is not None:
            found = find_benchmark(known, [fetch(known.title)])
        if found is None:
            where = ", ".join(map(str, folders)) or "nowhere, since no folder is named"
            raise UsageError(
                f"{known.title} is not here (looked in {where}); put its folder, called {known.title}, into a folder "
                "and name that with --data or SAPNET_DATA, or fetch it with --download"
            )
        pairs = found
    for problem in pairs.problems[:5]:
        out.warn(problem)
    return known, pairs, paired


def _refuse_inputs(files: Iterable[Path | None], pairs: PairListing) -> None:
    """Nothing must be written over a picture or the list of pairs."""
    named = [file for file in files if file is not None]
    if not named:
        return
    inputs = {identity(path) for pair in pairs.pairs for path in (pair.rainy, pair.clean)} | {identity(pairs.source)}
    for file in named:
        if identity(file) in inputs:
            raise UsageError(f"{file} is an input and would be overwritten; name another place")


def _make_folders(files: Iterable[Path | None]) -> None:
    """Of all that will be written, before an hour goes into it."""
    from sapnet_cli.files import make_folder

    for file in files:
        if file is not None:
            if file.is_dir():
                raise UsageError(f"{file} is a folder; name a file in it")
            try:
                make_folder(file)
            except OSError as error:
                raise UsageError(f"{file}: cannot write there: {error.strerror or error}") from error


def _engines(
    weights: list[str], stages: str | None, device: str, precision: str, tta: bool
) -> list[tuple[str, Engine]]:
    """An engine for each set of weights, or for each number of units of each, without and with `--tta`."""
    from sapnet_cli.engine.config import EngineConfig
    from sapnet_cli.engine.engine import Engine
    from sapnet_cli.hub import locate_weights
    from sapnet_cli.model.checkpoint import load_checkpoint

    if stages is not None and stages != "all" and not stages.isdecimal():
        raise UsageError(f"--stages {stages}: a number of units, or all")
    engines = []
    for name in weights:
        model = load_checkpoint(locate_weights(name))
        counts: list[int | None] = [int(stages) if stages and stages != "all" else None]
        if stages == "all":
            counts = list(range(1, model.config.stages + 1))
        for count in counts:
            label = name if count is None else f"{name} --stages {count}"
            for turned in (False, True) if tta else (False,):
                config = EngineConfig(device=device, precision=precision, stages=count, tta=turned)
                engines.append((f"{label} --tta" if turned else label, Engine(model, config)))
    if len({name for name, _ in engines}) < len(engines):
        raise UsageError("the same weights are named twice")
    return engines


def _settings(weights: list[str], engines: list[tuple[str, Engine]]) -> list[str]:
    """What the scores depend on besides the pictures: the weights' content, and how the engines run them."""
    import hashlib

    from sapnet_cli.hub import locate_weights

    digests = [hashlib.sha256(locate_weights(name).read_bytes()).hexdigest() for name in weights]
    return [*digests, *(f"{name} {engine.device} {engine.precision} {engine.stages}" for name, engine in engines)]


def _judges(lpips: bool, downstream: list[Downstream], backbones: Path | None, engine: Engine) -> tuple[Judge, ...]:
    """The further measures that were asked for, on the engine's device."""
    import torch

    from sapnet_cli.hub.backbones import locate_backbone, locate_torchvision
    from sapnet_cli.metrics.judges import LPIPS, Classifier, Detector, Segmenter

    device = torch.device(str(engine.device))
    judges: list[Judge] = []
    if lpips:
        judges.append(LPIPS(locate_backbone(("vgg16",), backbones)[1], device))
    if Downstream.classify in downstream:
        judges.append(Classifier(locate_backbone(("resnet50",), backbones)[1], device))
    if Downstream.segment in downstream:
        judges.append(Segmenter(locate_torchvision("deeplabv3_resnet50", backbones), device))
    if Downstream.detect in downstream:
        judges.append(Detector(locate_torchvision("fasterrcnn_resnet50_fpn", backbones), device))
    return tuple(judges)


def _score(
    pairs: Sequence[Pair], engines: list[tuple[str, Engine]], scoring: Scoring, log: ScoreLog | None, out: Output
) -> tuple[list[ImageScore], bool, bool]:
    """Scores of all pictures that could be scored, whether one could not, and whether the user broke off."""
    from sapnet_cli.benchmark.score import score_pair

    scores: list[ImageScore] = []
    failed = False
    try:
        with out.progress(len(pairs), "scoring"):
            for index, pair in enumerate(pairs):
                try:
                    group = log.find(pair) if log is not None else None
                    if group is None:
                        group = score_pair(pair, engines, scoring)
                        if log is not None:
                            log.add(pair, group)
                    scores += group
                except ImageError as error:
                    failed = True
                    out.error(str(error))
                except OSError as error:
                    raise SapnetError(f"{scoring.save}: cannot write there: {error.strerror or error}") from error
                last = scores[-1].psnr if scores else None
                out.advance(index + 1, "" if last is None else f"{last:.2f} dB")
    except KeyboardInterrupt:
        return scores, failed, True
    return scores, failed, False


def _check(known: BenchmarkSet, count: int, rainy: float, protocol: str, out: Output) -> None:
    """Says loudly if a set is not what its name says."""
    if count != known.count:
        out.warn(f"this is not {known.title}: {count} pictures instead of {known.count}")
    elif known.rainy_psnr is None:
        out.info(f"whether this is {known.title} to the bit cannot be told: its rainy pictures' PSNR is not known here")
    elif protocol == "prenet" and abs(rainy - known.rainy_psnr) > RAINY_TOLERANCE:
        out.warn(
            f"this is not {known.title}: its rainy pictures have {rainy:.3f} dB instead of {known.rainy_psnr:.3f}; "
            "they were resized or compressed again"
        )


def _write(
    results: list[Result],
    scores: list[ImageScore],
    rows: list[Row],
    how: tuple[str, str, bool, str],
    engines: list[tuple[str, Engine]],
    files: tuple[Path | None, Path | None, Path | None],
    out: Output,
) -> None:
    """The table on standard output, and the files that were asked for; `how`: set, protocol, in RGB, and in words."""
    from rich.console import Console
    from rich.table import Table

    from sapnet_cli.benchmark.score import count_pictures, peak_memory
    from sapnet_cli.benchmark.tables import header, to_csv, to_json, to_markdown
    from sapnet_cli.files import write_atomically

    names = header(results)
    dataset, protocol, rgb, what = how
    table = Table()
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    memory = peak_memory(engines[0][1].device)
    contents = (
        to_json(dataset, protocol, results, scores, rgb=rgb, peak_memory_bytes=memory),
        to_csv(scores),
        to_markdown(names, rows),
    )
    unwritten: list[str] = []
    for path, content in zip(files, contents):  # first, as whoever reads the table may have enough of it
        if path is not None:
            try:
                write_atomically(path, content)
            except OSError as error:
                unwritten.append(f"{path}: cannot write: {error.strerror or error}")
    typer.echo(f"{dataset}: {count_pictures(scores)} pictures, {what}")
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width, markup=False, emoji=False).print(table)  # names of files are no markup
    out.info(f"peak memory {memory / 1e9:.2f} GB, all weights of this run together")
    if unwritten:
        raise SapnetError("; ".join(unwritten))


def _report(
    folder: Path,
    how: tuple[str, str],
    results: list[Result],
    scores: list[ImageScore],
    rows: list[Row],
    pairs: Sequence[Pair],
    engine: tuple[str, Engine],
    out: Output,
) -> None:
    """Writes the page, with pictures from both ends of what the first weights did; `how`: set, and in words."""
    from sapnet_cli.benchmark.report import Example, choose_examples, to_html
    from sapnet_cli.benchmark.score import count_pictures
    from sapnet_cli.benchmark.tables import header
    from sapnet_cli.data.pictures import read_pair
    from sapnet_cli.files import write_atomically

    name, runner = engine
    dataset, what = how
    by_name = {pair.name: pair for pair in pairs}
    examples = []
    for picture, title in choose_examples(scores, name):
        rainy, clean = read_pair(by_name[picture])
        truth = None if results[0].psnr is None else clean
        examples.append(Example(title, rainy, runner.derain(rainy), truth))
    note = f"{count_pictures(scores)} pictures, {what}, {runner.device.type}. Pictures: {name}."
    page = to_html(f"{dataset}: sapnet benchmark", note, header(results), rows, scores, examples)
    try:
        write_atomically(folder / REPORT_PAGE, page)
    except OSError as error:
        raise SapnetError(f"{folder}: cannot write there: {error.strerror or error}") from error
    out.info(f"report: {folder / REPORT_PAGE}")
