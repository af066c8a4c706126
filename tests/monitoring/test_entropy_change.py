"""The entropy lemma as an instrument: against enumeration, against transformers, and in real updates."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlif.analysis.correlation import correlation
from rlif.config import AdvantageConfig, GrpoConfig, RewardConfig
from rlif.model.logprobs import policy_signals, signals_of
from rlif.model.policy import Policy
from rlif.monitoring.entropy_change import (
    EntropyChangeProbe,
    advantage_covariance,
    measured,
    predicted,
    probed_rows,
    sees_every_action,
)
from rlif.recipes import parse_recipe
from rlif.rewards.score import score
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.runs.history import read_metrics
from rlif.signals import token_signals
from rlif.training.grpo import grpo_step
from rlif.training.loop import train
from rlif.training.optim import MasterOptimizer, adamw
from rlif.types import Problem, Prompt, Rollouts, Sampling, Scored, TokenSignals, Verdict
from toys import toy_policy, toy_prompts

UNJUDGED = Verdict(right=None, formatted=False, extracted=None)


def sampled(policy: Policy, sampling: Sampling | None = None, seed: int = 0) -> Scored:
    """12 completions of 3 prompts of different lengths, rewarded for their likelihood."""
    prompts = toy_prompts(policy, ["1+2=", "what is 27+58?", "a"])
    key = Key(seed, 1)
    rollouts = Engine(policy).sample(prompts, group_size=4, sampling=sampling or Sampling(max_new_tokens=12), key=key)
    rewards = [RewardConfig(name="trajectory_entropy")]
    return score(rollouts, (UNJUDGED,) * rollouts.n_rows, rewards, AdvantageConfig(), key)


def shown(policy: Policy, rollouts: Rollouts, row: int) -> TokenSignals:
    """The signals of one completion by transformers' own forward pass over prompt and completion."""
    prompt, own = rollouts.row_prompts[row].token_ids, rollouts.tokens[row][rollouts.mask[row]]
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *own.tolist()]])).logits[0]
    return token_signals(logits[len(prompt) - 1 : -1], own, vocab_size=policy.vocab_size)


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
def test_policy_signals_are_those_of_a_plain_forward_pass(family: str) -> None:
    policy = toy_policy(family)
    rollouts = sampled(policy).rollouts
    rows = [7, 0, 4, 5]
    found = policy_signals(policy, rollouts, rows)
    for place, row in enumerate(rows):
        for ours, theirs, recorded in zip(found, shown(policy, rollouts, row), rollouts.signals, strict=True):
            mask = rollouts.mask[row]
            torch.testing.assert_close(ours[place][mask], theirs, rtol=0, atol=2e-5)
            torch.testing.assert_close(ours[place], recorded[row], rtol=0, atol=2e-5)
            assert bool((ours[place][~mask] == 0).all())


def in_three(rows: Sequence[int], work: Callable[[Sequence[int]], Any], weights: Sequence[int] | None = None) -> Any:
    """A `Split` among three, of whom the second has nothing to do."""
    return [work(part) for part in (rows[:3], rows[3:3], rows[3:])]


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_signals_of_rows_are_the_same_whoever_reads_them(family: str) -> None:
    policy = toy_policy(family)
    rollouts = sampled(policy).rollouts
    rows = [0, 2, 4, 5, 6, 9, 11]
    for found in (signals_of(policy, rollouts, rows, budget=40), signals_of(policy, rollouts, rows, split=in_three)):
        for values, recorded in zip(found, rollouts.signals, strict=True):
            torch.testing.assert_close(values, recorded[rows], rtol=0, atol=2e-5)


