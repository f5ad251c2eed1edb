"""Scores runs of `sapnet train` on the pairs that they held out: python weights/compare_runs.py BACKBONES RUN...

Prints PSNR and SSIM of the Y channel by the protocol of PReNet, and LPIPS with VGG-16 (of RGB, as its package does), of
each run's `final.safetensors`: a row of a Markdown table each. BACKBONES is a folder with vgg16.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from sapnet_cli.data.sets import DataConfig, ValidationPicture, load_data
from sapnet_cli.engine.engine import Engine, EngineConfig, Pixels
from sapnet_cli.hub.backbones import locate_backbone
from sapnet_cli.losses.perceptual import LPIPSHeads, VGGFeatures
from sapnet_cli.metrics.fidelity import psnr, structural_similarity
from sapnet_cli.model.checkpoint import load_checkpoint
from sapnet_cli.training.config import from_json
from sapnet_cli.training.run_folder import FINAL, RunFolder


class Scorer:
    """PSNR, SSIM and LPIPS of derained pictures."""

    def __init__(self, backbones: Path) -> None:
        self.features, self.heads = VGGFeatures(locate_backbone(("vgg16",), backbones)[1]), LPIPSHeads()

    def mean(self, pictures: list[ValidationPicture], derained: list[Pixels]) -> tuple[float, float, float]:
        """Means over the pictures."""
        scores = [
            (psnr(result, each.clean), structural_similarity(result, each.clean), self.lpips(result, each.clean))
            for each, result in zip(pictures, derained)
        ]
        first, second, third = np.mean(scores, axis=0)
        return float(first), float(second), float(third)

    def lpips(self, image: Pixels, truth: Pixels) -> float:
        """LPIPS of one picture."""
        with torch.inference_mode():
            features = [self.features(torch.tensor(each).permute(2, 0, 1)[None] / 255) for each in (image, truth)]
            return float(self.heads(*features))


def main() -> None:
    """Scores one run after the other, and the rainy pictures of the first."""
    scorer = Scorer(Path(sys.argv[1]))
    print("| run | PSNR | SSIM | LPIPS |\n|---|---|---|---|")
    for number, name in enumerate(sys.argv[2:]):
        folder = RunFolder(Path(name))
        pictures = list(load_data(from_json(DataConfig, folder.read_config()["data"]), 0).validation)
        rainy = [picture.rainy for picture in pictures]
        rows = [("rainy input", rainy)] if number == 0 else []
        engine = Engine(load_checkpoint(folder.path / FINAL), EngineConfig(precision="fp32"))
        rows.append((folder.path.name, engine.derain_batch(rainy)))
        for label, results in rows:
            print("| {} | {:.2f} | {:.4f} | {:.4f} |".format(label, *scorer.mean(pictures, results)), flush=True)


if __name__ == "__main__":
    main()
