"""A task and rewards that are not rlif's: given from Python, or in modules that the recipe names. What a resumed run
needs again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.rewards.base import Reward
from rlif.rewards.registry import REWARDS, check_rewards, needs_labels, reward_names
from rlif.runs.layout import resume_with
from rlif.tasks.base import Task
from rlif.utils.own_code import also_search, is_reference, record

NEEDS = "needs"
"""The key of run.json under which a run says what it was given from Python."""

CODE = "code"
"""The key of run.json under which a run says which modules of the user's own its recipe names: by what it calls them,
`rlif.utils.own_code.record`."""


@dataclass(frozen=True)
class Custom:
    """What was given from Python: ``task`` takes the place of the recipe's; ``rewards`` come before `REWARDS`."""

    task: Task | None = None
    rewards: Mapping[str, Reward] = field(default_factory=dict)

    @property
    def table(self) -> Mapping[str, Reward]:
        """Every reward by name."""
        return {**REWARDS, **self.rewards}

    def needs(self, recipe: Recipe) -> dict[str, Any]:
        """What of it a run of this recipe uses, for run.json: the rewards' names, and the class of the task."""
        rewards = sorted({*reward_names(recipe.reward)} & set(self.rewards))
        task = None if self.task is None else f"{type(self.task).__module__}.{type(self.task).__qualname__}"
        return {**({"rewards": rewards} if rewards else {}), **({"task": task} if task else {})}

    def check_rewards(self, recipe: Recipe) -> None:
        """Raise `RlifError` for the name of a reward that is neither given nor in `REWARDS`."""
        check_rewards(recipe.reward, self.rewards)

    def needs_labels(self, recipe: Recipe) -> list[str]:
        """The names of the rewards that look at ground truth."""
        return needs_labels(recipe.reward, self.rewards)


def code_of(recipe: Recipe) -> dict[str, dict[str, str]]:
    """What run.json holds of the modules that a recipe names (`CODE`); empty if it names none. Imports nothing."""
    return {name: record(name, what) for what, name in _references(recipe)}


def _references(recipe: Recipe) -> list[tuple[str, str]]:
    names = [("reward", name) for name in reward_names(recipe.reward)] + [("task", recipe.task.name)]
    return [(what, name) for what, name in dict.fromkeys(names) if is_reference(name)]


def check_code(recipe: Recipe, info: Mapping[str, Any], out: Path, *, allow_changed: bool) -> list[str]:
    """Before a run is resumed: let its modules be found where they lay when it began (run.json holds ``info``), and
    return what has changed in them, in words.

    Raises `RlifError` for one that is not there any more or, unless ``allow_changed``, that has changed since.
    """
    changed = []
    for what, name in _references(recipe):
        began = info.get(CODE, {}).get(name, {})
        if "folder" in began:
            also_search(Path(began["folder"]))
        try:
            now = record(name, what)
        except RlifError as error:
            there = began.get("file", "an installed package")
            raise RlifError(f"{out}: {error}; it lay in {there} when the run began: put it back") from error
        if began.get("sha256", now.get("sha256")) == now.get("sha256"):
            continue
        changed.append(f"{what} {name}: {now.get('file')} has changed")
        if not allow_changed:
            raise RlifError(
                f"{out}: {changed[-1]} since this run began; put the old file back, or go on with the change on "
                "purpose: ",
                resume_with(out, allow_changed=True),
            )
    return changed


def check_needs(recipe: Recipe, custom: Custom, info: Mapping[str, Any], out: Path, *, allow_changed: bool) -> None:
    """Raise `RlifError` if the run in ``out``, whose run.json holds ``info``, was given something from Python that is
    not given again; or, unless ``allow_changed``, if what is given is not what it was given."""
    needed, given = info.get(NEEDS, {}), custom.needs(recipe)
    names = [name for name in needed.get("rewards", []) if name not in custom.rewards]
    lacking = [*(f"the reward {name!r}" for name in names), *_task_lacking(needed, custom)]
    if lacking:
        arguments = [f"rewards={{{', '.join(f'{name!r}: …' for name in needed['rewards'])}}}"] if names else []
        arguments += ["task=…"] if needed.get("task") else []
        raise RlifError(
            f"{out}: this run was given {' and '.join(lacking)} from Python, which no file holds; resume it from "
            f"there: rlif.resume({str(out)!r}, {', '.join(arguments)})"
        )
    if given != needed and not allow_changed:
        raise RlifError(
            f"{out}: this run was given {needed or 'nothing'} from Python when it began, and {given or 'nothing'} now; "
            "give it the same, or go on with the change on purpose: allow_changed=True"
        )


def _task_lacking(needed: Mapping[str, Any], custom: Custom) -> list[str]:
    return [f"the task {needed['task']}"] if needed.get("task") and custom.task is None else []
