"""The tabular laboratory against loops, automatic differentiation, finite differences, sampling and the library."""

import itertools
import math
from collections import Counter

import pytest
import torch

from rlif.rewards.advantages import advantages
from rlif.signals import SIGNALS, masked_sum, token_signals
from rlif.theory.gradient_flow import flow
from rlif.theory.gradients import (
    DIRECTIONS,
    REWARDS,
    entropy_slope,
    gradient_of,
    majority_vote,
    natural_gradient,
    objective,
    policy_gradient,
    token_entropy,
    trajectory_entropy,
    verifiable,
)
from rlif.theory.tabular import Language, Policies, bandit, language, random_policies, tree
from rlif.training.loss import LossInputs, grpo_loss

LANGUAGES = (bandit(4), tree(3, 2), tree(2, 3), language(3, 3), language(3, 4, memory=1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(which: Language, n: int = 5, seed: int = 0) -> tuple[Policies, torch.Tensor]:
    """Random policies, and a random reward for each trajectory."""
    generator = seeded(seed)
    policies = random_policies(which, n, generator)
    return policies, torch.randn(policies.logprob.shape, generator=generator, dtype=torch.float64)


def test_languages_have_the_trajectories_they_should() -> None:
    assert bandit(4).sequences == ((0,), (1,), (2,), (3,))
    assert tree(3, 2).sequences == tuple(itertools.product(range(3), repeat=2))
    assert tree(3, 2).states == 4
    # Token 0 ends: of two other tokens there are 1 + 2 + 4 texts that end by it and 2³ = 8 that are cut off.
    assert Counter(s[-1] == 0 for s in language(3, 3).sequences) == {True: 1 + 2 + 4, False: 8}
    assert language(3, 3).states == 1 + 2 + 4
    assert language(3, 4, memory=1).states == 1 + 2  # the beginning, and either token
    assert language(3, 5, memory=0).states == 1
    assert language(3, 3).answers.tolist() == [
        (s[:-1] or s)[-1] if s[-1] == 0 else s[-1] for s in language(3, 3).sequences
    ]


@pytest.mark.parametrize("which", LANGUAGES, ids=lambda each: each.name)
def test_exact_quantities_equal_a_walk_through_the_language(which: Language) -> None:
    policies, _ = draw(which, n=2)
    memory = 1 if "memory" in which.name else 99
    for number in range(2):
        log_policy = policies.log_policy[number].tolist()
        chances, visits, expected_entropy = [], Counter[tuple[int, int]](), 0.0
        states: dict[tuple[int, ...], int] = {}
        for sequence in which.sequences:
            logprob, seen = 0.0, []
            for step, action in enumerate(sequence):
                state = states.setdefault(sequence[max(0, step - memory) : step], len(states))
                logprob += log_policy[state][action]
                seen.append((state, action))
            chances.append(math.exp(logprob))
            for state, action in seen:
                visits[state, action] += chances[-1]
                expected_entropy -= chances[-1] * sum(math.exp(x) * x for x in log_policy[state])
        assert sum(chances) == pytest.approx(1.0, abs=1e-12)
        assert policies.probability[number].tolist() == pytest.approx(chances, abs=1e-14)
        entropy = -sum(chance * math.log(chance) for chance in chances)
        assert float(policies.trajectory_entropy[number]) == pytest.approx(entropy, abs=1e-12)
        assert -float(policies.expected(token_entropy(policies))[number]) == pytest.approx(expected_entropy, abs=1e-12)
        flat = [visits[place] for place in itertools.product(range(which.states), range(which.actions))]
        assert policies.visits[number].flatten().tolist() == pytest.approx(flat, abs=1e-13)


@pytest.mark.parametrize("name", ["self_certainty", "token_entropy", "trajectory_entropy"])
def test_rewards_are_the_librarys_signals(name: str) -> None:
    which = language(3, 3)
    policies, _ = draw(which, n=3)
    for number, sequence in itertools.product(range(3), range(len(which.sequences))):
        actions = torch.tensor(which.sequences[sequence])
        states = which.counts[sequence].sum(dim=1).nonzero().squeeze(1)  # numbered as they are met along a text
        logits = policies.logits[number, sorted(states.tolist(), key=lambda s: _depth(which, s))]
        signals = token_signals(logits, actions)
        expected = masked_sum(SIGNALS[name].score(signals), torch.ones(len(actions)).bool())
        assert float(REWARDS[name](policies)[number, sequence]) == pytest.approx(float(expected), abs=1e-5)


def _depth(which: Language, state: int) -> int:
    """How many tokens stand before a state."""
    visitor = int(which.counts[:, state].sum(dim=1).nonzero()[0])
    return next(d for d in range(9) if _prefix_state(which, visitor, d) == state)


def _prefix_state(which: Language, visitor: int, depth: int) -> int:
    """The state a trajectory visits at a depth: visited by all that share the prefix, and by no other."""
    prefix = which.sequences[visitor][:depth]
    sharers = torch.tensor([s[:depth] == prefix and len(s) > depth for s in which.sequences])
    visited = which.counts.sum(dim=2) > 0
    return next(s for s in range(which.states) if bool((visited[:, s] == sharers).all()))


def test_answer_level_rewards_by_hand() -> None:
    which = tree(2, 2)  # answers 0 1 0 1 for (0,0) (0,1) (1,0) (1,1)
    logits = torch.tensor([[[0.6, 0.4], [0.9, 0.1], [0.0 + 1e-300, 1.0]]], dtype=torch.float64).log()
    policies = Policies(which, logits.clamp_min(-700.0), torch.tensor([1]))
    assert verifiable(policies).tolist() == [[0.0, 1.0, 0.0, 1.0]]
    # P(answer 0) = .6 · .9 = .54
    assert policies.answer_shares()[0].tolist() == pytest.approx([0.54, 0.46])
    assert majority_vote(policies).tolist() == [[1.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("which", LANGUAGES, ids=lambda each: each.name)
def test_policy_gradient_is_that_of_automatic_differentiation_and_of_differences(which: Language) -> None:
    policies, rewards = draw(which)
    closed = policy_gradient(policies, rewards)
    automatic = gradient_of(lambda p: objective(p, rewards), policies)
    torch.testing.assert_close(closed, automatic, rtol=0, atol=1e-13)
    direction = torch.randn(policies.logits.shape, generator=seeded(1), dtype=torch.float64)
    slope = (closed * direction).sum(dim=(1, 2))

    def central(h: float) -> torch.Tensor:
        ahead, behind = policies.moved(h * direction), policies.moved(-h * direction)
        return (objective(ahead, rewards) - objective(behind, rewards)) / (2 * h)

    errors = [(central(h) - slope).abs() for h in (4e-2, 2e-2, 1e-2)]
    assert float(errors[-1].max()) < 1e-2
    for wide, narrow in itertools.pairwise(errors):  # central differences: the error falls as h²
        assert float((wide.sum() / narrow.sum()).log2()) == pytest.approx(2.0, abs=0.05)


def test_policy_gradient_is_the_mean_of_the_score_function_estimate() -> None:
    """200,000 samples a policy, 27 coordinates at 5 sigmas: a false alarm has probability 2e-5; the seed is fixed.

    The logits lie close enough together that no choice is rarer than some thousand samples.
    """
    which, n = language(3, 3, memory=1), 200_000
    policies = random_policies(which, 3, seeded(), spread=torch.full((3,), 0.7, dtype=torch.float64))
    rewards = torch.randn(policies.logprob.shape, generator=seeded(1), dtype=torch.float64)
    assert float(policies.visits.min()) * n > 1000
    for number in range(3):
        one = policies.chosen(torch.tensor([number]))
        sampled = torch.multinomial(one.probability[0], n, replacement=True, generator=seeded(number))
        scores = which.counts - which.counts.sum(dim=2, keepdim=True) * one.policy  # ∇ ln p of each trajectory
        estimates = (scores * rewards[number, :, None, None])[sampled]
        sigmas = (estimates.mean(dim=0) - policy_gradient(policies, rewards)[number]) / (estimates.std(dim=0) / n**0.5)
        assert float(sigmas.abs().max()) < 5.0


@pytest.mark.parametrize("which", LANGUAGES, ids=lambda each: each.name)
def test_natural_gradient_solves_with_the_fisher_matrix(which: Language) -> None:
    policies, rewards = draw(which, n=3)
    for number in range(3):
        one = policies.chosen(torch.tensor([number]))
        scores = torch.autograd.functional.jacobian(
            lambda logits, right=one.right: Policies(which, logits, right).logprob[0], one.logits
        ).flatten(1)
        fisher = (one.probability[0][:, None] * scores).T @ scores
        gradient = gradient_of(lambda p, r=rewards[[number]]: objective(p, r), one).flatten()
        solved = (torch.linalg.pinv(fisher, hermitian=True) @ gradient).view_as(one.logits)
        # Constants in a state move no probability; compare what moves.
        ours = natural_gradient(one, rewards[[number]])
        for state in range(which.states):
            torch.testing.assert_close(
                ours[0, state] - ours[0, state].mean(), solved[0, state] - solved[0, state].mean(), rtol=1e-6, atol=1e-7
            )


def test_a_choice_that_is_never_made_does_not_move() -> None:
    which = tree(2, 2)
    logits = torch.tensor([[[0.0, -5000.0], [1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    policies = Policies(which, logits, torch.tensor([0]))
    moved = natural_gradient(policies, trajectory_entropy(policies))
    assert bool(moved.isfinite().all())
    assert moved[0, 2].tolist() == [0.0, 0.0]


def test_flows_end_where_they_should() -> None:
    policies, _ = draw(tree(3, 2), n=200)
    sharp = flow(policies, trajectory_entropy, step=0.2, steps=4000, tolerance=1e-9)
    assert sharp.converged
    assert float(sharp.entropies[-1].max()) < 1e-3
    assert sharp.entropies.shape[1] == 200
    calm = flow(policies, token_entropy, step=0.5, steps=300)
    # The last choice is never moved by a reward that is the same whatever is chosen ...
    torch.testing.assert_close(calm.end.policy[:, 1:], policies.policy[:, 1:], rtol=0, atol=1e-12)
    # ... and the first goes where the least entropy lies behind it.
    least = policies.entropy[:, 1:].argmin(dim=1)
    gaps = policies.entropy[:, 1:].sort(dim=1).values.diff(dim=1)[:, 0]
    clear = gaps > 0.2
    assert int(clear.sum()) > 50
    assert bool((calm.end.policy[clear, 0].argmax(dim=1) == least[clear]).all())
    assert not flow(policies, token_entropy, steps=3, tolerance=1e-12).converged


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_direction_is_uphill(direction: str) -> None:
    policies, rewards = draw(language(3, 3), n=100)
    step = DIRECTIONS[direction](policies, rewards)
    assert bool((objective(policies.moved(1e-4 * step), rewards) > objective(policies, rewards)).all())


def test_entropy_slope_is_the_difference_quotient() -> None:
    policies, rewards = draw(language(3, 3), n=50)
    direction = natural_gradient(policies, rewards)
    h = 1e-4
    ahead, behind = policies.moved(h * direction), policies.moved(-h * direction)
    quotient = (ahead.trajectory_entropy - behind.trajectory_entropy) / (2 * h)
    torch.testing.assert_close(entropy_slope(policies, direction), quotient, rtol=0, atol=1e-6)


TREE = tree(3, 2)
TOKENS = torch.tensor(TREE.sequences)
STATES = torch.stack([torch.zeros(9, dtype=torch.long), 1 + TOKENS[:, 0]], dim=1)
"""The root, and the state behind each first choice, numbered in the order of first visits."""


def tabular_inputs(logits: torch.Tensor, rows: torch.Tensor, adv: torch.Tensor) -> LossInputs:
    """What the trainer would hand to `grpo_loss` if its model were one tabular policy over `TREE`."""
    logprobs = logits.log_softmax(dim=-1)[STATES[rows], TOKENS[rows]]
    mask = torch.ones(logprobs.shape).bool()
    return LossInputs(logprobs, logprobs.detach(), None, adv, mask, mask.double() / len(rows))


def test_the_real_loss_over_all_trajectories_has_the_exact_gradient() -> None:
    policies, rewards = draw(TREE, n=1)
    logits = policies.logits[0].clone().requires_grad_()
    inputs = tabular_inputs(logits, torch.arange(9), rewards[0])
    weighted = LossInputs(
        inputs.policy_logprobs, inputs.old_logprobs, None, rewards[0], inputs.mask,
        policies.probability[0][:, None].expand(-1, 2),
    )  # fmt: skip
    loss, _ = grpo_loss(weighted, clip_low=0.2, clip_high=0.2, kl_coef=0.0)
    loss.backward()
    torch.testing.assert_close(-logits.grad[None], policy_gradient(policies, rewards), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["trajectory_entropy", "token_entropy", "self_certainty", "verifiable"])
def test_training_with_the_real_loss_follows_the_predicted_flow(name: str) -> None:
    """Groups of 8 sampled at each of 25 steps, the real advantages and loss, plain gradient descent on the logits.

    The prediction is the exact flow, slower by 1 − 1/G (the group's mean is the baseline). Eight runs give the standard
    error of their mean; it must lie within 4.5 of them of the prediction at every fifth step, for policy and entropy.
    """
    group, rows, lr, steps = 8, 800, 1.0, 25
    start, _ = draw(TREE, n=1, seed=6)
    predicted = [start]
    for _ in range(steps):
        now = predicted[-1]
        predicted.append(now.moved(lr * (1 - 1 / group) * policy_gradient(now, REWARDS[name](now))))
    runs = []
    for seed in range(8):
        generator, policies, seen = seeded(seed), start, []
        for _ in range(steps):
            logits = policies.logits[0].clone().requires_grad_()
            drawn = torch.multinomial(policies.probability[0], rows, replacement=True, generator=generator)
            adv = advantages(REWARDS[name](policies)[0, drawn], group, std=False)
            loss, _ = grpo_loss(tabular_inputs(logits, drawn, adv), clip_low=0.2, clip_high=0.2, kl_coef=0.0)
            (gradient,) = torch.autograd.grad(loss, logits)
            policies = policies.moved(-lr * gradient[None])
            seen.append(torch.cat([policies.trajectory_entropy, policies.policy.flatten()]))
        runs.append(torch.stack(seen))
    mean, error = torch.stack(runs).mean(dim=0), torch.stack(runs).std(dim=0) / 8**0.5
    truth = torch.stack([torch.cat([p.trajectory_entropy, p.policy.flatten()]) for p in predicted[1:]])
    # There is something to follow; and this is a policy whose entropy the two token rewards raise.
    change = float(predicted[-1].trajectory_entropy - start.trajectory_entropy)
    assert change > 0.2 if name in ("token_entropy", "self_certainty") else change < -0.2
    assert float(error[:, 0].max()) < 0.02
    sigmas = (mean - truth).abs()[4::5] / (error[4::5] + 1e-3)
    assert float(sigmas.max()) < 4.5
