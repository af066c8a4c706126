"""The GRPO loss worked out by hand and by loops, and the update step on random tiny models."""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlif.config import GrpoConfig
from rlif.model.logprobs import micro_batches, policy_logprobs
from rlif.model.policy import Policy
from rlif.training import grpo
from rlif.training.grpo import grpo_step
from rlif.training.loss import AGGREGATIONS, LossInputs, grpo_loss
from rlif.training.optim import MasterOptimizer, NonFiniteError
from rlif.types import Problem, Prompt, Rollouts, Sampling, Scored, TokenSignals, Update, Verdict
from toys import FAMILIES, toy_policy, toy_prompts

LN2 = math.log(2.0)


# The loss by hand
#
# Two rows of three tokens, the last one of the second row masked; clip .2 both ways.
#
#   row 0, A = +1: ratio 3/2 -> min(1.5, 1.2) = 1.2  clipped high;  1/2 -> min(.5, .8) = .5;  1 -> 1
#   row 1, A = -2: ratio 1/2 -> min(-1, -1.6) = -1.6 clipped low;   3/2 -> min(-3, -2.4) = -3;  masked
#
# The loss per token is the negative of that: row 0: -1.2, -.5, -1 (sum -2.7); row 1: 1.6, 3 (sum 4.6).
#
# With d = reference - policy = (0, ln 2, -ln 2; ln 2, 0): k3 = e^d - d - 1 = (0, 1 - ln 2, ln 2 - 1/2; 1 - ln 2, 0),
# row sums 1/2 and 1 - ln 2.

RATIOS = [[1.5, 0.5, 1.0], [0.5, 1.5, 1.0]]
MASK = torch.tensor([[True, True, True], [True, True, False]])
DIFFERENCES = [[0.0, LN2, -LN2], [LN2, 0.0, 0.0]]
CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def by_hand(aggregation: str, *, with_reference: bool = True) -> LossInputs:
    old = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, 0.0]], dtype=torch.float64)
    policy = old + torch.tensor(RATIOS, dtype=torch.float64).log()
    return LossInputs(
        policy_logprobs=policy.requires_grad_(),
        old_logprobs=old,
        reference_logprobs=policy.detach() + torch.tensor(DIFFERENCES, dtype=torch.float64) if with_reference else None,
        advantages=torch.tensor([1.0, -2.0], dtype=torch.float64),
        mask=MASK,
        weights=AGGREGATIONS[aggregation](MASK, 4),
    )


SURROGATE = {
    "token_mean": (-2.7 + 4.6) / 5,
    "sequence_mean": (-2.7 / 3 + 4.6 / 2) / 2,
    "fixed_length": (-2.7 + 4.6) / (2 * 4),
}
KL = {
    "token_mean": (0.5 + 1 - LN2) / 5,
    "sequence_mean": (0.5 / 3 + (1 - LN2) / 2) / 2,
    "fixed_length": (0.5 + 1 - LN2) / (2 * 4),
}


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("kl_coef", [0.0, 0.1, 2.0])
def test_loss_by_hand(aggregation: str, kl_coef: float) -> None:
    loss, sums = grpo_loss(by_hand(aggregation), **CLIP, kl_coef=kl_coef)
    assert loss.item() == pytest.approx(SURROGATE[aggregation] + kl_coef * KL[aggregation], abs=1e-7)
    assert sums == pytest.approx({"tokens": 5, "kl": 1.5 - LN2, "clipped_low": 1, "clipped_high": 1}, abs=1e-9)


def test_loss_without_a_reference() -> None:
    loss, sums = grpo_loss(by_hand("token_mean", with_reference=False), **CLIP, kl_coef=0.1)
    assert loss.item() == pytest.approx(SURROGATE["token_mean"], abs=1e-7)
    assert sums["kl"] == 0.0


def test_each_bound_clips_its_own_side() -> None:
    # Low .6 lets ratio 1/2 of row 1 through: 1 instead of 1.6. High .4 holds ratio 3/2 of row 0 at 1.4 instead of 1.2.
    low, counts_low = grpo_loss(by_hand("token_mean"), clip_low=0.6, clip_high=0.2, kl_coef=0.0)
    high, counts_high = grpo_loss(by_hand("token_mean"), clip_low=0.2, clip_high=0.4, kl_coef=0.0)
    assert low.item() == pytest.approx((-2.7 + 4.0) / 5, abs=1e-7)
    assert high.item() == pytest.approx((-2.9 + 4.6) / 5, abs=1e-7)
    assert (counts_low["clipped_low"], counts_low["clipped_high"]) == (0, 1)
    assert (counts_high["clipped_low"], counts_high["clipped_high"]) == (1, 1)


