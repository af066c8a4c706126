"""For verl, untested there: the advantages of a majority vote, from the ballots of `vote_reward`.

    VERL_USE_EXTERNAL_MODULES=vote_advantage    algorithm.adv_estimator=majority_vote

It needs the rewards as they were given: leave algorithm.use_kl_in_reward off.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

from rlif.grading.voting import NO_VOTE
from rlif.rewards.agreement import in_majority


def vote_shares(ballots: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(row,) rewards: 1 for an answer of its prompt's greatest group, 1/k where k tie, 0 for another and for none.

    ``ballots`` (row,) are 0 where nobody votes; ``index`` (row,) names each row's prompt.
    """
    shares = np.zeros(len(ballots))
    for prompt in np.unique(index):
        rows = np.flatnonzero(index == prompt)
        _, votes = np.unique(ballots[rows], return_inverse=True)
        shares[rows] = in_majority(np.where(ballots[rows] == 0, NO_VOTE, votes.reshape(-1))[None])[0]
    return shares


@register_adv_est("majority_vote")
def majority_vote(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (row, token), by verl's own GRPO from the votes instead of the rewards."""
    shares = vote_shares(token_level_rewards.sum(dim=-1).cpu().numpy(), np.asarray(index, dtype=str))
    rewards = torch.zeros_like(token_level_rewards)
    rewards[:, 0] = torch.from_numpy(shares).to(rewards)
    by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    return compute_grpo_outcome_advantage(rewards, response_mask, index, norm_adv_by_std_in_grpo=by_std)
