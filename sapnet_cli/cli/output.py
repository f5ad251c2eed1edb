"""All that the command line prints, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import typer

from sapnet_cli.errors import CheckpointError, SapnetError, UsageError
from sapnet_cli.files import standard_stream

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f]")


class Output:
    """Speaks on standard error; standard output is for JSON lines and for pictures.

    On a terminal a progress bar stays at the bottom; into a pipe or file there is one plain line a picture.
    """

    def __init__(self, *, quiet: bool, verbose: bool, json_lines: bool) -> None:
        from rich.logging import RichHandler

        self.quiet, self.verbose, self.json_lines = quiet, verbose, json_lines
        self.console = _standard_error()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be in any encoding
        self._progress: Progress | None = None
        handler = RichHandler(console=self.console, show_time=False, show_path=False, markup=False)
        logger = logging.getLogger("sapnet_cli")
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)

    @contextmanager
    def progress(self, total: float, doing: str, counted: bool = True) -> Iterator[Output]:
        """Shows a bar on a terminal while something is worked on; `advance` moves it.

        Args:
            total: what there is to do.
            doing: what is done, a word before the bar.
            counted: whether to show how many of how many, or a percentage.
        """
        if self.quiet or not self.console.is_terminal:
            yield self
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn() if counted else TaskProgressColumn(),
            TextColumn("{task.fields[status]}", markup=False),  # may name a folder
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            self._progress.add_task(doing, total=total, status="")
            yield self
        self._progress = None

    @property
    def shows_bar(self) -> bool:
        """Whether a bar says how far the work is, so that lines need not."""
        return self._progress is not None

    def advance(self, completed: float, status: str = "") -> None:
        """Moves the bar to so much of its total."""
        if self._progress is not None:
            self._progress.update(self._progress.tasks[0].id, completed=completed, status=status)

    def computed(self, pictures: float) -> None:
        """So many pictures are computed, the one under way in part."""
        if self._progress is not None:
            rate = pictures / max(self._progress.tasks[0].elapsed or 0.0, 1e-6)
            self.advance(pictures, f"{rate:.2f} images/s" if rate >= 1 else f"{1 / rate:.1f} s/image" if rate else "")

    def finished(self, line: str) -> None:
        """One picture is written, or given up."""
        if self._progress is None or self.verbose:
            self.info(line)

    def info(self, line: str) -> None:
        """Something that a user may want to know."""
        if not self.quiet:
            _print(line, self.console)

    def warn(self, line: str) -> None:
        """Something that a user should know."""
        if not self.quiet:
            _print(f"warning: {line}", self.console, "yellow")

    def error(self, line: str) -> None:
        """Something that went wrong; said even when quiet."""
        print_error(line, self.console)

    def json(self, record: Mapping[str, Any]) -> None:
        """One line of JSON on standard output, if the user asked for it."""
        if self.json_lines:
            try:
                stream = standard_stream(sys.stdout)
                stream.write(json.dumps(record).encode() + b"\n")
                stream.flush()
            except BrokenPipeError:
                raise  # whoever read has enough, and the command ends quietly
            except OSError as error:
                raise SapnetError(f"--json: {error.strerror or error}") from error


def print_error(line: str, console: Console | None = None) -> None:
    """`error: ...` on standard error."""
    _print(f"error: {line}", console or _standard_error(), "red")


def _print(line: str, console: Console, style: str | None = None) -> None:
    """With control characters, which may be in names of files, as Python would write them: a terminal obeys them."""
    console.print(CONTROL_CHARACTERS.sub(lambda found: repr(found[0])[1:-1], line), style=style)


def _standard_error() -> Console:
    from rich.console import Console

    file: Any = None if sys.stderr is None else _Patient(sys.stderr)
    # names of files are neither markup nor emoji
    return Console(file=file, stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Patient:
    """A stream whose failures stop nothing: a log on a full disk, a terminal that is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._patience():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._patience():
            self._stream.flush()

    @staticmethod
    @contextmanager
    def _patience() -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise  # whoever read has enough
        except OSError:
            pass


class Terminated(BaseException):
    """SIGTERM or SIGHUP came in; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def hear_signals(handler: Callable[[int, FrameType | None], None], *further: signal.Signals) -> dict[int, Any]:
    """Has a handler called when the system ends the process, the terminal goes away, or for further signals.

    Returns:
        What each was handled by before; those that nohup, or a script's background, had ignored stay so.
    """
    ending = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []), *further]
    heard = [number for number in ending if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


class exit_codes:  # noqa: N801  # reads as a statement: with exit_codes(...):
    """Turns exceptions that leave the block into one line on standard error and an exit code.

    Args:
        advice: what to tell a user who broke the command off.
    """

    def __init__(self, advice: str) -> None:
        self._advice = advice

    def __enter__(self) -> None:
        """Makes SIGTERM and SIGHUP clean up as Ctrl-C does."""

        def terminate(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGTERM:  # the shell and the system both say that a terminal is gone
                signal.signal(number, signal.SIG_IGN)
            raise Terminated(number)

        self._before = hear_signals(terminate)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Maps the exception, if it is one that users can do something about."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, SapnetError):
            print_error(str(error))
            raise typer.Exit(EXIT_USAGE if isinstance(error, (UsageError, CheckpointError)) else EXIT_FAILED) from error
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            logging.getLogger("sapnet_cli").debug("failed", exc_info=error)
            print_error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
            raise typer.Exit(EXIT_FAILED) from error
        if isinstance(error, KeyboardInterrupt):
            print_error(f"interrupted; {self._advice}")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        if isinstance(error, Terminated):
            print_error(f"terminated; {self._advice}")
            raise typer.Exit(128 + error.number) from error
