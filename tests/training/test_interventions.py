"""What a recipe may add to the loss, each against float64 loops, and that it moves a policy the way it says."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlif.config import GrpoConfig
from rlif.model.logprobs import policy_logprobs_and_entropy, policy_signals
from rlif.model.policy import Policy
from rlif.training.grpo import grpo_step
from rlif.training.loss import AGGREGATIONS, LossInputs, grpo_loss
from rlif.training.optim import MasterOptimizer
from rlif.types import Rollouts, Sampling, Scored, TokenSignals, Update, Verdict
from toys import FAMILIES, toy_policy, toy_prompts

ADVANTAGES = [1.0, -0.5, -0.5, -1.0, 2.0, -1.0]


def sgd(masters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(masters, lr=math.nan)


def written(policy: Policy, temperature: float = 1.0) -> Rollouts:
    """Six completions of two prompts, as if the policy had drawn them, with what it thought of them."""
    texts = ["46.", "i do not know", "b", "4", "46", "12+34 is 46"]
    ids = [[*policy.encode_text(text)[1], *policy.eos_ids] for text in texts]
    width = max(map(len, ids))
    mask = torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]
    tokens = torch.full(mask.shape, policy.pad_id)
    tokens[mask] = torch.tensor([token for row in ids for token in row])
    zeros = torch.zeros(mask.shape)
    sampling = Sampling(temperature=temperature, max_new_tokens=width)
    empty = Rollouts(
        tuple(toy_prompts(policy, ["12+34=?", "what"])), 3, tokens, mask, zeros, TokenSignals(zeros, zeros, zeros),
        tuple(texts), ("eos",) * 6, sampling,
    )  # fmt: skip
    signals = policy_signals(policy, empty, range(6))
    return dataclasses.replace(empty, signals=signals, sampler_logprobs=signals.logprob)


def scored(rollouts: Rollouts, advantages: list[float] | None = None) -> Scored:
    return Scored(rollouts, (Verdict(None, False, None),) * 6, {}, torch.tensor(advantages or ADVANTAGES))


def updated(
    policy: Policy, batch: Scored, *, lr: float = 0.01, reference: Policy | None = None, **config: object
) -> Update:
    """One `grpo_step` with plain gradient descent."""
    settings = GrpoConfig.model_validate({"kl_coef": 0.0, "max_grad_norm": 1e9, **config})
    return grpo_step(policy, MasterOptimizer(policy.model, sgd), batch, settings, lr=lr, reference=reference)


def all_logprobs(policy: Policy, rollouts: Rollouts) -> list[Tensor]:
    """Teacher forcing said plainly: of each row, ln p of the whole vocabulary at each completion token."""
    temperature, result = rollouts.sampling.temperature, []
    for row, prompt in enumerate(rollouts.row_prompts):
        completion = rollouts.tokens[row][rollouts.mask[row]].tolist()
        logits = policy.model(input_ids=torch.tensor([[*prompt.token_ids, *completion]])).logits[0]
        first = len(prompt.token_ids) - 1
        kept = logits[first : first + len(completion), : policy.vocab_size]
        result.append((kept / temperature).log_softmax(dim=-1))
    return result


def descend(policy: Policy, loss: Tensor, lr: float = 0.01) -> None:
    policy.model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter -= lr * parameter.grad
    policy.model.zero_grad()


def weights_of(policy: Policy) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]).clone()


def assert_same_step(found: Policy, expected: Policy, start: Tensor) -> None:
    moved = (weights_of(expected) - start).abs()
    assert moved.max() > 2e-4
    torch.testing.assert_close(weights_of(found), weights_of(expected), atol=5e-7, rtol=0)


def surrogate(
    logprobs: list[Tensor], rollouts: Rollouts, share: Callable[[int, int], float] = lambda r, t: 1.0
) -> Tensor:
    """At ratio 1: −Σ A · share · ln π over all tokens, divided by their number. Its gradient is that of the loss."""
    total = torch.zeros(())
    for row, logp in enumerate(logprobs):
        for t, token in enumerate(rollouts.tokens[row][rollouts.mask[row]].tolist()):
            total = total - ADVANTAGES[row] * share(row, t) * logp[t, token]
    return total / rollouts.mask.sum()


# The bonus for entropy


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_are_those_of_all_logits(family: str, temperature: float) -> None:
    policy = toy_policy(family)
    rollouts = written(policy, temperature)
    logprobs, entropy = policy_logprobs_and_entropy(policy, rollouts, [4, 0, 5])
    exact = all_logprobs(policy, rollouts)
    for i, row in enumerate([4, 0, 5]):
        mask, logp = rollouts.mask[row], exact[row].double()
        torch.testing.assert_close(entropy[i][mask].double(), -(logp.exp() * logp).sum(-1), atol=3e-5, rtol=0)
        chosen = logp.gather(-1, rollouts.tokens[row][mask][:, None])[:, 0]
        torch.testing.assert_close(logprobs[i][mask].double(), chosen, atol=3e-5, rtol=0)
        assert not entropy[i][~mask].any()


def test_the_loss_pays_for_entropy_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    numbers = [torch.randn(2, 3, generator=generator).double() * mask for _ in range(2)]
    entropy = torch.rand(2, 3, generator=generator).double() * mask
    for aggregation, table in AGGREGATIONS.items():
        weights = table(mask, 4)
        inputs = LossInputs(numbers[0], numbers[1], None, torch.tensor([1.0, -2.0]).double(), mask, weights)
        clip = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0}
        without, sums = grpo_loss(inputs, **clip)
        with_bonus, same = grpo_loss(dataclasses.replace(inputs, entropy=entropy), **clip, entropy_coef=0.3)
        paid = sum(float(weights[r, t]) * float(entropy[r, t]) for r in range(2) for t in range(3) if mask[r, t])
        assert with_bonus.item() == pytest.approx(without.item() - 0.3 * paid, abs=1e-9), aggregation
        assert sums == same


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("budget", [None, 20])
def test_an_update_with_a_bonus_equals_a_plain_loop(family: str, budget: int | None) -> None:
    policy, naive, start = toy_policy(family), toy_policy(family), weights_of(toy_policy(family))
    rollouts = written(policy)
    updated(policy, scored(rollouts), entropy_coef=0.5, micro_batch_tokens=budget)
    logprobs = all_logprobs(naive, rollouts)
    entropy = sum((-(logp.exp() * logp).sum() for logp in logprobs), torch.zeros(()))
    descend(naive, surrogate(logprobs, rollouts) - 0.5 * entropy / rollouts.mask.sum())
    assert_same_step(policy, naive, start)


def test_the_bonus_alone_raises_entropy_also_where_no_advantage_is() -> None:
    policy = toy_policy()
    rollouts = written(policy)
    count = rollouts.mask.sum()
    before = policy_signals(policy, rollouts, range(6)).entropy.sum() / count
    for _ in range(5):
        updated(policy, scored(rollouts, [0.0] * 6), entropy_coef=1.0, lr=0.02)
    after = policy_signals(policy, rollouts, range(6)).entropy.sum() / count
    assert after > before + 0.02
