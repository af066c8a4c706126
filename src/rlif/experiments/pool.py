"""Many runs side by side: one CPU thread each, a chunk of steps at a time, gone on with when started again.

One thread each, so that the numbers do not depend on how many cores there are. A paused and resumed run equals one
that was never paused, so the cut into chunks changes nothing; it lets the last runs take turns on all the cores.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

from rlif.config import Recipe
from rlif.errors import Argument, RlifError, printable, shortened
from rlif.recipes import load_recipe
from rlif.runs.layout import FINAL, RECIPE
from rlif.utils.durations import duration
from rlif.utils.interrupts import AtOnce, Interrupted, Stop, stop_on_signal
from rlif.utils.terminal import Console, text_column
from rlif.utils.terminal import prepare as prepare_terminal

_CHUNK = 10  # steps
_FEW = 12  # runs that all have a bar from the beginning; of more, only those at work
_LINE_EVERY = 30.0  # seconds between two lines of a log, at most
_BESIDE_NAME = 56  # columns: bar, steps, reward, share right, time left


OnError = Callable[[str, Exception], None]
"""Told of a run that cannot be done: its name, and why. The others go on."""


def run_all(
    recipes: Mapping[str, Recipe],
    out: Path,
    *,
    processes: int,
    console: Console,
    go_on_with: str,
    labels: Mapping[str, str] | None = None,
    on_error: OnError | None = None,
) -> None:
    """Train every recipe into ``out/<name>``; those that are finished are skipped, those that were begun go on.

    Args:
        processes: runs side by side, one CPU thread each.
        go_on_with: the command that goes on, told to who interrupts it.
        labels: what the bars call the runs; None: their names.
        on_error: told of each run that fails, or whose process is killed while none is beside it; of several that are
            at work when one is killed, each goes on alone.

    Raises `Interrupted` after SIGINT or SIGTERM; without ``on_error``, also `RlifError` for what the user can fix
    (the first such of any run ends all of them); in both cases with each run's checkpoint written. The caller holds the
    lock of ``out`` and has called `check_recipes`. Signals are heard here alone: workers are asked through shared
    memory.
    """
    queue = _Queue((name for name in recipes if not (out / name / FINAL).is_dir()), processes)
    with _Bars(recipes, queue.waiting, labels or {}, console) as bars, stop_on_signal() as stop:
        while queue.waiting and not stop():
            at_work: list[str] = []
            try:
                _work_through(queue, at_work, recipes, out, bars=bars, stop=stop, on_error=on_error)
            except BrokenProcessPool as error:
                if not stop():
                    _isolate(queue, at_work, error, out, on_error)
        if signum := stop():
            raise Interrupted(signum, f"stopped; go on with: {go_on_with}")


def _work_through(
    queue: "_Queue",
    at_work: list[str],
    recipes: Mapping[str, Recipe],
    out: Path,
    *,
    bars: "_Bars",
    stop: Stop,
    on_error: OnError | None,
) -> None:
    """Do what waits, with one set of processes; ``at_work`` is who has one. Raises BrokenProcessPool if one of them was
    killed: the system does not say whose it was."""
    context: Any = _workers()
    news, asked = context.SimpleQueue(), context.Value("i", 0)
    running: dict[Future[int], str] = {}
    with ProcessPoolExecutor(queue.processes, mp_context=context, initializer=_begin, initargs=(news, asked)) as pool:
        try:
            while running or (queue.waiting and not asked.value):
                while not asked.value and (name := queue.next_beside(at_work)) is not None:
                    bars.show_bar(name)
                    at_work.append(name)
                    with _block_sigint():
                        running[pool.submit(_run_chunk, name, recipes[name], out / name)] = name
                done = wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done
                bars.beat()
                asked.value = stop()
                while not news.empty():
                    bars.show(*news.get())
                for chunk in done:
                    name = running.pop(chunk)
                    unfinished = _is_unfinished(chunk, name, recipes[name].steps, on_error)
                    at_work.remove(name)
                    if unfinished:
                        _put_back(name, queue.waiting, take_turns=queue.is_short(len(running)))
                    else:
                        bars.hide_bar(name)
        except AtOnce:
            for process in multiprocessing.active_children():
                process.kill()
            raise
        except BaseException:
            asked.value = signal.SIGTERM  # the other runs keep what they have before this one's error is told
            raise


def _is_unfinished(chunk: "Future[int]", name: str, steps: int, on_error: OnError | None) -> bool:
    """Whether a run has more to do after a chunk of it; one that failed has not, nor has one that was stopped."""
    try:
        return chunk.result() < steps
    except (Interrupted, BrokenProcessPool) as end:
        if isinstance(end, BrokenProcessPool):
            raise
        return False  # told once, in the end
    except Exception as error:
        if on_error is None:
            raise
        on_error(name, error)
        return False


def _isolate(queue: "_Queue", at_work: list[str], error: Exception, out: Path, on_error: OnError | None) -> None:
    """After a process was killed: who was alone at work is at fault; of several, each goes on alone."""
    why = "a run was killed, for lack of memory perhaps"
    if on_error is None:
        raise RlifError(
            f"{out}: {why}; try ", Argument("processes"), " 1, and the same ", Argument("out"), " to go on"
        ) from error
    if len(at_work) == 1:
        on_error(at_work[0], RlifError(f"{why}: it was the only one at work"))
    else:
        queue.alone.update(at_work)
        queue.waiting.extendleft(reversed(at_work))


class _Queue:
    """The runs that wait, in their order; ``alone`` are those that nothing may run beside."""

    def __init__(self, names: Iterable[str], processes: int) -> None:
        self.waiting, self.processes, self.alone = deque(names), processes, set[str]()

    def next_beside(self, at_work: Collection[str]) -> str | None:
        """Take the run that begins now, with those at work; None if none may."""
        if not self.waiting or len(at_work) >= self.processes:
            return None
        if at_work and self.alone.intersection([self.waiting[0], *at_work]):
            return None
        return self.waiting.popleft()

    def is_short(self, running: int) -> bool:
        """Whether so few are left that they should take turns."""
        return len(self.waiting) + running < 2 * self.processes - 1


def check_recipes(recipes: Mapping[str, Recipe], out: Path) -> None:
    """Raise `RlifError` if a run in ``out/<name>`` was begun with another recipe than that of its name here."""
    for name, recipe in recipes.items():
        path = out / name / RECIPE
        if path.is_file() and not _equal(load_recipe(path), recipe):
            raise RlifError(f"{path}: a run of other settings; choose a new folder for ", Argument("out"))


def _equal(one: Recipe, other: Recipe) -> bool:
    """Whether they do the same: a run's own recipe spells out what the other leaves to defaults."""
    from rlif.training.resolve import resolved  # loads torch, which the parent leaves to its workers

    return resolved(one) == resolved(other)


