"""What a run trains: the policy under its optimizer, and the reference."""

import copy
from typing import Any

import torch
from torch import nn

from rlif.config import PolicyConfig, Recipe
from rlif.model.loading import compute_dtype, load_policy
from rlif.model.policy import Policy
from rlif.runs.checkpoint import (
    Checkpoint,
    restore_optimizer,
)
from rlif.training.optim import MasterOptimizer, adamw


def _load_trainable(recipe: Recipe, checkpoint: Checkpoint | None) -> tuple[Policy, MasterOptimizer]:
    """The policy in compute type, under an optimizer that holds its fp32 masters."""
    config = recipe.policy
    if checkpoint is not None:
        config = PolicyConfig(**{**config.model_dump(), "model": str(checkpoint.path)})
    policy = load_policy(config, dtype=torch.float32)
    if recipe.grpo.gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    dtype = compute_dtype(recipe.policy.dtype, policy.device)
    optimizer = MasterOptimizer(policy.model, adamw(recipe.grpo), compute_dtype=dtype)
    if checkpoint is not None:
        restore_optimizer(optimizer.inner, optimizer.names, checkpoint.tensors)
    return policy, optimizer


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; transformers renamed the call within version 5."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _load_reference(recipe: Recipe, policy: Policy, *, fresh: bool) -> nn.Module | None:
    """The policy as it was before the first step, frozen; None where no KL term needs it."""
    if recipe.grpo.kl_coef == 0.0:
        return None
    # A resumed policy has moved on: its reference is the model the recipe started from.
    dtype = compute_dtype(recipe.policy.dtype, policy.device)
    model = copy.deepcopy(policy.model) if fresh else load_policy(recipe.policy, dtype=dtype).model
    return model.requires_grad_(False).eval()
