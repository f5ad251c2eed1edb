"""Weights on pairs: quality and speed, picture by picture, through the shared engine."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image

from sapnet_cli.data.pairs import Pair
from sapnet_cli.data.pictures import Pixels, read_pair
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.hardware import AnyDevice, synchronize
from sapnet_cli.files import write_atomically
from sapnet_cli.metrics.fidelity import (
    HIGHEST_PSNR,
    SMALLEST_SSIM_SIDE,
    ScoreProtocol,
    compare_with_input,
    psnr,
    structural_similarity,
)

RESAMPLES, CONFIDENCE = 10_000, 0.95

RAINY = "rainy input"
"""Stands where the name of weights stands, for the pictures as they are."""


@dataclass(frozen=True)
class ImageScore:
    """One picture under one set of weights.

    Attributes:
        name: of the rainy picture, as in `Pair`.
        weights: their name, or `RAINY`.
        psnr: in dB, at most 100; None without a ground truth.
        ssim: structural similarity; None without a ground truth, and for pictures too small for it.
        seconds: for the picture through the engine, 0 for the rainy input.
        size: width and height.
        further: what the judges say, by their labels.
    """

    name: str
    weights: str
    psnr: float | None
    ssim: float | None
    seconds: float
    size: tuple[int, int]
    further: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One set of weights over all pictures.

    Attributes:
        weights: their name, or `RAINY`.
        psnr: mean in dB; None without ground truths.
        ssim: mean, likewise.
        seconds_per_image: median, the first picture left out where there are more.
        megapixels_per_second: median likewise.
        gain: mean difference of PSNR to the first weights, in dB; None for themselves.
        interval: in which that difference lies with 95 % confidence, by bootstrap over the pictures.
        further: means of what the judges say, by their labels.
    """

    weights: str
    psnr: float | None
    ssim: float | None
    seconds_per_image: float
    megapixels_per_second: float
    gain: float | None = None
    interval: tuple[float, float] | None = None
    further: Mapping[str, float] = field(default_factory=dict)


class Judge(Protocol):
    """A further measure of a picture against its ground truth, (H, W, 3) uint8 each."""

    label: str

    def __call__(self, image: Pixels, truth: Pixels) -> float:
        """Judges one picture."""


@dataclass(frozen=True)
class Scoring:
    """How pictures are scored.

    Attributes:
        protocol: of PSNR and SSIM. `prenet` truncates outputs to 8 bits, as its authors' script does and as its
            published figures need; `restormer` rounds them.
        in_rgb: in all three channels, not in Y.
        judges: further measures.
        paired: whether there are ground truths; without, each picture stands in for its own, and outputs are only
            compared with what came in.
        save: folder for the outputs, one folder in it for each set of weights; None keeps none.
    """

    protocol: ScoreProtocol = "prenet"
    in_rgb: bool = False
    judges: tuple[Judge, ...] = ()
    paired: bool = True
    save: Path | None = None


def score_pair(pair: Pair, engines: Sequence[tuple[str, Engine]], scoring: Scoring) -> list[ImageScore]:
    """Scores one pair under all weights.

    Args:
        pair: what to score.
        engines: with the name of the weights in each.
        scoring: how.

    Returns:
        The rainy picture's score and that of each engine.

    Raises:
        ImageError: the pair cannot be read.
        OSError: an output cannot be written.
    """
    rainy, clean = read_pair(pair)
    scores = [_score(pair, RAINY, rainy, clean, 0.0, scoring)]
    pixels = rainy.astype(np.float32) / 255
    for name, engine in engines:
        synchronize(engine.device)
        start = time.perf_counter()
        result = engine.derain(pixels)
        synchronize(engine.device)
        seconds = time.perf_counter() - start
        output = to_bytes(result, scoring.protocol)
        scores.append(_score(pair, name, output, clean, seconds, scoring))
        if scoring.save is not None:
            _save(output_path(scoring.save, name, pair), output)
    return scores


def output_path(folder: Path, weights: str, pair: Pair) -> Path:
    """Where `Scoring.save` keeps what these weights make of a pair."""
    return folder / weights.replace("/", "_").replace("\\", "_") / pair.output


def count_pictures(scores: Sequence[ImageScore]) -> int:
    """How many pictures were scored, each once as it came in."""
    return sum(score.weights == RAINY for score in scores)


def to_bytes(image: NDArray[np.float32], protocol: ScoreProtocol) -> Pixels:
    """Values in [0, 1] to uint8 as the protocol's authors do: `prenet` truncates, `restormer` rounds."""
    scaled = image * np.float32(255)
    pixels: Pixels = (np.rint(scaled) if protocol == "restormer" else scaled).astype(np.uint8)
    return pixels


def summarise(scores: Sequence[ImageScore]) -> list[Result]:
    """Means and medians for each set of weights, in the order of their first scores, with the gain over the first."""
    groups: dict[str, list[ImageScore]] = {}
    for score in scores:
        groups.setdefault(score.weights, []).append(score)
    first = next((name for name in groups if name != RAINY), None)
    results = []
    for name, group in groups.items():
        warm = group[1:] or group
        ssims = [score.ssim for score in group if score.ssim is not None]
        gain = interval = None
        psnrs = [score.psnr for score in group if score.psnr is not None]
        if first is not None and name not in (RAINY, first) and psnrs:
            differences = np.array(psnrs) - [score.psnr for score in groups[first]]
            gain, interval = float(differences.mean()), bootstrap_interval(differences)
        results.append(
            Result(
                name,
                statistics.fmean(psnrs) if psnrs else None,
                statistics.fmean(ssims) if ssims else None,
                statistics.median(score.seconds for score in warm),
                statistics.median(score.size[0] * score.size[1] / 1e6 / max(score.seconds, 1e-9) for score in warm)
                if name != RAINY
                else 0.0,
                gain,
                interval,
                {label: statistics.fmean(score.further[label] for score in group) for label in group[0].further},
            )
        )
    return results


def bootstrap_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile bootstrap of a mean over pictures: resampled with replacement, always by the same seed."""
    random = np.random.default_rng(0)
    picks = random.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[picks].mean(axis=1), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def peak_memory(device: AnyDevice) -> int:
    """Bytes that this process, or its GPU, has held at the most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(str(device))
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _score(pair: Pair, weights: str, image: Pixels, clean: Pixels, seconds: float, scoring: Scoring) -> ImageScore:
    height, width = clean.shape[:2]
    if not scoring.paired:
        further = compare_with_input(image, clean)
        return ImageScore(pair.name, weights, None, None, seconds, (width, height), further)
    value = min(psnr(image, clean, scoring.protocol, scoring.in_rgb), HIGHEST_PSNR)
    ssim = None
    if min(height, width) >= SMALLEST_SSIM_SIDE:
        ssim = structural_similarity(image, clean, scoring.protocol, scoring.in_rgb)
    further = {judge.label: judge(image, clean) for judge in scoring.judges}
    return ImageScore(pair.name, weights, value, ssim, seconds, (width, height), further)


def _save(path: Path, image: Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
