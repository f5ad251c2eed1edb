"""Pictures to encoded bytes."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from isal import isal_zlib
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from sapnet_cli.errors import ImageError
from sapnet_cli.imaging.exif import EXIF_PREFIX
from sapnet_cli.imaging.picture import (
    ALPHA_FORMATS,
    FORMATS,
    MOST_PIXELS_A_SIDE,
    SIXTEEN_BIT_FORMATS,
    Metadata,
    Picture,
    Samples,
    luma,
)
from sapnet_cli.imaging.read import IPTC_RESOURCE, PNG_SIGNATURE, png_chunks, register_heif, segment

log = logging.getLogger(__name__)

JPEG_QUALITY = 95
METADATA_CHUNKS = frozenset({b"iCCP", b"eXIf", b"iTXt", b"pHYs"})
JPEG_SEGMENT = 65_000
XMP_PACKET = b"http://ns.adobe.com/xap/1.0/\0"
DEFLATE_LEVEL = 2
"""Of PNG and TIFF, by ISA-L: ten times as fast as zlib's 3, which counts beside networks on the same cores. Photos of
8 bits come out 2 to 7 % larger (11 % as TIFF), those of 16 bits the same."""

PNG_BAND = 2**22
"""Bytes that are filtered and packed at a time: a large picture needs no second copy."""

PNG_FILTER_UP = 2

LOSSLESS_EFFORT = 50
"""Of WebP, which calls it quality."""

OPTIMIZED_PIXELS = 2**24
"""Up to so many, JPEGs get the best code for them: up to a tenth smaller, for six bytes of memory a pixel."""

XMP_TIFF_TAG, PHOTOSHOP_TIFF_TAG, ICC_TIFF_TAG = 700, 34377, 34675


def encode(picture: Picture, image_format: str, quality: int = JPEG_QUALITY) -> bytes:
    """Encodes a picture with its metadata.

    16-bit samples stay so in PNG and TIFF and become 8-bit elsewhere; alpha is left out where the format has none.

    Args:
        picture: what to write.
        image_format: a key of `FORMATS`.
        quality: of JPEG (then 4:4:4), WebP, AVIF and HEIC, 1 to 100.

    Raises:
        ImageError: this Pillow can't write the format, or the format can't hold the picture.
        MemoryError: there is none.
    """
    check_size(*picture.size, image_format)
    if picture.rgb.dtype == np.uint16 and image_format not in SIXTEEN_BIT_FORMATS:
        picture = replace(picture, rgb=_to_8_bit(picture.rgb), alpha=_to_8_bit(picture.alpha))
    if picture.alpha is not None and image_format not in ALPHA_FORMATS:
        picture = replace(picture, alpha=None)
    try:
        if image_format == "TIFF":
            return _encode_tiff(picture)
        if image_format == "PNG":
            return _encode_png(picture)
        return _encode_by_pillow(picture, image_format, quality)
    except MemoryError:  # no fault of the EXIF
        raise
    except Exception as error:  # of Pillow, which raises many kinds
        if picture.metadata.exif is None:
            raise ImageError(f"cannot be written as {image_format}: {error}") from error
    log.warning("the EXIF of a picture cannot be written as %s and is left out", image_format)
    return encode(replace(picture, metadata=replace(picture.metadata, exif=None)), image_format, quality)


def check_size(width: int, height: int, image_format: str) -> None:
    """Refuses what a format cannot hold; cheap, so that nobody computes for an hour to learn of it.

    Raises:
        ImageError: more pixels a side than `MOST_PIXELS_A_SIDE`.
    """
    most = MOST_PIXELS_A_SIDE.get(image_format)
    if most is not None and max(width, height) > most:
        raise ImageError(
            f"{width}x{height} pixels do not fit into {image_format}, which has room for {most} a side; "
            "write TIFF or PNG (--format)"
        )


def fits_jpeg(data: bytes | None) -> bool:
    """Whether a JPEG file can hold so long an EXIF, XMP or IPTC."""
    return len(data or b"") <= JPEG_SEGMENT


def writable_formats() -> frozenset[str]:
    """Those of `FORMATS` that can be written here."""
    register_heif()
    Image.init()
    return frozenset(name for name in FORMATS if name in Image.SAVE)


def _encode_by_pillow(picture: Picture, image_format: str, quality: int) -> bytes:
    image = Image.fromarray(_merge(picture))
    metadata = picture.metadata
    options: dict[str, Any] = {}
    if image_format == "JPEG":  # whose segments are short; one that is too long would cost the picture
        metadata = replace(
            metadata,
            exif=metadata.exif if fits_jpeg(metadata.exif) else None,
            xmp=metadata.xmp if fits_jpeg(metadata.xmp) else None,
            iptc=metadata.iptc if fits_jpeg(metadata.iptc) else None,
        )
        options["extra"] = b"".join(_jpeg_segments(metadata))
    if metadata.exif and image_format != "BMP":
        options["exif"] = EXIF_PREFIX + metadata.exif
    if profile := _profile(picture):
        options["icc_profile"] = profile
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    if metadata.xmp and image_format != "JPEG":
        options["xmp"] = metadata.xmp
    if image_format == "JPEG":
        optimize = image.width * image.height <= OPTIMIZED_PIXELS
        options |= {"quality": quality, "subsampling": "4:4:4", "optimize": optimize}
        if metadata.comment:
            options["comment"] = metadata.comment
    elif image_format == "PNG":
        text = PngImagePlugin.PngInfo()
        if metadata.xmp:
            text.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
        options["pnginfo"] = text
        options["exif"] = metadata.exif or b""
    elif image_format == "WEBP":
        options |= {"quality": quality, "exact": True}  # colours under full transparency are the user's too
        if metadata.compression == "lossless":
            options |= {"lossless": True, "quality": LOSSLESS_EFFORT}
    elif image_format == "AVIF":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    elif image_format == "HEIF":
        options |= {"quality": quality, "chroma": 444}
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _jpeg_segments(metadata: Metadata) -> Iterator[bytes]:
    """What Pillow does not write, or not in this order: XMP's packet is to come before what continues it."""
    if metadata.iptc:
        yield segment(b"\xed", b"Photoshop 3.0\0" + _photoshop_resource(metadata.iptc))
    if metadata.xmp:
        yield segment(b"\xe1", XMP_PACKET + metadata.xmp)
    if metadata.xmp_extension:
        yield metadata.xmp_extension


