"""Problems of the package reasoning-gym: a hundred kinds, made from a number, each judged by its own scorer.

The package makes problem number n of a data set from (seed, n). Ours are those of seed 0; the run's seed chooses among
them, so that two runs, and an evaluation of them, speak of the same problem by the same name. An eighth of them is kept
from training for evaluation. Which eighth is decided by a hash of the question: the same question under another number
falls on the same side.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from rlif.config import GymTask
from rlif.errors import Argument, RlifError, brief, nearest
from rlif.grading.extraction import extract_any, find_extractor, without_thoughts
from rlif.grading.normalize import clean
from rlif.rng import is_text_held_out, keyed_random
from rlif.tasks.base import EVAL_SEED, digest, too_few, walk
from rlif.tasks.templates import find_template
from rlif.types import Problem, Verdict

PACKAGE = "reasoning_gym"

NUMBERS = 1 << 16
"""Problems are numbered below this: some data sets hold a list of all of theirs in memory."""

_TEXT = re.compile(r"\\(?:text|mathrm|texttt)\{([^{}]*)\}")

_IN_VAIN = 2000
"""So many draws in a row without a new question, and a data set is taken to have no more."""


class Gym:
    """One data set of the package; see `rlif.tasks.base.Task`."""

    def __init__(self, config: GymTask, base_dir: Path | None = None) -> None:
        """Raises `RlifError` if the package is not installed, for a data set that it has not, and for options that this
        one does not take."""
        self.name = f"{PACKAGE}/{config.dataset}"
        self._config = config
        self._find = find_extractor(config.format or find_template(config.template).format)
        self._data = _dataset(config)
        self._entry = lru_cache(maxsize=1 << 14)(self._made)

    def train_problems(self, step: int, count: int, seed: int) -> tuple[Problem, ...]:
        """See `Task.train_problems`. Fresh draws for each (seed, step); with ``config.limit``, from so many."""
        name, limit = self._config.dataset, self._config.limit
        if limit is None:
            return self._draw(keyed_random("gym", name, seed, step), count, held_out=False)
        if count > limit:
            raise too_few(
                f"the {name} problems trained on",
                *(limit, count, "raise ", Argument("limit"), " or lower ", Argument("prompts")),
            )
        few = self._draw(keyed_random("gym", name, "limit", seed), limit, held_out=False)
        return tuple(few[row] for row in walk(limit, step, count, seed))

    def eval_problems(self, count: int, seed: int = EVAL_SEED) -> tuple[Problem, ...]:
        """See `Task.eval_problems`. A smaller ``count`` takes the first of a larger one's."""
        return self._draw(keyed_random("gym", self._config.dataset, "eval", seed), count, held_out=True)

    def problems_to_fit(self) -> tuple[Problem, ...]:
        """See `Task.problems_to_fit`: the longest of those that are evaluated; how long one can get nobody says."""
        some = self._draw(keyed_random("gym", self._config.dataset, "fit"), 64, held_out=False, at_most=True)
        return (max(some, key=lambda problem: len(problem.question)),)

    def digests(self) -> Mapping[str, str]:
        """See `Task.digests`: of a few problems, which another version of the package may make otherwise."""
        return {"task.dataset": digest([self._problem(number) for number in range(4)])}

    def grade(self, text: str, problem: Problem) -> Verdict:
        """See `Task.grade`. The data set scores the answer where it stands, else what the text ends with; right is None
        where its scorer fails."""
        said = without_thoughts(text)
        if said is None:
            return Verdict(False, False, None)
        in_form = self._find(said)
        found = in_form if in_form is not None else extract_any(said)
        if found is None:
            return Verdict(False, False, None)
        score = self._score(found.strip(), problem)
        right = None if score is None else score >= self._config.right_from
        return Verdict(right, in_form is not None, clean(found))

    def _score(self, answer: str, problem: Problem) -> float | None:
        """Of the answer as it is written or, if that is better, without LaTeX around it; None if neither is scored."""
        entry = self._entry(int(problem.id.rpartition("/")[2]))
        scores = []
        for said in dict.fromkeys((answer, clean(answer), _TEXT.sub(r"\1", answer))):
            try:
                scores.append(float(self._data.score_answer(said, entry)))
            except Exception:  # scorers parse whatever a model wrote, each in its way
                continue
        return max(scores, default=None)

    def _draw(self, random: Random, count: int, *, held_out: bool, at_most: bool = False) -> tuple[Problem, ...]:
        drawn: dict[str, Problem] = {}
        for problem in self._new(random, drawn, held_out):
            drawn[problem.question] = problem
            if len(drawn) == count:
                return tuple(drawn.values())
        if at_most and drawn:
            return tuple(drawn.values())
        asked = Argument("eval_problems" if held_out else "prompts")
        where = f"the {'evaluation' if held_out else 'training'} share of {self._config.dataset}"
        raise too_few(where, len(drawn), count, "lower ", asked, ", or give it options that make more")

    def _new(self, random: Random, known: Mapping[str, Problem], held_out: bool) -> Iterator[Problem]:
        """Problems of one share whose question is not ``known`` yet, until there seem to be no more."""
        in_vain = 0
        while in_vain < _IN_VAIN:
            problem = self._problem(random.randrange(NUMBERS))
            in_vain += 1
            if is_text_held_out(problem.question) == held_out and problem.question not in known:
                in_vain = 0
                yield problem

    def _problem(self, number: int) -> Problem:
        entry = self._entry(number)
        answer = entry["answer"]
        return Problem(f"{self.name}/{number}", entry["question"], "any that scores" if answer is None else str(answer))

    def _made(self, number: int) -> dict[str, Any]:
        try:
            entry = self._data[number]
        except Exception as error:  # of a hundred generators, each with its own
            what = f"{type(error).__name__}: {brief(str(error))}"
            raise RlifError(
                f"task.dataset: {self._config.dataset} cannot make its problem {number} ({what}); change its options"
            ) from error
        return dict(entry)


def names() -> list[str]:
    """The data sets that the package has. Raises `RlifError` if it is not installed."""
    _package()
    return sorted(importlib.import_module(f"{PACKAGE}.factory").DATASETS)


def installed_version() -> str:
    """The package's version, which decides problems and scores. Raises `RlifError` if it is not installed."""
    _package()
    return version("reasoning-gym")


def _package() -> Any:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise RlifError(
            f"task: reasoning_gym needs the package reasoning-gym ({error}); pip install 'rlif[gym]'"
        ) from error


def _dataset(config: GymTask) -> Any:
    known = names()
    if config.dataset not in known:
        raise RlifError(
            f"task.dataset: reasoning-gym has no {config.dataset!r}; did you mean {nearest(config.dataset, known)}? "
            "(rlif tasks lists them)"
        )
    if taken := {"seed", "size"} & set(config.options):
        raise RlifError(f"task.options.{min(taken)}: leave it out; the recipe's own seed chooses the problems")
    try:
        return _package().create_dataset(config.dataset, seed=0, size=NUMBERS, **config.options)
    except Exception as error:  # a wrong name is a TypeError, a wrong value an AssertionError or anything else
        words = brief(str(error)) or type(error).__name__
        raise RlifError(f"task.options: {config.dataset} does not take them ({words})") from error
