"""One listing over many machines: which part of it this one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sapnet_cli.errors import UsageError

Item = TypeVar("Item")

AUTO = "auto"


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` parts, counted from 0."""

    index: int
    count: int

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th item. All parts together are the whole, each item in one of them."""
        return list(items[self.index :: self.count])


def read_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Reads `I/N`, I from 1 to N.

    Args:
        text: `I/N`; `auto/N`, where the part comes from the environment; or `auto`, where both do.
        environment: with what SLURM gives the tasks of an array (SLURM_ARRAY_TASK_ID, _MIN, _STEP, _COUNT), or
            Kubernetes the pods of an indexed job (JOB_COMPLETION_INDEX, from 0, without their number).

    Raises:
        UsageError: it makes no sense, or the environment does not say.
    """
    index_text, slash, count_text = text.partition("/")
    try:
        if index_text == AUTO:
            index = _index(environment)
            count = int(count_text if slash else environment["SLURM_ARRAY_TASK_COUNT"])
        else:
            index, count = int(index_text) - 1, int(count_text)
    except KeyError as error:
        raise UsageError(
            f"--shard {text}: {error.args[0]} is not set here; give the part and the number of parts, as in --shard 1/4"
        ) from error
    except ValueError as error:
        raise UsageError(f"--shard {text} is not of the form I/N, as in 1/4, auto, or auto/4") from error
    if not 0 <= index < count:
        raise UsageError(f"--shard {text}: part {index + 1} of {count} does not exist; the first is 1/{max(count, 1)}")
    return Shard(index, count)


def _index(environment: Mapping[str, str]) -> int:
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 1)) for name in ("MIN", "STEP"))
        return (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // max(step, 1)
    if "JOB_COMPLETION_INDEX" in environment:
        return int(environment["JOB_COMPLETION_INDEX"])
    raise KeyError("SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX")