def test_gradient_by_hand() -> None:
    # d(-ratio·A)/d logp = -ratio·A where it counts, exactly 0 where clipped; d k3/d logp = 1 - e^d. Weights are 1/5.
    inputs = by_hand("token_mean")
    loss, _ = grpo_loss(inputs, **CLIP, kl_coef=0.0)
    (gradient,) = torch.autograd.grad(loss, inputs.policy_logprobs)
    torch.testing.assert_close(
        gradient, torch.tensor([[0.0, -0.5, -1.0], [0.0, 3.0, 0.0]]).double() / 5, atol=1e-7, rtol=0
    )
    assert gradient[0, 0].item() == 0.0
    assert gradient[1, 0].item() == 0.0
    loss, _ = grpo_loss(inputs, **CLIP, kl_coef=1.0)
    (with_kl,) = torch.autograd.grad(loss, inputs.policy_logprobs)
    expected = torch.tensor([[0.0, -1.0, 0.5], [-1.0, 0.0, 0.0]]).double() / 5
    torch.testing.assert_close(with_kl - gradient, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [6.0, -6.0])
def test_what_lies_under_the_mask_does_not_enter(ratio: float, sign: float) -> None:
    clean = by_hand("token_mean")
    clean = dataclasses.replace(clean, advantages=sign * clean.advantages)
    policy = clean.policy_logprobs.detach().masked_fill(~MASK, ratio - 7.0).requires_grad_()
    dirty = dataclasses.replace(clean, policy_logprobs=policy, old_logprobs=clean.old_logprobs.masked_fill(~MASK, -7.0))
    expected, expected_sums = grpo_loss(clean, **CLIP, kl_coef=0.1)
    loss, sums = grpo_loss(dirty, **CLIP, kl_coef=0.1)
    assert loss.item() == expected.item()
    assert sums == expected_sums
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient[1, 2].item() == 0.0


# The loss against loops


@dataclasses.dataclass
class Batch:
    """Numbers for one loss, as nested lists."""

    lengths: list[int]
    ratios: list[list[float]]
    differences: list[list[float]]
    advantages: list[float]
    clip: tuple[float, float]
    kl_coef: float

    def inputs(self, aggregation: str, limit: int) -> LossInputs:
        mask = torch.tensor([[tok < length for tok in range(4)] for length in self.lengths])
        policy = torch.tensor(self.ratios, dtype=torch.float64).masked_fill(~mask, 0.0)
        return LossInputs(
            policy_logprobs=policy,
            old_logprobs=torch.zeros_like(policy),
            reference_logprobs=(policy + torch.tensor(self.differences, dtype=torch.float64)).masked_fill(~mask, 0.0),
            advantages=torch.tensor(self.advantages, dtype=torch.float64),
            mask=mask,
            weights=AGGREGATIONS[aggregation](mask, limit),
        )

    def loss(self, aggregation: str, limit: int) -> float:
        """GRPO as the papers write it: token by token, then the mean the aggregation names."""
        rows = []
        for row, length in enumerate(self.lengths):
            tokens = []
            for tok in range(length):
                ratio, advantage = math.exp(self.ratios[row][tok]), self.advantages[row]
                clipped = min(max(ratio, 1 - self.clip[0]), 1 + self.clip[1])
                d = self.differences[row][tok]
                kl = math.exp(d) - d - 1
                tokens.append(-min(ratio * advantage, clipped * advantage) + self.kl_coef * kl)
            rows.append(tokens)
        if aggregation == "token_mean":
            return sum(map(sum, rows)) / sum(self.lengths)
        if aggregation == "sequence_mean":
            return sum(sum(tokens) / len(tokens) for tokens in rows) / len(rows)
        return sum(sum(tokens) / limit for tokens in rows) / len(rows)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    n = draw(st.integers(1, 5))

    def grid(bound: float) -> list[list[float]]:
        row = st.lists(st.floats(-bound, bound), min_size=4, max_size=4)
        return draw(st.lists(row, min_size=n, max_size=n))

    return Batch(
        lengths=draw(st.lists(st.integers(1, 4), min_size=n, max_size=n)),
        ratios=grid(1.0),
        differences=grid(2.0),
        advantages=draw(st.lists(st.floats(-3, 3), min_size=n, max_size=n)),
        clip=(draw(st.floats(0.01, 0.9)), draw(st.floats(0.01, 2.0))),
        kl_coef=draw(st.floats(0.0, 1.0)),
    )


@settings(max_examples=150, deadline=None)
@given(batch=batches(), aggregation=st.sampled_from(sorted(AGGREGATIONS)), limit=st.integers(4, 9))
def test_loss_equals_loops(batch: Batch, aggregation: str, limit: int) -> None:
    low, high = batch.clip
    loss, _ = grpo_loss(batch.inputs(aggregation, limit), clip_low=low, clip_high=high, kl_coef=batch.kl_coef)
    # Everything is float64 but the weights (fp32: 6e-8 relative); losses reach about 20.
    assert loss.item() == pytest.approx(batch.loss(aggregation, limit), rel=1e-6, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(batch=batches(), aggregation=st.sampled_from(sorted(AGGREGATIONS)), data=st.data())
def test_parts_of_a_batch_sum_to_the_whole(batch: Batch, aggregation: str, data: st.DataObject) -> None:
    inputs = batch.inputs(aggregation, 4)
    cut = data.draw(st.integers(0, len(batch.lengths)))
    parts = [
        dataclasses.replace(
            inputs,
            **{name: value[rows] for name, value in vars(inputs).items() if isinstance(value, Tensor)},
        )
        for rows in (slice(0, cut), slice(cut, None))
    ]
    whole, sums = grpo_loss(inputs, **CLIP, kl_coef=0.3)
    split = [grpo_loss(part, **CLIP, kl_coef=0.3) for part in parts]
    assert sum(loss.item() for loss, _ in split) == pytest.approx(whole.item(), abs=1e-6)
    for name, value in sums.items():
        assert sum(part_sums[name] for _, part_sums in split) == pytest.approx(value, abs=1e-9)


# On policy, GRPO is REINFORCE


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_at_ratio_one_the_gradient_is_that_of_reinforce(aggregation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 9, generator=generator, requires_grad=True)
    tokens = torch.randint(9, (4, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 1, 4, 3])[:, None]
    advantages = torch.randn(4, generator=generator)
    weights = AGGREGATIONS[aggregation](mask, 6)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1) * mask
    inputs = LossInputs(logprobs, logprobs.detach(), None, advantages, mask, weights)
    loss, sums = grpo_loss(inputs, **CLIP, kl_coef=0.0)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(weights * advantages[:, None] * logprobs).sum(), logits)
    assert reinforce.abs().max() > 1e-2
    torch.testing.assert_close(gradient, reinforce, atol=1e-7, rtol=1e-6)
    assert (sums["clipped_low"], sums["clipped_high"]) == (0.0, 0.0)


