"""Drawing one token a row from logits, reproducibly, and reading the signals in the same pass.

Randomness belongs to the row, not to the batch: completion i of a prompt draws its t-th token with the t-th number of a
stream keyed by (run seed, step, prompt id, i). So the batch split, the other prompts and the number of machines change
nothing. Tokens are drawn by inverse transform: the first token whose cumulative probability exceeds the number.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlif.model.kernels.cpu import kernels_for
from rlif.types import Sampling, TokenSignals

_BLOCK = 256  # tokens summed together when the cumulative probability is searched


def draw(
    logits: Float[Tensor, "row vocab"], numbers: Float[Tensor, " row"], sampling: Sampling
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], TokenSignals]:
    """One token a row, its log-probability (nats) under the distribution it was drawn from, and its signals.

    Args:
        logits: fp32, at temperature 1, true vocabulary only.
        numbers: one uniform number in [0, 1) a row.

    The signals are those of `rlif.signals.token_signals` (temperature 1, nothing filtered). Where a row's logits are no
    distribution (the model has been blown up or is damaged) one of its two log-probabilities is not finite, and its
    token is any. Nothing is read back from the device.
    """
    filtered = sampling.top_p < 1.0 or sampling.top_k > 0
    if not filtered and (kernels := kernels_for(logits)) is not None:
        return kernels.draw(logits, numbers, sampling.temperature)
    z = logits - logits.amax(dim=-1, keepdim=True)
    weights = z.exp()
    total = weights.sum(dim=-1)
    log_total = total.log()
    untouched = sampling.temperature == 1.0 and not filtered
    if sampling.temperature == 0.0:
        tokens = z.argmax(dim=-1)
        sampler_logprobs = torch.zeros_like(total)
    else:
        scores = z if untouched else _filtered(z / sampling.temperature, sampling)
        pool = weights if untouched else scores.exp()
        tokens = _search(pool, numbers)
        normaliser = log_total if untouched else pool.sum(dim=-1).log()
        sampler_logprobs = _pick(scores, tokens) - normaliser
    signals = TokenSignals(
        _pick(z, tokens) - log_total,
        (log_total - torch.linalg.vecdot(weights, z) / total).clamp_min(0.0),
        (log_total - z.mean(dim=-1) - math.log(z.shape[-1])).clamp_min(0.0),
    )
    return tokens, sampler_logprobs, signals


def _pick(values: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    return values.gather(-1, tokens[:, None]).squeeze(-1)


def _search(weights: Float[Tensor, "row vocab"], numbers: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The first token whose cumulative weight exceeds number · total; one of weight 0 never.

    Found block by block, then within a block: a cumulative sum over the whole vocabulary is the dearest thing about
    drawing a token.
    """
    vocab = weights.shape[1]
    whole = vocab // _BLOCK * _BLOCK
    blocks = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=-1)
    if whole < vocab:
        blocks = torch.cat([blocks, weights[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    cumulative = blocks.cumsum(dim=-1)
    target = _below(numbers.to(cumulative)[:, None] * cumulative[:, -1:], cumulative[:, -1:])
    block = torch.searchsorted(cumulative, target, right=True)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp_min(0)), 0.0)
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = torch.where(places < vocab, weights.gather(-1, places.clamp_max(vocab - 1)), 0.0).cumsum(dim=-1)
    rest = _below(target - before, inside[:, -1:])
    found = block * _BLOCK + torch.searchsorted(inside, rest, right=True)
    return found.squeeze(-1).clamp_max(vocab - 1)  # of what is no distribution, too


def _below(target: Tensor, total: Tensor) -> Tensor:
    """Rounding must not carry the target up to the total itself: no token lies beyond it."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))


def _filtered(scores: Float[Tensor, "row vocab"], sampling: Sampling) -> Float[Tensor, "row vocab"]:
    """Top-k, then top-p: -inf outside. The likeliest token always stays."""
    if sampling.top_k and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True)
        probs = ordered.softmax(dim=-1)
        outside = probs.cumsum(dim=-1) - probs >= sampling.top_p
        scores = scores.masked_fill(outside.gather(-1, order.argsort(dim=-1)), -torch.inf)
    return scores
