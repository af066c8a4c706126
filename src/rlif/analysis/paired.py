"""Two models on the same problems: paired differences, their intervals and tests."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Differences = Float[np.ndarray, " problem"]


_DRAWS = 10_000


_LEVEL = 0.95


_AT_ONCE = 4_000_000  # numbers drawn in one piece


class Paired(NamedTuple):
    """A metric of both models, the difference B − A, its interval and its p-value (two-sided), over n problems."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    n: int


def paired(a: Differences, b: Differences, *, seed: int = 0) -> Paired:
    """Compare one number per problem. The random draws are seeded: the same data give the same interval."""
    d = b - a
    low, high = bootstrap_interval(d, seed=seed)
    return Paired(float(a.mean()), float(b.mean()), float(d.mean()), low, high, sign_flip_test(d, seed=seed), len(d))


def bootstrap_interval(differences: Differences, *, seed: int = 0, draws: int = _DRAWS) -> tuple[float, float]:
    """95 % percentile interval of the mean, problems drawn with replacement."""
    random, n = np.random.default_rng(seed), len(differences)
    means = [differences[random.integers(n, size=(rows, n))].mean(axis=1) for rows in _pieces(draws, n)]
    low, high = np.quantile(np.concatenate(means), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def sign_flip_test(differences: Differences, *, seed: int = 0, draws: int = _DRAWS) -> float:
    """Two-sided p-value of "no difference": how often random signs give a mean at least as far from 0.

    (1 + hits) / (1 + draws), so that the chance of p ≤ α is at most α when the differences are symmetric about 0, as
    they are if the two models are alike; ties and zeros included. Source: Fisher's randomisation test.
    """
    d = differences[differences != 0.0]
    if not len(d):
        return 1.0
    random, far, hits = np.random.default_rng(seed), abs(float(d.sum())), 0
    for rows in _pieces(draws, len(d)):
        signs = 2.0 * random.integers(2, size=(rows, len(d))) - 1.0
        hits += int((np.abs(signs @ d) >= far - 1e-9).sum())
    return (1 + hits) / (1 + draws)


def _pieces(draws: int, n: int) -> list[int]:
    size = max(1, _AT_ONCE // max(n, 1))
    return [min(size, draws - start) for start in range(0, draws, size)]
