"""The correlation of two series, with its standard error."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of n steps, with the bounds of its 95 % confidence interval (Fisher's z).

    The interval takes steps for independent; those of a run that trends are not. ``of_differences`` is r of the first
    differences, from each step to the next: what is left of r without a shared trend.
    """

    n: int
    r: float
    low: float
    high: float
    of_differences: float


def correlation(lines: Sequence[Mapping[str, float | int]]) -> Correlation | None:
    """Of predicted with measured change over the lines of a metrics.jsonl; None below 4 steps that have both."""
    keys = ("entropy/predicted", "entropy/measured")
    pairs = [
        [line[key] for key in keys] for line in lines if all(math.isfinite(line.get(key, math.nan)) for key in keys)
    ]
    if len(pairs) < 4:
        return None
    series = torch.tensor(pairs, dtype=torch.float64).T
    r, of_differences = (float(torch.corrcoef(each)[0, 1]) for each in (series, series.diff(dim=1)))
    if not abs(r) < 1.0:  # also what is not a number, where nothing changed
        return Correlation(len(pairs), r, r, r, of_differences)
    z, width = math.atanh(r), 1.96 / math.sqrt(len(pairs) - 3)
    return Correlation(len(pairs), r, math.tanh(z - width), math.tanh(z + width), of_differences)
