"""Statements on entropy: what a step of the logits does to it, and that trajectory entropy as reward lowers it.

Lemma 1 and Proposition 1 of arXiv 2506.17219, made exact: the lemma with a bound on its remainder, its form for whole
trajectories, and what rewarding ln p(τ) does. Propositions 2 and 3 are in `rlif.theory.token_rewards`.
"""

from collections.abc import Callable, Sequence
from math import log

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rlif.theory.gradient_flow import flow
from rlif.theory.gradients import (
    entropy_slope,
    natural_gradient,
    trajectory_entropy,
)
from rlif.theory.statements import Claim, Statement
from rlif.theory.tabular import Language, Policies, bandit, language, random_policies, tree

SOURCE = "arXiv 2506.17219"
ROUNDING = 1e-10
_BANDITS = (bandit(2), bandit(3), bandit(10), bandit(50))
_LANGUAGES = (tree(3, 2), tree(2, 3), language(3, 3), language(3, 4, memory=1))


def drawn(languages: Sequence[Language], trials: int, generator: torch.Generator) -> list[Policies]:
    """Random policies over each language, ``trials`` in all."""
    return [random_policies(each, -(-trials // len(languages)), generator) for each in languages]


def side_by_side(values: Sequence[Float[Tensor, "_ ..."]]) -> Float[Tensor, "trial element"]:
    """Numbers of policies of different size, flat, one policy a row; 0 where there are none."""
    flat = [each.view(len(each), -1) for each in values]
    width = max(each.shape[1] for each in flat)
    return torch.cat([functional.pad(each, (0, width - each.shape[1])) for each in flat])


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
    return Claim(torch.cat(left), torch.cat(right), ROUNDING)


def _tree_is_a_bandit(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn((tree(3, 2), tree(2, 3), language(3, 3)), trials, generator):
        rewards = torch.randn(policies.logprob.shape, generator=generator, dtype=torch.float64)
        own, mean = policies.logprob, policies.expected(policies.logprob)
        left.append(-policies.expected((own - mean[:, None]) * rewards))
        right.append(entropy_slope(policies, natural_gradient(policies, rewards)))
    return Claim(torch.cat(left), torch.cat(right), ROUNDING)


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
    return Claim(torch.cat(left), torch.cat(right), ROUNDING)


def _tree_falls(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_LANGUAGES, trials, generator):
        advantage = natural_gradient(policies, trajectory_entropy(policies))
        left.append(-(policies.occupancy * policies.covariance(advantage, advantage)).sum(dim=1))
        right.append(entropy_slope(policies, advantage))
    return Claim(torch.cat(left), torch.cat(right), ROUNDING)


def _tree_monotone(trials: int, generator: torch.Generator) -> Claim:
    changes = []
    for policies in drawn((tree(3, 2), tree(2, 3)), trials, generator):
        changes.append(flow(policies, trajectory_entropy, step=0.05, steps=100).entropies.diff(dim=0).T)
    left = torch.cat(changes)
    return Claim(left, torch.zeros_like(left), 1e-12)


def _stands_only_uniform(trials: int, generator: torch.Generator) -> Claim:
    missing, ends = [], []
    for policies in drawn((tree(2, 3), language(3, 4, memory=1)), trials, generator):
        end = flow(policies, lambda p: -trajectory_entropy(p), step=0.5, steps=200, tolerance=1e-13).end
        slope = entropy_slope(end, natural_gradient(end, trajectory_entropy(end)))
        top = log(len(end.language.sequences))
        still = (slope.abs() < 1e-15).nonzero().squeeze(1)
        missing.append(top - end.trajectory_entropy[still])
        ends += [
            (end.language.name, top, *pair)
            for pair in zip(end.trajectory_entropy[still].tolist(), slope[still].tolist(), strict=True)
        ]
    left = torch.cat(missing)

    def example(number: int) -> str:
        name, top, entropy, slope = ends[number]
        return f"{name}: H(τ) stands at {entropy:.4f} nats (slope {slope:.0e}), below ln N = {top:.4f}"

    return Claim(left, torch.zeros_like(left), 1e-9, example)


STATEMENTS = (
    Statement(
        name="entropy difference",
        says="a step of the logits changes entropy by minus its covariance with ln π",
        assumes="tabular softmax, any step Δz with range R; S² = ln²(A−1)/4 + 1",
        formula="|ΔH(s) + Cov_{a∼π}(ln π, Δz)| ≤ R²(1/4 + S)/2",
        source=f"{SOURCE} Lemma 1; the bound: project",
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
        source=f"{SOURCE} Prop. 1",
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
        source=f"{SOURCE} Prop. 1; exact: project",
        trial=_tree_falls,
    ),
    Statement(
        name="trajectory entropy, whole flow",
        says="and does so at every step on the way",
        assumes="natural gradient, 100 steps of 0.05",
        formula="H(τ) after step k+1 ≤ H(τ) after step k",
        source=f"{SOURCE} Prop. 1",
        trial=_tree_monotone,
        relation="≤",
    ),
    Statement(
        name="entropy stands only when uniform",
        says="where rewarding ln p(τ) moves nothing, all texts are equally likely",
        assumes="the highest point of the entropy, climbed to; half trees, half states shared by texts",
        formula="dH(τ)/dη = 0 ⇒ H(τ) = ln N for N texts",
        source="project; so on trees, not where states are shared",
        trial=_stands_only_uniform,
        relation="≤",
        share=(0.5, 0.5),
    ),
)