# Weights of the tokens


def mask_of(*lengths: int, width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def test_every_completion_weighs_the_same_by_sequence_mean() -> None:
    weights = AGGREGATIONS["sequence_mean"](mask_of(5, 1, 3, width=5), 5)
    torch.testing.assert_close(weights.sum(dim=1), torch.full((3,), 1 / 3))
    assert weights[0, 0].item() == pytest.approx(1 / 15)
    assert weights[1].tolist() == pytest.approx([1 / 3, 0, 0, 0, 0])
    # The other completions' lengths do not matter.
    assert torch.equal(AGGREGATIONS["sequence_mean"](mask_of(2, 4, 3, width=5), 5)[2], weights[2])


def test_every_token_weighs_the_same_by_fixed_length_whatever_was_sampled() -> None:
    for lengths in ((5, 1, 3), (1, 1, 1)):
        mask = mask_of(*lengths, width=5)
        assert torch.equal(AGGREGATIONS["fixed_length"](mask, 10), mask.float() / 30)


def test_every_token_weighs_the_same_by_token_mean() -> None:
    weights = AGGREGATIONS["token_mean"](mask_of(5, 1, 3, width=5), 5)
    torch.testing.assert_close(weights, mask_of(5, 1, 3, width=5) / 9)


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_padding_weighs_nothing(aggregation: str) -> None:
    narrow = AGGREGATIONS[aggregation](mask_of(2, 3, width=3), 4)
    wide = AGGREGATIONS[aggregation](mask_of(2, 3, width=7), 4)
    assert torch.equal(wide[:, :3], narrow)
    assert not wide[:, 3:].any()


def test_every_aggregation_a_recipe_may_name_exists() -> None:
    field = GrpoConfig.model_fields["aggregation"].annotation
    assert set(AGGREGATIONS) == set(getattr(field, "__args__", ()))


# Rollouts written by hand, for the update step

PROMPTS = ["a", "12+34=?", "what is this"]
COMPLETIONS = ["46.", "i do not know", "b", "4", "46", "12+34 is 46", "this", "this is it", "a letter"]
ADVANTAGES = [1.0, -0.5, -0.5, -1.0, 2.0, -1.0, 0.5, 0.25, -0.75]


def written(policy: Policy, *, prompts: Sequence[str] = PROMPTS, completions: Sequence[str] = COMPLETIONS) -> Rollouts:
    """These completions (adjacent groups), each closed by EOS, as if the policy had written them."""
    ids = [[*policy.encode_text(text)[1], *policy.eos_ids] for text in completions]
    mask = mask_of(*map(len, ids), width=max(map(len, ids)))
    tokens = torch.full(mask.shape, policy.pad_id)
    tokens[mask] = torch.tensor([token for row in ids for token in row])
    zeros = torch.zeros(mask.shape)
    return Rollouts(
        prompts=tuple(toy_prompts(policy, list(prompts))),
        group_size=len(completions) // len(prompts),
        tokens=tokens,
        mask=mask,
        sampler_logprobs=zeros,
        signals=TokenSignals(zeros, zeros, zeros),
        texts=tuple(completions),
        stop_reasons=("eos",) * len(completions),
        sampling=Sampling(max_new_tokens=mask.shape[1]),
    )


def scored(rollouts: Rollouts, advantages: Sequence[float] = ADVANTAGES) -> Scored:
    verdicts = (Verdict(None, False, None),) * rollouts.n_rows
    return Scored(rollouts, verdicts, {}, torch.tensor(list(advantages)))


def at_temperature(policy: Policy, temperature: float) -> Scored:
    return scored(dataclasses.replace(written(policy), sampling=Sampling(temperature=temperature)))


def sgd(masters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(masters, lr=math.nan)


CONFIG = GrpoConfig(kl_coef=0.0, max_grad_norm=1e9)


def updated(
    policy: Policy,
    batch: Scored | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    lr: float = 0.01,
    reference: Policy | None = None,
    progress: Callable[[int], None] | None = None,
    **config: object,
) -> Update:
    """One `grpo_step` with plain gradient descent."""
    return grpo_step(
        policy,
        MasterOptimizer(policy.model, sgd, compute_dtype=dtype),
        batch or scored(written(policy)),
        GrpoConfig.model_validate({**CONFIG.model_dump(), **config}),
        lr=lr,
        reference=reference,
        progress=progress,
    )


def weights_of(policy: Policy) -> Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in policy.model.parameters()]).clone()


