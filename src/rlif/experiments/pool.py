"""Many runs side by side: one CPU thread each, a chunk of steps at a time, gone on with when started again.

One thread each, so that the numbers do not depend on how many cores there are. A paused and resumed run equals one
that was never paused, so the cut into chunks changes nothing; it lets the last runs take turns on all the cores.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.errors import Argument, RlifError
from rlif.experiments.pool_bars import Bars
from rlif.experiments.pool_worker import begin, run_chunk
from rlif.recipes import load_recipe
from rlif.runs.layout import FINAL, RECIPE
from rlif.utils.interrupts import AtOnce, Interrupted, Stop, stop_on_signal
from rlif.utils.terminal import Console

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
    with Bars(recipes, queue.waiting, labels or {}, console) as bars, stop_on_signal() as stop:
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
    bars: "Bars",
    stop: Stop,
    on_error: OnError | None,
) -> None:
    """Do what waits, with one set of processes; ``at_work`` is who has one. Raises BrokenProcessPool if one of them was
    killed: the system does not say whose it was."""
    context: Any = _workers()
    news, asked = context.SimpleQueue(), context.Value("i", 0)
    running: dict[Future[int], str] = {}
    with ProcessPoolExecutor(queue.processes, mp_context=context, initializer=begin, initargs=(news, asked)) as pool:
        try:
            while running or (queue.waiting and not asked.value):
                while not asked.value and (name := queue.next_beside(at_work)) is not None:
                    bars.show_bar(name)
                    at_work.append(name)
                    with _block_sigint():
                        running[pool.submit(run_chunk, name, recipes[name], out / name)] = name
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
    from rlif.training.resolve import resolved, with_looks  # loads torch, which the parent leaves to its workers

    return with_looks(resolved(one)) == with_looks(resolved(other))


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


def _workers() -> multiprocessing.context.BaseContext:
    """Processes that share one import of torch and transformers, where the system can fork; it is seconds each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlif.training.loop", "transformers.models.llama.modeling_llama"])
    return context
