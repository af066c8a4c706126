"""What a reward is given, and what it is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlif.config import RewardConfig
from rlif.rng import Key
from rlif.types import Rollouts, Verdict


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