def assert_same_step(a: Policy, b: Policy, start: Tensor) -> None:
    """Two updates agree to rounding (fp32 numbers near 1 lie 1e-7 apart) and moved a thousand times as far."""
    difference, moved = (weights_of(a) - weights_of(b)).abs(), (weights_of(a) - start).abs()
    assert moved.max() > 2e-4
    assert moved.mean() > 1e-5
    assert difference.max() < 2e-7
    assert difference.mean() < 1e-9


def naive_logprobs(policy: Policy, model: nn.Module, rollouts: Rollouts, temperature: float = 1.0) -> list[Tensor]:
    """Teacher forcing said plainly: one row, one forward pass over prompt + completion, log-softmax, pick."""
    result = []
    for row, prompt in enumerate(rollouts.row_prompts):
        completion = rollouts.tokens[row][rollouts.mask[row]].tolist()
        logits = model(input_ids=torch.tensor([[*prompt.token_ids, *completion]])).logits[0]
        scores = (logits[:, : policy.vocab_size] / temperature).log_softmax(dim=-1)
        start = len(prompt.token_ids)
        result.append(torch.stack([scores[start + t - 1, token] for t, token in enumerate(completion)]))
    return result


# Log-probabilities of the policy


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_logprobs_are_teacher_forced(family: str, temperature: float) -> None:
    policy = toy_policy(family)
    rollouts = dataclasses.replace(written(policy), sampling=Sampling(temperature=temperature))
    found = policy_logprobs(policy, rollouts, range(9))
    for row, expected in enumerate(naive_logprobs(policy, policy.model, rollouts, temperature)):
        torch.testing.assert_close(found[row][rollouts.mask[row]], expected, atol=2e-5, rtol=0)
    assert not found[~rollouts.mask].any()
    assert found.dtype == torch.float32


def test_policy_logprobs_of_some_rows_in_any_order() -> None:
    policy = toy_policy()
    rollouts = written(policy)
    whole = policy_logprobs(policy, rollouts, range(9))
    for rows in ([4], [8, 0], [3, 5, 1]):
        some = policy_logprobs(policy, rollouts, rows)
        torch.testing.assert_close(some, whole[rows], atol=2e-5, rtol=0)


def test_rows_that_pad_the_vocabulary_have_no_probability() -> None:
    policy = toy_policy()
    rollouts = written(policy)
    before = policy_logprobs(policy, rollouts, range(9))
    with torch.no_grad():
        policy.model.lm_head.weight[policy.vocab_size :] = 1e3
    after = policy_logprobs(policy, rollouts, range(9))
    assert torch.equal(after, before)


def test_tokens_under_the_mask_are_never_read() -> None:
    policy = toy_policy()
    rollouts = written(policy)
    before = policy_logprobs(policy, rollouts, range(9))
    rollouts.tokens[~rollouts.mask] = 17
    assert torch.equal(policy_logprobs(policy, rollouts, range(9)), before)


# What must not matter


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_the_micro_batch_split_changes_nothing(family: str, aggregation: str) -> None:
    whole, start = toy_policy(family), weights_of(toy_policy(family))
    first = updated(whole, aggregation=aggregation)
    for budget in (1, 45):
        split = toy_policy(family)
        update = updated(split, aggregation=aggregation, micro_batch_tokens=budget)
        assert_same_step(split, whole, start)
        assert update.loss == pytest.approx(first.loss, abs=1e-6)
        assert update.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
        assert update.metrics == pytest.approx(first.metrics, abs=1e-5)


def test_padding_changes_nothing() -> None:
    plain, padded, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    rollouts = written(plain)
    wide = dataclasses.replace(
        rollouts,
        tokens=torch.nn.functional.pad(rollouts.tokens, (0, 6), value=9),  # rubbish, not the padding token
        mask=torch.nn.functional.pad(rollouts.mask, (0, 6)),
        sampler_logprobs=torch.nn.functional.pad(rollouts.sampler_logprobs, (0, 6)),
        signals=TokenSignals(*(torch.nn.functional.pad(values, (0, 6)) for values in rollouts.signals)),
    )
    updated(plain, scored(rollouts))
    updated(padded, scored(wide))
    assert_same_step(plain, padded, start)


