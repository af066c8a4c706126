"""The paper's experiment in miniature: five runs on the tiny models, one table, three figures.

The base model is trained on each internal reward and on the verifiable one, the instruct model on self-certainty; the
prompts, seeds and settings are the same. Runs go side by side, one CPU thread each, so that the numbers do not depend
on how many cores there are. A quickstart that was broken off goes on when it is started again in its folder.
"""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.recipes import find_recipe, load_recipe, parse_recipe
from rlif.runs.layout import RECIPE
from rlif.utils.atomic_io import LOCK, locked
from rlif.utils.interrupts import AtOnce, Interrupted, stop_on_signal
from rlif.utils.terminal import Console, text_column
from rlif.utils.terminal import prepare as prepare_terminal


@dataclass(frozen=True)
class Arm:
    """One of the runs: its folder, how it is called in table and figures, and what differs from recipes/tiny.yaml."""

    name: str
    label: str
    overrides: tuple[str, ...]


_STRETCH = 10  # steps

ARMS = (
    Arm("base-self-certainty", "base, self-certainty", ()),
    Arm("base-token-entropy", "base, token entropy", ("reward=token_entropy",)),
    Arm(
        "base-trajectory-entropy",
        "base, trajectory entropy",
        ("reward={name: trajectory_entropy, reduce: sum}",),
    ),
    Arm("base-verifiable", "base, verifiable (labels)", ("reward=verifiable",)),
    Arm("instruct-self-certainty", "instruct, self-certainty", ("policy.model=tiny-instruct",)),
)


def quickstart(out: Path, *, steps: int = 60, processes: int = 2) -> None:
    """Run all arms into ``out/<arm>``, then print the table and write table.md, results.json and the figures there.

    Raises `RlifError` if ``out`` holds anything but a quickstart of the same settings, which is gone on with;
    `Interrupted` after SIGINT or SIGTERM, each run's checkpoint written.
    """
    recipes = {arm.name: _recipe(arm, steps) for arm in ARMS}
    _check_ours(out, recipes)
    console = Console()
    started = time.monotonic()
    with locked(out):
        _run_all(recipes, out, processes, console)
        _report(out, console)
    console.write_line(f"done in {time.monotonic() - started:.0f} s")


def _check_ours(out: Path, recipes: Mapping[str, Recipe]) -> None:
    if out.exists() and not out.is_dir():
        raise RlifError(f"{out}: a file, not a folder; choose another --out")
    ours = {LOCK, "figures", "results.json", "table.md", *recipes}
    if out.is_dir() and (strangers := sorted(path.name for path in out.iterdir() if path.name not in ours)):
        raise RlifError(f"{out}: not an empty folder, it holds {strangers[0]}; choose a new one for --out")
    for name, recipe in recipes.items():
        path = out / name / RECIPE
        if path.is_file() and not _equal(load_recipe(path), recipe):
            raise RlifError(f"{out}: holds a quickstart of other settings (see {path}); choose a new folder for --out")


def _equal(one: Recipe, other: Recipe) -> bool:
    """Whether they do the same: a run's own recipe spells out what the other leaves to defaults."""
    from rlif.training.resolve import resolved  # loads torch, which a new quickstart leaves to its workers

    return resolved(one) == resolved(other)


def _report(out: Path, console: Console) -> None:
    from rlif.report.figures import Curve, write_figures
    from rlif.report.summary import explain, markdown, summarise, terminal_table
    from rlif.runs.history import read_metrics

    curves = [
        Curve(arm.label, [line for line in read_metrics(out / arm.name / "metrics.jsonl") if "eval/right" in line])
        for arm in ARMS
    ]
    results = [summarise(curve.label, curve.lines) for curve in curves]
    console.print(terminal_table(results))
    meaning = explain(results)
    console.print(meaning + "\n")
    (out / "results.json").write_text(json.dumps(_finite(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(results) + "\n" + meaning + "\n", encoding="utf-8")
    for path in write_figures(curves, out / "figures"):
        console.write_line(f"figure: {path}")
    console.write_line(f"table:  {out / 'table.md'}")


def _finite(value: Any) -> Any:
    """Numbers that are not finite as null, such as the standard error of one problem: JSON knows no others."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _recipe(arm: Arm, steps: int) -> Recipe:
    recipe = load_recipe(find_recipe(Path("tiny")), [*arm.overrides, f"steps={steps}"])
    # The figures need only the evaluations; a demonstration need not leave a hundred megabytes behind.
    lean = {"checkpoint": {"every": 0, "keep_last": 1}, "log": {"rollouts_every": 10}}
    return parse_recipe(recipe.model_dump(mode="json") | lean)


def _run_all(recipes: Mapping[str, Recipe], out: Path, processes: int, console: Console) -> None:
    """Run every arm, a stretch of each in turn.

    Five whole runs on two cores would leave one core idle during the fifth. A paused and resumed run equals one that
    was never paused, so the cut changes nothing. Signals are heard here alone: workers are asked through shared memory.
    """
    context: Any = _workers()
    news, asked = context.SimpleQueue(), context.Value("i", 0)
    waiting = deque(name for name in recipes if not (out / name / "final").is_dir())
    running: dict[Future[int], str] = {}
    with (
        _Bars(recipes, waiting, console) as bars,
        stop_on_signal() as stop,
        ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(news, asked)) as pool,
    ):
        try:
            while running or (waiting and not asked.value):
                while waiting and len(running) < processes and not asked.value:
                    name = waiting.popleft()
                    with _deaf_to_ctrl_c():
                        running[pool.submit(_stretch, name, recipes[name], out / name)] = name
                done = wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done
                asked.value = stop()
                while not news.empty():
                    bars.show(*news.get())
                for stretch in done:
                    name = running.pop(stretch)
                    with suppress(Interrupted):  # told once, below
                        if stretch.result() < recipes[name].steps:
                            waiting.append(name)
        except BrokenProcessPool as error:
            if not stop():
                why = "a run was killed, for lack of memory perhaps; try --processes 1"
                raise RlifError(f"{out}: {why}, and the same --out to go on") from error
        except AtOnce:
            for process in multiprocessing.active_children():
                process.kill()
            raise
        except BaseException:
            asked.value = signal.SIGTERM  # the other runs keep what they have before this one's error is told
            raise
        if signum := stop():
            steps = max(recipe.steps for recipe in recipes.values())
            raise Interrupted(signum, f"stopped; go on with: rlif quickstart --out {out} --steps {steps}")


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
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

    def __init__(self, recipes: Mapping[str, Recipe], waiting: Collection[str], console: Console) -> None:
        description, news = text_column("{task.description}"), text_column("{task.fields[news]}")
        self._console = console
        self._progress = Progress(description, BarColumn(10), MofNCompleteColumn(), news, _TimeLeft(), console=console)
        self._at = {name: 0 if name in waiting else recipe.steps for name, recipe in recipes.items()}
        self._bars = {
            arm.name: self._progress.add_task(
                arm.label, total=recipes[arm.name].steps, completed=self._at[arm.name], news="", whole=False
            )
            for arm in ARMS
        }
        total = sum(recipe.steps for recipe in recipes.values())
        self._all = self._progress.add_task("all", total=total, completed=sum(self._at.values()), news="", whole=True)
        self._scores: dict[str, float] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

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


def _stretch(name: str, recipe: Recipe, out: Path) -> int:
    """In a worker: start a run or go on with it; returns the step it is at."""
    from rlif.runs.checkpoint import resumes_at
    from rlif.training import loop

    begun = (out / RECIPE).is_file()
    until = (resumes_at(out) if begun else 0) + _STRETCH
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
