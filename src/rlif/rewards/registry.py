"""Rewards, and the advantages GRPO makes of them.

A reward is a function ``(RewardInputs, RewardConfig) -> (row,)`` in `REWARDS`; higher is better, detached. Internal
rewards read the signals recorded while sampling and never see a label; `verifiable` is the supervised baseline; the
rest are the controls without which no gain may be credited to a signal (arXiv 2506.10947).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlif.config import AdvantageConfig, RewardConfig
from rlif.errors import RlifError, nearest
from rlif.rollout.sampling import Key, uniforms
from rlif.signals import REDUCERS, SIGNALS, Signal
from rlif.types import Rollouts, Scored, Verdict


@dataclass(frozen=True)
class RewardInputs:
    """What a reward may look at: the completions, the grader's verdicts on them, and the key of their randomness."""

    rollouts: Rollouts
    verdicts: tuple[Verdict, ...]
    key: Key


@dataclass(frozen=True)
class Reward:
    """An entry of `REWARDS`. ``uses_labels``: whether ground truth enters, so that no run can claim otherwise."""

    name: str
    meaning: str
    citation: str
    uses_labels: bool
    function: Callable[[RewardInputs, RewardConfig], Tensor]


def _internal(signal: Signal) -> Reward:
    def function(inputs: RewardInputs, config: RewardConfig) -> Tensor:
        return REDUCERS[config.reduce](signal.score(inputs.rollouts.signals), inputs.rollouts.mask)

    return Reward(signal.name, f"{signal.formula}, reduced over the completion", signal.citation, False, function)


def _verifiable(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    # As everywhere in RLVR the answer must stand where the prompt asked for it.
    return torch.tensor([float(verdict.right is True and verdict.formatted) for verdict in inputs.verdicts])


def _right_any_format(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    return torch.tensor([float(verdict.right is True) for verdict in inputs.verdicts])


def _format_only(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    return torch.tensor([float(verdict.formatted) for verdict in inputs.verdicts])


def _random(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    key = Key(inputs.key.seed, f"{inputs.key.step}/random reward")  # not the stream the tokens were drawn from
    return torch.tensor(
        [
            float(uniforms(key, prompt.id, sample, 1)[0])
            for prompt in inputs.rollouts.prompts
            for sample in range(inputs.rollouts.group_size)
        ]
    )


def _length(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    return -inputs.rollouts.lengths.float()


def _negated(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    return -REWARDS[config.of].function(inputs, config)


REWARDS: Mapping[str, Reward] = {
    reward.name: reward
    for reward in (
        *(_internal(signal) for signal in SIGNALS.values()),
        Reward("verifiable", "1 if the answer is right and formatted", "RLVR, arXiv 2402.03300", True, _verifiable),
        Reward("right_any_format", "1 if the answer is right in any form", "project", True, _right_any_format),
        Reward("format_only", "1 if an answer stands in the asked form", "arXiv 2506.10947", False, _format_only),
        Reward("random", "a uniform number in [0, 1)", "arXiv 2506.10947", False, _random),
        Reward("length", "minus the completion's length in tokens: shorter is better", "project", False, _length),
        Reward("negated", "minus the reward named by `of`", "project", False, _negated),
    )
}


def check_rewards(configs: Sequence[RewardConfig]) -> None:
    """Raise `RlifError` for a reward name that is not in `REWARDS`, naming its nearest neighbour."""
    for config in configs:
        _check_name("name", config.name, list(REWARDS))
        if config.name == "negated":
            _check_name("of", config.of, [name for name in REWARDS if name != "negated"])


def needs_labels(configs: Sequence[RewardConfig]) -> list[str]:
    """The names of the rewards that look at ground truth, `negated` taken for what it turns round."""
    names = [config.of if config.name == "negated" else config.name for config in configs]
    return [name for name in names if REWARDS[name].uses_labels]


def _check_name(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        meant = nearest(name, known)
        raise RlifError(f"reward.{key}: no reward {name!r}; did you mean {meant}? (there are {', '.join(known)})")


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
        values = REWARDS[entry.name].function(inputs, entry).float()
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            where = f"a completion of prompt {rollouts.row_prompts[row].id}"
            raise FloatingPointError(f"reward {entry.name} of {where} is {values[row].item()}")
        named[entry.name if entry.name not in named else f"{entry.name}_{place}"] = values
        if config.cap_incomplete:
            values = cap_incomplete(values, incomplete, rollouts.group_size)
        total += entry.weight * advantages(values, rollouts.group_size, std=config.std, std_floor=config.std_floor)
    return Scored(rollouts, verdicts, named, total)


def advantages(
    rewards: Float[Tensor, " row"], group_size: int, *, std: bool = True, std_floor: float = 1e-4
) -> Float[Tensor, " row"]:
    """A_i = (r_i - mean of its group) / max(std of its group, std_floor); centred only if ``std`` is False.

    The standard deviation is the unbiased one. The floor keeps a group that agrees to within rounding from turning
    noise into full-size advantages. Raises ValueError for groups of one with ``std``. Source: arXiv 2402.03300 eq. 4;
    without std: Dr. GRPO, arXiv 2503.20783; the floor: project.
    """
    if std and group_size == 1:
        raise ValueError("a group of one has no standard deviation; use groups of at least 2, or std=False")
    groups = rewards.double().view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if std:
        centred = centred / groups.std(dim=1, keepdim=True).clamp_min(std_floor)
    # Identical rewards leave rounding behind in the mean; with a floor of 0 it would be divided by itself.
    centred = centred.masked_fill((groups == groups[:, :1]).all(dim=1, keepdim=True), 0.0)
    return centred.view(-1).to(rewards.dtype)


def cap_incomplete(
    rewards: Float[Tensor, " row"], incomplete: Bool[Tensor, " row"], group_size: int
) -> Float[Tensor, " row"]:
    """Lower the rewards of truncated or empty completions to at most the least of the complete ones in their group.

    A group without a complete one teaches nothing: all its rewards become its least. Source: project.
    """
    groups, cut = rewards.view(-1, group_size), incomplete.view(-1, group_size)
    least_complete = groups.masked_fill(cut, torch.inf).amin(dim=1, keepdim=True)
    cap = torch.minimum(least_complete, groups.amax(dim=1, keepdim=True))
    none_complete = cut.all(dim=1, keepdim=True)
    cap = torch.where(none_complete, groups.amin(dim=1, keepdim=True), cap)
    return torch.where(cut, torch.minimum(groups, cap), groups).view(-1)