def _put_back(name: str, waiting: deque[str], *, take_turns: bool) -> None:
    """One run after the other, so that of hundreds the first are soon done; only the last ones take turns, lest one
    be left alone on a machine with many cores."""
    if take_turns:
        waiting.append(name)
    else:
        waiting.appendleft(name)


@contextmanager
def _block_sigint() -> Iterator[None]:
    """Processes started meanwhile never hear it. A terminal sends it to all of them; the parent answers for all."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class _TimeLeft(TimeRemainingColumn):
    """Of the whole; the runs take turns, so that of one of them says nothing."""

    def render(self, task: Bar) -> Text:
        return super().render(task) if task.fields["whole"] else Text()


class _Bars:
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

    def __enter__(self) -> "_Bars":
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


def _run_chunk(name: str, recipe: Recipe, out: Path) -> int:
    """In a worker: start a run or go on with it; returns the step it is at, the last one of a run that has ended."""
    from rlif.report.card import write_card
    from rlif.runs.checkpoint import resumes_at
    from rlif.training import loop

    begun = (out / RECIPE).is_file()
    until = (resumes_at(out) if begun else 0) + _CHUNK
    reporter, stop = _Reporter(name), lambda: int(_asked.value)
    if begun:
        final = loop.resume(out, callback=reporter, until=until, stop=stop, card=write_card)
    else:
        final = loop.train(recipe, out, callback=reporter, until=until, stop=stop, card=write_card)
    return min(until, recipe.steps) if final is None else recipe.steps  # a guard may have stopped it before


class _Reporter:
    """A `rlif.training.callbacks.ProgressCallback` that sends each step's news to the parent."""

    def __init__(self, name: str) -> None:
        self._name = name

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        rewards = [metrics[key] for key in metrics if key.startswith("reward/") and key.endswith("/mean")]
        score = metrics.get("eval/right_and_formatted", math.nan)  # NaN without labels, too
        _news.put((self._name, step, rewards[0] if rewards else None, score if math.isfinite(score) else None))


def _workers() -> multiprocessing.context.BaseContext:
    """Processes that share one import of torch and transformers, where the system can fork; it is seconds each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlif.training.loop", "transformers.models.llama.modeling_llama"])
    return context


_news: Any = None
_asked: Any = None
"""A worker's lines to its parent: where it sends its news, and where it reads which signal asks it to stop, or 0."""


def _begin(news: Any, asked: Any) -> None:
    """What a worker does first: one thread, and no life after its parent's."""
    global _news, _asked
    _news, _asked = news, asked
    prepare_terminal()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