def _photoshop_resource(iptc: bytes) -> bytes:
    """An IIM stream as Photoshop's resource, without a name and of an even length."""
    return struct.pack(">4sHHI", b"8BIM", IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def _merge(picture: Picture) -> Samples:
    """The samples as they are stored: grey, grey and alpha, RGB or RGBA."""
    colour = luma(picture.rgb)[..., None] if picture.grey else picture.rgb
    if picture.alpha is None:
        return colour[..., 0] if picture.grey else colour
    return np.concatenate((colour, picture.alpha[..., None]), axis=2)


def _to_8_bit(samples: Samples | None) -> Any:
    return None if samples is None else np.rint(samples / np.float32(257)).astype(np.uint8)


def _profile(picture: Picture) -> bytes | None:
    """The ICC profile, unless it describes another colour space than the samples have."""
    profile = picture.metadata.icc_profile
    if profile and profile[16:20] != (b"GRAY" if picture.grey else b"RGB "):
        return None
    return profile


def _encode_png(picture: Picture) -> bytes:
    """The pixels packed here, beside Pillow's metadata chunks.

    Pillow writes 16 bits only for grey, and tries five filters on each row, which takes most of its time. Here each
    row is the difference to the one above.
    """
    samples = np.atleast_3d(_merge(picture))
    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, colour_type, 0, 0, 0)
    pixel = replace(picture, rgb=np.zeros((1, 1, 3), np.uint8), alpha=None)
    chunks = [PNG_SIGNATURE, _png_chunk(b"IHDR", header), picture.metadata.png_colour or b""]
    chunks += [*png_chunks(_encode_by_pillow(pixel, "PNG", 0), METADATA_CHUNKS), picture.metadata.png_text or b""]
    deflate, packed = isal_zlib.compressobj(DEFLATE_LEVEL), []
    above = np.zeros((1, samples[0].nbytes), np.uint8)
    band = max(1, PNG_BAND // samples[0].nbytes)
    for top in range(0, height, band):
        rows = samples[top : top + band]
        rows = rows.astype(rows.dtype.newbyteorder(">"), copy=False).reshape(len(rows), -1).view(np.uint8)
        filtered = np.full((len(rows), 1 + rows.shape[1]), PNG_FILTER_UP, np.uint8)
        np.subtract(rows[:1], above, out=filtered[:1, 1:])
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
        packed.append(deflate.compress(filtered))
        above = rows[-1:]
    packed.append(deflate.flush())
    chunks += [_png_chunk(b"IDAT", piece) for piece in packed if piece]
    return b"".join((*chunks, _png_chunk(b"IEND", b"")))


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", isal_zlib.crc32(kind + content))


def _encode_tiff(picture: Picture) -> bytes:
    """One strip, deflated unless the source was not, behind a directory by Pillow.

    Pillow's own writer has 16 bits only for grey without alpha, and takes EXIF or XMP but not both.
    """
    metadata = picture.metadata
    if picture.grey and picture.alpha is not None and picture.rgb.dtype == np.uint16:
        picture = replace(picture, grey=False)  # which few programs can read
    samples = _merge(picture)
    samples = np.atleast_3d(samples).astype(samples.dtype.newbyteorder("<"), order="C")
    height, width, channels = samples.shape
    raw = metadata.compression == "raw"
    if raw:
        strip = samples.tobytes()
    else:  # differences of neighbours compress better
        samples[:, 1:] -= samples[:, :-1].copy()
        strip = isal_zlib.compress(samples, DEFLATE_LEVEL)

    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    if metadata.exif:
        exif = Image.Exif()
        exif.load(EXIF_PREFIX + metadata.exif)
        for tag in exif:
            directory[tag] = dict(exif.get_ifd(tag)) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else exif[tag]
    directory[256], directory[257] = width, height
    directory[258] = (8 * samples.itemsize,) * channels
    directory[259] = 1 if raw else 8  # deflate
    directory[262] = 1 if picture.grey else 2
    directory[273], directory[277], directory[278], directory[279] = 0, channels, height, len(strip)
    if not raw:
        directory[317] = 2  # differences
    if picture.alpha is not None:
        directory[338] = 2  # not multiplied into the colours
    if metadata.dpi:
        directory[282], directory[283], directory[296] = *metadata.dpi, 2
    resource = _photoshop_resource(metadata.iptc) if metadata.iptc else None
    for tag, content, kind in (
        (XMP_TIFF_TAG, metadata.xmp, 1),
        (PHOTOSHOP_TIFF_TAG, resource, 1),
        (ICC_TIFF_TAG, _profile(picture), 7),
    ):
        if content:
            directory[tag] = content
            directory.tagtype[tag] = kind
    buffer = io.BytesIO()
    directory.save(buffer)
    return buffer.getvalue() + strip
