"""The fused network in C, where it is compiled: see `model/native.py`. PyTorch need not be loaded for it.

All rows go in one pass, not in strips: tiles are rows a dilation apart, and would reach far beyond a low strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sapnet_cli.engine.forward import Cores, Forward, Ranging
from sapnet_cli.engine.hardware import CPU, AnyDevice
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.pixels import ROWS, Pixels, add_rainy, to_batch
from sapnet_cli.engine.planes import PLANES, Room, choose_place, stored_bytes
from sapnet_cli.model import matrices, native
from sapnet_cli.model.arrays import KINDS, aligned, empty
from sapnet_cli.model.config import SAPNetConfig
from sapnet_cli.model.native import lay_for_means
from sapnet_cli.model.weights import Weights

Values: TypeAlias = NDArray[np.float32]

NativePool: TypeAlias = Callable[[Values, Values], Values]
"""As `Pool` of `fused.py`, of arrays."""


class NativeKernel:
    """A convolution as `native.convolve` takes it, or the gates of an LSTM as `native.recur` does.

    Attributes:
        bias: (O,).
        dilation: of the convolution.
    """

    def __init__(self, weight: Values, bias: Values, dilation: int = 1, laid: NDArray[Any] | None = None) -> None:
        """Takes a kernel, (O, I, 3, 3), and what `matrices.py` makes of it, if it is to be taken."""
        self.bias, self.dilation, self._weight, self._laid = bias, dilation, weight, laid
        sides = native.POINTS if laid is None else ()
        self._transformed: dict[int, Values] = {side: native.transform(weight, side) for side in sides}

    @cached_property
    def for_means(self) -> Values:
        """See `lay_for_means`."""
        return lay_for_means(self._weight)

    def transformed(self, plane: NDArray[Any]) -> NDArray[Any]:
        """For tiles of the side that takes least time by a plane of this size, (N, H, W, C); or as it is laid."""
        if self._laid is not None:
            return self._laid
        return self._transformed[native.choose_side(plane.shape[1], plane.shape[2], self.dilation)]


class NativeWeights:
    """The kernels of one network as C takes them.

    Attributes:
        config: of the network.
        precision: what planes are of, one of `native.PLANES`.
        layers: the convolutions of residual blocks, in order, and attention's matrices, `lay_attention`, if any.
    """

    def __init__(self, weights: Weights, precision: str) -> None:
        """Takes a network that is computed so: see `is_native`."""
        self.config, self.precision = weights.config, precision
        given, width = weights.parameters, weights.config.channels
        multiplies = matrices.are_multiplied(width, precision)
        # of the rainy image in 255ths and of what the last estimate adds to it, as `embed_kernel`
        rainy, estimate = np.split(given["embed.weight"], 2, axis=1)
        embed = np.concatenate(((rainy + estimate) / np.float32(255), estimate), axis=1)
        self.embedding = lay_for_means(embed), given["embed.bias"]
        gates, bias = given["gates.weight"], given["gates.bias"]
        if multiplies:
            self.first_step = self.step = NativeKernel(gates, bias, laid=matrices.lay_gates(gates))
        else:  # at the first unit there is no state, and nothing to forget
            self.first_step = NativeKernel(gates[: 3 * width, :width], bias[: 3 * width])
            self.step = NativeKernel(gates, bias)
        project = given["project.weight"]
        laid = matrices.lay_image(project) if multiplies else aligned(project.transpose(2, 3, 0, 1))
        self.projection = laid, given["project.bias"]
        self.layers: list[tuple[NativeKernel, tuple[Values, Values, Values] | None]] = []
        for index, dilation in enumerate(weights.config.dilations):
            for each in (1, 2):
                name, attention = f"blocks.{index}.conv{each}", f"blocks.{index}.attention{each}"
                weight = given[f"{name}.weight"]
                kernel = NativeKernel(
                    weight, given[f"{name}.bias"], dilation, matrices.lay(weight) if multiplies else None
                )
                parts = [given.get(f"{attention}.{part}.weight") for part in ("direct", "squeeze", "expand")]
                self.layers.append((kernel, lay_attention(*(part for part in parts if part is not None))))


def is_native(config: SAPNetConfig, device: AnyDevice, precision: str) -> bool:
    """Whether all of a network can be computed so, here, and is to be."""
    return device.type == "cpu" and precision in native.PLANES and native.suits(config.channels, config.channels)


def lay_attention(*layers: Values) -> tuple[Values, Values, Values] | None:
    """Its three 1x1 kernels, (O, I, 1, 1), as matrices that `native.attend` takes; None where there are none."""
    if not layers:
        return None
    direct, squeeze, expand = (layer.reshape(layer.shape[:2]) for layer in layers)
    return aligned(direct.T), aligned(squeeze), aligned(expand.T)


class NativeForward(Forward[NDArray[Any]]):
    """One forward in C, over one picture or windows of it."""

    def __init__(
        self,
        weights: NativeWeights,
        rainy: Pixels,
        cores: Cores | None = None,
        pool: NativePool | None = None,
        room: Room | None = None,
        *,
        insistence: Insistence | None = None,
    ) -> None:
        """Makes room; the arguments are those of `FusedForward`, but that images and vectors are arrays.

        Raises:
            OutOfMemoryError: the planes fit neither into memory nor onto the disk that holds temporary files.
        """
        super().__init__(rainy.shape, len(weights.config.dilations), cores, pool, insistence)
        self.weights, self.rainy = weights, np.ascontiguousarray(rainy)
        shape, channels = rainy.shape[:3], weights.config.channels
        place = choose_place(stored_bytes(channels, weights.precision, int(np.prod(shape))), CPU)
        self.residual = empty((*shape, 3), KINDS["fp32"])
        self.residual.fill(0)
        room = room or Room()
        room.begin(place)
        planes = (room.take((*shape, channels), KINDS[weights.precision]) for _ in range(PLANES))
        self.hidden, self._spare, self.cell, self._inner = planes
        self._edges, self._areas = self._find_edges()
        self._pooled: native.Pooled | None = None

    @contextmanager
    def refill(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Gives what is carried, to be overwritten by what another unit left."""
        yield self.carried

    def pixels(self, dtype: np.dtype[Any]) -> list[Pixels]:
        """The estimate after the last unit as pictures of a dtype. No unit can follow.

        Raises:
            FloatingPointError: a value is not finite.
        """
        results = np.empty(self.residual.shape, dtype)
        for residual, rainy, result in zip(self.residual, self.rainy, results):
            for start in range(0, len(result), ROWS):
                rows = slice(start, start + ROWS)
                result[rows] = add_rainy(residual[rows], rainy[rows], dtype)
        return list(results)

    def _begin(self, following: int | None) -> None:
        """Begins the sums that a layer will need of its input; None where none will."""
        self._pooled = None
        if following is not None and self.weights.config.attention:
            kernel, _ = self.weights.layers[following]
            means = np.empty((self.count, len(kernel.bias)), np.float32)
            self._pooled = native.Pooled(means, self._edges, kernel.for_means, kernel.bias, kernel.dilation)

    def _remember(self, first_unit: bool) -> None:
        self._begin(0)
        native.embed(self.rainy, self.residual, *self.weights.embedding, self._inner)
        kernel = self.weights.first_step if first_unit else self.weights.step
        state = None if first_unit else (self.hidden, self.cell)
        gates = kernel.transformed(self._inner), kernel.bias
        # not over the old state, whose neighbours still need it
        native.recur(self._inner, state, *gates, self._spare, self.cell, self._pooled)
        self.hidden, self._spare = self._spare, self.hidden

    def _block(self, index: int, features: NDArray[Any]) -> NDArray[Any]:
        self._convolve(2 * index, features, self._inner)
        # what skips may lie in the target, as each pixel is read before it is written
        return self._convolve(2 * index + 1, self._inner, self._spare, features)

    def _convolve(
        self, layer: int, source: NDArray[Any], target: NDArray[Any], skip: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """`ReLU(CRA(convolution(source)))` into `target`, or `ReLU(that + skip)`."""
        kernel, attention = self.weights.layers[layer]
        scale, bias = np.ones_like(kernel.bias), kernel.bias
        if attention is not None and self._pooled is not None:
            vector = np.ascontiguousarray(self._vector_of(self._pooled.means, self._areas), np.float32)
            scale, bias = native.attend(vector, *attention, kernel.bias)
        self._begin(layer + 1 if layer + 1 < len(self.weights.layers) else None)
        laid = kernel.transformed(source)
        return native.convolve(
            source, laid, scale, bias, kernel.dilation, relu=True, skip=skip, out=target, pooled=self._pooled
        )

    def _project(self, features: NDArray[Any]) -> None:
        native.project(features, *self.weights.projection, self.residual)


class NativeNetwork:
    """One network, computed so."""

    def __init__(self, weights: Weights) -> None:
        """Takes a network that is computed so in some precision."""
        self._weights, self._laid = weights, dict[str, NativeWeights]()

    def laid(self, precision: str) -> NativeWeights:
        """The kernels for planes of a precision."""
        if precision not in self._laid:
            self._laid[precision] = NativeWeights(self._weights, precision)
        return self._laid[precision]

    def insistence(self, at_least: float, known: float) -> Insistence | None:
        """See `Insistence`; None where the network does not know what rain is."""
        means = self._weights.rain_means
        return None if means is None else Insistence(means, at_least, known)

    def begin(
        self, precision: str, images: Sequence[Pixels], cores: Cores | None, insistence: Insistence | None
    ) -> NativeForward:
        """A forward over pictures of one size, or windows of one."""
        return self.begin_windows(precision, to_batch(images), cores, insistence=insistence)

    def begin_windows(
        self,
        precision: str,
        rainy: Pixels,
        cores: Cores | None = None,
        pool: NativePool | None = None,
        ranging: Ranging | None = None,
        room: Room | None = None,
        *,
        insistence: Insistence | None = None,
    ) -> NativeForward:
        """The same of a batch; for the other arguments see `FusedForward`."""
        return NativeForward(self.laid(precision), rainy, cores, pool, room, insistence=insistence)

    def ranging(self, precision: str) -> Ranging:
        """See `Ranging`."""
        return Ranging()
