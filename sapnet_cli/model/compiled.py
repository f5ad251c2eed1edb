"""What is in C, `c/`, as the build of the package compiled it (`hatch_build.py`): for x86 from AVX2 on, and Arm.

Where nothing could compile it, or on another CPU or system, `is_available` says no, and PyTorch computes all.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).with_name("c")

SETS: dict[str, Callable[[], bool]] = {
    "amx": lambda: (
        torch.cpu._is_amx_tile_supported()
        and torch.cpu._is_avx512_bf16_supported()
        and torch.cpu._init_amx()  # asks the system for it
    ),
    "avx512": torch.cpu._is_avx512_supported,
    "avx2": torch.cpu._is_avx2_supported,
    "neon": lambda: platform.machine() == "aarch64",  # all of which have it
}
"""Of instructions that all of it is compiled for, best first, and whether this CPU has them."""


@dataclass(frozen=True)
class Program:
    """What is compiled for one of `SETS`.

    Attributes:
        lanes: floats of a vector.
        multiplies_matrices: whether it has `c/matrices.c`, for bfloat16.
        run: runs a function of it on a job, at an address, on all threads.
        call: the same on this thread.
    """

    lanes: int
    multiplies_matrices: bool
    run: Callable[[str, int], None]
    call: Callable[[str, int], None]


def is_available() -> bool:
    """Whether this machine computes so."""
    return find_program() is not None


def program() -> Program:
    """What this machine computes with.

    Raises:
        RuntimeError: nothing compiled is here.
    """
    found = find_program()
    if found is None:
        raise RuntimeError("nothing compiled is here")
    return found


@cache
def find_program() -> Program | None:
    """For the best instructions that this CPU has and that were compiled for; None where there is none."""
    if sys.platform != "linux":
        return None
    programs = (load_program(instructions) for instructions, are_here in SETS.items() if are_here())
    return next((each for each in programs if each is not None), None)


def load_program(instructions: str) -> Program | None:
    """For one of `SETS`, which this CPU has; None where it was not compiled.

    On the threads of PyTorch's own OpenMP: others would fight with them for the cores.
    """
    try:
        library = ctypes.CDLL(str(SOURCES / compiled_name(instructions)))
        in_parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # of what PyTorch itself is linked with
    except (OSError, AttributeError):
        return None
    in_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    in_parallel.restype = None

    def run(function: str, job: int) -> None:
        in_parallel(ctypes.cast(getattr(library, function), ctypes.c_void_p), job, torch.get_num_threads(), 0)

    def call(function: str, job: int) -> None:
        getattr(library, function)(ctypes.c_void_p(job))

    lanes = ctypes.c_long.in_dll(library, "sapnet_lanes").value
    return Program(lanes, hasattr(library, "sapnet_multiply"), run, call)


def compiled_name(instructions: str) -> str:
    """Of the file compiled for one of `SETS`: other sources have another, so that no old one is taken for it."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return f"sapnet-{digest.hexdigest()[:12]}-{instructions}.so"
