"""One optimisation step: the network, its optimisers and its averaged weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sapnet_cli.engine.hardware import (
    SLOW,
    choose_precision,
    fast_float,
    free_memory,
    is_out_of_memory,
    is_slow_in,
)
from sapnet_cli.engine.kernels import DTYPES
from sapnet_cli.errors import OutOfMemoryError, UsageError
from sapnet_cli.losses.joint import JointLoss
from sapnet_cli.model import compiled, learning
from sapnet_cli.model.config import SAPNetConfig
from sapnet_cli.model.sapnet import SAPNet
from sapnet_cli.training.config import StepShape, TrainingConfig
from sapnet_cli.training.optimizers import build_optimizers
from sapnet_cli.training.processes import Processes

log = logging.getLogger(__name__)

BYTES_PER_PIXEL = 1800 * 4
"""What a step keeps for the backward pass in fp32, for each pixel of the batch and each unit, with a margin; in C it is
`learning.bytes_per_pixel`."""

MEMORY_SHARE = 0.8
"""Of the free memory, above which a step computes its units again in the backward pass instead of keeping them."""

RECOMPUTED_UNITS = 2
"""A step that computes its units again needs at least the memory of so many."""


class Learner:
    """The network while it learns.

    Args:
        config: what decides the run.
        loss: what is minimised.
        processes: this one and its fellows, whose gradients are averaged.
        precision: of the network, see `choose_training_precision`; of the losses' own networks, too, but that `auto`
            takes on a CPU what PyTorch is fastest in.
        compiled: whether the network goes through `torch.compile`.
        start: weights to begin with instead of random ones.

    Raises:
        OutOfMemoryError: no step as large as `config` wants fits into memory.
    """

    def __init__(
        self,
        config: TrainingConfig,
        loss: JointLoss,
        processes: Processes,
        precision: torch.dtype,
        compiled: bool,
        start: SAPNet | None = None,
    ) -> None:
        self.config, self.processes, self.device = config, processes, processes.device
        self.precision, self._compiled = precision, compiled
        chosen_here = config.precision == "auto" and self.device.type == "cpu"
        self._loss_precision = DTYPES[fast_float()] if chosen_here else precision  # not in C: fastest in that
        self.loss: JointLoss = _channels_last(loss, self.device)
        for module in self.loss.modules():
            if isinstance(module, nn.Conv2d):
                module.to(self._loss_precision)  # frozen: autocast would round these weights anew at every step
        torch.manual_seed(config.seed)
        model = SAPNet(config.model)
        if start is not None:
            model.load_state_dict(start.state_dict())
        self.model: SAPNet = _channels_last(model, self.device)
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.updates = 0
        self._optimizers = build_optimizers(self.model, config)
        self._peaks = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)
        self._images = torch.compile(self.model.stage_images, dynamic=False) if compiled else self.model.stage_images
        self._free_memory = free_memory(self.device) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._check_memory()

    @property
    def precision_name(self) -> str:
        """What forward and backward are computed in, as the command line calls it."""
        return next(name for name, dtype in DTYPES.items() if dtype is self.precision)

    def rate(self, progress: float) -> float:
        """The learning rate of the first optimiser at a position in the budget."""
        return float(self._peaks[0] * self.config.rate(progress))

    def learn(
        self, rainy: NDArray[np.uint8], clean: NDArray[np.uint8], stages: int, progress: float
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One step.

        Args:
            rainy: crops of this process, (B, H, W, 3).
            clean: their ground truth, the same shape.
            stages: units to run and to supervise.
            progress: position in the budget, 0 to 1.

        Returns:
            The loss of this process and its terms, on the device: reading them waits for it.

        Raises:
            OutOfMemoryError: the step does not fit into memory.
        """
        shape = StepShape(stages, rainy.shape[1], rainy.shape[0])
        try:
            return self._step(rainy, clean, shape, progress)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_large(shape) from error

    def _step(
        self, rainy: NDArray[np.uint8], clean: NDArray[np.uint8], shape: StepShape, progress: float
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        inputs, targets = self._to_tensor(rainy), self._to_tensor(clean)
        for optimizer, peak in zip(self._optimizers, self._peaks):
            optimizer.param_groups[0]["lr"] = peak * self.config.rate(progress)
            optimizer.zero_grad(set_to_none=True)
        with self._autocast(self.precision):
            images = self._images(inputs, shape.stages, recompute=self._recomputes(shape))
        autocast = partial(self._autocast, self._loss_precision)
        total, terms = self.loss([image.float() for image in images], inputs, targets, progress, autocast)
        self._scaler.scale(total).backward()
        self.processes.average_gradients(self.model.parameters())
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        # early on the average would be of random weights: it is over fewer steps then
        keep = min(self.config.ema, (1 + self.updates) / (10 + self.updates)) if self.config.ema else 0.0
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.averaged[name].lerp_(tensor, 1 - keep)
        self.updates += 1
        return total.detach(), terms

    def averaged_model(self) -> SAPNet:
        """The network with the averaged weights, on the CPU, ready for inference."""
        model = SAPNet(self.config.model)
        model.load_state_dict({name: tensor.cpu() for name, tensor in self.averaged.items()})
        return model.eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """All that later steps depend on."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "scaler": self._scaler.state_dict(),
            "updates": self.updates,
            "random": torch.get_rng_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave; raises what the mapping or PyTorch raise where it is of another network."""
        self.model.load_state_dict(state["model"])
        self.averaged = {name: tensor.to(self.device) for name, tensor in state["averaged"].items()}
        for optimizer, saved in zip(self._optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self._scaler.load_state_dict(state["scaler"])
        self.updates = state["updates"]
        torch.set_rng_state(state["random"])

    def _autocast(self, precision: torch.dtype) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, precision, enabled=precision is not torch.float32)

    def _recomputes(self, shape: StepShape) -> bool:
        if self.config.recompute is not None:
            return self.config.recompute
        return shape.stages * self._unit_bytes(shape) > MEMORY_SHARE * self._free_memory

    def _unit_bytes(self, shape: StepShape) -> int:
        """What one unit of a step keeps for the backward pass."""
        each = BYTES_PER_PIXEL // (1 if self.precision is torch.float32 else 2)
        if not self._compiled and learning.suits(self.config.model, self.device, self.precision):
            each = learning.bytes_per_pixel(self.precision)
        return shape.batch * shape.patch**2 * each

    def _check_memory(self) -> None:
        """Refuses what cannot fit before hours are spent on smaller crops; on a CPU, whose system kills the process."""
        largest = max(self.config.shapes(), key=self._unit_bytes)
        if self.device.type == "cpu" and RECOMPUTED_UNITS * self._unit_bytes(largest) > self._free_memory:
            raise self._too_large(largest)

    def _too_large(self, shape: StepShape) -> OutOfMemoryError:
        advice = "" if self._recomputes(shape) else ", or add --recompute"
        return OutOfMemoryError(
            f"a step of {shape.batch} crops of {shape.patch}x{shape.patch} does not fit into memory; "
            f"lower --batch-size or --patch-size{advice}"
        )

    def _to_tensor(self, crops: NDArray[np.uint8]) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) in [0, 1] on the device, channels last in memory."""
        tensor = torch.from_numpy(crops)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255


def choose_training_precision(name: str, device: torch.device, model: SAPNetConfig) -> torch.dtype:
    """As `choose_precision`, but for `auto`.

    That takes bf16 on GPUs that have it, as its gradients need no scaling. On CPUs it takes bf16 where what is in C
    multiplies matrices of it and the network suits that, and else fp32 where what is in C learns in it, which is faster
    than PyTorch in bf16 even where the CPU computes in that.

    Raises:
        UsageError: no such precision, or int8, or fp16 elsewhere than on CUDA, where gradients are not scaled.
    """
    if name == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    if name == "auto" and device.type == "cpu":
        if not compiled.is_available():
            return DTYPES[fast_float()]
        return torch.bfloat16 if learning.suits(model, device, torch.bfloat16) else torch.float32
    if name == "int8":
        raise UsageError("int8 does not train; use --precision bf16 or fp32")
    chosen = choose_precision(name, device)
    precision = DTYPES[chosen]
    if precision is torch.float16 and device.type != "cuda":
        raise UsageError("fp16 trains on CUDA only; use --precision bf16 or fp32")
    if is_slow_in(chosen, device) and not learning.suits(model, device, precision):
        log.warning(SLOW)
    return precision


def _channels_last(module: Any, device: torch.device) -> Any:
    """On the device, with its convolutions' kernels in the layout that is fastest there."""
    return module.to(device=device, memory_format=torch.channels_last)
