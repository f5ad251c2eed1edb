"""The gradients of the network's layers in C, where it is compiled: of planes as in `native.py`.

They are of float32, or of bfloat16 where a CPU multiplies matrices of it (`matrices.py`). Sums are in float32 and in
parts, and depend on how many threads there are.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sapnet_cli.model import compiled, matrices, native
from sapnet_cli.model.arrays import kind_of

Sums: TypeAlias = tuple[Tensor, ...]
"""Of each picture, of a gradient where it passes all ReLUs, and of that times x, (N, C) both; or none."""


class Through(NamedTuple):
    """What came out of `ReLU(x)`, or of `ReLU(skipped + ReLU(x))`.

    Attributes:
        after: that, a plane.
        tells: of the latter what tells the inner ReLU's result, a plane: that itself in bfloat16, of which a difference
            is too coarse, and what skipped it in float32.
    """

    after: Tensor
    tells: Tensor | None = None


class AttentionGradient(ctypes.Structure):
    """That of `c/backward.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gradient", "scale", "shift", "target", "after", "before")),
        *((name, ctypes.c_long) for name in ("count", "pixels", "channels", "next")),
    )


class StepGradient(ctypes.Structure):
    """That of `c/backward.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gates", "before", "hidden", "cell", "of_gates", "of_before", "sums")),
        *((name, ctypes.c_long) for name in ("pixels", "channels", "kind", "parts", "next")),
    )


class Attention(NamedTuple):
    """What passes attention, and ReLUs, of a gradient: of `ReLU(scale x)`, or of `ReLU(skipped + ReLU(scale x))`.

    Attributes:
        scale: attention's, (N, C).
        shift: what it adds to the gradient of each pixel, as x is what it is told by, (N, C).
        through: what came out of the latter; None of the former, whose ReLU the gradient has passed.
        out: where it goes, a plane; a new one without.
    """

    scale: Tensor
    shift: Tensor
    through: Through | None = None
    out: Tensor | None = None


