"""Rollouts with verdicts, rewards and advantages."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from rlif.config import AdvantageConfig, RewardConfig
from rlif.rewards.advantages import advantages, cap_incomplete
from rlif.rewards.agreement import outside
from rlif.rewards.base import Reward, RewardInputs, incomplete
from rlif.rewards.registry import REWARDS, find_reward
from rlif.rng import Key
from rlif.tasks.base import Task
from rlif.types import Rollouts, Scored, Verdict


def score(
    rollouts: Rollouts,
    verdicts: tuple[Verdict, ...],
    mix: Sequence[RewardConfig],
    config: AdvantageConfig,
    key: Key,
    *,
    rewards: Mapping[str, Reward] = REWARDS,
    consensus: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Scored:
    """Each reward of the mix, normalised within its groups on its own, then weighted and summed (arXiv 2605.22620).

    Prompts outside the bounds of ``config.semantic_entropy`` get advantage 0. ``rewards`` has the rewards by name,
    ``consensus`` is that of `RewardInputs`. Raises FloatingPointError for a reward that is not finite, naming the
    completion's prompt.
    """
    inputs = RewardInputs(rollouts, verdicts, key, consensus)
    cut = incomplete(rollouts)
    named: dict[str, Tensor] = {}
    total = torch.zeros(rollouts.n_rows)
    for name, entry in zip(logged_names(mix), mix, strict=True):
        values = find_reward(entry, rewards).function(inputs, entry).float()
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            where = f"a completion of prompt {rollouts.row_prompts[row].id}"
            raise FloatingPointError(f"reward {entry.name} of {where} is {values[row].item()}")
        named[name] = values
        if config.cap_incomplete:
            values = cap_incomplete(values, cut, rollouts.group_size)
        total += entry.weight * advantages(values, rollouts.group_size, std=config.std, std_floor=config.std_floor)
    if config.semantic_entropy is not None:
        total = total.masked_fill(outside(rollouts, verdicts, config.semantic_entropy), 0.0)
    return Scored(rollouts, verdicts, named, total)


def logged_names(mix: Sequence[RewardConfig]) -> list[str]:
    """What each reward of a mix is called in the log: its name; where that is taken, with its place as a suffix."""
    names: list[str] = []
    for place, entry in enumerate(mix):
        names.append(entry.name if entry.name not in names else f"{entry.name}_{place}")
    return names


def grade(task: Task, rollouts: Rollouts) -> tuple[Verdict, ...]:
    """The task's verdict on every completion."""
    pairs = zip(rollouts.texts, rollouts.row_prompts, strict=True)
    return tuple(task.grade(text, prompt.problem) for text, prompt in pairs)
