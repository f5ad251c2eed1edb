"""The process of a command begins and ends fast, and with nothing lost."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from sapnet_cli.cli.process import importing


def test_importing_looks_for_no_garbage_and_never_in_what_is_imported() -> None:
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        kept = [[]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert not any(each is kept for each in gc.get_objects())
    gc.unfreeze()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("block", "code", "errors"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('why')", 1, "why"),
        ("raise ValueError('why')", 1, "ValueError: why"),
    ],
)
def test_quick_end_keeps_exit_code_and_output_and_takes_nothing_apart(block: str, code: int, errors: str) -> None:
    program = f"""
import atexit, sys, threading, time
from sapnet_cli.cli.process import quick_end

class Module:
    def __del__(self):
        print("taken apart")

module = Module()
with quick_end():
    atexit.register(print, "registered")
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    print("said")
    {block}
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert result.stdout.split("\n") == ["said", "thread", "registered", ""]
    assert (result.stderr.strip().split("\n") or [""])[-1] == errors