def drawn(logits: torch.Tensor, rows: int, temperature: float, seed: int) -> tuple[Rollouts, torch.Tensor]:
    """Rows that visit each state once, in order, and draw an action there; the signals are those of ``logits``."""
    states = len(logits)
    chances = (logits / temperature).softmax(dim=-1)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(chances, rows, replacement=True, generator=generator).T.contiguous()
    prompt = Prompt("p", "", (0,), Problem("p", ""))
    rollouts = Rollouts(
        prompts=(prompt,),
        group_size=rows,
        tokens=tokens,
        mask=torch.ones(rows, states).bool(),
        sampler_logprobs=chances.log()[torch.arange(states), tokens],
        signals=token_signals(logits.expand(rows, -1, -1), tokens),
        texts=("",) * rows,
        stop_reasons=("length",) * rows,
        sampling=Sampling(temperature=temperature, max_new_tokens=states),
    )
    return rollouts, tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_the_estimate_is_the_covariance_and_its_error_is_honest(temperature: float) -> None:
    """5 sigmas: a false alarm has probability 6e-7, and the seed is fixed. What is exact is enumerated in float64."""
    generator = torch.Generator().manual_seed(1)
    logits, step = torch.randn(6, 5, generator=generator), 0.01 * torch.randn(6, 5, generator=generator)
    step += 3.0  # a constant changes no probability, and must change no estimate
    log_policy = logits.double().log_softmax(dim=-1)
    policy = log_policy.exp()
    centred = step.double() - (policy * step).sum(dim=-1, keepdim=True)
    covariance = (policy * log_policy * centred).sum(dim=-1).mean()
    moved = (logits + step).double().log_softmax(dim=-1)
    truth = (-(moved.exp() * moved).sum(dim=-1) + (policy * log_policy).sum(dim=-1)).mean()

    rollouts, tokens = drawn(logits, 40_000, temperature, seed=2)
    after = token_signals((logits + step).expand(40_000, -1, -1), tokens)
    found = predicted(rollouts, list(range(40_000)), rollouts.signals, after)
    change_of_entropy = measured(rollouts, list(range(40_000)), rollouts.signals, after)
    assert change_of_entropy == pytest.approx(float(truth), abs=1e-6)
    error = found["entropy/predicted_stderr"]
    assert 0 < error < abs(float(covariance)) / 5  # the sample says something
    assert abs(found["entropy/predicted"] + float(covariance)) < 5 * error

    # The standard error over rows is the spread of estimates from independent batches.
    parts = torch.arange(40_000).view(200, 200).tolist()
    before = [TokenSignals(*(values[part] for values in rollouts.signals)) for part in parts]
    later = [TokenSignals(*(values[part] for values in after)) for part in parts]
    each = [predicted(rollouts, part, b, a) for part, b, a in zip(parts, before, later, strict=True)]
    spread = torch.tensor([one["entropy/predicted"] for one in each]).std()
    stated = torch.tensor([one["entropy/predicted_stderr"] for one in each]).mean()
    assert float(stated / spread) == pytest.approx(1.0, abs=0.25)  # 200 estimates know their spread to 5 %


def test_the_standard_error_of_few_rows_is_that_of_their_mean() -> None:
    """Rows of one length: the ratio of sums is a mean, whose standard error is s/√n with n − 1 degrees of freedom."""
    generator = torch.Generator().manual_seed(1)
    logits, step = torch.randn(6, 5, generator=generator), 0.01 * torch.randn(6, 5, generator=generator)
    rollouts, tokens = drawn(logits, 3, 1.0, seed=2)
    after = token_signals((logits + step).expand(3, -1, -1), tokens)
    before = rollouts.signals
    found = predicted(rollouts, [0, 1, 2], before, after)
    means = -((before.logprob + before.entropy) * (after.logprob - before.logprob)).mean(dim=1)
    assert found["entropy/predicted"] == pytest.approx(float(means.mean()), rel=1e-4)
    assert found["entropy/predicted_stderr"] == pytest.approx(float(means.std()) / 3**0.5, rel=1e-4)
    first = (TokenSignals(*(values[:1] for values in signals)) for signals in (before, after))
    assert list(predicted(rollouts, [0], *first)) == ["entropy/predicted"]  # one row knows no error of its own


def test_the_bias_of_a_token_the_update_was_made_from() -> None:
    """docs/theory.md, in float64: what a step cA(e_a − π) of free logits enters the estimate as, and what it does."""
    generator = torch.Generator().manual_seed(5)
    logits = 1.5 * torch.randn(6, generator=generator, dtype=torch.float64)
    log_policy = logits.log_softmax(dim=0)
    policy, size = log_policy.exp(), 1e-6
    entropy = -(policy * log_policy).sum()
    square, within = policy.square().sum(), (policy * (log_policy + entropy) * policy).sum()
    for action in range(6):
        moved = (logits + size * (torch.eye(6, dtype=torch.float64)[action] - policy)).log_softmax(dim=0)
        own = log_policy[action] + entropy
        entered = -own * (moved - log_policy)[action] / size
        true = (-(moved.exp() * moved).sum() - entropy) / size
        assert float(entered) == pytest.approx(float(-own * (1 - 2 * policy[action] + square)), abs=1e-5)
        assert float(true) == pytest.approx(float(-policy[action] * own + within), abs=1e-5)


