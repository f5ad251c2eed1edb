"""A progressive dilated unit that learns on a CPU, with its gradient, in C: see `native.py` and `gradients.py`.

Planes are of float32, or of bfloat16 where a CPU multiplies matrices of it: see `matrices.py`.

PyTorch, one operation after the other, takes three times as long and keeps two and a half times as much for the way
back. Here attention and ReLU are passed together, and what comes out of them is kept alone: where it is positive it
tells, less what skips it, the product of attention's scale and the convolution, which is all that their gradients need.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.model import compiled, gradients, matrices, native
from sapnet_cli.model.convolution import turn
from sapnet_cli.model.native import lay_for_means

if TYPE_CHECKING:
    from sapnet_cli.model.config import SAPNetConfig
    from sapnet_cli.model.sapnet import ChannelResidualAttention, DilatedResidualBlock, SAPNet

Planes: TypeAlias = tuple[Tensor, Tensor]
"""Hidden and cell state, (B, H, W, C) each."""

Found: TypeAlias = dict[Tensor, Tensor]
"""Gradients of parameters."""


def suits(config: SAPNetConfig, device: torch.device, precision: torch.dtype) -> bool:
    """Whether a network can learn so, here, in a precision."""
    if device.type != "cpu" or not native.suits(config.channels, config.channels):
        return False
    if precision is torch.bfloat16:
        return matrices.are_multiplied(config.channels, "bf16")
    return precision is torch.float32


def bytes_per_pixel(precision: torch.dtype) -> int:
    """What a step keeps for the backward pass, for each pixel of the batch and each unit, with a margin."""
    return 2000 if precision is torch.bfloat16 else 3200


class LearningUnit:
    """What `SAPNet.unit` computes, with the pool of the paper, for as long as the weights stay as they are."""

    def __init__(self, model: SAPNet, height: int, width: int, precision: torch.dtype = torch.float32) -> None:
        """Takes a network that it suits in a precision, and the size of the pictures."""
        self.model, self._size, self.precision = model, (height, width), precision
        self.parameters = list(model.parameters())
        channels, embed, gates = model.config.channels, model.embed.weight.detach(), model.gates.weight.detach()
        self.embed = lay_for_means(torch.cat((embed[:, :3] / 255, embed[:, 3:]), dim=1))
        first, of_features, of_state = gates[: 3 * channels, :channels], gates[:, :channels], gates[:, channels:]
        if self.multiplies:
            self.first_gates = self.gates = matrices.lay_gates(gates)
        else:
            self.first_gates, self.gates = self.lay(first), self.lay(gates)
        self.first_back, self.features_back, self.state_back = (
            self.lay(turn(each)) for each in (first, of_features, of_state)
        )
        project = model.project.weight.detach()
        self.project = self.lay_image(project)
        self.estimate_back = self.lay_image(turn(embed[:, 3:]))
        self.project_back = self.lay(turn(functional.pad(project, (0, 0, 0, 0, 0, 0, 0, channels - 3))))
        self.layers = [
            _Layer(self, *layer) for block in cast("list[DilatedResidualBlock]", model.blocks) for layer in block.layers
        ]

    @property
    def multiplies(self) -> bool:
        """Whether that is by matrices."""
        return self.precision is torch.bfloat16

    @property
    def together(self) -> int:
        """Channels that a plane has at least."""
        return matrices.DEEP if self.multiplies else compiled.program().lanes

    def lay(self, weight: Tensor, dilation: int = 1) -> Tensor:
        """A kernel as `native.convolve` takes it."""
        if self.multiplies:
            return cast(Tensor, matrices.lay(weight))
        return cast(Tensor, native.transform(weight, native.choose_side(*self._size, dilation)))

    def lay_image(self, weight: Tensor) -> Tensor:
        """A kernel as `native.project` takes it."""
        return cast(Tensor, matrices.lay_image(weight)) if self.multiplies else weight.permute(2, 3, 0, 1).contiguous()

    def widen(self, images: Tensor, channels: int) -> Tensor:
        """Images, channels last, as a plane of more channels, which are zero."""
        plane = torch.zeros(*images.shape[:3], channels, dtype=self.precision)
        plane[..., : images.shape[3]] = images
        return plane

    def __call__(self, rainy: Tensor, estimate: Tensor, state: Planes | None) -> tuple[Tensor, Planes]:
        """As `SAPNet.unit`, but that the states are planes."""
        with torch.autocast("cpu", enabled=False):  # what is rounded, and where, is said here
            image, hidden, cell = _Unit.apply(self, rainy, estimate, *(state or (None, None)), *self.parameters)
        return image, (hidden, cell)


class _Layer:
    """A convolution of a residual block, attention, if there is any, and ReLU."""

    def __init__(self, unit: LearningUnit, convolution: nn.Conv2d, attention: ChannelResidualAttention | None) -> None:
        self._weight, self._bias = convolution.weight, cast(Tensor, convolution.bias)
        self._attention, self.dilation = attention, convolution.dilation[0]
        weight = self._weight.detach()
        self._kernel, self.back = (unit.lay(each, self.dilation) for each in (weight, turn(weight)))
        self._for_means = lay_for_means(weight)

    def pooled(self, cores: Tensor) -> native.Pooled | None:
        """Room for what attention pools of whole pictures, whose `cores` are given, if there is any attention."""
        if self._attention is None:
            return None
        means, bias = torch.empty(len(cores), len(self._bias)), self._bias.detach()
        return native.Pooled(means, cores, self._for_means, bias, self.dilation)

    def forward(
        self,
        features: Tensor,
        means: Tensor | None,
        following: native.Pooled | None,
        skip: Tensor | None,
        activated: Tensor | None,
    ) -> Tensor:
        """`ReLU(scale * convolution)`, or `ReLU(skip + ReLU(scale * convolution))` if there is a `skip`.

        Args:
            features: a plane.
            means: of the convolution, (N, C), if there is any attention.
            following: what is to be known of what comes out.
            skip: a plane like it.
            activated: where `ReLU(scale * convolution)` goes then, if anywhere.
        """
        scale = self._scale(len(features), means)
        kernel = self._kernel, scale, scale * self._bias, self.dilation
        return native.convolve(features, *kernel, relu=True, skip=skip, pooled=following, activated=activated)

    def backward(
        self,
        features: Tensor,
        means: Tensor | None,
        gradient: Tensor,
        sums: gradients.Sums,
        found: Found,
        through: gradients.Through | None = None,
    ) -> Tensor:
        """The gradient of the convolution, by that of what came out.

        Args:
            features: as they went into `forward`, and so `means`.
            means: see there.
            gradient: of what came out, past the outer ReLU; without a skip it is lost.
            sums: of it.
            found: where those of the parameters go.
            through: what came out, and what skipped it, if anything did.
        """
        passed, product = sums
        with torch.enable_grad():
            pooled = None if means is None else means.detach().requires_grad_()
            scale = self._scale(len(features), pooled)
        of_mean = torch.zeros_like(passed)
        if self._attention is not None:
            learnt = list(self._attention.parameters())
            of_scale = product / scale.detach().clamp(min=torch.finfo(scale.dtype).tiny)
            of_mean, *of_learnt = torch.autograd.grad(scale, (cast(Tensor, pooled), *learnt), of_scale)
            found.update(zip(learnt, of_learnt))
        scale, pixels = scale.detach(), features.shape[1] * features.shape[2]
        found[self._bias] = (scale * passed + of_mean).sum(dim=0)
        out = gradient if through is None else None
        attention = gradients.Attention(scale, of_mean / pixels, through, out)
        inner, found[self._weight] = gradients.layer_gradient(features, gradient, attention, self.dilation)
        return inner

    def _scale(self, count: int, means: Tensor | None) -> Tensor:
        """Attention's, (N, C); one without any."""
        if self._attention is None:
            return torch.ones(count, len(self._bias))
        return cast(Tensor, self._attention(means))


