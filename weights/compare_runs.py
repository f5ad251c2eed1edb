"""Scores runs of `sapnet train` on the pairs that they held out: python weights/compare_runs.py BACKBONES RUN...

Prints PSNR and SSIM of the Y channel by the protocol of PReNet, and LPIPS with VGG-16 (of RGB, as its package does), of
each run's `final.safetensors`: a row of a Markdown table each. BACKBONES is a folder with vgg16.safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sapnet_cli.data.sets import DataConfig, ValidationPicture, load_data
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine, Pixels
from sapnet_cli.hub.backbones import locate_backbone
from sapnet_cli.metrics.fidelity import psnr, structural_similarity
from sapnet_cli.metrics.judges import LPIPS
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.training.config import from_json
from sapnet_cli.training.run_folder import FINAL, RunFolder


def mean(pictures: Sequence[ValidationPicture], derained: Sequence[Pixels], lpips: LPIPS) -> tuple[float, ...]:
    """PSNR, SSIM and LPIPS, averaged over the pictures."""
    scores = [
        (psnr(result, each.clean), structural_similarity(result, each.clean), lpips(result, each.clean))
        for each, result in zip(pictures, derained)
    ]
    return tuple(float(value) for value in np.mean(scores, axis=0))


def main() -> None:
    """Scores one run after the other, and the rainy pictures of the first."""
    lpips = LPIPS(locate_backbone(("vgg16",), Path(sys.argv[1]))[1], torch.device("cpu"))
    print("| run | PSNR | SSIM | LPIPS |\n|---|---|---|---|")
    for number, name in enumerate(sys.argv[2:]):
        folder = RunFolder(Path(name))
        pictures = list(load_data(from_json(DataConfig, folder.read_config()["data"]), 0).validation)
        rainy = [picture.rainy for picture in pictures]
        rows = [("rainy input", rainy)] if number == 0 else []
        engine = Engine(load_checkpoint(folder.path / FINAL), EngineConfig(precision="fp32"))
        rows.append((folder.path.name, engine.derain_batch(rainy)))
        for label, results in rows:
            print("| {} | {:.2f} | {:.4f} | {:.4f} |".format(label, *mean(pictures, results, lpips)), flush=True)


if __name__ == "__main__":
    main()
