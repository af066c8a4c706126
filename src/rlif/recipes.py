"""Recipes: YAML in, a checked `Recipe` out; those that ship with rlif by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlif.config import ArithmeticTask, FileTask, Recipe
from rlif.errors import RlifError, did_you_mean, shortened, shown
from rlif.recipe_hints import explain
from rlif.utils.yaml_text import LONGEST, YamlError, read_yaml

# Beside the package in a wheel; at the top of the repository in a checkout.
_FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[2] / "recipes")

RECIPE_KEYS: Mapping[str, str] = {
    "model": "policy.model",
    "base": "policy.model.merge.base",
    "instruct": "policy.model.merge.instruct",
    "ratios": "policy.model.merge.ratio",
    "device": "policy.device",
    "dtype": "policy.dtype",
    "chat_template": "policy.chat_template",
    "remote_code": "policy.remote_code",
    "lora": "policy.lora",
    "lora.r": "policy.lora.r",
    "lora.targets": "policy.lora.targets",
    "max_new_tokens": "rollout.max_new_tokens",
    "max_mismatch": "rollout.max_mismatch",
    "engine": "rollout.engine",
    "prompts": "rollout.prompts",
    "template": "task.template",
    "format": "task.format",
    "path": "task.path",
    "eval_path": "task.eval_path",
    "answer_column": "task.answer_column",
    "config": "task.config",
    "split": "task.split",
    "question_column": "task.question_column",
    "low": "task.low",
    "high": "task.high",
    "limit": "task.limit",
    "question": "task.question",
    "eval_problems": "eval.problems",
    "probe_path": "probe.path",
    "probe_labels": "probe.labels",
    "low_temperature": "probe.low_temperature",
}
"""What a recipe calls the arguments that an `RlifError` of the library names: for `rlif.errors.named`."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that ships with rlif."""
    return {path.stem: path for folder in _FOLDERS for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: Path) -> Path:
    """The file itself, or the shipped recipe of that name. Raises `RlifError` if there is neither."""
    if recipe.is_file():
        return recipe
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    meant = did_you_mean(str(recipe), shipped)
    raise RlifError(
        f"{recipe}: no such recipe; give a YAML file, or the name of a shipped one: {', '.join(shipped)}{meant}"
    )


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, apply ``key=value`` overrides (values are YAML), check it.

    Raises `RlifError` naming the file, or the override, and the key of each mistake.
    """
    return overridden(read_mapping(path, "recipe"), overrides, source=str(path))


def overridden(data: dict[str, Any], overrides: Sequence[str], *, source: str) -> Recipe:
    """The recipe that the mapping of a file and overrides make together; ``data`` is changed. Of a task that is
    replaced by another one (``task.name=file``) the keys that the new one does not know are left behind.

    Raises `RlifError` as `load_recipe`.
    """
    for override in overrides:
        _apply(data, override)
    keys = {override.partition("=")[0] for override in overrides}
    task = data.get("task")
    if "task.name" in keys and isinstance(task, dict):
        known = (ArithmeticTask if task["name"] == "arithmetic" else FileTask).model_fields
        data["task"] = {key: value for key, value in task.items() if key in known or f"task.{key}" in keys}
    return parse_recipe(data, source=source, overrides=overrides)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked; ``what`` it is meant to be, for messages.

    Raises `RlifError` for a file that cannot be read, or that is no such mapping.
    """
    try:
        with path.open("rb") as file:
            data = read_yaml(file.read(4 * LONGEST).decode("utf-8-sig"))
    except OSError as error:
        raise RlifError(f"{path}: cannot read the {what} ({error.strerror}); {what}s lie in {what}s/") from error
    except UnicodeDecodeError as error:
        raise RlifError(
            f"{path}: not YAML (byte {error.start} is not UTF-8; save the {what} in that encoding)"
        ) from error
    except YamlError as error:
        raise RlifError(f"{path}: not YAML ({error})") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RlifError(f"{path}: a {what} is a mapping of keys to values")
    return data


def parse_recipe(data: dict[str, Any], *, source: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Check a mapping. Raises `RlifError` naming ``source`` and the key of each mistake, misspelt ones first; a mistake
    in one of the ``overrides`` that were put into it names that one instead.

    >>> import rlif
    >>> base = {"steps": 1, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}, "reward": "length"}
    >>> rlif.parse_recipe(base).reward[0].weight
    1.0
    >>> rlif.parse_recipe({**base, "lr": 1e-5})
    Traceback (most recent call last):
    rlif.errors.RlifError: recipe: lr: unknown key; did you mean grpo.lr?
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RlifError(explain(error, source, overrides)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default spelled out, as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    where = f"override {shown(override, 200)}"
    if not separator:
        raise RlifError(f"{where}: write key=value, for example grpo.lr=1e-5")
    try:
        parsed = read_yaml(value)  # YAML 1.1 leaves 1e-5 a string; pydantic makes it a number
    except YamlError as error:
        hint = "" if "'" in value else f"; text with signs in it stands in quotes: \"{key}='{shortened(value, 60)}'\""
        raise RlifError(f"{where}: the value is not YAML{hint}") from error
    set_key(data, key, parsed, where=where)


def set_key(data: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Put a value into a recipe's data; ``key`` is dotted: ``grpo.lr``. ``where`` it was asked for, for messages.

    Raises `RlifError` for a key with an empty part, and where the recipe has a value instead of a section.
    """
    if not all(key.split(".")):
        raise RlifError(f"{where}: write key=value, for example grpo.lr=1e-5")
    *parents, leaf = key.split(".")
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RlifError(f"{where}: {parent} is not a section in this recipe")
        node = child
    node[leaf] = value
