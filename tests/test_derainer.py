"""The Python interface gives back what it was given: type, size, dtype, mode, device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_model, random_pixels
from PIL import Image

from sapnet_cli import Derainer
from sapnet_cli.errors import CheckpointError, ImageError, UsageError
from sapnet_cli.model.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def derainer(tmp_path_factory: pytest.TempPathFactory) -> Derainer:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(random_model(), path)
    return Derainer(weights=path, device="cpu", precision="fp32")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float16", "float32", ">f4", "float64"])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_arrays(derainer: Derainer, dtype: str, channels: int | None) -> None:
    native = np.dtype(dtype).newbyteorder("=")
    base = random_pixels(18, 25, str(native) if native.kind == "u" else "float32").astype(dtype)
    image = np.dstack((base, base[..., 1]))[..., slice(channels)] if channels else base[..., 0]
    before = image.copy()
    derained = derainer.derain(image)
    assert (derained.shape, derained.dtype) == (image.shape, image.dtype)
    assert np.array_equal(image, before)
    assert not np.array_equal(derained, image)
    assert np.array_equal(derained, derainer.derain(image.astype(native)))
    if channels in (2, 4):
        assert np.array_equal(derained[..., -1], image[..., -1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_pil_images(derainer: Derainer, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(random_pixels(18, 25, "uint16")[..., 0])
    else:
        image = Image.fromarray(random_pixels(18, 25)).convert(mode)
    image.info["icc_profile"] = b"a profile"
    derained = derainer.derain(image)
    assert derained.info == image.info
    assert isinstance(derained, Image.Image)
    assert (derained.mode, derained.size) == (image.mode, image.size)
    if mode in ("LA", "RGBA"):
        assert derained.getchannel("A").tobytes() == image.getchannel("A").tobytes()


@pytest.mark.parametrize(("mode", "expected"), [("P", "RGB"), ("CMYK", "RGB"), ("1", "RGB"), ("PA", "RGBA")])
def test_pil_images_of_other_modes(derainer: Derainer, mode: str, expected: str) -> None:
    image = Image.fromarray(random_pixels(18, 25)).convert("P" if mode == "PA" else mode).convert(mode)
    assert derainer.derain(image).mode == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_tensors(derainer: Derainer, dtype: torch.dtype, batch: int | None) -> None:
    torch.manual_seed(0)
    values = torch.rand(*([] if batch is None else [batch]), 3, 14, 19)
    image = (values * 255).to(dtype) if dtype == torch.uint8 else values.to(dtype)
    derained = derainer.derain(image)
    assert (derained.shape, derained.dtype, derained.device) == (image.shape, image.dtype, image.device)
    if batch == 3:
        torch.testing.assert_close(derained[1].float(), derainer.derain(image[1]).float(), atol=1.01, rtol=0)


def test_kinds_agree(derainer: Derainer) -> None:
    pixels = random_pixels(20, 30)
    array = derainer.derain(pixels)
    assert np.array_equal(np.asarray(derainer.derain(Image.fromarray(pixels))), array)
    assert np.array_equal(derainer.derain(torch.tensor(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy(), array)


def test_batch_keeps_the_order(derainer: Derainer) -> None:
    images = [random_pixels(10, 12, seed=1), random_pixels(10, 12, seed=2), random_pixels(8, 30, seed=3)]
    for together, image in zip(derainer.derain_batch(images), images):
        assert np.array_equal(together, derainer.derain(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 5), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (torch.zeros(1, 4, 4), "shape"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32"),
        (Image.new("F", (4, 4)), "PIL mode F"),
        ("photo.jpg", "expected a NumPy array"),
        (np.full((4, 4, 3), 255.0), r"in \[0, 1\], got 255 to 255"),
        (torch.full((3, 4, 4), -2.0), r"in \[0, 1\], got -2 to -2"),
        (np.full((4, 4, 3), np.nan), "not finite"),
    ],
)
def test_senseless_pictures(derainer: Derainer, image: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        derainer.derain(image)  # type: ignore[type-var]


def test_weights_and_options_are_checked(tmp_path: Path) -> None:
    (tmp_path / "final.safetensors").touch()
    with pytest.raises(CheckpointError, match=f"name the file of weights, as {tmp_path}/final.safetensors"):
        Derainer(str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a file nor one of sapnet-general"):
        Derainer(weights="no-such-weights")
    with pytest.raises(UsageError, match="twice the overlap"):
        Derainer(tile=100, overlap=50)


def test_registered_weights_are_hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sapnet_cli.hub as hub

    entry = next(iter(hub.registered_weights().values()))
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(entry.path.read_bytes()[:-1] + b"\0")
    registry = {entry.name: hub.RegisteredWeights(entry.name, changed, entry.sha256, "")}
    monkeypatch.setattr(hub, "registered_weights", lambda: registry)
    with pytest.raises(CheckpointError, match="tampered"):
        hub.locate_weights(entry.name)
