"""The bars of many runs: one each and one for all; where there is no terminal, a line now and then."""

from collections.abc import Collection, Mapping
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

from rlif.config import Recipe
from rlif.errors import printable, shortened
from rlif.utils.durations import duration
from rlif.utils.terminal import Console, text_column

_FEW = 12  # runs that all have a bar from the beginning; of more, only those at work
_LINE_EVERY = 30.0  # seconds between two lines of a log, at most
_BESIDE_NAME = 56  # columns: bar, steps, reward, share right, time left


class _TimeLeft(TimeRemainingColumn):
    """Of the whole; the runs take turns, so that of one of them says nothing."""

    def render(self, task: Bar) -> Text:
        return super().render(task) if task.fields["whole"] else Text()


class Bars:
    """A bar for each run, with its newest reward and evaluation, and one for all; plain lines where no terminal is."""

    def __init__(
        self, recipes: Mapping[str, Recipe], waiting: Collection[str], labels: Mapping[str, str], console: Console
    ) -> None:
        description, news = text_column("{task.description}"), text_column("{task.fields[news]}")
        self._console, self._few = console, len(recipes) <= _FEW
        self._progress = Progress(description, BarColumn(10), MofNCompleteColumn(), news, _TimeLeft(), console=console)
        room = max(console.width - _BESIDE_NAME, 12)  # a name that is too long gives way, no number does
        self._at = {name: 0 if name in waiting else recipe.steps for name, recipe in recipes.items()}
        self._bars = {
            name: self._progress.add_task(
                shortened(printable(labels.get(name, name)), room),
                total=recipe.steps,
                completed=self._at[name],
                visible=self._few,
                news="",
                whole=False,
            )
            for name, recipe in recipes.items()
        }
        self._total = sum(recipe.steps for recipe in recipes.values())
        self._all = self._progress.add_task(
            "all", total=self._total, completed=sum(self._at.values()), news="", whole=True
        )
        self._scores: dict[str, float] = {}
        self._said = monotonic()
        self._first: tuple[float, int] | None = None
        self._ended = {name for name in recipes if name not in waiting}

    def __enter__(self) -> "Bars":
        self._progress.start()
        if not self._console.is_terminal:
            self._say(self._whole())
        return self

    def _say(self, line: str) -> None:
        self._console.write_line(line)
        self._said = monotonic()

    def _whole(self) -> str:
        done = sum(self._at.values())
        return f"{len(self._ended)} of {len(self._bars)} runs done, step {done:,} of {self._total:,} in all"

    def beat(self) -> None:
        """Where no terminal is, a line every half minute in which there was none."""
        if self._console.is_terminal or monotonic() - self._said < _LINE_EVERY:
            return
        self._say(self._whole() + self._left())

    def _left(self) -> str:
        """At the pace since the first step: what loading took is no part of it."""
        if self._first is None:
            return ""
        (began, before), done = self._first, sum(self._at.values())
        if done == before:
            return ""
        return f", {duration((monotonic() - began) / (done - before) * (self._total - done))} left"

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show_bar(self, name: str) -> None:
        """A run is at work."""
        self._progress.update(self._bars[name], visible=True)

    def hide_bar(self, name: str) -> None:
        """A run is finished, or has failed; of a few the bar stays. Of many, where no terminal is, one line a run."""
        self._progress.update(self._bars[name], visible=self._few)
        if not self._few and not self._console.is_terminal and name not in self._ended:
            self._ended.add(name)
            score = f", right and formatted {self._scores[name]:.2f}" if name in self._scores else ""
            self._say(f"{len(self._ended)} of {len(self._bars)}: {name}, step {self._at[name]}{score}{self._left()}")

    def show(self, name: str, step: int, reward: float | None, score: float | None) -> None:
        """A run has done a step; ``score`` is the share right and formatted, if it was evaluated."""
        if score is not None:
            self._scores[name] = score
            if self._few and not self._console.is_terminal:
                self._say(f"{name}: step {step}, right and formatted {score:.2f}{self._left()}")
        numbers = {"reward": (reward, ".3f"), "right": (self._scores.get(name), ".2f")}
        news = "  ".join(f"{what} {value:{form}}" for what, (value, form) in numbers.items() if value is not None)
        self._at[name] = step
        self._first = self._first or (monotonic(), sum(self._at.values()))
        self._progress.update(self._bars[name], completed=step, news=news)
        self._progress.update(self._all, completed=sum(self._at.values()))
