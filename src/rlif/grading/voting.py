"""Votes of answers: how many say the same, and which answer most of them give."""

from collections import Counter
from collections.abc import Sequence

from rlif.grading.equivalence import canonical


def _votes(answers: Sequence[str | None]) -> list[str | None]:
    return [canonical(answer) if answer else None for answer in answers]


def _winners(votes: Sequence[str | None]) -> list[str]:
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    return [vote for vote, count in counts.items() if count == most]
