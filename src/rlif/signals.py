"""The model's confidence, read from its next-token distributions.

Pure functions ``(..., vocab) -> (...)``. This is the slow, obvious version that every faster one is tested against; it
still makes a single pass: shift by the maximum, then Σe^z, Σz·e^z, Σz and z_token give all three signals.

Differences from the paper (arXiv 2506.17219) and from public implementations of its rewards:

1. self-certainty subtracts ln V, so it is the KL divergence itself, is at least 0 and compares across vocabularies;
2. statistics are fp32 whatever the logits are: in bf16 the error of self-certainty exceeds its spread between tokens;
3. rows of the logits that pad the vocabulary for the hardware do not count;
4. signal t belongs to the distribution that produced token t.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlif.types import TokenSignals

__all__ = ["SIGNALS", "Signal", "TokenSignals", "masked_mean", "masked_sum", "token_signals"]


def token_signals(
    logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"], *, vocab_size: int | None = None
) -> TokenSignals:
    """Log-probability of the token, entropy, and self-certainty of each distribution; fp32, in nats.

    Args:
        logits: finite, at temperature 1, any float type.
        tokens: the token each distribution produced.
        vocab_size: the true vocabulary; logits beyond it are padding and do not count. None: all count.

    With p = softmax(z): logprob = ln p[token]; entropy = -Σ p ln p, in [0, ln V];
    self_certainty = KL(U‖p) = logsumexp(z) - mean(z) - ln V, at least 0. Source: arXiv 2505.19590 eq. 3
    (self-certainty), arXiv 2506.17219 (the three of them as rewards).

    >>> import rlif, torch
    >>> logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])  # of any model: undecided, then sure
    >>> logprob, entropy, self_certainty = rlif.token_signals(logits, torch.tensor([0, 0]))
    >>> [round(value, 3) for value in entropy.tolist()], [round(value, 3) for value in self_certainty.tolist()]
    ([0.693, 0.0], [0.0, 49.307])
    """
    z = logits[..., :vocab_size].float()
    z = z - z.amax(dim=-1, keepdim=True)
    weights = z.exp()
    total = weights.sum(dim=-1)
    log_total = total.log()
    logprob = z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - log_total
    entropy = log_total - (weights * z).sum(dim=-1) / total
    self_certainty = log_total - z.mean(dim=-1) - math.log(z.shape[-1])
    # Both are non-negative by theory; rounding may leave them a hair below.
    return TokenSignals(logprob, entropy.clamp_min(0.0), self_certainty.clamp_min(0.0))


def masked_sum(values: Float[Tensor, "*batch tok"], mask: Bool[Tensor, "*batch tok"]) -> Float[Tensor, "*batch"]:
    """Sum over the positions that count; 0 where none does."""
    return values.masked_fill(~mask, 0.0).sum(dim=-1)


def masked_mean(values: Float[Tensor, "*batch tok"], mask: Bool[Tensor, "*batch tok"]) -> Float[Tensor, "*batch"]:
    """Mean over the positions that count; 0 where none does."""
    return masked_sum(values, mask) / mask.sum(dim=-1).clamp_min(1)


REDUCERS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": masked_mean, "sum": masked_sum}


@dataclass(frozen=True)
class Signal:
    """One internal feedback signal. ``score`` turns `TokenSignals` into a number per token, higher = more confident."""

    name: str
    formula: str
    unit: str
    direction: str
    citation: str
    score: Callable[[TokenSignals], Tensor]


def _self_certainty(signals: TokenSignals) -> Tensor:
    return signals.self_certainty


def _token_entropy(signals: TokenSignals) -> Tensor:
    return -signals.entropy


def _trajectory_entropy(signals: TokenSignals) -> Tensor:
    return signals.logprob


SIGNALS: Mapping[str, Signal] = {
    signal.name: signal
    for signal in (
        Signal(
            name="self_certainty",
            formula="KL(U‖p_t) = logsumexp(z_t) - mean_v z_tv - ln V",
            unit="nats per token",
            direction="higher = more confident; at least 0, unbounded",
            citation="arXiv 2505.19590 (Intuitor)",
            score=_self_certainty,
        ),
        Signal(
            name="token_entropy",
            formula="-H(p_t) = Σ_v p_tv ln p_tv",
            unit="nats per token",
            direction="higher = more confident; in [-ln V, 0]",
            citation="arXiv 2505.22660 (RENT), arXiv 2505.15134 (EM-RL-token)",
            score=_token_entropy,
        ),
        Signal(
            name="trajectory_entropy",
            formula="ln p_t(o_t)",
            unit="nats per token (reduce: mean) or per completion (reduce: sum)",
            direction="higher = more confident; at most 0",
            citation="arXiv 2505.15134 (EM-RL-sequence: reduce = sum)",
            score=_trajectory_entropy,
        ),
    )
}
