"""Pictures behind URLs, several engines, and a Ray cluster of this machine: the same files as from one engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import EXAMPLES, invoke, plan, random_model, random_pixels
from PIL import Image

from sapnet_cli import files
from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.hardware import split_devices
from sapnet_cli.errors import UsageError
from sapnet_cli.imaging.jobs import OutputOptions, plan_jobs
from sapnet_cli.model.checkpoint import save_checkpoint
from sapnet_cli.pipeline import FileOptions, run_jobs


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_checkpoint(random_model(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures, of which the second is broken."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "sub/c.png", "d.png")):
        Image.fromarray(random_pixels(40, 30 + 4 * seed, seed=seed)).save(folder / name)
    (folder / "b.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture
def store(photos: Path) -> Iterator[str]:
    """The same pictures behind a URL."""
    system = pytest.importorskip("fsspec").filesystem("memory")
    pytest.importorskip("upath")
    system.put(str(photos), "/bucket/photos", recursive=True)
    system.pipe_file("/bucket/photos/.hidden/a.png", b"")
    system.pipe_file("/bucket/photos/notes.txt", b"")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestURLs:
    def test_where_results_go(self, store: str) -> None:
        photos = f"{store}/photos"
        a, c = f"{photos}/a.png", f"{photos}/sub/c.png"
        assert plan(photos, output="clean") == {
            a: "clean/a.png",
            f"{photos}/b.png": "clean/b.png",
            f"{photos}/d.png": "clean/d.png",
            c: "clean/sub/c.png",
        }
        assert plan(f"{photos}/**/c.*", output=f"{store}/clean") == {c: f"{store}/clean/sub/c.png"}
        assert plan(a, output=f"{store}/x/y.webp") == {a: f"{store}/x/y.webp"}
        assert plan(c, output=None, in_place=True) == {c: c}
        assert plan(output="clean", listed=(f"{c}\n",)) == {c: "clean/c.png"}
        assert c not in plan(photos, output=f"{photos}/sub"), "the output folder is not an input"
        assert plan(a, output=photos, suffix="_dry") == {a: f"{photos}/a_dry.png"}

    def test_what_is_refused(self, store: str) -> None:
        for name, message in {
            f"{store}/nowhere": "nothing is there",
            f"{store}/photos/*.jpg": "nothing is there",
            "nonsense://bucket/photos": "nonsense",
        }.items():
            with pytest.raises(UsageError, match=message):
                plan(name, output="clean")
        with pytest.raises(UsageError, match="is an input and would be overwritten"):
            plan(f"{store}/photos", output=f"{store}/photos")

    def test_a_file_url_is_a_path(self, photos: Path) -> None:
        assert plan(f"file://{photos}/a.png", output="file:///clean/") == {f"{photos}/a.png": "/clean/a.png"}

    @pytest.mark.parametrize("atomic", [True, False])
    def test_the_same_files_as_from_a_folder(
        self, store: str, photos: Path, weights: Path, tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not atomic:
            monkeypatch.setattr(files, "OBJECT_STORES", set())
        options = ("-w", weights, "--precision", "fp32")
        invoke("derain", photos, "-o", tmp_path / "here", *options, code=1)
        result = invoke("derain", f"{store}/photos", "-o", f"{store}/clean", *options, code=1)
        assert "memory://bucket/photos/b.png: not a picture" in result.stderr
        invoke("derain", f"{store}/clean", "-o", tmp_path / "copies", "--existing", "skip", "--dry-run")
        system = pytest.importorskip("fsspec").filesystem("memory")
        system.get("/bucket/clean", str(tmp_path / "there"), recursive=True)
        assert read_folder(tmp_path / "there") == read_folder(tmp_path / "here")
        assert (
            "3 skipped"
            in invoke(
                "derain", f"{store}/photos", "-o", f"{store}/clean", *options, "--existing", "skip", code=1
            ).stderr
        )

    def test_a_store_that_fails_costs_one_picture(
        self, store: str, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        system = pytest.importorskip("fsspec").filesystem("memory")
        real = type(system).pipe_file

        def pipe_file(self: object, path: str, value: bytes, **options: object) -> object:
            if path.endswith("a.png"):
                raise RuntimeError("no credentials\nat all")
            return real(self, path, value, **options)

        monkeypatch.setattr(type(system), "pipe_file", pipe_file)
        result = invoke("derain", f"{store}/photos", "-o", f"{store}/clean", "-w", weights, code=1)
        assert "memory://bucket/clean/a.png: RuntimeError: no credentials at all" in result.stderr
        assert "2 done, 2 failed" in result.stderr

    def test_a_plan_needs_the_store(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        system = pytest.importorskip("fsspec").filesystem("memory")

        def exists(self: object, path: str, **options: object) -> bool:
            raise ConnectionError("no route")

        monkeypatch.setattr(type(system), "exists", exists)
        result = invoke("derain", f"{store}/photos", "-o", f"{store}/clean", "--dry-run", code=1)
        assert "memory://bucket/clean/a.png: ConnectionError: no route" in result.stderr
        assert "Traceback" not in result.stderr


class TestSeveralEngines:
    def test_the_same_files_in_the_same_order(self, photos: Path, tmp_path: Path) -> None:
        (photos / "b.png").unlink()
        for seed in range(8):
            Image.fromarray(random_pixels(40, 30, seed=seed)).save(photos / f"e{seed}.png")
        config = EngineConfig(device="cpu", precision="fp32")
        engines = [Engine(random_model(), config) for _ in range(2)]
        told: list[float] = []
        for count in (1, 2):
            jobs = plan_jobs([str(photos)], (), OutputOptions(str(tmp_path / str(count)))).jobs
            records = list(run_jobs(jobs, engines[:count], FileOptions(), told.append))
            assert [record.job for record in records] == jobs
            assert {record.status for record in records} == {"done"}
            assert told[-1] == len(jobs)
        assert read_folder(tmp_path / "1") == read_folder(tmp_path / "2")

    def test_lists_of_devices(self) -> None:
        assert split_devices("auto") == ["auto"]
        assert split_devices("cuda:0,1") == split_devices("cuda:0,cuda:1") == ["cuda:0", "cuda:1"]
        for name in ("cuda:0,0", "cpu,cpu", "cuda,1", "cuda:0,", "cuda:0,cpu"):
            with pytest.raises(UsageError, match="not a list of different GPUs"):
                split_devices(name)


class TestRay:
    def test_two_workers_do_what_one_engine_does(self, photos: Path, weights: Path, tmp_path: Path) -> None:
        pytest.importorskip("ray", reason="Ray is not installed")
        for name in ("here", "there"):  # one that is there already
            (tmp_path / name).mkdir()
            (tmp_path / name / "d.png").write_bytes((EXAMPLES / "rocket.jpg").read_bytes())
        options = ("-w", weights, "--precision", "fp32", "--existing", "skip", "--json")
        here = invoke("derain", photos, "-o", tmp_path / "here", *options, code=1)
        ray = ("--engine", "ray", "--workers", "2")
        there = invoke("derain", photos, "-o", tmp_path / "there", *options, *ray, code=1)
        assert read_folder(tmp_path / "there") == read_folder(tmp_path / "here")
        told = []
        for result, folder in ((here, "here"), (there, "there")):
            lines = [json.loads(line) for line in result.stdout.replace(f"{tmp_path}/{folder}", "").splitlines()]
            told.append(sorted([{**line, "seconds": None} for line in lines], key=lambda line: str(line.get("input"))))
        assert told[0] == told[1]
        assert "b.png: not a picture" in there.stderr

    def test_what_is_refused(self, photos: Path, tmp_path: Path) -> None:
        output = ("-o", tmp_path / "clean")
        assert "--engine ray" in invoke("derain", photos, *output, "--workers", "2", code=2).stderr
        assert "standard" in invoke("derain", photos / "a.png", "-o", "-", "--engine", "ray", code=2).stderr
        result = invoke("derain", photos, *output, "--engine", "ray", "--device", "cuda:1", code=2)
        assert "gives each worker its GPU" in result.stderr
        nobody = invoke("derain", photos, *output, "--engine", "ray", code=1, RAY_ADDRESS="127.0.0.1:9")
        assert "nothing answers at RAY_ADDRESS 127.0.0.1:9" in nobody.stderr
        empty = (*output, "--engine", "ray", "--shard", "9/9", "--json")  # four pictures
        assert '"done": 0' in invoke("derain", photos, *empty, RAY_ADDRESS="127.0.0.1:9").stdout
        assert "1 to 6" in invoke("derain", photos, *output, "--engine", "ray", "--stages", "9", code=2).stderr
