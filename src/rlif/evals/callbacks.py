"""Who is told how an evaluation goes on."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rlif.evals.backends.base import Answer


@runtime_checkable
class EvalCallback(Protocol):
    """Somebody who looks on: a progress bar, a test."""

    def begin(self, model: str, task: str, *, answers: int, done: int, limit: int) -> None:
        """A task starts: so many answers in all, so many kept from before, each of ``limit`` tokens at most."""

    def advance(self, tokens: int) -> None:
        """So many more tokens were drawn."""

    def answered(self, answers: Sequence[Answer]) -> None:
        """Some answers are finished."""


class NullEvalCallback:
    """Nobody looks on."""

    def begin(self, model: str, task: str, *, answers: int, done: int, limit: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def answered(self, answers: Sequence[Answer]) -> None: ...