def test_the_advantage_covariance_is_that_of_each_state() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, values = torch.randn(1, 5, generator=generator), torch.randn(5, generator=generator)
    rollouts, tokens = drawn(logits, 100_000, 1.0, seed=4)
    scored = Scored(rollouts, (UNJUDGED,) * 100_000, {}, values[tokens[:, 0]])
    chance = logits[0].softmax(dim=0)
    exact = (chance * chance.log() * (values - (chance * values).sum())).sum()
    products = (rollouts.signals.logprob + rollouts.signals.entropy)[:, 0] * scored.advantages
    error = float(products.std()) / 100_000**0.5
    assert abs(advantage_covariance(scored) - float(exact)) < 5 * error < abs(float(exact)) / 2
    # States that differ in how sure they are, advantages that know nothing of the actions: no covariance in any state.
    two, _ = drawn(torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), 1000, 1.0, seed=5)
    blind = Scored(two, (UNJUDGED,) * 1000, {}, torch.ones(1000))
    assert abs(advantage_covariance(blind)) < 0.01


def updated(policy: Policy, scored: Scored, lr: float, share: float) -> dict[str, float]:
    config = GrpoConfig(lr=lr, kl_coef=0.0)
    optimizer = MasterOptimizer(policy.model, adamw(config))
    probe = EntropyChangeProbe.before(policy, scored, share=share, budget=40)
    grpo_step(policy, optimizer, scored, config, lr=lr)
    return probe.after(policy)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_real_update_is_measured_and_foretold(family: str) -> None:
    policy = toy_policy(family)
    scored = sampled(policy)
    rollouts = scored.rollouts
    found = updated(policy, scored, 1e-3, share=1.0)
    counted = [shown(policy, rollouts, row).entropy.sum() for row in range(12)]
    truth = float((sum(counted) - rollouts.signals.entropy.sum()) / rollouts.mask.sum())
    assert found["entropy/measured"] == pytest.approx(truth, abs=1e-5)
    assert found["entropy/measured"] < -0.001  # rewarded for likelihood: entropy falls
    assert found["entropy/advantage_covariance"] > 0.0
    assert abs(found["entropy/predicted"] - truth) < 4 * found["entropy/predicted_stderr"]
    turned = toy_policy(family)
    against = updated(turned, replace(scored, advantages=-scored.advantages), 1e-3, share=1.0)
    assert against["entropy/measured"] > 0.001
    assert against["entropy/predicted"] > 0.0 > against["entropy/advantage_covariance"]


def test_the_share_decides_the_rows() -> None:
    policy = toy_policy()
    scored = sampled(policy)  # 3 groups of 4
    expected = {
        1.0: [*range(12)],
        0.8: [*range(10)],
        0.01: [*range(8)],
        0.0: [],
    }
    assert {share: probed_rows(scored.rollouts, share) for share in expected} == expected
    many = sampled_rows(prompts=100, group_size=2)
    assert probed_rows(many, 0.05) == [0, 1, 40, 41, 80, 81, 120, 121, 160, 161]
    assert probed_rows(many, 0.001) == probed_rows(many, 0.04) == [0, 1, 50, 51, 100, 101, 150, 151]
    assert probed_rows(sampled_rows(prompts=2, group_size=3), 0.001) == [*range(6)]  # fewer than 8: all
    nothing = EntropyChangeProbe.before(policy, scored, share=0.0, budget=999)
    assert list(nothing.after(policy)) == ["entropy/advantage_covariance"]


