"""The joint loss: what each term is worth, and all of them from the images of one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sapnet_cli.losses.fidelity import HIGHEST_PSNR, luma, psnr, ssim
from sapnet_cli.losses.perceptual import LPIPSHeads, VGGFeatures, perceptual_contrastive_loss
from sapnet_cli.losses.segmentation import SegmentationNetwork, background_segmentation_loss


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; one of weight 0 is not computed.

    Attributes:
        ssim: negative SSIM of the last unit's image (shifted by one, so that 0 is perfect).
        l1: mean absolute error of the last unit's image.
        psnr: negative PSNR of the last unit's image, in dB (shifted by `HIGHEST_PSNR`).
        pcl: perceptual contrastive loss.
        lpips: learned perceptual similarity.
        ubs: unsupervised background segmentation.
        stages: mean absolute error of the earlier units' images, averaged over them, so that they are good images too.
        halfway: negative PSNR, as `psnr`, of the image after half of the units, so that half of the time is enough.
        luma: share of `ssim`, `psnr` and `halfway`, 0 to 1, that is of Y, as benchmarks score it, not of red, green and
            blue.
        ubs_from: part of the budget, 0 to 1, after which `ubs` joins.
    """

    ssim: float = 1.0
    l1: float = 0.0
    psnr: float = 0.0
    pcl: float = 0.0
    lpips: float = 0.0
    ubs: float = 0.0
    stages: float = 0.0
    halfway: float = 0.0
    luma: float = 0.0
    ubs_from: float = 0.5


class JointLoss(nn.Module):
    """Sums the terms, the frozen networks behind some of them included.

    Args:
        weights: of the terms.
        features: VGG-16, where `pcl` or `lpips` has a weight; with all five stages for `lpips`.
        segmentation: where `ubs` has a weight.
    """

    def __init__(
        self,
        weights: LossWeights,
        features: VGGFeatures | None = None,
        segmentation: SegmentationNetwork | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.features, self.segmentation = weights, features, segmentation
        self.heads = LPIPSHeads() if weights.lpips else None

    def forward(
        self,
        images: Sequence[Tensor],
        rainy: Tensor,
        clean: Tensor,
        progress: float,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of one batch.

        Args:
            images: each unit's estimate, (B, 3, H, W), float32, not clamped.
            rainy: the input, the same shape, in [0, 1].
            clean: ground truth, the same shape.
            progress: part of the budget that is spent, 0 to 1.
            autocast: context that the frozen networks run in; all else is computed in float32.

        Returns:
            The sum, and each term on its own before its weight, without gradient; `l1` is always among them.
        """
        weights = self.weights
        *earlier, last = images
        error = (last - clean).abs().mean()
        terms: dict[str, tuple[float, Tensor]] = {"l1": (weights.l1, error)}
        if weights.ssim:
            terms["ssim"] = (weights.ssim, 1 - self._compare(ssim, last, clean))
        if weights.psnr:
            terms["psnr"] = (weights.psnr, HIGHEST_PSNR - self._compare(psnr, last, clean))
        if weights.stages and earlier:
            errors = torch.stack([(image - clean).abs().mean() for image in earlier])
            terms["stages"] = (weights.stages, errors.mean())
        if weights.halfway and earlier:
            halfway = images[len(images) // 2 - 1]
            terms["halfway"] = (weights.halfway, HIGHEST_PSNR - self._compare(psnr, halfway, clean))
        if self.features is not None and (weights.pcl or weights.lpips):
            with torch.no_grad(), autocast():
                known = self.features(torch.cat((clean, rainy)) if weights.pcl else clean)
            positive = [stage[: len(clean)] for stage in known]
            with autocast():
                out = self.features(last)
            if weights.pcl:
                negative = [stage[len(clean) :] for stage in known]
                terms["pcl"] = (weights.pcl, perceptual_contrastive_loss(out, positive, negative))
            if self.heads is not None:
                terms["lpips"] = (weights.lpips, self.heads(out, positive))
        if self.segmentation is not None and weights.ubs and progress >= weights.ubs_from:
            with autocast():
                logits = self.segmentation(last)
            terms["ubs"] = (weights.ubs, background_segmentation_loss(logits))
        total = sum((weight * term for weight, term in terms.values() if weight), start=torch.zeros_like(error))
        return total, {name: term.detach() for name, (_, term) in terms.items()}

    def _compare(self, measure: Callable[[Tensor, Tensor], Tensor], image: Tensor, clean: Tensor) -> Tensor:
        """In RGB, in Y, or some of each."""
        share = self.weights.luma
        if not share:
            return measure(image, clean)
        in_y = measure(luma(image), luma(clean))
        return in_y if share == 1 else (1 - share) * measure(image, clean) + share * in_y
