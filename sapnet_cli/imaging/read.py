"""Encoded bytes to pictures."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError, _imaging

from sapnet_cli.errors import ImageError
from sapnet_cli.imaging.exif import EXIF_PREFIX, still_xmp, tiff_entry, upright, upright_xmp
from sapnet_cli.imaging.picture import FORMATS, Metadata, Picture, Samples

MAX_MEGAPIXELS = 256

log = logging.getLogger(__name__)

# tags that describe how the pixels of a TIFF file are stored, not what they show
TIFF_STRUCTURE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 266, 269, 273, 277, 278, 279, 280, 281, 282, 283, 284, 288, 289, 290}
    | {291, 292, 293, 296, 297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347}
    | {512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700, 33723, 34377, 34675, 37724}
)

RAW = "a camera's raw file, or one that begins with a preview; develop it to TIFF or JPEG first"
OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "a GIF is not read; save it as PNG first"),
    (0, b"8BPS", "a Photoshop document is not read; save it as TIFF or PNG first"),
    (0, b"%PDF", "a PDF is not read; save its pages as PNG first"),
    (0, b"\xff\x0a", "JPEG XL is not read; save it as PNG first"),
    (4, b"JXL ", "JPEG XL is not read; save it as PNG first"),
    (4, b"jP  ", "JPEG 2000 is not read; save it as PNG first"),
    (4, b"ftypcrx ", RAW),  # Canon's CR3, of the same family as HEIC
    (8, b"CR\x02", RAW),  # Canon's CR2, a TIFF file whose first picture is a preview
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"IIRO", RAW),  # Olympus
    (0, b"IIRS", RAW),
    (0, b"IIU\0", RAW),  # Panasonic
    (4, b"ftypisom", "a video is not read; save its frames as pictures first"),
    (4, b"ftypmp4", "a video is not read; save its frames as pictures first"),
    (4, b"ftypqt", "a video is not read; save its frames as pictures first"),
)
"""Where in a file which bytes say that it is what people try, but sapnet does not read, and what to do."""

FILM = re.compile(rb"ftyp(?:mp4|iso|qt  |avc|M4V|MSNV)")
"""How a video begins; behind a JPEG or HEIC it is that of a motion photo."""

AVIF_COLOURS = re.compile(rb"colrnclx(.{4})", re.DOTALL)
AVIF_DEPTH = re.compile(rb"pixi\0{4}[\1-\4]([\1-\x10])")
"""Of the first picture that a file describes, which is the one that is shown; gain maps and masks follow."""

HDR_TRANSFERS, NARROW_PRIMARIES = (16, 18), (1, 2, 5, 6)

IPTC_RESOURCE, IPTC_TIFF_TAG = 0x0404, 33723
"""Where Photoshop's resources, and where a TIFF file, hold an IIM stream."""

XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
"""How the content of a JPEG's segment begins that continues XMP of more than 64 KB (XMP specification, part 3)."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR = frozenset({b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI"})
PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
OTHERWISE_KEPT = re.compile(rb"XML:com.adobe.xmp\0|Raw profile type ")
"""What such a chunk begins with if it is XMP, EXIF or the like."""

MIN_IS_WHITE, APART, PREMULTIPLIED = 0, 2, 1
"""Of TIFF's PhotometricInterpretation, PlanarConfiguration and ExtraSamples."""

TIFF_PHOTOMETRIC, TIFF_PLANAR, TIFF_EXTRA_SAMPLES = 262, 284, 338
TIFF_SUBFILE_TYPE = 254
REDUCED_RESOLUTION = 1
DNG_VERSION = 50706


