"""The elementwise operations of a layer, each with its derivative (RMSNorm, gated activation, rotary embedding), and
matmuls that keep the inputs of such an operation instead of its result.

On a CPU `rlif.model.kernels.cpu` does each in one pass; PyTorch's operations are the slow reference, and serve
everywhere else.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlif.model.kernels.cpu import kernels_for

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (tok, 1, feature); sines signed so that a half-turn of x needs no negation."""


@runtime_checkable
class ElementwiseOp(Protocol):
    """What costs little beside a matmul (norm, gate, activation): a function of activations and some parameters, the
    same for the same arguments, for it may be called again in the backward pass."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What it reads that is trained; handed to it behind its inputs, or left out and read by itself."""

    def __call__(self, *inputs: Any) -> Tensor: ...


class Identity:
    """The operation that does nothing."""

    parameters: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        return x


class LowRank(NamedTuple):
    """scaling · B A, added to the weight of the linear layer at place ``at`` of several side by side."""

    at: int
    a: Float[Tensor, "rank _"]
    b: Float[Tensor, "_ rank"]
    scaling: float


def products(
    op: ElementwiseOp,
    inputs: Sequence[Tensor],
    weights: Sequence[Float[Tensor, "_ size"]],
    biases: Sequence[Float[Tensor, " _"] | None],
    low_rank: Sequence[LowRank] = (),
) -> Sequence[Float[Tensor, "tok _"]]:
    """Linear layers side by side, of what ``op`` makes of its inputs: (tok, size).

    With gradient, only the inputs are kept, and ``op`` is run again in the backward pass: the results of norms and
    gates would be a third of what a layer leaves behind, attention's probabilities aside. ``low_rank`` never becomes a
    matrix of the size of a weight, and what passes through its rank is made again, too. Source: project; recomputing
    what is cheap is arXiv 2205.05198, section 5.
    """
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(inputs[0].device.type):
        return _linear(op(*inputs), weights, biases, low_rank)
    counts = (len(inputs), len(op.parameters), len(weights), len(weights), len(low_rank), len(low_rank))
    factors = *(low.a for low in low_rank), *(low.b for low in low_rank)
    places = tuple((low.at, low.scaling) for low in low_rank)
    outputs: tuple[Tensor, ...] = _Products.apply(
        op, counts, places, *inputs, *op.parameters, *weights, *biases, *factors
    )
    return outputs


def _linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], low_rank: Sequence[LowRank]
) -> list[Tensor]:
    outputs = [functional.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    if low_rank:
        for low, narrow in zip(low_rank, _narrowed(x, [low.a for low in low_rank]), strict=True):
            outputs[low.at] = torch.addmm(outputs[low.at], narrow, low.b.t(), alpha=low.scaling)
    return outputs


def _narrowed(x: Tensor, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x Aᵀ for each A: (tok, rank), in one product."""
    return functional.linear(x, torch.cat(tuple(a))).split([len(each) for each in a], dim=-1)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        op: ElementwiseOp,
        counts: tuple[int, ...],
        places: tuple[tuple[int, float], ...],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.op, ctx.counts, ctx.places = op, counts, places
        inputs, parameters, weights, biases, a, b = _groups(tensors, counts)
        low_rank = [
            LowRank(at, *pair, scaling) for (at, scaling), pair in zip(places, zip(a, b, strict=True), strict=True)
        ]
        return tuple(_linear(op(*inputs, *parameters), weights, biases, low_rank))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, parameters, weights, _, a, b = _groups(ctx.saved_tensors, ctx.counts)
        to_inputs, to_parameters, to_weights, to_biases, *_ = _groups(ctx.needs_input_grad[3:], ctx.counts)
        below = *to_inputs, *to_parameters
        # Leaves of a graph of its own: hooks and gradients of the outer one are the outer one's affair.
        leaves = [x.detach().requires_grad_(wanted) for x, wanted in zip((*inputs, *parameters), below, strict=True)]
        with torch.enable_grad():
            x = ctx.op(*leaves)
        # scaling · g B: what reaches the rank from above.
        narrow = [(gradients[at] @ each).mul_(scaling) for (at, scaling), each in zip(ctx.places, b, strict=True)]
        found: list[Tensor | None] = [None] * len(leaves)
        if any(below):
            to_x = gradients[0] @ weights[0]
            for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
                to_x.addmm_(gradient, weight)
            if narrow:
                to_x.addmm_(torch.cat(narrow, dim=-1), torch.cat(tuple(a)))
            made = iter(torch.autograd.grad(x, [leaf for leaf in leaves if leaf.requires_grad], to_x))
            found = [next(made) if wanted else None for wanted in below]
            del to_x
        x = x.detach()
        found += [g.t() @ x if wanted else None for g, wanted in zip(gradients, to_weights, strict=True)]
        found += [g.sum(dim=0) if wanted else None for g, wanted in zip(gradients, to_biases, strict=True)]
        if narrow:
            found += (torch.cat(narrow, dim=-1).t() @ x).split([len(each) for each in a])
            passed = zip(ctx.places, _narrowed(x, a), strict=True)
            found += [(gradients[at].t() @ each).mul_(scaling) for (at, scaling), each in passed]
        return None, None, None, *found


def _groups(values: Sequence[Any], counts: tuple[int, ...]) -> list[Sequence[Any]]:
    """Inputs, parameters, weights, biases, and of what is of low rank the factors A and B."""
    return [values[start:stop] for start, stop in pairwise(accumulate(counts, initial=0))]


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

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def __call__(
        self, x: Float[Tensor, "*row size"], weight: Float[Tensor, " size"] | None = None
    ) -> Float[Tensor, "*row size"]:
        weight = self.weight if weight is None else weight
        result: Tensor = _RmsNorm.apply(x, weight, self.offset, self.eps)
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

    parameters: tuple[Tensor, ...] = ()

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
