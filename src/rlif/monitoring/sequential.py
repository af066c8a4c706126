"""Has a share fallen below its best? A test that may be asked after every look, whichever look was the best.

Two looks are compared by the exact sign-flip test over prompts (R. A. Fisher's randomisation test, one-sided): of each
prompt the difference of two counts, whose signs would be coins if nothing had changed. Looks are many and the best of
them is chosen after the fact; so every pair of looks has its own part of the false-alarm rate, fixed beforehand, and
the parts add up to the rate (union bound). Nothing is drawn: the same looks give the same answer.

What is proven, for any number of prompts and looks. The chance that a run ever alarms is at most the rate

1. if on no prompt the chance of a counted sample has fallen from a look to a later one. Common random numbers are
   allowed: of two looks' samples with one random stream, (1, 0) is as likely as (0, 1) exactly if both looks have the
   same chance, whatever ties the two; if the later chance is higher, (1, 0) is the less likely. So the difference is at
   most one that is symmetric about 0, and the p-value falls in no difference that falls;
2. if prompts are drawn from many, and the changes of their chances from look to look are symmetric about 0.

Not proven, and true as prompts become many: a mean that has not fallen though some prompts have (the test takes the
spread of the changes for noise). Both need random streams of their own for each prompt and sample, and a policy that
was not trained on what the test is asked about.

Simulated (64 prompts of 4 samples, the start and 11 looks, rate .05, of which these may spend .0275): alarms without
a change in .020 of 2,000 runs; with chances that rise, wander or change against each other in .004 to .024 of 500.
A fall by 20 points after look 5 is seen at the next look in .99 of runs if all prompts lose in proportion and in .85 if
some lose everything, after three looks in 1.00 and .94. A bet on the mean (arXiv 2010.09686) needs no symmetry and
sees, at one pair of looks, a third to a half as many of these falls.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Counts = Int[np.ndarray, " prompt"]

EVEN_LOOKS, EVEN_SHARE = 16, 0.8
"""The first 16 looks after the start share 80 % of the rate evenly, for a run has 5 to 20; all that may follow share
the rest, falling as 1 / look²."""


class Fall(NamedTuple):
    """Now is below look ``since``: the pair's p-value, and the level it had to reach."""

    since: int
    p: float
    level: float


def sign_flip_p(falls: Counts) -> float:
    """P(Σ ±|falls| ≥ Σ falls), signs being fair coins: the chance of such a fall where nothing has changed. Exact.

    ``falls`` are counts before less counts now, by prompt. 1.0 if all are 0.
    """
    numbers = np.bincount(np.abs(falls))
    numbers[:1] = 0  # what did not change has no sign
    chances = np.ones(1)  # of the sum of those magnitudes whose coin fell on plus
    for magnitude in np.flatnonzero(numbers).tolist():
        chances = np.convolve(chances, _spread(magnitude, int(numbers[magnitude])))
    return min(1.0, float(chances[int(np.maximum(falls, 0).sum()) :].sum()))


@lru_cache(maxsize=4096)
def _spread(magnitude: int, number: int) -> np.ndarray:
    """The chances of 0, 1, 2, … as ``magnitude`` times the heads of ``number`` fair coins."""
    heads = np.ones(1)
    for _ in range(number):
        heads = (np.append(heads, 0.0) + np.append(0.0, heads)) / 2.0
    spread = np.zeros(magnitude * number + 1)
    spread[::magnitude] = heads
    return spread


def part_of_rate(look: int) -> float:
    """What look ``look`` (from 1; 0 is the start) may spend of the false-alarm rate; 1 for all looks together."""
    return EVEN_SHARE / EVEN_LOOKS if look <= EVEN_LOOKS else (1 - EVEN_SHARE) * EVEN_LOOKS / (look * (look - 1))


def level_of(look: int, rate: float, *, start_only: bool = False) -> float:
    """The p-value that a pair of this look must reach: its part is divided among the looks it is held against."""
    return rate * part_of_rate(look) / (1 if start_only else look)


def fewest_prompts(look: int, rate: float) -> int:
    """As many as can alarm at all at this look: if all of them fall, the p-value is 2^-prompts."""
    return int(np.ceil(-np.log2(level_of(look, rate))))


def fall(looks: Sequence[Counts], *, rate: float, start_only: bool = False) -> Fall | None:
    """Whether the last look is below an earlier one, or with ``start_only`` below the first; the surest such pair.

    Args:
        looks: each look's counted samples by prompt, prompts in one order, the same number of samples always.
        rate: the chance of a false alarm, over all looks that a run may ever take.
    """
    now = len(looks) - 1
    if now < 1:
        return None
    level = level_of(now, rate, start_only=start_only)
    earlier = range(1 if start_only else now)
    p, since = min((_p_of_fall(looks[look], looks[now]), look) for look in earlier)
    return Fall(since, p, level) if p <= level else None


def _p_of_fall(before: Counts, now: Counts) -> float:
    falls = before - now
    return sign_flip_p(falls) if int(falls.sum()) > 0 else 1.0