def kernel_gradient(source: Tensor, gradient: Tensor, dilation: int = 1, state: Tensor | None = None) -> Tensor:
    """The gradient of the kernel of a convolution that keeps the size.

    Args:
        source: what the convolution read, a plane of I channels.
        gradient: of what it gave, one of O.
        dilation: of the convolution, and its padding.
        state: what it read besides, one of S, if anything.

    Returns:
        (O, I + S, 3, 3).

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: a plane is of another shape or kind, or in pieces.
    """
    outputs, parts = gradient.shape[3], torch.get_num_threads()
    for plane in (source, gradient) if state is None else (source, gradient, state):
        _check(plane, (*source.shape[:3], plane.shape[3]), source.dtype)
    if source.dtype is torch.bfloat16:
        return _multiply(source, gradient, dilation, state)
    inputs = source.shape[3] + (0 if state is None else state.shape[3])
    native.check_multiples(native.outputs_together(), outputs)
    native.check_multiples(compiled.program().lanes, source.shape[3], inputs)
    side, together = native.choose_side(source.shape[1], source.shape[2], dilation), native.outputs_together()
    places = torch.from_numpy(native.places(side))
    sums = source.new_zeros(parts, len(places), outputs // together, inputs, together)
    job = native.begin(source, sums, outputs, dilation)
    job.side, job.target, job.parts, job.inputs = side, gradient.data_ptr(), parts, inputs
    if state is not None:
        job.state = state.data_ptr()
    native.run("sapnet_kernel_gradient", job)
    taps = (places.t().float() @ sums.view(parts, len(places), -1)).sum(dim=0)  # (9, O / T, I, T)
    return taps.view(9, -1, inputs, together).permute(1, 3, 2, 0).reshape(outputs, inputs, 3, 3)


def layer_gradient(source: Tensor, gradient: Tensor, attention: Attention, dilation: int) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution that attention scales, and of its kernel.

    Args:
        source: what the convolution read, a plane of I channels.
        gradient: what passed the ReLU of what came out, or the outer one, a plane of O.
        attention: what it passes besides.
        dilation: of the convolution.

    Returns:
        A plane like the gradient, and (O, I, 3, 3).

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    if source.dtype is not torch.bfloat16:
        inner = pass_attention(gradient, attention)
        return inner, kernel_gradient(source, inner, dilation)
    inner = _check_attention(gradient, attention)
    _check(source, (*gradient.shape[:3], source.shape[3]), gradient.dtype)
    return inner, _multiply(source, gradient, dilation, None, attention, inner)


def _multiply(
    source: Tensor,
    gradient: Tensor,
    dilation: int,
    state: Tensor | None,
    attention: Attention | None = None,
    passed: Tensor | None = None,
) -> Tensor:
    """`kernel_gradient` or `layer_gradient` by matrices."""
    outputs, parts = gradient.shape[3], torch.get_num_threads()
    inputs = source.shape[3] + (0 if state is None else state.shape[3])
    native.check_multiples(matrices.DEEP, source.shape[3], inputs, outputs)
    sums = torch.empty(matrices.gradient_shape(parts, outputs, inputs))
    job = native.begin(source, sums, outputs, dilation)
    job.target, job.parts, job.inputs = gradient.data_ptr(), parts, inputs
    if state is not None:
        job.state = state.data_ptr()
    if attention is not None and passed is not None:
        job.scale, job.bias, job.passed = (each.data_ptr() for each in (attention.scale, attention.shift, passed))
        if attention.through is not None and attention.through.tells is not None:
            job.tells = attention.through.tells.data_ptr()
    native.run("sapnet_multiply_gradient", job)
    return matrices.unlay_gradient(sums)


def convolve_back(
    gradient: Tensor, kernel: Tensor, dilation: int = 1, more: Tensor | None = None, through: Through | None = None
) -> tuple[Tensor, Sums]:
    """The gradient of what a convolution read, by that of what it gave, which is a convolution, too.

    Args:
        gradient: of what it gave, a plane of O channels.
        kernel: the convolution's, turned (`convolution.turn`) and transformed (`native.transform`) or laid
            (`matrices.lay`).
        dilation: of the convolution.
        more: what is added, a plane of I channels, which is overwritten by the sum; if anything.
        through: what the convolution read, where that came out of ReLUs that the gradient is to pass.

    Returns:
        A plane of I channels, and its sums by `through`; those are empty without one.

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: a plane is of another shape or kind, or in pieces.
    """
    multiplies = kernel.dtype is torch.bfloat16
    inputs = matrices.outputs_of(kernel) if multiplies else kernel.shape[1] * kernel.shape[3]
    if through is None:
        one, zero = torch.ones(inputs), torch.zeros(inputs)
        return native.convolve(gradient, kernel, one, zero, dilation, skip=more, out=more), ()
    shape = *gradient.shape[:3], inputs
    target = gradient.new_empty(shape) if more is None else more
    _check(gradient, gradient.shape, kernel.dtype)
    _check(target, shape, kernel.dtype)
    _check_through(through, shape, kernel.dtype)
    sums = torch.empty(native.PARTS * torch.get_num_threads(), len(gradient), 2, inputs)
    job = native.begin(gradient, kernel, inputs, dilation)
    function = native.check_kernel(job, kernel, gradient)
    job.parts, job.sums, job.target = len(sums), sums.data_ptr(), target.data_ptr()
    job.skip = None if more is None else target.data_ptr()
    job.after = through.after.data_ptr()
    job.tells = None if through.tells is None else through.tells.data_ptr()
    native.run(function, job)
    return target, tuple(sums.sum(dim=0).unbind(dim=1))


def pass_attention(gradient: Tensor, attention: Attention) -> Tensor:
    """The gradient of x, of which attention and ReLUs make what came out, of float32.

    Args:
        gradient: what passed the ReLU, or the outer one, a plane.
        attention: what it passes besides.

    Raises:
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    count, height, width, channels = gradient.shape
    native.check(gradient, gradient.shape)
    target, through = _check_attention(gradient, attention), attention.through
    native.check_multiples(compiled.program().lanes, channels)
    job = AttentionGradient(*(each.data_ptr() for each in (gradient, attention.scale, attention.shift, target)))
    if through is not None and through.tells is not None:
        job.after, job.before = through.after.data_ptr(), through.tells.data_ptr()
    job.count, job.pixels, job.channels = count, height * width, channels
    compiled.program().run("sapnet_pass_attention", ctypes.addressof(job))
    return target


def _check_attention(gradient: Tensor, attention: Attention) -> Tensor:
    """Where what passes it goes."""
    target = torch.empty_like(gradient) if attention.out is None else attention.out
    for plane in (gradient, target):
        _check(plane, gradient.shape, gradient.dtype)
    if attention.through is not None:
        _check_through(attention.through, gradient.shape, gradient.dtype)
    for vectors in (attention.scale, attention.shift):
        native.check(vectors, (gradient.shape[0], gradient.shape[3]))
    return target


def step_back(
    gates: Tensor, before: Tensor | None, hidden: Tensor, cell: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradient of a step of the ConvLSTM: see `native.recur`.

    Args:
        gates: before their sigmoid or hyperbolic tangent, a plane of 4 C channels, or 3 C at the first step.
        before: the cell state before, a plane of C, or None at the first step.
        hidden: the gradient of the hidden state, a plane of C.
        cell: that of the cell state, or None where it is zero.

    Returns:
        The gradients of the gates, a plane like them, of the cell state before, if there is one, and of the bias.

    Raises:
        ValueError: a plane is of another shape or kind, or in pieces.
    """
    *shape, channels = hidden.shape
    number, parts = 3 if before is None else 4, native.PARTS * torch.get_num_threads()
    native.check_multiples(compiled.program().lanes, channels)
    _check(gates, (*shape, number * channels), hidden.dtype)
    for plane in (before, hidden, cell):
        if plane is not None:
            _check(plane, (*shape, channels), hidden.dtype)
    of_gates, of_before = torch.empty_like(gates), None if before is None else torch.empty_like(before)
    sums = torch.empty(parts, number * channels)
    given = (gates, before, hidden, cell, of_gates, of_before, sums)
    job = StepGradient(*(None if each is None else each.data_ptr() for each in given))
    job.pixels, job.channels, job.parts = hidden.numel() // channels, channels, parts
    job.kind = native.PLANES.index(kind_of(gates))
    compiled.program().run("sapnet_step_back", ctypes.addressof(job))
    return of_gates, of_before, sums.sum(dim=0)


def _check_through(through: Through, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for plane in through:
        if plane is not None:
            _check(plane, shape, dtype)


def _check(plane: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """As `native.check`; halves have too few exponents for gradients."""
    native.check(plane, shape, "bf16" if dtype is torch.bfloat16 else "fp32")
