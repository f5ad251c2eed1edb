"""Results as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sapnet_cli.benchmark.score import ImageScore, Result, count_pictures
from sapnet_cli.data.benchmarks import Published

Row = tuple[str, ...]

HEADER: Row = ("weights", "PSNR", "SSIM", "s/image", "MP/s", "gain in dB")


def header(results: Sequence[Result]) -> Row:
    """Names of the columns: those of every table, then what the judges measured."""
    return (*HEADER, *results[0].further)


def to_rows(results: Sequence[Result], published: Sequence[Published]) -> list[Row]:
    """What the tables show: our own results, then what others published, marked so."""
    rows: list[Row] = []
    for each in results:
        gain = ""
        if each.gain is not None and each.interval is not None:
            gain = f"{each.gain:+.2f} ({each.interval[0]:+.2f} to {each.interval[1]:+.2f})"
        ssim = "" if each.ssim is None else f"{each.ssim:.4f}"
        timed = each.seconds_per_image > 0
        seconds = f"{each.seconds_per_image:.3f}" if timed else ""
        speed = f"{each.megapixels_per_second:.2f}" if timed else ""
        further = (f"{value:.4f}" for value in each.further.values())
        psnr = "" if each.psnr is None else f"{each.psnr:.2f}"
        rows.append((each.weights, psnr, ssim, seconds, speed, gain, *further))
    for figure in published:
        name = f"{figure.method} (published, trained on {figure.trained_on})"
        rows.append((name, f"{figure.psnr:.2f}", f"{figure.ssim:.3f}", "", "", "", *("" for _ in results[0].further)))
    return rows


def to_json(
    dataset: str, protocol: str, results: Sequence[Result], scores: Sequence[ImageScore], **further: Any
) -> str:
    """Everything, for programs."""
    record = {
        "dataset": dataset,
        "protocol": protocol,
        "count": count_pictures(scores),
        **further,
        "results": [_flat(result) for result in results],
        "images": [_flat(score) for score in scores],
    }
    return json.dumps(record, indent=2) + "\n"


def to_csv(scores: Sequence[ImageScore]) -> str:
    """A line for each picture and set of weights."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    labels = tuple(scores[0].further)
    writer.writerow(("image", "weights", "psnr", "ssim", "seconds", "width", "height", *map(_key, labels)))
    for score in scores:
        psnr = "" if score.psnr is None else f"{score.psnr:.4f}"
        ssim = "" if score.ssim is None else f"{score.ssim:.6f}"
        further = (f"{score.further[label]:.6f}" for label in labels)
        writer.writerow((score.name, score.weights, psnr, ssim, f"{score.seconds:.4f}", *score.size, *further))
    return buffer.getvalue()


def to_markdown(names: Row, rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _flat(record: Result | ImageScore) -> dict[str, Any]:
    """A record with the judges' measures beside the others."""
    fields = asdict(record)
    further = fields.pop("further")
    return {**fields, **{_key(label): value for label, value in further.items()}}


def _key(label: str) -> str:
    """A column's name as programs like it."""
    return label.lower().replace("-", "_").replace(" ", "_")
