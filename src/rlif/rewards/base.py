"""What a reward is given, and what it is."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlif.config import RewardConfig
from rlif.errors import RlifError, brief
from rlif.rng import Key
from rlif.types import Rollouts, Verdict
from rlif.utils.own_code import said


@dataclass(frozen=True)
class RewardInputs:
    """What a reward may look at: the completions, the grader's verdicts on them, and the key of their randomness.

    ``consensus`` holds, by id of the problem, the answers that a teacher settled on without a label: one, as many as
    tie, or none. It is there for rewards that say `Reward.reads_consensus`.

    >>> import rlif
    >>> def least_sure_token(inputs):  # a reward: one number a completion, higher is better
    ...     rollouts = inputs.rollouts
    ...     return -rollouts.signals.entropy.masked_fill(~rollouts.mask, 0.0).amax(dim=1)
    >>> rlif.register_reward("least_sure_token", least_sure_token, uses_labels=False) is least_sure_token
    True
    """

    rollouts: Rollouts
    verdicts: tuple[Verdict, ...]
    key: Key
    consensus: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))


def incomplete(rollouts: Rollouts) -> Bool[Tensor, " row"]:
    """Which completions were cut off at the length limit, or hold nothing but blanks."""
    endings = zip(rollouts.stop_reasons, rollouts.texts, strict=True)
    return torch.tensor([reason == "length" or not text.strip() for reason, text in endings])


@dataclass(frozen=True)
class Reward:
    """An entry of `REWARDS`. ``uses_labels``: whether ground truth enters, so that no run can claim otherwise.
    ``reads_consensus``: whether it reads `RewardInputs.consensus`, which a run then settles before its first step; with
    ``moving_teacher`` anew in each step, by a teacher whose weights follow the policy's.
    ``internal``: whether it is the model's feedback on itself, a signal or agreement of its answers; runs that are
    trained on nothing else are guarded unless their recipe says otherwise (docs/keep-the-gain.md).

    >>> import rlif
    >>> reward = rlif.REWARDS["verifiable"]
    >>> reward.meaning, reward.uses_labels
    ('1 if the answer is right and formatted', True)
    """

    name: str
    meaning: str
    citation: str
    uses_labels: bool
    function: Callable[[RewardInputs, RewardConfig], Float[Tensor, " row"]]
    reads_consensus: bool = False
    internal: bool = False
    moving_teacher: bool = False


@dataclass(frozen=True)
class Wrapper:
    """A reward made of another one, which the recipe names in ``of``; labels enter where they enter that one.

    ``internal``: whether feedback of the model on itself is that still when it is wrapped, see `Reward`.
    """

    name: str
    meaning: str
    citation: str
    transform: Callable[[Float[Tensor, " row"], RewardInputs], Float[Tensor, " row"]]
    internal: bool = False


class OwnRewardError(RlifError):
    """A reward of the user's that raised, or returned what is none: its file has to change before a run goes on."""


def reward_of(
    name: str, function: Callable[..., Any], *, uses_labels: bool, meaning: str = "", citation: str = ""
) -> Reward:
    """A function of yours as a `Reward`.

    It takes `RewardInputs`, and the reward's section of the recipe if it has a second positional parameter, with a
    default or without. It returns one number a completion, ``(row,)``; higher is better. Raises `RlifError` for what is
    no such function, and for a builtin, whose parameters cannot be known. So does the reward where the function raises
    or returns something else, naming step and line: what the user wrote is the user's to mend.
    """
    takes = _positional(function) if callable(function) else 0
    if takes not in (1, 2):
        raise RlifError(f"reward {name}: expected a function of RewardInputs, or of RewardInputs and RewardConfig")

    @wraps(function)
    def checked(inputs: RewardInputs, config: RewardConfig) -> Float[Tensor, " row"]:
        where = f"step {inputs.key.step}: reward {name}"
        try:
            returned = function(inputs, config) if takes == 2 else function(inputs)
        except (RlifError, FloatingPointError, torch.OutOfMemoryError):
            raise  # these have a meaning of their own to the step that is under way
        except Exception as error:
            raise OwnRewardError(f"{where}: it raised {said(error, _file(function))}; mend the function") from error
        try:
            values = torch.as_tensor(returned, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OwnRewardError(
                f"{where}: returned a {type(returned).__name__} that is no list of numbers ({brief(str(error))})"
            ) from error
        if values.shape != (inputs.rollouts.n_rows,):
            raise OwnRewardError(
                f"{where}: returned the shape {tuple(values.shape)}; expected one number for each of the "
                f"{inputs.rollouts.n_rows} completions"
            )
        return values.detach().cpu()

    first_line = (inspect.getdoc(function) or "").partition("\n")[0]
    return Reward(name, meaning or first_line or f"the function {name}", citation, uses_labels, checked)


def _file(function: Callable[..., Any]) -> Path | None:
    code = getattr(function, "__code__", None)
    return Path(code.co_filename) if code else None


def _positional(function: Callable[..., Any]) -> int:
    """How many of our two arguments a function takes, whatever their defaults; 3 if it needs more than two, 0 if it
    cannot be known (a builtin)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 0
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in parameters if p.kind in kinds]
    required = [p for p in positional if p.default is inspect.Parameter.empty]
    return len(required) if len(required) > 2 else min(len(positional), 2)
