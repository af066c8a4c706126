"""Does a model's confidence know when it is right? AUROC and correlation of a signal with correctness.

Rows are answers, ``problem`` says whose. *Overall* compares all answers with each other: a signal that only knows which
problems are easy does well. *Within* compares answers to one problem, where both outcomes occur: that is what a group's
advantage is made of. Formulas: docs/evaluation.md.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rlif.analysis.estimators import Estimate, clustered, over_problems

Values = Float[np.ndarray, " row"]
Right = Bool[np.ndarray, " row"]
Problems = Int[np.ndarray, " row"]


class Confidence(NamedTuple):
    """Of one signal: overall, and within problems; ``mixed`` problems have both outcomes."""

    auroc: Estimate
    correlation: Estimate
    auroc_within: Estimate
    correlation_within: Estimate
    mixed: int


_NONE = Estimate(math.nan, math.nan)


def confidence(values: Values, right: Right, problem: Problems) -> Confidence:
    """All four numbers; NaN where one is not defined (all answers right, say)."""
    groups = [problem == name for name in np.unique(problem)]
    mixed = [group for group in groups if 0 < right[group].sum() < group.sum()]
    aurocs = np.array([_auroc(values[group], right[group]) for group in mixed])
    varied = [group for group in mixed if np.ptp(values[group]) > 0]
    correlations = np.array([_correlation(values[group], right[group]) for group in varied])
    return Confidence(
        auroc(values, right, problem),
        correlation(values, right, problem),
        over_problems(aurocs) if len(aurocs) else _NONE,
        over_problems(correlations) if len(correlations) else _NONE,
        len(mixed),
    )


def auroc(values: Values, right: Right, problem: Problems) -> Estimate:
    """Chance that a right answer has the higher value than a wrong one, ties counting half.

    Standard error clustered by problem from the structural components (Obuchowski, Biometrics 53, 1997).
    """
    if not 0 < right.sum() < len(right):
        return _NONE
    area = _auroc(values, right)
    wins = np.empty(len(values))  # of a right answer: share of wrong ones below it; of a wrong one: of right ones above
    wins[right] = _share_below(values[~right], values[right])
    wins[~right] = 1.0 - _share_below(values[right], values[~right])
    weight = np.where(right, 1.0 / right.sum(), 1.0 / (~right).sum())
    return Estimate(area, clustered(_by_problem((wins - area) * weight, problem)))


def correlation(values: Values, right: Right, problem: Problems) -> Estimate:
    """Pearson's (here: point-biserial) correlation of a signal with being right.

    Standard error clustered by problem, from the influence function z_x z_y − r (z_x² + z_y²) / 2.
    """
    if not 0 < right.sum() < len(right) or np.ptp(values) == 0:
        return _NONE
    r = _correlation(values, right)
    x, y = (v - v.mean() for v in (values, right.astype(np.float64)))
    x, y = x / np.sqrt((x @ x) / len(x)), y / np.sqrt((y @ y) / len(y))
    influence = (x * y - r * (x * x + y * y) / 2.0) / len(x)
    return Estimate(r, clustered(_by_problem(influence, problem)))


def _auroc(values: Values, right: Right) -> float:
    return float(_share_below(values[~right], values[right]).mean())


def _share_below(others: Float[np.ndarray, " other"], values: Values) -> Values:
    """For each value the share of ``others`` below it, equal ones counting half."""
    ordered = np.sort(others)
    ranks = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return ranks / (2.0 * len(others))


def _correlation(values: Values, right: Right) -> float:
    return float(np.corrcoef(values, right.astype(np.float64))[0, 1])


def _by_problem(influence: Values, problem: Problems) -> Float[np.ndarray, " problem"]:
    return np.bincount(np.unique(problem, return_inverse=True)[1], weights=influence)
