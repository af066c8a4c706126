"""Do sampler and trainer speak of the same policy? A small part of what was sampled is looked at again.

A model whose output is no function of (its own tokens, positions, cache) is sampled as one policy and trained as
another, and no loss tells. So the log-probabilities that the sampler recorded are held against the plainest forward
pass there is: transformers' own, one completion at a time, without cache, padding or `rlif.model.decoder`.
"""

import math
from dataclasses import dataclass

import torch

from rlif.config import MISMATCH_LIMITS
from rlif.errors import Argument, RlifError
from rlif.model.logprobs import plain_logprobs
from rlif.model.policy import Policy
from rlif.types import Rollouts

_ROWS, _TOKENS = 4, 128  # most completions, and tokens of each, that are looked at: little beside a batch


@dataclass(frozen=True)
class Mismatch:
    """The gap |ln π of the sampler − ln π of a plain forward pass|, in nats, over so many tokens of so many rows.

    Both at temperature 1 over the true vocabulary, whatever the sampling.
    """

    mean: float
    largest: float
    tokens: int
    rows: int


def measure_mismatch(policy: Policy, rollouts: Rollouts) -> Mismatch:
    """Look at up to 4 completions, the longest text among them, and up to 128 tokens of each, spread evenly."""
    lengths = rollouts.lengths.tolist()
    totals = [len(prompt.token_ids) + n for prompt, n in zip(rollouts.row_prompts, lengths, strict=True)]
    spread = torch.linspace(0, rollouts.n_rows - 1, min(rollouts.n_rows, _ROWS - 1)).long().tolist()
    rows = sorted({*spread, max(range(rollouts.n_rows), key=totals.__getitem__)})
    gaps = []
    for row in rows:
        at = torch.linspace(0, lengths[row] - 1, min(lengths[row], _TOKENS)).long()
        gaps.append((plain_logprobs(policy, rollouts, row, at) - rollouts.signals.logprob[row, at]).abs())
    gap = torch.cat(gaps)
    return Mismatch(gap.mean().item(), gap.max().item(), len(gap), len(rows))


def tolerance(policy: Policy) -> float:
    """What rounding may make of a log-probability: .01 nats in fp32, .1 in other types, as a mean over tokens.

    Healthy models differ by 2e-5 and less, and by up to .05 (SmolLM2-135M-Instruct in bf16, n = 245). Source: project.
    """
    full = next(policy.model.parameters()).dtype == torch.float32
    return MISMATCH_LIMITS["float32" if full else "bfloat16"]


def comparable(rollouts: Rollouts) -> bool:
    """Whether ``mismatch/*`` of an update (`rlif.training.grpo`) is of equal distributions: at a temperature other than
    1 the sampler's log-probabilities are known with top-p and top-k only, the trainer's without."""
    sampling = rollouts.sampling
    return sampling.temperature in (0.0, 1.0) or (sampling.top_p == 1.0 and sampling.top_k == 0)


class Guard:
    """Tells where sampler and trainer are further apart than a limit, in nats a token.

    Args:
        max_mismatch: the limit; None: `tolerance`; 0: nothing is compared.
    """

    def __init__(self, policy: Policy, max_mismatch: float | None) -> None:
        self._policy = policy
        self.limit = tolerance(policy) if max_mismatch is None else max_mismatch or math.inf
        self._outside = False

    def check(self, where: str, rollouts: Rollouts) -> None:
        """Raise `RlifError` if these completions were not sampled from the policy that a plain forward pass shows."""
        if self.limit == math.inf:
            return
        found = measure_mismatch(self._policy, rollouts)
        if not found.mean <= self.limit:  # nan is no agreement
            raise RlifError(
                f"{where}: the sampler's log-probabilities are {found.mean:.2g} nats a token (at most "
                f"{found.largest:.2g}) from those of a plain forward pass of {self._policy.source} over {found.tokens} "
                "of the same tokens, more than ",
                Argument("max_mismatch"),
                f" ({self.limit:g}): what is sampled from is not what would be trained; use another model or float32, "
                "or a higher ",
                Argument("max_mismatch"),
                " (0: no check)",
            )

    def leaves_limit(self, mean: float) -> bool:
        """Whether a step's ``mismatch/mean`` is above the limit and the last one was not: once until it is back.

        nan, where an update compared nothing, changes nothing.
        """
        if math.isnan(mean):
            return False
        before, self._outside = self._outside, mean > self.limit
        return self._outside and not before
