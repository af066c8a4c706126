"""Votes against counting by hand, with every way to break a tie."""

from itertools import product

import numpy as np
import pytest

from rlif.grading.voting import NO_VOTE, agreeing, ballots, tally, winner_shares


def test_spellings_of_one_answer_are_one_candidate_and_what_was_not_read_votes_for_none() -> None:
    given = [("18", None, "18.00", "7", ""), ("", None, "a", "b", "36/2")]
    assert ballots(given).tolist() == [[0, NO_VOTE, 0, 1, NO_VOTE], [NO_VOTE, NO_VOTE, 0, 1, 2]]


def test_a_tally_sums_the_weights_of_each_candidate_apart_in_each_problem() -> None:
    votes = ballots([("a", "b", "a", None), (None, None, None, "c")])
    assert tally(votes).tolist() == [[2, 1, 0, 0], [1, 0, 0, 0]]
    weights = np.array([[0.5, 4.0, 1.0, 100.0], [1.0, 1.0, 1.0, 0.25]])
    assert tally(votes, weights).tolist() == [[1.5, 4.0, 0, 0], [0.25, 0, 0, 0]]
    assert winner_shares(votes, weights).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_each_vote_is_told_how_many_say_the_same() -> None:
    every = list(product(("a", "b", None), repeat=3))
    assert agreeing(ballots(every)).tolist() == [[given.count(a) if a else 0 for a in given] for given in every]


def shares_by_hand(given: tuple[str | None, ...], weights: np.ndarray) -> list[float]:
    """The mean over every order of breaking ties of one winner, and over that winner's members."""
    sums = {a: sum(w for b, w in zip(given, weights, strict=True) if b == a) for a in given if a is not None}
    winners = [a for a in sums if sums[a] == max(sums.values())]
    return [(a in winners) / (len(winners) * given.count(a)) if winners else 0.0 for a in given]


@pytest.mark.parametrize("weights", [np.ones(4), np.array([1.0, 2.0, 3.0, 3.0])])
def test_winner_shares_equal_all_ways_of_breaking_ties_for_every_vote_of_four(weights: np.ndarray) -> None:
    every = list(product(("a", "b", "c", None), repeat=4))
    found = winner_shares(ballots(every), np.tile(weights, (len(every), 1)))
    expected = [shares_by_hand(given, weights) for given in every]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    empty = np.array([all(a is None for a in given) for given in every])
    np.testing.assert_allclose(found.sum(axis=1), ~empty, atol=1e-12)


def test_sums_that_differ_by_rounding_alone_are_tied() -> None:
    weights = np.sqrt([[2.0, 8.0, 18.0]])
    assert weights[0, 0] + weights[0, 1] != weights[0, 2]  # √2 + √8 = √18
    assert winner_shares(ballots([("a", "a", "b")]), weights).tolist() == [[0.25, 0.25, 0.5]]
