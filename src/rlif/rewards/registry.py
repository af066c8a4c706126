"""Rewards by name: the table `REWARDS`, those that wrap another one, and those of other packages.

A reward is a function ``(RewardInputs, RewardConfig) -> (row,)`` in `REWARDS`; higher is better, detached. Internal
rewards read the signals recorded while sampling, or compare the answers with each other, and never see a label;
`verifiable` is the supervised baseline; the rest are the controls without which no gain may be credited to a signal
(arXiv 2506.10947).

A package of yours brings its own by an entry point of the group ``rlif.rewards``, which loads to a `Reward` or to a
function (then taken to use labels). It is looked up only when a recipe names what is not in the table. A module of
yours needs no package: a recipe names its function, ``my_rewards:brevity`` (`rlif.utils.own_code`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, TypeVar, overload

from torch import Tensor

from rlif.config import MIXES, RewardConfig, WrapperConfig
from rlif.errors import Argument, RlifError, did_you_mean
from rlif.rewards.agreement import _majority_vote, _soft_consensus, _teacher_vote
from rlif.rewards.base import Reward, RewardInputs, Wrapper, reward_of
from rlif.rewards.builtin import (
    _format_only,
    _formatted,
    _internal,
    _length,
    _negated,
    _random,
    _right_any_format,
    _verifiable,
)
from rlif.signals import SIGNALS
from rlif.utils.own_code import is_reference, load

GROUP = "rlif.rewards"

_known: dict[str, Reward] = {
    reward.name: reward
    for reward in (
        *(_internal(signal) for signal in SIGNALS.values()),
        Reward(
            "majority_vote",
            "1 if the answer is the commonest of its prompt's; winners that tie share the 1",
            "TTRL, arXiv 2504.16084",
            False,
            _majority_vote,
            internal=True,
        ),
        Reward(
            "soft_consensus",
            "the share of its prompt's completions that give the same answer",
            "EMPO, arXiv 2504.05812",
            False,
            _soft_consensus,
            internal=True,
        ),
        Reward(
            "frozen_consensus",
            "1 if the answer is the one that the initial policy settled on; answers that tied there share the 1",
            "the fixed teacher of SRT, arXiv 2505.21444",
            False,
            _teacher_vote,
            reads_consensus=True,
            internal=True,
        ),
        Reward(
            "ema_vote",
            "1 if the answer is the one a moving average of the policy settles on; answers that tie there share the 1",
            "Co-rewarding-II, arXiv 2508.00410",
            False,
            _teacher_vote,
            reads_consensus=True,
            moving_teacher=True,
            internal=True,
        ),
        Reward("verifiable", "1 if the answer is right and formatted", "RLVR, arXiv 2402.03300", True, _verifiable),
        Reward("right_any_format", "1 if the answer is right in any form", "project", True, _right_any_format),
        Reward("format_only", "1 if an answer stands in the asked form", "arXiv 2506.10947", False, _format_only),
        Reward("random", "a uniform number in [0, 1)", "arXiv 2506.10947", False, _random),
        Reward("length", "minus the completion's length in tokens: shorter is better", "project", False, _length),
    )
}

REWARDS: Mapping[str, Reward] = MappingProxyType(_known)
"""Every reward that is known by now; `register_reward` and a first use of another package's add to it."""

WRAPPERS: Mapping[str, Wrapper] = {
    wrapper.name: wrapper
    for wrapper in (
        Wrapper("negated", "minus the reward named by `of`", "project", _negated),
        Wrapper(
            "formatted",
            "the reward named by `of` if an answer stands in the asked form; else 0, or the least of its prompt's",
            "project",
            _formatted,
            internal=True,
        ),
    )
}
"""Keys as in `rlif.config.WRAPPER_CONFIGS`, which says what a recipe may set for each."""

F = TypeVar("F", bound=Callable[..., Any])


@overload
def register_reward(
    name: str, function: F, *, uses_labels: bool, meaning: str = "", citation: str = ""
) -> F: ...  # pragma: no cover
@overload
def register_reward(
    name: str, *, uses_labels: bool, meaning: str = "", citation: str = ""
) -> Callable[[F], F]: ...  # pragma: no cover
def register_reward(
    name: str, function: Any = None, *, uses_labels: bool, meaning: str = "", citation: str = ""
) -> Any:
    """Add a reward to `REWARDS`, for recipes of this process; also as a decorator. Returns the function.

    Args:
        name: what recipes call it, and metrics: ``reward/<name>/mean``. Raises `RlifError` for a name that is taken.
        function: ``f(inputs: RewardInputs) -> (row,)``, higher is better; a second parameter gets its `RewardConfig`.
        uses_labels: whether it looks at an answer or at a verdict's ``right``; problems without are then refused.

    >>> import rlif
    >>> @rlif.register_reward("long", uses_labels=False, meaning="the completion's length in tokens")
    ... def long(inputs):
    ...     return inputs.rollouts.lengths
    >>> rlif.REWARDS["long"].meaning
    "the completion's length in tokens"
    """
    if function is None:
        return lambda later: register_reward(name, later, uses_labels=uses_labels, meaning=meaning, citation=citation)
    check_free(name)
    _known[name] = reward_of(name, function, uses_labels=uses_labels, meaning=meaning, citation=citation)
    return function


def check_free(name: str) -> None:
    """Raise `RlifError` if a reward is called so already."""
    if name in _known or name in WRAPPERS or name in MIXES:
        raise RlifError(f"reward {name}: the name is taken; choose another")


