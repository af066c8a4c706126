"""Answer-level rewards: which answers agree, with each other or with those of a teacher: the initial policy, or one
that follows the policy.

No label enters. An answer votes if its completion came to its own end and the answer could be read: one that was cut
off, is empty or unreadable is no candidate, counts for nobody and gets 0. Two answers are the same if
`rlif.grading.equivalence.canonical` says so, as in the votes of an evaluation (`rlif.grading.voting`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlif.config import RewardConfig
from rlif.errors import Argument, RlifError
from rlif.grading.equivalence import canonical
from rlif.grading.grader import LONGEST_ANSWER
from rlif.grading.voting import agreeing, ballots, tally
from rlif.rewards.base import RewardInputs, incomplete
from rlif.types import Rollouts, Verdict

_ROUNDING = 1e-9  # nats: a bound of ln 4 admits four answers that all differ


def voting_answers(rollouts: Rollouts, verdicts: Sequence[Verdict]) -> list[tuple[str | None, ...]]:
    """The answers to each prompt, in the order of its completions; None for one that does not vote."""
    rows = zip(incomplete(rollouts).tolist(), verdicts, strict=True)
    # The grader reads a longer answer if the truth is long: whether it was read would tell of the truth.
    read = [
        None if cut or len(verdict.extracted or "") > LONGEST_ANSWER else verdict.extracted for cut, verdict in rows
    ]
    size = rollouts.group_size
    return [tuple(read[first : first + size]) for first in range(0, len(read), size)]


def in_majority(votes: Int[np.ndarray, "prompt sample"]) -> Float[np.ndarray, "prompt sample"]:
    """1 for the answers of the greatest group; 1/k each where k groups tie, the mean over all ways to break the tie.

    Where all answers differ each gets the same, and so no advantage. A single vote wins.
    """
    sizes = agreeing(votes)
    wins = (sizes > 0) & (sizes == sizes.max(axis=1, keepdims=True))
    winners = (tally(votes) == sizes.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
    return wins / winners


def settled(answers: Sequence[str | None]) -> list[str]:
    """The answer that most of a problem's samples give, as it is first spelt; all that tie; none if nobody votes."""
    votes = ballots([answers])
    winners = np.unique(votes[in_majority(votes) > 0])
    return [str(answers[int(np.argmax(votes[0] == winner))]) for winner in winners]


def semantic_entropy(votes: Int[np.ndarray, "prompt sample"]) -> Float[np.ndarray, " prompt"]:
    """Entropy of each prompt's votes over their candidates, in nats; NaN where nobody votes.

    The plug-in estimate -Σ p ln p with p the candidates' shares of the votes: 0 where all agree, at most ln of their
    number. Source: the discrete semantic entropy of arXiv 2302.09664, whose clusters of meaning are answers here.
    """
    sizes = tally(votes)
    total = sizes.sum(axis=1)
    shares = sizes / np.maximum(total, 1.0)[:, None]
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    return np.where(total > 0, entropy, np.nan)


def outside(rollouts: Rollouts, verdicts: Sequence[Verdict], bounds: tuple[float, float]) -> Bool[Tensor, " row"]:
    """The rows of prompts whose `semantic_entropy`, in nats, is below or above the bounds, or not there at all."""
    entropy = semantic_entropy(ballots(voting_answers(rollouts, verdicts)))
    least, most = bounds[0] - _ROUNDING, bounds[1] + _ROUNDING
    within = (least <= entropy) & (entropy <= most)  # NaN is not
    return torch.from_numpy(~within).repeat_interleave(rollouts.group_size)


def _majority_vote(inputs: RewardInputs, config: RewardConfig) -> Float[Tensor, " row"]:
    return _by_row(in_majority(ballots(voting_answers(inputs.rollouts, inputs.verdicts))))


def _soft_consensus(inputs: RewardInputs, config: RewardConfig) -> Float[Tensor, " row"]:
    votes = ballots(voting_answers(inputs.rollouts, inputs.verdicts))
    return _by_row(agreeing(votes) / inputs.rollouts.group_size)


def _teacher_vote(inputs: RewardInputs, config: RewardConfig) -> Float[Tensor, " row"]:
    given = voting_answers(inputs.rollouts, inputs.verdicts)
    problems = [prompt.problem.id for prompt in inputs.rollouts.prompts]
    if lacking := [id for id in problems if id not in inputs.consensus]:
        raise RlifError(
            f"reward {config.name}: no answer is settled for the problem {lacking[0]}; give one in ",
            Argument("consensus"),
            " (none: an empty list)",
        )
    return torch.tensor(
        [
            share
            for id, answers in zip(problems, given, strict=True)
            for share in consensus_shares(answers, inputs.consensus[id])
        ]
    )


def consensus_shares(answers: Sequence[str | None], consensus: Sequence[str]) -> list[float]:
    """1 for an answer that a teacher settled on; 1/k each where it settled on k that tie; 0 for any other."""
    winners = {canonical(answer) for answer in consensus}
    return [1.0 / len(winners) if answer and canonical(answer) in winners else 0.0 for answer in answers]


def _by_row(values: Float[np.ndarray, "prompt sample"]) -> Float[Tensor, " row"]:
    return torch.from_numpy(values).float().flatten()
