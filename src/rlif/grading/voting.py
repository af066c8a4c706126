"""Votes: which answers to a problem say the same, and which of them wins.

Arrays are (problem, sample). Answers say the same if `canonical` says so (18, 18.00), or whatever other `Keys` are
given. One that could not be read never votes. A tie is no coin: every winner has the same chance, and what is counted
is the expectation. Where nobody votes, nobody wins.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from rlif.grading.equivalence import canonical

Keys = Callable[[Sequence[str | None]], list[str | None]]
"""What each of some answers is counted under: those of one key say the same; None for one that was not read."""

NO_VOTE = -1
_TIED = 1.0 - 1e-12  # sums of the same weights differ by rounding: √2 + √8 and √18


_canonical = lru_cache(maxsize=4096)(canonical)  # the answers of a group agree more than not


def by_reading(answers: Sequence[str | None]) -> list[str | None]:
    """The `Keys` of answers that are numbers, formulas, names: `canonical`; None for None or ""."""
    return [_canonical(answer) if answer else None for answer in answers]


def ballots(answers: Sequence[Sequence[str | None]], keys: Keys = by_reading) -> Int[np.ndarray, "problem sample"]:
    """What each answer votes for: the candidates of a problem are numbered from 0 as they first appear.

    ``answers`` are each problem's, as they were read, the same number for all; None or "" is `NO_VOTE`. ``keys`` are
    asked problem by problem.
    """
    rows = []
    for given in answers:
        candidates: dict[str, int] = {}
        rows.append([NO_VOTE if key is None else candidates.setdefault(key, len(candidates)) for key in keys(given)])
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(rows[0]) if rows else 0)


def tally(
    votes: Int[np.ndarray, "problem sample"], weights: Float[np.ndarray, "problem sample"] | None = None
) -> Float[np.ndarray, "problem candidate"]:
    """The sum of the weights (None: 1 each) of each candidate's votes; as many candidates as samples, most with 0."""
    problems, samples = votes.shape
    valid = votes != NO_VOTE
    cells = (np.arange(problems)[:, None] * samples + votes)[valid]
    counted = np.ones(votes.shape) if weights is None else weights
    sums = np.bincount(cells, weights=counted[valid], minlength=votes.size)
    return sums.astype(np.float64).reshape(votes.shape)  # of no vote at all numpy makes integers


def agreeing(votes: Int[np.ndarray, "problem sample"]) -> Float[np.ndarray, "problem sample"]:
    """How many of its problem's answers say the same as each one, itself included; 0 for one that does not vote."""
    return np.where(votes != NO_VOTE, np.take_along_axis(tally(votes), np.maximum(votes, 0), axis=1), 0.0)


def winner_shares(
    votes: Int[np.ndarray, "problem sample"], weights: Float[np.ndarray, "problem sample"] | None = None
) -> Float[np.ndarray, "problem sample"]:
    """The chance of each answer to be the one handed in, if the vote chooses the answer and a member of it speaks.

    Candidates of the greatest `tally` win with the same chance, and each of a winner's members speaks with the same
    chance. A problem's shares sum to 1, or are all 0 if nobody votes.
    """
    sums, sizes = tally(votes, weights), tally(votes)
    wins = (sizes > 0) & (sums >= _TIED * np.where(sizes > 0, sums, 0.0).max(axis=1, keepdims=True))
    shares = wins / (np.maximum(sizes, 1.0) * np.maximum(wins.sum(axis=1, keepdims=True), 1))
    return np.where(votes != NO_VOTE, np.take_along_axis(shares, np.maximum(votes, 0), axis=1), 0.0)
