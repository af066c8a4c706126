"""What a task is, and the draws all tasks share.

A task is a pure function from (step, seed) to problems. There is no iterator with a position to save: a resumed run
asks for step 41 and gets what the run that was never stopped got.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from rlif.errors import Argument, RlifError
from rlif.grading.extraction import find_extractor
from rlif.grading.grader import Grader
from rlif.rng import keyed_random
from rlif.types import Problem, Verdict

_LOG = logging.getLogger(__name__)

EVAL_SEED = 2506_17219
"""Chooses the evaluation problems when nobody asks for others; the run's own seed never does."""


@runtime_checkable
class Task(Protocol):
    """Problems to train on, problems to evaluate on, and a judge of the answers.

    >>> import rlif
    >>> isinstance(rlif.task_of([rlif.Problem("sum", "12+34=?", "46")]), rlif.Task)
    True
    """

    name: str

    def train_problems(self, step: int, count: int, seed: int) -> tuple[Problem, ...]:
        """The ``count`` distinct problems of a step (counted from 1): a pure function of its arguments.

        Raises `RlifError` if the task has fewer.
        """

    def eval_problems(self, count: int, seed: int = EVAL_SEED) -> tuple[Problem, ...]:
        """``count`` distinct problems, always the same ones, kept from training where the task allows it.

        Raises `RlifError` if the task has fewer.
        """

    def problems_to_fit(self) -> tuple[Problem, ...]:
        """What a model's context must hold: all of a file's problems, the longest of a generated task's."""

    def digests(self) -> Mapping[str, str]:
        """What it read from outside the recipe, by the key that names it (task.path): a digest of the problems there.

        Empty for a task that is generated: its section of the recipe says everything.
        """

    def grade(self, text: str, problem: Problem) -> Verdict:
        """Two verdicts on a completion; see `rlif.grading.grader.Grader.grade` for what it raises."""


class GradedTask:
    """The judging half of a task, the same for all of them; what it says else is said of a generated one."""

    def __init__(self, format: str) -> None:
        """``format`` is a key of `rlif.grading.grader.EXTRACTORS`. Raises `RlifError` for an unknown one."""
        find_extractor(format)
        self.format = format
        self._grader = Grader()

    def digests(self) -> Mapping[str, str]:
        """See `Task.digests`."""
        return {}

    def grade(self, text: str, problem: Problem) -> Verdict:
        """See `Task.grade`."""
        return self._grader.grade(text, problem.answer, format=self.format, row_id=problem.id)


def tell_unlabelled(task: Task, problems: Sequence[Problem]) -> None:
    """Warn of problems without an answer: of what nothing will be said. A judge of a task's own may need no answers."""
    bare = sum(problem.answer is None for problem in problems)
    if not bare or getattr(type(task), "grade", None) is not GradedTask.grade:
        return
    if bare == len(problems):
        _LOG.warning("no problem has an answer: nothing is known of right and wrong")
    else:
        said = "%d of %d problems have no answer; right and wrong are said of the others"
        _LOG.warning(said, bare, len(problems))


def digest(problems: Sequence[Problem]) -> str:
    """What the problems are, in 16 hexadecimal digits: the same digest, the same ids, questions and answers."""
    content = json.dumps([[problem.id, problem.question, problem.answer] for problem in problems])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def walk(size: int, step: int, count: int, seed: int) -> list[int]:
    """Which of ``size`` rows step ``step`` (from 1) draws, ``count`` at a time; distinct within a step.

    Steps walk through one permutation after another, keyed by (seed, epoch), so each epoch draws every row once, also
    when a step begins in one epoch and ends in the next. Needs ``count <= size``.
    """
    positions = range((step - 1) * count, step * count)
    orders = {epoch: _epoch_order(size, count, seed, epoch) for epoch in {p // size for p in positions}}
    return [orders[p // size][p % size] for p in positions]


def _epoch_order(size: int, count: int, seed: int, epoch: int) -> list[int]:
    """The permutation of an epoch, arranged so that the step it shares with the epoch before draws no row twice."""
    if size < 2 * count:
        return _permutation(size, seed, 0)  # one order for all epochs: any `count` in a row are distinct
    order = _permutation(size, seed, epoch)
    drawn = epoch * size % count  # rows that the shared step took from the end of the epoch before
    if not drawn:
        return order
    # That end is never rearranged itself: only the first `count` places of an epoch can be, and size >= 2 * count.
    taken = set(_permutation(size, seed, epoch - 1)[-drawn:])
    head = [row for row in order[:count] if row not in taken][: count - drawn]
    in_head = set(head)
    return head + [row for row in order if row not in in_head]


def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    rows = list(range(size))
    keyed_random("epoch", seed, epoch).shuffle(rows)
    return rows


def most(give: Callable[[int], object], asked: int) -> int:
    """The most, up to ``asked``, that can be given; 0 if nothing can. ``give`` raises `RlifError` for too many."""
    low, high = 0, asked
    while low < high:
        middle = (low + high + 1) // 2
        try:
            give(middle)
            low = middle
        except RlifError:
            high = middle - 1
    return low


def too_few(where: str, have: int, asked: int, *remedy: str | Argument) -> RlifError:
    """The error of a task that is asked for more distinct problems than it has."""
    return RlifError(f"{where}: {have} problems, but {asked} distinct ones are asked for; ", *remedy)
