"""The network's layers in C, where it is compiled: see `compiled.py`.

PyTorch's convolutions run at the peak of such a CPU, so that nothing but fewer multiplications makes them faster. These
need a quarter of them or fewer, by Winograd's F(4x4, 3x3) or F(6x6, 3x3), take a third of the time, and round to the
fifth digit.

Planes of features are (N, H, W, C), one pixel after the other, in float32, or in float16 or bfloat16, which take half
of the time that they are waited for. All that is computed is float32, but where a CPU multiplies matrices of bfloat16,
which is faster still: see `matrices.py`. All arrays are NumPy's, or all PyTorch's on the CPU (`arrays.py`).
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.model import compiled, matrices
from sapnet_cli.model.arrays import address, contiguous, is_contiguous, kind_of, new_like, of_either

if TYPE_CHECKING:
    from sapnet_cli.model.arrays import AnyArray, Array

POINTS = {4: (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)), 6: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0)}
"""Of tiles of each side, beside infinity: where a line of pixels, as a polynomial, meets a line of the kernel."""

SMALL, LARGE = POINTS
"""Sides of the tiles, whose pixels lie a dilation apart."""

PLANES = "fp32", "fp16", "bf16"
"""What planes may be of, in the order of `c/vectors.h`: see `arrays.KINDS`."""

PARTS, PART_ROWS = 2, 96
"""For each thread, of a picture that is summed, at least, and rows of each, about: what a slower one leaves, others
take."""


class Convolution(ctypes.Structure):
    """That of `c/convolution.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "state", "kernel", "scale", "bias", "skip")),
        *((name, ctypes.c_void_p) for name in ("target", "before", "cell", "gates", "activated", "after")),
        *((name, ctypes.c_void_p) for name in ("tells", "passed", "sums")),
        *((name, ctypes.c_long) for name in ("count", "height", "width", "inputs", "own", "outputs", "dilation")),
        *((name, ctypes.c_long) for name in ("side", "kind", "each", "relu", "parts", "next", "failed")),
    )


class Embedding(ctypes.Structure):
    """That of `c/image.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rainy", "residual", "kernel", "bias", "target")),
        *((name, ctypes.c_long) for name in ("count", "height", "width", "outputs", "bytes", "kind")),
        *((name, ctypes.c_long) for name in ("next", "failed")),
    )


class Change(ctypes.Structure):
    """That of `c/image.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rainy", "residual", "linear", "most")),
        *((name, ctypes.c_long) for name in ("pixels", "bytes", "next")),
    )


class Pooling(ctypes.Structure):
    """That of `c/attention.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("plane", "parts", "columns", "cores", "kernel", "bias")),
        *((name, ctypes.c_void_p) for name in ("rectangle", "means")),
        *((name, ctypes.c_long) for name in ("number", "count", "height", "width", "channels", "outputs", "dilation")),
        *((name, ctypes.c_long) for name in ("kind", "next", "done")),
    )


class Attention(ctypes.Structure):
    """That of `c/attention.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("pooled", "direct", "squeeze", "expand", "bias")),
        *((name, ctypes.c_void_p) for name in ("scale", "scaled_bias")),
        *((name, ctypes.c_long) for name in ("channels", "squeezed")),
    )


@dataclass(frozen=True)
class Pooled:
    """What is to be known of what is computed: the means of what a convolution to come, of it, will give.

    Attributes:
        means: where they go, (N, O). They depend on how many threads there are.
        cores: of each picture what they are over, first row and end, first column and end, (N, 4), int64.
        kernel: of that convolution, (9 C, O): rows, columns and input channels, one after the other.
        bias: of it, (O,).
        dilation: of it.
    """

    means: Any
    cores: Array
    kernel: Array
    bias: Array
    dilation: int


def suits(outputs: int, inputs: int) -> bool:
    """Whether a convolution of so many channels can be computed on this CPU."""
    if not compiled.is_available():
        return False
    return inputs % compiled.program().lanes == 0 and outputs % outputs_together() == 0


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


