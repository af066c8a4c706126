"""A few labelled problems, looked at beside the probe: the one number of a look that has seen a label.

It is told apart (``probe/labelled_right`` and so on). No gradient reads it, and no guard: 16 to 64 problems have
standard errors of .06 to .12, and several samples of each do not make them more. A run may choose its checkpoint by it
(`rlif.monitoring.guards.best_by_labels`), and then says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlif.analysis.estimators import over_problems
from rlif.rewards.score import grade
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.tasks.base import Task
from rlif.types import Prompt, Sampling

LABELLED_KEY = "probe/labelled"
"""The step of the `Key` with which every look draws: common random numbers, others than the probe's."""


@dataclass(frozen=True)
class LabelledProbe:
    """Labelled prompts, and how they are sampled at each look: ``samples`` completions of each, as in training."""

    engine: Engine
    task: Task
    prompts: Sequence[Prompt]
    sampling: Sampling
    samples: int = 4
    seed: int = 0

    def measure(self, progress: Callable[[int], None] | None = None) -> dict[str, float]:
        """Shares right, and right and formatted, with standard errors over problems; {} without prompts.

        A verdict that is undecided counts as not right.
        """
        if not self.prompts:
            return {}
        key = Key(self.seed, LABELLED_KEY)
        rollouts = self.engine.sample(
            self.prompts, group_size=self.samples, sampling=self.sampling, key=key, progress=progress
        )
        verdicts = grade(self.task, rollouts)
        shares = {
            "labelled_right": [one.right is True for one in verdicts],
            "labelled_right_and_formatted": [one.right is True and one.formatted for one in verdicts],
        }
        found: dict[str, float] = {}
        for name, values in shares.items():
            estimate = over_problems(np.array(values, dtype=np.float64).reshape(-1, self.samples).mean(axis=1))
            found |= {f"probe/{name}": estimate.value, f"probe/{name}/stderr": estimate.stderr}
        return {name: value for name, value in found.items() if np.isfinite(value)}
