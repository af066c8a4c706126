"""Where a reward drives a policy: small steps along its gradient until nothing moves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.theory.gradients import DIRECTIONS, Reward
from rlif.theory.tabular import Policies


@dataclass(frozen=True)
class Flow:
    """What became of some policies.

    Attributes:
        end: the policies at the end.
        entropies: trajectory entropy before the first step and after each, nats.
        converged: whether no probability moved by more than the tolerance at the end.
    """

    end: Policies
    entropies: Float[Tensor, "time policy"]
    converged: bool


def flow(
    policies: Policies,
    reward: Reward,
    *,
    step: float | Float[Tensor, "policy 1 1"] = 0.1,
    steps: int = 1000,
    direction: str = "natural",
    tolerance: float = 0.0,
) -> Flow:
    """Follow a reward, made anew from the policy at every step as in training.

    Args:
        step: the learning rate η of logits += η · direction; one for all, or one a policy.
        direction: a key of `rlif.theory.gradients.DIRECTIONS`.
        tolerance: stop when no probability of a choice moves by more than this in a step.
    """
    entropies = [policies.trajectory_entropy]
    moving = torch.inf
    for _ in range(steps):
        after = policies.moved(step * DIRECTIONS[direction](policies, reward(policies)))
        moving = float((after.policy - policies.policy).abs().max())
        policies = after
        entropies.append(policies.trajectory_entropy)
        if moving <= tolerance:
            break
    return Flow(policies, torch.stack(entropies), moving <= tolerance)