def test_the_order_of_the_prompts_changes_nothing() -> None:
    plain, turned, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    updated(plain)
    order = [6, 7, 8, 0, 1, 2, 3, 4, 5]
    rollouts = written(turned, prompts=[PROMPTS[2], *PROMPTS[:2]], completions=[COMPLETIONS[i] for i in order])
    updated(turned, scored(rollouts, [ADVANTAGES[i] for i in order]))
    assert_same_step(plain, turned, start)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    plain, frugal, start = toy_policy(family), toy_policy(family), weights_of(toy_policy(family))
    updated(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer transformers call it activation checkpointing
        frugal.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    forwards: list[int] = []
    frugal.model.model.layers[0].self_attn.register_forward_hook(lambda *_: forwards.append(1))
    updated(frugal, gradient_checkpointing=True)
    assert_same_step(plain, frugal, start)
    assert len(forwards) == 2  # the layer ran again in the backward pass
    # And the policy samples as before: transformers keeps no cache for a checkpointing layer in train mode.
    assert not any(module.training for module in frugal.model.modules())


# The step itself


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_a_step_is_the_gradient_of_the_naive_loss(aggregation: str) -> None:
    """The whole path against autograd of -Σ w·A·ln p + kl_coef·k3 over one plain forward pass a row."""
    policy, naive = toy_policy(), toy_policy()
    reference = toy_policy(seed=1)
    limit, kl_coef, lr = 20, 0.05, 0.01
    rollouts = dataclasses.replace(written(policy), sampling=Sampling(max_new_tokens=limit))
    options = {"aggregation": aggregation, "kl_coef": kl_coef, "micro_batch_tokens": 45}
    update = updated(policy, scored(rollouts), reference=reference, lr=lr, **options)
    n_tokens, loss, total_kl = int(rollouts.mask.sum()), torch.zeros(()), 0.0
    policy_rows, reference_rows = (naive_logprobs(naive, model, rollouts) for model in (naive.model, reference.model))
    for logprobs, reference_logprobs, advantage in zip(policy_rows, reference_rows, ADVANTAGES, strict=True):
        d = reference_logprobs.detach() - logprobs
        kl = d.exp() - d - 1
        total_kl += kl.sum().item()
        per_token = -advantage * logprobs + kl_coef * kl
        loss = (
            loss
            + {
                "token_mean": per_token.sum() / n_tokens,
                "sequence_mean": per_token.mean() / 9,
                "fixed_length": per_token.sum() / (9 * limit),
            }[aggregation]
        )
    assert update.metrics["kl"] == pytest.approx(total_kl / n_tokens, rel=1e-4)
    loss.backward()
    start = weights_of(naive)
    with torch.no_grad():
        for parameter in naive.model.parameters():
            parameter -= lr * parameter.grad
    assert_same_step(policy, naive, start)


def test_the_length_limit_is_that_of_the_sampling() -> None:
    """Twice the limit, half the weight of each token: with plain gradient descent at twice the rate the same step."""
    short, long, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    rollouts = written(short)
    n = rollouts.sampling.max_new_tokens
    updated(short, scored(rollouts), aggregation="fixed_length")
    twice = dataclasses.replace(rollouts, sampling=Sampling(max_new_tokens=2 * n))
    updated(long, scored(twice), aggregation="fixed_length", lr=0.02)
    assert_same_step(short, long, start)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_good_completion_becomes_likelier_and_the_bad_one_less(family: str, dtype: torch.dtype) -> None:
    policy = toy_policy(family)
    rollouts = written(policy, prompts=["2+2=?"], completions=["4", "five"])
    before = policy_logprobs(policy, rollouts, [0, 1]).sum(dim=1)
    updated(policy, scored(rollouts, [1.0, -1.0]), dtype=dtype, lr=0.02, max_grad_norm=1.0)
    after = policy_logprobs(policy, rollouts, [0, 1]).sum(dim=1)
    assert after[0] > before[0] + 0.01
    assert after[1] < before[1] - 0.01


def test_advantages_of_zero_move_nothing() -> None:
    policy, start = toy_policy(), weights_of(toy_policy())
    update = updated(policy, scored(written(policy), [0.0] * 9))
    assert torch.equal(weights_of(policy), start)
    assert (update.loss, update.grad_norm) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_without_any_advantage_is_a_step_with_a_gradient_of_zero(dtype: torch.dtype) -> None:
    """AdamW's momentum goes on, and its moments decay."""
    policy = toy_policy()
    optimizer = MasterOptimizer(policy.model, lambda masters: torch.optim.AdamW(masters, lr=0.0), compute_dtype=dtype)
    rollouts = written(policy)
    grpo_step(policy, optimizer, scored(rollouts), CONFIG, lr=0.01)
    copies = [master.detach().clone().requires_grad_() for master in optimizer.masters]
    inner = torch.optim.AdamW(copies, lr=0.01)
    inner.load_state_dict(copy.deepcopy(optimizer.inner.state_dict()))
    for naive in copies:
        naive.grad = torch.zeros_like(naive)
    inner.step()
    grpo_step(policy, optimizer, scored(rollouts, [0.0] * 9), CONFIG, lr=0.01)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, copies, strict=True))


SOME_ADVANTAGES = [1.0, 0.0, -1.0, 0.0, 0.0, 0.0, -0.5, 0.5, 0.0]


