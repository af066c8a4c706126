"""Estimates against enumeration, bootstraps and simulation."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from rlif.analysis import estimators
from rlif.analysis.confidence import auroc, confidence, correlation
from rlif.analysis.paired import bootstrap_interval, paired, sign_flip_test


def bernoulli(seed: int, problems: int, samples: int) -> np.ndarray:
    """Answers of problems that differ in how hard they are."""
    random = np.random.default_rng(seed)
    return random.random((problems, samples)) < random.beta(0.7, 0.9, size=(problems, 1))


def resampled(statistic, problems: int, *, draws: int = 1500) -> float:
    """Standard deviation of a statistic over bootstraps of the problems, a plain loop."""
    random = np.random.default_rng(5)
    return float(np.std([statistic(random.integers(problems, size=problems)) for _ in range(draws)], ddof=1))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one(k: int) -> None:
    right = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)
    enumerated = [np.mean([any(row[i] for i in chosen) for chosen in combinations(range(5), k)]) for row in right]
    assert estimators.pass_at_k(right, k).value == pytest.approx(np.mean(enumerated), abs=1e-12)


def test_pass_at_1_is_avg_and_k_has_bounds() -> None:
    right = bernoulli(0, 30, 6)
    assert estimators.pass_at_k(right, 1).value == pytest.approx(estimators.mean(right.astype(float)).value)
    for k in (0, 7):
        with pytest.raises(ValueError, match="needs"):
            estimators.pass_at_k(right, k)


def test_majority_takes_the_commonest_answer_shares_ties_and_hears_no_unread_one() -> None:
    answers = [("7", "7", "8", None), ("7", "8", None, None), (None, "", None, None), ("1", "2", "2", "2")]
    right = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    # 7 wins and is right; a tie of a right and a wrong answer; nobody votes; 2 wins and is wrong.
    assert estimators.maj_at_k(answers, right).value == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def test_spellings_of_one_answer_vote_together() -> None:
    given = ("18", "18.00", "18.0", "17", "17", "3", "4", "5")
    right = np.array([[answer.startswith("18") for answer in given]])
    assert estimators.maj_at_k([given], right).value == 1.0
    assert estimators.self_agreement([given]).value == 3 / 8


def test_majority_equals_a_vote_with_every_order_of_breaking_ties() -> None:
    for given in product("ab", repeat=4):
        right = np.array([answer == "a" for answer in given])
        counts = {answer: given.count(answer) for answer in set(given)}
        orders = [max(order, key=counts.__getitem__) == "a" for order in (sorted(counts), sorted(counts)[::-1])]
        assert estimators.maj_at_k([given], right[None]).value == np.mean(orders)


def test_clustered_errors_agree_with_a_bootstrap_of_problems() -> None:
    """1,500 draws: the bootstrap's own error is about 2 % (one standard deviation); 8 % is four of them."""
    right = bernoulli(2, 150, 8).astype(float)
    lengths = 1.0 + np.random.default_rng(3).poisson(40 * (1.5 - right))
    sums = lengths * np.random.default_rng(4).gamma(2.0, 0.1, size=lengths.shape)
    for found, statistic in (
        (estimators.mean(right), lambda rows: right[rows].mean()),
        (estimators.ratio(sums, lengths), lambda rows: sums[rows].sum() / lengths[rows].sum()),
        (estimators.pass_at_k(right > 0, 4), lambda rows: estimators.pass_at_k(right[rows] > 0, 4).value),
    ):
        assert found.stderr == pytest.approx(resampled(statistic, len(right), draws=1500), rel=0.08)


def test_one_problem_has_no_error_and_no_tokens_no_ratio() -> None:
    assert math.isnan(estimators.mean(np.array([[1.0, 0.0]])).stderr)
    assert math.isnan(estimators.ratio(np.zeros((2, 1)), np.zeros((2, 1))).value)


