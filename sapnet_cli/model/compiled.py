"""What is in C, `c/`, as the build of the package compiled it (`hatch_build.py`): for x86 from AVX2 on, and Arm.

Where nothing could compile it, or on another CPU or system, `is_available` says no, and PyTorch computes all.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from sapnet_cli.cores import computing_cores

SOURCES = Path(__file__).with_name("c")

CPU_INFO = Path("/proc/cpuinfo")

ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
"""The system call by which a process on x86 asks for the registers of AMX."""


_SHARE: ContextVar[int | None] = ContextVar("share", default=None)
"""Of the threads, what `on_threads` leaves to this one."""


def _has(*names: str) -> bool:
    """Whether this CPU, and the system with it, has all of these."""
    return set(names) <= _cpu_flags()


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@cache
def _may_use_tiles() -> bool:
    """Asks the system for the registers of AMX."""
    arguments = map(ctypes.c_long, (ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA))
    return bool(ctypes.CDLL(None).syscall(*arguments) == 0)


SETS: dict[str, Callable[[], bool]] = {
    "amx": lambda: _has("avx512f", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16") and _may_use_tiles(),
    "avx512": partial(_has, "avx512f"),
    "avx2": partial(_has, "avx2", "fma", "f16c"),
    "neon": lambda: platform.machine() == "aarch64",  # all of which have it
}
"""Of instructions that all of it is compiled for, best first, and whether this CPU has them."""


@dataclass(frozen=True)
class Program:
    """What is compiled for one of `SETS`.

    Attributes:
        lanes: floats of a vector.
        multiplies_matrices: whether it has `c/matrices.c`, for bfloat16.
        run: runs a function of it on a job, at an address, on all threads, or as many as `on_threads` says.
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

    On the threads of PyTorch's own OpenMP, which need not be loaded for that: others would fight with them for the
    cores, if it is.
    """
    try:
        library = ctypes.CDLL(str(SOURCES / compiled_name(instructions)))
        in_parallel = find_openmp().GOMP_parallel
    except (OSError, AttributeError):
        return None
    in_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    in_parallel.restype = None

    def run(function: str, job: int) -> None:
        number = share_of(1)
        if number == 1:
            call(function, job)
        else:
            in_parallel(ctypes.cast(getattr(library, function), ctypes.c_void_p), job, number, 0)

    def call(function: str, job: int) -> None:
        getattr(library, function)(ctypes.c_void_p(job))

    lanes = ctypes.c_long.in_dll(library, "sapnet_lanes").value
    return Program(lanes, hasattr(library, "sapnet_multiply"), run, call)


def find_openmp() -> ctypes.CDLL:
    """GNU's OpenMP that PyTorch is linked with.

    Raises:
        OSError: there is none.
    """
    spec = find_spec("torch")
    if "torch" not in sys.modules and spec is not None:
        for folder in spec.submodule_search_locations or ():
            for library in Path(folder, "lib").glob("libgomp*.so*"):
                return ctypes.CDLL(str(library))
    import torch

    return ctypes.CDLL(torch._C.__file__)  # finds it among what that is linked with


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Within, what this thread computes by `Program.run` is computed on so many, as others compute beside it."""
    before = _SHARE.set(number)
    try:
        yield
    finally:
        _SHARE.reset(before)


def share_of(number: int) -> int:
    """On how many threads each of so many computes that share those on which `Program.run` computes here."""
    return max(1, (_SHARE.get() or threads()) // number)


def threads() -> int:
    """On how many `Program.run` computes where nothing else does: as many as PyTorch does, if it is loaded."""
    get_num_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return computing_cores() if get_num_threads is None else int(get_num_threads())


def compiled_name(instructions: str) -> str:
    """Of the file compiled for one of `SETS`: other sources have another, so that no old one is taken for it."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return f"sapnet-{digest.hexdigest()[:12]}-{instructions}.so"
