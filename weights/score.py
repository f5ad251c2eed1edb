"""Scores derained pictures: python weights/score.py DERAINED PAIRS, with scikit-image, which the extra `dev` brings.

Prints the mean PSNR and SSIM of the Y channel by the protocol of PReNet: MATLAB's `rgb2ycbcr` in double precision, PSNR
over the whole picture, SSIM with an 11x11 Gaussian window over its valid region. PReNet shrinks pictures of 384 pixels
and more on their shorter side before SSIM; this script refuses them. DERAINED holds the results under the names of
the rainy pictures, PAIRS is a folder of pairs.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

from sapnet_cli.data.pairs import Pair, find_pairs


def luma(path: Path) -> NDArray[np.float64]:
    """Y of MATLAB's rgb2ycbcr, 16 to 235, not rounded."""
    with Image.open(path) as image:
        return 16 + np.asarray(image.convert("RGB")) / 255 @ np.array([65.481, 128.553, 24.966])


def score(derained: Path, clean: Path) -> tuple[float, float]:
    """PSNR in dB, and SSIM."""
    image, truth = luma(derained), luma(clean)
    if min(truth.shape) >= 384:
        raise SystemExit(f"{clean}: the protocol shrinks pictures as large as this before SSIM, which is not done here")
    psnr = 10 * np.log10(255**2 / np.square(image - truth).mean())
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11}
    return float(psnr), float(structural_similarity(image, truth, data_range=255, **options))


def main() -> None:
    """Scores every pair that has a result."""
    folder, pairs = Path(sys.argv[1]), find_pairs(Path(sys.argv[2])).pairs

    def one(pair: Pair) -> tuple[float, float] | None:
        derained = folder / pair.rainy.name
        return score(derained, pair.clean) if derained.exists() else None

    with ThreadPoolExecutor() as pool:
        scores = [result for result in pool.map(one, pairs) if result is not None]
    psnr, ssim = np.mean(scores, axis=0)
    print(f"{len(scores)} of {len(pairs)} pictures: {psnr:.3f} dB / {ssim:.4f}")


if __name__ == "__main__":
    main()
