"""Estimates from several answers to each of many problems, every one with its standard error.

Arrays are (problem, sample). Answers to one problem are not independent, problems are: every standard error comes from
the spread between problems, and is NaN if there is only one. Formulas: docs/evaluation.md.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rlif.grading.voting import Keys, ballots, by_reading, tally, winner_shares


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float


def over_problems(values: Float[np.ndarray, " problem"]) -> Estimate:
    """The mean of one number per problem; NaN of none."""
    n = len(values)
    if not n:
        return Estimate(math.nan, math.nan)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan)


def mean(values: Float[np.ndarray, "problem sample"]) -> Estimate:
    """The mean over all answers (avg@k, if they are 1 and 0); its standard error is clustered by problem."""
    return over_problems(values.mean(axis=1))


def ratio(sums: Float[np.ndarray, "problem sample"], counts: Float[np.ndarray, "problem sample"]) -> Estimate:
    """Σ sums / Σ counts, for numbers per token: long answers weigh more. NaN without a count.

    The error is that of a ratio estimator, clustered by problem: sqrt(N/(N−1) Σ_i e_i²) / Σ counts with e_i the
    problem's Σ (sums − ratio · counts).
    """
    total = float(counts.sum())
    if total == 0.0:
        return Estimate(math.nan, math.nan)
    value = float(sums.sum()) / total
    residuals = (sums - value * counts).sum(axis=1)
    return Estimate(value, clustered(residuals) / total)


def clustered(influence: Float[np.ndarray, " problem"]) -> float:
    """Standard error of a sum to which problem i adds ``influence[i]``, of mean 0: sqrt(N/(N−1) Σ_i influence_i²)."""
    n = len(influence)
    return math.sqrt(n / (n - 1) * float(influence @ influence)) if n > 1 else math.nan


def pass_at_k(right: Bool[np.ndarray, "problem sample"], k: int) -> Estimate:
    """Chance that at least one of k answers is right, unbiased: 1 − C(n−c, k) / C(n, k), c right among n.

    Source: arXiv 2107.03374. Raises ValueError unless 1 ≤ k ≤ n.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs {k} samples, there are {n}")
    missing = [math.comb(n - int(c), k) / math.comb(n, k) for c in right.sum(axis=1)]
    return over_problems(1.0 - np.array(missing))


def maj_at_k(answers: Sequence[Sequence[str | None]], right: Bool[np.ndarray, "problem sample"]) -> Estimate:
    """maj@k: is the commonest of a problem's k answers right? Answers are the same if `canonical` says so: 18, 18.00.

    One that could not be read never votes. Among answers equally common each wins with the same chance; if nobody
    votes the problem is lost (`rlif.grading.voting`). NaN of no problem.
    """
    if not answers:
        return Estimate(math.nan, math.nan)
    return over_problems((winner_shares(ballots(answers)) * right).sum(axis=1))


def self_agreement(answers: Sequence[Sequence[str | None]], keys: Keys = by_reading) -> Estimate:
    """Mean over problems of the share of samples that give the problem's commonest answer, counted by ``keys``; unless
    given as in `maj_at_k`.

    An answer that could not be read never votes and agrees with nobody. 1 by definition for one sample with an answer.
    """
    return over_problems(share_of_commonest(answers, keys))


def share_of_commonest(
    answers: Sequence[Sequence[str | None]], keys: Keys = by_reading
) -> Float[np.ndarray, " problem"]:
    """Of each problem the share of samples that give its commonest answer, of which `self_agreement` is the mean."""
    votes = ballots(answers, keys)
    shares: Float[np.ndarray, " problem"] = tally(votes).max(axis=1) / votes.shape[1]
    return shares