@pytest.mark.parametrize(("kl_coef", "ran"), [(0.0, [0, 2, 6, 7]), (0.1, list(range(9)))])
@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 3)])
def test_rows_without_advantage_are_run_for_a_kl_term_only(
    monkeypatch: pytest.MonkeyPatch, kl_coef: float, ran: list[int], epochs: int, minibatches: int
) -> None:
    seen: list[int] = []

    def spy(policy: Policy, rollouts: Rollouts, rows: Sequence[int], **more: Any) -> Tensor:
        seen.extend(rows)
        return policy_logprobs(policy, rollouts, rows, **more)

    monkeypatch.setattr(grpo, "policy_logprobs", spy)
    policy, told = toy_policy(), list[int]()
    rollouts = written(policy)
    reference = toy_policy(seed=1) if kl_coef else None
    updated(
        policy,
        scored(rollouts, SOME_ADVANTAGES),
        **{"kl_coef": kl_coef, "epochs": epochs, "minibatches": minibatches},
        reference=reference,
        progress=told.append,
    )
    assert sorted(set(seen)) == ran
    assert sum(told) == epochs * int(rollouts.mask.sum())


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_rows_that_are_not_run_still_share_the_weight(aggregation: str) -> None:
    """The step is that of a KL coefficient too small to matter, for which every row is run."""
    lean, whole, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    batch = scored(written(lean), SOME_ADVANTAGES)
    short = updated(lean, batch, aggregation=aggregation)
    long = updated(whole, batch, aggregation=aggregation, kl_coef=1e-30, reference=toy_policy(seed=1))
    assert_same_step(lean, whole, start)
    assert short.loss == pytest.approx(long.loss, abs=1e-6)
    assert short.metrics["clip/fraction_low"] == long.metrics["clip/fraction_low"]


def test_the_mismatch_is_that_of_the_rows_that_were_run() -> None:
    policy = toy_policy()
    rollouts = written(policy)
    gaps = torch.cat([-naive_logprobs(policy, policy.model, rollouts)[row].detach() for row in (0, 2, 6, 7)])
    metrics = updated(policy, scored(rollouts, SOME_ADVANTAGES)).metrics
    assert metrics["mismatch/mean"] == pytest.approx(gaps.mean().item(), abs=1e-4)
    nothing = updated(policy, scored(rollouts, [0.0] * 9)).metrics
    assert math.isnan(nothing["mismatch/mean"])
    assert math.isnan(nothing["mismatch/max"])


def test_the_mismatch_is_that_of_the_policy_that_sampled_however_many_steps_follow() -> None:
    once, often = toy_policy(), toy_policy()
    first = updated(once, scored(written(once))).metrics
    last = updated(often, scored(written(often)), epochs=3, minibatches=3).metrics
    assert last["mismatch/max"] == pytest.approx(first["mismatch/max"], abs=1e-5)
    assert last["mismatch/mean"] == pytest.approx(first["mismatch/mean"], abs=1e-5)