class _Unit(torch.autograd.Function):
    """A `LearningUnit`. Its layers come in pairs: the second is skipped by what goes into the first."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: LearningUnit,
        rainy: Tensor,
        estimate: Tensor,
        hidden: Tensor | None,
        cell: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, layers = unit.model, unit.layers
        state = None if hidden is None or cell is None else (hidden, cell)
        rainy, estimate = (_last(each).contiguous() for each in (rainy, estimate))
        count, height, width = size = rainy.shape[:3]
        channels, cores = model.config.channels, torch.tensor([[0, height, 0, width]]).repeat(count, 1)
        pooled = [*(layer.pooled(cores) for layer in layers), None]
        make = partial(torch.empty, dtype=unit.precision)
        embedded, shown, remembered = (make(*size, channels) for _ in range(3))
        native.embed(rainy, estimate, unit.embed, _bias(model.embed), embedded)
        kernel, bias = unit.gates, _bias(model.gates)
        if state is None:
            kernel, bias = unit.first_gates, bias if unit.multiplies else bias[: 3 * channels]
        gates = make(*size, (3 if state is None else 4) * channels)
        native.recur(embedded, state, kernel, bias, shown, remembered, pooled[0], gates)
        means = [None if known is None else known.means for known in pooled]
        planes, activated = [shown], []
        for number, layer in enumerate(layers):
            skip, inner = planes[-2] if number % 2 else None, None
            if skip is not None and unit.multiplies:
                activated.append(inner := torch.empty_like(skip))
            planes.append(layer.forward(planes[-1], means[number], pooled[number + 1], skip, inner))
        image = torch.empty_like(rainy)
        native.project(planes[-1], unit.project, _bias(model.project), image)
        ctx.unit = unit
        ctx.save_for_backward(rainy, estimate, embedded, gates, hidden, cell, *planes, *means[:-1], *activated)
        ctx.set_materialize_grads(False)
        return _first(image.add_(rainy)), shown, remembered

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        of_image, of_shown, of_remembered = given
        unit, found = cast(LearningUnit, ctx.unit), Found()
        model, layers = unit.model, unit.layers
        rainy, estimate, embedded, gates, hidden, cell, *rest = ctx.saved_tensors
        number = len(layers)
        planes, means, activated = rest[: number + 1], rest[number + 1 : 2 * number + 1], rest[2 * number + 1 :]
        of_image = torch.zeros_like(rainy) if of_image is None else _last(of_image)
        wide = unit.widen(of_image, model.config.channels)
        found[model.project.weight] = gradients.kernel_gradient(planes[-1], wide)[:3]
        found[cast(Tensor, model.project.bias)] = of_image.sum(dim=(0, 1, 2))

        def came_of(plane: int) -> gradients.Through | None:
            """The ReLUs that a plane came out of: two, where it came out of a pair of layers, none at first."""
            if plane == 0:
                return None
            return gradients.Through(planes[plane], activated[plane // 2 - 1] if unit.multiplies else planes[plane - 2])

        gradient, sums = gradients.convolve_back(wide, unit.project_back, through=came_of(len(layers)))
        for start in reversed(range(0, len(layers), 2)):
            first, second = layers[start : start + 2]
            inner = second.backward(planes[start + 1], means[start + 1], gradient, sums, found, came_of(start + 2))
            inside = gradients.Through(planes[start + 1])
            within, sums = gradients.convolve_back(inner, second.back, second.dilation, through=inside)
            inner = first.backward(planes[start], means[start], within, sums, found)
            gradient, sums = gradients.convolve_back(inner, first.back, first.dilation, gradient, came_of(start))
        if of_shown is not None:
            gradient.add_(of_shown)
        of_gates, of_cell, of_bias = gradients.step_back(gates, cell, gradient, of_remembered)
        of_weight = gradients.kernel_gradient(embedded, of_gates, state=hidden)
        # what the first unit has no use for
        found[cast(Tensor, model.gates.bias)] = _enlarge(of_bias, cast(Tensor, model.gates.bias))
        found[model.gates.weight] = _enlarge(of_weight, model.gates.weight)
        of_hidden = None if hidden is None else gradients.convolve_back(of_gates, unit.state_back)[0]
        back = unit.first_back if hidden is None else unit.features_back
        of_embedded, (passed, _) = gradients.convolve_back(of_gates, back, through=gradients.Through(embedded))
        found[cast(Tensor, model.embed.bias)] = passed.sum(dim=0)
        seen = unit.widen(torch.cat((rainy, estimate), dim=3), unit.together)
        found[model.embed.weight] = gradients.kernel_gradient(seen, of_embedded)[:, :6]
        of_estimate = None
        if ctx.needs_input_grad[2]:
            out = torch.empty_like(estimate)
            native.project(of_embedded, unit.estimate_back, torch.zeros(3), out)
            of_estimate = _first(out)
        return None, None, of_estimate, of_hidden, of_cell, *(found[each] for each in unit.parameters)


def _enlarge(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient of a parameter, by that of its first rows and columns."""
    whole = torch.zeros_like(parameter)
    whole[tuple(slice(length) for length in gradient.shape)] = gradient
    return whole


def _bias(convolution: nn.Conv2d) -> Tensor:
    return cast(Tensor, convolution.bias).detach()


def _first(plane: Tensor) -> Tensor:
    """Channels first."""
    return plane.permute(0, 3, 1, 2)


def _last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1)
