"""What a run tells about its progress, and whom."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class ProgressCallback(Protocol):
    """Is told how a run progresses: a progress bar, a test. Every method is called in the process that trains."""

    def begin(self, phase: str, step: int, total: int) -> None:
        """A phase (rollout, update, eval) starts; ``total`` completion tokens at most lie ahead."""

    def advance(self, tokens: int) -> None:
        """So many more tokens of the phase are done."""

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """A line was added to the run log."""


class NullCallback:
    """Tells nobody."""

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None: ...