def test_the_kl_to_a_reference_is_that_of_all_rows_even_if_it_is_only_watched() -> None:
    policy, reference = toy_policy(), toy_policy(seed=1)
    rollouts = written(policy)
    ours, theirs = (torch.cat(naive_logprobs(policy, model, rollouts)) for model in (policy.model, reference.model))
    d = theirs - ours
    expected = (d.exp() - d - 1).mean().item()
    found = updated(policy, scored(rollouts, SOME_ADVANTAGES), reference=reference).metrics["kl"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_parameter_that_no_loss_reaches_is_left_alone() -> None:
    """As PyTorch's AdamW leaves it, weight decay and all."""
    policy = toy_policy()
    policy.model.tower = nn.Linear(3, 3)
    before = policy.model.tower.weight.detach().clone()
    optimizer = MasterOptimizer(policy.model, lambda masters: torch.optim.AdamW(masters, weight_decay=0.1))
    grpo_step(policy, optimizer, scored(written(policy)), CONFIG, lr=0.01)
    assert torch.equal(policy.model.tower.weight, before)


def test_greedy_rollouts_are_trained_on_at_temperature_one() -> None:
    greedy, plain = toy_policy(), toy_policy()
    updated(greedy, at_temperature(greedy, 0.0))
    updated(plain, at_temperature(plain, 1.0))
    assert torch.equal(weights_of(greedy), weights_of(plain))


def test_the_temperature_of_the_rollout_enters_the_gradient() -> None:
    warm, plain = toy_policy(), toy_policy()
    updated(warm, at_temperature(warm, 0.7))
    updated(plain)
    assert (weights_of(warm) - weights_of(plain)).abs().max() > 1e-4


def test_metrics_of_one_step_by_hand() -> None:
    policy = toy_policy()
    rollouts = written(policy)
    expected = naive_logprobs(policy, policy.model, rollouts)
    # The hand-written rollouts claim sampler log-probabilities of 0: the gap to the policy is its -logprob.
    gaps = -torch.cat(expected).detach()
    told: list[int] = []
    update = updated(policy, scored(rollouts), micro_batch_tokens=45, progress=told.append)
    n_tokens = int(rollouts.mask.sum())
    assert sum(told) == n_tokens
    assert len(told) > 1
    # At ratio 1 the loss is -Σ A·w over the tokens.
    loss = -sum(a * length for a, length in zip(ADVANTAGES, rollouts.lengths.tolist(), strict=True)) / n_tokens
    assert update.loss == pytest.approx(loss, abs=1e-6)
    assert update.metrics == pytest.approx(
        {
            "kl": 0.0,
            "clip/fraction_low": 0.0,
            "clip/fraction_high": 0.0,
            "mismatch/mean": gaps.mean().item(),
            "mismatch/max": gaps.max().item(),
        },
        abs=1e-4,
    )


def test_gradients_are_clipped_to_their_norm() -> None:
    # Plain descent moves by lr · min(norm, bound).
    for bound in (0.5, 1e9):
        policy, start = toy_policy(), weights_of(toy_policy())
        update = updated(policy, max_grad_norm=bound, lr=0.01)
        moved = (weights_of(policy) - start).norm().item()
        assert moved == pytest.approx(0.01 * min(update.grad_norm, bound), rel=1e-3)


# The KL term


def test_the_kl_to_a_copy_of_itself_is_zero() -> None:
    policy, plain = toy_policy(), toy_policy()
    update = updated(policy, reference=copy.deepcopy(policy), kl_coef=1.0)
    assert update.metrics["kl"] == 0.0
    # Its gradient is zero there too.
    updated(plain)
    assert torch.equal(weights_of(policy), weights_of(plain))


def test_the_kl_pulls_back_to_the_reference() -> None:
    policy, reference = toy_policy(), toy_policy()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(0.9)
    frozen = weights_of(reference)
    batch = scored(written(policy), [0.0] * 9)
    kls = [updated(policy, batch, reference=reference, kl_coef=1.0, lr=0.005).metrics["kl"] for _ in range(6)]
    assert kls == sorted(kls, reverse=True)
    assert 0.0 < kls[-1] < 0.8 * kls[0]
    assert torch.equal(weights_of(reference), frozen)
    assert all(parameter.grad is None for parameter in reference.model.parameters())


def test_a_kl_term_without_a_reference_is_refused() -> None:
    policy, start = toy_policy(), weights_of(toy_policy())
    with pytest.raises(ValueError, match="reference"):
        updated(policy, kl_coef=0.1)
    assert torch.equal(weights_of(policy), start)


# Several optimizer steps per rollout batch


def test_two_epochs_hold_the_old_policy_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LossInputs] = []

    def spy(inputs: LossInputs, **options: float) -> tuple[Tensor, dict[str, float]]:
        seen.append(inputs)
        return grpo_loss(inputs, **options)

    monkeypatch.setattr(grpo, "grpo_loss", spy)
    policy = toy_policy()
    rollouts = written(policy)
    before = policy_logprobs(policy, rollouts, range(9)).detach()
    update = updated(policy, scored(rollouts), epochs=2, lr=0.003)
    assert len(seen) == 2
    first, second = seen
    assert torch.equal(first.old_logprobs, second.old_logprobs)
    order = [row for part in micro_batches(policy.model, rollouts, range(9), 16384) for row in part]
    torch.testing.assert_close(first.old_logprobs, before[order], atol=2e-5, rtol=0)
    ratios = [(inputs.policy_logprobs - inputs.old_logprobs).exp()[inputs.mask].detach() for inputs in seen]
    torch.testing.assert_close(ratios[0], torch.ones_like(ratios[0]), atol=1e-6, rtol=0)
    assert (ratios[1] - 1).abs().max() > 1e-2
    # The share of clipped tokens is taken over both steps; only the second has any.
    high = ((ratios[1] > 1.2) & (second.advantages[:, None] > 0).expand_as(second.mask)[second.mask]).sum().item()
    assert update.metrics["clip/fraction_high"] == pytest.approx(high / (2 * int(rollouts.mask.sum())))


@pytest.mark.parametrize(("epochs", "minibatches"), [(2, 1), (1, 3), (2, 3)])
def test_several_steps_equal_a_plain_loop(epochs: int, minibatches: int) -> None:
    """Each step: the prompts of its minibatch, weights normalised over them, ratio to the policy at the start."""
    policy, naive, start = toy_policy(), toy_policy(), weights_of(toy_policy())
    rollouts, lr = written(policy), 0.003
    updated(policy, scored(rollouts), epochs=epochs, minibatches=minibatches, lr=lr, micro_batch_tokens=45)
    old = [logprobs.detach() for logprobs in naive_logprobs(naive, naive.model, rollouts)]
    size = 9 // minibatches
    for _ in range(epochs):
        for first in range(0, 9, size):
            rows = range(first, first + size)
            logprobs = naive_logprobs(naive, naive.model, rollouts)
            loss = torch.zeros(())
            for row in rows:
                ratio, advantage = (logprobs[row] - old[row]).exp(), ADVANTAGES[row]
                loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
            naive.model.zero_grad()
            (loss / rollouts.lengths[first : first + size].sum()).backward()
            with torch.no_grad():
                for parameter in naive.model.parameters():
                    parameter -= lr * parameter.grad
    assert_same_step(policy, naive, start)