def signal_and_right(seed: int, problems: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rounded (so tied) signal that knows something of the problem and something of the answer."""
    right = bernoulli(seed, problems, samples)
    random = np.random.default_rng(seed + 100)
    values = 0.8 * right + random.normal(size=right.shape) + 0.7 * random.normal(size=(problems, 1))
    return values.round(1).reshape(-1), right.reshape(-1), np.repeat(np.arange(problems), samples)


def test_auroc_counts_pairs() -> None:
    values, right, problem = signal_and_right(7, 12, 4)
    pairs = [1.0 if high > low else 0.5 if high == low else 0.0 for high in values[right] for low in values[~right]]
    assert auroc(values, right, problem).value == pytest.approx(np.mean(pairs))
    within = []
    for name in range(12):
        mine = problem == name
        pairs = [(h > l) + (h == l) / 2 for h in values[mine & right] for l in values[mine & ~right]]  # noqa: E741
        within += [np.mean(pairs)] if pairs else []
    found = confidence(values, right, problem)
    assert found.mixed == len(within)
    assert found.auroc_within.value == pytest.approx(np.mean(within))
    assert found.auroc_within.stderr == pytest.approx(np.std(within, ddof=1) / math.sqrt(len(within)))


def test_errors_of_auroc_and_correlation_agree_with_a_bootstrap_of_problems() -> None:
    """600 draws: the bootstrap's own error is about 3 %; 15 % allows for five of them or for its small bias."""
    problems, samples = 120, 5
    values, right, problem = signal_and_right(8, problems, samples)
    table, outcomes = values.reshape(problems, samples), right.reshape(problems, samples)
    for measure in (auroc, correlation):
        found = measure(values, right, problem)

        def again(rows: np.ndarray, measure=measure) -> float:
            return measure(table[rows].reshape(-1), outcomes[rows].reshape(-1), problem).value

        assert found.stderr == pytest.approx(resampled(again, problems, draws=600), rel=0.15)
    assert correlation(values, right, problem).value == pytest.approx(np.corrcoef(values, right)[0, 1])


def test_confidence_is_silent_where_there_is_nothing_to_tell_apart() -> None:
    found = confidence(np.array([1.0, 2.0, 3.0]), np.array([True, True, True]), np.array([0, 0, 1]))
    assert all(math.isnan(estimate.value) for estimate in found[:4])
    assert found.mixed == 0
    flat = confidence(np.ones(4), np.array([True, False, True, False]), np.array([0, 0, 1, 1]))
    assert flat.auroc.value == 0.5
    assert flat.auroc_within.value == 0.5
    assert math.isnan(flat.correlation.value)


def test_sign_flips_are_those_of_the_whole_enumeration() -> None:
    d = np.array([0.5, 0.25, 0.25, -0.125, 0.0, 0.375])
    all_signs = np.array(list(product([-1, 1], repeat=6)))
    exact = np.mean(np.abs(all_signs @ d) >= abs(d.sum()) - 1e-12)
    assert sign_flip_test(d) == pytest.approx(exact, abs=0.02)  # 10,000 draws: 4 standard deviations at most
    assert sign_flip_test(np.zeros(5)) == 1.0


def test_the_paired_test_keeps_its_level_when_two_models_are_alike() -> None:
    """400 pairs of models of the same strength on 40 problems of 2 answers, most of them ties.

    p ≤ .05 happens with probability at most .05, so more than 36 times of 400 with probability below 4e-4 (binomial);
    the seed is fixed.
    """
    random = np.random.default_rng(11)
    found = []
    for _ in range(400):
        hardness = random.beta(0.5, 0.5, size=(40, 1))
        a, b = ((random.random((40, 2)) < hardness).mean(axis=1) for _ in range(2))
        found.append(sign_flip_test(b - a, draws=400))
    assert sum(p <= 0.05 for p in found) <= 36
    assert sum(p <= 0.05 for p in found) >= 4  # and it is not asleep


def test_the_paired_test_sees_a_difference_and_its_interval_is_that_of_the_normal_law() -> None:
    random = np.random.default_rng(12)
    a = random.random(200)
    row = paired(a, a + random.normal(0.1, 0.2, size=200))
    error = (0.2 / math.sqrt(200)) * 1.96
    assert row.p < 0.001
    assert row.difference == pytest.approx(row.b - row.a)
    assert row.low == pytest.approx(row.difference - error, abs=0.25 * error)
    assert row.high == pytest.approx(row.difference + error, abs=0.25 * error)
    assert bootstrap_interval(a, draws=50) == bootstrap_interval(a, draws=50)
