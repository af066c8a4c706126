"""How long an evaluation will take: a pace that forgets."""

from collections.abc import Sequence
from time import monotonic

from rlif.evals.backends.base import Answer
from rlif.utils.durations import duration


class Pace:
    """How far a task has come, and how long the rest will take at the pace so far.

    An answer not yet seen is expected to be as long as those that are finished; before any is, as long as the limit.
    """

    def __init__(self, answers: int, done: int, limit: int) -> None:
        self.answers, self.done, self._limit = answers, done, limit
        self.tokens, self._finished, self._finished_tokens = 0, 0, 0
        self._started = monotonic()

    def advance(self, tokens: int) -> None:
        self.tokens += tokens

    def answered(self, answers: Sequence[Answer]) -> None:
        self.done += len(answers)
        self._finished += len(answers)
        self._finished_tokens += sum(answer.n_tokens for answer in answers)
        self.tokens = max(self.tokens, self._finished_tokens)  # a server tells only now

    @property
    def speed(self) -> float:
        """Tokens per second since the start."""
        return self.tokens / max(monotonic() - self._started, 1e-9)

    @property
    def position(self) -> float:
        """Answers done, the part of those under way included."""
        under_way = (self.tokens - self._finished_tokens) / self._expected
        return min(self.done + under_way, float(self.answers))

    @property
    def seconds_left(self) -> float | None:
        return (self.answers - self.position) * self._expected / self.speed if self.tokens else None

    @property
    def _expected(self) -> float:
        return max(self._finished_tokens / self._finished if self._finished else float(self._limit), 1.0)

    def __str__(self) -> str:
        left = self.seconds_left
        shown = f"{self.done:,} of {self.answers:,} answers, {self.speed:,.0f} tokens/s"
        return shown if left is None else f"{shown}, {duration(left)} left"
