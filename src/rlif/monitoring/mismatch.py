"""Do sampler and trainer speak of the same policy? A small part of what was sampled is looked at again.

A model whose output is no function of (its own tokens, positions, cache) is sampled as one policy and trained as
another, and no loss tells. So the log-probabilities that the sampler recorded are held against the plainest forward
pass there is: transformers' own, one completion at a time, without cache, padding or `rlif.model.decoder`.
"""

import math
import warnings
from dataclasses import dataclass

import torch

from rlif.errors import RlifError
from rlif.model.logprobs import plain_logprobs
from rlif.model.policy import Policy
from rlif.types import Rollouts, Sampling

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


def measure(policy: Policy, rollouts: Rollouts) -> Mismatch:
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
    return 0.01 if next(policy.model.parameters()).dtype == torch.float32 else 0.1


def comparable(sampling: Sampling) -> bool:
    """Whether ``mismatch/*`` of an update (`rlif.training.grpo`) is of equal distributions: at a temperature other than
    1 the sampler's log-probabilities are known with top-p and top-k only, the trainer's without."""
    return sampling.temperature in (0.0, 1.0) or (sampling.top_p == 1.0 and sampling.top_k == 0)


class Guard:
    """Ends, or warns, where sampler and trainer are further apart than ``limit`` nats a token.

    Args:
        limit: None: `tolerance`; 0: nothing is looked at.
        key: what the limit is called where the user can set it.
    """

    def __init__(self, policy: Policy, limit: float | None, *, key: str) -> None:
        self._policy, self._key = policy, key
        self._limit = tolerance(policy) if limit is None else limit or math.inf
        self._outside = False

    def check(self, where: str, rollouts: Rollouts) -> None:
        """Raise `RlifError` if these completions were not sampled from the policy that a plain forward pass shows."""
        if self._limit == math.inf:
            return
        found = measure(self._policy, rollouts)
        if not found.mean <= self._limit:  # nan is no agreement
            raise RlifError(
                f"{where}: the sampler's log-probabilities are {found.mean:.2g} nats a token (at most "
                f"{found.largest:.2g}) from those of a plain forward pass of {self._policy.source} over {found.tokens} "
                f"of the same tokens, more than {self._key} ({self._limit:g}): what is sampled from is not what would "
                f"be trained; use another model or float32, or a higher {self._key} (0: no check)"
            )

    def watch(self, step: int, mean: float) -> None:
        """Warn, once until it is back, when a step's ``mismatch/mean`` (nan: nothing was compared) leaves the limit."""
        if math.isnan(mean):
            return
        if mean > self._limit and not self._outside:
            warnings.warn(
                f"step {step}: mismatch/mean is {mean:.2g} nats a token, more than {self._key} ({self._limit:g}): "
                "sampler and trainer drift apart; policy.dtype=float32 tells whether it is rounding",
                RuntimeWarning,
                stacklevel=2,
            )
        self._outside = mean > self._limit
