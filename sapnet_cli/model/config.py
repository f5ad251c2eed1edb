"""What a network is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SAPNetConfig:
    """Hyper-parameters of the network; the defaults are the published SAPNet (180,483 parameters).

    Attributes:
        stages: how many times the unit is applied.
        channels: width of the features and of the recurrent state.
        dilations: dilation of both convolutions of each residual block, one block for each entry.
        attention: whether channel residual attention follows each of those convolutions.
        reduction: by how much attention's bottleneck is narrower than `channels`.
        upright: whether the weights know upright pictures only, trained as they were without quarter turns.
    """

    stages: int = 6
    channels: int = 32
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    attention: bool = True
    reduction: int = 16
    upright: bool = False


SAPNET = SAPNetConfig()
PRENET = SAPNetConfig(dilations=(1, 1, 1, 1, 1), attention=False)
