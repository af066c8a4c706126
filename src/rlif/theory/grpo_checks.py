"""Statements on GRPO as it is run: they call `rlif.training.loss.grpo_loss` and `rlif.rewards.advantages.advantages`
themselves."""

import math
from itertools import product

import torch
from torch import Tensor

from rlif.rewards.advantages import advantages
from rlif.theory.gradients import policy_gradient
from rlif.theory.statements import Claim, Statement
from rlif.theory.tabular import bandit, random_policies
from rlif.training.loss import LossInputs, grpo_loss

_GROUP = 8
_TOKENS = 4
_NO_CLIP = 1e9


def _batch(trials: int, generator: torch.Generator, drift: float) -> LossInputs:
    """Random rows; the policy has drifted from the old one by so many nats a token."""
    shape = (trials, _TOKENS)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    noise = drift * torch.randn(shape, generator=generator, dtype=torch.float64)
    return LossInputs(
        policy_logprobs=(old + noise).requires_grad_(),
        old_logprobs=old,
        reference_logprobs=None,
        advantages=torch.randn(trials, generator=generator, dtype=torch.float64),
        mask=torch.ones(shape).bool(),
        weights=torch.ones(shape, dtype=torch.float64),
    )


def _gradient(inputs: LossInputs, low: float, high: float) -> Tensor:
    loss, _ = grpo_loss(inputs, clip_low=low, clip_high=high, kl_coef=0.0)
    (gradient,) = torch.autograd.grad(loss, inputs.policy_logprobs)
    return gradient


def _clipping_inert(trials: int, generator: torch.Generator) -> Claim:
    inputs = _batch(trials, generator, drift=0.0)
    plain = -inputs.weights * inputs.advantages[:, None]
    return Claim(plain, _gradient(inputs, 0.2, 0.2), 1e-12)


def _clipping_inert_later(trials: int, generator: torch.Generator) -> Claim:
    inputs = _batch(trials, generator, drift=0.2)
    free, clipped = _gradient(inputs, 1.0, _NO_CLIP), _gradient(inputs, 0.2, 0.2)
    stopped = (free != clipped).sum(dim=1)

    def example(number: int) -> str:
        return f"drifted by 0.2 nats a token: {int(stopped[number])} of {_TOKENS} tokens no longer push"

    return Claim(free, clipped, 1e-12, example)


def _groups(trials: int, generator: torch.Generator) -> Tensor:
    return torch.randn(trials, _GROUP, generator=generator, dtype=torch.float64)


def _blind_to_size(trials: int, generator: torch.Generator) -> Claim:
    rewards = _groups(trials, generator)
    size = 10.0 ** (-6.0 + 8.0 * torch.rand(trials, 1, generator=generator, dtype=torch.float64))
    shrunk = advantages((1.0 + size * rewards).flatten(), _GROUP, std_floor=0.0).view(-1, _GROUP)
    return Claim(shrunk, advantages(rewards.flatten(), _GROUP, std_floor=0.0).view(-1, _GROUP), 1e-6)


def _size_of_noise(trials: int, generator: torch.Generator) -> Claim:
    noise = 1e-6 * _groups(64 * trials, generator)
    sizes = advantages(noise.flatten(), _GROUP, std_floor=0.0).abs().view(trials, 64, _GROUP).mean(dim=2)
    # A²·G/(G−1)² of a normal group is Beta(1/2, (G−2)/2) distributed.
    expected = (_GROUP - 1) / math.sqrt(_GROUP * math.pi) * math.gamma((_GROUP - 1) / 2) / math.gamma(_GROUP / 2)
    sigma = sizes.std(dim=1) / 8
    note = f"mean |A| {float(sizes.mean()):.4f}, expected {expected:.4f}"
    return Claim(torch.full_like(sigma, expected), sizes.mean(dim=1), 6 * sigma, note=note)


def _floor(trials: int, generator: torch.Generator) -> Claim:
    rewards = 1e-6 * _groups(trials, generator)
    left = (rewards - rewards.mean(dim=1, keepdim=True)) / 1e-4
    return Claim(left, advantages(rewards.flatten(), _GROUP, std_floor=1e-4).view(-1, _GROUP), 1e-12)


def _group_baseline(trials: int, generator: torch.Generator) -> Claim:
    actions, group = 3, 3
    policies = random_policies(bandit(actions), trials, generator)
    rewards = torch.randn(trials, actions, generator=generator, dtype=torch.float64)
    total = torch.zeros_like(policies.logits[:, 0])
    for drawn in product(range(actions), repeat=group):
        chance = policies.policy[:, 0, list(drawn)].prod(dim=1, keepdim=True)
        own = advantages(rewards[:, list(drawn)].flatten(), group, std=False).view(trials, group)
        for place, action in enumerate(drawn):
            pushed = torch.eye(actions, dtype=torch.float64)[action] - policies.policy[:, 0]
            total += chance * own[:, [place]] * pushed / group
    return Claim((1 - 1 / group) * policy_gradient(policies, rewards)[:, 0], total, 1e-10)


STATEMENTS = (
    Statement(
        name="clipping on policy",
        says="one optimizer step per rollout: clipping does nothing",
        assumes="ratio 1; the gradient of the real grpo_loss",
        formula="∂loss/∂ln π = −weight · A",
        source="arXiv 2402.03300 eq. 3",
        trial=_clipping_inert,
    ),
    Statement(
        name="clipping off policy",
        says="and nothing either after the policy has moved",
        assumes="4 tokens, moved by 0.2 nats each; clip 0.2",
        formula="clipped gradient = unclipped gradient",
        source="arXiv 2402.03300 eq. 3",
        trial=_clipping_inert_later,
        share=(0.3, 0.7),
    ),
    Statement(
        name="std is blind to size",
        says="advantages of a noise of 1e-6 are those of a signal of 1",
        assumes="groups of 8, no floor; a in [1e-6, 100]",
        formula="A(1 + a r) = A(r)",
        source="arXiv 2402.03300 eq. 4",
        trial=_blind_to_size,
    ),
    Statement(
        name="size of amplified noise",
        says="pure noise gets advantages of 0.77 on average",
        assumes="normal rewards, G = 8, means of 64 groups, six sigmas",
        formula="E|A| = (G−1) Γ((G−1)/2) / (√(πG) Γ(G/2))",
        source="project",
        trial=_size_of_noise,
    ),
    Statement(
        name="the floor",
        says="a floor on the deviation leaves small things small",
        assumes="rewards that differ by 1e-6, floor 1e-4",
        formula="A = (r − mean) / floor",
        source="project",
        trial=_floor,
    ),
    Statement(
        name="group mean as baseline",
        says="GRPO without std follows the exact gradient, a little slower",
        assumes="all groups of 3 over 3 actions, enumerated",
        formula="E[Σ_i A_i ∇ln π(a_i)]/G = (1 − 1/G) ∇J",
        source="known; e.g. arXiv 2503.20783",
        trial=_group_baseline,
    ),
)