@of_either
def transform(weight: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A kernel, (O, I, 3, 3), as `convolve` takes it by tiles of a side, (places of a tile, O / T, I, T).

    T is `outputs_together()`.
    """
    (outputs, inputs), together = weight.shape[:2], outputs_together()
    placed = (places(side) @ weight.astype(np.float64).reshape(-1, 9).T).astype(weight.dtype)
    return placed.reshape(-1, outputs // together, together, inputs).swapaxes(2, 3)


def lay_for_means(weight: AnyArray) -> AnyArray:
    """A kernel, (O, I, 3, 3), as a matrix, (9 I, O), whose rows follow each other as in (3, 3, I)."""
    taps_first = weight.swapaxes(0, 2).swapaxes(1, 3).swapaxes(2, 3)
    laid: AnyArray = contiguous(taps_first.reshape(-1, weight.shape[0]))
    return laid


def convolve(
    source: AnyArray,
    transformed: Array,
    scale: Array,
    bias: Array,
    dilation: int,
    relu: bool = False,
    skip: Array | None = None,
    out: AnyArray | None = None,
    pooled: Pooled | None = None,
    activated: Array | None = None,
) -> AnyArray:
    """`scale * convolution + bias`, and `skip` if there is one: `ReLU(ReLU(that) + skip)`, or neither.

    Args:
        source: a plane of I channels.
        transformed: by `transform`, of as many inputs, for tiles of any side; or by `matrices.lay`, for a source of
            bfloat16.
        scale: of each output channel, (O,), or (N, O), one for each picture.
        bias: like it.
        dilation: of the kernel, and rows and columns of zeros beyond each edge.
        relu: whether there is one before and after the sum.
        skip: a plane like what comes out.
        out: where it goes, if there is a place, a plane like the source, of O channels; it may be that of `skip`.
        pooled: what is to be known of it, if anything.
        activated: where the inner ReLU's result goes, if anywhere: a plane like `skip`, of bfloat16 by `matrices.lay`.

    Returns:
        A plane of O channels.

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: a plane is of another shape or kind than it should be, or in pieces.
    """
    outputs = scale.shape[-1]
    target: AnyArray = new_like(source, *source.shape[:3], outputs) if out is None else out
    _check_plane(source, source.shape)
    for plane in (target, skip, activated):
        if plane is not None:
            _check_plane(plane, (*source.shape[:3], outputs), kind_of(source))
    job = begin(source, transformed, outputs, dilation)
    scale, bias, job.each = contiguous(scale), contiguous(bias), scale.ndim == 2
    for vectors in (scale, bias):
        check(vectors, (len(source), outputs) if job.each else (outputs,))
    job.scale, job.bias, job.target, job.relu = address(scale), address(bias), address(target), relu
    if skip is not None:
        job.skip = address(skip)
    if activated is not None:
        if skip is None or kind_of(transformed) != "bf16":
            raise ValueError("what comes out of an inner ReLU is kept by matrices alone, and where there is a skip")
        job.activated = address(activated)
    _convolve(job, transformed, target, pooled)
    return target


def recur(
    source: Array,
    state: tuple[Array, Array] | None,
    transformed: Array,
    bias: Array,
    hidden: Array,
    cell: Array,
    pooled: Pooled | None = None,
    gates: Array | None = None,
) -> None:
    """A step of the ConvLSTM (PReNet, eq. 4), into `hidden` and `cell`.

    Args:
        source: a plane of features, of I channels.
        state: hidden and cell state before, planes of C, or None at the first step, which has none and nothing to
            forget.
        transformed: the kernel of the gates, by `transform`, of features and state: input, candidate, output and,
            where there is a state, forget. Or of all gates, of features and state, by `matrices.lay_gates`.
        bias: of the gates, (4 C,) or (3 C,).
        hidden: where the hidden state goes, a plane of C; not where it was.
        cell: where the cell state goes, in the same way; it may be where it was.
        pooled: what is to be known of the hidden state, if anything.
        gates: where the gates go, before their sigmoid or hyperbolic tangent, if anywhere: a plane of 4 C, or of 3 C
            where there is no state.

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: a plane is of another shape or kind, or in pieces, or I or C is no multiple of a vector's lanes.
    """
    multiplies = kind_of(transformed) == "bf16"  # which has all gates, and leaves a state that is not there out
    channels = len(bias) // (3 if state is None and not multiplies else 4)
    check_multiples(compiled.program().lanes, source.shape[3], channels)
    _check_plane(source, source.shape)
    for plane in (hidden, cell, *(state or ())):
        _check_plane(plane, (*source.shape[:3], channels), kind_of(source))
    job = begin(source, transformed, len(bias))
    bias = contiguous(bias)
    job.bias, job.target, job.cell = address(bias), address(hidden), address(cell)
    if state is not None:
        job.state, job.before = (address(plane) for plane in state)
    if state is not None or multiplies:
        job.inputs = source.shape[3] + channels
    if gates is not None:
        _check_plane(gates, (*source.shape[:3], (3 if state is None else 4) * channels), kind_of(source))
        job.gates = address(gates)
    _convolve(job, transformed, hidden, pooled)


def embed(rainy: Array, residual: Array, kernel: Array, bias: Array, out: Array) -> None:
    """A 3x3 convolution that keeps the size, of two images, and a ReLU.

    Args:
        rainy: (N, H, W, 3), uint8, or float32 in [0, 1].
        residual: (N, H, W, 3), float32.
        kernel: of the rainy image in 255ths and the residual, (54, O): rows, columns and channels, one after the other.
            O is a multiple of `outputs_together()`.
        bias: (O,).
        out: where it goes, a plane of O channels.

    Raises:
        MemoryError: there is none for a few rows.
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    shape, outputs = residual.shape[:3], len(bias)
    check_multiples(outputs_together(), outputs)
    as_bytes = kind_of(rainy) == "uint8"
    check(rainy, (*shape, 3), "uint8" if as_bytes else "fp32")
    check(residual, (*shape, 3))
    check(kernel, (54, outputs))
    check(bias, (outputs,))
    _check_plane(out, (*shape, outputs))
    job = Embedding(*(address(array) for array in (rainy, residual, kernel, bias, out)), *shape, outputs)
    job.bytes, job.kind = as_bytes, PLANES.index(kind_of(out))
    run("sapnet_embed", job)


def project(source: Array, kernel: Array, bias: Array, out: Array) -> None:
    """A 3x3 convolution that keeps the size, to three channels, as it is: what it gives is little.

    Args:
        source: a plane of I channels, a multiple of a vector's lanes.
        kernel: (3, 3, 3, I): rows, columns, colours and channels; or by `matrices.lay_image`, for a source of bfloat16.
        bias: (3,).
        out: where it goes, (N, H, W, 3), float32.

    Raises:
        MemoryError: there is none.
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    check_multiples(compiled.program().lanes, source.shape[3])
    _check_plane(source, source.shape)
    check(bias, (3,))
    check(out, (*source.shape[:3], 3))
    job = begin(source, kernel, 3)
    job.bias, job.target = address(bias), address(out)
    if kind_of(kernel) == "bf16":
        _check_matrices(job, kernel, 2 * matrices.SIDE, source)
        run("sapnet_multiply", job)
        return
    check(kernel, (3, 3, 3, source.shape[3]))
    run("sapnet_project", job)


def change(residual: Array, rainy: Array, linear: Any, most: Array) -> None:
    """Adds to each colour of a residual, in place, what is linear in the colours of its pixel, up to a bound.

    Args:
        residual: (N, H, W, 3), float32.
        rainy: (N, H, W, 3), uint8, or float32 in [0, 1].
        linear: (7, 3), what the rainy colour in [0, 1], the residual and one add to each channel.
        most: (3,), the bounds of what is added.

    Raises:
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    as_bytes = kind_of(rainy) == "uint8"
    check(residual, (*residual.shape[:3], 3))
    check(rainy, tuple(residual.shape), "uint8" if as_bytes else "fp32")
    check(linear, (7, 3))
    check(most, (3,))
    if as_bytes:
        linear = linear * 1  # a copy
        linear[:3] /= 255
    addresses = (address(array) for array in (rainy, residual, linear, most))
    job = Change(*addresses, math.prod(residual.shape[:3]), as_bytes)
    compiled.program().run("sapnet_change", ctypes.addressof(job))


def attend(pooled: AnyArray, direct: Array, squeeze: Array, expand: Array, bias: Array) -> tuple[AnyArray, AnyArray]:
    """Channel residual attention (paper, section 3.2).

    Args:
        pooled: the features' vector, (C,), of a multiple of a vector's lanes.
        direct: A, transposed, (C, C).
        squeeze: D1, (R, C).
        expand: D2, transposed, (R, C).
        bias: of the convolution that it scales, (C,).

    Returns:
        What it scales the convolution by, (C,), and its bias, scaled.

    Raises:
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    channels, squeezed = len(pooled), len(squeeze)
    check_multiples(compiled.program().lanes, channels)
    for vector in (pooled, bias):
        check(vector, (channels,))
    check(direct, (channels, channels))
    for matrix in (squeeze, expand):
        check(matrix, (squeezed, channels))
    result = new_like(pooled, 2, channels)
    scale, scaled_bias = result[0], result[1]
    given = (pooled, direct, squeeze, expand, bias, scale, scaled_bias)
    job = Attention(*(address(array) for array in given), channels, squeezed)
    compiled.program().call("sapnet_attend", ctypes.addressof(job))
    return scale, scaled_bias


def begin(source: Array, kernel: Array, outputs: int, dilation: int = 1) -> Convolution:
    """What all convolutions have."""
    job = Convolution(source=address(source), kernel=address(kernel), outputs=outputs, dilation=dilation)
    job.count, job.height, job.width, job.own = source.shape
    job.inputs, job.kind = job.own, PLANES.index(kind_of(source))
    return job


def check_kernel(job: Convolution, transformed: Array, plane: Array) -> str:
    """What convolves by a kernel a plane, or gives one; takes the side of the tiles that it was transformed for.

    Raises:
        ValueError: it is for other channels, or in pieces.
    """
    if kind_of(transformed) == "bf16":
        _check_matrices(job, transformed, job.outputs, plane)
        return "sapnet_multiply"
    together = outputs_together()
    check(transformed, (transformed.shape[0], job.outputs // together, job.inputs, together))
    job.side = math.isqrt(transformed.shape[0]) - 2
    return "sapnet_convolve"


def _convolve(job: Convolution, transformed: Array, target: Array, pooled: Pooled | None) -> None:
    """Runs a convolution, and pools what it gives."""
    function = check_kernel(job, transformed, target)
    if pooled is None:
        run(function, job)
        return
    count, height, width, channels = target.shape
    outputs = len(pooled.bias)
    check(pooled.means, (count, outputs))
    check(pooled.cores, (count, 4), "int64")
    check(pooled.kernel, (9 * channels, outputs))
    check(pooled.bias, (outputs,))
    check_multiples(compiled.program().lanes, outputs)
    job.parts = max(PARTS * compiled.threads(), count * height // PART_ROWS)
    parts, columns = (new_like(pooled.means, number, count, width, channels) for number in (job.parts, 3))
    rectangle = new_like(pooled.means, channels)
    job.sums = address(parts)
    run(function, job)
    arrays = (target, parts, columns, pooled.cores, pooled.kernel, pooled.bias, rectangle, pooled.means)
    pooling = Pooling(*(address(array) for array in arrays), job.parts, count, height, width, channels, outputs)
    pooling.dilation, pooling.kind = pooled.dilation, job.kind
    compiled.program().run("sapnet_pool", ctypes.addressof(pooling))


def _check_matrices(job: Convolution, kernel: Array, outputs: int, plane: Array) -> None:
    """A kernel of so many outputs, as it is laid, and a plane that it is multiplied by or gives."""
    check_multiples(matrices.DEEP, job.own, job.inputs, outputs)
    check(kernel, matrices.shape(outputs, job.inputs), "bf16")
    if kind_of(plane) != "bf16":
        raise ValueError(f"matrices of bfloat16 cannot be multiplied by {plane.dtype}")


def run(function: str, job: Convolution | Embedding) -> None:
    """One function in C, on all threads."""
    compiled.program().run(function, ctypes.addressof(job))
    if job.failed:
        raise MemoryError("out of memory")


def _tiles_along(side: int, length: int, dilation: int) -> int:
    """As `c/winograd.h` counts them."""
    rounds, rest = divmod(length, side * dilation)
    return rounds * dilation + min(rest, dilation)


def check_multiples(of: int, *channels: int) -> None:
    """C takes a vector at a time, or two.

    Raises:
        ValueError: channels that are no multiple.
    """
    for number in channels:
        if number % of:
            raise ValueError(f"{number} channels are no multiple of {of}")


def _check_plane(plane: Array, shape: tuple[int, ...], kind: str | None = None) -> None:
    """As `check`, of a kind of planes or of any."""
    if kind_of(plane) not in PLANES:
        raise ValueError(f"a plane is of {plane.dtype}")
    check(plane, shape, kind or kind_of(plane))


def check(array: Array, shape: tuple[int, ...], kind: str = "fp32") -> None:
    """C writes and reads wherever it is told to."""
    if array.shape != shape or not is_contiguous(array) or kind_of(array) != kind:
        raise ValueError(
            f"what is to be {kind} of {tuple(shape)} is {array.dtype} of {tuple(array.shape)}, or in pieces"
        )


@cache
def places(side: int) -> NDArray[np.float64]:
    """What the nine values of a kernel are at each place of a transformed tile of a side, (places, 9).

    Along a line of three, at each point, what they are there, over its distances from the other points.
    """
    lines = [[point**power for power in range(3)] for point in POINTS[side]]
    for line, point in zip(lines, POINTS[side]):
        for other in POINTS[side]:
            if other != point:
                line[:] = [value / (point - other) for value in line]
    along = np.array([*lines, [0.0, 0.0, 1.0]])
    return np.kron(along, along)
