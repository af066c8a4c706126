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
   the share that each token had in its own state (docs/theory.md has how much in practice);
5. where sampling was greedy, top-p or top-k, E_a[ln π + H] is not 0 over what could be drawn, no weight corrects that,
   and nothing is predicted: only the measured change is logged.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.model.logprobs import signals_of
from rlif.model.policy import Policy
from rlif.types import Rollouts, Sampling, Scored, TokenSignals
from rlif.utils.splitting import Split, unsplit

_LEAST_ROWS = 8  # fewer know neither the change nor their own standard error


@dataclass(frozen=True)
class EntropyChangeProbe:
    """A policy's signals on some rows of a batch before its update, to be held against those after it.

    ``covariance``: Cov(ln π, A) over the whole batch; None where its actions cannot tell it.
    ``budget``: most tokens in one forward pass, as in an update. ``split``: who makes the passes.
    """

    scored: Scored
    rows: list[int]
    signals: TokenSignals
    covariance: float | None
    budget: int | None
    split: Split = unsplit

    @classmethod
    def before(
        cls, policy: Policy, scored: Scored, *, share: float, budget: int | None, split: Split = unsplit
    ) -> "EntropyChangeProbe":
        """Read the states of about this share of the rows, before the update."""
        rollouts = scored.rollouts
        rows = probed_rows(rollouts, share)
        if next(policy.model.parameters()).dtype == torch.float32:
            signals = TokenSignals(*(values[rows] for values in rollouts.signals))
        else:
            signals = signals_of(policy, rollouts, rows, budget, split)
        covariance = advantage_covariance(scored) if sees_every_action(rollouts.sampling) else None
        return cls(scored, rows, signals, covariance, budget, split)

    def after(self, policy: Policy) -> dict[str, float]:
        """How the update changed entropy and was predicted to, keys as in docs/metrics.md."""
        metrics = {} if self.covariance is None else {"entropy/advantage_covariance": self.covariance}
        if self.rows:
            rollouts = self.scored.rollouts
            after = signals_of(policy, rollouts, self.rows, self.budget, self.split)
            metrics["entropy/measured"] = measured(rollouts, self.rows, self.signals, after)
            if self.covariance is not None:
                metrics |= predicted(rollouts, self.rows, self.signals, after)
        return metrics


def sees_every_action(sampling: Sampling) -> bool:
    """Whether each action of π could be drawn: only then do weighted sums over drawn actions estimate those over π."""
    return sampling.temperature > 0.0 and sampling.top_p == 1.0 and not sampling.top_k


def probed_rows(rollouts: Rollouts, share: float) -> list[int]:
    """This share of the rows, at least 8 or all, none if it is 0: whole groups, for each prompt is run but once."""
    if not share:
        return []
    n, size = min(rollouts.n_rows, max(_LEAST_ROWS, round(share * rollouts.n_rows))), rollouts.group_size
    groups = -(-n // size)
    first = [size * (i * len(rollouts.prompts) // groups) for i in range(groups)]  # spread evenly over the prompts
    return [row for start in first for row in range(start, start + size)][:n]


def measured(rollouts: Rollouts, rows: list[int], before: TokenSignals, after: TokenSignals) -> float:
    """The change of entropy on the states of ``rows``, nats a token; signals as in `predicted`."""
    return float((after.entropy - before.entropy).sum() / rollouts.lengths[rows].sum())


def predicted(rollouts: Rollouts, rows: list[int], before: TokenSignals, after: TokenSignals) -> dict[str, float]:
    """What the lemma makes of the step of ln π, nats a token, and its standard error over rows, if there are two.

    The rows are those of a few prompts: the error is within these prompts, and not over prompts.

    Args:
        before, after: signals at the completion tokens of ``rows``, 0 where masked, of two policies that lie close.
    """
    weights = _weights(rollouts, before.logprob, rows)
    changes = -weights * (before.logprob + before.entropy) * (after.logprob - before.logprob)
    lengths = rollouts.lengths[rows].float()
    mean = changes.sum() / lengths.sum()
    found = {"entropy/predicted": float(mean)}
    if (n := len(rows)) > 1:  # of a ratio of two sums over rows, of which its mean has taken one degree of freedom
        deviations = changes.sum(dim=1) - mean * lengths
        found["entropy/predicted_stderr"] = float(deviations.norm() / lengths.sum()) * (n / (n - 1)) ** 0.5
    return found


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


def _weights(
    rollouts: Rollouts, logprobs: Float[Tensor, "some_rows tok"], rows: list[int]
) -> Float[Tensor, "some_rows tok"]:
    """π over what a token was drawn from; 1 where it was drawn at temperature 1, unfiltered, 0 where masked."""
    return (logprobs - rollouts.sampler_logprobs[rows]).exp() * rollouts.mask[rows]