def prepare_decoders() -> None:
    """Sets what holds for the whole process: for programs, not for libraries.

    What is wrong with a picture `decode` says, where its name is known: Pillow does not warn of it, and libtiff does
    not write of it to standard error. And `max_megapixels` takes the place of Pillow's own limit.
    """
    warnings.filterwarnings("ignore", module="PIL")
    Image.MAX_IMAGE_PIXELS = None
    with contextlib.suppress(OSError, AttributeError):  # as Pillow may be built in other ways
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def decode(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> Picture:
    """Decodes a picture, upright, with its metadata.

    Args:
        data: the whole content of a file.
        max_megapixels: a header that announces more is taken for a decompression bomb.

    Raises:
        ImageError: the data is empty, truncated, damaged, too large, or of a kind that is not supported.
    """
    if not data:
        raise ImageError("the file is empty")
    for start, beginning, what in OTHERS:
        if data.startswith(beginning, start):
            raise ImageError(what)
    register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of either shows in the picture or fails below
            image = Image.open(io.BytesIO(data), formats=_readable_formats())
            width, height = image.size
            if width * height > max_megapixels * 1e6:
                raise ImageError(
                    f"{width}x{height} is over the limit of {max_megapixels:g} megapixels; "
                    "raise --max-megapixels if you trust the file"
                )
            if isinstance(image, TiffImagePlugin.TiffImageFile) and _begins_with_a_preview(image):
                raise ImageError(RAW)
            return _to_picture(image, data)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and "HEIF" not in Image.OPEN:
            raise ImageError("HEIC needs a package that is not here: pip install 'sapnet-cli[heic]'") from error
        if data[:4] in TiffImagePlugin.PREFIXES:
            raise ImageError("damaged, or of a kind of TIFF that is not read; save it with 8 or 16 bits") from error
        raise ImageError("not a picture that can be read, or its beginning is damaged") from error
    except Image.DecompressionBombError as error:
        raise ImageError("announces more pixels than is believable (a decompression bomb?)") from error
    except MemoryError as error:
        raise ImageError("too large to decode in the memory that is free") from error
    except Exception as error:  # decoders of damaged data raise whatever they come upon
        reason = str(error).strip().splitlines()
        raise ImageError(f"damaged or truncated ({reason[0] if reason else type(error).__name__})") from error


def _to_picture(image: Image.Image, data: bytes) -> Picture:
    frames = getattr(image, "n_frames", 1)
    image_format = "JPEG" if image.format == "MPO" else cast(str, image.format)
    depths = _bits_per_sample(image)
    image.load()  # finds truncation, which OpenCV would pass over
    orientation, metadata = _metadata(image, image_format, data)

    alpha: Samples | None = None
    if max(depths) == 16 and image.mode in ("RGB", "RGBA"):  # Pillow gives 8 of the 16 bits
        pixels = _decode_16_bit(image, data)
        transparent = pixels.shape[2] == 4 and image.has_transparency_data  # by a channel, or a colour of a PNG
        rgb, alpha = pixels[..., :3], pixels[..., 3] if transparent else None
        grey = _is_grey_png(data)
    elif image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint16)
        if _tiff_number(image, TIFF_PHOTOMETRIC) == MIN_IS_WHITE:  # which Pillow minds only for fewer bits
            samples = ~samples
        rgb, grey = np.repeat(samples[..., None], 3, axis=2), True
    elif max(depths) > 16 or image.mode in ("I", "F"):
        raise ImageError(f"{max(depths)} bits a sample are not supported; save it with 8 or 16")
    else:
        grey = image.mode in ("1", "L", "LA", "La")
        if image.mode == "CMYK":
            image, metadata = _cmyk_to_rgb(image, metadata)
        if image.has_transparency_data:
            pixels = _samples(image, "RGBA")
            rgb, alpha = pixels[..., :3], pixels[..., 3]
        else:
            rgb = _samples(image, "RGB")
    rgb = _turn(rgb, orientation)
    alpha = None if alpha is None else _turn(alpha, orientation)
    film = image_format in ("JPEG", "HEIF") and FILM.search(data) is not None
    if film and metadata.xmp:
        metadata = replace(metadata, xmp=still_xmp(metadata.xmp))
    if image_format not in ("AVIF", "HEIF"):
        return Picture(rgb, alpha, grey, image_format, metadata, frames, film)
    if metadata.icc_profile is None:
        _refuse_colours(image, data)
    return Picture(rgb, alpha, grey, image_format, metadata, frames, film, _depth(image, data))


