"""The gradients of the network's layers in C, where it is compiled: of planes as in `native.py`, in float32.

Sums are in parts, and depend on how many threads there are.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sapnet_cli.model import compiled, native

Sums: TypeAlias = tuple[Tensor, ...]
"""Of each picture, of a gradient where it passes all ReLUs, and of that times x, (N, C) both; or none."""


class Through(NamedTuple):
    """What came out of `ReLU(x)`, or of `ReLU(skipped + ReLU(x))` and what skipped it; planes."""

    after: Tensor
    skipped: Tensor | None = None

    def planes(self) -> tuple[Tensor, ...]:
        """Those that there are."""
        return (self.after,) if self.skipped is None else (self.after, self.skipped)


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


def convolve_back(
    gradient: Tensor, kernel: Tensor, dilation: int = 1, more: Tensor | None = None, through: Through | None = None
) -> tuple[Tensor, Sums]:
    """The gradient of what a convolution read, by that of what it gave, which is a convolution, too.

    Args:
        gradient: of what it gave, a plane of O channels.
        kernel: the convolution's, turned (`convolution.turn`) and transformed (`native.transform`).
        dilation: of the convolution.
        more: what is added, a plane of I channels, which is overwritten by the sum; if anything.
        through: what the convolution read, where that came out of ReLUs that the gradient is to pass.

    Returns:
        A plane of I channels, and its sums by `through`; those are empty without one.

    Raises:
        MemoryError: there is none for a few tiles.
        ValueError: a plane is of another shape or kind, or in pieces.
    """
    inputs = kernel.shape[1] * kernel.shape[3]
    if through is None:
        one, zero = gradient.new_ones(inputs), gradient.new_zeros(inputs)
        return native.convolve(gradient, kernel, one, zero, dilation, skip=more, out=more), ()
    shape = *gradient.shape[:3], inputs
    target = gradient.new_empty(shape) if more is None else more
    native.check(gradient, gradient.shape)
    for plane in (target, *through.planes()):
        native.check(plane, shape)
    sums = gradient.new_empty(native.PARTS * torch.get_num_threads(), len(gradient), 2, inputs)
    job = native.begin(gradient, kernel, inputs, dilation)
    native.check_kernel(job, kernel)
    job.parts, job.sums, job.target = len(sums), sums.data_ptr(), target.data_ptr()
    job.skip = None if more is None else target.data_ptr()
    job.after = through.after.data_ptr()
    job.skipped = None if through.skipped is None else through.skipped.data_ptr()
    native.run("sapnet_convolve", job)
    return target, tuple(sums.sum(dim=0).unbind(dim=1))


def pass_attention(
    gradient: Tensor, scale: Tensor, shift: Tensor, through: Through | None = None, out: Tensor | None = None
) -> Tensor:
    """The gradient of x, of which attention and ReLUs make `ReLU(scale x)`, or `ReLU(skipped + ReLU(scale x))`.

    Args:
        gradient: what passed the ReLU, or the outer one, a plane.
        scale: attention's, (N, C).
        shift: what it adds to the gradient of each pixel, as x is what it is told by, (N, C).
        through: what came out, and what skipped it; None where nothing did.
        out: where it goes, a plane like it; a new one without.

    Raises:
        ValueError: one of them is of another shape or kind, or in pieces.
    """
    count, height, width, channels = gradient.shape
    target = torch.empty_like(gradient) if out is None else out
    native.check_multiples(compiled.program().lanes, channels)
    for plane in (gradient, target, *(() if through is None else through.planes())):
        native.check(plane, gradient.shape)
    for vectors in (scale, shift):
        native.check(vectors, (count, channels))
    job = AttentionGradient(*(each.data_ptr() for each in (gradient, scale, shift, target)))
    if through is not None and through.skipped is not None:
        job.after, job.before = (plane.data_ptr() for plane in through.planes())
    job.count, job.pixels, job.channels = count, height * width, channels
    compiled.program().run("sapnet_pass_attention", ctypes.addressof(job))
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
