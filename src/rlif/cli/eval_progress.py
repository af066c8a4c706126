"""How an evaluation looks while it goes on: a bar with time left on a terminal, a line now and then elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich.progress import BarColumn, Progress
from rich.text import Text

from rlif.errors import printable, shortened
from rlif.evals.backends.base import Answer
from rlif.evals.callbacks import EvalCallback, NullEvalCallback
from rlif.evals.pace import Pace
from rlif.utils.durations import duration
from rlif.utils.terminal import Console, text_column

_LINE_EVERY = 30.0  # seconds
_BESIDE_NAME = 58  # columns: bar, answers, speed, time left


def kept(answers: int, done: int) -> str:
    """How many answers there are to be, and how many of them a command that goes on has."""
    return f"{answers:,} answers" + (f", {done:,} of them kept from before" if done else "")


class LiveEvalProgress:
    """One bar for each model and task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, model: str, task: str, *, answers: int, done: int, limit: int) -> None:
        self._pace = Pace(answers, done, limit)
        if done:
            said = Text(f"{printable(model)}, {printable(task)}: {kept(answers, done)}")
            self._progress.console.print(said, soft_wrap=True)
        room = max(self._progress.console.width - _BESIDE_NAME - len(task), 8)
        name = f"{shortened(printable(model), room)}, {printable(task)}"  # a long path gives way, no number does
        self._bar = self._progress.add_task(name, total=answers, completed=done, line=_brief(self._pace))

    def advance(self, tokens: int) -> None:
        self._pace.advance(tokens)
        self._show()

    def answered(self, answers: Sequence[Answer]) -> None:
        self._pace.answered(answers)
        self._show()

    def _show(self) -> None:
        self._progress.update(self._bar, completed=self._pace.position, line=_brief(self._pace))


def _brief(pace: Pace) -> str:
    """As `Pace` says it, for a line that has a bar."""
    shown = f"{pace.done:,}/{pace.answers:,}  {pace.speed:,.0f} tokens/s"
    return shown if pace.seconds_left is None else f"{shown}  {duration(pace.seconds_left)} left"


class PlainEvalProgress:
    """For logs and pipes: a line at a task's start and end, and every half minute between."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, model: str, task: str, *, answers: int, done: int, limit: int) -> None:
        self._name, self._pace, self._said = f"{model}, {task}", Pace(answers, done, limit), monotonic()
        self._console.write_line(f"{self._name}: {kept(answers, done)}")

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
def eval_progress(console: Console, *, quiet: bool = False) -> Iterator[EvalCallback]:
    """The callback that fits the console; one that shows nothing if ``quiet``."""
    if quiet:
        yield NullEvalCallback()
        return
    if not console.is_terminal:
        yield PlainEvalProgress(console)
        return
    columns = (text_column("{task.description}"), BarColumn(bar_width=10), text_column("{task.fields[line]}"))
    with Progress(*columns, console=console) as progress:
        yield LiveEvalProgress(progress)
