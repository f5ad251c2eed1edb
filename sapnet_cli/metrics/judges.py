"""Measures that look through other networks: LPIPS, and whether what comes after deraining still sees the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, deeplabv3_resnet50
from torchvision.ops import box_iou

from sapnet_cli.losses.backbone import load_resnet, load_torchvision
from sapnet_cli.losses.perceptual import LPIPSHeads, VGGFeatures

CLASSIFIER_SIDE, CLASSIFIER_CROP = 256, 224

LEAST_CONFIDENCE, LEAST_OVERLAP = 0.5, 0.5
"""Of a box to count as found, and of two boxes (intersection over union) to be the same."""


class LPIPS:
    """LPIPS 0.1 with VGG-16 of RGB pictures in [0, 1], as its own package computes it; 0 for equal ones."""

    label = "LPIPS"

    def __init__(self, vgg16: Path, device: torch.device) -> None:
        """Reads VGG-16; raises `CheckpointError` if the file is missing, damaged or of another network."""
        self._features, self._heads = VGGFeatures(vgg16).to(device), LPIPSHeads().to(device)
        self._device = device

    def __call__(self, image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """Distance of two pictures, (H, W, 3) uint8 each, both sides at least 16."""
        with torch.inference_mode():
            return float(self._heads(*(self._features(_to_tensor(each, self._device)) for each in (image, truth))))


class Classifier:
    """ResNet-50 on the middle of a picture, shrunk to 256 on its shorter side and cut to 224, as it was trained."""

    label = "top-1"

    def __init__(self, resnet50: Path, device: torch.device) -> None:
        """Reads ResNet-50; raises `CheckpointError` if the file is missing, damaged or of another network."""
        self._network, self._mean, self._std = load_resnet(resnet50, 50, classifies=True)
        self._network = self._network.to(device).eval()
        self._device = device

    def classify(self, image: NDArray[np.uint8]) -> int:
        """The likeliest of the 1000 classes of ImageNet for (H, W, 3) uint8."""
        height, width = image.shape[:2]
        scale = CLASSIFIER_SIDE / min(height, width)
        size = (max(CLASSIFIER_SIDE, round(height * scale)), max(CLASSIFIER_SIDE, round(width * scale)))
        pixels = functional.interpolate(
            _to_tensor(image, self._device), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        top, left = ((side - CLASSIFIER_CROP) // 2 for side in size)
        pixels = pixels[:, :, top : top + CLASSIFIER_CROP, left : left + CLASSIFIER_CROP]
        mean, std = (torch.tensor(each, device=self._device).view(1, 3, 1, 1) for each in (self._mean, self._std))
        with torch.inference_mode():
            return int(self._network((pixels - mean) / std).argmax())

    def __call__(self, image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """1 if both pictures are taken for the same thing, else 0."""
        return float(self.classify(image) == self.classify(truth))


class Segmenter:
    """DeepLabV3 on ResNet-50, trained on COCO with the 21 classes of Pascal VOC."""

    label = "seg mIoU"

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Reads the network; raises `CheckpointError` if the file is missing, damaged or of another network."""
        # the auxiliary head is in the file and trains the network; nothing asks it here
        network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
        self._network = load_torchvision(network, weights).to(device).eval()
        self._prepare = DeepLabV3_ResNet50_Weights.DEFAULT.transforms()
        self._device = device

    def segment(self, image: NDArray[np.uint8]) -> Tensor:
        """The likeliest class of each pixel, on a plane whose shorter side is 520, for (H, W, 3) uint8."""
        with torch.inference_mode():
            plane: Tensor = self._network(self._prepare(_to_tensor(image, self._device)))["out"][0].argmax(dim=0)
        return plane

    def __call__(self, image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """Intersection over union of what is seen in both, mean over the classes that are seen in either."""
        first, second = self.segment(image), self.segment(truth)
        ratios = [
            float(((first == each) & (second == each)).sum() / ((first == each) | (second == each)).sum())
            for each in torch.unique(torch.cat((first, second)))
        ]
        return sum(ratios) / len(ratios)


class Detector:
    """Faster R-CNN on ResNet-50 with a feature pyramid, trained on COCO."""

    label = "det F1"

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Reads the network; raises `CheckpointError` if the file is missing, damaged or of another network."""
        network = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        self._network = load_torchvision(network, weights).to(device).eval()
        self._prepare = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.transforms()
        self._device = device

    def detect(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) in pixels and classes (N,) that are seen with confidence, the surest first."""
        with torch.inference_mode():
            found = self._network([self._prepare(_to_tensor(image, self._device)[0])])[0]
        sure = found["scores"] >= LEAST_CONFIDENCE
        return found["boxes"][sure], found["labels"][sure]

    def __call__(self, image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """F1 of the picture's boxes against those that are seen in its ground truth; 1 where neither has any."""
        (boxes, labels), (true_boxes, true_labels) = self.detect(image), self.detect(truth)
        if not len(boxes) + len(true_boxes):
            return 1.0
        return 2 * matched_boxes(boxes, labels, true_boxes, true_labels) / (len(boxes) + len(true_boxes))


def matched_boxes(boxes: Tensor, labels: Tensor, true_boxes: Tensor, true_labels: Tensor) -> int:
    """How many boxes, (N, 4) with classes (N,), find a true one of their class for themselves, the surest first."""
    overlaps = box_iou(boxes, true_boxes) * (labels[:, None] == true_labels[None])
    matched = 0
    for row in range(len(boxes)):
        if len(true_boxes) and float(overlaps[row].max()) >= LEAST_OVERLAP:
            overlaps[:, int(overlaps[row].argmax())] = 0
            matched += 1
    return matched


def _to_tensor(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.tensor(image, device=device).permute(2, 0, 1)[None].float() / 255
