"""Baselines against enumeration on a tabular policy, against plain loops, and on answers made by hand."""

import dataclasses
import json
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch

from rlif.analysis import estimators
from rlif.analysis.baselines import (
    BASELINES,
    GradedSamples,
    baselines,
    best_of_k,
    borda,
    borda_points,
    commonest,
    evaluate_baseline,
    uniform,
)
from rlif.grading.voting import ballots
from rlif.signals import SIGNALS
from rlif.theory.tabular import Policies, language, random_policies
from rlif.types import Problem, Prompt, Rollouts, Sampling, TokenSignals, Verdict


def samples(
    answers: Sequence[Sequence[str | None]],
    right: object,
    confidence: object,
    *,
    formatted: object = None,
    tokens: object = None,
) -> GradedSamples:
    shape = (len(answers), len(answers[0]))
    return GradedSamples(
        right=np.array(right, dtype=bool).reshape(shape),
        formatted=np.ones(shape, bool) if formatted is None else np.array(formatted, dtype=bool).reshape(shape),
        votes=ballots(answers),
        confidences={name: np.array(confidence, dtype=float).reshape(shape) for name in SIGNALS},
        tokens=np.ones(shape) if tokens is None else np.array(tokens, dtype=float).reshape(shape),
    )


def reached(name: str, graded: GradedSamples) -> float:
    return evaluate_baseline(BASELINES[name], graded).right.value


# A tabular policy: every set of k texts it can draw, with its probability.

K = 3


