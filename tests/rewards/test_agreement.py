"""Answer-level rewards against counting by hand, every way to break a tie, and the direction of an exact update."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
import pytest
import torch

from rlif.config import AdvantageConfig, RewardConfig
from rlif.errors import RlifError
from rlif.grading.grader import LONGEST_ANSWER, Grader
from rlif.grading.voting import ballots
from rlif.recipes import parse_recipe
from rlif.rewards.agreement import semantic_entropy, settled
from rlif.rewards.base import RewardInputs
from rlif.rewards.registry import REWARDS, needs_labels
from rlif.rewards.score import score
from rlif.rng import Key
from rlif.types import Problem, Prompt, Rollouts, Sampling, StopReason, TokenSignals, Verdict

KEY = Key(0, 1)
Answers = Sequence[str | None]


def batch(groups: Sequence[Answers], *, stops: Sequence[StopReason] | None = None) -> Rollouts:
    """Completions of one token; the text is the answer, or words that hold none."""
    size, rows = len(groups[0]), sum(len(group) for group in groups)
    ids = [f"p{i}" for i in range(len(groups))]
    zeros = torch.zeros(rows, 1)
    return Rollouts(
        prompts=tuple(Prompt(id, id, (5,), Problem(id, id)) for id in ids),
        group_size=size,
        tokens=torch.zeros(rows, 1, dtype=torch.long),
        mask=torch.ones(rows, 1, dtype=torch.bool),
        sampler_logprobs=zeros,
        signals=TokenSignals(zeros, zeros, zeros),
        texts=tuple("hm" if answer is None else answer for group in groups for answer in group),
        stop_reasons=tuple(stops or ("eos",) * rows),
        sampling=Sampling(),
    )


def read(groups: Sequence[Answers]) -> tuple[Verdict, ...]:
    return tuple(Verdict(None, False, answer) for group in groups for answer in group)


def values(name: str, *groups: Answers, stops: Sequence[StopReason] | None = None) -> list[float]:
    inputs = RewardInputs(batch(groups, stops=stops), read(groups), KEY)
    return REWARDS[name].function(inputs, RewardConfig(name=name)).tolist()


@pytest.mark.parametrize(
    ("answers", "majority", "soft"),
    [
        (("4", "4", "4", "4"), [1, 1, 1, 1], [1, 1, 1, 1]),
        (("4", "4", "5", "6"), [1, 1, 0, 0], [0.5, 0.5, 0.25, 0.25]),
        (("4", "5", "6", "7"), [0.25] * 4, [0.25] * 4),
        (("4", "5", "5", "4"), [0.5] * 4, [0.5] * 4),
        (("4", None, "5", ""), [0.5, 0, 0.5, 0], [0.25, 0, 0.25, 0]),
        ((None, "", None, "9"), [0, 0, 0, 1], [0, 0, 0, 0.25]),
        ((None, "", None, None), [0, 0, 0, 0], [0, 0, 0, 0]),
        (("18", "18.00", "36/2", "81"), [1, 1, 1, 0], [0.75, 0.75, 0.75, 0.25]),
    ],
    ids=["all agree", "a majority", "all differ", "tie", "tie of two", "one vote", "no vote", "one number's spellings"],
)
def test_votes_by_hand(answers: Answers, majority: list[float], soft: list[float]) -> None:
    assert values("majority_vote", answers) == majority
    assert values("soft_consensus", answers) == soft


def majority_by_hand(answers: Answers) -> list[float]:
    """The mean of 1[answer = mode] over every order in which a counter might meet the answers."""
    found = []
    for order in permutations(range(len(answers))):
        counted = Counter(answers[i] for i in order if answers[i])
        mode = counted.most_common(1)[0][0] if counted else None
        found.append([float(mode is not None and answer == mode) for answer in answers])
    return np.mean(found, axis=0).tolist()


def test_majority_equals_the_mean_over_all_orders_of_a_counter_for_every_vote_of_four() -> None:
    every = list(product(("1", "2", "3", "4", None), repeat=4))
    expected = [value for answers in every for value in majority_by_hand(answers)]
    assert values("majority_vote", *every) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["majority_vote", "soft_consensus"])
def test_the_order_of_completions_and_of_prompts_changes_nothing(name: str) -> None:
    group, other = ("4", "5", None, "4.0", "6"), ("4", "6", "6", "6", "x")
    expected = dict(enumerate(values(name, group)))
    for order in permutations(range(5)):
        assert values(name, tuple(group[i] for i in order)) == [expected[i] for i in order]
    assert values(name, other, group)[5:] == values(name, group, other)[:5] == values(name, group)


@pytest.mark.parametrize("name", ["majority_vote", "soft_consensus"])
def test_what_was_cut_off_neither_votes_nor_earns(name: str) -> None:
    cut: list[StopReason] = ["length", "length", "stop_string", "eos"]
    assert values(name, ("4", "4", "5", None), stops=cut) == values(name, (None, None, "5", None))


def test_the_truth_does_not_enter_not_even_by_its_length() -> None:
    assert needs_labels([RewardConfig(name=name) for name in ("majority_vote", "soft_consensus")]) == []
    # The grader reads an answer of 2,010 characters for the sake of a truth of 100, and not for that of one.
    long = "x" * (LONGEST_ANSWER + 10)
    texts = [f"\\boxed{{{answer}}}" for answer in ("4", long, long)]
    with Grader() as grader:
        for truth in ("4", "5", "y" * 100, None):
            verdicts = tuple(grader.grade(text, truth, format="boxed", row_id="p") for text in texts)
            inputs = RewardInputs(batch([("4", "b", "b")]), verdicts, KEY)
            for name, share in (("majority_vote", 1.0), ("soft_consensus", 1 / 3)):
                found = REWARDS[name].function(inputs, RewardConfig(name=name)).tolist()
                assert found == pytest.approx([share, 0.0, 0.0]), (name, truth)


def test_the_frozen_consensus_rewards_its_answer_however_it_is_spelt_and_shares_among_ties() -> None:
    def frozen(answers: Answers, *consensus: str, stops: Sequence[StopReason] | None = None) -> list[float]:
        inputs = RewardInputs(batch([answers], stops=stops), read([answers]), KEY, {"p0": consensus})
        return REWARDS["frozen_consensus"].function(inputs, RewardConfig(name="frozen_consensus")).tolist()

    answers = ("18.00", "5", "5", None, "")
    assert frozen(answers, "36/2") == [1, 0, 0, 0, 0]  # the group's own majority counts for nothing
    assert frozen(answers, "5", "18") == [0.5, 0.5, 0.5, 0, 0]
    assert frozen(answers, "18", "18.0") == [1, 0, 0, 0, 0]  # one answer, spelt twice
    assert frozen(answers) == [0, 0, 0, 0, 0]
    assert frozen(answers, "5", stops=["eos", "length", "eos", "eos", "eos"]) == [0, 0, 1, 0, 0]
    with pytest.raises(RlifError, match="frozen_consensus: no answer is settled for the problem p0; give one in cons"):
        values("frozen_consensus", answers)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("4", "5", "5.0"), ["5"]),
        (("4", "5", "4", "5", None), ["4", "5"]),
        (("7.0", None, "", "7", "6"), ["7.0"]),
        ((None, "", None), []),
    ],
)
def test_what_a_policy_settles_on_is_its_commonest_answer_and_all_of_a_tie(
    answers: Answers, expected: list[str]
) -> None:
    assert settled(answers) == expected


def expected_gradient(reward: str, p: torch.Tensor, size: int, **more: object) -> torch.Tensor:
    """Of the logits of a policy that answers "0", "1" or "2": the mean over all groups of Σ A ∇ ln π, exactly."""
    groups = list(product(range(3), repeat=size))
    answers = [[str(choice) for choice in group] for group in groups]
    scored = score(
        *(batch(answers), read(answers), [RewardConfig(name=reward)], AdvantageConfig(std=False), KEY),
        **more,  # type: ignore[arg-type]
    )
    advantages = scored.advantages.view(-1, size).double()
    chances = torch.stack([p[list(group)].prod() for group in groups])
    one_hot = torch.eye(3, dtype=torch.float64)[torch.tensor(groups)]  # ∇ ln π(a) of the logits: 1[a] - π
    return (chances[:, None, None] * advantages[:, :, None] * (one_hot - p)).sum(dim=(0, 1))


@pytest.mark.parametrize("name", ["majority_vote", "soft_consensus"])
@pytest.mark.parametrize("size", [3, 5])
def test_an_exact_update_makes_the_mode_likelier_and_the_rarest_answer_less_likely(name: str, size: int) -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    gradient = expected_gradient(name, p, size)
    assert gradient.sum().abs() < 1e-7
    after = torch.softmax(p.log() + 0.1 * gradient, dim=0)
    assert after[0] > p[0]
    assert after[2] < p[2]


def test_an_exact_update_makes_the_frozen_answer_likelier_though_another_is_the_mode() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    consensus = {f"p{i}": ["1"] for i in range(27)}
    gradient = expected_gradient("frozen_consensus", p, 3, consensus=consensus)
    # With r = 1[a = 1] the mean of Σ (r - mean) ∇ ln π is (G - 1) ∇ E r, and ∂ p₁ / ∂ z_a = p₁ (1[a = 1] - p_a).
    expected = 2 * 0.3 * torch.tensor([-0.5, 0.7, -0.2], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["majority_vote", "soft_consensus"])
def test_pairs_and_uniform_answers_teach_nothing(name: str) -> None:
    # The two of a pair agree or tie: their rewards are the same. Among uniform answers none is ahead.
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert expected_gradient(name, p, 2).abs().max() < 1e-7
    assert expected_gradient(name, torch.full((3,), 1 / 3, dtype=torch.float64), 4).abs().max() < 1e-7


# The prompts that teach


def entropy_by_hand(answers: Answers) -> float:
    counted = Counter(answer for answer in answers if answer)
    shares = [n / counted.total() for n in counted.values()]
    return -sum(share * math.log(share) for share in shares) if shares else math.nan


def test_semantic_entropy_equals_counting_for_every_vote_of_four() -> None:
    every = list(product(("1", "2", "3", "4", None), repeat=4))
    found = semantic_entropy(ballots(every))
    np.testing.assert_allclose(found, [entropy_by_hand(answers) for answers in every], atol=1e-12)
    assert np.nanmax(found) == pytest.approx(math.log(4))
    assert np.nanmin(found) == 0.0


GROUPS = [("4", "4", "4", "4"), ("4", "4", "4", "5"), ("4", "5", "4", "5"), ("4", "5", "6", "7"), (None, "", None, "")]
"""Entropies 0, .562, ln 2, ln 4 and none."""


@pytest.mark.parametrize(
    ("bounds", "teach"),
    [
        ((0.0, math.inf), [0, 1, 2, 3]),
        ((0.0, 0.0), [0]),
        ((0.1, 1.0), [1, 2]),
        ((math.log(2), math.log(4)), [2, 3]),
        ((0.6, 0.6), []),
    ],
)
def test_only_prompts_within_the_bounds_teach_and_they_as_before(bounds: tuple[float, float], teach: list[int]) -> None:
    rollouts, verdicts = batch(GROUPS), read(GROUPS)
    random = [RewardConfig(name="random")]
    free = score(rollouts, verdicts, random, AdvantageConfig(), KEY)
    # A recipe takes no infinite bound; whoever calls the function may.
    config = AdvantageConfig.model_construct(std=True, std_floor=1e-4, cap_incomplete=False, semantic_entropy=bounds)
    gated = score(rollouts, verdicts, random, config, KEY)
    taught = gated.advantages.view(5, 4)
    assert [i for i in range(5) if bool((taught[i] != 0).any())] == teach
    assert torch.equal(taught[teach], free.advantages.view(5, 4)[teach])
    assert torch.equal(gated.rewards["random"], free.rewards["random"])


def test_multi_is_half_the_normalised_votes_and_half_the_normalised_certainty() -> None:
    recipe = parse_recipe(
        {"steps": 1, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}, "reward": "multi"}
    )
    rollouts = batch([("4", "4", "5")])
    rollouts.signals.self_certainty[:, 0] = torch.tensor([100.0, 300.0, 500.0])
    found = score(rollouts, read([("4", "4", "5")]), recipe.reward, recipe.advantage, KEY).advantages.tolist()
    # Votes (2, 2, 1)/3 normalise to (1, 1, -2)/√3, certainties to (-1, 0, 1), whatever their scale.
    root = math.sqrt(3)
    assert found == pytest.approx([0.5 / root - 0.5, 0.5 / root, -1 / root + 0.5], abs=1e-6)
