"""How the process of a command begins and ends, fast."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def importing() -> Iterator[None]:
    """Looks for no garbage while heavy modules are imported, nor ever in what they leave.

    Next to nothing of it is garbage; to look for it over and over, and once more at the end, takes a fifth of a short
    command's time.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def quick_end() -> Iterator[None]:
    """Ends the process, whenever it does after the block, without taking every module apart; PyTorch is a large one.

    Threads are waited for, and what was registered with `atexit` since runs before. The exit code is that of the block.
    """
    code = 1  # of an error that Python itself reports

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # full, closed, or none
                stream.flush()
        os._exit(code)

    atexit.register(end)  # what is registered first runs last
    try:
        yield
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
