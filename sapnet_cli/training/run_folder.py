"""The folder of a run: its configuration, checkpoints, weights, metrics and sample pictures."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from sapnet_cli.data.pictures import Pixels
from sapnet_cli.errors import CheckpointError, SapnetError, UsageError
from sapnet_cli.files import write_atomically
from sapnet_cli.model.checkpoint import save_checkpoint
from sapnet_cli.model.released import unpickle
from sapnet_cli.model.sapnet import SAPNet

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAST, CONFIG, METRICS, BEST, FINAL = (
    "last.ckpt",
    "config.json",
    "metrics.jsonl",
    "best.safetensors",
    "final.safetensors",
)


class RunFolder:
    """Reads and writes the files of one run; what it replaces is whole at any moment.

    Args:
        path: the folder, made if it is not there.
        keep: how many checkpoints to keep, the last one included.
    """

    def __init__(self, path: Path, keep: int = 3) -> None:
        self.path, self.keep = path, keep
        self._events: SummaryWriter | None = None
        self._claim: int | None = None

    @property
    def was_begun(self) -> bool:
        """Whether a run was begun here, be it that nothing of it was saved."""
        return (self.path / CONFIG).exists()

    @property
    def holds_run(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.path / LAST).exists()

    def claim(self) -> None:
        """Keeps other processes out, where the system can, until `close`, or until this one ends, however it does.

        Raises:
            UsageError: another process is at work here.
            SapnetError: the folder cannot be read.
        """
        if fcntl is None or self._claim is not None:
            return
        with _clear_errors(self.path):
            claim = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(claim)
            raise UsageError(f"{self.path}: another sapnet train is at work there; wait for it, or end it") from error
        except OSError:  # a file system without locks
            os.close(claim)
            return
        self._claim = claim

    def begin(self, config: Mapping[str, Any]) -> None:
        """Makes the folder, where it is not there, and writes down the configuration.

        Raises:
            UsageError: another process is at work here, or a file lies in its place.
            SapnetError: it cannot be written.
        """
        with _clear_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.claim()
            write_atomically(self.path / CONFIG, json.dumps(config, indent=2) + "\n")
            (self.path / METRICS).touch()

    def read_config(self) -> dict[str, Any]:
        """What `begin` wrote.

        Raises:
            CheckpointError: it is not there or damaged.
        """
        try:
            record = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / CONFIG}: unreadable ({error}); begin another run") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{self.path / CONFIG}: not the configuration of a run")
        return record

    def save(self, state: Mapping[str, Any], iteration: int) -> None:
        """Writes `last.ckpt`; a few earlier ones stay beside it as `iteration-N.ckpt`."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with _clear_errors(self.path):
            write_atomically(self.path / LAST, buffer.getvalue())
            if self.keep > 1:
                _link(self.path / LAST, self.path / f"iteration-{iteration:08d}.ckpt")
            for old in sorted(self.path.glob("iteration-*.ckpt"))[: -self.keep]:
                old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any]:
        """What the last `save` wrote.

        Raises:
            CheckpointError: it is damaged, or holds more than plain data.
        """
        path = self.path / LAST
        others = " or ".join(each.name for each in sorted(self.path.glob("iteration-*.ckpt"))[-2:-1])
        advice = f"copy {others} over it, or begin another run" if others else "begin another run"
        try:
            state = unpickle(path)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}: damaged, or not a checkpoint of a run; {advice}") from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: not a checkpoint of a run; {advice}")
        return state

    def rewind(self, iteration: int) -> None:
        """Drops from the metrics what a run that was broken off had measured behind its last checkpoint."""
        path = self.path / METRICS
        with _clear_errors(self.path):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
            kept = "".join(line for line in lines if _iteration(line) <= iteration)
            write_atomically(path, kept)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`, and its numbers to the TensorBoard events."""
        with _clear_errors(self.path):
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            iteration = record["iteration"]
            for name, value in record.items():
                if isinstance(value, float):
                    self._writer(iteration).add_scalar(name, value, iteration)

    def add_samples(self, iteration: int, rows: Sequence[Sequence[Pixels]]) -> None:
        """Writes one picture: a row for each sample, rainy, derained and clean from left to right."""
        strips = [np.concatenate([_framed(picture) for picture in row], axis=1) for row in rows]
        width = max(strip.shape[1] for strip in strips)
        sheet = np.concatenate([np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0))) for strip in strips])
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "PNG")
        with _clear_errors(self.path):
            (self.path / "samples").mkdir(exist_ok=True)
            write_atomically(self.path / "samples" / f"iteration-{iteration:08d}.png", buffer.getvalue())
            self._writer(iteration).add_image("samples", sheet, iteration, dataformats="HWC")
            self._writer(iteration).flush()

    def write_weights(self, name: str, model: SAPNet, card: str) -> None:
        """Writes weights that `sapnet derain --weights` takes, and their model card beside them."""
        with _clear_errors(self.path):
            save_checkpoint(model, self.path / name)
            write_atomically((self.path / name).with_suffix(".md"), card)

    def close(self) -> None:
        """Ends the TensorBoard events, and lets others in."""
        if self._events is not None:
            self._events.close()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def _writer(self, iteration: int) -> SummaryWriter:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=iteration)
        return self._events


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turns what the file system says into a line for the user."""
    try:
        yield
    except FileExistsError as error:
        raise UsageError(f"{path}: is a file; --output names the folder of the run") from error
    except OSError as error:
        raise SapnetError(f"{path}: cannot write there: {error.strerror or error}") from error


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_atomically(target, source.read_bytes())


def _iteration(line: str) -> float:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):  # the last line of a run that was killed while it wrote
        return float("inf")


def _framed(picture: Pixels) -> Pixels:
    """A picture with a black margin to its neighbours."""
    return np.pad(picture, ((0, 4), (0, 4), (0, 0)))