# What is not finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", [5, 2])  # the longest row, which comes first, and the shortest, which comes last
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(dtype: torch.dtype, row: int) -> None:
    policy = toy_policy()
    optimizer = MasterOptimizer(policy.model, sgd, compute_dtype=dtype)
    start, masters = weights_of(policy), [master.detach().clone() for master in optimizer.masters]
    advantages = list(ADVANTAGES)
    advantages[row] = math.nan
    config = GrpoConfig.model_validate({**CONFIG.model_dump(), "micro_batch_tokens": 1})
    with pytest.raises(NonFiniteError, match="loss is nan"):
        grpo_step(policy, optimizer, scored(written(policy), advantages), config, lr=0.01)
    assert torch.equal(weights_of(policy), start)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, masters, strict=True))
    assert all(tensor.grad is None for tensor in (*optimizer.masters, *policy.model.parameters()))


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    policy, start = toy_policy(), weights_of(toy_policy())
    # The loss is finite, the gradient overflows: it is scaled by 1e38 on its way back.
    policy.model.model.embed_tokens.weight.register_hook(lambda gradient: gradient * 1e38 * 1e38)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        updated(policy)
    assert torch.equal(weights_of(policy), start)
    assert all(parameter.grad is None for parameter in policy.model.parameters())


# Micro-batches


def of_lengths(prompt_lengths: Sequence[int], lengths: Sequence[int]) -> Rollouts:
    mask = mask_of(*lengths, width=max(lengths))
    zeros = torch.zeros(mask.shape)
    return Rollouts(
        prompts=tuple(Prompt(str(i), "", (3,) * n, Problem(str(i), "")) for i, n in enumerate(prompt_lengths)),
        group_size=len(lengths) // len(prompt_lengths),
        tokens=mask.long(),
        mask=mask,
        sampler_logprobs=zeros,
        signals=TokenSignals(zeros, zeros, zeros),
        texts=("",) * len(lengths),
        stop_reasons=("eos",) * len(lengths),
        sampling=Sampling(),
    )


def test_padded_micro_batches_by_hand() -> None:
    # Lengths with their prompts: rows 0, 1: 2 + (3, 1) = 5, 3; rows 2, 3: 4 + (1, 5) = 5, 9.
    rollouts, model = of_lengths([2, 4], [3, 1, 1, 5]), toy_policy("olmo2").model
    assert micro_batches(model, rollouts, range(4), 36) == [[3, 0, 2, 1]]  # 4 · 9
    assert micro_batches(model, rollouts, range(4), 35) == [[3, 0, 2], [1]]
    assert micro_batches(model, rollouts, range(4), 10) == [[3], [0, 2], [1]]
    assert micro_batches(model, rollouts, range(4), 1) == [[3], [0], [2], [1]]
    assert micro_batches(model, rollouts, [1, 3], 18) == [[3, 1]]


def test_without_a_budget_the_device_and_the_prompts_decide() -> None:
    model, rollouts = toy_policy().model, of_lengths([24], [501] * 40)
    assert GrpoConfig().micro_batch_tokens is None
    assert [len(part) for part in micro_batches(model, rollouts, range(40), None)] == [2] * 20  # 24 + 2 * 500 = 1024
    long = of_lengths([800], [301] * 10)
    assert [len(part) for part in micro_batches(model, long, range(10), None)] == [8, 2]  # 800 + 8 * 300 = 4 * 800
    elsewhere = model.to("meta")
    assert [len(part) for part in micro_batches(elsewhere, rollouts, range(40), None)] == [32, 8]  # 24 + 32 * 500


def test_packed_micro_batches_by_hand() -> None:
    # Tokens that are run: prompts 2 and 4, once a part; completions without their last token, 2, 0, 0, 4.
    rollouts, model = of_lengths([2, 4], [3, 1, 1, 5]), toy_policy("llama").model
    assert micro_batches(model, rollouts, range(4), 12) == [[0, 1, 2, 3]]
    assert micro_batches(model, rollouts, range(4), 11) == [[0, 1, 2], [3]]
    assert micro_batches(model, rollouts, range(4), 8) == [[0, 1, 2], [3]]
    assert micro_batches(model, rollouts, range(4), 7) == [[0, 1], [2], [3]]
    assert micro_batches(model, rollouts, range(4), 1) == [[0], [1], [2], [3]]
    assert micro_batches(model, rollouts, [3, 1], 10) == [[1, 3]]


@pytest.mark.parametrize("family", ["llama", "olmo2"])
@settings(max_examples=200, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    group=st.integers(1, 4),
    budget=st.integers(1, 200),
    data=st.data(),
)
def test_micro_batches_hold_their_budget_and_every_row_once(
    family: str, prompts: list[int], group: int, budget: int, data: st.DataObject
) -> None:
    n = len(prompts) * group
    rollouts = of_lengths(prompts, data.draw(st.lists(st.integers(1, 30), min_size=n, max_size=n)))
    rows = data.draw(st.lists(st.sampled_from(range(n)), min_size=1, unique=True))
    parts = micro_batches(MODELS[family], rollouts, rows, budget)
    assert sorted(row for part in parts for row in part) == sorted(rows)
    lengths = rollouts.lengths.tolist()
    for part in parts:
        padded = max(prompts[row // group] + lengths[row] for row in part) * len(part)
        shared = sum(prompts[owner] for owner in {row // group for row in part}) + sum(lengths[r] - 1 for r in part)
        assert len(part) == 1 or (shared if family == "llama" else padded) <= budget
    assert len(micro_batches(MODELS[family], rollouts, rows, 10**6)) == 1


MODELS = {family: toy_policy(family).model for family in ("llama", "olmo2")}
