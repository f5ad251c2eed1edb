"""What is in C, `native.c`, for float32 on x86 CPUs with AVX2: 3x3 convolutions, and a step of the LSTM.

PyTorch's convolutions run at the peak of such a CPU, so that nothing but fewer multiplications makes them faster. These
need a quarter of them, by Winograd's F(4x4, 3x3), take two fifths of the time, and are as exact. The build of the
package compiles the file where a C compiler is at hand (`hatch_build.py`); where none was, or on another CPU or system,
`is_available` says no, and PyTorch computes all.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.c")

POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
"""Beside infinity, where a line of pixels, as a polynomial, is multiplied by a line of the kernel."""

LANES, OUTPUTS = 8, 16
"""What channels come in."""

SIDE = 4
"""Of a tile, whose pixels lie a dilation apart: what rows come in where that is 1."""

PARTS = 2
"""For each thread, of a picture that is summed: what one that is slower leaves, others take."""


class Convolution(ctypes.Structure):
    """That of `native.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "kernel", "scale", "bias", "skip", "target", "sums")),
        *((name, ctypes.c_long) for name in ("count", "height", "width", "inputs", "outputs", "dilation", "above")),
        *(
            (name, ctypes.c_long)
            for name in ("left", "target_height", "target_width", "relu", "parts", "next", "failed")
        ),
    )


class Recurrence(ctypes.Structure):
    """That of `native.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gates", "cell", "hidden")),
        *((name, ctypes.c_long) for name in ("pixels", "width", "first", "next")),
    )


def is_available() -> bool:
    """Whether this machine computes so."""
    return _runner() is not None


