"""The sequential test: exact against enumeration, its false alarms against the rate that it states."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif.monitoring import sequential
from rlif.monitoring.sequential import EVEN_LOOKS, fall, fewest_prompts, level_of, part_of_rate, sign_flip_p

PROMPTS, SAMPLES, LOOKS, RATE = 64, 4, 12, 0.05


def enumerated_p(falls: list[int]) -> float:
    """The share of all sign patterns whose sum is at least what was seen."""
    sums = [
        sum(sign * abs(d) for sign, d in zip(signs, falls, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(falls))
    ]
    return sum(one >= sum(falls) for one in sums) / len(sums)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_p_value_is_that_of_all_sign_patterns(falls: list[int]) -> None:
    assert sign_flip_p(np.array(falls)) == pytest.approx(enumerated_p(falls), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9), st.integers(0, 8))
def test_a_greater_fall_of_one_prompt_never_raises_the_p_value(falls: list[int], at: int) -> None:
    """What the proof for chances that rise rests on."""
    more = list(falls)
    more[at % len(falls)] += 1
    assert sign_flip_p(np.array(more)) <= sign_flip_p(np.array(falls)) + 1e-12


def test_p_values_of_a_fair_change_are_no_smaller_than_they_say() -> None:
    """P(p ≤ v) ≤ v for every v, over all 2^7 sign patterns of a few magnitudes: exact, nothing drawn."""
    magnitudes = np.array([1, 1, 2, 3, 3, 4, 2])
    p_values = [sign_flip_p(magnitudes * np.array(signs)) for signs in itertools.product((-1, 1), repeat=7)]
    assert len(set(p_values)) > 10
    assert all(sum(p <= v + 1e-12 for p in p_values) / 128 <= v + 1e-9 for v in p_values)


def test_parts_of_the_rate_add_up_to_it() -> None:
    far = 100_000
    total = sum(part_of_rate(look) for look in range(1, far + 1))
    tail = 0.2 * EVEN_LOOKS / far  # of a sum of 1 / (t (t - 1)) from far + 1 on
    assert total + tail == pytest.approx(1.0)
    assert total < 1.0
    levels = [level_of(look, RATE) for look in range(1, 40) for _ in range(look)]  # of each pair of looks
    assert sum(levels) < RATE


def alarmed_at(looks: list[np.ndarray]) -> int:
    """The look at which a run would have stopped, LOOKS if it never does."""
    return next((t for t in range(1, len(looks)) if fall(looks[: t + 1], rate=RATE) is not None), LOOKS)


def test_false_alarms_in_2000_runs_without_change_stay_below_the_rate() -> None:
    """Chances differ from prompt to prompt and stay what they are. Seeded: this is one number, and no coin."""
    random = np.random.default_rng(2506)
    alarms = 0
    for _ in range(2000):
        chances = random.beta(2, 1, PROMPTS)
        alarms += alarmed_at([random.binomial(SAMPLES, chances) for _ in range(LOOKS)]) < LOOKS
    spent = RATE * sum(part_of_rate(look) for look in range(1, LOOKS))
    assert alarms / 2000 <= spent < RATE
    assert alarms > 0  # a test that cannot alarm would pass, too


@pytest.mark.parametrize("change", ["rising", "mixed"])
def test_false_alarms_where_the_mean_does_not_fall_stay_below_the_rate(change: str) -> None:
    """Rising on every prompt; and half of the prompts up, half down, which the proof does not cover."""
    random = np.random.default_rng(17219)
    alarms = 0
    for _ in range(300):
        signs = np.where(random.permutation(PROMPTS) % 2, 1.0, -1.0)
        looks = []
        for look in range(LOOKS):
            by = 0.03 * look
            chances = np.full(PROMPTS, 0.4 + by) if change == "rising" else 0.5 + by * signs
            looks.append(random.binomial(SAMPLES, chances))
        alarms += alarmed_at(looks) < LOOKS
    assert alarms / 300 <= RATE


@pytest.mark.parametrize(("lost", "least"), [("a little by all", 0.95), ("everything by some", 0.75)])
def test_a_fall_by_20_points_is_seen_at_once(lost: str, least: float) -> None:
    """The power that the module states (.99 and .85), at the look after the fall; after two more nearly all."""
    random = np.random.default_rng(3)
    fallen, runs = 6, 200
    at = []
    for _ in range(runs):
        before = random.beta(2, 1, PROMPTS)
        share = 0.2 / before.mean()
        after = (
            before * (1 - share) if lost == "a little by all" else np.where(random.random(PROMPTS) < share, 0, before)
        )
        at.append(alarmed_at([random.binomial(SAMPLES, after if t >= fallen else before) for t in range(LOOKS)]))
    assert sum(look <= fallen for look in at) / runs >= least
    assert sum(look <= fallen + 2 for look in at) / runs >= 0.9


def test_the_best_look_is_found_wherever_it_was() -> None:
    looks = [np.full(20, n) for n in (1, 4, 2, 3, 1)]
    found = fall(looks, rate=RATE)
    assert found is not None
    assert found.since == 1
    assert found.p == pytest.approx(2.0**-20)
    assert fall(looks[:2], rate=RATE) is None  # it rose
    assert fall(looks, rate=RATE, start_only=True) is None  # it is where it began
    assert fall(looks[:1], rate=RATE) is None


def test_common_random_numbers_of_an_unchanged_policy_never_alarm() -> None:
    look = np.random.default_rng(0).binomial(SAMPLES, 0.5, PROMPTS)
    assert all(fall([look] * (t + 1), rate=RATE) is None for t in range(1, 30))


def test_fewest_prompts_are_those_that_can_alarm() -> None:
    for look in (1, 7, 30):
        n = fewest_prompts(look, RATE)
        looks = [np.full(n, SAMPLES)] * look + [np.zeros(n, dtype=np.int64)]
        assert fall(looks, rate=RATE) is not None
        assert fall([one[1:] for one in looks], rate=RATE) is None
        assert 2.0**-n <= level_of(look, RATE) < 2.0 ** (1 - n)


def test_a_probe_of_eight_prompts_says_nothing_even_of_a_total_fall() -> None:
    assert fall([np.full(8, SAMPLES), np.zeros(8, dtype=np.int64)], rate=RATE) is None


def test_no_prompts_give_no_fall() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert fall([empty, empty], rate=RATE) is None
    assert sequential.sign_flip_p(empty) == 1.0
    assert math.isclose(sign_flip_p(np.zeros(5, dtype=np.int64)), 1.0)
