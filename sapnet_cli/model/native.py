"""3x3 convolutions and an LSTM's step in float32, in C, where it is compiled: see `compiled.py`.

Features lie in float32 or in float16, which takes half of the time that they are waited for; sums are float32.

PyTorch's convolutions run at the peak of such a CPU, so that nothing but fewer multiplications makes them faster. These
need a quarter of them or fewer, by Winograd's F(4x4, 3x3) or F(6x6, 3x3), take a third of the time, and round to the
fifth digit.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from sapnet_cli.model import compiled

POINTS = {4: (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)), 6: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0)}
"""Of tiles of each side, beside infinity: where a line of pixels, as a polynomial, meets a line of the kernel."""

SMALL, LARGE = POINTS
"""Sides of the tiles, whose pixels lie a dilation apart."""

FEATURES = torch.float32, torch.float16
"""What features lie in."""

PARTS = 2
"""For each thread, of a picture that is summed: what one that is slower leaves, others take."""


class Sums(ctypes.Structure):
    """Those of `c/sums.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("plane", "columns", "rectangles", "cores")),
        *((name, ctypes.c_long) for name in ("count", "height", "width", "channels", "dilation", "parts", "halves")),
    )


class Convolution(ctypes.Structure):
    """That of `c/convolution.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "state", "kernel", "scale", "bias", "skip", "target", "cell")),
        ("sums", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("count", "height", "width", "inputs", "own", "outputs", "dilation")),
        *((name, ctypes.c_long) for name in ("side", "halves", "relu", "parts", "next", "failed")),
    )


class Embedding(ctypes.Structure):
    """That of `c/image.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rainy", "residual", "kernel", "bias", "target")),
        *((name, ctypes.c_long) for name in ("count", "height", "width", "outputs", "bytes", "halves")),
        *((name, ctypes.c_long) for name in ("next", "failed")),
    )


@dataclass(frozen=True)
class Rectangles:
    """Those of what is computed that the nine taps of a convolution to come see.

    Attributes:
        means: where the sums over them go, over the area of the core, (N, 3, 3, C). They depend on how many threads
            there are.
        cores: of each picture what that convolution is asked for, first row and end, first column and end, (N, 4),
            int64.
        dilation: of that convolution.
    """

    means: Tensor
    cores: Tensor
    dilation: int


def suits(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a convolution of so many channels can be computed so, here, by `convolve`."""
    return suits_image(inputs, device, dtype) and outputs % outputs_together() == 0


def suits_image(inputs: int, device: torch.device, dtype: torch.dtype) -> bool:
    """The same of one to an image, by `project`."""
    return (
        (device.type, dtype) == ("cpu", torch.float32)
        and compiled.is_available()
        and inputs % compiled.program().lanes == 0
    )


def outputs_together() -> int:
    """Output channels that lie side by side in a kernel, and come in so many.

    Raises:
        RuntimeError: nothing compiled is here.
    """
    return 2 * compiled.program().lanes


def choose_side(height: int, width: int, dilation: int) -> int:
    """Of the tiles that a convolution takes least time by, which gives so many pixels; a large one takes 1.9 small."""
    small, large = (_tiles_along(side, height, dilation) * _tiles_along(side, width, dilation) for side in POINTS)
    return LARGE if 1.9 * large < small else SMALL


