"""How equivalent are the rewards? Not whether but how much: agreement of gradients and of where flows end."""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.theory.gradient_flow import flow
from rlif.theory.gradients import REWARDS, Reward, natural_gradient
from rlif.theory.tabular import Policies, random_policies, tree

COMPARED = ("trajectory_entropy", "token_entropy", "self_certainty", "verifiable")


@dataclass(frozen=True)
class Kinship:
    """What two rewards share, over random policies on a tree of two choices among four.

    Attributes:
        cosine: median cosine between their natural gradients, in the metric of the Fisher matrix; on a tree that is the
            correlation of the two rewards over the policy's own trajectories.
        opposed: share of policies for which that cosine is negative: following one works against the other.
        ends: share of policies that both rewards drive to the same likeliest trajectory.
    """

    pair: tuple[str, str]
    cosine: float
    opposed: float
    ends: float


def kinships(*, policies: int, seed: int) -> list[Kinship]:
    """Compare all pairs of `COMPARED` on the same random policies."""
    drawn = random_policies(tree(4, 2), policies, torch.Generator().manual_seed(seed))
    favourites = {name: _favourite(drawn, REWARDS[name]) for name in COMPARED}
    advantages = {name: natural_gradient(drawn, REWARDS[name](drawn)) for name in COMPARED}
    found = []
    for one, other in combinations(COMPARED, 2):
        cosines = _cosine(drawn, advantages[one], advantages[other])
        found.append(
            Kinship(
                pair=(one, other),
                cosine=float(cosines.median()),
                opposed=float((cosines < 0).double().mean()),
                ends=float((favourites[one] == favourites[other]).double().mean()),
            )
        )
    return found


def _favourite(policies: Policies, reward: Reward) -> Tensor:
    """The likeliest trajectory where the reward drives each policy."""
    return flow(policies, reward, step=0.5, steps=300).end.logprob.argmax(dim=1)


def _cosine(policies: Policies, one: Tensor, other: Tensor) -> Float[Tensor, " policy"]:
    def inner(x: Tensor, y: Tensor) -> Tensor:
        return (policies.visits * x * y).sum(dim=(1, 2))

    return inner(one, other) / (inner(one, one) * inner(other, other)).sqrt()
