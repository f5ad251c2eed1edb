"""One HTML page with the table, the distribution, and the best and the worst pictures to compare by eye."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from PIL import Image

from sapnet_cli.benchmark.score import RAINY, ImageScore
from sapnet_cli.benchmark.tables import Row
from sapnet_cli.data.pictures import Pixels

SHOWN = 3
"""Pictures from each end."""

LONGEST_SIDE = 1600
"""Larger pictures are shrunk for the page, which holds all of them."""

QUALITY = 92
PLOT_WIDTH, ROW_HEIGHT, MARGIN = 640, 34, 30


@dataclass(frozen=True)
class Example:
    """One picture to look at: before, after and, if there is one, truth, (H, W, 3) uint8 each; its scores in words."""

    title: str
    rainy: Pixels
    derained: Pixels
    clean: Pixels | None


def choose_examples(scores: Sequence[ImageScore], weights: str) -> list[tuple[str, str]]:
    """The pictures that some weights gained most and least on over the rainy input, best first.

    Without ground truths, those that they changed most and least.

    Returns:
        Each picture's name, and what to say of it.
    """
    rainy = {score.name: score.psnr for score in scores if score.weights == RAINY}
    ranked: list[tuple[float, str, str]] = []
    for each in (score for score in scores if score.weights == weights):
        before = rainy[each.name]
        if each.psnr is None or before is None:
            change = each.further["change"]
            ranked.append((change, each.name, f"{change:.2f} of 255 levels"))
        else:
            gain = each.psnr - before
            ranked.append((gain, each.name, f"{before:.2f} to {each.psnr:.2f} dB ({gain:+.2f})"))
    ranked.sort()
    paired = any(psnr is not None for psnr in rainy.values())
    count = min(SHOWN, (len(ranked) + 1) // 2)
    least, most = ranked[: min(count, len(ranked) - count)], ranked[-count:]
    kinds = (("Best" if paired else "Most changed", most[::-1]), ("Worst" if paired else "Least changed", least))
    return [(name, f"{kind}: {name}, {text}") for kind, group in kinds for _, name, text in group]


def to_html(
    title: str, note: str, names: Row, rows: Sequence[Row], scores: Sequence[ImageScore], examples: Sequence[Example]
) -> str:
    """The page, which needs nothing beside it.

    Args:
        title: of the page.
        note: how it was measured.
        names: of the table's columns.
        rows: of the table.
        scores: of all pictures.
        examples: to look at.
    """
    page = files("sapnet_cli.benchmark").joinpath("report.html").read_text(encoding="utf-8")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    parts = {
        "TITLE": html.escape(title),
        "NOTE": html.escape(note),
        "TABLE": f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>",
        "PLOT": _plot(scores),
        "EXAMPLES": "".join(_figure(example) for example in examples),
    }
    for name, content in parts.items():
        page = page.replace(f"@{name}@", content)
    return page


def _plot(scores: Sequence[ImageScore]) -> str:
    """A strip of dots for each set of weights: every picture's PSNR, if there is one."""
    dots = [(score.weights, score.name, score.psnr) for score in scores if score.psnr is not None]
    if not dots:
        return ""
    names = list(dict.fromkeys(weights for weights, _, _ in dots))
    low, high = (f(psnr for _, _, psnr in dots) for f in (min, max))
    span = max(high - low, 1e-6)

    def place(value: float) -> float:
        return MARGIN + (value - low) / span * (PLOT_WIDTH - 2 * MARGIN)

    height = ROW_HEIGHT * len(names) + 30
    parts = [f'<svg viewBox="0 0 {PLOT_WIDTH} {height}" role="img" aria-label="PSNR of each picture in dB">']
    for row, name in enumerate(names):
        y = ROW_HEIGHT * row + 26
        parts.append(f'<text x="{MARGIN}" y="{y - 10}">{html.escape(name)}</text>')
        parts += [
            f'<circle cx="{place(psnr):.1f}" cy="{y}" r="3.5"><title>{html.escape(picture)}: '
            f"{psnr:.2f} dB</title></circle>"
            for weights, picture, psnr in dots
            if weights == name
        ]
    for value in (low, (low + high) / 2, high):
        parts.append(f'<text class="tick" x="{place(value):.1f}" y="{height - 4}">{value:.1f} dB</text>')
    return f"<h2>PSNR of each picture</h2>{''.join(parts)}</svg>"


def _figure(example: Example) -> str:
    """One picture with its slider; the script of the page brings it to life."""
    images = "".join(
        f'<img class="{name}" alt="{label}" draggable="false" src="{_embed(pixels)}">'
        for name, label, pixels in (
            ("left", "rainy", example.rainy),
            ("middle", "derained", example.derained),
            ("right", "ground truth", example.clean),
        )
        if pixels is not None
    )
    choices = (
        '<p class="pairs"><button data-left="left" data-right="middle" class="on">rainy | derained</button>'
        '<button data-left="middle" data-right="right">derained | truth</button>'
        '<button data-left="left" data-right="right">rainy | truth</button></p>'
    )
    return (
        f'<figure><figcaption>{html.escape(example.title)}</figcaption><div class="view" tabindex="0">{images}'
        '<div class="edge"></div></div>'
        '<input type="range" min="0" max="100" value="50" aria-label="Where the pictures meet">'
        f"{choices if example.clean is not None else ''}</figure>"
    )


def _embed(pixels: Pixels) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