def transform(weight: Tensor, side: int) -> Tensor:
    """A kernel, (O, I, 3, 3), as `convolve` takes it by tiles of a side, (places of a tile, O / T, I, T).

    T is `outputs_together()`.
    """
    (outputs, inputs), together = weight.shape[:2], outputs_together()
    placed = (_places(side) @ weight.double().reshape(-1, 9).t()).to(weight.dtype)
    return placed.view(-1, outputs // together, together, inputs).transpose(2, 3).contiguous()


def convolve(
    features: Tensor,
    transformed: Tensor,
    scale: Tensor,
    bias: Tensor,
    dilation: int,
    relu: bool = False,
    skip: Tensor | None = None,
    out: Tensor | None = None,
    rectangles: Rectangles | None = None,
) -> Tensor:
    """`scale * convolution + bias`, and `skip` if there is one: `ReLU(ReLU(that) + skip)`, or neither.

    Args:
        features: (N, I, H, W), one of `FEATURES`, channels last; else they are copied.
        transformed: by `transform`, of as many inputs, for tiles of any side.
        scale: of each output channel, (O,).
        bias: (O,).
        dilation: of the kernel, and rows and columns of zeros beyond each edge.
        relu: whether there is one before and after the sum.
        skip: as what comes out.
        out: where it goes, if there is a place, (N, H, W, O), of the kind of the features, one pixel after the
            other; it may be that of `skip`.
        rectangles: of what comes out that are to be summed, if any.

    Returns:
        (N, O, H, W), channels last.

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: `skip` or `out` is of another shape or kind, or `out` in pieces.
    """
    source = _channels_last(features)
    target = source.new_empty(*source.shape[:3], len(bias)) if out is None else out
    _check_place(target, (*source.shape[:3], len(bias)), source.dtype)
    if skip is not None:
        skip = _channels_last(skip)
        _check_place(skip, target.shape, source.dtype)
    arrays = _Arrays(source, transformed, target, scale=scale.contiguous(), bias=bias.contiguous(), skip=skip)
    _convolve(arrays, rectangles, len(bias), dilation, relu)
    return target.permute(0, 3, 1, 2)


def recur(
    features: Tensor,
    state: Tensor | None,
    transformed: Tensor,
    bias: Tensor,
    cell: Tensor,
    hidden: Tensor,
    rectangles: Rectangles | None = None,
) -> None:
    """A step of the ConvLSTM (PReNet, eq. 4), into `cell` and `hidden`.

    Args:
        features: (N, I, H, W), one of `FEATURES`, as are the others, channels last; else they are copied.
        state: the hidden state before, (N, H, W, C), or None at the first step, which has none and nothing to forget.
        transformed: the kernel of the gates, by `transform`, of features and state: input, candidate, output and,
            where there is a state, forget.
        bias: of the gates, (4 C,) or (3 C,).
        cell: the cell state, (N, H, W, C), which a state goes into and comes out of.
        hidden: where the hidden state goes, in the same way; not where it was.
        rectangles: of the hidden state that are to be summed, if any.

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: a place is of another shape or kind, or in pieces, or I or C is no multiple of a vector's lanes.
    """
    source = _channels_last(features)
    shape = (*source.shape[:3], len(bias) // (3 if state is None else 4))
    lanes = compiled.program().lanes
    if source.shape[3] % lanes or shape[3] % lanes:
        raise ValueError(f"{source.shape[3]} and {shape[3]} channels are not all multiples of {lanes}")
    for place in (cell, hidden, *(() if state is None else (state,))):
        _check_place(place, shape, source.dtype)
    arrays = _Arrays(source, transformed, hidden, state=state, bias=bias.contiguous(), cell=cell)
    _convolve(arrays, rectangles, len(bias))


def project(features: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """A 3x3 convolution that keeps the size, to three channels, as it is: what it gives is little.

    Args:
        features: (N, H, W, I), one of `FEATURES`, one pixel after the other; else they are copied. I is a multiple of a
            vector's lanes.
        weight: (3, I, 3, 3).
        bias: (3,).
        out: where it goes, (N, H, W, 3), float32, one pixel after the other.

    Raises:
        MemoryError: there is none.
        ValueError: features or `out` are of another shape, or `out` is in pieces.
    """
    source = features.contiguous()
    _check_place(source, (*out.shape[:3], weight.shape[1]), source.dtype)
    _check_place(out, (*source.shape[:3], 3))
    arrays = _Arrays(source, weight.permute(2, 3, 0, 1).contiguous(), out, bias=bias.contiguous())
    _run("sapnet_project", arrays, 3, 1, SMALL)


def embed(rainy: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """A 3x3 convolution that keeps the size, of two images, and a ReLU.

    Args:
        rainy: (N, H, W, 3), uint8, or float32 in [0, 1].
        residual: (N, H, W, 3), float32.
        weight: of the rainy image in 255ths and the residual, (54, O): rows, columns and channels, one after the other.
            O is a multiple of `outputs_together()`.
        bias: (O,).
        out: where it goes, (N, H, W, O), one of `FEATURES`, one pixel after the other.

    Raises:
        MemoryError: there is none for a few rows.
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    shape, outputs = residual.shape[:3], len(bias)
    if outputs % outputs_together():
        raise ValueError(f"{outputs} channels are no multiple of {outputs_together()}")
    _check_place(rainy, (*shape, 3), torch.uint8 if rainy.dtype == torch.uint8 else torch.float32)
    _check_place(residual, (*shape, 3))
    _check_place(weight, (54, outputs))
    _check_place(bias, (outputs,))
    _check_place(out, (*shape, outputs), _feature_kind(out))
    job = Embedding(*(array.data_ptr() for array in (rainy, residual, weight, bias, out)), *shape, outputs)
    job.bytes, job.halves = rainy.dtype == torch.uint8, out.dtype == torch.float16
    compiled.program().run("sapnet_embed", ctypes.addressof(job))
    if job.failed:
        raise MemoryError("out of memory")


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
    side, together = choose_side(features.shape[2], features.shape[3], dilation), outputs_together()
    source, wanted = _channels_last(features), _channels_last(gradient)
    sums = source.new_zeros(parts, len(_places(side)), outputs // together, inputs, together)
    _run("sapnet_kernel_gradient", _Arrays(source, sums, wanted), outputs, dilation, side, parts=parts)
    placed = sums.sum(dim=0).transpose(2, 3).reshape(len(sums[0]), -1)
    return (placed.t() @ _places(side).float()).view(outputs, inputs, 3, 3)


@dataclass(frozen=True)
class _Arrays:
    """What a `Convolution` points to."""

    source: Tensor
    kernel: Tensor
    target: Tensor
    state: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    skip: Tensor | None = None
    cell: Tensor | None = None
    sums: Tensor | None = None


def _convolve(
    arrays: _Arrays,
    rectangles: Rectangles | None,
    outputs: int,
    dilation: int = 1,
    relu: bool = False,
) -> None:
    """Runs a convolution, and sums what it gives."""
    count, height, width, channels = arrays.target.shape
    parts = PARTS * torch.get_num_threads()
    sums = None
    if rectangles is not None:
        _check_place(rectangles.means, (count, 3, 3, channels))
        _check_place(rectangles.cores, (count, 4), torch.int64)
        sums = rectangles.means.new_empty(parts, count, width, channels)
    side = math.isqrt(len(arrays.kernel)) - 2
    _run("sapnet_convolve", replace(arrays, sums=sums), outputs, dilation, side, relu, parts)
    if rectangles is None or sums is None:
        return
    places = (arrays.target, sums, rectangles.means, rectangles.cores)
    job = Sums(*(place.data_ptr() for place in places), count, height, width, channels, rectangles.dilation, parts)
    job.halves = arrays.target.dtype == torch.float16
    compiled.program().call("sapnet_sum", ctypes.addressof(job))


def _run(
    function: str,
    arrays: _Arrays,
    outputs: int,
    dilation: int,
    side: int,
    relu: bool = False,
    parts: int = 0,
) -> None:
    """One function in C."""
    job = Convolution(outputs=outputs, dilation=dilation, side=side, relu=relu, parts=parts)
    job.halves = _feature_kind(arrays.source) == torch.float16
    job.count, job.height, job.width, job.own = arrays.source.shape
    job.inputs = job.own + (0 if arrays.state is None else arrays.state.shape[3])
    for name, array in vars(arrays).items():
        setattr(job, name, None if array is None else array.data_ptr())
    compiled.program().run(function, ctypes.addressof(job))
    if job.failed:
        raise MemoryError("out of memory")


def _tiles_along(side: int, length: int, dilation: int) -> int:
    """As `c/winograd.h` counts them."""
    rounds, rest = divmod(length, side * dilation)
    return rounds * dilation + min(rest, dilation)


def _channels_last(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C) that lies one after the other."""
    return features.permute(0, 2, 3, 1).contiguous()


def _feature_kind(features: Tensor) -> torch.dtype:
    if features.dtype not in FEATURES:
        raise ValueError(f"features are {features.dtype}")
    return features.dtype


def _check_place(place: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """C writes and reads wherever it is told to."""
    if place.shape != shape or not place.is_contiguous() or place.dtype != dtype:
        raise ValueError(f"a place for {shape} is {place.dtype} of {tuple(place.shape)}, or in pieces")


@cache
def _places(side: int) -> Tensor:
    """What the nine values of a kernel are at each place of a transformed tile of a side, (places, 9).

    Along a line of three, at each point, what they are there, over its distances from the other points.
    """
    lines = [[point**power for power in range(3)] for point in POINTS[side]]
    for line, point in zip(lines, POINTS[side]):
        for other in POINTS[side]:
            if other != point:
                line[:] = [value / (point - other) for value in line]
    along = torch.tensor([*lines, [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.kron(along, along)
