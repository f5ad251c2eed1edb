"""Pictures come back from a file with all that was in it, and damaged files are named for what they are."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import random_pixels
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from sapnet_cli.errors import ImageError
from sapnet_cli.files import make_folder, write_atomically
from sapnet_cli.imaging.exif import tiff_entry, upright
from sapnet_cli.imaging.picture import FORMATS, Metadata, Picture
from sapnet_cli.imaging.read import decode, segment
from sapnet_cli.imaging.write import PNG_BAND, encode, writable_formats

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:rights="me"/></x:xmpmeta>'
LOSSLESS = ("PNG", "TIFF", "BMP")


def save(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = orientation, "A camera", "somebody"
    exif.get_ifd(0x8769).update({0x829A: 0.004, 0x927C: b"maker's own\0\1\2"})
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 30.0, 0.0)})
    return exif


@pytest.mark.parametrize("image_format", sorted(FORMATS))
def test_formats_and_metadata(image_format: str) -> None:
    if image_format not in writable_formats():
        pytest.skip(f"this Pillow cannot write {image_format}")
    pixels = random_pixels(33, 47)
    options: dict[str, Any] = {"dpi": (300, 300)}
    if image_format != "BMP":
        options |= {"exif": photo_exif().tobytes(), "icc_profile": PROFILE}
    if image_format in ("JPEG", "WEBP", "AVIF"):
        options["xmp"] = XMP
    if image_format == "WEBP":
        options["lossless"] = True
    data = save(Image.fromarray(pixels), image_format, **options)

    picture = decode(data)
    again = Image.open(io.BytesIO(encode(picture, image_format, 100)))
    assert again.format == image_format
    assert again.size == (47, 33)
    error = np.abs(np.asarray(again.convert("RGB")).astype(int) - pixels)
    assert error.mean() <= (0 if image_format in LOSSLESS else 12)  # blocks of noise are hard on the others
    if image_format == "BMP":
        return
    exif = again.getexif()
    assert exif[0x010F] == "A camera"
    assert exif[0x8298] == "somebody"
    assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(0.004)
    assert exif.get_ifd(0x8769)[0x927C] == b"maker's own\0\1\2"
    assert exif.get_ifd(0x8825)[1] == "N"
    assert again.info["icc_profile"] == PROFILE
    if image_format in ("JPEG", "PNG", "TIFF"):
        assert again.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    if "xmp" in options:
        assert again.info["xmp"].rstrip(b"\0") == XMP


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(orientation: int, image_format: str) -> None:
    pixels = random_pixels(16, 40)
    extra = {"lossless": True} if image_format == "WEBP" else {"quality": 100} if image_format == "JPEG" else {}
    data = save(Image.fromarray(pixels), image_format, exif=photo_exif(orientation), **extra)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))

    picture = decode(data)
    assert np.array_equal(picture.rgb, expected)
    again = Image.open(io.BytesIO(encode(picture, image_format)))
    assert again.size == (expected.shape[1], expected.shape[0])
    assert again.getexif().get(0x0112, 1) == 1
    assert again.getexif()[0x010F] == "A camera"


def test_orientation_in_xmp_follows() -> None:
    data = save(Image.fromarray(random_pixels(16, 40)), "JPEG", exif=photo_exif(6), xmp=XMP)
    assert decode(data).metadata.xmp == XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("said", [b'="6"', b"='6'", b' = "6"'])
def test_orientation_in_the_xmp_of_a_tiff_follows(said: bytes) -> None:
    """Pillow turns these, and takes out of XMP only what is written in its way."""
    xmp = XMP.replace(b'="6"', said)
    data = save(Image.fromarray(random_pixels(16, 40)), "TIFF", tiffinfo={274: 6, 700: xmp})
    picture = decode(data)
    assert picture.size == (16, 40)
    assert picture.metadata.xmp is not None
    assert b"6" not in picture.metadata.xmp


def test_exif_that_cannot_be_written_does_not_cost_the_picture() -> None:
    broken = Metadata(exif=b"II*\0\xff\xff\xff\x7f", icc_profile=PROFILE)
    picture = decode(encode(Picture(random_pixels(8, 8), metadata=broken), "TIFF"))
    assert picture.metadata.icc_profile == PROFILE
    assert picture.metadata.exif is None


def test_memory_that_ends_is_no_fault_of_the_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "save", exhausted)
    with pytest.raises(MemoryError):
        encode(Picture(random_pixels(8, 8), metadata=Metadata(exif=photo_exif().tobytes()[6:])), "JPEG", 90)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_stay(image_format: str, channels: int) -> None:
    samples = random_pixels(20, 30, "uint16")
    alpha = random_pixels(20, 30, "uint16", seed=7)[..., 0] if channels in (2, 4) else None
    grey = channels < 3
    if grey:
        samples = np.repeat(samples[..., :1], 3, axis=2)
    metadata = Metadata(photo_exif().tobytes().removeprefix(b"Exif\0\0"), PROFILE, XMP, dpi=(240.0, 240.0))
    data = encode(Picture(samples, alpha, grey, image_format, metadata), image_format)

    picture = decode(data)
    assert picture.rgb.dtype == np.uint16
    assert np.array_equal(picture.rgb, samples)
    assert picture.grey == (grey and (channels, image_format) != (2, "TIFF"))
    assert (picture.alpha is None) == (alpha is None)
    if alpha is not None:
        assert np.array_equal(picture.alpha, alpha)
    assert picture.metadata.dpi == pytest.approx((240, 240), abs=0.1)
    assert picture.metadata.icc_profile == (PROFILE if not picture.grey else None)
    assert picture.metadata.xmp is not None
    assert b'dc:rights="me"' in picture.metadata.xmp
    exif = Image.open(io.BytesIO(data)).getexif()
    assert exif[0x010F] == "A camera"
    assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(0.004)
    if channels == 3:  # other programs read it too
        assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1], samples)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_of_several_bands_is_read_by_others(dtype: str) -> None:
    samples = np.rot90(random_pixels(1700, 1500, dtype))  # not in one piece in memory
    samples[300:900] //= 16  # some of which deflates better
    data = encode(Picture(samples), "PNG")
    assert samples.nbytes > PNG_BAND
    assert data.count(b"IDAT") > 1
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1], samples)
    assert np.array_equal(decode(data).rgb, samples)
    assert np.array_equal(decode(encode(Picture(samples), "TIFF")).rgb, samples)


def test_16_bits_from_other_programs() -> None:
    samples = random_pixels(20, 30, "uint16")
    for ending in (".png", ".tiff"):
        data = cv2.imencode(ending, samples[..., ::-1])[1].tobytes()
        assert np.array_equal(decode(data).rgb, samples)
    picture = decode(save(Image.fromarray(samples[..., 0]), "PNG"))
    assert picture.grey
    assert np.array_equal(picture.rgb[..., 1], samples[..., 0])
    eight = Image.open(io.BytesIO(encode(picture, "JPEG")))
    assert eight.mode == "L"


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("mode", "grey", "alpha"), [("L", True, False), ("LA", True, True), ("RGBA", False, True), ("1", True, False)]
)
def test_modes(mode: str, grey: bool, alpha: bool, image_format: str) -> None:
    rgba = Image.fromarray(np.dstack((random_pixels(20, 30), random_pixels(20, 30, seed=3)[..., :1])))
    image = rgba.convert(mode)
    picture = decode(save(image, image_format))
    assert (picture.grey, picture.alpha is not None) == (grey, alpha)
    again = Image.open(io.BytesIO(encode(picture, image_format)))
    assert again.mode == ("L" if mode == "1" else mode)
    assert np.array_equal(np.asarray(again.convert("RGBA")), np.asarray(image.convert("RGBA")))


def test_colours_under_full_transparency_stay() -> None:
    pixels = np.dstack((random_pixels(16, 16), np.zeros((16, 16, 1), np.uint8)))
    for image_format in ("PNG", "TIFF"):
        picture = decode(save(Image.fromarray(pixels), image_format))
        again = decode(encode(picture, image_format))
        assert np.array_equal(again.rgb, pixels[..., :3])
        assert np.array_equal(again.alpha, pixels[..., 3])


def test_palette_with_and_without_transparency() -> None:
    image = Image.fromarray(random_pixels(20, 30)).quantize(16)
    assert np.array_equal(decode(save(image, "PNG")).rgb, np.asarray(image.convert("RGB")))
    picture = decode(save(image, "PNG", transparency=3))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, np.asarray(image) == 3)


def test_cmyk_becomes_rgb_and_says_so() -> None:
    pixels = random_pixels(32, 32)
    data = save(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=98, icc_profile=b"\0" * 200)
    picture = decode(data)
    assert np.abs(picture.rgb.astype(int) - pixels).mean() < 4
    again = Image.open(io.BytesIO(encode(picture, "JPEG")))
    assert again.mode == "RGB"
    assert again.info["icc_profile"][16:20] == b"RGB "


def test_jpeg_is_444_and_quality_counts() -> None:
    picture = Picture(random_pixels(64, 64), format="JPEG")
    best, worst = encode(picture, "JPEG", 95), encode(picture, "JPEG", 20)
    assert len(worst) < len(best)
    assert [layer[1:3] for layer in Image.open(io.BytesIO(best)).layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_thumbnail_of_the_rain_is_cut_off() -> None:
    ifd = struct.pack("<HHHII", 1, 0x0112, 3, 1, 6)
    exif = b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", 26) + b"thumbnail directory"
    orientation, edited = upright(exif)
    assert orientation == 6
    assert edited is not None
    assert edited[8 + 2 + 12 :][:4] == b"\0\0\0\0"
    assert edited[26:] == exif[26:]


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"garbage", b"MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_is_dropped(exif: bytes) -> None:
    assert upright(exif) == (1, None)


def test_multipage_tiff_is_counted() -> None:
    pages = [Image.fromarray(random_pixels(8, 8, seed=seed)) for seed in range(3)]
    assert decode(save(pages[0], "TIFF", save_all=True, append_images=pages[1:])).frames == 3


@pytest.mark.parametrize(("tag", "kind", "value"), [(254, 4, 1), (50706, 1, b"\1\4\0\0")])
def test_previews_of_raw_files_are_not_taken_for_the_photo(tag: int, kind: int, value: int | bytes) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[tag], directory.tagtype[tag] = value, kind
    with pytest.raises(ImageError, match="raw file"):
        decode(save(Image.fromarray(random_pixels(8, 8)), "TIFF", tiffinfo=directory))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_announcing(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"once upon a time" * 10, "not a picture"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "not a picture|damaged"),
        (png_announcing(40_000, 40_000), "megapixels|bomb"),
        (png_announcing(100_000, 100_000), "megapixels|bomb"),
        (png_announcing(20, 20), "damaged"),
        (b"GIF89a" + bytes(50), "GIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(50), "raw file"),
        (b"\0\0\0\x20ftypisom" + bytes(50), "video"),
    ],
)
def test_bad_files(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as raised:
        decode(data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_files(image_format: str) -> None:
    data = save(Image.fromarray(random_pixels(64, 64)), image_format)
    with pytest.raises(ImageError):
        decode(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_truncated_16_bit_files(ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    data = cv2.imencode(ending, noise)[1].tobytes()
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2])


def test_limit_of_megapixels() -> None:
    data = save(Image.fromarray(random_pixels(100, 100)), "PNG")
    assert decode(data, 0.01).size == (100, 100)
    with pytest.raises(ImageError, match="raise --max-megapixels"):
        decode(data, 0.009)


def test_float_tiff_is_refused() -> None:
    with pytest.raises(ImageError, match="32 bits"):
        decode(save(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_tiff_stays_raw_or_compressed() -> None:
    for compression, expected in (("raw", "raw"), ("tiff_lzw", "tiff_adobe_deflate")):
        data = save(Image.fromarray(random_pixels(8, 8)), "TIFF", compression=compression)
        again = Image.open(io.BytesIO(encode(decode(data), "TIFF")))
        assert isinstance(again, TiffImagePlugin.TiffImageFile)
        assert again.info["compression"] == expected


def test_transparency_is_left_out_where_there_is_none() -> None:
    picture = Picture(random_pixels(8, 8), np.zeros((8, 8), np.uint8))
    assert Image.open(io.BytesIO(encode(picture, "JPEG"))).mode == "RGB"
    assert decode(encode(replace(picture, grey=True), "WEBP")).alpha is not None


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "photo.png"
    write_atomically(target, b"old")
    target.chmod(0o640)
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640

    def full(self: Path, other: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space") as told:
        write_atomically(target, b"half")
    assert told.value.filename == str(target)
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    library, album = tmp_path / "library", tmp_path / "album"
    library.mkdir()
    album.mkdir()
    (library / "photo.png").write_bytes(b"old")
    (album / "photo.png").symlink_to("../library/photo.png")
    (album / "new.png").symlink_to("../library/new.png")
    write_atomically(album / "photo.png", b"new")
    write_atomically(album / "new.png", b"first")
    assert (album / "photo.png").is_symlink()
    assert (library / "photo.png").read_bytes() == b"new"
    assert (library / "new.png").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["new.png", "new.png", "photo.png", "photo.png"]
    (album / "circle.png").symlink_to("circle.png")
    make_folder(album / "circle.png")
    write_atomically(album / "circle.png", b"new")
    assert (album / "circle.png").read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may write for others")
def test_a_file_that_is_replaced_stays_its_owners(tmp_path: Path) -> None:
    target = tmp_path / "photo.png"
    target.write_bytes(b"old")
    os.chown(target, 1234, 5678)
    write_atomically(target, b"new")
    assert (target.stat().st_uid, target.stat().st_gid) == (1234, 5678)


def test_what_replaces_a_file_reaches_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, replace_path = tmp_path / "photo.png", Path.replace
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))

    def rename(self: Path, other: Path) -> Path:
        sizes.append(-1)
        return replace_path(self, other)

    monkeypatch.setattr(Path, "replace", rename)
    write_atomically(target, b"old")
    assert sizes == [-1], "nothing is lost with a new file"
    write_atomically(target, b"newer")
    assert sizes == [-1, 5, -1]


def iptc_in_jpeg(iptc: bytes) -> bytes:
    other, padding = b"8BIM\4\x0a\0\0\0\0\0\1\1\0", b"\0" * (len(iptc) % 2)
    content = b"Photoshop 3.0\0" + other + b"8BIM\4\4\0\0" + struct.pack(">I", len(iptc)) + iptc + padding
    return save(Image.fromarray(random_pixels(8, 8)), "JPEG", extra=segment(b"\xed", content))


def tiff_of(samples: NDArray[Any], order: str = "<", **tags: tuple[int, int, Any]) -> bytes:
    """A file of (H, W) or (H, W, C) samples in one raw strip; `tags`: number, kind and value."""
    height, width, channels = np.atleast_3d(samples).shape
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0" if order == "<" else b"MM\0*\0\0\0\0")
    directory[256], directory[257], directory[258] = width, height, (8 * samples.itemsize,) * channels
    directory[259], directory[262], directory[273], directory[277] = 1, 1 if channels == 1 else 2, 0, channels
    directory[278], directory[279] = height, samples.nbytes
    for number, kind, value in tags.values():
        directory.tagtype[number] = kind
        directory[number] = value
    buffer = io.BytesIO()
    directory.save(buffer)
    return buffer.getvalue() + samples.astype(samples.dtype.newbyteorder(order)).tobytes()


@pytest.mark.parametrize("target", ["JPEG", "TIFF"])
@pytest.mark.parametrize("source", ["JPEG", "TIFF", "TIFF, big end first"])
@pytest.mark.parametrize("iptc", [b"\x1c\2\x78\0\7rain on", b"\x1c\2\x50\0\3me!"])
def test_captions_of_the_press_stay(source: str, target: str, iptc: bytes) -> None:
    if source == "JPEG":
        data = iptc_in_jpeg(iptc)
    else:
        data = tiff_of(random_pixels(2, 2), ">" if "big" in source else "<", iptc=(33723, 7, iptc))
    picture = decode(data)
    assert picture.metadata.iptc == iptc
    assert decode(encode(picture, target)).metadata.iptc == iptc


def test_an_entry_of_numbers_is_given_as_it_is_stored() -> None:
    """As many programs declare captions."""
    entries = struct.pack(">HHII", 270, 2, 4, 0) + struct.pack(">HHII", 33723, 4, 2, 38)
    assert tiff_entry(b"MM\0*\0\0\0\x08\0\2" + entries + bytes(4) + b"captions" + b"else", 33723) == b"captions"
    assert tiff_entry(b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI4s", 33723, 4, 1, b"four"), 33723) == b"four"


def test_white_may_be_zero_in_16_bits() -> None:
    grey = random_pixels(8, 8, "uint16")[..., 0]
    picture = decode(tiff_of(grey, white=(262, 3, 0)))
    assert picture.grey
    assert np.array_equal(picture.rgb[..., 0], 65535 - grey)


def test_colours_of_16_bits_under_transparency_are_as_bright_as_they_look() -> None:
    colour, alpha = random_pixels(8, 8, "uint16"), random_pixels(8, 8, "uint16", seed=1)[..., :1] // 2 + 1000
    premultiplied = np.rint(colour * (alpha / 65535)).astype(np.uint16)
    picture = decode(tiff_of(np.concatenate((premultiplied, alpha), axis=2), premultiplied=(338, 3, 1)))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, alpha[..., 0])
    assert np.abs(picture.rgb.astype(int) - colour).max() <= 40  # of 65535: what is left of it where alpha is 1000


def test_planes_of_16_bits_are_refused_and_those_of_8_read() -> None:
    for dtype in ("uint8", "uint16"):
        pixels = random_pixels(8, 6, dtype)
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        size = planes[0].nbytes
        whole = tiff_of(pixels, planar=(284, 3, 2), offsets=(273, 4, (0, 0, 0)), counts=(279, 4, (size,) * 3))
        start = len(whole) - planes.nbytes
        found = struct.pack("<3I", start, start, start)
        assert found in whole
        data = whole[:start].replace(found, struct.pack("<3I", start, start + size, start + 2 * size))
        if dtype == "uint8":
            assert np.array_equal(decode(data + planes.tobytes()).rgb, pixels)
        else:
            with pytest.raises(ImageError, match="stored apart"):
                decode(data + planes.tobytes())


def test_a_transparent_colour_of_16_bits_stays_transparent() -> None:
    pixels = random_pixels(8, 8, "uint16")
    plain = encode(Picture(pixels), "PNG")
    picture = decode(plain[:33] + png_chunk(b"tRNS", pixels[0, 0].astype(">u2").tobytes()) + plain[33:])
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, (pixels == pixels[0, 0]).all(axis=2))


def test_what_png_says_of_its_colours_stays() -> None:
    plain = save(Image.fromarray(random_pixels(8, 8)), "PNG")
    chunks = png_chunk(b"gAMA", struct.pack(">I", 100_000)) + png_chunk(b"cICP", bytes((9, 16, 0, 1)))
    picture = decode(plain[:33] + chunks + plain[33:])
    again = encode(picture, "PNG")
    assert again[33 : 33 + len(chunks)] == chunks
    assert np.array_equal(decode(again).rgb, picture.rgb)
    assert decode(plain).metadata.png_colour is None
    assert decode(encode(picture, "JPEG")).metadata.png_colour is None


def test_text_of_png_stays() -> None:
    plain = save(Image.fromarray(random_pixels(8, 8)), "PNG")
    before = png_chunk(b"tEXt", b"Copyright\0me") + png_chunk(b"zTXt", b"Author\0\0" + zlib.compress(b"me"))
    behind = png_chunk(b"iTXt", b"Title\0\0\0\0\0R\xc3\xa4in")
    damaged = before[:20] + b"?" + before[21:]
    xmp = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>")
    picture = decode(plain[:33] + before + xmp + plain[33:-12] + behind + damaged[:24] + plain[-12:])
    image = Image.open(io.BytesIO(encode(picture, "PNG")))
    image.load()
    assert image.text == {"XML:com.adobe.xmp": "<x:xmpmeta/>", "Copyright": "me", "Author": "me", "Title": "Räin"}
    assert encode(picture, "PNG").count(b"xmpmeta") == 1
    assert decode(plain).metadata.png_text is None


def test_a_jpeg_keeps_its_comment() -> None:
    data = save(Image.fromarray(random_pixels(8, 8)), "JPEG", comment=b"Rue de Rivoli")
    picture = decode(data)
    assert Image.open(io.BytesIO(encode(picture, "JPEG"))).info["comment"] == b"Rue de Rivoli"
    assert "comment" not in Image.open(io.BytesIO(encode(picture, "WEBP"))).info


@pytest.mark.parametrize(
    ("colours", "message"), [((9, 16), "HDR"), ((9, 18), "HDR"), ((12, 13), "wider than sRGB"), ((2, 2), None)]
)
def test_colours_that_would_be_taken_for_srgb(colours: tuple[int, int], message: str | None) -> None:
    plain = save(Image.fromarray(random_pixels(32, 32)), "AVIF")
    data = plain.replace(b"colrnclx\0\1\0\x0d", b"colrnclx" + struct.pack(">2H", *colours))
    assert data != plain
    if message is None:
        assert decode(data).depth == 8
        return
    with pytest.raises(ImageError, match=message):
        decode(data)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = save(Image.fromarray(random_pixels(32, 32)), "AVIF", icc_profile=profile)
    assert decode(with_profile).metadata.icc_profile == profile


def test_ten_bits_are_said_to_become_eight(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    samples = random_pixels(64, 64, "uint16")
    heif.from_bytes(mode="RGB;16", size=(64, 64), data=samples.tobytes()).save(tmp_path / "ten.heic")
    assert decode((tmp_path / "ten.heic").read_bytes()).depth > 8


@pytest.mark.parametrize("alpha", [False, True])
def test_webp_without_loss_stays_so(alpha: bool) -> None:
    pixels = random_pixels(33, 20)
    image = Image.fromarray(np.dstack((pixels, pixels[..., 0])) if alpha else pixels)
    options: dict[str, Any] = {"exif": photo_exif()} if alpha else {}  # which makes it an extended file
    without, with_loss = save(image, "WEBP", lossless=True, exact=True, **options), save(image, "WEBP", **options)
    assert np.array_equal(decode(encode(decode(without), "WEBP")).rgb, pixels)
    assert decode(with_loss).metadata.compression is None


def test_bmp_of_16_bits_a_pixel_is_read() -> None:
    row = struct.pack("<2H", 0xF800, 0x001F)  # red, blue
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, len(row), 0, 0, 0, 0)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    data = b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + header + masks + row
    assert decode(data).rgb.tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("resources", [b"8BIM\4\4\0\0\xff\xff", b"8BIM", b"8BIM\4\4\0\0\0\0\0\0", b"nothing"])
def test_damaged_resources_do_not_cost_the_picture(resources: bytes) -> None:
    picture = decode(tiff_of(random_pixels(3, 5), resources=(34377, 7, resources)))
    assert picture.size == (5, 3)
    assert picture.metadata.iptc is None


@pytest.mark.parametrize(
    "tiff", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"II+\0" + bytes(40)]
)
def test_no_entry_in_a_damaged_structure(tiff: bytes) -> None:
    assert tiff_entry(tiff, 33723) is None


def test_what_continues_xmp_stays_behind_it() -> None:
    guid = b"0123456789ABCDEF0123456789ABCDEF"
    packet = XMP.replace(b" dc:", b' xmpNote:HasExtendedXMP="' + guid + b'" dc:')
    whole = random_pixels(200, 250).tobytes()
    extension = b""
    for start in range(0, len(whole), 65_000):
        part = guid + struct.pack(">II", len(whole), start) + whole[start : start + 65_000]
        extension += segment(b"\xe1", b"http://ns.adobe.com/xmp/extension/\0" + part)
    plain = save(Image.fromarray(random_pixels(8, 8)), "JPEG", xmp=packet)
    picture = decode(plain[:2] + extension + plain[2:])  # in any order
    again = encode(picture, "JPEG")
    assert again.count(extension) == 1
    assert -1 < again.index(packet) < again.index(extension)
    assert decode(again).metadata == picture.metadata
    assert decode(encode(picture, "PNG")).metadata.xmp == packet


def test_metadata_too_long_for_jpeg_do_not_cost_the_picture() -> None:
    metadata = Metadata(
        exif=photo_exif().tobytes()[6:] + b"\0" * 70_000, xmp=b"x" * 70_000, iptc=b"y" * 70_000, icc_profile=PROFILE
    )
    image = Image.open(io.BytesIO(encode(Picture(random_pixels(8, 8), metadata=metadata), "JPEG")))
    assert image.info["icc_profile"] == PROFILE
    assert "exif" not in image.info
