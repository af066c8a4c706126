"""Exact rewards, objectives and gradients of tabular softmax policies.

A reward is a function of the policies, ``Policies -> (policy, trajectory)``, detached as in training: the gradient sees
the reward's value, not that it depends on the policy. `full_gradient` is the other thing, the gradient of the objective
with the reward's own dependence in it.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.theory.tabular import Policies

Reward = Callable[[Policies], Tensor]

_NEVER = 1e-280  # a choice less likely than this is never made: the quotient of two such numbers means nothing


def self_certainty(policies: Policies) -> Float[Tensor, "policy trajectory"]:
    """Σ_t KL(U‖π(·|s_t)) (arXiv 2505.19590)."""
    return policies.along_states(policies.self_certainty).detach()


def token_entropy(policies: Policies) -> Float[Tensor, "policy trajectory"]:
    """−Σ_t H(s_t) (arXiv 2505.22660)."""
    return -policies.along_states(policies.entropy).detach()


def trajectory_entropy(policies: Policies) -> Float[Tensor, "policy trajectory"]:
    """ln p(τ) (arXiv 2505.15134)."""
    return policies.logprob.detach()


def verifiable(policies: Policies) -> Float[Tensor, "policy trajectory"]:
    """1 if the answer is the right one."""
    return (policies.language.answers == policies.right[:, None]).double()


def majority_vote(policies: Policies) -> Float[Tensor, "policy trajectory"]:
    """1 if the answer is the likeliest one: the vote of infinitely many samples (arXiv 2504.16084)."""
    mode = policies.answer_shares().argmax(dim=1, keepdim=True)
    return (policies.language.answers == mode).double()


REWARDS: Mapping[str, Reward] = {
    "self_certainty": self_certainty,
    "token_entropy": token_entropy,
    "trajectory_entropy": trajectory_entropy,
    "verifiable": verifiable,
    "majority_vote": majority_vote,
}


def per_token(reward: Reward) -> Reward:
    """The mean over a trajectory's choices in place of the sum."""
    return lambda policies: reward(policies) / policies.language.lengths


def with_kl(reward: Reward, reference: Policies, beta: float | Float[Tensor, "policy 1"]) -> Reward:
    """The reward minus β ln(p/p_ref): its expectation is E[reward] − β KL(p‖p_ref)."""
    return lambda policies: reward(policies) - beta * (policies.logprob - reference.logprob).detach()


def objective(policies: Policies, rewards: Float[Tensor, "policy trajectory"]) -> Float[Tensor, " policy"]:
    """J = Σ_τ p(τ) R(τ)."""
    return policies.expected(rewards)


def q_values(policies: Policies, rewards: Float[Tensor, "policy trajectory"]) -> Float[Tensor, "policy state action"]:
    """E[R | the trajectory makes this choice], weighted by how often it does; 0 where it never does."""
    visits = policies.visits
    gained = policies.spread(policies.probability * rewards)
    return torch.where(visits > _NEVER, gained / visits.clamp_min(_NEVER), 0.0)


def natural_gradient(
    policies: Policies, rewards: Float[Tensor, "policy trajectory"]
) -> Float[Tensor, "policy state action"]:
    """The advantage Q(s, a) − V(s): the step of the logits along the natural policy gradient.

    The Fisher matrix of a tabular softmax policy is d(s)(diag π − ππᵀ), its inverse on the gradient d(s) π (Q − V) is
    Q − V up to a constant in each state, which moves no probability. Source: Kakade 2001; arXiv 1908.00261, lemma 5.1.
    """
    q = q_values(policies, rewards)
    advantage = q - (policies.policy * q).sum(dim=-1, keepdim=True)
    return torch.where(policies.visits > _NEVER, advantage, 0.0)


def policy_gradient(
    policies: Policies, rewards: Float[Tensor, "policy trajectory"]
) -> Float[Tensor, "policy state action"]:
    """∂J/∂z with the rewards held fixed: Σ_τ p R (count of the choice − π · count of the state). arXiv 1908.00261."""
    gained = policies.spread(policies.probability * rewards)
    return gained - policies.policy * gained.sum(dim=-1, keepdim=True)


DIRECTIONS: Mapping[str, Callable[[Policies, Tensor], Tensor]] = {
    "natural": natural_gradient,
    "plain": policy_gradient,
}


def gradient_of(
    function: Callable[[Policies], Float[Tensor, " policy"]], policies: Policies
) -> Float[Tensor, "policy state action"]:
    """∂ function / ∂z of each policy, by automatic differentiation."""
    logits = policies.logits.clone().requires_grad_()
    value = function(Policies(policies.language, logits, policies.right)).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return gradient


def entropy_slope(policies: Policies, direction: Float[Tensor, "policy state action"]) -> Float[Tensor, " policy"]:
    """d(trajectory entropy)/dη of the step η · direction, by automatic differentiation."""
    return (gradient_of(lambda p: p.trajectory_entropy, policies) * direction).sum(dim=(1, 2))
