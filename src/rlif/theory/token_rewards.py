"""Statements on the rewards that belong to a state: token entropy and self-certainty (arXiv 2506.17219, Props. 2, 3).

Such a reward says nothing of the action taken where it is earned; it acts through the states that actions lead to. By
Lemma 1 its natural gradient changes entropy by −Cov(ln π, Q): that Cov(ln π, Q) ≥ 0 makes entropy fall is therefore no
finding, it is the lemma's condition. Here are the slopes it stands in, for every policy; the condition; and one that
can be looked up in a policy before anything is differentiated, that likelier actions lead to states of higher value.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.theory.entropy import ROUNDING, SOURCE, drawn, side_by_side
from rlif.theory.gradients import (
    Reward,
    entropy_slope,
    gradient_of,
    natural_gradient,
    q_values,
    self_certainty,
    token_entropy,
)
from rlif.theory.statements import Claim, Statement
from rlif.theory.tabular import Language, Policies, bandit, language, tree

_BANDITS = (bandit(2), bandit(3), bandit(10), bandit(50))
_LANGUAGES = (tree(3, 2), tree(2, 3), language(3, 3), language(3, 4, memory=1))
_TREES = (tree(3, 2), tree(4, 2))


def _bandit_still(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_BANDITS, trials, generator):
        pairs = (token_entropy, -policies.entropy), (self_certainty, policies.self_certainty)
        for reward, value in pairs:
            q = q_values(policies, reward(policies)).squeeze(1)
            left.append(torch.stack([q.amin(dim=-1), q.amax(dim=-1)], dim=1))
            right.append(value.expand(-1, 2))
    return Claim(torch.cat(left), torch.cat(right), ROUNDING)


def _state_slopes(policies: Policies, advantage: Tensor) -> Float[Tensor, "policy state"]:
    """d H(s)/dη along the advantage, by automatic differentiation."""
    return (gradient_of(lambda p: p.entropy.sum(dim=1), policies) * advantage).sum(dim=-1)


def _after_a_step(policies: Policies, advantage: Tensor) -> Float[Tensor, " policy"]:
    """The change of trajectory entropy by one real step of 0.01, no derivative."""
    return policies.moved(0.01 * advantage).trajectory_entropy - policies.trajectory_entropy


def _of_states(policies: Policies, advantage: Tensor) -> Float[Tensor, "policy state"]:
    """−Cov(ln π, A)."""
    return -policies.covariance(policies.log_policy, advantage)


def _of_texts(policies: Policies, advantage: Tensor) -> Float[Tensor, " policy"]:
    """−Σ_s d(s)(Cov(ln π, A) + Cov(Q^−H, A))."""
    later = q_values(policies, token_entropy(policies))
    here, there = (policies.covariance(each, advantage) for each in (policies.log_policy, later))
    return -(policies.occupancy * (here + there)).sum(dim=1)


def _of_texts_by_token_entropy(policies: Policies, advantage: Tensor) -> Float[Tensor, " policy"]:
    """−Σ_s d(s)(Var(A) + Cov(ln π, A))."""
    own, covariance = policies.covariance(advantage, advantage), policies.covariance(policies.log_policy, advantage)
    return -(policies.occupancy * (own + covariance)).sum(dim=1)


Slope = Callable[[Policies, Tensor], Tensor]


def _slope_is(reward: Reward, formula: Slope, slope: Slope) -> Callable[[int, torch.Generator], Claim]:
    """A trial of ``formula = slope`` along the natural gradient of a reward, for any policy."""

    def trial(trials: int, generator: torch.Generator) -> Claim:
        left, right = [], []
        for policies in drawn(_LANGUAGES, trials, generator):
            advantage = natural_gradient(policies, reward(policies))
            left.append(formula(policies, advantage))
            right.append(slope(policies, advantage))
        return Claim(side_by_side(left), side_by_side(right), ROUNDING)

    return trial


Condition = Callable[[Policies, Tensor], Tensor]


def _where(
    reward: Reward,
    condition: Condition | None,
    measured: Slope,
    languages: Sequence[Language] = _TREES,
    *,
    made: Callable[[Policies], Policies] = lambda policies: policies,
) -> Callable[[int, torch.Generator], Claim]:
    """A trial of ``measured ≤ 0`` among random policies that meet the condition, as many of 8 times ``trials``.

    ``made``: what is done to random policies first.
    """

    def trial(trials: int, generator: torch.Generator) -> Claim:
        values, roots = [], []
        for policies in map(made, drawn(languages, trials * (8 if condition else 1), generator)):
            advantage = natural_gradient(policies, reward(policies))
            keep = condition(policies, advantage) if condition else torch.ones_like(policies.right).bool()
            keep = keep.nonzero().squeeze(1)[: -(-trials // len(languages))]
            values.append(measured(policies.chosen(keep), advantage[keep]))
            roots += [(policies.language.name, root) for root in policies.chosen(keep).policy[:, 0].tolist()]
        left = side_by_side(values)  # a state that is not there rises by 0

        def example(number: int) -> str:
            name, root = roots[number]
            chances = " ".join(f"{chance:.2f}" for chance in root)
            return f"{name}, first choice ({chances}): rises by {float(left[number].max()):.3g} nats"

        return Claim(left, torch.zeros_like(left), 1e-12, example)

    return trial


def _aligned(policies: Policies, advantage: Tensor) -> Tensor:
    return (policies.covariance(policies.log_policy, advantage) >= 0.0).all(dim=1)


def _doubly_aligned(policies: Policies, advantage: Tensor) -> Tensor:
    """... and likelier to lead to low entropy wherever it leads to high self-certainty."""
    other = policies.covariance(natural_gradient(policies, token_entropy(policies)), advantage)
    return _aligned(policies, advantage) & (other >= 0.0).all(dim=1)


def _ordered(value: Callable[[Policies], Tensor]) -> Callable[[Policies], Policies]:
    """Policies of two choices whose second choices change places: the likelier a first action, the higher the value
    of the state behind it (state 1 + a lies behind action a)."""

    def made(policies: Policies) -> Policies:
        likelier, higher = policies.logits[:, 0].argsort(dim=1), value(policies)[:, 1:].argsort(dim=1)
        source = torch.empty_like(higher).scatter(1, likelier, higher)
        behind = policies.logits[:, 1:].gather(1, source[..., None].expand_as(policies.logits[:, 1:]))
        return Policies(policies.language, torch.cat([policies.logits[:, :1], behind], dim=1), policies.right)

    return made


def _agree(policies: Policies, advantage: Tensor) -> Tensor:
    """Whether self-certainty and −H put the second choices into the same order."""
    orders = policies.self_certainty[:, 1:].argsort(dim=1), (-policies.entropy[:, 1:]).argsort(dim=1)
    return (orders[0] == orders[1]).all(dim=1)


STATEMENTS = (
    Statement(
        name="token rewards, one choice",
        says="rewarding a state's entropy or certainty moves nothing there",
        assumes="one choice; reward −H(s) or KL(U‖π), detached",
        formula="Q(s, a) = V(s) for every a",
        source="project",
        trial=_bandit_still,
    ),
    Statement(
        name="token entropy, slope",
        says="what rewarding −H does to the entropy of texts",
        assumes="natural gradient, any language",
        formula="dH(τ)/dη = −Σ_s d(s)(Var(A) + Cov(ln π, A))",
        source="project, from Lemma 1",
        trial=_slope_is(token_entropy, _of_texts_by_token_entropy, entropy_slope),
    ),
    Statement(
        name="self-certainty, slope of a state",
        says="what rewarding KL(U‖π) does to the entropy of a state",
        assumes="natural gradient, any language",
        formula="dH(s)/dη = −Cov(ln π, Q)",
        source=f"{SOURCE} Lemma 1",
        trial=_slope_is(self_certainty, _of_states, _state_slopes),
    ),
    Statement(
        name="self-certainty, slope of a text",
        says="and to the entropy of texts",
        assumes="natural gradient, any language; Q^−H of the reward −H",
        formula="dH(τ)/dη = −Σ_s d(s)(Cov(ln π, A) + Cov(Q^−H, A))",
        source="project, from Lemma 1",
        trial=_slope_is(self_certainty, _of_texts, entropy_slope),
    ),
    Statement(
        name="token entropy, likelier is surer",
        says="rewarding −H lowers trajectory entropy",
        assumes="Cov_{a∼π}(ln π, Q) ≥ 0 in every state: the lemma's condition, enough by definition",
        formula="dH(τ)/dη ≤ 0",
        source=f"{SOURCE} Prop. 2; the assumption: project",
        trial=_where(token_entropy, _aligned, entropy_slope),
        relation="≤",
    ),
    Statement(
        name="token entropy, in order",
        says="the same, from what stands in the policy",
        assumes="two choices; π(a) ≥ π(b) ⇒ −H(s_a) ≥ −H(s_b) for the states behind",
        formula="dH(τ)/dη ≤ 0",
        source="project, from Chebyshev's sum inequality",
        trial=_where(token_entropy, None, entropy_slope, made=_ordered(lambda p: -p.entropy)),
        relation="≤",
    ),
    Statement(
        name="token entropy, no assumption",
        says="the same without the assumption",
        assumes="random trees of two choices, one step of 0.01",
        formula="ΔH(τ) ≤ 0",
        source=f"{SOURCE} Prop. 2, assumption dropped",
        trial=_where(token_entropy, None, _after_a_step),
        relation="≤",
        share=(0.52, 0.65),
    ),
    Statement(
        name="self-certainty, likelier is surer",
        says="rewarding KL(U‖π) lowers the entropy of every state",
        assumes="Cov_{a∼π}(ln π, Q) ≥ 0 in every state: the lemma's condition, enough by definition",
        formula="dH(s)/dη ≤ 0 for all s",
        source=f"{SOURCE} Prop. 3; the assumption: project",
        trial=_where(self_certainty, _aligned, _state_slopes),
        relation="≤",
    ),
    Statement(
        name="self-certainty, surer both ways",
        says="and of whole trajectories",
        assumes="also Cov_{a∼π}(Q^−H, Q) ≥ 0 in every state: again enough by definition",
        formula="dH(τ)/dη ≤ 0",
        source="project",
        trial=_where(self_certainty, _doubly_aligned, entropy_slope),
        relation="≤",
    ),
    Statement(
        name="self-certainty, in order",
        says="states and trajectories, from what stands in the policy",
        assumes="two choices; π(a) ≥ π(b) ⇒ KL(U‖s_a) ≥ KL(U‖s_b) and −H(s_a) ≥ −H(s_b)",
        formula="dH(s)/dη ≤ 0 for all s, dH(τ)/dη ≤ 0",
        source="project, from Chebyshev's sum inequality",
        trial=_where(
            self_certainty,
            _agree,
            lambda p, a: torch.cat([_state_slopes(p, a), entropy_slope(p, a)[:, None]], dim=1),
            made=_ordered(lambda p: p.self_certainty),
        ),
        relation="≤",
    ),
    Statement(
        name="self-certainty, no assumption",
        says="the same without an assumption",
        assumes="random trees of two choices, one step of 0.01",
        formula="ΔH(τ) ≤ 0",
        source=f"{SOURCE} Prop. 3, assumption dropped",
        trial=_where(self_certainty, None, _after_a_step),
        relation="≤",
        share=(0.52, 0.65),
    ),
)
