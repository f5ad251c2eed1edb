"""One network by PyTorch, in each precision, on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sapnet_cli.engine.forward import Cores, Ranging
from sapnet_cli.engine.fused import FusedForward
from sapnet_cli.engine.graphs import ReplayedForward
from sapnet_cli.engine.hardware import Device, fast_float
from sapnet_cli.engine.insistence import Insistence
from sapnet_cli.engine.kernels import DTYPES, FusedWeights
from sapnet_cli.engine.pixels import Pixels
from sapnet_cli.engine.quantized import QuantizedForward, QuantizedWeights
from sapnet_cli.engine.tensors import finite, to_float, to_pixels, to_tensor
from sapnet_cli.engine.windows import TorchWindows
from sapnet_cli.model.checkpoint import build
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.model.weights import Weights

Plain: TypeAlias = Callable[[Tensor], Tensor]
"""From (B, H, W, 3) uint8 or float32 to (B, 3, H, W) float32, not clamped."""


class TorchNetwork:
    """A network's forwards; precisions are those of `hardware.PRECISIONS`."""

    def __init__(self, weights: Weights, stages: int, device: Device) -> None:
        """Takes a network, how many units of it are run, and where."""
        self._weights, self._stages, self._device = weights, stages, torch.device(str(device))
        self._models: dict[str, SAPNet] = {}
        self._laid: dict[str, FusedWeights] = {}
        self._plain: dict[str, Plain] = {}

    def derain_plain(self, precision: str, images: Sequence[Pixels]) -> list[Pixels]:
        """Pictures of one size together, by the network as it is, which insists on nothing.

        Raises:
            FloatingPointError: a value is not finite.
        """
        with torch.inference_mode():
            rainy = to_tensor(images).to(self._device)
            return to_pixels(finite(self.plain(precision)(rainy)).clamp(0, 1), images[0].dtype)

    def plain(self, precision: str) -> Plain:
        """The network as it is, recorded on a GPU."""

        def forward(pictures: Tensor) -> Tensor:
            model = self._model(precision)
            return model.stage_images(to_float(pictures).permute(0, 3, 1, 2), self._stages)[-1]

        if self._device.type != "cuda":
            return forward
        if precision not in self._plain:
            self._plain[precision] = ReplayedForward(forward)
        return self._plain[precision]

    def begin(
        self, precision: str, images: Sequence[Pixels], cores: Cores | None, insistence: Insistence | None
    ) -> FusedForward:
        """A forward, layer by layer, over pictures of one size, or windows of one."""
        return self._begin(precision, to_tensor(images), cores, insistence=insistence)

    def begin_windows(
        self, precision: str, rainy: Pixels, *arguments: Any, insistence: Insistence | None = None
    ) -> TorchWindows:
        """The same of a batch; for the other arguments see `FusedForward`."""
        return TorchWindows(partial(self._begin, precision, insistence=insistence), rainy, *arguments)

    def ranging(self, precision: str) -> Ranging:
        """See `Ranging`."""
        return self.laid(precision).ranging()

    def _begin(self, precision: str, rainy: Tensor, *arguments: Any, insistence: Insistence | None) -> FusedForward:
        forward = QuantizedForward if precision == "int8" else FusedForward
        return forward(self.laid(precision), rainy, *arguments, insistence=insistence)

    def insistence(self, at_least: float, known: float) -> Insistence | None:
        """See `Insistence`; None where the network does not know what rain is."""
        means = self._weights.rain_means
        return None if means is None else Insistence(torch.tensor(means, device=self._device), at_least, known)

    def laid(self, precision: str) -> FusedWeights:
        """The kernels in a precision."""
        if precision not in self._laid:
            kind = QuantizedWeights if precision == "int8" else FusedWeights
            dtype = DTYPES[fast_float() if precision == "int8" else precision]
            self._laid[precision] = kind(self._model("fp32"), dtype, self._device)
        return self._laid[precision]

    def _model(self, precision: str) -> SAPNet:
        if precision not in self._models:
            model = build(self._weights).to(self._device, DTYPES[precision])
            self._models[precision] = model.to(memory_format=torch.channels_last).eval()
        return self._models[precision]
