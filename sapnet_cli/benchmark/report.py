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
    """One picture to look at: before, after and truth, each (H, W, 3) uint8, and its scores in words."""

    title: str
    rainy: Pixels
    derained: Pixels
    clean: Pixels


def choose_examples(scores: Sequence[ImageScore], weights: str) -> list[tuple[str, str]]:
    """The pictures that some weights gained most and least on over the rainy input, best first.

    Returns:
        Each picture's name, and what to say of it.
    """
    rainy = {score.name: score.psnr for score in scores if score.weights == RAINY}
    gains = sorted(((each.psnr - rainy[each.name], each) for each in scores if each.weights == weights), key=_gain)
    count = min(SHOWN, (len(gains) + 1) // 2)
    worst, best = gains[: min(count, len(gains) - count)], gains[-count:]
    return [
        (score.name, f"{kind}: {score.name}, {rainy[score.name]:.2f} to {score.psnr:.2f} dB ({gain:+.2f})")
        for kind, group in (("Best", best[::-1]), ("Worst", worst))
        for gain, score in group
    ]


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


def _gain(pair: tuple[float, ImageScore]) -> tuple[float, str]:
    return pair[0], pair[1].name


def _plot(scores: Sequence[ImageScore]) -> str:
    """A strip of dots for each set of weights: every picture's PSNR."""
    names = list(dict.fromkeys(score.weights for score in scores))
    low, high = (f(score.psnr for score in scores) for f in (min, max))
    span = max(high - low, 1e-6)

    def place(value: float) -> float:
        return MARGIN + (value - low) / span * (PLOT_WIDTH - 2 * MARGIN)

    height = ROW_HEIGHT * len(names) + 30
    parts = [f'<svg viewBox="0 0 {PLOT_WIDTH} {height}" role="img" aria-label="PSNR of each picture in dB">']
    for row, name in enumerate(names):
        y = ROW_HEIGHT * row + 26
        parts.append(f'<text x="{MARGIN}" y="{y - 10}">{html.escape(name)}</text>')
        parts += [
            f'<circle cx="{place(score.psnr):.1f}" cy="{y}" r="3.5"><title>{html.escape(score.name)}: '
            f"{score.psnr:.2f} dB</title></circle>"
            for score in scores
            if score.weights == name
        ]
    for value in (low, (low + high) / 2, high):
        parts.append(f'<text class="tick" x="{place(value):.1f}" y="{height - 4}">{value:.1f} dB</text>')
    return "".join(parts) + "</svg>"


def _figure(example: Example) -> str:
    """One picture with its slider; the script of the page brings it to life."""
    images = "".join(
        f'<img class="{name}" alt="{label}" draggable="false" src="{_embed(pixels)}">'
        for name, label, pixels in (
            ("left", "rainy", example.rainy),
            ("middle", "derained", example.derained),
            ("right", "ground truth", example.clean),
        )
    )
    return (
        f'<figure><figcaption>{html.escape(example.title)}</figcaption><div class="view" tabindex="0">{images}'
        '<div class="edge"></div></div>'
        '<input type="range" min="0" max="100" value="50" aria-label="Where the pictures meet">'
        '<p class="pairs"><button data-left="left" data-right="middle" class="on">rainy | derained</button>'
        '<button data-left="middle" data-right="right">derained | truth</button>'
        '<button data-left="left" data-right="right">rainy | truth</button></p></figure>'
    )


def _embed(pixels: Pixels) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
