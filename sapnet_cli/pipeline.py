"""Files through the engine: decoding, computing and encoding overlap, and one bad file never stops the rest."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Literal, TypeVar

import numpy as np

from sapnet_cli.cores import usable_cores
from sapnet_cli.engine.engine import Engine
from sapnet_cli.engine.pixels import mean_change
from sapnet_cli.engine.progress import StoppedError
from sapnet_cli.errors import ImageError, SapnetError
from sapnet_cli.files import exists, make_folder, read, size_in_bytes, standard_stream, write_atomically
from sapnet_cli.imaging.jobs import Job
from sapnet_cli.imaging.picture import ALPHA_FORMATS, FORMAT_OF_SUFFIX, IPTC_FORMATS, SIXTEEN_BIT_FORMATS, Picture
from sapnet_cli.imaging.read import MAX_MEGAPIXELS, decode
from sapnet_cli.imaging.write import JPEG_QUALITY, check_size, encode, fits_jpeg

Existing = Literal["overwrite", "skip", "error"]
Status = Literal["done", "skipped", "failed"]
Item = TypeVar("Item")
Result = TypeVar("Result")

COMPARE_GAP = 8  # white pixels between before and after
MAX_BYTES_PER_PIXEL = 16  # of a file: twice what four channels of 16 bits take uncompressed
MAX_BYTES_BESIDE = 100_000_000  # profiles, previews and the like
LOOKAHEAD, MOST_LOOKAHEAD = 2, 16
"""Pictures that are decoded ahead of engines, and encoded behind them, at least and at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileOptions:
    """How files are read and written.

    Attributes:
        existing: what to do where the output is already there.
        quality: of lossy formats, 1 to 100.
        max_megapixels: larger pictures are refused.
    """

    existing: Existing = "overwrite"
    quality: int = JPEG_QUALITY
    max_megapixels: float = MAX_MEGAPIXELS


@dataclass(frozen=True)
class Record:
    """What became of one picture.

    Attributes:
        job: what was to be done.
        status: what became of it.
        size: width and height in pixels, None where it was not decoded.
        seconds: spent on it in decoding, computing and encoding.
        error: why it failed, in one line.
        notes: what the output lacks of the input, in a line each.
        changed: by how much on average, in levels of 255; None where nothing was derained.
    """

    job: Job
    status: Status
    size: tuple[int, int] | None = None
    seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = ()
    changed: float | None = None


@dataclass(frozen=True)
class _Work:
    """A picture on its way, rainy before the engine and derained behind it."""

    job: Job
    rainy: Picture
    seconds: float
    derained: Picture | None = None


