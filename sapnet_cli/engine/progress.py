"""How much of the work is done, told by whoever does a part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")

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
