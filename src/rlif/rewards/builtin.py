"""The rewards that ship with rlif, one small function each."""

import torch
from jaxtyping import Float
from torch import Tensor

from rlif.config import RewardConfig
from rlif.rewards.base import Reward, RewardInputs
from rlif.rng import Key, uniforms
from rlif.signals import REDUCERS, Signal


def _internal(signal: Signal) -> Reward:
    def function(inputs: RewardInputs, config: RewardConfig) -> Tensor:
        return REDUCERS[config.reduce](signal.score(inputs.rollouts.signals), inputs.rollouts.mask)

    return Reward(
        signal.name, f"{signal.formula}, reduced over the completion", signal.citation, False, function, internal=True
    )


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


def _negated(values: Float[Tensor, " row"], inputs: RewardInputs) -> Float[Tensor, " row"]:
    return -values


def _formatted(values: Float[Tensor, " row"], inputs: RewardInputs) -> Float[Tensor, " row"]:
    formatted = torch.tensor([verdict.formatted for verdict in inputs.verdicts])
    groups = values.view(-1, inputs.rollouts.group_size)
    nothing = groups.amin(dim=1).clamp(max=0.0)  # 0 would be the best of minus the entropies
    return torch.where(formatted, values, nothing.repeat_interleave(inputs.rollouts.group_size))
