"""Optimising a model that computes in bfloat16 with weights that are kept in float32.

A bf16 weight has 8 bits of mantissa: an RL step of 1e-6 would vanish in it. So the optimizer owns fp32 masters, sums
gradients in fp32, and writes the rounded result back into the model. A model that computes in fp32 is its own master.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from rlif.config import GrpoConfig


class NonFiniteError(FloatingPointError):
    """Loss, gradient or weights are not finite: the model is not to be kept."""


class MasterOptimizer:
    """A torch optimizer over fp32 master weights of a model.

    Casts the model's parameters (not its buffers: rotary frequencies must stay fp32) to ``compute_dtype`` in place.
    Those that need no gradient are not trained: they have neither name nor master here, and stay as they are. ``build``
    makes the inner optimizer from the list of masters.
    """

    def __init__(
        self,
        model: nn.Module,
        build: Callable[[list[Tensor]], torch.optim.Optimizer],
        *,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names, self._parameters = list(trained), list(trained.values())
        self._separate = compute_dtype != torch.float32
        self.masters = [p.detach().float().clone() if self._separate else p for p in self._parameters]
        for parameter in model.parameters():
            parameter.data = parameter.data.to(compute_dtype)
        self.inner = build(self.masters)

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a loss, its gradients added to the masters'. Each bf16 gradient is freed as soon as it
        is whole, so that they are never all in memory."""
        hooks = []
        try:
            for parameter, master in zip(self._parameters, self.masters, strict=True):
                if self._separate:
                    hooks.append(parameter.register_post_accumulate_grad_hook(partial(_move_gradient, master)))
            loss.backward()
        finally:
            for hook in hooks:
                hook.remove()

    def step(self, lr: float, max_grad_norm: float) -> float:
        """One optimizer step; returns the gradient norm before clipping.

        Without any backward pass since the last one the gradient is 0: momentum and weight decay go on. Raises
        `NonFiniteError` for a gradient that is not finite, changing nothing, and for weights that the step left not
        finite: those are corrupted.
        """
        if all(master.grad is None for master in self.masters):
            for master in self.masters:
                master.grad = torch.zeros_like(master)
        norm = float(nn.utils.clip_grad_norm_([m for m in self.masters if m.grad is not None], max_grad_norm))
        if not math.isfinite(norm):
            self.discard()
            raise NonFiniteError(f"the gradient norm is {norm}")
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        largest = float(nn.utils.get_total_norm([master.detach() for master in self.masters], math.inf))
        if not math.isfinite(largest):  # a maximum, which no sum of squares can overflow
            raise NonFiniteError(f"the largest weight after the optimizer step is {largest}")
        self.publish()
        return norm

    def discard(self) -> None:
        """Forget the gradients gathered so far."""
        self.inner.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def publish(self) -> None:
        """Write the masters, rounded, into the model."""
        if self._separate:
            for parameter, master in zip(self._parameters, self.masters, strict=True):
                parameter.copy_(master)

    def named_masters(self) -> dict[str, Tensor]:
        """The masters by the names of what they are masters of."""
        return dict(zip(self.names, self.masters, strict=True))

    def master_state_dict(self) -> dict[str, Tensor]:
        """The model's state dict with fp32 masters in place of its parameters, ties kept."""
        master_of = {id(p): m.detach() for p, m in zip(self._parameters, self.masters, strict=True)}
        state = self.model.state_dict(keep_vars=True)
        return {name: master_of.get(id(tensor), tensor.detach()) for name, tensor in state.items()}


@torch.no_grad()
def merge_back(optimizer: MasterOptimizer, start: Mapping[str, Tensor], rho: float) -> None:
    """Move the policy towards its start, weight by weight: θ ← (1 − ρ) θ + ρ θ₀, in fp32, then rounded into the model.

    What the optimizer remembers of gradients stays: AdamW's first moments push on for about 1 / (1 − β₁) steps in the
    direction from which the policy was brought back, and its second moments keep their scale.

    Args:
        optimizer: of the policy that is moved.
        start: θ₀ by parameter name, any float type: ``dict(reference.model.named_parameters())``; of a reference in
            bf16 that is the rounded start.
        rho: ρ in [0, 1]; 0 changes nothing, 1 is the start.

    Raises ValueError, before anything moves, for a ρ outside, and for a start with other names or shapes.
    Source: project; averaging with the initial weights is that of WiSE-FT, arXiv 2109.01903.
    """
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"rho is {rho}; give a number from 0 (stay) to 1 (the start)")
    shapes = {name: master.shape for name, master in zip(optimizer.names, optimizer.masters, strict=True)}
    if {name: weight.shape for name, weight in start.items()} != shapes:
        raise ValueError("the start has other weights than the policy, by name or shape")
    for name, master in zip(optimizer.names, optimizer.masters, strict=True):
        master.lerp_(start[name].to(master), rho)
    optimizer.publish()


def _move_gradient(master: Tensor, parameter: Tensor) -> None:
    assert parameter.grad is not None
    master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
    parameter.grad = None


def adamw(config: GrpoConfig) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    """A builder for AdamW as the recipe describes it."""

    def build(masters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            masters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    return build


def learning_rate(config: GrpoConfig, step: int, steps: int) -> float:
    """Learning rate of step 1 … ``steps``: linear warm-up, then constant, linear or cosine decay towards 0."""
    warmup = round(config.warmup * steps)
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - 1 - warmup) / max(1, steps - warmup)
    return config.lr * SCHEDULES[config.schedule](done)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
