"""Which prompts a run is looked at with, and how often: what the recipe's section ``probe`` leaves open."""

import logging
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from rlif.config import FileTask, Recipe
from rlif.errors import Argument, RlifError
from rlif.rewards.base import Reward
from rlif.rewards.registry import internal_alone
from rlif.tasks.base import Task, most
from rlif.tasks.files import read_problems
from rlif.types import Problem

_LOG = logging.getLogger(__name__)

COST = 0.1
"""Share of the training's time that looks may take, if the recipe does not say how often they are due."""

MOST_LABELLED = 64
"""Problems of ``probe.labels`` that are looked at: they are sampled at every look."""

FEWEST_STEPS = 20
"""A shorter run is not looked at, unless its recipe says so: it ends before a fall could be told from chance."""


def looks_every(recipe: Recipe, own: Mapping[str, Reward] = MappingProxyType({})) -> int:
    """Steps between two looks where ``probe.every`` is null; 0: none. ``own``: the run's own rewards, by name.

    A completion of a step is sampled and trained on, one of a look sampled and, with ``probe.start``, read once. On a
    GPU as on a CPU sampling takes about half of a step, so a look costs half as much a completion, and a reading about
    a third of a sampling.
    """
    probe, rollout = recipe.probe, recipe.rollout
    if probe.every is not None:
        return probe.every
    if recipe.steps < FEWEST_STEPS or not internal_alone(recipe.reward, own):
        return 0
    look = probe.prompts * probe.samples * (4 / 3 if probe.start else 1.0)
    return max(1, math.ceil(look / (COST * 2.0 * rollout.prompts * rollout.group_size)))


def low_temperature(recipe: Recipe) -> float:
    """At which half of the reference's answers are drawn."""
    given = recipe.probe.low_temperature
    return min(0.4, recipe.rollout.temperature / 2.0) if given is None else given


def probe_problems(recipe: Recipe, task: Task) -> tuple[Problem, ...]:
    """The problems of the probe, without their labels.

    Of a file its first; else held-out ones of the task. Those that the evaluation uses, too, come only after all
    others: what is chosen by them would be judged by them. Last come those that the run is trained on, which a file
    without held-out problems has alone. Raises `RlifError` for a file that cannot be read.
    """
    count = recipe.probe.prompts
    problems = _from_file(recipe, count) if recipe.probe.path is not None else _held_out(recipe, task, count)
    if len(problems) < count:
        _LOG.warning("the probe has %d prompts, not the %d of probe.prompts: there are no more", len(problems), count)
    return tuple(Problem(problem.id, problem.question, None) for problem in problems)


def labelled_problems(recipe: Recipe, task: Task) -> tuple[Problem, ...]:
    """The problems of ``probe.labels`` with their answers, `MOST_LABELLED` at most; none without it.

    Raises `RlifError` for a file that cannot be read, and for a problem without an answer. A warning says how many are
    trained on: what is seen on these says less.
    """
    if recipe.probe.labels is None:
        return ()
    path = recipe.probe.labels
    found = read_problems(path, _columns(recipe, path), limit=MOST_LABELLED + 1, argument="probe_labels")
    if len(found) > MOST_LABELLED:
        _LOG.warning("%s: only its first %d problems are looked at", path, MOST_LABELLED)
    problems = found[:MOST_LABELLED]
    if bare := [problem.id for problem in problems if problem.answer is None]:
        raise RlifError(
            f"{path}: {len(bare)} of its problems have no answer (the first is {bare[0]}); give them one, or name the "
            "column in ",
            Argument("answer_column"),
        )
    trained = {problem.question for problem in _trained_on(recipe, task)}
    if learnt := sum(problem.question in trained for problem in problems):
        _LOG.warning("%d problems of probe.labels are trained on: what is seen on them says less", learnt)
    return problems


def _from_file(recipe: Recipe, count: int) -> tuple[Problem, ...]:
    path = str(recipe.probe.path)
    # A file of prompts needs no answers, whatever column those of the training stand in.
    unlabelled = _columns(recipe, path).model_copy(update={"answer_column": None})
    return read_problems(path, unlabelled, limit=count, argument="probe_path")


def _columns(recipe: Recipe, path: str) -> FileTask:
    """How a file beside the task's is read: by the task's columns, if it is a file, too."""
    task = recipe.task
    config = task if isinstance(task, FileTask) else FileTask(name="file", path=path)
    return config.model_copy(update={"path": path, "eval_path": None, "limit": None})


def _held_out(recipe: Recipe, task: Task, count: int) -> tuple[Problem, ...]:
    judged = {problem.id for problem in task.eval_problems(most(task.eval_problems, recipe.eval.problems))}
    trained = {problem.id for problem in _trained_on(recipe, task)}
    there = task.eval_problems(most(task.eval_problems, recipe.eval.problems + count))
    # The best first. Whether the run evaluates is no matter: it may be told to when it is resumed.
    chosen = sorted(there, key=lambda problem: 2 * (problem.id in trained) + (problem.id in judged))[:count]
    remedy = "give a file of prompts (probe.path)"
    if learnt := sum(problem.id in trained for problem in chosen):
        _LOG.warning("%d of the probe's prompts are trained on: what is seen on them says less; %s", learnt, remedy)
    if recipe.eval.every and (shared := sum(problem.id in judged for problem in chosen)):
        _LOG.warning(
            "the probe shares %d of its prompts with the evaluation, for the task holds out no others; lower "
            "probe.prompts or eval.problems, or %s",
            shared,
            remedy,
        )
    return tuple(chosen)


def _trained_on(recipe: Recipe, task: Task) -> Iterator[Problem]:
    for step in range(1, recipe.steps + 1):
        yield from task.train_problems(step, recipe.rollout.prompts, recipe.seed)
