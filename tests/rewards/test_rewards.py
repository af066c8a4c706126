"""Rewards and advantages on a batch small enough to work out by hand."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rlif.config import MIXES, WRAPPER_CONFIGS, AdvantageConfig, AnyRewardConfig, NegatedConfig, RewardConfig
from rlif.errors import RlifError
from rlif.rewards.advantages import advantages, cap_incomplete
from rlif.rewards.base import RewardInputs
from rlif.rewards.registry import REWARDS, WRAPPERS, check_rewards, find_reward, needs_labels
from rlif.rewards.score import score
from rlif.rng import Key, uniforms
from rlif.types import Problem, Prompt, Rollouts, Sampling, Scored, StopReason, TokenSignals, Verdict

KEY = Key(seed=11, step=3)
CENTRED = AdvantageConfig(std=False)


def batch(
    prompts: Sequence[str] = ("p", "q"),
    *,
    stop_reasons: Sequence[StopReason] = ("eos",) * 4,
    texts: Sequence[str] = ("a", "b", "c", "d"),
) -> Rollouts:
    """Two prompts, G = 2, completions of 3, 2, 1 and 2 tokens; under the mask lies rubbish that must not count."""
    rubbish = 99.0
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]).bool()
    certainty = [[1.0, 2.0, 6.0], [5.0, 1.0, rubbish], [4.0, rubbish, rubbish], [0.0, 1.0, rubbish]]
    entropy = [[0.5, 0.5, 2.0], [1.0, 0.0, rubbish], [0.25, rubbish, rubbish], [3.0, 1.0, rubbish]]
    logprob = [[-1.0, -2.0, -3.0], [-0.5, -0.5, rubbish], [-4.0, rubbish, rubbish], [-1.0, -3.0, rubbish]]
    return Rollouts(
        prompts=tuple(Prompt(id, id, (5,), Problem(id, id)) for id in prompts),
        group_size=2,
        tokens=torch.full((4, 3), 7),
        mask=mask,
        sampler_logprobs=torch.zeros(4, 3),
        signals=TokenSignals(torch.tensor(logprob), torch.tensor(entropy), torch.tensor(certainty)),
        texts=tuple(texts),
        stop_reasons=tuple(stop_reasons),
        sampling=Sampling(),
    )


VERDICTS = (
    Verdict(True, True, "4"),  # right where it was asked for
    Verdict(True, False, "4"),  # right, but elsewhere
    Verdict(False, True, "5"),
    Verdict(None, True, "x^"),  # the grader could not decide in time
)


CONSENSUS = {"p": ["4.0"], "q": ["x^", "7"]}


def reward(name: str, *, rollouts: Rollouts | None = None, key: Key = KEY, **options: object) -> list[float]:
    config = section(name=name, **options)
    return find_reward(config).function(RewardInputs(rollouts or batch(), VERDICTS, key, CONSENSUS), config).tolist()


def section(**keys: object) -> RewardConfig:
    """As a recipe would say it."""
    return TypeAdapter(AnyRewardConfig).validate_python(keys)


# Each entry of the table

BY_HAND = [
    ({"name": "self_certainty"}, [3.0, 3.0, 4.0, 0.5]),
    ({"name": "self_certainty", "reduce": "sum"}, [9.0, 6.0, 4.0, 1.0]),
    ({"name": "token_entropy"}, [-1.0, -0.5, -0.25, -2.0]),
    ({"name": "token_entropy", "reduce": "sum"}, [-3.0, -1.0, -0.25, -4.0]),
    ({"name": "trajectory_entropy"}, [-2.0, -0.5, -4.0, -2.0]),
    ({"name": "trajectory_entropy", "reduce": "sum"}, [-6.0, -1.0, -4.0, -4.0]),
    ({"name": "majority_vote"}, [1.0, 1.0, 0.5, 0.5]),
    ({"name": "soft_consensus"}, [1.0, 1.0, 0.5, 0.5]),
    ({"name": "frozen_consensus"}, [1.0, 1.0, 0.0, 0.5]),
    ({"name": "ema_vote"}, [1.0, 1.0, 0.0, 0.5]),
    ({"name": "verifiable"}, [1.0, 0.0, 0.0, 0.0]),
    ({"name": "right_any_format"}, [1.0, 1.0, 0.0, 0.0]),
    ({"name": "format_only"}, [1.0, 0.0, 1.0, 1.0]),
    ({"name": "length"}, [-3.0, -2.0, -1.0, -2.0]),
    ({"name": "negated"}, [-3.0, -3.0, -4.0, -0.5]),
    ({"name": "negated", "of": "trajectory_entropy", "reduce": "sum"}, [6.0, 1.0, 4.0, 4.0]),
    ({"name": "negated", "of": "verifiable"}, [-1.0, 0.0, 0.0, 0.0]),
    ({"name": "formatted"}, [1.0, 0.0, 0.5, 0.5]),  # the second answer is in the majority, and not in the form
    ({"name": "formatted", "of": "frozen_consensus"}, [1.0, 0.0, 0.0, 0.5]),
    ({"name": "formatted", "of": "self_certainty"}, [3.0, 0.0, 4.0, 0.5]),
    ({"name": "formatted", "of": "token_entropy"}, [-1.0, -1.0, -0.25, -2.0]),  # 0 would be the best of all
    ({"name": "formatted", "of": "right_any_format"}, [1.0, 0.0, 0.0, 0.0]),  # as `verifiable`
]


@pytest.mark.parametrize(("config", "expected"), BY_HAND)
def test_reward_by_hand(config: dict[str, str], expected: list[float]) -> None:
    assert reward(**config) == expected


def test_every_entry_is_covered_here() -> None:
    assert {config["name"] for config, _ in BY_HAND} | {"random"} == {*REWARDS, *WRAPPERS}
    assert set(WRAPPERS) == set(WRAPPER_CONFIGS)


def test_the_page_lists_every_reward_and_says_of_each_whether_it_uses_labels() -> None:
    page = (Path(__file__).parents[2] / "docs/rewards.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (yes|no|as `of`) \|", page, re.MULTILINE))
    labels = {name: "yes" if entry.uses_labels else "no" for name, entry in REWARDS.items()}
    assert listed == labels | dict.fromkeys(WRAPPERS, "as `of`") | dict.fromkeys(MIXES, "no")


def test_only_those_that_look_at_the_answer_are_said_to_use_labels() -> None:
    assert {name for name, entry in REWARDS.items() if entry.uses_labels} == {"verifiable", "right_any_format"}


@pytest.mark.parametrize("name", [name for name, entry in REWARDS.items() if not entry.uses_labels])
def test_the_others_do_not_change_when_the_truth_does(name: str) -> None:
    flipped = tuple(Verdict(not verdict.right, verdict.formatted, verdict.extracted) for verdict in VERDICTS)
    config = RewardConfig(name=name)
    found = REWARDS[name].function(RewardInputs(batch(), flipped, KEY, CONSENSUS), config)
    assert torch.equal(found, REWARDS[name].function(RewardInputs(batch(), VERDICTS, KEY, CONSENSUS), config))


# The random control


def test_random_is_reproducible_and_changes_with_seed_and_step() -> None:
    first = reward("random")
    assert reward("random") == first
    assert all(0.0 <= value < 1.0 for value in first)
    assert len(set(first)) == 4
    for key in (Key(12, 3), Key(11, 4)):
        assert not set(reward("random", key=key)) & set(first)


def test_random_belongs_to_the_completion_and_not_to_the_batch() -> None:
    p_then_q = reward("random", rollouts=batch(("p", "q")))
    assert reward("random", rollouts=batch(("q", "p"))) == p_then_q[2:] + p_then_q[:2]
    assert reward("random", rollouts=batch(("p", "other")))[:2] == p_then_q[:2]


def test_random_is_not_the_stream_the_tokens_were_drawn_from() -> None:
    # Otherwise completions that start with a token late in the vocabulary would be paid for it.
    stream = [float(number) for id in "pq" for sample in range(2) for number in uniforms(KEY, id, sample, 50)]
    for value in reward("random"):
        assert min(abs(value - number) for number in stream) > 1e-7


# Names


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "self_certanty"}, ("reward.name", "'self_certanty'", "did you mean self_certainty?")),
        ({"name": "negated", "of": "entropy"}, ("reward.of", "'entropy'", "did you mean", "token_entropy")),
        ({"name": "negated", "of": "negated"}, ("reward.of", "'negated'")),
        ({"name": "negated", "of": "multi"}, ("reward.of: multi is a mix of soft_consensus and self_certainty",)),
        ({"name": "multy"}, ("reward.name", "did you mean multi?")),
    ],
)
def test_an_unknown_reward_is_named_with_its_nearest_neighbour(config: dict[str, str], words: tuple[str, ...]) -> None:
    with pytest.raises(RlifError) as error:
        check_rewards([RewardConfig(name="random"), section(**config)])
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_negating_a_negation_is_not_what_is_suggested() -> None:
    with pytest.raises(RlifError) as error:
        check_rewards([NegatedConfig(of="negated")])
    assert "did you mean negated?" not in str(error.value)


def test_known_rewards_pass() -> None:
    check_rewards([RewardConfig(name=name) for name in REWARDS])
    check_rewards([section(name=name) for name in WRAPPERS])
    check_rewards([section(name="self_certainty", of="whatever")])  # `of` is read by `negated` alone


def test_a_wrapped_reward_needs_the_labels_that_it_wraps() -> None:
    wrapped = [section(name="negated", of=name) for name in ("self_certainty", "verifiable")]
    assert needs_labels([*wrapped, RewardConfig(name="random")]) == ["verifiable"]


# Advantages


def test_advantages_by_hand() -> None:
    # Group (1, 2, 6): mean 3, centred (-2, -1, 3), unbiased variance (4 + 1 + 9)/2 = 7. Group (0, 0, 3): mean 1,
    # centred (-1, -1, 2), variance (1 + 1 + 4)/2 = 3.
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    centred = [-2.0, -1.0, 3.0, -1.0, -1.0, 2.0]
    assert advantages(rewards, 3, std=False).tolist() == centred
    scaled = [x / math.sqrt(7) for x in centred[:3]] + [x / math.sqrt(3) for x in centred[3:]]
    assert advantages(rewards, 3).tolist() == pytest.approx(scaled, abs=1e-6)


def test_the_floor_is_a_floor_and_not_an_addition() -> None:
    rewards = torch.tensor([0.0, 2.0])  # standard deviation √2, centred ±1
    for floor, divisor in ((0.0, math.sqrt(2)), (1.4, math.sqrt(2)), (4.0, 4.0)):
        expected = [-1 / divisor, 1 / divisor]
        assert advantages(rewards, 2, std_floor=floor).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_small_spread_of_large_rewards_survives() -> None:
    # fp32 numbers near 10⁶ lie 1/16 apart and near their sum 1/8: a mean in fp32 would be off by half the spread.
    rewards = torch.tensor([1e6, 1e6 + 0.0625])
    assert advantages(rewards, 2, std=False).tolist() == [-0.03125, 0.03125]


def test_a_group_of_one_has_no_standard_deviation() -> None:
    with pytest.raises(ValueError, match="group of one"):
        advantages(torch.tensor([1.0, 2.0]), 1)
    assert advantages(torch.tensor([1.0, 2.0]), 1, std=False).tolist() == [0.0, 0.0]


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-1e6, 1e6), size=st.integers(2, 9), floor=st.sampled_from([0.0, 1e-12, 1e-4]))
def test_a_group_that_agrees_gets_exactly_nothing(value: float, size: int, floor: float) -> None:
    # The mean of seven times 0.1 is not 0.1: without care the rounding would be divided by itself.
    assert advantages(torch.full((size,), value), size, std_floor=floor).tolist() == [0.0] * size


def test_a_group_that_agrees_to_within_1e9_is_damped_by_the_floor() -> None:
    rewards = torch.tensor([0.0, 1e-9, 5.0, 7.0])
    # Centred ±5e-10 over the floor 1e-4 is ±5e-6; without the floor the same noise would weigh ±0.707.
    damped = advantages(rewards, 2).tolist()
    assert damped[:2] == pytest.approx([-5e-6, 5e-6], rel=1e-3)
    assert damped[2:] == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], abs=1e-6)
    assert advantages(rewards, 2, std_floor=0.0).tolist()[:2] == pytest.approx([-0.7071, 0.7071], abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    shift=st.integers(-64, 64),
)
def test_advantages_equal_loops(groups: list[list[float]], shift: int) -> None:
    expected = []
    for group in groups:
        mean = math.fsum(group) / 4
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / 3)
        expected += [(r - mean) / max(std, 1e-4) for r in group]
    found = advantages(torch.tensor(groups).flatten(), 4)
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # A constant added in fp32 rounds the rewards by up to 164 · 2⁻²⁴ = 1e-5: only spreads well above that compare.
    if all(max(group) - min(group) > 1.0 for group in groups):
        shifted = advantages(torch.tensor(groups).flatten() + shift, 4)
        torch.testing.assert_close(shifted, found, atol=1e-4, rtol=0)


# Capping incomplete completions


def test_cap_by_hand() -> None:
    rewards = torch.tensor([1.0, 5.0, 3.0, 7.0, 0.0, 2.0, 9.0, 8.0, 4.0])
    cut = torch.tensor([False, True, False, True, True, False, True, True, True])
    # Group 1: least complete 1, so 5 -> 1. Group 2: least complete 2: 7 -> 2, and 0 stays. Group 3: all become 4.
    assert cap_incomplete(rewards, cut, 3).tolist() == [1.0, 1.0, 3.0, 2.0, 0.0, 2.0, 4.0, 4.0, 4.0]


COMPLETION = st.tuples(st.floats(-1e6, 1e6, width=32), st.booleans())  # reward, incomplete


@settings(max_examples=150, deadline=None)
@given(groups=st.lists(st.lists(COMPLETION, min_size=3, max_size=3), min_size=1, max_size=5))
def test_an_incomplete_completion_never_tops_a_complete_one(groups: list[list[tuple[float, bool]]]) -> None:
    rewards = torch.tensor([[value for value, _ in group] for group in groups])
    cut = torch.tensor([[incomplete for _, incomplete in group] for group in groups])
    capped = cap_incomplete(rewards.flatten(), cut.flatten(), 3).view_as(rewards)
    assert torch.equal(capped[~cut], rewards[~cut])
    assert (capped <= rewards).all()
    for group, incomplete in zip(capped, cut, strict=True):
        if incomplete.all():
            assert (group == group[0]).all()
        elif incomplete.any():
            assert group[incomplete].max() <= group[~incomplete].min()


# The whole: rewards to advantages


def scored(*rewards: RewardConfig, rollouts: Rollouts | None = None, config: AdvantageConfig = CENTRED) -> Scored:
    return score(rollouts or batch(), VERDICTS, list(rewards), config, KEY, consensus=CONSENSUS)


def test_one_reward_is_normalised_within_its_groups() -> None:
    # Self-certainty (3, 3 | 4, 0.5): the first group agrees; the second is ±1.75 with standard deviation 1.75·√2.
    result = scored(RewardConfig(name="self_certainty"), config=AdvantageConfig())
    assert result.advantages.tolist() == pytest.approx([0.0, 0.0, math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-6)
    assert result.rewards["self_certainty"].tolist() == [3.0, 3.0, 4.0, 0.5]
    assert result.verdicts == VERDICTS


def test_the_parts_of_a_mix_are_normalised_on_their_own() -> None:
    # Trajectory sums (-6, -1 | -4, -4) normalise to (-√½, √½ | 0, 0), verifiable (1, 0 | 0, 0) to (√½, -√½ | 0, 0):
    # with weights 1 and 3 that is (2√½, -2√½ | 0, 0). Normalising the weighted sum (-3, -1 | …) would flip the sign.
    result = scored(
        RewardConfig(name="trajectory_entropy", reduce="sum"),
        RewardConfig(name="verifiable", weight=3.0),
        config=AdvantageConfig(),
    )
    assert result.advantages.tolist() == pytest.approx([math.sqrt(2), -math.sqrt(2), 0.0, 0.0], abs=1e-6)


def test_weights_multiply_advantages() -> None:
    # Centred: length (-3, -2 | -1, -2) -> (-.5, .5 | .5, -.5); verifiable -> (.5, -.5 | 0, 0).
    result = scored(RewardConfig(name="length", weight=2.0), RewardConfig(name="verifiable", weight=0.5))
    assert result.advantages.tolist() == [-0.75, 0.75, 1.0, -1.0]


def test_weight_zero_logs_and_does_not_train() -> None:
    alone = scored(RewardConfig(name="length"))
    watched = scored(RewardConfig(name="length"), RewardConfig(name="verifiable", weight=0.0))
    assert torch.equal(watched.advantages, alone.advantages)
    assert watched.rewards["verifiable"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_reward_that_occurs_twice_is_logged_twice() -> None:
    result = scored(RewardConfig(name="self_certainty"), RewardConfig(name="self_certainty", reduce="sum", weight=0.0))
    assert {name: values.tolist() for name, values in result.rewards.items()} == {
        "self_certainty": [3.0, 3.0, 4.0, 0.5],
        "self_certainty_1": [9.0, 6.0, 4.0, 1.0],
    }


CAPPED = AdvantageConfig(std=False, cap_incomplete=True)


def test_truncated_and_empty_completions_can_be_kept_from_the_top() -> None:
    # Lengths reward the short: -3, -2 | -1, -2. Row 1 is truncated, row 2 is blank: both fall to their partner's.
    rollouts = batch(stop_reasons=("eos", "length", "eos", "stop_string"), texts=("a", "b", " \n", "d"))
    result = scored(RewardConfig(name="length"), rollouts=rollouts, config=CAPPED)
    assert result.rewards["length"].tolist() == [-3.0, -2.0, -1.0, -2.0]  # logged as they were
    assert result.advantages.tolist() == [0.0, 0.0, 0.0, 0.0]
    free = scored(RewardConfig(name="length"), rollouts=rollouts)
    assert free.advantages.tolist() == [-0.5, 0.5, 0.5, -0.5]


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_a_group_without_a_complete_completion_teaches_nothing(floor: float) -> None:
    rollouts = batch(stop_reasons=("length", "length", "eos", "eos"), texts=("a", "b", "c", ""))
    config = AdvantageConfig(std_floor=floor, cap_incomplete=True)
    result = scored(RewardConfig(name="trajectory_entropy", reduce="sum"), rollouts=rollouts, config=config)
    assert result.advantages.tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_the_run_and_names_the_prompt(value: float) -> None:
    rollouts = batch()
    rollouts.signals.self_certainty[3, 1] = value
    with pytest.raises(FloatingPointError, match=r"reward self_certainty .* prompt q"):
        scored(RewardConfig(name="self_certainty"), rollouts=rollouts)


def test_rubbish_under_the_mask_is_no_reward() -> None:
    rollouts = batch()
    rollouts.signals.self_certainty[~rollouts.mask] = math.nan
    result = scored(RewardConfig(name="self_certainty"), rollouts=rollouts)
    assert result.rewards["self_certainty"].tolist() == [3.0, 3.0, 4.0, 0.5]


def test_advantages_carry_no_gradient() -> None:
    rollouts = batch()
    result = scored(*(RewardConfig(name=name) for name in REWARDS), rollouts=rollouts)
    assert not result.advantages.requires_grad
    assert result.advantages.dtype == torch.float32
