"""The command as users run it: files, streams, exit codes and signals; in a process of its own where that counts."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ENDINGS, EXAMPLES, HANG_UP, PLAIN, hear_signals, invoke, random_model, random_pixels
from PIL import ExifTags, Image
from rich.console import Console
from test_imaging import png_chunk

from sapnet_cli import pipeline
from sapnet_cli.cli.output import Output
from sapnet_cli.cli.output import hear_signals as hear_in_command
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.imaging.picture import FORMAT_OF_SUFFIX, Picture
from sapnet_cli.imaging.read import decode, segment
from sapnet_cli.imaging.write import encode, writable_formats
from sapnet_cli.model.checkpoint import save_checkpoint

COMMAND = [sys.executable, "-m", "sapnet_cli"]
ENVIRONMENT = {**os.environ, **PLAIN}


def run(
    *arguments: str | Path,
    stdin: bytes | None = None,
    env: dict[str, str] = ENVIRONMENT,
) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=env, timeout=300, check=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that compute fast."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(random_model(stages=1), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of good and bad files."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    image = Image.fromarray(random_pixels(40, 60))
    for name in ("a.png", "b.jpg", "sub/c.webp", "d.tiff", "e.bmp"):
        image.save(folder / name)
    Image.fromarray(random_pixels(40, 60, "uint16")[..., 0]).save(folder / "f16.png")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").touch()
    whole = (folder / "a.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    result = run("derain", EXAMPLES, "-o", tmp_path / "clean", "--stages", "1")
    assert result.returncode == 0, result.stderr
    for source in EXAMPLES.iterdir():
        rainy, clean = (np.asarray(Image.open(path)) for path in (source, tmp_path / "clean" / source.name))
        assert rainy.shape == clean.shape
        assert not np.array_equal(rainy, clean)


def test_two_shards_are_the_whole(photos: Path, tmp_path: Path, tiny: Path) -> None:
    for name in ("text.jpg", "empty.png", "half.png"):
        (photos / name).unlink()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    invoke("derain", photos, "-o", whole, "-w", tiny)
    sizes = []
    for shard in ("1/2", "2/2"):
        invoke("derain", photos, "-o", parts, "-w", tiny, "--shard", shard)
        sizes.append(len(snapshot(parts)))
    assert sizes == [3, 6]
    assert snapshot(parts) == snapshot(whole)
    refused = invoke("derain", photos, "-o", parts, "--shard", "3/2", code=2)
    assert "part 3 of 2 does not exist" in refused.stderr


def test_a_damaged_tiff_costs_one_line(tmp_path: Path, tiny: Path) -> None:
    """Decoders would add lines of their own, without a name."""
    pixels = random_pixels(40, 60)
    for name, compression in (("lzw", "tiff_lzw"), ("zip", "tiff_adobe_deflate"), ("jpeg", "jpeg")):
        path = tmp_path / f"{name}.tif"
        Image.fromarray(pixels).save(path, compression=compression)
        data = bytearray(path.read_bytes())
        data[100:400:7] = bytes(len(data[100:400:7]))
        path.write_bytes(data)
    result = run("derain", tmp_path, "-o", tmp_path / "clean", "-w", tiny)
    assert result.returncode == 1
    *lines, summary = result.stderr.decode().splitlines()
    assert [line.split(": ")[1] for line in lines] == [str(path) for path in sorted(tmp_path.glob("*.tif"))]
    assert summary.startswith("3 failed")


def test_self_ensemble_from_the_command(photos: Path, tmp_path: Path, tiny: Path) -> None:
    for name, options in (("once", ()), ("turned", ("--tta",))):
        invoke("derain", photos / "a.png", "-o", tmp_path / f"{name}.png", "-w", tiny, *options)
    once, turned = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("once", "turned"))
    assert 0 < np.abs(once - turned).max() < 100


def test_a_mixed_folder(photos: Path, tmp_path: Path, tiny: Path) -> None:
    before = snapshot(photos)
    result = run("derain", photos, "-o", tmp_path / "clean", "-w", tiny, "--json")
    assert result.returncode == 1
    good = {"a.png", "b.jpg", "d.tiff", "e.bmp", "f16.png", "sub/c.webp"}
    assert set(snapshot(tmp_path / "clean")) == good
    assert snapshot(photos) == before
    with Image.open(tmp_path / "clean" / "f16.png") as image:
        assert image.mode == "I;16"

    *records, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert summary["summary"] is True
    assert (summary["done"], summary["failed"], summary["skipped"]) == (6, 3, 0)
    assert len(records) == 9
    for record in records:
        assert set(record) == {"input", "output", "status", "size", "seconds", "error", "notes", "changed"}
        name = str(Path(record["input"]).relative_to(photos))
        assert record["status"] == ("done" if name in good else "failed")
        assert (record["error"] is None) == (name in good)
        assert record["notes"] == []
        assert record["size"] == ([60, 40] if name in good else None)
        assert (record["changed"] is None) == (name not in good)
        if name == "a.png":
            rainy, clean = (np.asarray(Image.open(folder / name)) for folder in (photos, tmp_path / "clean"))
            assert record["changed"] == pytest.approx(np.abs(rainy.astype(float) - clean).mean(), abs=0.006)
    errors = [line for line in result.stderr.decode().splitlines() if line.startswith("error")]
    assert len(errors) == 3
    assert all(name in "\n".join(errors) for name in ("text.jpg", "empty.png", "half.png"))
    assert b"Traceback" not in result.stderr


def test_photos_that_may_still_have_their_rain_are_named(tmp_path: Path) -> None:
    """By the default weights, which take nothing off the first and much off the last."""
    even = np.full((40, 60, 3), 128, np.uint16)
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(encode(Picture(even * np.uint16(257)), "PNG"))
    with Image.open(EXAMPLES / "rocket.jpg") as image:
        image.crop((60, 20, 188, 148)).save(tmp_path / "rain.png")
    options = ("derain", *(tmp_path / f"{number}.png" for number in range(7)), tmp_path / "rain.png", "-o", tmp_path)
    named = ", ".join(str(tmp_path / f"{number}.png") for number in range(5))
    result = invoke(*options, "--suffix", "_dry")
    assert f"hardly changed: {named} and 2 more; where it rains there, derain again with --insist auto" in result.stderr
    result = invoke("derain", tmp_path / "0.png", tmp_path / "rain.png", "-o", tmp_path, "--suffix", "_dry")
    assert f"hardly changed: {tmp_path / '0.png'}; where it rains there" in result.stderr
    for more in (("--insist", 1), ("--insist", "auto"), ("-q",), ("--stages", 1), ("-w", "sapnet-heavy")):
        assert "hardly changed" not in invoke(*options, "--suffix", "_dry", *more).stderr


def test_what_a_format_cannot_hold_is_said(tmp_path: Path, tiny: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "long " * 20_000
    image = Image.fromarray(random_pixels(20, 30)).convert("RGBA")
    image.save(tmp_path / "a.png", exif=exif)
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(png[:33] + png_chunk(b"cICP", bytes((9, 16, 0, 1))) + png[33:])
    result = invoke("derain", tmp_path / "a.png", "-o", tmp_path / "a.jpg", "-w", tiny)
    assert "JPEG has no room for what this PNG says of its colours (cICP)" in result.stderr
    assert "JPEG has no transparency; it was left out" in result.stderr
    assert "EXIF of 100" in result.stderr
    assert "too long for JPEG; it was left out" in result.stderr
    with Image.open(tmp_path / "a.jpg") as written:
        assert not written.getexif()
    image.convert("RGB").save(
        tmp_path / "b.jpg", extra=segment(b"\xe1", b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40)
    )
    result = invoke("derain", tmp_path / "b.jpg", "-o", tmp_path / "b.png", "-w", tiny, "--json", "-q")
    (note,) = json.loads(result.stdout.splitlines()[0])["notes"]
    assert note == "what continues its XMP has no place in PNG; it was left out"


@pytest.mark.parametrize(("ending", "most"), [("jpg", 65_500), ("webp", 16_383), ("avif", 32_768)])
def test_what_does_not_fit_is_said_before_it_is_computed(ending: str, most: int, tmp_path: Path, tiny: Path) -> None:
    image_format = FORMAT_OF_SUFFIX[f".{ending}"]
    if image_format not in writable_formats():
        pytest.skip(f"this Pillow does not write {image_format}")
    assert decode(encode(Picture(np.zeros((1, most, 3), np.uint8)), image_format)).size == (most, 1)
    for name, width in (("over", most + 1), ("half", most // 2)):  # which do not fit, and not beside each other
        Image.new("RGB", (width, 1)).save(tmp_path / f"{name}.png")
        target = tmp_path / f"out.{ending}"
        result = invoke("derain", tmp_path / f"{name}.png", "-o", target, "-w", tiny, "--compare", code=1)
        assert f"which has room for {most} a side; write TIFF or PNG" in result.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}


def test_skip_goes_on_where_it_stopped(photos: Path, tmp_path: Path, tiny: Path) -> None:
    clean = tmp_path / "clean"
    invoke("derain", photos / "a.png", photos / "b.jpg", "-o", clean, "-w", tiny, "-q")
    (clean / "a.png").write_bytes(b"kept as it is")
    result = invoke("derain", photos, "-o", clean, "-w", tiny, "--existing", "skip", "--json", "-q", code=1)
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["done"], summary["skipped"], summary["failed"]) == (4, 2, 3)
    assert (clean / "a.png").read_bytes() == b"kept as it is"
    result = invoke("derain", photos / "a.png", "-o", clean, "-w", tiny, "--existing", "error", code=1)
    assert "already exists" in result.stderr


def test_streams(photos: Path, tiny: Path) -> None:
    data = (photos / "a.png").read_bytes()
    result = run("derain", "-", "-o", "-", "-w", tiny, stdin=data)
    assert result.returncode == 0, result.stderr
    streamed = Image.open(io.BytesIO(result.stdout))
    assert (streamed.format, streamed.size) == ("PNG", (60, 40))
    result = run("derain", "-", "-o", "-", "-w", tiny, "--format", "jpeg", stdin=data)
    assert Image.open(io.BytesIO(result.stdout)).format == "JPEG"
    result = run("derain", "-", "-o", "-", "-w", tiny, stdin=b"no picture")
    assert (result.returncode, result.stdout) == (1, b"")


def test_list_of_paths(photos: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("photos/a.png\nphotos/sub/c.webp\nphotos/gone.png\n")
    result = invoke("derain", "--from-file", "list.txt", "-o", "clean", "-w", tiny, code=1)
    assert "gone.png" in result.stderr
    assert set(snapshot(tmp_path / "clean")) == {"photos/a.png", "photos/sub/c.webp"}
    result = run("derain", "--from-file", "-", "-o", "two", "-w", tiny, stdin=b"photos/a.png\n")
    assert result.returncode == 0
    assert set(snapshot(tmp_path / "two")) == {"photos/a.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_lists_as_files_and_tools_write_them(
    photos: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"\xe9t\xe9.png")  # Latin-1
    (photos / odd).write_bytes((photos / "a.png").read_bytes())
    lists = {
        "latin": b"photos/a.png\nphotos/\xe9t\xe9.png\n",
        "windows": b"\xef\xbb\xbfphotos/a.png\r\nphotos/sub/c.webp\r\n",
        "print0": b"photos/a.png\0photos/\xe9t\xe9.png\0",
    }
    for name, data in lists.items():
        (tmp_path / name).write_bytes(data)
        second = "photos/sub/c.webp" if name == "windows" else f"photos/{odd}"
        invoke("derain", "--from-file", name, "-o", f"of {name}", "-w", tiny)
        strict = {**ENVIRONMENT, "PYTHONIOENCODING": "utf-8:strict"}  # as where LANG is en_US.UTF-8
        result = run("derain", "--from-file", "-", "-o", f"of {name} by -", "-w", tiny, stdin=data, env=strict)
        assert result.returncode == 0, result.stderr
        for output in (f"of {name}", f"of {name} by -"):
            assert set(snapshot(tmp_path / output)) == {"photos/a.png", second}
    result = invoke("derain", "--from-file", "photos/a.png", "-o", "x", "-w", tiny, code=2)
    assert "not a text file of paths" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_do_not_reach_the_terminal_as_commands(photos: Path, tmp_path: Path, tiny: Path) -> None:
    (photos / "\x1b[31mred\n[b]:x:.png").write_text("not a picture")
    result = invoke("derain", photos, "-o", tmp_path / "clean", "-w", tiny, code=1)
    assert "\x1b" not in result.stderr
    assert "\\x1b[31mred\\n[b]:x:.png: not a picture" in result.stderr


def test_a_name_beside_the_bar_is_no_markup() -> None:
    out = Output(quiet=False, verbose=False, json_lines=False)
    terminal = io.StringIO()
    out.console = Console(file=terminal, force_terminal=True, width=100)
    with out.progress(1.0, "reading pictures", counted=False):
        out.advance(0.5, "1 of 2 in [/rain]")
    assert "1 of 2 in [/rain]" in terminal.getvalue()


def test_a_missing_file_is_named_once(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list").write_text("gone.png")
    result = invoke("derain", "--from-file", "list", "-o", "clean", "-w", tiny, code=1)
    assert result.stderr.splitlines()[0] == "error: gone.png: No such file or directory"


def test_in_place_compare_and_format(photos: Path, tmp_path: Path, tiny: Path) -> None:
    before = snapshot(photos)
    invoke("derain", photos / "a.png", "--in-place", "-w", tiny)
    assert {name for name, data in snapshot(photos).items() if data != before[name]} == {"a.png"}
    invoke("derain", photos / "b.jpg", "-o", tmp_path / "x", "-w", tiny, "--compare", "--format", "png")
    assert set(snapshot(tmp_path / "x")) == {"b.png", "b_compare.png"}
    compare = np.asarray(Image.open(tmp_path / "x" / "b_compare.png"))
    assert compare.shape == (40, 128, 3)
    assert np.array_equal(compare[:, :60], np.asarray(Image.open(photos / "b.jpg")))
    assert np.array_equal(compare[:, 68:], np.asarray(Image.open(tmp_path / "x" / "b.png")))


def test_a_film_by_name_is_not_read_into_memory(tmp_path: Path, tiny: Path) -> None:
    with (tmp_path / "film.mkv").open("wb") as film:
        film.truncate(200_000_000_000)  # a sparse file, which takes no room
    result = invoke("derain", tmp_path / "film.mkv", "-o", tmp_path / "clean", "-w", tiny, code=1)
    assert "film.mkv: 200.0 GB are more than a picture of 256 megapixels takes" in result.stderr


def test_in_place_does_not_cost_further_pages(tmp_path: Path, tiny: Path) -> None:
    page = Image.fromarray(random_pixels(8, 8))
    pages = tmp_path / "pages.tif"
    page.save(pages, save_all=True, append_images=[page, page])
    before = snapshot(tmp_path)
    result = invoke("derain", pages, "--in-place", "-w", tiny, code=1)
    assert "holds 3 pictures" in result.stderr
    assert snapshot(tmp_path) == before
    invoke("derain", pages, "-o", tmp_path / "first.tif", "-w", tiny)


def test_in_place_does_not_cost_the_film_of_a_motion_photo(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "PXL.MP.jpg"
    xmp = b'<x GCamera:MotionPhoto="1" GCamera:MicroVideo="1" GCamera:MotionPhotoVersion="1"/>'
    Image.fromarray(random_pixels(8, 8)).save(path, xmp=xmp)
    path.write_bytes(path.read_bytes() + b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(100))
    before = snapshot(tmp_path)
    result = invoke("derain", path, "--in-place", "-w", tiny, code=1)
    assert "a motion photo, whose film --in-place would lose" in result.stderr
    assert snapshot(tmp_path) == before
    result = invoke("derain", path, "-o", tmp_path / "still.jpg", "-w", tiny)
    assert "the film left out" in result.stderr
    with Image.open(tmp_path / "still.jpg") as still:
        assert still.info["xmp"] == xmp.replace(b'Photo="1"', b'Photo="0"').replace(b'Video="1"', b'Video="0"')


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_text(photos: Path, tmp_path: Path, tiny: Path) -> None:
    name = os.fsencode(photos) + b"/caf\xe9 \xc3\xa9.png"
    Path(os.fsdecode(name)).write_bytes((photos / "a.png").read_bytes())
    result = run("derain", os.fsdecode(name), "-o", tmp_path / "clean", "-w", tiny, "--json")
    assert result.returncode == 0, result.stderr
    assert [os.fsencode(path.name) for path in (tmp_path / "clean").iterdir()] == [b"caf\xe9 \xc3\xa9.png"]
    assert json.loads(result.stdout.splitlines()[0])["status"] == "done"


def test_dry_run_does_nothing(photos: Path, tmp_path: Path) -> None:
    result = invoke("derain", photos, "-o", tmp_path / "clean", "--dry-run", "--json")
    assert len(result.stdout.splitlines()) == 9
    assert "would write" in result.stderr
    assert not (tmp_path / "clean").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-here", "-o", "x"], "no such file or folder"),
        (["photos"], "say where the results go"),
        (["photos", "-o", "photos"], "would be overwritten"),
        (["photos", "-o", "x", "--tile", "lots"], "neither auto nor a number"),
        (["photos", "-o", "x", "--tile", "80"], "more than twice the overlap"),
        (["photos", "-o", "x", "-w", "nothing"], "no weights"),
        (["photos", "-o", "x", "-w", "photos/text.jpg"], "damaged"),
        (["photos", "-o", "x", "--device", "cuda:77"], "cuda:77"),
        (["photos", "-o", "x", "--stages", "7"], "1 to 6"),
        (["photos", "-o", "x", "--quality", "0"], "quality"),
        (["photos/a.png", "-o", "-", "--json"], "standard output"),
        ([], "nothing to derain"),
        (["--from-file", "none.txt", "-o", "x"], "none.txt"),
        (["photos", "-o", "x", "--format", "gif"], "gif"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(photos.parent)
    monkeypatch.chdir(photos.parent)
    result = invoke("derain", *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert snapshot(photos.parent) == before


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch for Linux computes with GNU's OpenMP")
def test_waiting_threads_leave_cores_to_others(photos: Path, tmp_path: Path, tiny: Path) -> None:
    free = {name: value for name, value in ENVIRONMENT.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for chosen, expected in (({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")):
        environment = {**free, **chosen, "OMP_DISPLAY_ENV": "VERBOSE"}  # OpenMP says what it read
        result = run("derain", photos / "a.png", "-o", tmp_path / "clean", "-w", tiny, env=environment)
        assert f"GOMP_SPINCOUNT = '{expected}'" in result.stderr.decode()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(photos: Path, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "clean").mkdir(mode=0o500)
    result = invoke("derain", photos / "a.png", "-o", tmp_path / "clean", "-w", tiny, code=1)
    assert "permission" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    ("arguments", "streams", "code", "message"),
    [
        ("photos/dot.png -o -", ">/dev/full", 1, "photos/dot.png: No space left on device"),
        ("photos/a.png -o -", ">/dev/full", 1, "photos/a.png: No space left on device"),
        ("photos/a.png -o -", ">&-", 1, "standard input or output is closed"),
        ("photos/a.png -o a.png --json", ">/dev/full", 1, "--json: No space left on device"),
        ("photos/a.png -o a.png --json", ">&-", 1, "--json: standard input or output is closed"),
        ("- -o a.png", "<&-", 1, "standard input or output is closed"),
        ("--from-file - -o clean", "<&-", 2, "cannot read this list: standard input or output is closed"),
    ],
)
def test_full_and_closed_streams(
    arguments: str, streams: str, code: int, message: str, photos: Path, tmp_path: Path, tiny: Path
) -> None:
    Image.new("RGB", (1, 1)).save(photos / "dot.png")  # which waits in Python's buffer
    command = f"{' '.join(COMMAND)} derain {arguments} -q -w {tiny} {streams}"
    result = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=300, check=False
    )
    assert result.returncode == code
    (line,) = result.stderr.decode().splitlines()
    assert line.endswith(message)


def test_rain_is_insisted_on_where_the_weights_know_it(photos: Path, tmp_path: Path, tiny: Path) -> None:
    options = ("derain", photos / "a.png", "-o", tmp_path / "out.png", "--precision", "fp32", "--insist", 1.5, "-w")
    result = invoke(*options, tiny, code=2)
    assert "insist: these weights do not say what rain is to them" in result.stderr
    model = random_model(stages=2)
    model.rain_means = torch.stack([torch.zeros(2, 4, 8), torch.full((2, 4, 8), 30.0)])
    save_checkpoint(model, tmp_path / "knowing.safetensors")
    invoke(*options, tmp_path / "knowing.safetensors")
    config = EngineConfig(device="cpu", precision="fp32")
    with Image.open(photos / "a.png") as image, Image.open(tmp_path / "out.png") as derained:
        for insist in (0, 1.5):
            expected = Engine(model, replace(config, insist=insist)).derain(np.asarray(image))
            assert np.array_equal(np.asarray(derained), expected) == (insist > 0)


def test_memory_that_ends_before_the_engine_costs_one_picture(
    photos: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pipeline.read

    def exhausted(path: Path) -> bytes:
        if path.name == "a.png":
            raise MemoryError
        return read(path)

    monkeypatch.setattr(pipeline, "read", exhausted)
    result = invoke("derain", photos, "-o", tmp_path / "clean", "-w", tiny, code=1)
    assert f"{photos}/a.png: too large to read in the memory that is free" in result.stderr
    assert "5 done, 4 failed" in result.stderr


def test_a_disk_that_fails_within_the_engine_costs_one_picture(
    photos: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derain, calls = Engine.derain_batch, count()

    def broken(engine: Engine, *arguments: Any) -> list[Pixels]:
        if next(calls) == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return derain(engine, *arguments)

    monkeypatch.setattr(Engine, "derain_batch", broken)
    result = invoke("derain", photos, "-o", tmp_path / "clean", "-w", tiny, code=1)
    assert "unexpected OSError: [Errno 5] Input/output error" in result.stderr
    assert "5 done, 4 failed" in result.stderr


@pytest.mark.parametrize(("output", "place"), [("file/clean/a.png", "file/clean"), ("clean/a.png", "clean/a.png")])
def test_what_cannot_be_written_is_said(
    output: str, place: str, photos: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "replace", full)
    result = invoke("derain", photos / "a.png", "-o", tmp_path / output, "-w", tiny, code=1)
    assert f"error: {photos}/a.png: cannot write to {tmp_path / place}: " in result.stderr


def test_memory_that_ends_behind_the_engine_costs_one_picture(
    photos: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = pipeline._side_by_side

    def exhausted(rainy: Picture, derained: Picture) -> Picture:
        monkeypatch.setattr(pipeline, "_side_by_side", join)
        raise MemoryError

    monkeypatch.setattr(pipeline, "_side_by_side", exhausted)
    result = invoke("derain", photos, "-o", tmp_path / "clean", "-w", tiny, "--compare", code=1)
    assert "too large to encode in the memory that is free" in result.stderr
    assert "5 done, 4 failed" in result.stderr  # three of them as they cannot be read


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_log_on_a_full_disk_does_not_stop_the_batch(photos: Path, tmp_path: Path, tiny: Path) -> None:
    command = [*COMMAND, "derain", str(photos), "-o", str(tmp_path / "clean"), "-w", str(tiny)]
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run(command, stderr=full, env=ENVIRONMENT, timeout=300, check=False).returncode == 1
    assert len(snapshot(tmp_path / "clean")) == 6


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals")
def test_a_batch_outlives_its_terminal(tmp_path: Path, tiny: Path) -> None:
    folder, clean = tmp_path / "photos", tmp_path / "clean"
    folder.mkdir()
    for index in range(100):
        Image.new("RGB", (32, 32)).save(folder / f"{index}.png")
    terminal, theirs = os.openpty()
    command = [*COMMAND, "derain", str(folder), "-o", str(clean), "-w", str(tiny)]
    process = subprocess.Popen(command, stderr=theirs, env=ENVIRONMENT)
    os.close(theirs)
    while not list(clean.glob("*.png")) and process.poll() is None:
        time.sleep(0.02)
    os.close(terminal)
    assert process.wait(timeout=120) == 0
    assert len(list(clean.iterdir())) == 100


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_signals_that_are_ignored_stay_so() -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    heard = hear_in_command(lambda number, frame: None, signal.SIGINT)
    for number, handler in (heard | before).items():
        signal.signal(number, handler)
    assert list(heard) == [signal.SIGTERM]


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_interrupted(number: signal.Signals, code: int, tmp_path: Path, tiny: Path) -> None:
    folder, clean = tmp_path / "photos", tmp_path / "clean"
    folder.mkdir()
    image = Image.fromarray(random_pixels(300, 300))
    for index in range(400):
        image.save(folder / f"{index:03d}.png", compress_level=1)
    command = [*COMMAND, "derain", str(folder), "-o", str(clean), "-w", str(tiny)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=hear_signals,
    )
    deadline = time.monotonic() + 120
    while len(list(clean.glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    if number == HANG_UP:
        process.send_signal(number)  # from the shell and from the system
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert b"Traceback" not in stderr
    assert b"--existing skip" in stderr
    written = list(clean.iterdir())
    assert 3 <= len(written) < 400
    for path in written:
        assert path.suffix == ".png", "a temporary file was left"
        Image.open(path).load()
