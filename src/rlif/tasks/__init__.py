"""Where problems come from, and how they are put to a model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlif.config import TaskConfig
from rlif.tasks.arithmetic import Arithmetic
from rlif.tasks.base import Task
from rlif.tasks.files import ProblemFile
from rlif.tasks.gym import Gym
from rlif.tasks.own import own_task
from rlif.tasks.templates import find_template

BUILDERS: Mapping[str, Callable[[Any, Path | None], Task]] = {
    "arithmetic": lambda config, base_dir: Arithmetic(config),
    "file": ProblemFile,
    "gsm8k": ProblemFile,
    "math": ProblemFile,
    "reasoning_gym": Gym,
}
"""Task name to what builds it from its section of the recipe and the folder that relative paths start from."""


def build_task(config: TaskConfig, base_dir: Path | None = None) -> Task:
    """The task a recipe names. Relative paths start from ``base_dir`` (None: the current folder); ~ is expanded.

    Raises `RlifError` for an unknown template or format, and for files, packages and functions that cannot be used.
    """
    find_template(config.template)
    return BUILDERS.get(config.name, own_task)(config, base_dir)