def rewards_of(own: Mapping[str, Reward | Callable[..., Any]]) -> dict[str, Reward]:
    """Rewards handed over for one run. A plain function is taken to use labels; to say otherwise hand over a `Reward`.

    Raises `RlifError` for a name that is taken and for what is no reward.
    """
    for name in own:
        check_free(name)
    return {name: _as_reward(name, value) for name, value in own.items()}


def find_reward(config: RewardConfig, own: Mapping[str, Reward] = MappingProxyType({})) -> Reward:
    """The reward that a section of a recipe names: one of ``own``, of `REWARDS`, or of an installed package.

    One that is wrapped bears its own name. Raises `RlifError` for an unknown name, with its nearest neighbour.
    """
    if not isinstance(config, WrapperConfig):
        return _look_up("name", config.name, own, (*_known, *own, *WRAPPERS, *MIXES))
    inner = _look_up("of", config.of, own, (*_known, *own))
    wrapper = WRAPPERS[config.name]

    def function(inputs: RewardInputs, config: RewardConfig) -> Tensor:
        return wrapper.transform(inner.function(inputs, config), inputs)

    return replace(inner, function=function, internal=inner.internal and wrapper.internal)


def reward_names(configs: Sequence[RewardConfig]) -> list[str]:
    """The names of the rewards that are computed: of one that wraps another, the other's."""
    return [config.of if isinstance(config, WrapperConfig) else config.name for config in configs]


def check_rewards(configs: Sequence[RewardConfig], own: Mapping[str, Reward] = MappingProxyType({})) -> None:
    """Raise `RlifError` for a reward name that nobody knows, naming its nearest neighbour."""
    for config in configs:
        find_reward(config, own)


def needs_labels(configs: Sequence[RewardConfig], own: Mapping[str, Reward] = MappingProxyType({})) -> list[str]:
    """The names of the rewards that look at ground truth, one that is wrapped under its own name."""
    found = [find_reward(config, own) for config in configs]
    return [reward.name for reward in found if reward.uses_labels]


def read_consensus(configs: Sequence[RewardConfig], own: Mapping[str, Reward] = MappingProxyType({})) -> bool:
    """Whether a reward of the mix reads `RewardInputs.consensus`."""
    return any(find_reward(config, own).reads_consensus for config in configs)


def internal_alone(configs: Sequence[RewardConfig], own: Mapping[str, Reward] = MappingProxyType({})) -> bool:
    """Whether all that is trained on (a weight above 0) is the model's feedback on itself (`Reward`, `Wrapper`)."""
    trained = [config for config in configs if config.weight > 0.0]
    return bool(trained) and all(find_reward(config, own).internal for config in trained)


def follows_policy(configs: Sequence[RewardConfig], own: Mapping[str, Reward] = MappingProxyType({})) -> bool:
    """Whether the consensus that the mix reads is that of a teacher which follows the policy (`Reward.moving_teacher`).

    Raises `RlifError` if another reward of the mix reads that of the initial policy: a run has one teacher.
    """
    readers = [reward for config in configs if (reward := find_reward(config, own)).reads_consensus]
    moving = [reward.name for reward in readers if reward.moving_teacher]
    frozen = [reward.name for reward in readers if not reward.moving_teacher]
    if moving and frozen:
        raise RlifError(
            Argument("reward"),
            f": {moving[0]} asks a teacher that follows the policy, {frozen[0]} the initial policy; a run has one "
            "teacher: name one of the two",
        )
    return bool(moving)


def _look_up(key: str, name: str, own: Mapping[str, Reward], known: Sequence[str]) -> Reward:
    if name in own:
        return own[name]
    if name in MIXES:  # a recipe takes it apart
        parts = " and ".join(part.name for part in MIXES[name])
        raise RlifError(Argument(f"reward.{key}"), f": {name} is a mix of {parts}; name one of them")
    if name not in _known and is_reference(name):
        _known[name] = _of_module(name)
    if name not in _known and name not in WRAPPERS:
        _load_entry_point(name)
    if name in _known:
        return _known[name]
    others = [*known, *(entry.name for entry in entry_points(group=GROUP))]
    meant = did_you_mean(name, others)
    raise RlifError(Argument(f"reward.{key}"), f": no reward {name!r}{meant} (there are {', '.join(others)})")


def _of_module(reference: str) -> Reward:
    """The reward that ``package.module:function`` names: a `Reward`, or a function, which says whether it uses labels
    by its attribute ``uses_labels`` or where it is registered; if it says nothing, it is taken to."""
    value = load(reference, "reward")
    if isinstance(value, Reward):
        return replace(value, name=reference)
    if not callable(value):
        raise RlifError(f"reward {reference}: a {type(value).__name__}; expected a function or an rlif.Reward")
    registered = [one for one in _known.values() if getattr(one.function, "__wrapped__", None) is value]
    if registered:
        return replace(registered[0], name=reference)
    return reward_of(reference, value, uses_labels=bool(getattr(value, "uses_labels", True)))


def _load_entry_point(name: str) -> None:
    """Take a reward of an installed package into the table, if one has it."""
    for entry in entry_points(group=GROUP, name=name):
        try:
            _known[name] = _as_reward(name, entry.load())
        except (ImportError, AttributeError) as error:
            raise RlifError(f"reward {name}: its package cannot be loaded ({entry.value}: {error})") from error


def _as_reward(name: str, value: Any) -> Reward:
    return replace(value, name=name) if isinstance(value, Reward) else reward_of(name, value, uses_labels=True)
