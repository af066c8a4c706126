"""Coefficients of the loss that follow what is measured: one small controller each, in the table `CONTROLLERS`.

A controller is on if the recipe names what it aims at. Its level is a number that starts as the recipe says, moves
after each step by what that step measured, and lies in the checkpoint, for a resumed run to go on with.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rlif.config import GrpoConfig
from rlif.types import Rollouts

_CLIP = 0.2


class Controller(NamedTuple):
    """How a key of the section grpo is set in each step.

    Attributes:
        target: the recipe's key of what is aimed at; null there: the controller is off.
        measured: the metric of a step that the level moves by.
        moved: (level, what the step measured, section grpo) → the next step's level.
        used: (level, entropy of the step's rollouts in nats a token, section grpo) → the coefficient of its update.
    """

    target: str
    measured: str
    moved: Callable[[float, float, GrpoConfig], float]
    used: Callable[[float, float, GrpoConfig], float]


def kl_coef(level: float, kl: float, config: GrpoConfig) -> float:
    """β (1 + clip(KL / target − 1, ±.2) / horizon), KL in nats a token: a proportional controller in log space.

    Source: arXiv 1909.08593, section 2.2, whose K_β of .1 is a horizon of 10 updates, and whose KL is of a sequence.
    """
    assert config.kl_target is not None
    error = min(max(kl / config.kl_target - 1.0, -_CLIP), _CLIP)
    return level * (1.0 + error / config.kl_horizon)


def entropy_coef(level: float, entropy: float, config: GrpoConfig) -> float:
    """c + entropy_step below the floor, c − entropy_step from it on; within [0, entropy_most].

    Source: Skywork-OR1, arXiv 2505.22312, adaptive entropy control (c_{k+1} = c_k ± Δ); the bounds are of its code.
    """
    assert config.entropy_floor is not None
    step = config.entropy_step if entropy < config.entropy_floor else -config.entropy_step
    return min(max(level + step, 0.0), config.entropy_most)


def below_floor(level: float, entropy: float, config: GrpoConfig) -> float:
    """The level below the floor, else 0: the same paper's α_k = c_k · 1[e_k below the target]."""
    assert config.entropy_floor is not None
    return level if entropy < config.entropy_floor else 0.0


CONTROLLERS: Mapping[str, Controller] = {
    "kl_coef": Controller("kl_target", "kl", kl_coef, lambda level, entropy, config: level),
    "entropy_coef": Controller("entropy_floor", "signal/entropy", entropy_coef, below_floor),
}
"""By the key of the section grpo that they set, whose value in the recipe is where the level starts."""


def settings_of(config: GrpoConfig, levels: Mapping[str, float], rollouts: Rollouts) -> GrpoConfig:
    """The section grpo as it is in force for the update on these rollouts; the recipe's own where nothing follows."""
    entropy = rollouts.signals.entropy.sum().item() / int(rollouts.mask.sum())
    return config.model_copy(
        update={
            name: controller.used(levels.get(name, getattr(config, name)), entropy, config)
            for name, controller in CONTROLLERS.items()
            if is_on(controller, config)
        }
    )


def moved_levels(
    config: GrpoConfig, levels: Mapping[str, float], metrics: Mapping[str, float | int]
) -> dict[str, float]:
    """The levels after a step with these metrics; empty where nothing follows. ``config`` is the recipe's section."""
    return {
        name: controller.moved(levels.get(name, getattr(config, name)), metrics[controller.measured], config)
        for name, controller in CONTROLLERS.items()
        if is_on(controller, config)
    }


def in_force(config: GrpoConfig, settings: GrpoConfig) -> dict[str, float]:
    """The coefficients that followed in a step, keys as in docs/metrics.md; ``settings`` are those of `settings_of`."""
    return {name: getattr(settings, name) for name, one in CONTROLLERS.items() if is_on(one, config)}


def is_on(controller: Controller, config: GrpoConfig) -> bool:
    """Whether the recipe names what the controller aims at."""
    return getattr(config, controller.target) is not None
