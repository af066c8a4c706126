"""A study's finished runs as courses: what happened to each from before training to its end, and statistics on them.

Seeds are the sample: runs of one seed are averaged, and an interval is Student's t over the seeds.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from statistics import fmean
from typing import Any

EARLY = 1 / 3
"""Of a run's steps: "at first". The paper's runs peak near step 20 of 80 (as reported)."""

SCORE = "eval/right_and_formatted"
Seeds = Mapping[int, float]
"""Seed → a number of its runs."""
Parts = Mapping[str, Seeds]
"""What has to show a claim (a signal, a pair of them, a setting) → its number for each seed."""


@dataclass(frozen=True)
class Course:
    """A finished run: where it stands in the grid, and its evaluations in order of steps, the first of step 0."""

    model: str
    model_kind: str
    reward: str
    reward_kind: str
    seed: int
    setting: str
    lines: Sequence[Mapping[str, Any]]

    def value(self, line: Mapping[str, Any], key: str) -> float:
        """NaN where it was not measured."""
        value = line.get(key)
        return math.nan if value is None else float(value)

    def start(self, key: str) -> float:
        """Before training."""
        return self.value(self.lines[0], key)

    def last_gain(self, key: str) -> float:
        """In the end, less before training."""
        return self.value(self.lines[-1], key) - self.start(key)

    def early(self, key: str) -> float:
        """Mean over the early evaluations that measured it (of the first after step 0 if there is none so early)."""
        return mean_of_finite(self.value(line, key) for line in self.early_lines)

    def early_gain(self, key: str) -> float:
        """Early, less before training."""
        return self.early(key) - self.start(key)

    @property
    def early_lines(self) -> Sequence[Mapping[str, Any]]:
        until = EARLY * self.lines[-1]["step"]
        return [line for line in self.lines[1:] if line["step"] <= until] or self.lines[1:2]


_KNOWN_TEXTS = {"grid", "cell", "model", "reward", "model_kind", "reward_kind", "status", "error"}


def scored(row: Mapping[str, Any]) -> bool:
    """Whether a row says how many answers are right: not where nothing was evaluated, nor without labels."""
    return row.get(SCORE) is not None and math.isfinite(row[SCORE])


def courses_of(rows: Iterable[Mapping[str, Any]]) -> list[Course]:
    """The finished runs that were evaluated before training and later, each with its rows in order of steps."""
    by_run: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "finished" and scored(row):
            extra = [value for key, value in row.items() if isinstance(value, str) and key not in _KNOWN_TEXTS]
            key = (row["model"], row["model_kind"], row["reward"], row["reward_kind"], row["seed"], ", ".join(extra))
            by_run.setdefault(key, []).append(row)
    ordered = {key: sorted(lines, key=lambda line: int(line["step"])) for key, lines in by_run.items()}
    return [Course(*(*key, lines)) for key, lines in ordered.items() if len(lines) > 1 and lines[0]["step"] == 0]


def by_seed(courses: Iterable[Course], number: Callable[[Course], float]) -> Seeds:
    """The mean over the runs of each seed that have the number; NaN if none has."""
    found: dict[int, list[float]] = {}
    for course in courses:
        found.setdefault(course.seed, []).append(number(course))
    return {seed: mean_of_finite(values) for seed, values in found.items()}


def mean_of_finite(values: Iterable[float]) -> float:
    """What was not measured (NaN) does not take with it what was; NaN if nothing was."""
    found = [value for value in values if math.isfinite(value)]
    return fmean(found) if found else math.nan


def internal(courses: Sequence[Course], kind: str) -> dict[str, list[Course]]:
    """The runs of models of a kind with internal rewards, by reward."""
    found: dict[str, list[Course]] = {}
    for course in courses:
        if course.model_kind == kind and course.reward_kind == "internal":
            found.setdefault(course.reward, []).append(course)
    return found


def each_signal(number: Callable[[Course], float], kind: str = "base") -> Callable[[Sequence[Course]], Parts]:
    """``number`` of the runs of a kind of model, for each internal reward."""
    return lambda courses: {signal: by_seed(runs, number) for signal, runs in internal(courses, kind).items()}


Signals = Mapping[str, Sequence[str]]
"""Kind of model → the internal rewards that a grid has for it, whether their runs are finished or not."""


Needs = Callable[[Sequence[Course], Signals], Sequence[str]]
"""Which parts have to have a number, so that a claim about all of them can be reproduced."""


def signals_of(rows: Iterable[Mapping[str, Any]]) -> Signals:
    """The internal rewards of a grid, from rows of any status."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row["reward_kind"] == "internal":
            found.setdefault(row["model_kind"], set()).add(row["reward"])
    return {kind: sorted(rewards) for kind, rewards in found.items()}


_MOST_EXACT, _DRAWS = 8, 20_000


def one_sided(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact permutation test of their rank correlation r: the share of all orders of ``b`` whose own is r or beyond.

    Beyond is above for a positive r and below for another. NaN if one of the two is constant. Above eight pairs, of
    20,000 orders drawn at random (and the order found).
    """
    from rlif.rng import keyed_random  # brings numpy

    if math.isnan(r := spearman(a, b)):
        return math.nan
    ranks, others = _ranks(a), _ranks(b)
    sign = 1.0 if r > 0.0 else -1.0
    draw = keyed_random("permutations")
    drawn = (draw.sample(others, len(others)) for _ in range(_DRAWS))
    orders = permutations(others) if len(others) <= _MOST_EXACT else chain([others], drawn)
    reached = sign * _dot(ranks, others)  # ranks are halves, so that sums of their products are exact
    return mean_of_finite(float(sign * _dot(ranks, order) >= reached) for order in orders)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, ties sharing their mean rank; NaN where one of the two is constant."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation; NaN where one of the two is constant."""
    da, db = ([value - fmean(each) for value in each] for each in (a, b))
    norm = math.sqrt(sum(x * x for x in da) * sum(x * x for x in db))
    return sum(x * y for x, y in zip(da, db, strict=True)) / norm if norm > 0.0 else math.nan
