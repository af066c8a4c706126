"""Statements on entropy: what a step of the logits does to it, and which rewards lower it.

Lemma 1 and Propositions 1 to 3 of arXiv 2506.17219, made exact: the lemma with a bound on its remainder, its form for
whole trajectories, and each proposition with the assumption it needs and the counter-example where that is dropped.
"""

from collections.abc import Callable, Sequence
from math import log

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rlif.theory.exact import (
    Reward,
    entropy_slope,
    gradient_of,
    natural_gradient,
    q_values,
    self_certainty,
    token_entropy,
    trajectory_entropy,
)
from rlif.theory.flows import flow
from rlif.theory.statements import Claim, Statement
from rlif.theory.tabular import Language, Policies, bandit, language, random_policies, tree

_ROUNDING = 1e-10
_BANDITS = (bandit(2), bandit(3), bandit(10), bandit(50))
_LANGUAGES = (tree(3, 2), tree(2, 3), language(3, 3), language(3, 4, memory=1))
_TREES = (tree(3, 2), tree(4, 2))


def drawn(languages: Sequence[Language], trials: int, generator: torch.Generator) -> list[Policies]:
    """Random policies over each language, ``trials`` in all."""
    return [random_policies(each, -(-trials // len(languages)), generator) for each in languages]


def entropy_change(policies: Policies, step: Float[Tensor, "policy state action"]) -> Float[Tensor, "policy state"]:
    """The first-order change of H(s) under a step of the logits: −Cov_{a∼π}(ln π, Δz)."""
    return -policies.covariance(policies.log_policy, step)


def _step_and_bound(policies: Policies, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random step, its range R, and S ≥ the standard deviation of ln π under any policy of this size.

    Var(ln π) < ln²(A−1)/4 + 1 over all distributions on A outcomes (arXiv 1304.0036).
    """
    size = 10.0 ** (-4.0 + 2.0 * torch.rand(len(policies.logits), 1, 1, generator=generator, dtype=torch.float64))
    step = size * torch.randn(policies.logits.shape, generator=generator, dtype=torch.float64)
    reach = (step.amax(dim=-1) - step.amin(dim=-1)).squeeze(1)
    return step, reach, torch.full_like(reach, (log(policies.language.actions - 1) ** 2 / 4 + 1) ** 0.5)


def _second_order(policies: Policies, step: Tensor) -> Float[Tensor, "policy state"]:
    """½ d²H/dη²: −½ (Var(Δz) + Cov(ln π, (Δz − E Δz)²))."""
    centred = step - (policies.policy * step).sum(dim=-1, keepdim=True)
    return -0.5 * (policies.covariance(step, step) + policies.covariance(policies.log_policy, centred.square()))


def _difference(order: int) -> Callable[[int, torch.Generator], Claim]:
    def predicted(policies: Policies, step: Tensor) -> Tensor:
        first = entropy_change(policies, step)
        return (first if order == 1 else first + _second_order(policies, step)).squeeze(1)

    def trial(trials: int, generator: torch.Generator) -> Claim:
        left, right, bounds, orders = [], [], [], []
        for policies in drawn(_BANDITS, trials, generator):
            step, reach, deviation = _step_and_bound(policies, generator)
            actual = (policies.moved(step).entropy - policies.entropy).squeeze(1)
            half = (policies.moved(step / 2).entropy - policies.entropy).squeeze(1)
            remainders = (actual - predicted(policies, step)).abs(), (half - predicted(policies, step / 2)).abs()
            seen = remainders[1] > 1e-13  # below that it is rounding
            orders.append((remainders[0][seen] / remainders[1][seen]).log2())
            left.append(predicted(policies, step))
            right.append(actual)
            bound = reach**2 / 2 * (0.25 + deviation) if order == 1 else reach**3 / 6 * (2 + 4 * deviation)
            bounds.append(bound + 1e-14)
        note = f"remainder falls as step^{float(torch.cat(orders).median()):.2f}"
        return Claim(torch.cat(left), torch.cat(right), torch.cat(bounds), note=note)

    return trial


def _trajectory_difference(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_LANGUAGES, trials, generator):
        rewards = torch.randn(policies.logprob.shape, generator=generator, dtype=torch.float64)
        advantage = natural_gradient(policies, rewards)
        own = natural_gradient(policies, trajectory_entropy(policies))
        left.append(-(policies.occupancy * policies.covariance(own, advantage)).sum(dim=1))
        right.append(entropy_slope(policies, advantage))
    return Claim(torch.cat(left), torch.cat(right), _ROUNDING)


def _tree_is_a_bandit(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn((tree(3, 2), tree(2, 3), language(3, 3)), trials, generator):
        rewards = torch.randn(policies.logprob.shape, generator=generator, dtype=torch.float64)
        own, mean = policies.logprob, policies.expected(policies.logprob)
        left.append(-policies.expected((own - mean[:, None]) * rewards))
        right.append(entropy_slope(policies, natural_gradient(policies, rewards)))
    return Claim(torch.cat(left), torch.cat(right), _ROUNDING)


def _bandit_falls(trials: int, generator: torch.Generator) -> Claim:
    changes = []
    for policies in drawn(_BANDITS, trials, generator):
        eta = 10.0 ** (-2.0 + 3.0 * torch.rand(len(policies.logits), 1, 1, generator=generator, dtype=torch.float64))
        after = policies.moved(eta * natural_gradient(policies, trajectory_entropy(policies)))
        changes.append(after.trajectory_entropy - policies.trajectory_entropy)
    left = torch.cat(changes)
    return Claim(left, torch.zeros_like(left), 1e-12)


def _bandit_power(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_BANDITS, trials, generator):
        eta, steps = 0.1, 20
        end = flow(policies, trajectory_entropy, step=eta, steps=steps).end
        power = Policies(policies.language, policies.logits * (1 + eta) ** steps, policies.right)
        left.append(power.trajectory_entropy)
        right.append(end.trajectory_entropy)
    return Claim(torch.cat(left), torch.cat(right), _ROUNDING)


def _tree_falls(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_LANGUAGES, trials, generator):
        advantage = natural_gradient(policies, trajectory_entropy(policies))
        left.append(-(policies.occupancy * policies.covariance(advantage, advantage)).sum(dim=1))
        right.append(entropy_slope(policies, advantage))
    return Claim(torch.cat(left), torch.cat(right), _ROUNDING)


def _tree_monotone(trials: int, generator: torch.Generator) -> Claim:
    changes = []
    for policies in drawn((tree(3, 2), tree(2, 3)), trials, generator):
        changes.append(flow(policies, trajectory_entropy, step=0.05, steps=100).entropies.diff(dim=0).T)
    left = torch.cat(changes)
    return Claim(left, torch.zeros_like(left), 1e-12)


def _bandit_still(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_BANDITS, trials, generator):
        pairs = (token_entropy, -policies.entropy), (self_certainty, policies.self_certainty)
        for reward, value in pairs:
            q = q_values(policies, reward(policies)).squeeze(1)
            left.append(torch.stack([q.amin(dim=-1), q.amax(dim=-1)], dim=1))
            right.append(value.expand(-1, 2))
    return Claim(torch.cat(left), torch.cat(right), _ROUNDING)


def _alignment(policies: Policies, reward: Reward) -> tuple[Tensor, Tensor]:
    """The reward's advantage, and Cov_{a∼π(·|s)}(ln π, Q) in each state."""
    advantage = natural_gradient(policies, reward(policies))
    return advantage, policies.covariance(policies.log_policy, advantage)


def _where(
    reward: Reward,
    condition: Callable[[Policies, Tensor, Tensor], Tensor] | None,
    measured: Callable[[Policies, Tensor], Tensor],
    languages: Sequence[Language],
) -> Callable[[int, torch.Generator], Claim]:
    """A trial of ``measured ≤ 0`` among random policies that meet the condition, as many of 8 times ``trials``."""

    def trial(trials: int, generator: torch.Generator) -> Claim:
        values, roots = [], []
        for policies in drawn(languages, trials * (8 if condition else 1), generator):
            advantage, covariance = _alignment(policies, reward)
            keep = condition(policies, advantage, covariance) if condition else torch.ones_like(policies.right).bool()
            keep = keep.nonzero().squeeze(1)[: -(-trials // len(languages))]
            values.append(measured(policies.chosen(keep), advantage[keep]))
            roots += [(policies.language.name, root) for root in policies.chosen(keep).policy[:, 0].tolist()]
        width = max(each[0].numel() for each in values)  # trees of different sizes: states that are not there rise by 0
        left = torch.cat([functional.pad(each.view(len(each), -1), (0, width - each[0].numel())) for each in values])

        def example(number: int) -> str:
            name, root = roots[number]
            chances = " ".join(f"{chance:.2f}" for chance in root)
            return f"{name}, first choice ({chances}): rises by {float(left[number].max()):.3g} nats"

        return Claim(left, torch.zeros_like(left), 1e-12, example)

    return trial


def _aligned(policies: Policies, advantage: Tensor, covariance: Tensor) -> Tensor:
    return (covariance >= 0.0).all(dim=1)


def _doubly_aligned(policies: Policies, advantage: Tensor, covariance: Tensor) -> Tensor:
    """... and likelier to lead to low entropy wherever it leads to high self-certainty."""
    other = policies.covariance(natural_gradient(policies, token_entropy(policies)), advantage)
    return (covariance >= 0.0).all(dim=1) & (other >= 0.0).all(dim=1)


def _state_slopes(policies: Policies, advantage: Tensor) -> Float[Tensor, "policy state"]:
    """d H(s)/dη along the advantage, by automatic differentiation."""
    return (gradient_of(lambda p: p.entropy.sum(dim=1), policies) * advantage).sum(dim=-1)


def _after_a_step(policies: Policies, advantage: Tensor) -> Float[Tensor, " policy"]:
    """The change of trajectory entropy by one real step of 0.01, no derivative."""
    return policies.moved(0.01 * advantage).trajectory_entropy - policies.trajectory_entropy


_SOURCE = "arXiv 2506.17219"

STATEMENTS = (
    Statement(
        name="entropy difference",
        says="a step of the logits changes entropy by minus its covariance with ln π",
        assumes="tabular softmax, any step Δz with range R; S² = ln²(A−1)/4 + 1",
        formula="|ΔH(s) + Cov_{a∼π}(ln π, Δz)| ≤ R²(1/4 + S)/2",
        source=f"{_SOURCE} Lemma 1; the bound: project",
        trial=_difference(1),
    ),
    Statement(
        name="entropy difference, 2nd order",
        says="its remainder, to the next order",
        assumes="as above; Δz̃ = Δz − E Δz",
        formula="ΔH(s) = −Cov(ln π, Δz) − (Var Δz + Cov(ln π, Δz̃²))/2 ± R³(2 + 4S)/6",
        source="project",
        trial=_difference(2),
    ),
    Statement(
        name="entropy difference, trajectories",
        says="for whole trajectories ln π becomes the advantage of ln p",
        assumes="natural gradient of any reward R; A^R its advantage, A^ln p that of ln p(τ)",
        formula="dH(τ)/dη = −Σ_s d(s) Cov_{a∼π}(A^ln p, A^R)",
        source="project, from Lemma 1",
        trial=_trajectory_difference,
    ),
    Statement(
        name="a tree is a bandit of texts",
        says="where no state is shared, entropy falls by the covariance of reward and ln p",
        assumes="natural gradient of any reward; every prefix has a state of its own",
        formula="dH(τ)/dη = −Cov_{τ∼p}(ln p(τ), R(τ))",
        source="project, from Lemma 1 and R − E R = Σ_t A^R(s_t, a_t)",
        trial=_tree_is_a_bandit,
    ),
    Statement(
        name="trajectory entropy, one choice",
        says="rewarding ln π lowers entropy, whatever the step size",
        assumes="one choice, natural gradient, η in [0.01, 10]",
        formula="H(π^{1+η}/Z) ≤ H(π); first order −η Var(ln π)",
        source=f"{_SOURCE} Prop. 1",
        trial=_bandit_falls,
        relation="≤",
    ),
    Statement(
        name="trajectory entropy, closed form",
        says="n steps raise the policy to a power",
        assumes="one choice, natural gradient",
        formula="π_n ∝ π^((1+η)^n), compared by entropy",
        source="project",
        trial=_bandit_power,
    ),
    Statement(
        name="trajectory entropy, many choices",
        says="rewarding ln p(τ) lowers trajectory entropy",
        assumes="natural gradient, any language",
        formula="dH(τ)/dη = −Σ_s d(s) Var_{a∼π}(A^ln p) ≤ 0",
        source=f"{_SOURCE} Prop. 1; exact: project",
        trial=_tree_falls,
    ),
    Statement(
        name="trajectory entropy, whole flow",
        says="and does so at every step on the way",
        assumes="natural gradient, 100 steps of 0.05",
        formula="H(τ) after step k+1 ≤ H(τ) after step k",
        source=f"{_SOURCE} Prop. 1",
        trial=_tree_monotone,
        relation="≤",
    ),
    Statement(
        name="token rewards, one choice",
        says="rewarding a state's entropy or certainty moves nothing there",
        assumes="one choice; reward −H(s) or KL(U‖π), detached",
        formula="Q(s, a) = V(s) for every a",
        source="project",
        trial=_bandit_still,
    ),
    Statement(
        name="token entropy, likelier is surer",
        says="rewarding −H lowers trajectory entropy",
        assumes="Cov_{a∼π}(ln π, Q) ≥ 0 in every state",
        formula="dH(τ)/dη = −Σ_s d(s)(Var(A) + Cov(ln π, A)) ≤ 0",
        source=f"{_SOURCE} Prop. 2; the assumption: project",
        trial=_where(token_entropy, _aligned, entropy_slope, _TREES),
        relation="≤",
    ),
    Statement(
        name="token entropy, no assumption",
        says="the same without the assumption",
        assumes="random trees of two choices, one step of 0.01",
        formula="ΔH(τ) ≤ 0",
        source=f"{_SOURCE} Prop. 2, assumption dropped",
        trial=_where(token_entropy, None, _after_a_step, _TREES),
        relation="≤",
        share=(0.52, 0.65),
    ),
    Statement(
        name="self-certainty, likelier is surer",
        says="rewarding KL(U‖π) lowers the entropy of every state",
        assumes="Cov_{a∼π}(ln π, Q) ≥ 0 in every state",
        formula="dH(s)/dη = −Cov(ln π, Q) ≤ 0 for all s",
        source=f"{_SOURCE} Prop. 3; the assumption: project",
        trial=_where(self_certainty, _aligned, _state_slopes, _TREES),
        relation="≤",
    ),
    Statement(
        name="self-certainty, surer both ways",
        says="and of whole trajectories",
        assumes="also Cov_{a∼π}(Q^−H, Q) ≥ 0 in every state",
        formula="dH(τ)/dη = −Σ_s d(s)(Cov(ln π, A) + Cov(Q^−H, A)) ≤ 0",
        source="project",
        trial=_where(self_certainty, _doubly_aligned, entropy_slope, _TREES),
        relation="≤",
    ),
    Statement(
        name="self-certainty, no assumption",
        says="the same without an assumption",
        assumes="random trees of two choices, one step of 0.01",
        formula="ΔH(τ) ≤ 0",
        source=f"{_SOURCE} Prop. 3, assumption dropped",
        trial=_where(self_certainty, None, _after_a_step, _TREES),
        relation="≤",
        share=(0.52, 0.65),
    ),
)
