"""The parts of a layer that are no matrix products, each with its derivative: RMSNorm, gated activation, rotary
embedding.

On a CPU `rlif.cpu` does each in one pass; PyTorch's operations are the slow twins, and serve everywhere else.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlif.cpu import kernels_for

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (tok, 1, feature); sines signed so that a half-turn of x needs no negation."""


class Norm:
    """RMSNorm, Llama's way or Gemma's (which stores weight − 1): (offset + weight) · x / √(mean x² + eps)."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.eps: float = getattr(module, "variance_epsilon", None) or module.eps
        self.offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self._module.weight
        return weight

    def __call__(self, x: Float[Tensor, "*row size"]) -> Float[Tensor, "*row size"]:
        result: Tensor = _RmsNorm.apply(x, self.weight, self.offset, self.eps)
        return result


class _RmsNorm(torch.autograd.Function):
    """PyTorch's RMSNorm keeps several tensors for a backward pass of a dozen operations. This one keeps its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.offset, ctx.eps = offset, eps
        if (kernels := kernels_for(x)) and weight.dtype == x.dtype:
            return kernels.rms_norm(x, weight, offset, eps)
        if offset or weight.dtype != x.dtype:  # in fp32 to the end, as Gemma does it
            return functional.rms_norm(x.float(), weight.shape, offset + weight.float(), eps).to(x.dtype)
        return functional.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if (kernels := kernels_for(x)) and weight.dtype == x.dtype:
            return *kernels.rms_norm_backward(x, weight, ctx.offset, ctx.eps, gradients[0]), None, None
        wide, size = x.float(), x.shape[-1]
        scale = torch.linalg.vecdot(wide, wide).div_(size).add_(ctx.eps).rsqrt_()[..., None]
        normed, factor = wide * scale, ctx.offset + weight.float()
        gradient = gradients[0].float()
        product = gradient * normed
        to_weight = product.flatten(0, -2).sum(dim=0).to(weight.dtype)
        # d normed_i / d x_j = scale · (1[i = j] − normed_i · normed_j / size)
        along = (product @ factor).div_(size)[..., None]
        to_x = (gradient * factor).addcmul_(normed, along, value=-1.0).mul_(scale)
        return to_x.to(x.dtype), to_weight, None, None


class Gated:
    """activation(gate) · up."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        """``activation``: transformers' module for it."""
        self._activation = activation
        self._gelu = _KNOWN.get(type(activation).__name__)

    def __call__(self, gate: Float[Tensor, "row size"], up: Float[Tensor, "row size"]) -> Float[Tensor, "row size"]:
        if self._gelu is None or kernels_for(gate) is None or up.dtype != gate.dtype:
            return self._activation(gate) * up
        result: Tensor = _Gated.apply(gate, up, self._gelu)
        return result


_KNOWN = {"SiLUActivation": False, "SiLU": False, "GELUTanh": True}


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.gelu = gelu
        return kernels_for(gate).gated(gate, up, gelu)  # type: ignore[union-attr]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return *kernels_for(gate).gated_backward(gate, up, ctx.gelu, gradients[0]), None  # type: ignore[union-attr]


def rotated(x: Float[Tensor, "tok head feature"], rotation: Rotation) -> Float[Tensor, "tok head feature"]:
    """Rotary position embedding: halves swapped, not neighbours."""
    cos, sin = rotation
    if kernels_for(x) is not None and cos.dtype == x.dtype:
        result: Tensor = _Rotated.apply(x, cos, sin)
        return result
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return kernels_for(x).rotate(x, cosines, sines)  # type: ignore[union-attr]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosines, sines = ctx.saved_tensors
        return kernels_for(cosines).rotate(gradients[0], cosines, sines, turn=-1.0), None, None  # type: ignore[union-attr]
