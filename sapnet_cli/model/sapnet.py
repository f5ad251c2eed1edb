"""SAPNet, the segmentation-aware progressive network, whole in one file.

Zheng, Lu, Wu, Gupta: "SAPNet: Segmentation-Aware Progressive Network for Perceptual Contrastive Deraining",
WACV 2022 workshops, arXiv 2111.08892. It extends PReNet (Ren et al., CVPR 2019, arXiv 1901.09221), which is the
same network without attention and without dilation: `PRENET` of `config.py`.

One *progressive dilated unit* (PDU), applied `stages` times with the same weights, turns the rainy image `y`, the
last estimate `x` and the recurrent state `h, c` into the next estimate:

    f    = ReLU(conv(cat(y, x)))                                            embed
    h, c = ConvLSTM(cat(f, h), c)                                           gates
    z    = h;  z = ReLU(z + ReLU(CRA(dconv(ReLU(CRA(dconv(z)))))))          blocks, one for each dilation
    x    = conv(z) + y                                                      project
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sapnet_cli.model import learning
from sapnet_cli.model.config import SAPNET, SAPNetConfig
from sapnet_cli.model.convolution import Convolution, convolve

State: TypeAlias = tuple[Tensor, Tensor]
"""Hidden and cell state of the ConvLSTM, (B, C, H, W) each."""

Unit = Callable[[Tensor, Tensor, State | None], tuple[Tensor, State]]
"""Maps rainy image, estimate and state to the next estimate and state."""

Pool = Callable[[Tensor], Tensor]
"""Maps features (B, C, H, W) to the pooled vectors (B, C, 1, 1) that channel residual attention looks at."""


def global_average_pool(features: Tensor) -> Tensor:
    """Mean over the plane, (B, C, H, W) to (B, C, 1, 1): the pool of the paper.

    By a sum, whose gradient takes no memory: that of a mean is a plane that is divided.
    """
    wide = torch.promote_types(features.dtype, torch.float32)  # which a half's sum may not fit into
    total = features.sum(dim=(2, 3), keepdim=True, dtype=wide)
    return (total / (features.shape[2] * features.shape[3])).to(features.dtype)


def _split(features: Tensor, parts: int) -> list[Tensor]:
    """Groups of channels, each in memory of its own: on strided views a sigmoid is up to ten times slower."""
    return [part.contiguous(memory_format=torch.channels_last) for part in features.chunk(parts, dim=1)]


class ChannelResidualAttention(nn.Module):
    """Scales each channel by `sigmoid(A p + D2 ReLU(D1 p))`, `p` the pooled features (paper, section 3.2)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.direct = nn.Conv2d(channels, channels, 1, bias=False)  # A
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1, bias=False)  # D1
        self.expand = nn.Conv2d(channels // reduction, channels, 1, bias=False)  # D2

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled vectors (B, C, 1, 1) to scales in (0, 1), same shape."""
        vectors = pooled.flatten(1)
        bottleneck = functional.relu(_product(self.squeeze, vectors))
        scales = torch.sigmoid(_product(self.direct, vectors) + _product(self.expand, bottleneck))
        return scales.view(pooled.shape)


def _product(convolution: nn.Conv2d, vectors: Tensor) -> Tensor:
    """A 1x1 convolution of single pixels, (B, C): as a product of matrices it takes a fraction of the time."""
    return functional.linear(vectors, convolution.weight.flatten(1))


class DilatedResidualBlock(nn.Module):
    """Two dilated 3x3 convolutions, each with attention and ReLU, around a skip connection."""

    def __init__(self, config: SAPNetConfig, dilation: int) -> None:
        super().__init__()
        width = config.channels
        self.conv1 = Convolution(width, width, dilation)
        self.conv2 = Convolution(width, width, dilation)
        self.attention1 = ChannelResidualAttention(width, config.reduction) if config.attention else None
        self.attention2 = ChannelResidualAttention(width, config.reduction) if config.attention else None

    @property
    def layers(self) -> tuple[tuple[Convolution, ChannelResidualAttention | None], ...]:
        """Both convolutions, in order, with what follows them."""
        return (self.conv1, self.attention1), (self.conv2, self.attention2)

    def forward(self, features: Tensor, pool: Pool) -> Tensor:
        """(B, C, H, W) to the same shape."""
        inner = self.conv1(features)
        if self.attention1 is not None:
            inner = inner * self.attention1(pool(inner))
        inner = self.conv2(functional.relu(inner))
        if self.attention2 is not None:
            inner = inner * self.attention2(pool(inner))
        return functional.relu(features + functional.relu(inner))


class SAPNet(nn.Module):
    """The derain network. Takes and gives RGB images as (B, 3, H, W) floats in [0, 1], any size from 1x1 up.

    Attributes:
        rain_means: what attention pools of pictures on average, first of those without rain, then of those with it,
            (2, stages, pools of a unit, C), for `EngineConfig.insist`; None where nobody measured it. No parameter of
            the network.
    """

    rain_means: Tensor | None

    def __init__(self, config: SAPNetConfig = SAPNET) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.embed = Convolution(6, width)
        self.gates = Convolution(2 * width, 4 * width)  # input, candidate, output, forget: see `lstm`
        self.blocks = nn.ModuleList(DilatedResidualBlock(config, dilation) for dilation in config.dilations)
        self.project = Convolution(width, 3)
        self.register_buffer("rain_means", None, persistent=False)

    def lstm(self, features: Tensor, state: State | None) -> State:
        """One ConvLSTM step (PReNet, eq. 4), its four gates computed by one convolution.

        At the first unit `state` is None, standing for zeros: half of the gates' input and the forget gate drop out.

        Args:
            features: (B, C, H, W).
            state: hidden and cell state, (B, C, H, W) each, or None.

        Returns:
            The new hidden and cell state.
        """
        width = self.config.channels
        if state is None:
            weight, bias = self.gates.weight[: 3 * width, :width], self.gates.bias
            gates = convolve(features, weight, None if bias is None else bias[: 3 * width])
            gate_in, candidate, gate_out = _split(gates, 3)
            cell = torch.sigmoid(gate_in) * torch.tanh(candidate)
        else:
            hidden, cell = state
            gates = self.gates(torch.cat((features, hidden), dim=1))
            gate_in, candidate, gate_out, forget = _split(gates, 4)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(gate_in) * torch.tanh(candidate)
        return torch.sigmoid(gate_out) * torch.tanh(cell), cell

    def unit(self, rainy: Tensor, estimate: Tensor, state: State | None, pool: Pool) -> tuple[Tensor, State]:
        """One progressive dilated unit.

        Args:
            rainy: (B, 3, H, W), RGB in [0, 1], float32.
            estimate: what the unit before gave, the same shape; the rainy image at the first.
            state: of the ConvLSTM, None at the first.
            pool: as for `stage_images`.

        Returns:
            The next estimate, not clamped, and the next state.
        """
        features = functional.relu(self.embed(torch.cat((rainy, estimate), dim=1).to(self.embed.weight.dtype)))
        state = self.lstm(features, state)
        features = state[0]
        for block in self.blocks:
            features = block(features, pool)
        return self.project(features) + rainy, state

    def stage_images(
        self, rainy: Tensor, stages: int | None = None, pool: Pool = global_average_pool, recompute: bool = False
    ) -> list[Tensor]:
        """The estimate after each unit, not clamped: what training supervises.

        With parameters in half precision the images stay float32: only what is added to `rainy` is rounded.

        Args:
            rainy: (B, 3, H, W), RGB in [0, 1], float32.
            stages: how many units to run; the configured number by default.
            pool: where attention takes its pooled vectors from; called twice a block, in order.
            recompute: whether the backward pass computes each unit again instead of keeping what is inside it: a
                third more time for a small part of the memory.
        """
        images: list[Tensor] = []
        estimate, state = rainy, None
        unit: Unit = partial(self.unit, pool=pool)
        precision = self._precision(rainy.device)
        if pool is global_average_pool and self._learns_in_c(rainy, precision):
            height, width = rainy.shape[2:]
            unit = learning.LearningUnit(self, height, width, precision)
        for _ in range(self.config.stages if stages is None else stages):
            if recompute:
                estimate, state = checkpoint(unit, rainy, estimate, state, use_reentrant=False)
            else:
                estimate, state = unit(rainy, estimate, state)
            images.append(estimate)
        return images

    def _precision(self, device: torch.device) -> torch.dtype:
        """What convolutions are computed in."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.embed.weight.dtype

    def _learns_in_c(self, rainy: Tensor, precision: torch.dtype) -> bool:
        """Whether these pictures are a step of training that is computed by `LearningUnit`."""
        weight = self.embed.weight
        learns = torch.is_grad_enabled() and weight.requires_grad and not rainy.requires_grad
        if not learns or weight.dtype is not torch.float32 or torch.compiler.is_compiling():
            return False
        return learning.suits(self.config, rainy.device, precision)

    def forward(self, rainy: Tensor, stages: int | None = None, pool: Pool = global_average_pool) -> Tensor:
        """The derained image, (B, 3, H, W) in [0, 1]; arguments as for `stage_images`."""
        return self.stage_images(rainy, stages, pool)[-1].clamp(0, 1)
