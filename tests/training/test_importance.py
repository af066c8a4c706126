"""A sampler that is not quite the policy: each token of the update weighed by min(π_trainer / π_sampler, cap)."""

import dataclasses
import math

import pytest
import torch

from rlif.config import GrpoConfig, Recipe
from rlif.errors import RlifError
from rlif.recipes import parse_recipe
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.training.grpo import grpo_step
from rlif.training.loss import LossInputs, grpo_loss
from rlif.training.optim import MasterOptimizer
from rlif.training.resolve import resolved
from rlif.types import Rollouts, Sampling, Scored, Update, Verdict
from toys import toy_policy, toy_prompts

ADVANTAGES = [1.0, -2.0]
QUOTIENTS = [[0.5, 1.0, 4.0], [3.0, 1.5, 1.0]]  # π_trainer / π_sampler before the update
RATIOS = [[1.5, 0.5, 1.0], [0.5, 1.5, 1.0]]  # the update's own, clipped to [.8, 1.2]
MASK = torch.tensor([[True, True, True], [True, True, False]])


def inputs() -> LossInputs:
    old = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, 0.0]], dtype=torch.float64)
    return LossInputs(
        policy_logprobs=(old + torch.tensor(RATIOS, dtype=torch.float64).log()).requires_grad_(),
        old_logprobs=old,
        reference_logprobs=None,
        advantages=torch.tensor(ADVANTAGES, dtype=torch.float64),
        mask=MASK,
        weights=MASK.double() / 5,
        sampler_logprobs=old - torch.tensor(QUOTIENTS, dtype=torch.float64).log(),
    )


def test_the_loss_by_hand() -> None:
    loss, sums = grpo_loss(inputs(), clip_low=0.2, clip_high=0.2, kl_coef=0.0, importance_cap=2.0)
    # Row 1: A = 1, terms min(r, clip r) = 1.2, .5, 1; row 2: A = −2, terms min(−2r, −2 clip r) = −1.6, −3.
    assert loss.item() == pytest.approx(-(0.5 * 1.2 + 1.0 * 0.5 + 2.0 * 1.0 + 2.0 * -1.6 + 1.5 * -3.0) / 5)
    assert sums["importance"] == pytest.approx(0.5 + 1.0 + 2.0 + 2.0 + 1.5)
    assert sums["capped"] == 2.0  # a quotient of 4 and one of 3; the masked token does not count


def test_without_a_cap_nothing_is_weighed() -> None:
    for cap in (None, 0.0):
        loss, sums = grpo_loss(inputs(), clip_low=0.2, clip_high=0.2, kl_coef=0.0, importance_cap=cap)
        assert loss.item() == pytest.approx(-(1.2 + 0.5 + 1.0 - 1.6 - 3.0) / 5)
        assert "importance" not in sums


def test_the_weight_has_no_gradient() -> None:
    given = inputs()
    on_policy = dataclasses.replace(given, old_logprobs=given.policy_logprobs)  # the same tensor: the worst case
    loss, _ = grpo_loss(on_policy, clip_low=0.2, clip_high=0.2, kl_coef=0.0, importance_cap=1e9)
    (gradient,) = torch.autograd.grad(loss, given.policy_logprobs)
    assert given.sampler_logprobs is not None
    weights = (given.policy_logprobs - given.sampler_logprobs).exp()
    # policy − old is 0 with a gradient of 0 then: nothing is left, unless it came through the weight.
    assert weights.max() > 3.9
    assert gradient.abs().max() == 0.0


def test_the_kl_term_is_not_weighed() -> None:
    given = inputs()
    reference = given.policy_logprobs.detach() + math.log(2.0)
    both = dataclasses.replace(given, reference_logprobs=reference, advantages=torch.zeros(2).double())
    loss, _ = grpo_loss(both, clip_low=0.2, clip_high=0.2, kl_coef=1.0, importance_cap=2.0)
    assert loss.item() == pytest.approx(2.0 - math.log(2.0) - 1.0)  # k3 = e^d − d − 1, the same for every token


def step(rollouts: Rollouts, cap: float | None) -> Update:
    policy = toy_policy()
    optimizer = MasterOptimizer(policy.model, lambda masters: torch.optim.SGD(masters, lr=math.nan))
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    scored = Scored(rollouts, (Verdict(None, False, None),) * 4, {}, advantages)
    config = GrpoConfig(kl_coef=0.0, max_grad_norm=1e9, importance_cap=cap)
    return grpo_step(policy, optimizer, scored, config, lr=0.0)


def drawn(sampling: Sampling) -> Rollouts:
    policy = toy_policy()
    prompts = toy_prompts(policy, ["12+34=?", "what"])
    return Engine(policy).sample(prompts, group_size=2, sampling=sampling, key=Key(0, 1))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("cap", "weight", "capped"), [(3.0, 2.0, 0.0), (1.5, 1.5, 1.0)])
def test_a_step_makes_up_for_a_sampler_that_says_half(
    temperature: float, cap: float, weight: float, capped: float
) -> None:
    """Every token twice as likely in the trainer as the sampler said: the gradient doubles, up to the cap."""
    exact = drawn(Sampling(temperature=temperature, max_new_tokens=8))
    half = torch.where(exact.mask, math.log(2.0), 0.0)
    signals = exact.signals._replace(logprob=exact.signals.logprob - half)
    off = dataclasses.replace(exact, sampler_logprobs=exact.sampler_logprobs - half, signals=signals)
    plain, weighed = step(off, None), step(off, cap)
    assert weighed.grad_norm == pytest.approx(weight * plain.grad_norm, rel=1e-4)
    assert weighed.metrics["importance/mean"] == pytest.approx(weight, rel=1e-4)
    assert weighed.metrics["importance/capped"] == capped
    assert weighed.metrics["mismatch/mean"] == pytest.approx(math.log(2.0), rel=1e-4)
    assert not [key for key in plain.metrics if key.startswith("importance")]


def test_our_own_engine_needs_no_weight() -> None:
    rollouts = drawn(Sampling(max_new_tokens=8))
    plain, weighed = step(rollouts, None), step(rollouts, 2.0)
    assert weighed.metrics["importance/mean"] == pytest.approx(1.0, abs=1e-5)
    assert weighed.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)


def recipe(cap: float | None = None, **rollout: object) -> Recipe:
    data = {"steps": 1, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}, "reward": "self_certainty"}
    return parse_recipe({**data, "rollout": {"max_new_tokens": 8, **rollout}, "grpo": {"importance_cap": cap}})


def test_a_recipe_that_is_silent_takes_a_cap_with_vllm_alone() -> None:
    for given, cap in (
        (recipe(), None),
        (recipe(engine="vllm"), 2.0),
        (recipe(0.0, engine="vllm"), 0.0),
        (recipe(5.0), 5.0),
        (recipe(engine="vllm", top_p=0.9), 2.0),  # at temperature 1 log-probabilities are known without filters
        (recipe(engine="vllm", temperature=0.6, top_p=0.9), None),
    ):
        assert resolved(given).grpo.importance_cap == cap


def test_a_cap_that_would_compare_other_distributions_is_refused() -> None:
    with pytest.raises(RlifError, match=r"grpo\.importance_cap: at a temperature other than 1"):
        recipe(2.0, temperature=0.6, top_k=20)