def run_jobs(
    jobs: Sequence[Job], engines: Sequence[Engine], options: FileOptions, report: Callable[[float], None]
) -> Iterator[Record]:
    """Derains files, yielding a record for each in the order of the jobs.

    When the caller stops early or is interrupted, the files that are being written are finished, and nothing else.

    Args:
        jobs: what to do.
        engines: compute; several, one a GPU, at the same time.
        options: how files are read and written.
        report: is told how many pictures are computed, in fractions while a large one is under way.
    """
    cores_each = 4 if engines[0].device.type == "cpu" else 1  # a GPU outruns several
    ahead = max(LOOKAHEAD, min(MOST_LOOKAHEAD, usable_cores() // cores_each))
    readers = ThreadPoolExecutor(ahead, thread_name_prefix="decode")
    writers = ThreadPoolExecutor(ahead, thread_name_prefix="encode")
    try:
        decoded = _ahead(readers, partial(_read, options=options), jobs, ahead)
        derained = _derain(decoded, len(jobs), engines, report)
        yield from _ahead(writers, partial(_write, options=options), derained, ahead)
    finally:
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _ahead(
    executor: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Like `map`, but in threads, with so many results in flight."""
    futures: deque[Future[Result]] = deque()
    for item in items:
        futures.append(executor.submit(function, item))
        while futures and (len(futures) > ahead or futures[0].done()):
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _read(job: Job, options: FileOptions) -> _Work | Record:
    start = time.perf_counter()
    try:
        if job.target is not None:
            if options.existing != "overwrite" and exists(job.target):
                if options.existing == "skip":
                    return Record(job, "skipped")
                return Record(job, "failed", error=f"{job.target} already exists; choose --existing overwrite or skip")
            make_folder(job.target)
        picture = decode(_read_bytes(job, options), options.max_megapixels)
        image_format = _format_of(job, picture)
        check_size(*picture.size, image_format)
        if job.compare is not None:
            check_size(2 * picture.size[0] + COMPARE_GAP, picture.size[1], image_format)
        if job.target == job.source:
            _refuse_losses(picture)
    except SapnetError as error:
        return Record(job, "failed", error=str(error))
    except OSError as error:
        return Record(job, "failed", error=_describe(error, job))
    except MemoryError:
        return Record(job, "failed", error="too large to read in the memory that is free")
    return _Work(job, picture, time.perf_counter() - start)


def _read_bytes(job: Job, options: FileOptions) -> bytes:
    """What a job's file holds, unless it is larger than any picture could be, such as a film given by name."""
    if job.source is None:
        return standard_stream(sys.stdin).read()
    size = size_in_bytes(job.source)
    if size > options.max_megapixels * 1e6 * MAX_BYTES_PER_PIXEL + MAX_BYTES_BESIDE:
        raise ImageError(
            f"{size / 1e9:.1f} GB are more than a picture of {options.max_megapixels:g} megapixels takes; "
            "raise --max-megapixels if it is one"
        )
    return read(job.source)


def _derain(
    items: Iterable[_Work | Record], count: int, engines: Sequence[Engine], report: Callable[[float], None]
) -> Iterator[_Work | Record]:
    """Runs the engines over so many items, on several at once where they are alike and an engine wants them so.

    What has all cores to itself is computed in this thread, so that Ctrl-C need not wait for a large picture.
    """
    computed, left = 0, count

    def told(results: Sequence[_Work | Record]) -> Sequence[_Work | Record]:
        nonlocal computed
        computed += len(results)
        report(computed)
        return results

    with _Crew(engines) as crew:
        for group in _groups_alike(items, engines[0]):
            if isinstance(group, Record):
                left -= 1
                crew.pass_by(group)
            else:
                left -= len(group)
                beside = crew.wait_for_room(group, left)
                if beside > 1:
                    crew.begin(group, beside)
            for results in crew.finished():
                yield from told(results)
            if isinstance(group, list) and beside == 1:  # and all others are finished
                done, size = computed, len(group)
                yield from told(_derain_group(group, engines[0], lambda part: report(done + size * part)))  # noqa: B023
        for results in crew.finished(wait_for_all=True):
            yield from told(results)


class _Crew:
    """Engines that compute groups of pictures at the same time, and what comes of them, in order.

    One that computes on a CPU has several groups, of small pictures, each by a share of the cores.

    Attributes:
        busy: with how many groups they are.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Takes one or several."""
        self._engine, self._several = engines[0], len(engines) > 1
        self._most = len(engines) if self._several else self._engine.beside(1, 1)
        self._idle: SimpleQueue[Engine] = SimpleQueue()
        for place in range(self._most):
            self._idle.put(engines[place % len(engines)])
        self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="derain")
        self._begun: deque[Future[list[_Work | Record]]] = deque()
        self._stopped = Event()

    def __enter__(self) -> _Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)

    @property
    def busy(self) -> int:
        return sum(not each.done() for each in self._begun)

    def wait_for_room(self, group: Sequence[_Work], left: int) -> int:
        """Waits until another group can be begun, after which so many pictures are left.

        Returns:
            How many groups will be computed at the same time, this one included.
        """
        room = self._most if self._several else self._engine.beside(*group[0].rainy.rgb.shape[:2])
        while self.busy >= room:
            wait([each for each in self._begun if not each.done()], return_when=FIRST_COMPLETED)
        return min(room, self.busy + 1 + left)

    def begin(self, group: Sequence[_Work], beside: int) -> None:
        """Computes a group, of which so many are computed at the same time."""
        self._begun.append(self._threads.submit(self._derain, group, 1 if self._several else beside))

    def pass_by(self, record: Record) -> None:
        """Takes what is not computed, and comes in its turn, too."""
        known: Future[list[_Work | Record]] = Future()
        known.set_result([record])
        self._begun.append(known)

    def finished(self, wait_for_all: bool = False) -> Iterator[list[_Work | Record]]:
        """What comes of the first groups that nobody has taken yet, up to one that is not finished."""
        while self._begun and (wait_for_all or self._begun[0].done()):
            yield self._begun.popleft().result()

    def _derain(self, group: Sequence[_Work], beside: int) -> list[_Work | Record]:
        engine = self._idle.get()
        try:
            return _derain_group(group, engine, self._go_on, beside)
        finally:
            self._idle.put(engine)

    def _go_on(self, fraction: float) -> None:
        if self._stopped.is_set():
            raise StoppedError


def _groups_alike(items: Iterable[_Work | Record], engine: Engine) -> Iterator[list[_Work] | Record]:
    group: list[_Work] = []
    for item in items:
        if group and (isinstance(item, Record) or not _alike(group[0].rainy, item.rainy)):
            yield group
            group = []
        if isinstance(item, Record):
            yield item
            continue
        group.append(item)
        if len(group) >= engine.batch_size(*item.rainy.rgb.shape[:2]):
            yield group
            group = []
    if group:
        yield group


def _derain_group(
    group: Sequence[_Work], engine: Engine, report: Callable[[float], None], beside: int = 1
) -> list[_Work | Record]:
    start = time.perf_counter()
    try:
        results = engine.derain_batch([work.rainy.rgb for work in group], report, beside)
    except (SapnetError, RuntimeError, MemoryError, OSError) as error:  # the last of the disk that tiles wait on
        if len(group) > 1:
            return [result for work in group for result in _derain_group([work], engine, report, beside)]
        log.debug("failed", exc_info=True)
        known = isinstance(error, SapnetError)
        reason = str(error) if known else f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        work = group[0]
        return [Record(work.job, "failed", work.rainy.size, work.seconds, reason)]
    seconds = (time.perf_counter() - start) / max(1, len(group))
    return [
        replace(work, derained=replace(work.rainy, rgb=rgb), seconds=work.seconds + seconds)
        for work, rgb in zip(group, results)
    ]


def _write(item: _Work | Record, options: FileOptions) -> Record:
    if isinstance(item, Record):
        return item
    start = time.perf_counter()
    job, rainy, derained = item.job, item.rainy, item.derained or item.rainy
    image_format = _format_of(job, rainy)
    changed = mean_change(rainy.rgb, derained.rgb)

    def record(status: Status, error: str | None = None) -> Record:
        seconds = item.seconds + time.perf_counter() - start
        return Record(job, status, rainy.size, seconds, error, _losses(rainy, image_format), changed)

    try:
        data = encode(derained, image_format, options.quality)
        if job.target is None:
            stream = standard_stream(sys.stdout)
            stream.write(data)
            stream.flush()
            return record("done")
        if job.compare is not None:
            write_atomically(job.compare, encode(_side_by_side(rainy, derained), image_format, options.quality))
        write_atomically(job.target, data)
    except ImageError as error:
        return record("failed", str(error))
    except MemoryError:
        return record("failed", "too large to encode in the memory that is free")
    except OSError as error:
        return record("failed", _describe(error, job))
    return record("done")


def _format_of(job: Job, picture: Picture) -> str:
    """What its output is written as: as was asked, by the target's name, or as the source is."""
    by_name = None if job.target is None else FORMAT_OF_SUFFIX.get(job.target.suffix.lower())
    return job.format or by_name or picture.format


def _refuse_losses(picture: Picture) -> None:
    """What nobody could get back when the result has replaced its source."""
    if picture.frames > 1 and picture.format != "JPEG":
        # beside a JPEG there are previews and gain maps, but elsewhere pages and films
        raise ImageError(f"holds {picture.frames} pictures, of which --in-place would keep one; give --output")
    if picture.depth > 8:
        raise ImageError(f"has {picture.depth} bits a sample, of which --in-place would keep 8; give --output")
    if picture.film:
        raise ImageError("a motion photo, whose film --in-place would lose; give --output")


def _losses(picture: Picture, image_format: str) -> tuple[str, ...]:
    notes = []
    if picture.frames > 1:
        notes.append(f"holds {picture.frames} pictures, of which the first was derained")
    if picture.depth > 8:
        notes.append(f"has {picture.depth} bits a sample, of which 8 were kept")
    if picture.film:
        notes.append("a motion photo, of which the photo was derained and the film left out")
    if b"cICP" in (picture.metadata.png_colour or b"") and image_format != "PNG":
        notes.append(
            f"{image_format} has no room for what this PNG says of its colours (cICP); they may look otherwise"
        )
    if picture.alpha is not None and image_format not in ALPHA_FORMATS:
        notes.append(f"{image_format} has no transparency; it was left out")
    if picture.rgb.dtype == np.uint16 and image_format not in SIXTEEN_BIT_FORMATS:
        notes.append(f"{image_format} has no 16 bits; 8 were kept")
    if picture.metadata.iptc is not None and image_format not in IPTC_FORMATS:
        notes.append(f"{image_format} has no IPTC; it was left out")
    if picture.metadata.xmp_extension is not None and image_format != "JPEG":
        notes.append(f"what continues its XMP has no place in {image_format}; it was left out")
    if image_format == "JPEG":
        metadata = picture.metadata
        for name, data in (("EXIF", metadata.exif), ("XMP", metadata.xmp), ("IPTC", metadata.iptc)):
            if data is not None and not fits_jpeg(data):
                notes.append(f"its {name} of {len(data)} bytes is too long for JPEG; it was left out")
    return tuple(notes)


def _side_by_side(rainy: Picture, derained: Picture) -> Picture:
    height = rainy.rgb.shape[0]
    gap = np.full((height, COMPARE_GAP, 3), np.iinfo(rainy.rgb.dtype).max, rainy.rgb.dtype)
    return replace(derained, rgb=np.concatenate((rainy.rgb, gap, derained.rgb), axis=1), alpha=None)


def _alike(first: Picture, second: Picture) -> bool:
    return first.rgb.shape == second.rgb.shape and first.rgb.dtype == second.rgb.dtype


def _describe(error: OSError, job: Job) -> str:
    """Why, and what could not be written, unless it is about the source, which messages begin with."""
    reason = error.strerror or str(error)
    if not error.filename or str(error.filename) == job.source_name:
        return reason
    return f"cannot write to {error.filename}: {reason}"
