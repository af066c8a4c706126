"""Baselines of evaluated models: what their answers are worth without training (`rlif.analysis.baselines`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rlif.analysis.baselines import BASELINES, GradedSamples, baselines, uniform
from rlif.evals.metrics import AnswerTable
from rlif.evals.passes import is_main, place
from rlif.evals.store import Answers, answered, read_answers
from rlif.grading.voting import ballots
from rlif.signals import SIGNALS
from rlif.types import TokenSignals

PerProblem = Mapping[str, Float[np.ndarray, " problem"]]


def graded_samples(table: AnswerTable) -> GradedSamples:
    """Answers as baselines look at them; a signal that is known of none is left out."""
    rows = len(table.lengths)
    # Scores are linear in the signals, so that an answer's mean score is the score of its mean signals.
    means = TokenSignals(
        *(torch.from_numpy(table.means.get(name, np.full(rows, np.nan))) for name in TokenSignals._fields)
    )
    scores = {name: signal.score(means).numpy() for name, signal in SIGNALS.items()}
    return GradedSamples(
        right=table.right,
        formatted=table.formatted,
        votes=ballots(table.extracted),
        confidences={name: table.by_problem(values) for name, values in scores.items() if np.isfinite(values).any()},
        tokens=table.by_problem(table.lengths if table.drawn is None else table.drawn),
    )


def scores(main: AnswerTable, passes: Mapping[str, AnswerTable]) -> dict[str, Any]:
    """``results[].baselines``: what ``main`` gives for free, and the answers of the passes, by name; of the problems
    that have a ground truth, nothing where none has."""
    main, passes = main.with_labels(), {name: table.with_labels() for name, table in passes.items()}
    if not main.texts:
        return {}
    samples = graded_samples(main)
    found = baselines(samples, **{name: graded_samples(table) for name, table in passes.items()})
    kept = {name.partition("/")[0] for name in _free(samples, main, passes)} | set(passes)
    return {name: score for name, score in found.items() if name in kept}


def of_each_problem(main: AnswerTable, passes: Mapping[str, AnswerTable]) -> dict[str, PerProblem]:
    """The same baselines for a comparison, by their names in `rlif.analysis.baselines.BASELINES` or of passes: the
    chance that a problem's answer is right, and that it is right and formatted; NaN without a ground truth."""
    samples = graded_samples(main)
    chances = {name: (samples, BASELINES[name].choose(samples)) for name in _free(samples, main, passes)}
    others = {name: graded_samples(table) for name, table in passes.items()}
    chances |= {name: (other, uniform(other)) for name, other in others.items()}
    return {
        name: {
            "right": main.where_labelled((chance * of.right).sum(axis=1)),
            "right_and_formatted": main.where_labelled((chance * (of.right & of.formatted)).sum(axis=1)),
        }
        for name, (of, chance) in chances.items()
    }


def _free(samples: GradedSamples, main: AnswerTable, passes: Mapping[str, AnswerTable]) -> list[str]:
    """The baselines that answers give for free: a single one neither votes nor is chosen among others, and a greedy one
    is not sampled."""
    return [
        name
        for name, one in BASELINES.items()
        if set(one.signals) <= set(samples.confidences)
        and (one.one or main.samples > 1)
        and not (name == "sampled" and passes.get("greedy") is main)
    ]


def read_passes(
    folder: Path, task: str, main: Answers, protocol: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]
) -> dict[str, AnswerTable]:
    """The answers of the passes that were ``asked`` (name to protocol), as far as they are finished.

    Args:
        folder: the model's.
        main: what the evaluation's own sampling answered, and its ``protocol``: a pass that asks the same is the same.

    Raises `RlifError` for damaged answers.
    """
    found = {}
    for name, description in asked.items():
        if is_main(description, protocol):
            found[name] = main.table
            continue
        have = answered(folder / place(task, name))
        if all(len(have.get(problem, ())) == description["samples"] for problem in main.ids):
            found[name] = read_answers(folder / place(task, name)).table
    return found
