"""Student's t interval of a mean over a few seeds. Free of torch."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

# Student's t, 97.5 %, by degrees of freedom from 1; beyond the table its last value, which is a little too wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one number a seed, with the bounds of its 95 % interval; NaN bounds for a single seed."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return mean, math.nan, math.nan
    width = _T[min(n - 1, len(_T)) - 1] * stdev(values) / math.sqrt(n)
    return mean, mean - width, mean + width
