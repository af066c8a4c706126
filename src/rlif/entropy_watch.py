"""What an update does to entropy, beside what theory says it does: the entropy lemma as an instrument.

The lemma (arXiv 2506.17219, Lemma 1; docs/theory.md): a step Δz of the logits changes the entropy of a state by
−Cov_{a∼π}(ln π, Δz), to first order. Of a large model only one action a state is sampled, and that is enough: as
E_a[ln π(a|s) + H(s)] = 0, whatever is the same for all actions of a state drops out, and

    ΔH(s) ≈ −E_a[(ln π(a|s) + H(s)) · (ln π'(a|s) − ln π(a|s))]

without knowing the mean of the step. The same pass over the same states gives the true change, H'(s) − H(s).

Differences from the lemma:

1. π is the policy at temperature 1; actions drawn at another one are weighted by π over what they were drawn from;
2. the step is of ln π, not of z: they differ by a constant of the state, which drops out;
3. in bf16 both passes run in the trainer's arithmetic: with the sampler's numbers as the first its rounding (0.04 nats
   a token) would enter the product squared and pass for a change. In fp32 the sampler's are the same to 1e-5;
4. the actions are those the update was made from, and a token moves its own probability most: the estimate overstates
   the share that each token had in its own state (docs/theory.md has how much in practice).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.logprobs import micro_batches, policy_signals
from rlif.policy import Policy
from rlif.types import Rollouts, Scored, TokenSignals


@dataclass(frozen=True)
class EntropyWatch:
    """A policy's signals on some rows of a batch, before its update."""

    rows: list[int]
    before: TokenSignals
    covariance: float


def watch(policy: Policy, scored: Scored, *, share: float, budget: int) -> EntropyWatch:
    """Look at the states of about this share of the rows before the update; ``budget`` as in `change`."""
    rollouts = scored.rollouts
    rows = watched_rows(rollouts, share)
    if next(policy.model.parameters()).dtype == torch.float32:
        before = TokenSignals(*(values[rows] for values in rollouts.signals))
    else:
        before = _signals(policy, rollouts, rows, budget)
    return EntropyWatch(rows, before, advantage_covariance(scored))


def watched_rows(rollouts: Rollouts, share: float) -> list[int]:
    """This share of the rows, at least one, none if it is 0: whole groups, for each prompt is run but once."""
    if not share:
        return []
    n, size = max(1, round(share * rollouts.n_rows)), rollouts.group_size
    groups = -(-n // size)
    first = [size * (i * len(rollouts.prompts) // groups) for i in range(groups)]  # spread evenly over the prompts
    return [row for start in first for row in range(start, start + size)][:n]


def change(policy: Policy, scored: Scored, watched: EntropyWatch, *, budget: int) -> dict[str, float]:
    """After the update: how entropy changed and was predicted to, keys as in docs/metrics.md.

    ``budget``: most tokens in one forward pass, as in an update.
    """
    metrics = {"entropy/advantage_covariance": watched.covariance}
    if watched.rows:
        after = _signals(policy, scored.rollouts, watched.rows, budget)
        metrics |= compare(scored.rollouts, watched.rows, watched.before, after)
    return metrics


def compare(rollouts: Rollouts, rows: list[int], before: TokenSignals, after: TokenSignals) -> dict[str, float]:
    """Predicted change of entropy with its standard error over rows, and measured change, nats a token.

    Args:
        before, after: signals at the completion tokens of ``rows``, 0 where masked, of two policies that lie close.
    """
    weights = _weights(rollouts, before.logprob, rows)
    predicted = -weights * (before.logprob + before.entropy) * (after.logprob - before.logprob)
    lengths = rollouts.lengths[rows].float()
    mean = predicted.sum() / lengths.sum()
    deviations = predicted.sum(dim=1) - mean * lengths  # of a ratio of two sums over rows
    return {
        "entropy/predicted": float(mean),
        "entropy/predicted_stderr": float(deviations.norm() / lengths.sum()),
        "entropy/measured": float((after.entropy - before.entropy).sum() / lengths.sum()),
    }


def advantage_covariance(scored: Scored) -> float:
    """Cov_{a∼π(·|s)}(ln π, A), mean over the batch's tokens, from the signals recorded while sampling.

    The mean of (ln π(a|s) + H(s)) · A: centred by the state's entropy, it leaves out that some states are surer than
    others. Above 0 the update makes likely tokens likelier: entropy is about to fall.
    """
    rollouts = scored.rollouts
    signals = rollouts.signals
    weights = _weights(rollouts, signals.logprob, list(range(rollouts.n_rows)))
    products = weights * (signals.logprob + signals.entropy) * scored.advantages[:, None]
    return float(products.sum() / rollouts.mask.sum())


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of n steps, with the bounds of its 95 % confidence interval (Fisher's z)."""

    n: int
    r: float
    low: float
    high: float


def correlation(lines: Sequence[Mapping[str, float | int]]) -> Correlation | None:
    """Of predicted with measured change over the lines of a metrics.jsonl; None below 4 steps that have both."""
    keys = ("entropy/predicted", "entropy/measured")
    pairs = [
        [line[key] for key in keys] for line in lines if all(math.isfinite(line.get(key, math.nan)) for key in keys)
    ]
    if len(pairs) < 4:
        return None
    r = float(torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1])
    if not abs(r) < 1.0:  # also what is not a number, where nothing changed
        return Correlation(len(pairs), r, r, r)
    z, width = math.atanh(r), 1.96 / math.sqrt(len(pairs) - 3)
    return Correlation(len(pairs), r, math.tanh(z - width), math.tanh(z + width))


def _signals(policy: Policy, rollouts: Rollouts, rows: list[int], budget: int) -> TokenSignals:
    """`policy_signals` part by part, on the CPU."""
    result = TokenSignals(*(torch.zeros(len(rows), rollouts.mask.shape[1]) for _ in range(3)))
    place = {row: i for i, row in enumerate(rows)}
    for part in micro_batches(policy.model, rollouts, rows, budget):
        for whole, values in zip(result, policy_signals(policy, rollouts, part), strict=True):
            whole[[place[row] for row in part]] = values.cpu()
    return result


def _weights(
    rollouts: Rollouts, logprobs: Float[Tensor, "some_rows tok"], rows: list[int]
) -> Float[Tensor, "some_rows tok"]:
    """π over what a token was drawn from; 1 where it was drawn at temperature 1, unfiltered, 0 where masked."""
    return (logprobs - rollouts.sampler_logprobs[rows]).exp() * rollouts.mask[rows]
