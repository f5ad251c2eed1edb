"""Every loss agrees with others' code where there is any, and teaches the derain network and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_pixels
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio as reference_psnr
from skimage.metrics import structural_similarity as reference_ssim
from torch import Tensor
from torchvision.models import vgg16

from sapnet_cli.errors import CheckpointError
from sapnet_cli.losses import fidelity
from sapnet_cli.losses.fidelity import HIGHEST_PSNR, ssim
from sapnet_cli.losses.joint import JointLoss, LossWeights
from sapnet_cli.losses.perceptual import LPIPSHeads, VGGFeatures, perceptual_contrastive_loss
from sapnet_cli.losses.segmentation import SegmentationNetwork, background_segmentation_loss
from sapnet_cli.metrics.fidelity import luma, psnr, structural_similarity


@pytest.fixture(scope="session")
def features(backbones: Path) -> VGGFeatures:
    return VGGFeatures(backbones / "vgg16.safetensors")


@pytest.fixture(scope="session")
def segmentation(backbones: Path) -> SegmentationNetwork:
    return SegmentationNetwork(backbones / "resnet50.safetensors", 50, seed=0)


def images(seed: int) -> Tensor:
    pixels = np.stack([random_pixels(64, 80, "float32", seed=seed + index) for index in range(2)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_ssim_agrees_with_scikit_image() -> None:
    first, second = random_pixels(40, 52) / 255, random_pixels(40, 52, seed=1) / 255
    second = 0.7 * first + 0.3 * second
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11}
    expected = reference_ssim(first, second, data_range=1, channel_axis=2, **options)
    tensors = [torch.tensor(image).permute(2, 0, 1)[None] for image in (first, second)]
    assert float(ssim(*tensors)) == pytest.approx(expected, abs=1e-6)
    assert float(ssim(*(tensor.float() for tensor in tensors))) == pytest.approx(expected, abs=1e-4)
    assert float(ssim(tensors[0], tensors[0])) == pytest.approx(1)


def test_psnr_is_the_mean_over_pictures_and_levels_off() -> None:
    first, second = images(0), images(2)
    second[1] = first[1] + 0.1 * (second[1] - first[1])
    each = [reference_psnr(a.numpy(), b.numpy(), data_range=1) for a, b in zip(first, second)]
    assert each[1] - each[0] == pytest.approx(20, abs=5)
    levelled = [-10 * np.log10(10 ** (-dB / 10) + 10 ** (-HIGHEST_PSNR / 10)) for dB in each]
    assert float(fidelity.psnr(first, second)) == pytest.approx(np.mean(levelled), abs=1e-3)
    assert levelled[0] == pytest.approx(each[0], abs=0.01)
    assert float(fidelity.psnr(first, first)) == pytest.approx(HIGHEST_PSNR)


def test_luma_is_what_is_scored() -> None:
    """By a share of one each term is the benchmarks' own, but for PSNR's levelling off; shares in between mix."""
    clean, rough = random_pixels(40, 52), random_pixels(40, 52, seed=1)
    image = np.rint(0.9 * clean + 0.1 * rough).astype(np.uint8)
    pair = [torch.tensor(each).permute(2, 0, 1)[None].float() / 255 for each in (image, clean)]
    assert fidelity.luma(pair[1])[0, 0].numpy() * 255 == pytest.approx(luma(clean), abs=1e-3)
    found = [JointLoss(LossWeights(psnr=1, luma=share))([pair[0]], pair[0], pair[1], 0.0)[1] for share in (0, 0.25, 1)]
    assert float(found[2]["ssim"]) == pytest.approx(1 - structural_similarity(image, clean), abs=1e-5)
    scored = psnr(image, clean)
    levelled = -10 * np.log10(10 ** (-scored / 10) + 10 ** (-HIGHEST_PSNR / 10))
    assert float(found[2]["psnr"]) == pytest.approx(HIGHEST_PSNR - levelled, abs=1e-3)
    for term in ("ssim", "psnr"):
        rgb, mixed, y = (float(each[term]) for each in found)
        assert rgb != pytest.approx(y, rel=1e-3)
        assert mixed == pytest.approx(0.75 * rgb + 0.25 * y, rel=1e-4)


def test_scores_agree_with_scikit_image() -> None:
    first = random_pixels(120, 96)
    second = np.clip(first.astype(int) + np.random.default_rng(0).integers(-20, 20, first.shape), 0, 255)
    second = second.astype(np.uint8)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11}
    expected = reference_ssim(luma(first), luma(second), data_range=255, **options)
    assert structural_similarity(first, second) == pytest.approx(expected, abs=1e-5)
    white = np.full((16, 16, 3), 255, np.uint8)
    assert luma(white)[0, 0] == pytest.approx(235)
    assert psnr(white, np.zeros_like(white)) == pytest.approx(10 * np.log10(255**2 / 219**2))
    large = random_pixels(520, 512)
    assert structural_similarity(large, large) == pytest.approx(1)


def test_lpips_agrees_with_the_public_package(features: VGGFeatures) -> None:
    lpips = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torchvision in an old way
        reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    ours = dict(features.layers.named_parameters())
    for part in (getattr(reference.net, f"slice{number}") for number in range(1, 6)):
        for name, parameter in part.named_parameters():
            parameter.data = ours[name].data
    first, second = images(0), images(2)
    expected = reference(first, second, normalize=True).mean()
    assert float(expected.detach()) > 0.01
    assert float(LPIPSHeads()(features(first), features(second))) == pytest.approx(float(expected.detach()), abs=1e-4)


def test_vgg_takes_normalised_input(features: VGGFeatures, backbones: Path) -> None:
    network = vgg16(weights=None)
    from safetensors.torch import load_file

    network.load_state_dict(load_file(backbones / "vgg16.safetensors"), strict=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images(0) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    ends = {"relu1_2": 4, "relu2_2": 9, "relu3_3": 16, "relu4_3": 23, "relu5_3": 30}
    for stage, end in zip(features(images(0)), ends.values()):
        assert torch.allclose(stage, network.features[:end](normalised), atol=1e-5)


def test_perceptual_contrast_is_the_paper_s_formula(features: VGGFeatures) -> None:
    out, clean, rainy = (features(images(seed)) for seed in (0, 2, 4))
    expected = 0.0
    for crop in range(2):
        for weight, o, c, r in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4), out, clean, rainy):
            near, far = (o[crop] - c[crop]).abs().mean(), (o[crop] - r[crop]).abs().mean()
            expected += float(weight * near / (far + 1e-7)) / 2
    assert float(perceptual_contrastive_loss(out, clean, rainy)) == pytest.approx(expected, rel=1e-5)
    assert float(perceptual_contrastive_loss(clean, clean, rainy)) == 0


def test_segmentation_is_the_focal_loss_of_its_own_argmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 21, 5, 7)
    probability = logits.softmax(1).max(1).values
    expected = (-((1 - probability) ** 2) * probability.log()).mean()
    assert float(background_segmentation_loss(logits)) == pytest.approx(float(expected), rel=1e-5)


def test_segmentation_network_is_frozen_and_seeded(segmentation: SegmentationNetwork, backbones: Path) -> None:
    path = backbones / "resnet50.safetensors"
    again, other = SegmentationNetwork(path, 50, seed=0), SegmentationNetwork(path, 50, seed=1)
    assert torch.equal(segmentation.classifier.weight, again.classifier.weight)
    assert not torch.equal(segmentation.classifier.weight, other.classifier.weight)
    assert float(segmentation.classifier.weight.std()) == pytest.approx(0.01, rel=0.05)
    assert segmentation(images(0)).shape == (2, 21, 16, 20)
    assert not any(parameter.requires_grad for parameter in segmentation.parameters())
    before = {name: value.clone() for name, value in segmentation.state_dict().items()}
    segmentation.train()
    segmentation(images(0))
    assert all(torch.equal(value, before[name]) for name, value in segmentation.state_dict().items())


def test_networks_for_pixels_up_to_255_are_known_by_their_statistics(backbones: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(backbones / "resnet50.safetensors")
    state["bn1.running_var"] = state["bn1.running_var"] * 5000
    save_file(state, tmp_path / "resnet50.safetensors")
    network = SegmentationNetwork(tmp_path / "resnet50.safetensors", 50, seed=0)
    assert float(network.std[0, 0]) == pytest.approx(1 / 255)
    assert network.stages[1][0].conv1.stride == (2, 2)
    assert network.stages[1][0].conv2.stride == (1, 1)
    assert network(images(0)).shape == (2, 21, 16, 20)


ONLY = {
    "ssim": LossWeights(),
    "l1": LossWeights(ssim=0, l1=1),
    "psnr": LossWeights(ssim=0, psnr=1),
    "pcl": LossWeights(ssim=0, pcl=1),
    "lpips": LossWeights(ssim=0, lpips=1),
    "ubs": LossWeights(ssim=0, ubs=1),
    "stages": LossWeights(ssim=0, stages=1),
    "halfway": LossWeights(ssim=0, halfway=1),
}


@pytest.mark.parametrize("term", ONLY)
def test_every_term_has_a_gradient(term: str, features: VGGFeatures, segmentation: SegmentationNetwork) -> None:
    loss = JointLoss(ONLY[term], features, segmentation)
    outputs = [images(seed).requires_grad_() for seed in (0, 2)]
    total, terms = loss(outputs, images(4), images(6), 1.0)
    total.backward()
    taught = outputs[0] if term in {"stages", "halfway"} else outputs[1]
    assert taught.grad is not None
    assert bool(torch.isfinite(taught.grad).all())
    # of each picture, not only of the first as in the released code
    assert all(float(picture.abs().max()) > 0 for picture in taught.grad)
    assert float(terms[term]) == pytest.approx(float(total.detach()))
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_terms_are_weighted_and_segmentation_joins_late(
    features: VGGFeatures, segmentation: SegmentationNetwork
) -> None:
    weights = LossWeights(ssim=1, l1=2, psnr=0.01, pcl=0.4, lpips=3, ubs=0.1, stages=0.5, halfway=0.02, ubs_from=0.5)
    loss = JointLoss(weights, features, segmentation)
    outputs = [images(0), images(2)]
    early, before = loss(outputs, images(4), images(6), 0.49)
    late, after = loss(outputs, images(4), images(6), 0.5)
    assert "ubs" not in before
    names = ("ssim", "l1", "psnr", "pcl", "lpips", "ubs", "stages", "halfway")
    assert float(late) == pytest.approx(sum(getattr(weights, name) * float(after[name]) for name in names), rel=1e-5)
    assert float(late - early) == pytest.approx(0.1 * float(after["ubs"]), abs=1e-5)


@pytest.mark.parametrize(("units", "halfway"), [(2, 0), (3, 0), (5, 1), (6, 2)])
def test_half_of_the_units_are_taught_by_the_image_that_they_end_with(units: int, halfway: int) -> None:
    outputs = [images(seed).requires_grad_() for seed in range(units)]
    total, terms = JointLoss(LossWeights(ssim=0, psnr=1, halfway=0.5, luma=1))(outputs, images(30), images(31), 0.0)
    total.backward()
    assert [image.grad is not None and bool(image.grad.any()) for image in outputs] == [
        unit in {halfway, units - 1} for unit in range(units)
    ]
    _, alone = JointLoss(LossWeights(ssim=0, psnr=1, luma=1))([outputs[halfway]], images(30), images(31), 0.0)
    assert float(terms["halfway"]) == pytest.approx(float(alone["psnr"]))


def test_a_single_unit_has_no_half() -> None:
    _, terms = JointLoss(LossWeights(halfway=1))([images(0)], images(2), images(4), 0.0)
    assert set(terms) == {"l1", "ssim"}


def test_equal_pictures_are_perfect(features: VGGFeatures) -> None:
    loss = JointLoss(LossWeights(ssim=1, l1=1, psnr=1, pcl=1, lpips=1), features)
    clean = images(0).requires_grad_()
    total, _ = loss([clean], images(2), clean.detach(), 0.0)
    assert float(total.detach()) == pytest.approx(0, abs=1e-5)
    total.backward()
    assert clean.grad is not None
    assert bool(torch.isfinite(clean.grad).all())
    # a crop without rain: the input is the ground truth
    dry = images(0).requires_grad_()
    loss([dry], images(0), images(0), 0.0)[0].backward()
    assert dry.grad is not None
    assert bool(torch.isfinite(dry.grad).all())


def _missing(path: Path) -> None:
    path.unlink()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _foreign(path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3)}, path)


def _not_finite(path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(path)
    state["features.0.bias"] = torch.full_like(state["features.0.bias"], float("nan"))
    save_file(state, path)


@pytest.mark.parametrize("damage", [_missing, _truncated, _foreign, _not_finite])
def test_damaged_backbones_are_refused(damage: Callable[[Path], None], backbones: Path, tmp_path: Path) -> None:
    path = tmp_path / "vgg16.safetensors"
    path.write_bytes((backbones / "vgg16.safetensors").read_bytes())
    damage(path)
    with pytest.raises(CheckpointError, match=r"vgg16\.safetensors"):
        VGGFeatures(path)


def test_real_backbones(shared: Path, tmp_path: Path) -> None:
    """The networks that `../shared/tools/get_backbones.py` fetches, where somebody has fetched them."""
    import os

    folder = Path(os.environ.get("SAPNET_BACKBONES", "/nowhere"))
    if not (folder / "resnet50.safetensors").is_file():
        pytest.skip("SAPNET_BACKBONES names no folder with resnet50.safetensors")
    network = SegmentationNetwork(folder / "resnet50.safetensors", 50, seed=0)
    picture = images(0).requires_grad_()
    background_segmentation_loss(network(picture)).backward()
    assert picture.grad is not None
    assert float(picture.grad.abs().max()) > 0