def _depth(image: Image.Image, data: bytes) -> int:
    """Bits a sample of an AVIF or HEIC file."""
    if depth := image.info.get("bit_depth"):  # of HEIC; Pillow says nothing of AVIF
        return int(depth)
    found = AVIF_DEPTH.search(data)
    return found[1][0] if found else 8


def _refuse_colours(image: Image.Image, data: bytes) -> None:
    """Colours that an AVIF or HEIC file describes by numbers (CICP, ITU-T H.273), and that would be taken for sRGB."""
    if described := image.info.get("nclx_profile"):  # of HEIC; Pillow says nothing of AVIF
        primaries, transfer = described["color_primaries"], described["transfer_characteristics"]
    elif found := AVIF_COLOURS.search(data):
        primaries, transfer = struct.unpack(">HH", found[1])
    else:
        return
    if transfer in HDR_TRANSFERS:
        raise ImageError("an HDR picture (PQ or HLG) is not read; save it as sRGB, or with 16 bits, first")
    if primaries not in NARROW_PRIMARIES:
        raise ImageError("its colours are wider than sRGB, and no ICC profile says so; save it with one first")


def _samples(image: Image.Image, mode: str) -> Samples:
    """In a mode; `convert` would copy what is in it already."""
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _metadata(image: Image.Image, image_format: str, data: bytes) -> tuple[int, Metadata]:
    """The orientation that has still to be applied, and the metadata as they are after that."""
    info = image.info
    exif: bytes | None = info.get("exif")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        exif = _tiff_exif(image)
    elif exif is None and "Raw profile type exif" in info:  # ImageMagick's way in PNG
        exif = image.getexif().tobytes()
    orientation = 1
    if exif:
        orientation, exif = upright(exif.removeprefix(EXIF_PREFIX))
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if xmp and (orientation != 1 or image_format == "TIFF"):  # which Pillow has turned, if need be
        xmp = upright_xmp(xmp)
    dpi = info.get("dpi")
    if dpi is not None:
        dpi = (float(dpi[0]), float(dpi[1]))
        if not all(1 < value < 1e6 for value in dpi):  # Pillow says 1 where a TIFF file says nothing
            dpi = None
    compression = info.get("compression") if image_format == "TIFF" else None
    if image_format == "WEBP" and _is_lossless_webp(data):
        compression = "lossless"
    return orientation, Metadata(
        exif or None,
        info.get("icc_profile") or None,
        xmp or None,
        _iptc(image, data),
        dpi,
        compression if isinstance(compression, str) else None,
        b"".join(png_chunks(data, PNG_COLOUR)) or None,
        b"".join(chunk for chunk in png_chunks(data, PNG_TEXT) if not OTHERWISE_KEPT.match(chunk, 8)) or None,
        info.get("comment") if image_format == "JPEG" else None,
        _xmp_extension(image) or None,
    )


def _xmp_extension(image: Image.Image) -> bytes:
    """The segments of a JPEG that continue its XMP, which Pillow reads past."""
    contents = [content for kind, content in getattr(image, "applist", ()) if kind == "APP1"]
    return b"".join(segment(b"\xe1", content) for content in contents if content.startswith(XMP_EXTENSION))


def segment(marker: bytes, content: bytes) -> bytes:
    """A segment of a JPEG: its marker, 0xff and this byte, its length, its content."""
    return b"\xff" + marker + struct.pack(">H", 2 + len(content)) + content


def _is_lossless_webp(data: bytes) -> bool:
    """By the kind of the first chunk that holds pixels, alone or behind those of an extended file."""
    position, kind = 12, b""
    while position + 8 <= len(data) and kind not in (b"VP8 ", b"VP8L"):
        kind, length = struct.unpack_from("<4sI", data, position)
        position += 8 + (16 if kind == b"ANMF" else length + length % 2)  # frames of a film hold chunks of their own
    return kind == b"VP8L"


def png_chunks(data: bytes, kinds: Collection[bytes]) -> Iterator[bytes]:
    """The whole and undamaged chunks of a PNG of such kinds; none of what is no PNG."""
    position, kind = len(PNG_SIGNATURE), b""
    while data.startswith(PNG_SIGNATURE) and position + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in kinds and data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[position + 4 : end - 4])):
            yield data[position:end]
        position = end


