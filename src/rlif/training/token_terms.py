"""What tells the tokens of a batch apart in the loss, decided once before the update: so no micro-batch can change it.

Two kinds, each a table of small functions by the recipe key that switches it on:

- `GATES` give each token a share of its completion's advantage;
- `covariant_tokens` are those that `grpo.kl_cov` puts under a KL term of their own.

The covariance of a token is (ln π − mean ln π)(A − mean A), means over the batch's tokens: the part it has in how much
an update lowers entropy (arXiv 2505.22617). π is the policy before the update, as its sampler recorded it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlif.config import GrpoConfig
from rlif.model.policy import Policy
from rlif.rng import Key, uniforms
from rlif.training.answer_span import answer_tokens
from rlif.types import Rollouts, Scored


def token_covariance(scored: Scored) -> Float[Tensor, "row tok"]:
    """(ln π(o_t) − its mean)(A − its mean), nats, float64; 0 where masked. Means are over the batch's tokens.

    ln π is at the temperature of training, without top-p and top-k at temperature 1. Source: arXiv 2505.22617.
    """
    rollouts = scored.rollouts
    logprobs = rollouts.old_logprobs.double()
    advantages = scored.advantages.double()[:, None].expand_as(logprobs)
    mask = rollouts.mask
    return (logprobs - logprobs[mask].mean()) * (advantages - advantages[mask].mean()) * mask


def covariant_tokens(scored: Scored, share: float) -> Bool[Tensor, "row tok"]:
    """This share of the batch's tokens, rounded down but at least one: those of the highest `token_covariance`.

    Of equals the earlier. Source: KL-Cov, arXiv 2505.22617.
    """
    mask = scored.rollouts.mask
    order = token_covariance(scored)[mask].argsort(descending=True, stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[: _count(share, len(order))]] = True
    return torch.zeros_like(mask).masked_scatter(mask, chosen)


def clip_cov(policy: Policy, scored: Scored, config: GrpoConfig, key: Key) -> Float[Tensor, "row tok"]:
    """0 for this share of the batch's tokens (rounded down, at least one), drawn from those whose covariance lies
    within ``clip_cov_range``, or for all of these if they are fewer; 1 for the others.

    Drawn by a stream of each completion's own: however the batch is split. Source: Clip-Cov, arXiv 2505.22617.
    """
    assert config.clip_cov is not None
    mask, (least, most) = scored.rollouts.mask, config.clip_cov_range
    covariance = token_covariance(scored)
    eligible = ((covariance > least) & (covariance < most) & mask)[mask]
    drawn = torch.where(eligible, _draws(scored.rollouts, key), 2.0)  # behind all that may be chosen
    count = min(_count(config.clip_cov, len(drawn)), int(eligible.sum()))
    shares = torch.ones(len(drawn))
    shares[drawn.argsort(stable=True)[:count]] = 0.0
    return torch.zeros(mask.shape).masked_scatter(mask, shares)


def answer_share(policy: Policy, scored: Scored, config: GrpoConfig, key: Key) -> Float[Tensor, "row tok"]:
    """``config.answer_share`` for the tokens of a completion's answer (`answer_tokens`), 1 for the others.

    Source: OM-GRPO, arXiv 2608.03119, as reported: with votes as reward, a quarter of the answer's gradient is as good
    as none of it, half is worse, three quarters collapse.
    """
    assert config.answer_share is not None
    return scored.rollouts.mask.float().masked_fill(answer_tokens(policy, scored), config.answer_share)


GATES: Mapping[str, Callable[[Policy, Scored, GrpoConfig, Key], Tensor]] = {
    "clip_cov": clip_cov,
    "answer_share": answer_share,
}
"""By the key of the section grpo that switches it on: (policy, scored, section grpo, key of the step) → share of each
token. The policy is there for its tokenizer."""


def with_token_terms(policy: Policy, scored: Scored, config: GrpoConfig, key: Key) -> Scored:
    """The batch with what the recipe says of single tokens; unchanged where it says nothing."""
    gates = [gate(policy, scored, config, key) for name, gate in GATES.items() if getattr(config, name) is not None]
    shares = torch.stack(gates).prod(dim=0) if gates else None
    penalised = None if config.kl_cov is None else covariant_tokens(scored, config.kl_cov)
    return replace(scored, shares=shares, penalised=penalised)


def _count(share: float, tokens: int) -> int:
    return max(1, int(share * tokens))


def _draws(rollouts: Rollouts, key: Key) -> Float[Tensor, " token"]:
    """A number in [0, 1) for each token that counts, row by row."""
    stream = Key(key.seed, f"{key.step}/clip_cov")  # not the one that the tokens were drawn from
    rows = enumerate(zip(rollouts.row_prompts, rollouts.lengths.tolist(), strict=True))
    drawn = [uniforms(stream, prompt.id, row % rollouts.group_size, length) for row, (prompt, length) in rows]
    return torch.from_numpy(np.concatenate(drawn))
