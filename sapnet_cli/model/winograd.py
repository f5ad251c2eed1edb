"""3x3 convolutions in float32 on x86 CPUs with AVX2, in a quarter of the multiplications: Winograd's F(4x4, 3x3).

PyTorch's own run at the peak of such a CPU, so that nothing but fewer multiplications makes them faster; these take
two fifths of the time, and are as exact. They are in C, `winograd.c`, which the build of the package compiles where a C
compiler is at hand (`hatch_build.py`); where none was, or on another CPU or system, `is_available` says no, and all is
computed as before.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("winograd.c")

POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
"""Beside infinity, where a line of pixels, as a polynomial, is multiplied by a line of the kernel."""

LANES, OUTPUTS = 8, 16
"""What channels come in."""


class Job(ctypes.Structure):
    """That of `winograd.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "kernel", "scale", "bias", "skip", "target")),
        *((name, ctypes.c_long) for name in ("count", "height", "width", "inputs", "outputs", "dilation", "above")),
        *((name, ctypes.c_long) for name in ("left", "target_height", "target_width", "relu", "next", "failed")),
    )


def is_available() -> bool:
    """Whether this machine computes so."""
    return _runner() is not None


def suits(weight: Tensor) -> bool:
    """Whether a kernel, (O, I, 3, 3), can be computed so, here."""
    outputs, inputs = weight.shape[:2]
    kind = weight.device.type, weight.dtype, outputs % OUTPUTS, inputs % LANES, tuple(weight.shape[2:])
    return kind == ("cpu", torch.float32, 0, 0, (3, 3)) and is_available()


def transform(weight: Tensor) -> Tensor:
    """A kernel, (O, I, 3, 3), as `convolve` takes it, (36, O / 16, I, 16)."""
    outputs, inputs = weight.shape[:2]
    at_points = torch.einsum("ya,oiab,xb->yxoi", _points(), weight.double(), _points()).to(weight.dtype)
    return at_points.reshape(-1, outputs // OUTPUTS, OUTPUTS, inputs).transpose(2, 3).contiguous()


def convolve(
    features: Tensor,
    transformed: Tensor,
    scale: Tensor,
    bias: Tensor,
    padding: tuple[int, int],
    dilation: int,
    relu: bool = False,
    skip: Tensor | None = None,
) -> Tensor:
    """`scale * convolution + bias`, passed through a ReLU if that is wanted, and added to `skip` if there is one.

    Args:
        features: (N, I, H, W), float32, channels last; else they are copied.
        transformed: by `transform`, of as many inputs.
        scale: of each output channel, (O,).
        bias: (O,).
        padding: rows of zeros above and below, and columns at either side.
        dilation: of the kernel.
        relu: whether what is below zero is zero.
        skip: as what comes out.

    Returns:
        (N, O, H', W'), channels last.

    Raises:
        MemoryError: there is none for a few tiles.
    """
    runner = _runner()
    if runner is None:
        raise RuntimeError("no compiled convolution is here")
    count, inputs, height, width = features.shape
    outputs = len(bias)
    size = height + 2 * (padding[0] - dilation), width + 2 * (padding[1] - dilation)
    source, scale, bias = features.permute(0, 2, 3, 1).contiguous(), scale.contiguous(), bias.contiguous()
    target = source.new_empty(count, *size, outputs)
    added = None if skip is None else skip.permute(0, 2, 3, 1).contiguous()
    arrays = (source, transformed, scale, bias, added, target)
    pointers = (None if each is None else each.data_ptr() for each in arrays)
    job = Job(*pointers, count, height, width, inputs, outputs, dilation, *padding, *size, relu, 0, 0)
    runner(ctypes.addressof(job))
    if job.failed:
        raise MemoryError("out of memory")
    return target.permute(0, 3, 1, 2)


def compiled_name() -> str:
    """Of the compiled file: another source has another, so that no old one is taken for it."""
    return f"_winograd-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"


@cache
def _runner() -> Callable[[int], None] | None:
    """Runs a job, at an address, on the threads of PyTorch's own OpenMP: others would fight with them for the cores."""
    if sys.platform != "linux" or not torch.cpu._is_avx2_supported():
        return None
    try:
        program = ctypes.CDLL(str(SOURCE.with_name(compiled_name()))).sapnet_winograd
        in_parallel = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):
        return None
    in_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    in_parallel.restype = None
    address = ctypes.cast(program, ctypes.c_void_p)
    return lambda job: in_parallel(address, job, torch.get_num_threads(), 0)


@cache
def _points() -> Tensor:
    """(6, 3): what the three values of a line of a kernel are at each point, over its distances from the others."""
    lines = [[point**power for power in range(3)] for point in POINTS]
    for line, point in zip(lines, POINTS):
        for other in POINTS:
            if other != point:
                line[:] = [value / (point - other) for value in line]
    return torch.tensor([*lines, [0.0, 0.0, 1.0]], dtype=torch.float64)