def suits(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a convolution of so many channels can be computed so, here."""
    kind = device.type, dtype, outputs % OUTPUTS, inputs % LANES
    return kind == ("cpu", torch.float32, 0, 0) and is_available()


def transform(weight: Tensor) -> Tensor:
    """A kernel, (O, I, 3, 3), as `convolve` takes it, (36, O / 16, I, 16)."""
    outputs, inputs = weight.shape[:2]
    placed = (_places() @ weight.double().reshape(-1, 9).t()).to(weight.dtype)
    return placed.view(-1, outputs // OUTPUTS, OUTPUTS, inputs).transpose(2, 3).contiguous()


def convolve(
    features: Tensor,
    transformed: Tensor,
    scale: Tensor,
    bias: Tensor,
    padding: tuple[int, int, int],
    dilation: int,
    relu: bool = False,
    skip: Tensor | None = None,
    out: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """`scale * convolution + bias`, and `skip` if there is one: `ReLU(ReLU(that) + skip)`, or neither.

    Args:
        features: (N, I, H, W), float32, channels last; else they are copied.
        transformed: by `transform`, of as many inputs.
        scale: of each output channel, (O,).
        bias: (O,).
        padding: rows of zeros above, and below, and columns at either side.
        dilation: of the kernel.
        relu: whether there is one before and after the sum.
        skip: as what comes out.
        out: where it goes, if there is a place, (N, H', W', O), one pixel after the other.
        sums: where its sums over rows go, if there is a place, (N, W', O). They depend on how many threads there are.

    Returns:
        (N, O, H', W'), channels last.

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: `out` is of another shape, or in pieces.
    """
    count, _, height, width = features.shape
    above, below, beside = padding
    size = height + above + below - 2 * dilation, width + 2 * (beside - dilation)
    source, scale, bias = _channels_last(features), scale.contiguous(), bias.contiguous()
    target = source.new_empty(count, *size, len(bias)) if out is None else out
    _check_place(target, (count, *size, len(bias)))
    parts = PARTS * torch.get_num_threads()
    partial = None if sums is None else source.new_zeros(parts, count, size[1], len(bias))
    others = transformed, scale, bias, None if skip is None else _channels_last(skip), target, partial
    job = (source, others, target.shape, (above, beside), dilation)
    _run_convolution("sapnet_convolve", *job, relu=relu, parts=parts)
    if partial is not None:
        torch.sum(partial, dim=0, out=sums)
    return target.permute(0, 3, 1, 2)


def kernel_gradient(features: Tensor, gradient: Tensor, dilation: int) -> Tensor:
    """The gradient of the kernel of a convolution that keeps the size. It depends on how many threads there are.

    Args:
        features: what the convolution read, (N, I, H, W), float32.
        gradient: of what it gave, (N, O, H, W).
        dilation: of the convolution, and its padding.

    Returns:
        (O, I, 3, 3).

    Raises:
        MemoryError: there is none for a few tiles.
    """
    inputs, outputs, parts = features.shape[1], gradient.shape[1], torch.get_num_threads()
    source, wanted = _channels_last(features), _channels_last(gradient)
    sums = source.new_zeros(parts, len(_places()), outputs // OUTPUTS, inputs, OUTPUTS)
    others, around = (sums, None, None, None, wanted, None), (dilation, dilation)
    _run_convolution("sapnet_kernel_gradient", source, others, wanted.shape, around, dilation, parts=parts)
    placed = sums.sum(dim=0).transpose(2, 3).reshape(len(sums[0]), -1)
    return (placed.t() @ _places().float()).view(outputs, inputs, 3, 3)


def recur(gates: Tensor, cell: Tensor, hidden: Tensor, first: bool) -> None:
    """A step of the ConvLSTM (PReNet, eq. 4) for each pixel, into `cell` and `hidden`.

    Args:
        gates: what its convolution gave, (N, H, W, 4 C): input, candidate, output and forget gate; without the last at
            the first step.
        cell: the cell state, (N, H, W, C), one pixel after the other, with C a multiple of 8.
        hidden: the hidden state, in the same way.
        first: whether there is no state yet.

    Raises:
        ValueError: a state is of another shape than the gates, or in pieces.
    """
    for state in (cell, hidden):
        _check_place(state, (*gates.shape[:3], gates.shape[3] // (3 if first else 4)))
    gates, width = gates.contiguous(), cell.shape[-1]
    pointers = gates.data_ptr(), cell.data_ptr(), hidden.data_ptr()
    _run("sapnet_recur", Recurrence(*pointers, cell.numel() // width, width, first, 0))


def _channels_last(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C) that lies one after the other."""
    return features.permute(0, 2, 3, 1).contiguous()


def _check_place(place: Tensor, shape: tuple[int, ...]) -> None:
    """C writes wherever it is told to."""
    if place.shape != shape or not place.is_contiguous() or place.dtype != torch.float32:
        raise ValueError(f"a place for {shape} is {place.dtype} of {tuple(place.shape)}, or in pieces")


def _run(function: str, job: ctypes.Structure) -> None:
    runner = _runner()
    if runner is None:
        raise RuntimeError("nothing compiled is here")
    runner(function, ctypes.addressof(job))


def _run_convolution(
    function: str,
    source: Tensor,
    others: Sequence[Tensor | None],
    given: Sequence[int],
    padding: tuple[int, int],
    dilation: int,
    relu: bool = False,
    parts: int = 0,
) -> None:
    """One function of `native.c`, on the arrays that `Convolution` names; what it gives has a shape, (N, H', W', O)."""
    count, height, width, inputs = source.shape
    pointers = (None if each is None else each.data_ptr() for each in (source, *others))
    shape = (count, height, width, inputs, given[3], dilation, *padding, *given[1:3])
    job = Convolution(*pointers, *shape, relu, parts, 0, 0)
    _run(function, job)
    if job.failed:
        raise MemoryError("out of memory")


def compiled_name() -> str:
    """Of the compiled file: another source has another, so that no old one is taken for it."""
    return f"_native-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"


@cache
def _runner() -> Callable[[str, int], None] | None:
    """Runs a function on a job, at an address.

    On the threads of PyTorch's own OpenMP: others would fight with them for the cores.
    """
    if sys.platform != "linux" or not torch.cpu._is_avx2_supported():
        return None
    try:
        program = ctypes.CDLL(str(SOURCE.with_name(compiled_name())))
        in_parallel = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):
        return None
    in_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    in_parallel.restype = None

    def run(function: str, job: int) -> None:
        in_parallel(ctypes.cast(getattr(program, function), ctypes.c_void_p), job, torch.get_num_threads(), 0)

    return run


@cache
def _places() -> Tensor:
    """(36, 9): what the nine values of a kernel are at each place of a transformed tile.

    Along a line of three, at each point, what they are there, over its distances from the other points.
    """
    lines = [[point**power for power in range(3)] for point in POINTS]
    for line, point in zip(lines, POINTS):
        for other in POINTS:
            if other != point:
                line[:] = [value / (point - other) for value in line]
    along = torch.tensor([*lines, [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.kron(along, along)