@pytest.mark.parametrize(
    ("sampling", "whole"),
    [
        (Sampling(temperature=0.7), True),
        (Sampling(temperature=0.0), False),
        (Sampling(top_p=0.9), False),
        (Sampling(top_k=5), False),
    ],
    ids=["warm", "greedy", "top-p", "top-k"],
)
def test_nothing_is_predicted_from_actions_that_could_not_be_drawn(sampling: Sampling, whole: bool) -> None:
    policy = toy_policy()
    sampling = replace(sampling, max_new_tokens=8)
    assert sees_every_action(sampling) == whole
    scored = sampled(policy, sampling)
    found = EntropyChangeProbe.before(policy, scored, share=1.0, budget=99).after(policy)
    predictions = {"entropy/predicted", "entropy/predicted_stderr", "entropy/advantage_covariance"}
    assert set(found) == {"entropy/measured"} | (predictions if whole else set())


def sampled_rows(prompts: int, group_size: int) -> Rollouts:
    """Rollouts of which only the shape matters."""
    rollouts, _ = drawn(torch.zeros(1, 2), prompts * group_size, 1.0, seed=0)
    return replace(rollouts, prompts=rollouts.prompts * prompts, group_size=group_size)


def test_in_bf16_the_trainer_looks_twice() -> None:
    """An update of nothing changes nothing, though sampler and trainer round differently."""
    policy = toy_policy()
    policy.model.to(torch.bfloat16)
    scored = sampled(policy)
    rollouts = scored.rollouts
    probe = EntropyChangeProbe.before(policy, scored, share=1.0, budget=60)
    assert float((probe.signals.logprob - rollouts.signals.logprob).abs().max()) > 1e-3
    found = probe.after(policy)
    assert found["entropy/predicted"] == found["entropy/measured"] == 0.0
    # What one pass would have said: a change of the size of the rounding, squared.
    naive = predicted(rollouts, probe.rows, rollouts.signals, probe.signals)
    assert naive["entropy/predicted"] != 0.0


def test_the_probe_changes_no_weight(tmp_path: Path, tiny_base_path: Path) -> None:
    def finals(share: float, top_k: int = 0) -> tuple[bytes, dict[str, float]]:
        recipe = parse_recipe(
            {
                "steps": 1,
                "policy": {"model": str(tiny_base_path), "dtype": "float32"},
                "task": {"name": "arithmetic"},
                "rollout": {"prompts": 2, "group_size": 4, "max_new_tokens": 8, "top_k": top_k},
                "reward": "self_certainty",
                "log": {"entropy_share": share},
            }
        )
        out = tmp_path / f"{share}-{top_k}"
        final = train(recipe, out)
        assert final is not None
        return (final / "model.safetensors").read_bytes(), read_metrics(out / "metrics.jsonl")[-1]

    (watched, with_it), (unwatched, without) = finals(1.0), finals(0.0)
    assert watched == unwatched
    assert {"entropy/predicted", "entropy/measured", "entropy/predicted_stderr", "time/watch"} <= set(with_it)
    assert "entropy/measured" not in without
    assert with_it["entropy/advantage_covariance"] == without["entropy/advantage_covariance"]
    _, filtered = finals(1.0, top_k=5)
    assert [key for key in filtered if key.startswith("entropy/")] == ["entropy/measured"]


def test_correlation_is_pearsons_with_fishers_interval() -> None:
    generator = np.random.default_rng(0)

    def interval_holds(true: float) -> bool:
        x = generator.normal(size=40)
        y = true * x + (1 - true**2) ** 0.5 * generator.normal(size=40)
        lines = [{"entropy/predicted": a, "entropy/measured": b} for a, b in zip(x, y, strict=True)]
        found = correlation([{"step": 0}, *lines, {"entropy/predicted": float("nan"), "entropy/measured": 1.0}])
        assert found is not None
        assert found.n == 40
        assert found.r == pytest.approx(float(np.corrcoef(x, y)[0, 1]))
        assert found.of_differences == pytest.approx(float(np.corrcoef(np.diff(x), np.diff(y))[0, 1]))
        return found.low <= true <= found.high

    # 300 intervals that hold in 95 %: between 90 and 99 % but for one chance in ten thousand; the seed is fixed.
    assert 0.90 < np.mean([interval_holds(0.6) for _ in range(300)]) < 0.99
    line = {"entropy/predicted": 1.0, "entropy/measured": 1.0}
    assert correlation([line] * 3) is None
    rising = [{"entropy/predicted": float(i), "entropy/measured": 2.0 * i} for i in range(5)]
    assert correlation(rising) is not None
    assert correlation(rising).r == pytest.approx(1.0)  # type: ignore[union-attr]
