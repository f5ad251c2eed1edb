"""Which pictures of a batch are computed at the same time, on what share of the cores, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier, Event, Lock
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import needs_native, random_model, random_pixels
from PIL import Image

from sapnet_cli.engine.config import EngineConfig
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.engine.progress import Report
from sapnet_cli.errors import ImageError
from sapnet_cli.imaging.jobs import Job, OutputOptions, plan_jobs
from sapnet_cli.model import compiled
from sapnet_cli.pipeline import FileOptions, run_jobs

LARGE = 30
"""Pictures of this width have all cores to themselves."""

PATIENCE = 60
"""Seconds, after which a test fails that would hang."""


class Watched:
    """Looks like an engine on a CPU that computes up to three small pictures at the same time, and takes notes."""

    device = SimpleNamespace(type="cpu")

    def __init__(self) -> None:
        self._lock, self.busy, self.most = Lock(), 0, 0
        self.notes: list[tuple[int, int, int]] = []

    def batch_size(self, height: int, width: int) -> int:
        return 1

    def beside(self, height: int, width: int) -> int:
        return 1 if width == LARGE else 3

    def derain_batch(self, images: Sequence[Pixels], report: Report, beside: int) -> list[Pixels]:
        with self._lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
            self.notes.append((images[0].shape[1], beside, self.busy))
        try:
            return self.compute(list(images), report, beside)
        finally:
            with self._lock:
                self.busy -= 1

    def compute(self, images: list[Pixels], report: Report, beside: int) -> list[Pixels]:
        return images


def make_jobs(tmp_path: Path, widths: Sequence[int]) -> list[Job]:
    """Pictures so wide; 0 stands for a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, width in enumerate(widths):
        path = folder / f"{index:02}.png"
        if width:
            Image.fromarray(random_pixels(20, width, seed=index)).save(path)
        else:
            path.write_bytes(b"none")
    return list(plan_jobs([str(folder)], (), OutputOptions(str(tmp_path / "clean"))).jobs)


def run(jobs: Sequence[Job], engine: object, told: list[float] | None = None) -> list[str]:
    records = list(run_jobs(jobs, [cast(Engine, engine)], FileOptions(), (told or []).append))
    assert [record.job for record in records] == jobs
    return [record.status for record in records]


def test_small_pictures_are_computed_at_the_same_time(tmp_path: Path) -> None:
    together = Barrier(3)

    class Meeting(Watched):
        def compute(self, images: list[Pixels], report: Report, beside: int) -> list[Pixels]:
            together.wait(PATIENCE)  # for two others, or it raises
            return images

    engine = Meeting()
    assert run(make_jobs(tmp_path, [20] * 6), engine) == ["done"] * 6
    assert engine.most == 3
    assert {beside for _, beside, _ in engine.notes} == {3}


def test_a_large_picture_has_all_cores_to_itself(tmp_path: Path) -> None:
    engine = Watched()
    widths = [20, 20, 20, LARGE, 20, 0, 20, LARGE, LARGE, 0, 20, 20]
    statuses = run(make_jobs(tmp_path, widths), engine)
    assert statuses == ["done" if width else "failed" for width in widths]
    assert [note for note in engine.notes if note[0] == LARGE] == [(LARGE, 1, 1)] * 3
    for index, width in enumerate(widths):
        if width:
            rainy, clean = (tmp_path / folder / f"{index:02}.png" for folder in ("photos", "clean"))
            assert np.array_equal(np.asarray(Image.open(rainy)), np.asarray(Image.open(clean)))


def test_one_picture_has_all_cores(tmp_path: Path) -> None:
    engine, told = Watched(), list[float]()
    assert run(make_jobs(tmp_path, [20]), engine, told) == ["done"]
    assert engine.notes == [(20, 1, 1)]


def test_of_two_pictures_each_has_half(tmp_path: Path) -> None:
    both = Barrier(2)

    class Meeting(Watched):
        def compute(self, images: list[Pixels], report: Report, beside: int) -> list[Pixels]:
            both.wait(PATIENCE)
            return images

    engine = Meeting()
    assert run(make_jobs(tmp_path, [20, 20]), engine) == ["done", "done"]
    assert {beside for _, beside, _ in engine.notes} == {2}


def test_who_stops_does_not_wait_for_what_is_computed(tmp_path: Path) -> None:
    begun, stopped = Event(), Event()

    class Endless(Watched):
        def compute(self, images: list[Pixels], report: Report, beside: int) -> list[Pixels]:
            if len(self.notes) == 1:
                begun.wait(PATIENCE)
                return images
            begun.set()
            try:
                while not stopped.wait(0.01):
                    report(0.5)
            finally:
                stopped.set()
            return images

    def interrupt(done: float) -> None:
        raise KeyboardInterrupt

    engine = cast(Engine, Endless())
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(make_jobs(tmp_path, [20] * 6), [engine], FileOptions(), interrupt))
    assert stopped.is_set()


def fail_unless(share: int, on_threads: Callable[[int], AbstractContextManager[None]]) -> Callable[[int], Any]:
    def checked(number: int) -> AbstractContextManager[None]:
        assert number == share
        return on_threads(number)

    return checked


class TestEngine:
    CONFIG = EngineConfig(device="cpu", precision="fp32")

    @needs_native
    def test_shares_of_the_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "threads", lambda: 8)
        engine = Engine(random_model(channels=32), self.CONFIG)
        assert engine.beside(64, 64) == 8
        assert engine.beside(6000, 8000) == 1
        monkeypatch.setattr("sapnet_cli.engine.budget.free_memory", lambda device: 1_000_000_000)
        assert 1 < engine.beside(300, 500) < 8  # of 80 MB each

    @needs_native
    def test_what_is_computed_alone_comes_out_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shares, real = [], compiled.on_threads

        def on_threads(number: int) -> Any:
            shares.append(number)
            return real(number)

        monkeypatch.setattr(compiled, "threads", lambda: 4)
        monkeypatch.setattr(compiled, "on_threads", on_threads)
        engine = Engine(random_model(channels=32), self.CONFIG)
        image = random_pixels(70, 90)
        (expected,) = engine.derain_batch([image])
        for beside, share in ((4, 1), (2, 2), (9, 1)):
            assert np.array_equal(engine.derain_batch([image], None, beside)[0], expected)
            assert shares.pop() == share

    @needs_native
    def test_pictures_of_a_batch_are_computed_at_the_same_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "threads", lambda: 3)
        engine, told = Engine(random_model(channels=32), self.CONFIG), list[float]()
        images = [random_pixels(40 + seed, 50, seed=seed) for seed in range(5)]
        expected = [engine.derain(image) for image in images]
        assert engine.derain_batch([]) == []
        monkeypatch.setattr(compiled, "on_threads", fail_unless(1, compiled.on_threads))
        for given, wanted in zip(engine.derain_batch(images, told.append), expected):
            assert np.array_equal(given, wanted)
        assert told == sorted(told)
        assert told[-1] == 1
        with pytest.raises(ImageError):
            engine.derain_batch([images[0], images[1][..., :2]])

    def test_without_c_one_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "find_program", lambda: None)
        assert Engine(random_model(), self.CONFIG).beside(64, 64) == 1
