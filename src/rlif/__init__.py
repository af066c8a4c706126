"""Reinforcement learning from internal feedback: train a language model on its own confidence.

What is public stands in one table here (docs/api.md says what it is for); everything else may change. Nothing heavy
is imported until a name is used.

>>> import rlif
>>> policy = rlif.load_policy("tiny-base")
>>> prompts = rlif.render(policy, "plain", [rlif.Problem("sum", "12+34=?")])
>>> sampling = rlif.Sampling(max_new_tokens=8)
>>> rollouts = rlif.Engine(policy).sample(prompts, group_size=2, sampling=sampling, key=rlif.Key(seed=0, step=1))
>>> rollouts.signals.entropy.shape == rollouts.mask.shape  # a number for each token of each completion
True
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names for type checkers and editors; a test holds the two together
    from rlif.api import diagnose as diagnose
    from rlif.api import evaluate as evaluate
    from rlif.api import load_policy as load_policy
    from rlif.api import load_recipe as load_recipe
    from rlif.api import recipe_for as recipe_for
    from rlif.api import resume as resume
    from rlif.api import train as train
    from rlif.config import Recipe as Recipe
    from rlif.errors import RlifError as RlifError
    from rlif.evals.settings import Settings
    from rlif.experiments.diagnose import Diagnosis as Diagnosis
    from rlif.experiments.subject import DiagnoseSettings as DiagnoseSettings
    from rlif.grading.grader import Grader as Grader
    from rlif.model.in_training import policy_of as policy_of
    from rlif.model.in_training import sampling_mode as sampling_mode
    from rlif.model.policy import Policy as Policy
    from rlif.recipes import parse_recipe as parse_recipe
    from rlif.rewards.advantages import advantages as advantages
    from rlif.rewards.base import Reward as Reward
    from rlif.rewards.base import RewardInputs as RewardInputs
    from rlif.rewards.registry import REWARDS as REWARDS
    from rlif.rewards.registry import register_reward as register_reward
    from rlif.rng import Key as Key
    from rlif.rollout.engine import Engine as Engine
    from rlif.rollout.prompts import render as render
    from rlif.signals import SIGNALS as SIGNALS
    from rlif.signals import token_signals as token_signals
    from rlif.tasks.base import Task as Task
    from rlif.tasks.problems import task_of as task_of
    from rlif.types import Problem as Problem
    from rlif.types import Prompt as Prompt
    from rlif.types import Rollouts as Rollouts
    from rlif.types import Sampling as Sampling
    from rlif.types import TokenSignals as TokenSignals
    from rlif.types import Verdict as Verdict

    EvalSettings = Settings

PUBLIC = {
    "load_policy": "rlif.api.load_policy",
    "Policy": "rlif.model.policy.Policy",
    "policy_of": "rlif.model.in_training.policy_of",
    "sampling_mode": "rlif.model.in_training.sampling_mode",
    "Problem": "rlif.types.Problem",
    "Prompt": "rlif.types.Prompt",
    "render": "rlif.rollout.prompts.render",
    "Engine": "rlif.rollout.engine.Engine",
    "Sampling": "rlif.types.Sampling",
    "Key": "rlif.rng.Key",
    "Rollouts": "rlif.types.Rollouts",
    "SIGNALS": "rlif.signals.SIGNALS",
    "token_signals": "rlif.signals.token_signals",
    "TokenSignals": "rlif.types.TokenSignals",
    "Recipe": "rlif.config.Recipe",
    "load_recipe": "rlif.api.load_recipe",
    "parse_recipe": "rlif.recipes.parse_recipe",
    "recipe_for": "rlif.api.recipe_for",
    "train": "rlif.api.train",
    "resume": "rlif.api.resume",
    "Task": "rlif.tasks.base.Task",
    "task_of": "rlif.tasks.problems.task_of",
    "evaluate": "rlif.api.evaluate",
    "EvalSettings": "rlif.evals.settings.Settings",
    "diagnose": "rlif.api.diagnose",
    "DiagnoseSettings": "rlif.experiments.subject.DiagnoseSettings",
    "Diagnosis": "rlif.experiments.diagnose.Diagnosis",
    "REWARDS": "rlif.rewards.registry.REWARDS",
    "Reward": "rlif.rewards.base.Reward",
    "RewardInputs": "rlif.rewards.base.RewardInputs",
    "register_reward": "rlif.rewards.registry.register_reward",
    "advantages": "rlif.rewards.advantages.advantages",
    "Grader": "rlif.grading.grader.Grader",
    "Verdict": "rlif.types.Verdict",
    "RlifError": "rlif.errors.RlifError",
}
"""Every public name, and where it is."""

__all__ = ["__version__", *PUBLIC]


def _load(name: str) -> Any:
    if name in PUBLIC:
        module, _, attribute = PUBLIC[name].rpartition(".")
        value = globals()[name] = getattr(importlib.import_module(module), attribute)
        return value
    if name.startswith("_"):  # what Python and its tools look for
        raise AttributeError(f"module 'rlif' has no attribute {name!r}")
    from difflib import get_close_matches

    meant = get_close_matches(name, PUBLIC, n=1, cutoff=0.0)[0]
    raise AttributeError(f"rlif has no public name {name!r}; did you mean {meant}? (docs/api.md)", name=name)


if not TYPE_CHECKING:  # a type checker would take every name for one that is there
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
