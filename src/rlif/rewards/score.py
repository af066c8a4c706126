"""Rollouts with verdicts, rewards and advantages."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlif.config import AdvantageConfig, RewardConfig
from rlif.rewards.advantages import advantages, cap_incomplete
from rlif.rewards.base import RewardInputs
from rlif.rewards.registry import find_reward
from rlif.rng import Key
from rlif.tasks.base import Task
from rlif.types import Rollouts, Scored, Verdict


def score(
    rollouts: Rollouts,
    verdicts: tuple[Verdict, ...],
    rewards: Sequence[RewardConfig],
    config: AdvantageConfig,
    key: Key,
) -> Scored:
    """Each reward, normalised within its groups on its own, then weighted and summed (arXiv 2605.22620).

    A reward that occurs twice (two reductions, say) gets its place in the list as a suffix. Raises FloatingPointError
    for a reward that is not finite, naming the completion's prompt.
    """
    inputs = RewardInputs(rollouts, verdicts, key)
    endings = zip(rollouts.stop_reasons, rollouts.texts, strict=True)
    incomplete = torch.tensor([reason == "length" or not text.strip() for reason, text in endings])
    named: dict[str, Tensor] = {}
    total = torch.zeros(rollouts.n_rows)
    for place, entry in enumerate(rewards):
        values = find_reward(entry).function(inputs, entry).float()
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            where = f"a completion of prompt {rollouts.row_prompts[row].id}"
            raise FloatingPointError(f"reward {entry.name} of {where} is {values[row].item()}")
        named[entry.name if entry.name not in named else f"{entry.name}_{place}"] = values
        if config.cap_incomplete:
            values = cap_incomplete(values, incomplete, rollouts.group_size)
        total += entry.weight * advantages(values, rollouts.group_size, std=config.std, std_floor=config.std_floor)
    return Scored(rollouts, verdicts, named, total)


def grade(task: Task, rollouts: Rollouts) -> tuple[Verdict, ...]:
    """The task's verdict on every completion."""
    pairs = zip(rollouts.texts, rollouts.row_prompts, strict=True)
    return tuple(task.grade(text, prompt.problem) for text, prompt in pairs)
