"""Optimising a model that computes in bfloat16 with weights that are kept in float32.

A bf16 weight has 8 bits of mantissa: an RL step of 1e-6 would vanish in it. So the optimizer owns fp32 masters, sums
gradients in fp32, and writes the rounded result back into the model. A model that computes in fp32 is its own master.

Of several ranks (`rlif.training.parallel`) each holds parts of the masters, and of what the inner optimizer remembers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlif.config import GrpoConfig
from rlif.runs.checkpoint import flatten_optimizer, restore_optimizer
from rlif.training.parallel import ALONE, Ranks


class NonFiniteError(FloatingPointError):
    """Loss, gradient or weights are not finite: the model is not to be kept."""


class MasterOptimizer:
    """A torch optimizer over fp32 master weights of a model.

    Casts the model's parameters (not its buffers: rotary frequencies must stay fp32) to ``compute_dtype`` in place.
    ``build`` makes the inner optimizer from the list of masters, which must treat every number of them alone, as AdamW
    does: with several ``ranks`` a master is a part of a weight, and all ranks must call each method alike.
    """

    def __init__(
        self,
        model: nn.Module,
        build: Callable[[list[Tensor]], torch.optim.Optimizer],
        *,
        compute_dtype: torch.dtype = torch.float32,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.ranks = model, ranks
        self.names = [name for name, _ in model.named_parameters()]
        self._parameters = [parameter for _, parameter in model.named_parameters()]
        self._separate = compute_dtype != torch.float32 or ranks.size > 1
        self.masters: list[Tensor] = (
            [ranks.part(p.detach()).float().clone() for p in self._parameters]
            if self._separate
            else [*self._parameters]
        )
        # Where gradients are summed up: a master that is whole takes them itself.
        self._sums: list[Any] = self.masters if ranks.size == 1 else [_Sum() for _ in self._parameters]
        for parameter in self._parameters:
            parameter.data = parameter.data.to(compute_dtype)
        self.inner = build(self.masters)

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a loss, its gradients added to the masters'. Each bf16 gradient is freed as soon as it
        is whole, so that they are never all in memory."""
        hooks = []
        try:
            for parameter, total in zip(self._parameters, self._sums, strict=True):
                if self._separate and parameter.requires_grad:
                    hooks.append(parameter.register_post_accumulate_grad_hook(partial(_move_gradient, total)))
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
        self._gather_gradients()
        moved = [master for master in self.masters if master.grad is not None]
        total = self.ranks.norm(master.grad for master in moved if master.grad is not None)
        nn.utils.clip_grads_with_norm_(moved, max_grad_norm, total)
        norm = float(total)
        if not math.isfinite(norm):
            self.discard()
            raise NonFiniteError(f"the gradient norm is {norm}")
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        largest = float(self.ranks.norm([master.detach() for master in self.masters], math.inf))
        if not math.isfinite(largest):  # a maximum, which no sum of squares can overflow
            raise NonFiniteError(f"the largest weight after the optimizer step is {largest}")
        self.publish()
        return norm

    def _gather_gradients(self) -> None:
        """Give each master the gradient of all ranks since the last step: None where there is none on any, or zeros
        where no weight has one."""
        there = self.ranks.either([total.grad is not None for total in self._sums])
        if not any(there):
            there = [parameter.requires_grad for parameter in self._parameters]
        places = [place for place, wanted in enumerate(there) if wanted]
        wholes = []
        for place in places:
            total, parameter = self._sums[place], self._parameters[place]
            wholes.append(torch.zeros_like(parameter, dtype=torch.float32) if total.grad is None else total.grad)
            total.grad = None
        for place, part in zip(places, self.ranks.summed(wholes), strict=True):
            self.masters[place].grad = part

    def discard(self) -> None:
        """Forget the gradients gathered so far."""
        for total in self._sums:
            total.grad = None
        self.inner.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def publish(self) -> None:
        """Write the masters, rounded, into the model."""
        if self._separate:
            self.ranks.fill(self._parameters, self.masters)

    def whole_masters(self) -> Iterator[Tensor]:
        """The fp32 masters in the shapes of the parameters; of several ranks, put together one by one."""
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            yield self.ranks.whole(master.detach(), parameter)

    def master_state_dict(self) -> dict[str, Tensor]:
        """The model's state dict with fp32 masters in place of its parameters, ties kept; whole on the first rank."""
        masters = map(self.ranks.kept, self.whole_masters())
        master_of = {id(p): master for p, master in zip(self._parameters, masters, strict=True)}
        state = self.model.state_dict(keep_vars=True)
        return {name: master_of.get(id(tensor), tensor.detach()) for name, tensor in state.items()}

    def moments(self) -> dict[str, Tensor]:
        """What the inner optimizer remembers, as `flatten_optimizer` has it; whole on the first rank."""
        like, found = dict(zip(self.names, self._parameters, strict=True)), {}
        for key, value in flatten_optimizer(self.inner, self.names).items():
            name, _, field = key.rpartition("/")
            found[key] = value if field == "step" else self.ranks.kept(self.ranks.whole(value, like[name]))
        return found

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Put back what `moments` took on however many ranks; the first one gives it. Raises `RlifError` as
        `restore_optimizer`."""
        restore_optimizer(self.inner, self.names, self.ranks.spread(moments, self.masters[0].device))


class _Sum:
    """A place for a gradient."""

    grad: Tensor | None = None


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
    shapes = {name: parameter.shape for name, parameter in optimizer.model.named_parameters()}
    if {name: weight.shape for name, weight in start.items()} != shapes:
        raise ValueError("the start has other weights than the policy, by name or shape")
    for name, master in zip(optimizer.names, optimizer.masters, strict=True):
        master.lerp_(optimizer.ranks.part(start[name].to(master)), rho)
    optimizer.publish()


def _move_gradient(total: Any, parameter: Tensor) -> None:
    assert parameter.grad is not None
    total.grad = parameter.grad.float() if total.grad is None else total.grad.add_(parameter.grad)
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
