"""Evaluation during training: the same problems every time, every number with its n and its standard error.

The numbers are those of `rlif eval` (`rlif.evals.metrics`), as many of them as the run log keeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rlif.evals.metrics import AnswerTable, headline
from rlif.rewards.score import grade
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.runs.metric_keys import METRICS
from rlif.tasks.base import Task
from rlif.types import Prompt, Rollouts, Sampling, Verdict


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
    """The numbers of an evaluation. Standard errors are clustered by problem."""
    numbers = headline(answer_table(rollouts, verdicts))
    return {name: value for name, value in numbers.items() if f"eval/{name}" in METRICS}


def answer_table(rollouts: Rollouts, verdicts: tuple[Verdict, ...]) -> AnswerTable:
    """Rollouts as the columns that numbers are made of (without the profile along the answer)."""
    lengths = _array(rollouts.lengths)
    means = {name: _array(values.sum(dim=1)) / lengths for name, values in rollouts.signals._asdict().items()}
    return AnswerTable(rollouts.group_size, rollouts.texts, verdicts, rollouts.stop_reasons, lengths, means, {})


def _array(values: Tensor) -> Float[np.ndarray, " row"]:
    return values.cpu().double().numpy()
