"""Graded answers as columns, and the numbers made of them: the same for a training run's evaluation and `rlif eval`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from rlif.analysis import estimators
from rlif.analysis import text as analysis
from rlif.analysis.confidence import confidence
from rlif.analysis.estimators import Estimate
from rlif.types import StopReason, Verdict

DIRECTIONS: Mapping[str, float] = {"logprob": 1.0, "entropy": -1.0, "self_certainty": 1.0}
"""Signals, and the sign that turns each into confidence."""


@dataclass(frozen=True)
class AnswerTable:
    """One model's graded answers to one task: rows as (problem, sample), the samples of a problem adjacent.

    ``means`` are each answer's mean signals (nats per token at temperature 1), ``tenths`` the same over the tenths of
    the answer (NaN where a tenth has no token). A signal is NaN in an answer of which the back-end does not know it (in
    an empty one, say), and left out if it knows it of none. ``drawn`` are the tokens that an answer cost where that is
    not its length; None: it is. ``labelled`` are the problems that can be judged; None: all.
    """

    samples: int
    texts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    stops: tuple[StopReason, ...]
    lengths: Float[np.ndarray, " row"]
    means: Mapping[str, Float[np.ndarray, " row"]]
    tenths: Mapping[str, Float[np.ndarray, "row tenth"]]
    drawn: Float[np.ndarray, " row"] | None = None
    labelled: Bool[np.ndarray, " problem"] | None = None

    def with_labels(self) -> "AnswerTable":
        """The problems that can be judged, and their answers."""
        if self.labelled is None or bool(self.labelled.all()):
            return self
        rows = np.flatnonzero(np.repeat(self.labelled, self.samples))
        return replace(
            self,
            texts=tuple(self.texts[i] for i in rows),
            verdicts=tuple(self.verdicts[i] for i in rows),
            stops=tuple(self.stops[i] for i in rows),
            lengths=self.lengths[rows],
            means={name: values[rows] for name, values in self.means.items()},
            tenths={name: values[rows] for name, values in self.tenths.items()},
            drawn=None if self.drawn is None else self.drawn[rows],
            labelled=None,
        )

    def where_labelled(self, values: Float[np.ndarray, " problem"]) -> Float[np.ndarray, " problem"]:
        """A number of each problem that needs a ground truth: NaN where there is none."""
        return values if self.labelled is None else np.where(self.labelled, values, math.nan)

    @property
    def right(self) -> Bool[np.ndarray, "problem sample"]:
        """Undecided answers are not right."""
        return self.by_problem(np.array([verdict.right is True for verdict in self.verdicts], dtype=bool))

    @property
    def formatted(self) -> Bool[np.ndarray, "problem sample"]:
        return self.by_problem(np.array([verdict.formatted for verdict in self.verdicts], dtype=bool))

    @property
    def extracted(self) -> list[tuple[str | None, ...]]:
        """Each problem's answers as they were read."""
        read = [verdict.extracted for verdict in self.verdicts]
        return [tuple(read[i : i + self.samples]) for i in range(0, len(read), self.samples)]

    def by_problem(self, values: Any) -> np.ndarray:
        """One value per row as (problem, sample)."""
        return np.asarray(values).reshape(-1, self.samples)


def headline(answers: AnswerTable) -> dict[str, float]:
    """The numbers of an evaluation by name, each with its error under ``<name>_stderr``; see docs/evaluation.md.

    What needs a ground truth is of the problems that have one, NaN where none has.
    """
    by_problem, judged = answers.by_problem, answers.with_labels()
    lengths, right, formatted = by_problem(answers.lengths), judged.right, answers.formatted
    words = by_problem([float(analysis.count_transitional(text)) for text in answers.texts])
    found: dict[str, Estimate] = {
        "right": estimators.mean(right.astype(np.float64)),
        "formatted": estimators.mean(formatted.astype(np.float64)),
        "right_and_formatted": estimators.mean((right & judged.formatted).astype(np.float64)),
        "undecided": estimators.mean(by_problem([float(verdict.right is None) for verdict in judged.verdicts])),
        **{name: _per_token(by_problem(means), lengths) for name, means in answers.means.items()},
        "length": estimators.mean(lengths),
        "truncated": estimators.mean(by_problem([float(stop == "length") for stop in answers.stops])),
        "self_agreement": estimators.self_agreement(answers.extracted),
        "transitional_rate": estimators.ratio(words, lengths),
        "transitional_share": estimators.mean((words > 0).astype(np.float64)),
        "transitional_per_answer": estimators.mean(words),
        "repeated_ngrams": estimators.mean(by_problem([analysis.repeated_ngrams(text) for text in answers.texts])),
        "compression_ratio": estimators.mean(by_problem([analysis.compression_ratio(text) for text in answers.texts])),
    }
    values: dict[str, float] = {"n": float(len(answers.texts)), "problems": float(len(lengths))}
    for name, estimate in found.items():
        values |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
    return values


