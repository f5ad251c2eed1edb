"""The Python interface: arrays, PIL images and tensors in, the same out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.engine.tiles import OVERLAP
from sapnet_cli.errors import ImageError
from sapnet_cli.hub import DEFAULT_WEIGHTS, locate_weights
from sapnet_cli.imaging.picture import luma
from sapnet_cli.model.weights import read_weights

if TYPE_CHECKING:
    from torch import Tensor

Picture = TypeVar("Picture", NDArray[Any], Image.Image, "Tensor")
FLOAT_DTYPES = (np.float16, np.float32, np.float64)


class Derainer:
    """Removes rain from pictures in memory.

    >>> from sapnet_cli import Derainer
    >>> derainer = Derainer()
    >>> clean = derainer.derain(rainy)

    Pictures may be

    - NumPy arrays: (H, W) or (H, W, 1 to 4), grey, grey and alpha, RGB or RGBA; uint8, uint16, or floats in [0, 1];
    - PIL images of mode L, LA, RGB, RGBA or I;16; palette, CMYK and the like come back as RGB or RGBA;
    - tensors: (3, H, W) or (B, 3, H, W), RGB; uint8, or floats in [0, 1]; on any device.

    What comes back is new, and of the same type, size, dtype or mode, and device. Alpha passes through untouched, as
    does what a PIL image holds in `info`.
    Arrays and PIL images are taken as they are: an EXIF orientation is the caller's business.
    """

    def __init__(
        self,
        weights: str | Path = DEFAULT_WEIGHTS,
        device: str = "auto",
        precision: str = "auto",
        tile: int | Literal["auto"] = "auto",
        overlap: int = OVERLAP,
        stages: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        tile_statistics: Literal["shared", "exact"] = "shared",
        tta: bool = False,
        pyramid: int | Literal["auto"] = "auto",
        insist: float | Literal["auto"] = 0.0,
    ) -> None:
        """Loads the weights; the other arguments are those of `EngineConfig`.

        Args:
            weights: a registered name or the path of a file.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            precision: `auto`, `fp32`, `bf16`, `fp16` or `int8`.
            tile: side of a tile in pixels, its context included; `auto`, or 0 for the whole image at once.
            overlap: context on each side of a tile, in pixels.
            stages: progressive units to run, None for all.
            batch_size: tiles, or pictures of one size, in one forward; or `auto`.
            tile_statistics: `shared` or `exact`.
            tta: whether to take the mean over flips and turns, for four or eight times the time.
            pyramid: levels to derain at, each a quarter of the one before; 1 for the picture alone.
            insist: how much rain a picture is taken to have at least, for rain that stays; rainy photos have 1 on
                average, and 2 is the most. `auto` takes 1.5 for pictures that hardly change without.

        Raises:
            CheckpointError: the weights are missing, damaged or foreign.
            UsageError: an argument makes no sense, or the device is not there.
        """
        config = EngineConfig(
            device, precision, tile, overlap, batch_size, stages, tile_statistics, tta, pyramid, insist
        )
        self.engine = Engine(read_weights(locate_weights(str(weights))), config)

    def derain(self, image: Picture) -> Picture:
        """Derains one picture (or one batch of pictures as a 4-dimensional tensor).

        Raises:
            ImageError: the picture is of a kind that is not supported, or holds values that are not finite, or floats
                that are not in [0, 1] but, say, in [0, 255].
            OutOfMemoryError: not even a small tile fits into memory.
        """
        return self.derain_batch([image])[0]

    def derain_batch(self, images: Sequence[Picture]) -> list[Picture]:
        """Derains several pictures; errors as for `derain`.

        On a CPU small ones are computed at the same time, each on a share of the cores; on a GPU neighbours of one size
        and dtype together.
        """
        images = [_plain(image) if isinstance(image, Image.Image) else image for image in images]
        planes = [_to_planes(image) for image in images]
        results = iter(self.engine.derain_batch([rgb for group in planes for rgb in group]))
        return [_from_pixels(image, [next(results) for _ in group]) for image, group in zip(images, planes)]


def is_tensor(image: object) -> TypeGuard[Tensor]:
    """Whether a picture is one of PyTorch's, which need not be loaded to know that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _plain(image: Image.Image) -> Image.Image:
    """A PIL image in one of the modes that can be derained."""
    if image.mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ImageError(f"PIL mode {image.mode} is not supported; convert it to L or I;16")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _to_planes(image: NDArray[Any] | Image.Image | Tensor) -> list[Pixels]:
    """One picture of any kind to the (H, W, 3) arrays that the engine takes; several for a batch."""
    if is_tensor(image):
        import torch

        if image.dim() not in (3, 4) or image.shape[-3] != 3:
            raise ImageError(f"expected a tensor of shape (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ImageError(f"expected a tensor of uint8 or floats in [0, 1], got {image.dtype}")
        batch = image.detach().reshape(-1, *image.shape[-3:]).permute(0, 2, 3, 1).cpu()
        return list((batch if image.dtype == torch.uint8 else batch.float()).contiguous().numpy())
    if isinstance(image, Image.Image):
        if image.mode in ("L", "LA", "RGBA"):
            image = image.convert("RGB")
        return _to_planes(np.asarray(image))
    if not isinstance(image, np.ndarray):
        raise ImageError(f"expected a NumPy array, a PIL image or a tensor, got {type(image).__name__}")
    image = image.astype(image.dtype.newbyteorder("="), copy=False)  # as FITS and big-endian TIFF have them
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or 0 in image.shape:
        raise ImageError(f"expected an array of shape (H, W) or (H, W, 1 to 4), got {image.shape}")
    if image.dtype in FLOAT_DTYPES:
        image = image.astype(np.float32)
    elif image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"expected uint8, uint16 or floats in [0, 1], got {image.dtype}")
    rgb = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]
    return [np.ascontiguousarray(rgb)]


def _from_pixels(image: Any, results: Sequence[Pixels]) -> Any:
    """The engine's results in the shape, type and dtype that the picture came in."""
    if is_tensor(image):
        import torch

        batch = torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)
        return batch.reshape(image.shape).to(image.device, image.dtype)
    rgb = results[0]
    if isinstance(image, Image.Image):
        result = Image.fromarray(luma(rgb) if image.mode in ("L", "LA", "I;16") else rgb)
        result.info = dict(image.info)
        if image.mode in ("LA", "RGBA"):
            result.putalpha(image.getchannel("A"))
        return result
    array = image.copy()
    if image.ndim == 2:
        array[:] = luma(rgb)
    elif image.shape[2] < 3:
        array[..., 0] = luma(rgb)
    else:
        array[..., :3] = rgb
    return array
