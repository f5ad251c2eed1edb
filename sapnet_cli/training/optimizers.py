"""Optimisers: Adam, AdamW, and Muon for the kernels of the 3x3 convolutions.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". `torch.optim.Muon` takes matrices only;
here a convolution's kernel (out, in, 3, 3) is stepped as the matrix (out, in * 9).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.training.config import TrainingConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised by a quintic Newton-Schulz iteration; `lr` is the size of a step's entries."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient; kernels of one shape go through the iteration together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                directions = torch.stack([self._direction(each, group["momentum"]) for each in parameters])
                updates = orthogonalise(directions.flatten(2))
                size = group["lr"] * max(1.0, updates.shape[1] / updates.shape[2]) ** 0.5
                for parameter, update in zip(parameters, updates):
                    parameter.add_(update.view(shape), alpha=-size)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None  # noqa: S101  # for the type checker
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Roughly U V^T of the singular value decompositions U S V^T: (N, rows, columns) to the same shape."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def build_optimizers(model: SAPNet, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of a run, each parameter in one of them, at the peak of their rates."""
    parameters = dict(model.named_parameters())
    if config.optimizer == "adam":
        return [torch.optim.Adam(parameters.values(), config.learning_rate)]
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(parameters.values(), config.learning_rate, weight_decay=config.weight_decay)]
    kernels = {name for name, tensor in parameters.items() if tensor.dim() == 4 and tensor.shape[-1] == 3}
    kernels.discard("project.weight")  # three rows: nothing to orthogonalise
    return [
        torch.optim.Adam([tensor for name, tensor in parameters.items() if name not in kernels], config.learning_rate),
        Muon([tensor for name, tensor in parameters.items() if name in kernels], config.muon_learning_rate),
    ]
