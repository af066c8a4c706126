"""A recipe for data of your own, without a file: what `rlif train --model M --data FILE` runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from rlif.config import OwnData, Recipe
from rlif.errors import RlifError
from rlif.model.registry import final_of
from rlif.recipes import find_recipe, load_recipe, overridden, read_mapping, set_key
from rlif.runs.layout import recipe_path
from rlif.utils.paths import expanded

BASE = "own-data"
"""The shipped recipe that is begun with."""

_TINY = {"task.template": "plain", "rollout.max_new_tokens": 96, "grpo.lr": 1e-4, "policy.dtype": "float32"}
USUAL: Mapping[str, Mapping[str, Any]] = {
    "tiny-base": _TINY,
    "tiny-instruct": _TINY,
    "smollm2-135m-instruct": {
        **{"task.template": "plain", "task.format": "last_number"},
        **{"rollout.max_new_tokens": 128, "grpo.lr": 1e-5},
    },
    "gemma3-270m": {"task.template": "qa", "rollout.max_new_tokens": 128},
}
"""What a named model brings: how it is asked, in which form it answers and how long, and how fast it learns (as in the
shipped recipes). The folder of a run brings what it was trained with, any other model gets recipes/own-data.yaml."""


def recipe_for(
    model: str | None = None,
    data: OwnData | None = None,
    *,
    recipe: Path | None = None,
    reward: str | None = None,
    steps: int | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """A recipe with what is said beside it: model, data, reward and steps, before ``overrides`` (``key=value``).

    Without ``recipe`` it is that for data of your own, with what a named model brings (`USUAL`). With ``data`` its task
    reads them; if it had another task, only template and form are kept of that one, and prompts and lengths are fitted
    (rollout.fit). Raises `RlifError` for what is wrong, and where a model or data are missing.
    """
    path = find_recipe(recipe or Path(BASE))
    content = read_mapping(path, "recipe")
    asked: dict[str, Any] = {}
    if recipe is None:
        if model is None:
            raise RlifError("say which model: rlif train --model MODEL --data FILE (rlif models lists those by name)")
        asked |= USUAL.get(model) or _as_trained(model)
    if data is not None:
        content["task"] = _task(content.get("task"), data)
        asked["rollout.fit"] = True
    given = {"policy.model": model, "reward": reward, "steps": steps}
    asked |= {key: value for key, value in given.items() if value is not None}
    for key, value in asked.items():
        set_key(content, key, value, where=str(path))
    return overridden(content, overrides, source=str(path))


def _as_trained(model: str) -> dict[str, Any]:
    """What the folder of a run brings: how its model was asked while it was trained. Nothing for any other model."""
    if final_of(model) == model:
        return {}
    recipe = load_recipe(recipe_path(expanded(model)))
    asked = {"task.template": recipe.task.template, "rollout.max_new_tokens": recipe.rollout.max_new_tokens}
    return asked | {"task.format": recipe.task.format, "grpo.lr": recipe.grpo.lr, "policy.dtype": recipe.policy.dtype}


def _task(before: Any, data: OwnData) -> dict[str, Any]:
    """The section task for these data: asked in the words, and read in the form, of the task before."""
    kept = {key: before[key] for key in ("template", "format") if key in before} if isinstance(before, dict) else {}
    if isinstance(before, dict) and before.get("name") == "arithmetic":
        kept = {"template": "plain", **kept}
    columns = {"question_column": data.question_column, "answer_column": data.answer_column}
    hub = {"config": data.config, "split": data.split}
    said = {key: value for key, value in {**columns, **hub}.items() if value is not None}
    return {"name": "file", "path": data.source, **said, **kept}


def usual_folder(model: str | None, data: OwnData) -> Path:
    """Where a run on data of your own goes unless told: runs/MODEL-DATA."""
    names = [PurePath(model or BASE).name, PurePath(data.source).stem]
    return Path("runs", "-".join(name.lower() for name in names if name))
