"""Tasks of the user's own: a function of a module, or of an installed package (entry points: group rlif.tasks)."""

from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rlif.config import OwnTask
from rlif.config.task import TASKS_GROUP
from rlif.errors import RlifError
from rlif.tasks.base import Task
from rlif.tasks.problems import task_of
from rlif.tasks.templates import find_template
from rlif.utils.own_code import find, is_reference, load, said


def own_task(config: OwnTask, base_dir: Path | None = None) -> Task:
    """What the function that ``config.name`` names makes of ``config.options``: a `Task`, or rows, as `task_of` takes
    them, whose answers are then read in ``config.format``.

    Raises `RlifError`, naming function and line, for one that cannot be had, that fails, or returns something else.
    """
    function = _of_module(config.name) if is_reference(config.name) else _installed(config.name)
    try:
        made = function(**config.options)
    except RlifError:
        raise
    except Exception as error:
        raise RlifError(f"task {config.name}: it raised {said(error, None)}; mend it or its options") from error
    if isinstance(made, Task):
        return made
    if isinstance(made, str | bytes) or not isinstance(made, Iterable):
        raise RlifError(f"task {config.name}: returned a {type(made).__name__}; expected an rlif.Task, or rows")
    format = config.format or find_template(config.template).format
    return task_of(made, format=format, name=config.name.replace(":", "."))


def _of_module(reference: str) -> Any:
    """A function of the user's own file. One of an installed package would be called with whatever a recipe says, which
    somebody else may have written: a package has to say by an entry point which of its functions are tasks."""
    if find(reference, "task").folder is None:
        raise RlifError(
            f"task {reference}: no file of the current folder; a package brings tasks by entry points of the group "
            f"{TASKS_GROUP}"
        )
    return load(reference, "task")


def _installed(name: str) -> Any:
    for entry in entry_points(group=TASKS_GROUP, name=name):
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise RlifError(f"task {name}: its package cannot be loaded ({entry.value}: {error})") from error
    raise RlifError(f"task {name}: no installed package brings it any more (group {TASKS_GROUP})")
