"""A decoded picture with all that a photographer put into it, and the formats that pictures come in."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Samples: TypeAlias = NDArray[Any]
"""uint8 or uint16."""


FORMATS: Mapping[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
"""Formats by Pillow's names, each with its file name endings, the usual one first."""

FORMAT_OF_SUFFIX = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}

SIXTEEN_BIT_FORMATS = frozenset({"PNG", "TIFF"})
IPTC_FORMATS = frozenset({"JPEG", "TIFF"})
ALPHA_FORMATS = frozenset({"PNG", "WEBP", "TIFF", "AVIF", "HEIF"})

MOST_PIXELS_A_SIDE: Mapping[str, int] = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 32_768}
"""What can be written and read again: larger AVIF is written, and then refused by readers. The others have room."""


@dataclass(frozen=True)
class Metadata:
    """What a file says about its pixels besides the pixels; None where it says nothing.

    Attributes:
        exif: EXIF as a TIFF structure without the `Exif` prefix, orientation already set to upright.
        icc_profile: ICC colour profile of the pixels.
        xmp: XMP packet.
        iptc: captions, names and rights as the press keeps them, an IIM stream.
        dpi: horizontal and vertical resolution in pixels an inch.
        compression: Pillow's name of a TIFF file's compression, or `lossless` of such a WebP.
        png_colour: the chunks of a PNG that say what its colours are, beside a profile.
        png_text: the chunks of a PNG that hold titles, names, rights and the like.
        comment: of a JPEG.
        xmp_extension: segments of a JPEG with what of its XMP has no room in the packet (Lightroom's masks, depth).
    """

    exif: bytes | None = None
    icc_profile: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    compression: str | None = None
    png_colour: bytes | None = None
    png_text: bytes | None = None
    comment: bytes | None = None
    xmp_extension: bytes | None = None


@dataclass(frozen=True)
class Picture:
    """An upright picture in memory.

    Attributes:
        rgb: (H, W, 3) uint8 or uint16; the three channels of a grey picture are equal.
        alpha: (H, W) of the same dtype, or None.
        grey: whether the file had one channel of colour, and the output is to have one as well.
        format: Pillow's name of the file's format.
        metadata: what else the file holds.
        frames: how many pictures the file holds; only the first is read.
        film: whether a few seconds of video lie behind the picture, as phones put them there.
        depth: bits a sample of an AVIF or HEIC file, of which 8 are read; 8 for all others.
    """

    rgb: Samples
    alpha: Samples | None = None
    grey: bool = False
    format: str = "PNG"
    metadata: Metadata = field(default_factory=Metadata)
    frames: int = 1
    film: bool = False
    depth: int = 8

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """Grey of an RGB picture by BT.601, (H, W, 3) to (H, W), same dtype; equal channels give themselves."""
    grey = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey.astype(rgb.dtype) if rgb.dtype == np.float32 else np.rint(grey).astype(rgb.dtype)


def is_picture_file(path: Path) -> bool:
    """Whether a listing of its folder is to take it: by its ending, and not if it is hidden.

    A pipe, a socket or a device would be waited for, so it is not, nor is a folder of such a name; a link to nothing
    is, and fails by name later.
    """
    if path.name.startswith(".") or path.suffix.lower() not in FORMAT_OF_SUFFIX:
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