class Enumerated:
    """All k-tuples of the texts of a small language, as problems; the chance of each under one random policy."""

    def __init__(self, seed: int) -> None:
        policies: Policies = random_policies(language(3, 2), 1, torch.Generator().manual_seed(seed))
        texts = range(len(policies.language.sequences))
        self.p = policies.probability[0].numpy()
        self.answer = policies.language.answers.numpy()
        self.right = self.answer == int(policies.right[0])
        self.confidence = (policies.logprob[0] / policies.language.lengths).numpy()
        every = np.array(list(product(texts, repeat=K)))
        self.chance = self.p[every].prod(axis=1)
        spoken = [[str(self.answer[text]) for text in drawn] for drawn in every]
        self.graded = samples(spoken, self.right[every], self.confidence[every])

    def expected(self, chances: np.ndarray) -> float:
        return float(self.chance @ (chances * self.graded.right).sum(axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_expected_scores_of_a_tabular_policy_are_their_closed_forms(seed: int) -> None:
    case = Enumerated(seed)
    assert case.chance.sum() == pytest.approx(1.0, abs=1e-12)
    assert case.expected(uniform(case.graded)) == pytest.approx(case.p @ case.right, abs=1e-12)

    # Best of k: the surest is text x with chance P(none surer)^k − P(none as sure)^k; the texts' confidences differ.
    assert len(set(case.confidence)) == len(case.p)
    best = sum(
        case.p[case.confidence <= c].sum() ** K - case.p[case.confidence < c].sum() ** K
        for c, right in zip(case.confidence, case.right, strict=True)
        if right
    )
    assert case.expected(best_of_k(case.graded, "trajectory_entropy")) == pytest.approx(best, abs=1e-12)

    # Majority of 3, where q is right's share: two or three right votes, or one right and two other, different ones.
    shares = [case.p[case.answer == answer].sum() for answer in range(3)]
    q = case.p @ case.right
    others = [share for answer, share in enumerate(shares) if not case.right[case.answer == answer].any()]
    won = q**3 + 3 * q**2 * (1 - q) + 6 * q * math.prod(others) / 3
    assert case.expected(commonest(case.graded)) == pytest.approx(won, abs=1e-12)


def borda_by_hand(answers: Sequence[str | None], confidence: Sequence[float], power: float) -> list[float]:
    """The definition, in plain loops. Equals share the points of the places they take together."""
    n = len(answers)
    points = []
    for c in confidence:
        first = 1 + sum(other > c for other in confidence)
        places = range(first, first + sum(other == c for other in confidence))
        points.append(sum((n - r + 1) ** power for r in places) / len(places))
    sums = {a: sum(v for b, v in zip(answers, points, strict=True) if a == b) for a in answers if a is not None}
    winners = [a for a, s in sums.items() if math.isclose(s, max(sums.values()), rel_tol=1e-12)]
    return [(a in winners) / (len(winners) * answers.count(a)) if winners else 0.0 for a in answers]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_borda_equals_its_definition_in_plain_loops(power: float) -> None:
    random = np.random.default_rng(7)
    answers = [[random.choice(["a", "b", "c", None]) for _ in range(6)] for _ in range(300)]
    confidence = random.integers(0, 4, size=(300, 6)).astype(float)  # many equals
    graded = samples(answers, np.zeros((300, 6)), confidence)
    expected = [borda_by_hand(given, list(row), power) for given, row in zip(answers, confidence, strict=True)]
    np.testing.assert_allclose(borda(graded, power=power), expected, atol=1e-12)


def test_borda_is_the_majority_at_power_0_or_if_all_are_as_sure_and_best_of_k_at_a_great_power() -> None:
    random = np.random.default_rng(8)
    answers = [[random.choice(["a", "b", "c", "d"]) for _ in range(7)] for _ in range(200)]
    graded = samples(answers, np.zeros((200, 7)), random.normal(size=(200, 7)))
    np.testing.assert_allclose(borda(graded, power=0.0), commonest(graded), atol=1e-12)
    level = samples(answers, np.zeros((200, 7)), np.full((200, 7), 2.5))
    np.testing.assert_allclose(borda(level), commonest(level), atol=1e-12)
    surest = best_of_k(graded, "self_certainty").argmax(axis=1)  # its answer wins, any of its members speaks
    alike = graded.votes == np.take_along_axis(graded.votes, surest[:, None], axis=1)
    np.testing.assert_allclose(borda(graded, power=200.0), alike / alike.sum(axis=1, keepdims=True), atol=1e-12)


def test_borda_points_by_hand() -> None:
    # Sureness 9 > 5 = 5 > unknown: places 4, 3 and 2, 1 of 4; the equal ones take (3 + 2) / 2.
    points = borda_points(np.array([[5.0, 9.0, math.nan, 5.0]]), 1.0)
    np.testing.assert_allclose(points * 4, [[2.5, 4.0, 1.0, 2.5]])


def test_a_sure_minority_wins_by_borda_and_loses_by_majority() -> None:
    graded = samples([["7", "8", "8"]], [[1, 0, 0]], [[3.0, 1.0, 2.0]])
    assert reached("majority", graded) == 0.0
    # Points 3^p against 2^p + 1: 1.73 < 2.41 at the default p = .5; 9 > 5 at 2.
    assert reached("borda", graded) == 0.0
    assert borda(graded, power=2.0).tolist() == [[1, 0, 0]]
    assert reached("best_of_k/self_certainty", graded) == 1.0


def test_best_of_k_shares_ties_ranks_the_unknown_last_and_passes_over_what_was_not_read() -> None:
    answers = [["1", "2", "3"], ["1", "2", "3"], ["1", None, "3"], ["1", None, "3"], [None, "", None], ["1", "2", "3"]]
    confidence = [[1, 2, 2], [math.nan, -5, math.nan], [1, 9, 0], [1, 1, 0], [math.nan, 2, 3], [math.nan] * 3]
    graded = samples(answers, np.zeros((6, 3)), confidence)
    third = [1 / 3] * 3
    expected = [[0, 0.5, 0.5], [0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], third]
    np.testing.assert_allclose(best_of_k(graded, "token_entropy"), expected)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_answers_that_are_all_the_same_unread_or_undecided(name: str) -> None:
    alike = samples([["5", "5.0", "5"]], [[1, 1, 1]], [[1, 2, 3]], formatted=[[1, 1, 1]])
    assert evaluate_baseline(BASELINES[name], alike).right_and_formatted.value == pytest.approx(1.0)
    unread = samples([[None, "", None]], [[0, 0, 0]], [[1, 2, 3]])
    assert reached(name, unread) == 0.0
    undecided = samples([["x", "x", "x"]], [[0, 0, 0]], [[1, 2, 3]])  # not right, whoever wins
    assert reached(name, undecided) == 0.0


def test_a_vote_is_right_and_formatted_as_often_as_the_winning_answers_members_are() -> None:
    graded = samples([["5", "5", "5", "6"]], [[1, 1, 1, 0]], [[1, 2, 3, 4]], formatted=[[1, 0, 0, 1]])
    score = evaluate_baseline(BASELINES["majority"], graded)
    assert score.right.value == pytest.approx(1.0)
    assert score.right_and_formatted.value == pytest.approx(1 / 3)


def test_the_cost_is_one_answer_if_drawn_and_all_of_them_if_chosen_among() -> None:
    graded = samples([["5", "6"], ["5", "5"]], np.zeros((2, 2)), np.zeros((2, 2)), tokens=[[10, 30], [1, 3]])
    cost = {name: evaluate_baseline(baseline, graded).tokens for name, baseline in BASELINES.items()}
    assert cost.pop("sampled") == 11.0
    assert set(cost.values()) == {22.0}


def test_sampled_and_majority_agree_with_the_estimators_errors_included() -> None:
    random = np.random.default_rng(3)
    answers = [[str(random.integers(3)) for _ in range(5)] for _ in range(40)]
    right = np.array([[answer == "1" for answer in given] for given in answers])
    graded = samples(answers, right, random.normal(size=(40, 5)))
    assert evaluate_baseline(BASELINES["sampled"], graded).right == pytest.approx(estimators.mean(right.astype(float)))
    assert evaluate_baseline(BASELINES["majority"], graded).right == pytest.approx(estimators.maj_at_k(answers, right))


def test_the_entries_of_results_json_are_json_and_leave_out_what_needs_an_unknown_signal() -> None:
    graded = samples([["5", "6"], ["5", "5"]], [[1, 0], [1, 1]], [[1, 2], [3, 4]], tokens=[[10, 30], [1, 3]])
    found = baselines(graded, greedy=samples([["5"], ["6"]], [[1], [0]], [[1], [2]]))
    assert set(found) == {"sampled", "majority", "borda", "best_of_k", "greedy"}
    assert set(found["best_of_k"]) == set(SIGNALS)
    assert found["greedy"]["right"]["value"] == 0.5
    assert found["best_of_k"]["token_entropy"] == {
        "right": {"value": 0.5, "stderr": 0.5},
        "right_and_formatted": {"value": 0.5, "stderr": 0.5},
        "tokens": 22.0,
    }
    assert json.loads(json.dumps(found)) == found
    assert set(baselines(dataclasses.replace(graded, confidences={}))) == {"sampled", "majority"}


def test_samples_from_rollouts_take_each_answers_mean_confidence_and_length() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    logprob = torch.tensor([[-1.0, -3.0], [-0.5, 0.0]])
    rollouts = Rollouts(
        prompts=(Prompt("p", "p", (1,), Problem("p", "p")),),
        group_size=2,
        sampling=Sampling(),
        tokens=mask.long(),
        mask=mask,
        sampler_logprobs=logprob,
        signals=TokenSignals(logprob, -2 * logprob, -4 * logprob),
        texts=("5", ""),
        stop_reasons=("eos", "eos"),
    )
    verdicts = (Verdict(True, False, "5"), Verdict(None, True, None))
    found = GradedSamples.from_rollouts(rollouts, verdicts)
    assert found.right.tolist() == [[True, False]]
    assert found.formatted.tolist() == [[False, True]]
    assert found.votes.tolist() == [[0, -1]]
    assert found.tokens.tolist() == [[2.0, 1.0]]
    means = {name: values.tolist() for name, values in found.confidences.items()}
    assert means == {
        "trajectory_entropy": [[-2.0, -0.5]],
        "token_entropy": [[-4.0, -1.0]],
        "self_certainty": [[8.0, 2.0]],
    }
    assert GradedSamples.from_rollouts(rollouts, verdicts, np.array([7, 9])).tokens.tolist() == [[7.0, 9.0]]
