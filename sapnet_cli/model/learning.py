"""A progressive dilated unit that learns on a CPU, with its gradient, in C: see `native.py` and `gradients.py`.

PyTorch, one operation after the other, takes three times as long and keeps two and a half times as much for the way
back. Here attention and ReLU are passed together, and what comes out of them is kept alone: where it is positive it
tells, less what skips it, the product of attention's scale and the convolution, which is all that their gradients need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapnet_cli.model import gradients, native
from sapnet_cli.model.convolution import lay_for_means, turn

if TYPE_CHECKING:
    from sapnet_cli.model.sapnet import ChannelResidualAttention, DilatedResidualBlock, SAPNet, SAPNetConfig

BYTES_PER_PIXEL = 3200
"""What a step keeps for the backward pass, for each pixel of the batch and each unit, with a margin."""

Planes: TypeAlias = tuple[Tensor, Tensor]
"""Hidden and cell state, (B, H, W, C) each."""

CONVOLUTION = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
"""To PyTorch: stride, padding and dilation of one that keeps the size, not transposed."""

Found: TypeAlias = dict[Tensor, Tensor]
"""Gradients of parameters."""


def suits(config: SAPNetConfig, device: torch.device, precision: torch.dtype) -> bool:
    """Whether a network can learn so, here, in a precision."""
    return native.suits(config.channels, config.channels, device, precision)


class LearningUnit:
    """What `SAPNet.unit` computes, with the pool of the paper, for as long as the weights stay as they are."""

    def __init__(self, model: SAPNet, height: int, width: int) -> None:
        """Takes a network that it suits, and the size of the pictures."""
        self.model, self._size = model, (height, width)
        self.parameters = list(model.parameters())
        channels, embed, gates = model.config.channels, model.embed.weight.detach(), model.gates.weight.detach()
        self.embed = lay_for_means(torch.cat((embed[:, :3] / 255, embed[:, 3:]), dim=1))
        first, of_features, of_state = gates[: 3 * channels, :channels], gates[:, :channels], gates[:, channels:]
        self.first_gates, self.gates = self.lay(first), self.lay(gates)
        self.first_back, self.features_back, self.state_back = (
            self.lay(turn(each)) for each in (first, of_features, of_state)
        )
        project = model.project.weight.detach()
        self.project = project.permute(2, 3, 0, 1).contiguous()
        self.project_back = self.lay(turn(functional.pad(project, (0, 0, 0, 0, 0, 0, 0, channels - 3))))
        self.layers = [
            _Layer(self, *layer) for block in cast("list[DilatedResidualBlock]", model.blocks) for layer in block.layers
        ]

    def lay(self, weight: Tensor, dilation: int = 1) -> Tensor:
        """A kernel as `native.convolve` takes it."""
        return native.transform(weight, native.choose_side(*self._size, dilation))

    def __call__(self, rainy: Tensor, estimate: Tensor, state: Planes | None) -> tuple[Tensor, Planes]:
        """As `SAPNet.unit`, but that the states are planes."""
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
        self, features: Tensor, means: Tensor | None, following: native.Pooled | None, skip: Tensor | None
    ) -> Tensor:
        """`ReLU(scale * convolution)`, or `ReLU(skip + ReLU(scale * convolution))` if there is a `skip`.

        Args:
            features: a plane.
            means: of the convolution, (N, C), if there is any attention.
            following: what is to be known of what comes out.
            skip: a plane like it.
        """
        scale = self._scale(len(features), means)
        kernel = self._kernel, scale, scale * self._bias, self.dilation
        return native.convolve(features, *kernel, relu=True, skip=skip, pooled=following)

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
        out = gradient if through is None else None
        inner = gradients.pass_attention(gradient, scale, of_mean / pixels, through, out)
        found[self._bias] = (scale * passed + of_mean).sum(dim=0)
        found[self._weight] = gradients.kernel_gradient(features, inner, self.dilation)
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
        embedded, shown, remembered = (rainy.new_empty(*size, channels) for _ in range(3))
        native.embed(rainy, estimate, unit.embed, _bias(model.embed), embedded)
        kernel, bias = unit.gates, _bias(model.gates)
        if state is None:
            kernel, bias = unit.first_gates, bias[: 3 * channels]
        gates = rainy.new_empty(*size, len(bias))
        native.recur(embedded, state, kernel, bias, shown, remembered, pooled[0], gates)
        means = [None if known is None else known.means for known in pooled]
        planes = [shown]
        for number, layer in enumerate(layers):
            skip = planes[-2] if number % 2 else None
            planes.append(layer.forward(planes[-1], means[number], pooled[number + 1], skip))
        image = torch.empty_like(rainy)
        native.project(planes[-1], unit.project, _bias(model.project), image)
        ctx.unit, ctx.planes = unit, len(planes)
        ctx.save_for_backward(rainy, estimate, embedded, gates, hidden, cell, *planes, *means[:-1])
        ctx.set_materialize_grads(False)
        return _first(image.add_(rainy)), shown, remembered

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        of_image, of_shown, of_remembered = given
        unit, found = cast(LearningUnit, ctx.unit), Found()
        model, layers = unit.model, unit.layers
        rainy, estimate, embedded, gates, hidden, cell, *rest = ctx.saved_tensors
        planes, means = rest[: ctx.planes], rest[ctx.planes :]
        of_image = torch.zeros_like(rainy) if of_image is None else _last(of_image)
        wide = functional.pad(of_image, (0, model.config.channels - 3))  # as many channels as C takes
        found[model.project.weight] = gradients.kernel_gradient(planes[-1], wide)[:3]
        found[cast(Tensor, model.project.bias)] = of_image.sum(dim=(0, 1, 2))

        def came_of(plane: int) -> gradients.Through | None:
            """The ReLUs that a plane came out of: two, where it came out of a pair of layers, none at first."""
            return gradients.Through(planes[plane], planes[plane - 2]) if plane else None

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
        seen, goes_back = torch.cat((rainy, estimate), dim=3), ctx.needs_input_grad[2]
        of_seen, found[model.embed.weight], _ = torch.ops.aten.convolution_backward(
            _first(of_embedded), _first(seen), model.embed.weight, None, *CONVOLUTION, [goes_back, True, False]
        )
        of_estimate = of_seen[:, 3:] if goes_back else None
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
