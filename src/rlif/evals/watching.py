"""How an evaluation looks while it goes on: a bar with time left on a terminal, a line now and then elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich.progress import BarColumn, Progress

from rlif.errors import printable
from rlif.evals.backends.base import Answer
from rlif.utils.terminal import Console, text_column

_LINE_EVERY = 30.0  # seconds


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


def duration(seconds: float) -> str:
    """A time left, as exact as it deserves: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class LiveWatcher:
    """One bar for each model and task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, model: str, task: str, *, answers: int, done: int, limit: int) -> None:
        self._pace = Pace(answers, done, limit)
        self._bar = self._progress.add_task(
            printable(f"{model}, {task}"), total=answers, completed=done, line=str(self._pace)
        )

    def advance(self, tokens: int) -> None:
        self._pace.advance(tokens)
        self._show()

    def answered(self, answers: Sequence[Answer]) -> None:
        self._pace.answered(answers)
        self._show()

    def _show(self) -> None:
        self._progress.update(self._bar, completed=self._pace.position, line=str(self._pace))


class PlainWatcher:
    """For logs and pipes: a line at a task's start and end, and every half minute between."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, model: str, task: str, *, answers: int, done: int, limit: int) -> None:
        self._name, self._pace, self._said = f"{model}, {task}", Pace(answers, done, limit), monotonic()
        kept = f", {done:,} of them kept from before" if done else ""
        self._console.write_line(f"{self._name}: {answers:,} answers{kept}")

    def advance(self, tokens: int) -> None:
        self._pace.advance(tokens)
        self._say(due=monotonic() - self._said > _LINE_EVERY)

    def answered(self, answers: Sequence[Answer]) -> None:
        self._pace.answered(answers)
        self._say(due=self._pace.done == self._pace.answers or monotonic() - self._said > _LINE_EVERY)

    def _say(self, *, due: bool) -> None:
        if due:
            self._console.write_line(f"{self._name}: {self._pace}")
            self._said = monotonic()


@contextmanager
def watch(console: Console) -> Iterator[LiveWatcher | PlainWatcher]:
    """The watcher that fits the console."""
    if not console.is_terminal:
        yield PlainWatcher(console)
        return
    columns = (text_column("{task.description}"), BarColumn(bar_width=20), text_column("{task.fields[line]}"))
    with Progress(*columns, console=console) as progress:
        yield LiveWatcher(progress)
