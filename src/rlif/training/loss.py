"""The GRPO loss as a pure function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """Everything the loss depends on. Log-probabilities and entropies in nats; masked positions hold 0 everywhere.

    ``entropy`` is that of the distribution each token was one of, with gradient; None: no bonus for it. ``shares`` and
    ``penalised`` are those of `rlif.types.Scored`; ``anchor`` says from where the KL of the latter is measured, a key
    of `ANCHORS`. ``sampler_logprobs`` are what the sampler said of the tokens where the trainer says ``old_logprobs``;
    None: the same.
    """

    policy_logprobs: Float[Tensor, "row tok"]
    old_logprobs: Float[Tensor, "row tok"]
    reference_logprobs: Float[Tensor, "row tok"] | None
    advantages: Float[Tensor, " row"]
    mask: Bool[Tensor, "row tok"]
    weights: Float[Tensor, "row tok"]
    entropy: Float[Tensor, "row tok"] | None = None
    shares: Float[Tensor, "row tok"] | None = None
    penalised: Bool[Tensor, "row tok"] | None = None
    anchor: str = "start"
    sampler_logprobs: Float[Tensor, "row tok"] | None = None


def grpo_loss(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    entropy_coef: float = 0.0,
    kl_cov_coef: float = 0.0,
    importance_cap: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Σ weight · (−w · min(ratio·A, clip(ratio)·A) + kl_coef · k3 − entropy_coef · H + kl_cov_coef · D), and sums over
    tokens for metrics.

    ratio = exp(policy − old), clipped to [1 − clip_low, 1 + clip_high]; A is the row's advantage times the token's
    share; w = min(exp(old − sampler), importance_cap) or 1 without a cap; k3 = e^d − d − 1 with d = reference − policy;
    H the entropy; D a penalised token's KL to the anchor, else 0. Returned sums: ``tokens``, ``kl``, ``clipped_low``,
    ``clipped_high``; ``kl_cov`` and ``penalised`` where there are such tokens; with a cap ``importance`` and ``capped``
    (tokens at it). Source: arXiv 2402.03300 eq. 3 and 4; separate clip bounds: DAPO, arXiv 2503.14476; the bonus:
    Skywork-OR1, arXiv 2505.22312; shares and penalty: Clip-Cov and KL-Cov, arXiv 2505.22617; w: `truncated_importance`.
    """
    ratio = (inputs.policy_logprobs - inputs.old_logprobs).exp()
    advantages = inputs.advantages[:, None] if inputs.shares is None else inputs.advantages[:, None] * inputs.shares
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    of_some: dict[str, float] = {}
    if importance_cap and inputs.sampler_logprobs is not None:
        importance = truncated_importance(inputs.old_logprobs, inputs.sampler_logprobs, importance_cap)
        per_token = per_token * importance
        of_some["importance"] = float((importance * inputs.mask).sum())
        of_some["capped"] = float(((importance >= importance_cap) & inputs.mask).sum())
    kl = torch.zeros_like(per_token)
    if inputs.reference_logprobs is not None:
        difference = inputs.reference_logprobs - inputs.policy_logprobs
        kl = difference.exp() - difference - 1.0
        per_token = per_token + kl_coef * kl
    if inputs.entropy is not None:
        per_token = per_token - entropy_coef * inputs.entropy
    if inputs.penalised is not None:
        penalty = ANCHORS[inputs.anchor](inputs) * inputs.penalised
        per_token = per_token + kl_cov_coef * penalty
        of_some |= {"kl_cov": float(penalty.detach().sum()), "penalised": float(inputs.penalised.sum())}
    loss = (per_token * inputs.weights).sum()
    sums = of_some | {
        "tokens": float(inputs.mask.sum()),
        "kl": float((kl.detach() * inputs.mask).sum()),
        "clipped_low": float(((ratio < 1.0 - clip_low) & (advantages < 0) & inputs.mask).sum()),
        "clipped_high": float(((ratio > 1.0 + clip_high) & (advantages > 0) & inputs.mask).sum()),
    }
    return loss, sums


def truncated_importance(
    old_logprobs: Float[Tensor, "row tok"], sampler_logprobs: Float[Tensor, "row tok"], cap: float
) -> Float[Tensor, "row tok"]:
    """min(π_old / π_sampler, cap) of each token, without gradient: what makes up for a sampler that is not quite the
    policy. Both in nats, at the same temperature. Source: truncated importance sampling, Ionides 2008; between sampler
    and trainer as in TRL's ``vllm_importance_sampling_mode="token_truncate"``.
    """
    return (old_logprobs - sampler_logprobs).detach().exp().clamp_max(cap)


def from_start(inputs: LossInputs) -> Float[Tensor, "row tok"]:
    """k3 of KL(policy, reference), from samples of the policy: e^d − d − 1 with d = reference − policy."""
    assert inputs.reference_logprobs is not None
    difference = inputs.reference_logprobs - inputs.policy_logprobs
    return difference.exp() - difference - 1.0


def from_old(inputs: LossInputs) -> Float[Tensor, "row tok"]:
    """k3 of KL(old, policy), from samples of the old: e^d − d − 1 with d = policy − old; no gradient at ratio 1."""
    difference = inputs.policy_logprobs - inputs.old_logprobs
    return difference.exp() - difference - 1.0


ANCHORS: Mapping[str, Callable[[LossInputs], Tensor]] = {"start": from_start, "old": from_old}
"""From where the KL of penalised tokens is measured, by what a recipe calls it (grpo.kl_cov_from)."""


def token_mean(mask: Bool[Tensor, "row tok"], limit: int) -> Float[Tensor, "row tok"]:
    """Every token of the batch weighs the same (DAPO, arXiv 2503.14476)."""
    return mask.float() / mask.sum()


def sequence_mean(mask: Bool[Tensor, "row tok"], limit: int) -> Float[Tensor, "row tok"]:
    """Every completion weighs the same, its tokens share its weight (GRPO, arXiv 2402.03300)."""
    return mask.float() / (mask.sum(dim=1, keepdim=True).clamp_min(1) * mask.shape[0])


def fixed_length(mask: Bool[Tensor, "row tok"], limit: int) -> Float[Tensor, "row tok"]:
    """Every token weighs 1 / (rows · length limit), whatever was sampled (Dr. GRPO, arXiv 2503.20783)."""
    return mask.float() / (mask.shape[0] * limit)


AGGREGATIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "fixed_length": fixed_length,
}
