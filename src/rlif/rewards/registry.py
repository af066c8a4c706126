"""Rewards by name: the table `REWARDS`, and what each needs.

A reward is a function ``(RewardInputs, RewardConfig) -> (row,)`` in `REWARDS`; higher is better, detached. Internal
rewards read the signals recorded while sampling and never see a label; `verifiable` is the supervised baseline; the
rest are the controls without which no gain may be credited to a signal (arXiv 2506.10947).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from rlif.config import RewardConfig
from rlif.errors import RlifError, nearest
from rlif.rewards.base import Reward, RewardInputs
from rlif.rewards.builtin import _format_only, _internal, _length, _random, _right_any_format, _verifiable
from rlif.signals import SIGNALS


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
