"""The gradients of the network's layers in C, where it is compiled: of planes as in `native.py`, in float32.

Sums are in parts, and depend on how many threads there are.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sapnet_cli.model import compiled, native


class AttentionGradient(ctypes.Structure):
    """That of `c/backward.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gradient", "after", "before", "scale", "shift", "target", "sums")),
        *((name, ctypes.c_long) for name in ("count", "pixels", "channels", "parts", "next")),
    )


class StepGradient(ctypes.Structure):
    """That of `c/backward.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gates", "before", "hidden", "cell", "of_gates", "of_before", "sums")),
        *((name, ctypes.c_long) for name in ("pixels", "channels", "parts", "next")),
    )


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
        native.check(plane, (*source.shape[:3], plane.shape[3]))
    inputs = source.shape[3] + (0 if state is None else state.shape[3])
    native.check_multiples(native.outputs_together(), outputs)
    native.check_multiples(compiled.program().lanes, source.shape[3], inputs)
    side, together = native.choose_side(source.shape[1], source.shape[2], dilation), native.outputs_together()
    places = native.places(side)
    sums = source.new_zeros(parts, len(places), outputs // together, inputs, together)
    job = native.begin(source, sums, outputs, dilation)
    job.side, job.target, job.parts, job.inputs = side, gradient.data_ptr(), parts, inputs
    if state is not None:
        job.state = state.data_ptr()
    native.run("sapnet_kernel_gradient", job)
    taps = (places.t().float() @ sums.view(parts, len(places), -1)).sum(dim=0)  # (9, O / T, I, T)
    return taps.view(9, -1, inputs, together).permute(1, 3, 2, 0).reshape(outputs, inputs, 3, 3)


def attention_sums(gradient: Tensor, after: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the gradients of attention's scale and of the convolution's bias are told by.

    Args:
        gradient: of what comes out, a plane.
        after: what comes out, `ReLU(scale x)`, a plane like it.
        before: what skips it, if anything: `ReLU(before + ReLU(scale x))` comes out. A plane like it.

    Returns:
        Of each picture, (N, C) both, sums of the gradient where `scale x` passes, and of its product with `scale x`.

    Raises:
        ValueError: a plane is of another shape or kind, or in pieces.
    """
    count, channels = len(gradient), gradient.shape[3]
    parts = native.PARTS * torch.get_num_threads()
    sums = gradient.new_empty(count, parts, 2, channels)
    job = _begin_attention(gradient, after, before)
    job.sums, job.parts = sums.data_ptr(), parts
    compiled.program().run("sapnet_sum_attention", ctypes.addressof(job))
    passed, product = sums.sum(dim=1).unbind(dim=1)
    return passed, product


def pass_attention(
    gradient: Tensor,
    after: Tensor,
    scale: Tensor,
    shift: Tensor,
    before: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    """The gradient of x, where attention and ReLU make of it what `attention_sums` says, `scale * passed + shift`.

    Args:
        gradient: of what comes out, a plane; it becomes that of what skips it, if anything, and else that of x.
        after: as there.
        scale: attention's, (N, C).
        shift: what it adds to the gradient of each pixel, as x is what it is told by, (N, C).
        before: as there.
        out: where the gradient of x goes if something skips it, a plane like it.

    Raises:
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    count, channels = len(gradient), gradient.shape[3]
    target = gradient if out is None else out
    native.check(target, gradient.shape)
    for vectors in (scale, shift):
        native.check(vectors, (count, channels))
    job = _begin_attention(gradient, after, before)
    job.scale, job.shift, job.target = scale.data_ptr(), shift.data_ptr(), target.data_ptr()
    compiled.program().run("sapnet_pass_attention", ctypes.addressof(job))


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
    native.check(gates, (*shape, number * channels))
    for plane in (before, hidden, cell):
        if plane is not None:
            native.check(plane, (*shape, channels))
    of_gates, of_before = torch.empty_like(gates), None if before is None else torch.empty_like(before)
    sums = gates.new_empty(parts, number * channels)
    given = (gates, before, hidden, cell, of_gates, of_before, sums)
    job = StepGradient(*(None if each is None else each.data_ptr() for each in given))
    job.pixels, job.channels, job.parts = hidden.numel() // channels, channels, parts
    compiled.program().run("sapnet_step_back", ctypes.addressof(job))
    return of_gates, of_before, sums.sum(dim=0)


def _begin_attention(gradient: Tensor, after: Tensor, before: Tensor | None) -> AttentionGradient:
    native.check_multiples(compiled.program().lanes, gradient.shape[3])
    for plane in (gradient, after) if before is None else (gradient, after, before):
        native.check(plane, gradient.shape)
    job = AttentionGradient(gradient=gradient.data_ptr(), after=after.data_ptr())
    job.before = None if before is None else before.data_ptr()
    job.count, job.pixels, job.channels = len(gradient), gradient.shape[1] * gradient.shape[2], gradient.shape[3]
    return job
