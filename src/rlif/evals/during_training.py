"""Evaluation during training: the same problems every time, every number with its n and its standard error.

The numbers are those of `rlif eval` (`rlif.evals.metrics`), as many of them as the run log keeps; and beside them what
the same policy reaches without training it: its greedy answers, and the majority of the sampled ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rlif.analysis.baselines import BASELINES, evaluate_baseline
from rlif.analysis.estimators import Estimate, pass_at_k
from rlif.evals.baselines import graded_samples
from rlif.evals.metrics import AnswerTable, headline
from rlif.rewards.score import grade
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.runs.metric_keys import METRICS
from rlif.tasks.base import Task
from rlif.types import Prompt, Rollouts, Sampling, Verdict, labelled

MAJORITY_FROM = 4
"""Samples a problem: of fewer the commonest answer is hardly more than any of them."""
MOST_ATTEMPTS = 8
"""k of eval/pass_at_k, or as many samples as there are."""
_GREEDY = ("right", "right_and_formatted", "formatted", "length")


@dataclass(frozen=True)
class Evaluation:
    """Completions, verdicts, and the numbers made of them (keys as in docs/metrics.md, without ``eval/``)."""

    rollouts: Rollouts
    verdicts: tuple[Verdict, ...]
    metrics: dict[str, float]


def evaluate_policy(
    engine: Engine,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    sampling: Sampling,
    key: Key,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Sample ``samples`` completions for each prompt, grade them, and summarise."""
    rollouts = engine.sample(prompts, group_size=samples, sampling=sampling, key=key, progress=progress)
    verdicts = grade(task, rollouts)
    return Evaluation(rollouts, verdicts, summarise(rollouts, verdicts))


def summarise(rollouts: Rollouts, verdicts: tuple[Verdict, ...]) -> dict[str, float]:
    """The numbers of an evaluation; of several samples pass@k too, from `MAJORITY_FROM` on the majority vote's.

    Standard errors are clustered by problem.
    """
    answers = answer_table(rollouts, verdicts)
    numbers, judged = headline(answers), answers.with_labels()
    if 0 < len(judged.texts) < len(answers.texts):
        numbers["labelled"] = float(len(judged.texts))
    if rollouts.group_size > 1 and judged.texts:
        attempts = min(rollouts.group_size, MOST_ATTEMPTS)
        numbers |= _with_error("pass_at_k", pass_at_k(judged.right, attempts))
    if rollouts.group_size >= MAJORITY_FROM and judged.texts:
        vote = evaluate_baseline(BASELINES["majority"], graded_samples(judged))
        numbers |= _with_error("majority_right", vote.right)
        numbers |= _with_error("majority_right_and_formatted", vote.right_and_formatted)
    return _logged(numbers)


def greedy_metrics(greedy: Evaluation) -> dict[str, float]:
    """What the run log keeps of an evaluation at temperature 0: ``greedy_right`` and so on."""
    numbers = headline(answer_table(greedy.rollouts, greedy.verdicts))
    kept = [name for key in _GREEDY for name in (key, f"{key}_stderr")]
    return _logged({f"greedy_{name}": numbers[name] for name in kept})


def _with_error(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_stderr": estimate.stderr}


def _logged(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if f"eval/{name}" in METRICS}


def answer_table(rollouts: Rollouts, verdicts: tuple[Verdict, ...]) -> AnswerTable:
    """Rollouts as the columns that numbers are made of (without the profile along the answer)."""
    lengths = _array(rollouts.lengths)
    means = {name: _array(values.sum(dim=1)) / lengths for name, values in rollouts.signals._asdict().items()}
    known = np.array(labelled([prompt.problem.answer for prompt in rollouts.prompts], verdicts))
    return AnswerTable(
        rollouts.group_size, rollouts.texts, verdicts, rollouts.stop_reasons, lengths, means, {}, labelled=known
    )


def _array(values: Tensor) -> Float[np.ndarray, " row"]:
    return values.cpu().double().numpy()
