"""A recipe for data of your own, without a file: what `rlif train --model M --data FILE` runs."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from rlif.config import OwnData, Recipe
from rlif.errors import RlifError
from rlif.recipes import find_recipe, overridden, read_mapping, set_key
from rlif.runs.model_defaults import model_defaults, worded

BASE = "own-data"
"""The shipped recipe that is begun with."""


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
    ``reward``: a name, or any other value of that key as YAML.

    Without ``recipe`` it is that for data of your own, with what the model brings (`rlif.runs.model_defaults`). With
    ``data`` its task reads them; if it had another task, only template and form are kept of that one, and prompts and
    lengths are fitted (rollout.fit). Raises `RlifError` for what is wrong, and where a model or data are missing.
    """
    path = find_recipe(recipe or Path(BASE))
    content = read_mapping(path, "recipe")
    asked: dict[str, Any] = {}
    if recipe is None:
        if model is None:
            raise RlifError("say which model: rlif train --model MODEL --data FILE (rlif models lists those by name)")
        asked |= worded(model_defaults(model), overrides)
    if data is not None:
        content["task"] = _task(content.get("task"), data)
        asked["rollout.fit"] = True
    given = {"policy.model": model, "steps": steps}
    asked |= {key: value for key, value in given.items() if value is not None}
    for key, value in asked.items():
        set_key(content, key, value, where=str(path))
    rewarded = [] if reward is None else [f"reward={reward}"]
    return overridden(content, [*rewarded, *overrides], source=str(path))


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
