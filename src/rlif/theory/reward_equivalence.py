"""Statements on what the three internal rewards share, what they do not, and where a reward with a KL term ends.

"Partially equivalent" (arXiv 2506.17219): trajectory and token entropy are two estimators of one expectation, and token
entropy is a KL divergence from the uniform distribution; their detached gradients, the order that self-certainty puts
distributions into, and the noise of the estimators are not the same.
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from rlif.theory.entropy import ROUNDING, drawn, side_by_side
from rlif.theory.gradient_flow import flow
from rlif.theory.gradients import (
    Reward,
    entropy_slope,
    gradient_of,
    majority_vote,
    natural_gradient,
    per_token,
    policy_gradient,
    token_entropy,
    trajectory_entropy,
    verifiable,
    with_kl,
)
from rlif.theory.statements import Claim, Statement
from rlif.theory.tabular import Policies, bandit, language, random_policies, random_spread, tree

_LANGUAGES = (tree(3, 2), tree(2, 3), language(3, 3), language(3, 4, memory=1))
_VARIABLE = (language(3, 3), language(3, 4, memory=1))  # texts of different lengths
_BANDITS = (bandit(3), bandit(10), bandit(50))


def _same_expectation(trials: int, generator: torch.Generator) -> Claim:
    groups = drawn(_LANGUAGES, trials, generator)
    left = [-each.expected(each.logprob) for each in groups]
    right = [(each.occupancy * each.entropy).sum(dim=1) for each in groups]
    return Claim(torch.cat(left), torch.cat(right), ROUNDING)


def _detached_is_full(trials: int, generator: torch.Generator) -> Claim:
    groups = drawn(_LANGUAGES, trials, generator)
    left = [policy_gradient(each, trajectory_entropy(each)) for each in groups]
    right = [-gradient_of(lambda p: p.expected(p.along_states(p.entropy)), each) for each in groups]
    return Claim(side_by_side(left), side_by_side(right), ROUNDING)


def _missing_term(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_LANGUAGES, trials, generator):
        # −∇H(s) in closed form, each state as often as it is visited.
        own = policies.log_policy + policies.entropy[..., None]
        direct = policies.occupancy[..., None] * policies.policy * own
        left.append(policy_gradient(policies, trajectory_entropy(policies)))
        right.append(policy_gradient(policies, token_entropy(policies)) + direct)
    return Claim(side_by_side(left), side_by_side(right), ROUNDING)


def _variance(policies: Policies, values: Tensor) -> Tensor:
    return policies.expected(values.square()) - policies.expected(values).square()


def _less_noise(trials: int, generator: torch.Generator) -> Claim:
    groups = drawn(_VARIABLE, trials, generator)
    excess = torch.cat([_variance(p, token_entropy(p)) - _variance(p, trajectory_entropy(p)) for p in groups])

    def example(number: int) -> str:
        return f"variance of Σ H(s) above that of −ln p by {float(excess[number]):.3g} nats²"

    return Claim(excess, torch.zeros_like(excess), 1e-12, example)


def _mean_over_tokens(trials: int, generator: torch.Generator) -> Claim:
    slopes = []
    for policies in drawn(_VARIABLE, trials, generator):
        advantage = natural_gradient(policies, per_token(trajectory_entropy)(policies))
        slopes.append(policies.moved(0.01 * advantage).trajectory_entropy - policies.trajectory_entropy)
    left = torch.cat(slopes)

    def example(number: int) -> str:
        return f"one step of 0.01 raises trajectory entropy by {float(left[number]):.3g} nats"

    return Claim(left, torch.zeros_like(left), 1e-12, example)


def _affine(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for policies in drawn(_BANDITS, trials, generator):
        uniform = -log(policies.language.actions)
        left.append((policies.policy * (policies.log_policy - uniform)).sum(dim=(1, 2)) + uniform)
        right.append(-policies.entropy.squeeze(1))
    return Claim(torch.cat(left), torch.cat(right), ROUNDING)


def _same_order(trials: int, generator: torch.Generator) -> Claim:
    products, pairs = [], []
    for each in _BANDITS:
        spread = random_spread(-(-trials // len(_BANDITS)), generator)
        first, second = (random_policies(each, len(spread), generator, spread=spread) for _ in range(2))
        surer = (second.entropy - first.entropy).squeeze(1)
        products.append(-surer * (first.self_certainty - second.self_certainty).squeeze(1))
        numbers = torch.cat([first.entropy, second.entropy, first.self_certainty, second.self_certainty], dim=1)
        pairs += [(first.language.name, row) for row in numbers.tolist()]
    left = torch.cat(products)

    def example(number: int) -> str:
        name, (h_p, h_q, k_p, k_q) = pairs[number]
        return f"{name}: H {h_p:.2f} and {h_q:.2f}, yet KL(U‖·) {k_p:.2f} and {k_q:.2f}"

    return Claim(left, torch.zeros_like(left), 0.0, example)


def _tilted(reward: Reward, reference: Policies, beta: Tensor) -> Tensor:
    """The closed-form optimum of E[R] − β KL(p‖p_ref), as probabilities of trajectories."""
    return (reference.logprob + reward(reference) / beta).softmax(dim=1)


def _optimum(reward: Reward) -> Callable[[int, torch.Generator], Claim]:
    def trial(trials: int, generator: torch.Generator) -> Claim:
        left, right = [], []
        for reference in drawn((bandit(4), tree(3, 2)), trials, generator):
            beta = 0.2 + 1.8 * torch.rand(len(reference.logits), 1, generator=generator, dtype=torch.float64)
            regularised = with_kl(reward, reference, beta)
            end = flow(reference, regularised, step=0.5 / beta[..., None], steps=400, tolerance=1e-14).end
            left.append(_tilted(reward, reference, beta))
            right.append(end.probability)
        return Claim(side_by_side(left), side_by_side(right), 1e-8)

    return trial


def _majority_log_odds(policies: Policies) -> Tensor:
    """ln(p / (1 − p)) of the likeliest answer; 1 − p as a sum, for it may be less than rounding leaves of 1."""
    shares = policies.answer_shares()
    top = shares.argmax(dim=1, keepdim=True)
    return (shares.gather(1, top).squeeze(1) / shares.scatter(1, top, 0.0).sum(dim=1)).log()


def _sharpening(trials: int, generator: torch.Generator) -> Claim:
    left, right = [], []
    for reference in drawn((bandit(4), tree(3, 2)), trials, generator):
        beta = 0.2 + 1.8 * torch.rand(len(reference.logits), 1, generator=generator, dtype=torch.float64)
        policies, odds = reference, []
        for _ in range(3):
            vote = with_kl(majority_vote, policies, beta)
            policies = flow(policies, vote, step=0.5 / beta[..., None], steps=120).end
            odds.append(_majority_log_odds(policies))
        rounds = torch.arange(1, 4, dtype=torch.float64)
        left.append(_majority_log_odds(reference)[:, None] + rounds / beta)
        right.append(torch.stack(odds, dim=1))
    return Claim(torch.cat(left), torch.cat(right), 1e-6)


def _majority_helps(trials: int, generator: torch.Generator) -> Claim:
    (policies,) = drawn((bandit(4),), trials, generator)
    after = _tilted(majority_vote, policies, torch.ones(1, dtype=torch.float64))
    at = policies.right[:, None]
    lost = (policies.probability.gather(1, at) - after.gather(1, at)).squeeze(1)
    roots = policies.policy[:, 0].tolist()

    def example(number: int) -> str:
        chances = " ".join(f"{chance:.2f}" for chance in roots[number])
        return f"shares ({chances}), right is {int(policies.right[number]) + 1}: it loses {float(lost[number]):.3g}"

    return Claim(lost, torch.zeros_like(lost), 0.0, example)


def _labels_slope(trials: int, generator: torch.Generator) -> Claim:
    slopes = []
    for policies in drawn((tree(3, 2), tree(4, 2)), trials, generator):
        slopes.append(entropy_slope(policies, natural_gradient(policies, verifiable(policies))))
    left = torch.cat(slopes)

    def example(number: int) -> str:
        return f"entropy rises at a rate of {float(left[number]):.3g} nats: the right answer was unlikely"

    return Claim(left, torch.zeros_like(left), 0.0, example)


STATEMENTS = (
    Statement(
        name="one expectation",
        says="−ln p(τ) and Σ_t H(s_t) estimate the same number",
        assumes="any language, fixed policy",
        formula="E[−Σ_t ln π(a_t|s_t)] = E[Σ_t H(s_t)]",
        source="arXiv 2506.17219 (partial equivalence)",
        trial=_same_expectation,
    ),
    Statement(
        name="one full gradient",
        says="ln p(τ), detached, has the exact gradient of E[−Σ_t H(s_t)]",
        assumes="plain policy gradient; the exact one by automatic differentiation",
        formula="E[ln p ∇ln p] = −∇ E[Σ_t H(s_t)]",
        source="project, from E[∇ ln p] = 0",
        trial=_detached_is_full,
    ),
    Statement(
        name="two detached gradients",
        says="−H, detached, lacks the term that sharpens each state itself",
        assumes="plain policy gradient",
        formula="g(ln p) = g(−ΣH) + d(s) π (ln π + H(s))",
        source="project",
        trial=_missing_term,
    ),
    Statement(
        name="less noise in Σ H",
        says="of the two estimators Σ_t H(s_t) varies less",
        assumes="languages with an end token",
        formula="Var[Σ_t H(s_t)] ≤ Var[−ln p(τ)]",
        source="project",
        trial=_less_noise,
        relation="≤",
        share=(0.7, 0.97),
    ),
    Statement(
        name="mean over tokens",
        says="trajectory entropy falls also for ln p(τ) per token",
        assumes="languages with an end token, one step of 0.01",
        formula="R = ln p(τ)/|τ|:  ΔH(τ) ≤ 0",
        source="arXiv 2506.17219 Prop. 1, mean in place of sum",
        trial=_mean_over_tokens,
        relation="≤",
        share=(0.7, 0.97),
    ),
    Statement(
        name="token entropy is a KL",
        says="−H is KL(π‖U), shifted",
        assumes="none",
        formula="−H(s) = KL(π‖U) − ln A",
        source="arXiv 2506.17219 (partial equivalence)",
        trial=_affine,
    ),
    Statement(
        name="self-certainty orders like −H",
        says="of two distributions the one of lower entropy has the higher KL(U‖π)",
        assumes="random pairs of the same spread over 3, 10 or 50 tokens",
        formula="H(p) < H(q) ⇒ KL(U‖p) > KL(U‖q)",
        source="arXiv 2506.17219 (partial equivalence)",
        trial=_same_order,
        relation="≤",
        share=(0.6, 0.95),
    ),
    Statement(
        name="optimum under KL",
        says="with a KL term a fixed reward ends in a tilt: β sets where, not the learning rate",
        assumes="verifiable reward, natural gradient run until it stands",
        formula="p*(τ) ∝ p_ref(τ) e^{R(τ)/β}",
        source="known; e.g. arXiv 2305.18290 eq. 4",
        trial=_optimum(verifiable),
    ),
    Statement(
        name="majority vote sharpens",
        says="each round multiplies the majority's odds by e^{1/β}",
        assumes="KL to the policy of the round before, three rounds run until they stand",
        formula="p' = p e^{1/β} / (p e^{1/β} + 1 − p)",
        source="arXiv 2603.08660",
        trial=_sharpening,
    ),
    Statement(
        name="majority vote helps",
        says="the right answer gains under a vote",
        assumes="random policies, one of four answers right, β = 1",
        formula="p'(right) ≥ p(right)",
        source="project",
        trial=_majority_helps,
        relation="≤",
        share=(0.1, 0.4),
    ),
    Statement(
        name="labels lower entropy too",
        says="a verifiable reward lowers trajectory entropy",
        assumes="random trees of two choices, random right answer",
        formula="dH(τ)/dη ≤ 0 for R = 1[right]",
        source="project",
        trial=_labels_slope,
        relation="≤",
        share=(0.38, 0.48),
    ),
)
