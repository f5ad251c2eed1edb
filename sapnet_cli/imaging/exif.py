"""Edits of raw metadata: everything that is not touched stays as it is, byte for byte, maker notes included."""

from __future__ import annotations

import re
import struct

EXIF_PREFIX = b"Exif\0\0"
ORIENTATION_TAG = 0x0112
SHORT_TYPE, LONG_TYPE = 3, 4
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
"""By the beginning of a TIFF structure."""


def upright(exif: bytes) -> tuple[int, bytes | None]:
    """Reads the orientation and returns EXIF that says upright, without its thumbnail, which still shows the rain.

    Args:
        exif: a TIFF structure, without the `Exif` prefix.

    Returns:
        The orientation, 1 to 8 (1 where none or a senseless one is set), and the new EXIF, or None if it is damaged.
    """
    order = BYTE_ORDERS.get(exif[:4])
    if order is None:
        return 1, None
    data, orientation = bytearray(exif), 1
    try:
        entries = _entries(data, order)
        for entry in entries:
            tag, kind, values = struct.unpack_from(f"{order}HHI", data, entry)
            if tag == ORIENTATION_TAG and kind == SHORT_TYPE and values == 1:
                (orientation,) = struct.unpack_from(f"{order}H", data, entry + 8)
                struct.pack_into(f"{order}H", data, entry + 8, 1)
        # the second directory, if there is one, holds the thumbnail
        struct.pack_into(f"{order}I", data, entries.stop, 0)
    except struct.error:
        return orientation if 1 <= orientation <= 8 else 1, None
    return orientation if 1 <= orientation <= 8 else 1, bytes(data)


def tiff_entry(tiff: bytes, tag: int) -> bytes | None:
    """What a TIFF structure's first directory holds under a tag of bytes or of numbers of four, as it is stored.

    Args:
        tiff: the structure; only its beginning is looked at where it is a whole file.
        tag: which entry.

    Returns:
        The bytes, or None if there is no such entry or it is damaged.
    """
    order = BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return None
    try:
        for entry in _entries(tiff, order):
            found, kind, values = struct.unpack_from(f"{order}HHI", tiff, entry)
            if found == tag:
                length = values * (4 if kind == LONG_TYPE else 1)
                (start,) = struct.unpack_from(f"{order}I", tiff, entry + 8) if length > 4 else (entry + 8,)
                return tiff[start : start + length] or None
    except struct.error:
        pass
    return None


def _entries(tiff: bytes | bytearray, order: str) -> range:
    """Where the entries of the first directory stand; behind them stands where the next one is."""
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    return range(directory + 2, directory + 2 + 12 * count, 12)


def upright_xmp(xmp: bytes) -> bytes:
    """XMP repeats the orientation as an attribute or an element; both are set to upright."""
    xmp = re.sub(rb'(tiff:Orientation\s*=\s*["\'])[2-8]', rb"\g<1>1", xmp)
    return re.sub(rb"(<tiff:Orientation>)[2-8]", rb"\g<1>1", xmp)


def still_xmp(xmp: bytes) -> bytes:
    """XMP says of a motion photo that its film follows, under a name of now or of before; both are set to no."""
    return re.sub(rb'(:(?:MotionPhoto|MicroVideo)(?:\s*=\s*["\']|>))1', rb"\g<1>0", xmp)
