"""Parts of the work, one by one or at the same time, and how much of it is done, told by whoever does a part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")

POLL = 0.2
"""Seconds after which progress is told, at the latest."""

Report: TypeAlias = Callable[[float], None]
"""Is told how much of the pictures at hand is computed, 0 to 1."""


def part_of(report: Report | None, begin: float, end: float) -> Report:
    """What a part of the work is given to report to, when it stretches from `begin` to `end` of the whole."""
    return (lambda fraction: None) if report is None else lambda fraction: report(begin + (end - begin) * fraction)


def in_groups(items: Sequence[Item], size: int, report: Report) -> Iterator[tuple[Sequence[Item], Report]]:
    """Groups of at most so many items, and what each reports to."""
    for start in range(0, len(items), size):
        group = items[start : start + size]
        yield group, part_of(report, start / len(items), (start + len(group)) / len(items))


class StoppedError(Exception):
    """What a report raises where nobody waits for the work any more."""


def work_beside(works: Sequence[Callable[[Report], None]], number: int, report: Report) -> None:
    """Does so many works at the same time, begun in order, each in a thread of its own; or one by one in this.

    An error of any, or Ctrl-C, ends all of them, as soon as they report.
    """
    if number == 1:
        for (alone,), part in in_groups(works, 1, report):
            alone(part)
        return
    done, stopped = [0.0] * len(works), Event()

    def work(turn: int) -> None:
        def note(fraction: float) -> None:
            if stopped.is_set():
                raise StoppedError
            done[turn] = fraction

        works[turn](note)
        done[turn] = 1.0

    with ThreadPoolExecutor(number, thread_name_prefix="beside") as executor:
        unfinished = {executor.submit(work, turn) for turn in range(len(works))}
        try:
            while unfinished:
                finished, unfinished = wait(unfinished, POLL, FIRST_EXCEPTION)
                for each in finished:
                    each.result()
                report(sum(done) / len(works))
        except BaseException:
            stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
