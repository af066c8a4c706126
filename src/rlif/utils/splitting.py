"""Work on rows that several processes may split among themselves: what a caller hands in to have it so.

Who reads rows takes a `Split` and need not know who else does; a process alone is `unsplit`, ranks of a run are
`rlif.training.parallel.Ranks.split`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Split(Protocol):
    """Has ``work`` done on all rows, part by part, and returns what it made of each part, in the order of the rows.

    Every process that takes part must call it alike. ``weights``: how much work each row is (None: all as much).
    """

    def __call__(
        self, rows: Sequence[int], work: Callable[[Sequence[int]], T], weights: Sequence[int] | None = None
    ) -> list[T]: ...


def unsplit(rows: Sequence[int], work: Callable[[Sequence[int]], T], weights: Sequence[int] | None = None) -> list[T]:
    """The `Split` of a process alone: one part."""
    return [work(rows)]