def _iptc(image: Image.Image, data: bytes) -> bytes | None:
    """The IIM stream of a JPEG or TIFF file, where it stands alone or among Photoshop's resources."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.info.get("photoshop", {}).get(IPTC_RESOURCE) or None
    if alone := tiff_entry(data, IPTC_TIFF_TAG):
        return alone
    try:
        return image.get_photoshop_blocks().get(IPTC_RESOURCE, {}).get("data") or None
    except Exception:  # damaged resources must not cost the picture
        return None


def _tiff_exif(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """A TIFF file's own directory without what describes the storage of its pixels."""
    source, exif = image.getexif(), Image.Exif()
    directories = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
    for tag, value in source.items():
        if tag not in TIFF_STRUCTURE and tag not in directories:
            exif[tag] = value
    for directory in directories:
        if entries := source.get_ifd(directory):
            exif.get_ifd(directory).update(entries)
    try:
        return exif.tobytes() if len(exif) else None
    except Exception:  # tags of a kind that Pillow reads but does not write must not cost the picture
        log.warning("some TIFF tags cannot be kept and are left out")
        return None


def _begins_with_a_preview(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Cameras' raw files are TIFF files, mostly, whose first picture is a small one for viewers."""
    kind = image.tag_v2.get(TIFF_SUBFILE_TYPE, 0)
    return bool(kind & REDUCED_RESOLUTION) or DNG_VERSION in image.tag_v2


def _bits_per_sample(image: Image.Image) -> tuple[int, ...]:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(258, (1,))
        return tuple(bits) if isinstance(bits, tuple) else (bits,)
    sixteen = image.format == "PNG" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return (16,) if sixteen or image.mode.startswith("I") else (8,)


def _is_grey_png(data: bytes) -> bool:
    return data.startswith(PNG_SIGNATURE) and data[25] in (0, 4)  # colour type of IHDR: grey, grey with alpha


def _tiff_number(image: Image.Image, tag: int) -> int | None:
    """The first number under a tag of a TIFF file."""
    value = image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    return value[0] if isinstance(value, tuple) else value


def _decode_16_bit(image: Image.Image, data: bytes) -> Samples:
    """Colour and alpha in 16 bits, (H, W, 3 or 4), which Pillow does not give; not turned by the orientation."""
    import cv2

    if _tiff_number(image, TIFF_PLANAR) == APART:  # of which OpenCV makes noise
        raise ImageError("its colours are stored apart; save it with 16 bits interleaved (RGBRGB), or with 8")
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError("this kind of 16-bit file is not supported; save it as plain RGB with 8 or 16 bits")
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    order = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    pixels = cv2.cvtColor(pixels, order)
    if _tiff_number(image, TIFF_EXTRA_SAMPLES) == PREMULTIPLIED and pixels.shape[2] == 4:
        alpha = np.maximum(pixels[..., 3:], 1).astype(np.float32)
        pixels[..., :3] = np.rint(np.minimum(pixels[..., :3] / alpha, 1) * np.iinfo(np.uint16).max)
    return cast(Samples, pixels)


def _cmyk_to_rgb(image: Image.Image, metadata: Metadata) -> tuple[Image.Image, Metadata]:
    """Through the profile of the inks where there is one; what comes out is sRGB and says so."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    converted: Image.Image | None = None
    if metadata.icc_profile:
        try:
            inks = ImageCms.ImageCmsProfile(io.BytesIO(metadata.icc_profile))
            converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None
    converted = converted or image.convert("RGB")
    return converted, replace(metadata, icc_profile=srgb.tobytes())


def _turn(pixels: Samples, orientation: int) -> Samples:
    """Applies an EXIF orientation to (H, W) or (H, W, C)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _readable_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in (*FORMATS, "MPO") if name in Image.OPEN)


def register_heif() -> None:
    """HEIC comes with the optional package pillow-heif."""
    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()
