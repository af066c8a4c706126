"""Many runs side by side: one CPU thread each, a chunk of steps at a time, gone on with when started again.

One thread each, so that the numbers do not depend on how many cores there are. A paused and resumed run equals one
that was never paused, so the cut into chunks changes nothing; it lets the last runs take turns on all the cores.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

from rlif.config import Recipe
from rlif.errors import Argument, RlifError, printable
from rlif.recipes import load_recipe
from rlif.runs.layout import FINAL, RECIPE
from rlif.utils.interrupts import AtOnce, Interrupted, stop_on_signal
from rlif.utils.terminal import Console, text_column
from rlif.utils.terminal import prepare as prepare_terminal

_CHUNK = 10  # steps
_FEW = 12  # runs that all have a bar from the beginning; of more, only those at work


def run_all(
    recipes: Mapping[str, Recipe],
    out: Path,
    *,
    processes: int,
    console: Console,
    go_on_with: str,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Train every recipe into ``out/<name>``; those that are finished are skipped, those that were begun go on.

    Args:
        processes: runs side by side, one CPU thread each.
        go_on_with: the command that goes on, told to who interrupts it.
        labels: what the bars call the runs; None: their names.

    Raises `RlifError` for what the user can fix (the first such of any run ends all of them), `Interrupted` after
    SIGINT or SIGTERM; in both cases with each run's checkpoint written. The caller holds the lock of ``out`` and has
    called `check_recipes`. Signals are heard here alone: workers are asked through shared memory.
    """
    context: Any = _workers()
    news, asked = context.SimpleQueue(), context.Value("i", 0)
    waiting = deque(name for name in recipes if not (out / name / FINAL).is_dir())
    running: dict[Future[int], str] = {}
    with (
        _Bars(recipes, waiting, labels or {}, console) as bars,
        stop_on_signal() as stop,
        ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(news, asked)) as pool,
    ):
        try:
            while running or (waiting and not asked.value):
                while waiting and len(running) < processes and not asked.value:
                    name = waiting.popleft()
                    bars.show_bar(name)
                    with _block_sigint():
                        running[pool.submit(_run_chunk, name, recipes[name], out / name)] = name
                done = wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done
                asked.value = stop()
                while not news.empty():
                    bars.show(*news.get())
                for chunk in done:
                    name = running.pop(chunk)
                    with suppress(Interrupted):  # told once, below
                        if chunk.result() < recipes[name].steps:
                            _put_back(name, waiting, take_turns=len(waiting) + len(running) < 2 * processes - 1)
                        else:
                            bars.hide_bar(name)
        except BrokenProcessPool as error:
            if not stop():
                why = f"{out}: a run was killed, for lack of memory perhaps; try "
                raise RlifError(
                    why, Argument("processes"), " 1, and the same ", Argument("out"), " to go on"
                ) from error
        except AtOnce:
            for process in multiprocessing.active_children():
                process.kill()
            raise
        except BaseException:
            asked.value = signal.SIGTERM  # the other runs keep what they have before this one's error is told
            raise
        if signum := stop():
            raise Interrupted(signum, f"stopped; go on with: {go_on_with}")


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
        self._at = {name: 0 if name in waiting else recipe.steps for name, recipe in recipes.items()}
        self._bars = {
            name: self._progress.add_task(
                printable(labels.get(name, name)),
                total=recipe.steps,
                completed=self._at[name],
                visible=self._few,
                news="",
                whole=False,
            )
            for name, recipe in recipes.items()
        }
        total = sum(recipe.steps for recipe in recipes.values())
        self._all = self._progress.add_task("all", total=total, completed=sum(self._at.values()), news="", whole=True)
        self._scores: dict[str, float] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show_bar(self, name: str) -> None:
        """A run is at work."""
        self._progress.update(self._bars[name], visible=True)

    def hide_bar(self, name: str) -> None:
        """A run is finished; of a few the bar stays."""
        self._progress.update(self._bars[name], visible=self._few)

    def show(self, name: str, step: int, reward: float | None, score: float | None) -> None:
        """A run has done a step; ``score`` is the share right and formatted, if it was evaluated."""
        if score is not None:
            self._scores[name] = score
            if not self._console.is_terminal:
                self._console.write_line(f"{name}: step {step}, right and formatted {score:.2f}")
        numbers = {"reward": (reward, ".3f"), "right": (self._scores.get(name), ".2f")}
        news = "  ".join(f"{what} {value:{form}}" for what, (value, form) in numbers.items() if value is not None)
        self._at[name] = step
        self._progress.update(self._bars[name], completed=step, news=news)
        self._progress.update(self._all, completed=sum(self._at.values()))


def _run_chunk(name: str, recipe: Recipe, out: Path) -> int:
    """In a worker: start a run or go on with it; returns the step it is at."""
    from rlif.runs.checkpoint import resumes_at
    from rlif.training import loop

    begun = (out / RECIPE).is_file()
    until = (resumes_at(out) if begun else 0) + _CHUNK
    reporter, stop = _Reporter(name), lambda: int(_asked.value)
    if begun:
        loop.resume(out, callback=reporter, until=until, stop=stop)
    else:
        loop.train(recipe, out, callback=reporter, until=until, stop=stop)
    return min(until, recipe.steps)


class _Reporter:
    """A `rlif.training.callbacks.ProgressCallback` that sends each step's news to the parent."""

    def __init__(self, name: str) -> None:
        self._name = name

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        rewards = [metrics[key] for key in metrics if key.startswith("reward/") and key.endswith("/mean")]
        _news.put((self._name, step, rewards[0] if rewards else None, metrics.get("eval/right_and_formatted")))


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
    os.environ["HF_HUB_OFFLINE"] = "1"  # the tiny models are in the package
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