def _per_token(means: Float[np.ndarray, "problem sample"], lengths: Float[np.ndarray, "problem sample"]) -> Estimate:
    """The mean of a signal over the tokens of all answers in which it is known."""
    known = np.isfinite(means)
    return estimators.ratio(np.where(known, means, 0.0) * lengths, np.where(known, lengths, 0.0))


def self_agreement(extracted: Sequence[str | None], samples: int) -> Estimate:
    """How far the answers to a problem agree, as they were read, ``samples`` to each (`estimators.self_agreement`)."""
    return estimators.self_agreement([extracted[i : i + samples] for i in range(0, len(extracted), samples)])


def counts(answers: AnswerTable) -> dict[str, int]:
    """The paper's table 2: answers right or wrong, by whether they are formatted; undecided ones apart. Those to
    problems without a ground truth are counted by themselves, if there are any."""
    judged = answers.with_labels()
    keys = [(verdict.right, verdict.formatted) for verdict in judged.verdicts]
    unlabelled = len(answers.verdicts) - len(keys)
    return {
        "right_formatted": keys.count((True, True)),
        "right_unformatted": keys.count((True, False)),
        "wrong_formatted": keys.count((False, True)),
        "wrong_unformatted": keys.count((False, False)),
        "undecided": sum(right is None for right, _ in keys),
        **({"unlabelled": unlabelled} if unlabelled else {}),
    }


def details(answers: AnswerTable) -> dict[str, Any]:
    """Everything else that results.json holds: pass@k, maj@k, counts, confidence, and the profile along the answer."""
    ks = sorted({2**i for i in range(answers.samples.bit_length())} | {answers.samples})
    decided = np.array([verdict.right is not None for verdict in answers.verdicts])
    right = answers.right.reshape(-1)
    problem = np.arange(len(right)) // answers.samples
    judged = answers.with_labels()
    return {
        "pass_at": {str(k): estimators.pass_at_k(judged.right, k)._asdict() for k in ks},
        "maj_at": {str(answers.samples): estimators.maj_at_k(judged.extracted, judged.right)._asdict()},
        "counts": counts(answers),
        "stops": {reason: answers.stops.count(reason) for reason in ("eos", "stop_string", "length")},
        "confidence": {
            name: _confidence(DIRECTIONS[name] * means, right, problem, decided & np.isfinite(means))
            for name, means in answers.means.items()
        },
        "course": profile(answers),  # the format's word for it; the figure's file, course-TASK.png, has it too
    }


def _confidence(values: np.ndarray, right: np.ndarray, problem: np.ndarray, usable: np.ndarray) -> dict[str, Any]:
    """Of the ``known`` answers that are decided and whose signal is there."""
    found = confidence(values[usable], right[usable], problem[usable])._asdict()
    numbers = {key: value._asdict() if isinstance(value, Estimate) else value for key, value in found.items()}
    return {"known": int(usable.sum()), **numbers}


def profile(answers: AnswerTable) -> dict[str, Any]:
    """Signals and transitional words along the answer (the paper's figure 1), for all, right and wrong answers.

    Ten numbers each, from the answer's beginning to its end: means over answers, each weighing the same, with standard
    errors clustered by problem.
    """
    along = dict(answers.tenths)
    along["transitional"] = np.stack([analysis.transitional_tenths(text) for text in answers.texts])
    problem = np.arange(len(answers.texts)) // answers.samples
    groups = {
        "all": np.ones(len(answers.texts), dtype=bool),
        "right": np.array([verdict.right is True for verdict in answers.verdicts]),
        "wrong": np.array([verdict.right is False for verdict in answers.verdicts]),
    }
    return {
        name: {group: _mean_tenths(values[rows], problem[rows]) for group, rows in groups.items()}
        for name, values in along.items()
    }


def _mean_tenths(values: Float[np.ndarray, "row tenth"], problem: np.ndarray) -> dict[str, list[float]]:
    known = np.isfinite(values)
    found = [_mean_of(values[known[:, t], t], problem[known[:, t]]) for t in range(values.shape[1])]
    return {"value": [one.value for one in found], "stderr": [one.stderr for one in found]}


def _mean_of(values: np.ndarray, problem: np.ndarray) -> Estimate:
    """The mean of rows when problems have different numbers of them: a ratio, clustered by problem."""
    if not len(values):
        return Estimate(math.nan, math.nan)
    _, where = np.unique(problem, return_inverse=True)
    sums, sizes = np.bincount(where, weights=values), np.bincount(where).astype(np.float64)
    return estimators.ratio(sums[:, None], sizes[:, None])
