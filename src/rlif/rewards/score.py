"""Rollouts with verdicts, rewards and advantages."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.config import AdvantageConfig, RewardConfig
from rlif.errors import RlifError
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
    ``consensus`` is that of `RewardInputs`. A reward that is not finite raises, naming the completion's prompt:
    FloatingPointError if the policy's own numbers are not finite there, else `RlifError`.
    """
    inputs = RewardInputs(rollouts, verdicts, key, consensus)
    cut = incomplete(rollouts)
    named: dict[str, Tensor] = {}
    total = torch.zeros(rollouts.n_rows)
    for name, entry in zip(logged_names(mix), mix, strict=True):
        values = find_reward(entry, rewards).function(inputs, entry).float()
        if not bool(values.isfinite().all()):
            raise _not_finite(entry.name, values, rollouts)
        named[name] = values
        if config.cap_incomplete:
            values = cap_incomplete(values, cut, rollouts.group_size)
        total += entry.weight * advantages(values, rollouts.group_size, std=config.std, std_floor=config.std_floor)
    if config.semantic_entropy is not None:
        total = total.masked_fill(outside(rollouts, verdicts, config.semantic_entropy), 0.0)
    return Scored(rollouts, verdicts, named, total)


def _not_finite(name: str, values: Float[Tensor, " row"], rollouts: Rollouts) -> Exception:
    row = int((~values.isfinite()).nonzero()[0])
    said = f"reward {name} of a completion of prompt {rollouts.row_prompts[row].id} is {values[row].item()}"
    numbers = torch.stack([rollouts.sampler_logprobs[row], *(signal[row] for signal in rollouts.signals)])
    if not bool(numbers[:, rollouts.mask[row]].isfinite().all()):
        return FloatingPointError(said)
    return RlifError(f"{said}, though the policy's numbers are finite; mend the reward: it gives finite numbers only")


def logged_names(mix: Sequence[RewardConfig]) -> list[str]:
    """What each reward of a mix is called in the log: its name; where that is taken, with its place as a suffix."""
    names: list[str] = []
    for place, entry in enumerate(mix):
        names.append(entry.name if entry.name not in names else f"{entry.name}_{place}")
    return names


def grade(task: Task, rollouts: Rollouts) -> tuple[Verdict, ...]:
    """The task's verdict on every completion."""
    return grade_rows(task, rollouts, range(rollouts.n_rows))


def grade_rows(task: Task, rollouts: Rollouts, rows: Sequence[int]) -> tuple[Verdict, ...]:
    """The task's verdict on the completions of some rows."""
    prompts = rollouts.row_prompts
    return tuple(task.grade(rollouts.texts[row], prompts[row].problem) for row in rows)
