"""Recipes: YAML in, a checked `Recipe` out; those that ship with rlif by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlif.config import (
    TASK_CONFIGS,
    WRAPPER_CONFIGS,
    FileTask,
    Merge,
    MergedModel,
    Recipe,
    RewardConfig,
    Section,
    TemplateText,
)
from rlif.errors import RlifError, nearest, printable, shortened, shown
from rlif.utils.validation import explained, listed, misspelt_first
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
    "max_new_tokens": "rollout.max_new_tokens",
    "max_mismatch": "rollout.max_mismatch",
    "prompts": "rollout.prompts",
    "template": "task.template",
    "format": "task.format",
    "path": "task.path",
    "eval_path": "task.eval_path",
    "answer_column": "task.answer_column",
    "question_column": "task.question_column",
    "low": "task.low",
    "high": "task.high",
    "limit": "task.limit",
    "question": "task.question",
    "eval_problems": "eval.problems",
    "probe_path": "probe.path",
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
    raise RlifError(f"{recipe}: no such recipe; give a YAML file, or the name of a shipped one: {', '.join(shipped)}")


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe, apply ``key=value`` overrides (values are YAML), check it.

    Raises `RlifError` naming the file and the key of each mistake.
    """
    data = read_mapping(path, "recipe")
    for override in overrides or []:
        _apply(data, override)
    return parse_recipe(data, source=str(path))


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


def parse_recipe(data: dict[str, Any], *, source: str = "recipe") -> Recipe:
    """Check a mapping. Raises `RlifError` naming ``source`` and the key of each mistake, misspelt ones first.

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
        raise RlifError(f"{source}: {_explain(error)}") from None


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


_KIND_AT: dict[tuple[str | int, ...], int] = {("task",): 1, ("policy", "model"): 2, ("reward",): 2}
"""Where pydantic's location of a key below these holds the kind of its section: task.arithmetic.low,
policy.model.merged.merge.base, reward.0.negated.of; and, behind these, task.file.template.own.user."""


def _explain(error: ValidationError) -> str:
    """The mistakes in one line: key, what is wrong, what to do. Misspelt keys come first."""
    said, meant = [], set()
    for mistake in misspelt_first(error.errors()):
        location = mistake["loc"]
        kinds = {_KIND_AT.get(location[:n]) for n in (1, 2)}
        kinds |= {3} if location[:1] == ("task",) and location[2:3] == ("template",) else set()
        keys = [part for i, part in enumerate(location) if i not in kinds]
        key = shortened(printable(".".join(str(part) for part in keys)), 200)
        if mistake["type"] == "extra_forbidden":
            known = _meant(keys, location)
            meant.add(known)
            said.append(f"{key}: unknown key; did you mean {known}?")
        elif mistake["type"] != "missing":
            said.append(f"{key + ': ' if key else ''}{explained(mistake)}")
        elif key not in meant:  # what was misspelt is missing under its right name
            said.append(f"{key}: {'a further value' if isinstance(keys[-1], int) else 'this key'} is required")
    return listed(said)


_DEEPER: Mapping[str, Mapping[int, type[BaseModel]]] = {
    "policy": {2: MergedModel, 3: Merge},
    "task": {2: TemplateText},
}
"""Sections inside of a section, by how deep they stand."""


def _meant(unknown: list[Any], location: tuple[Any, ...]) -> str:
    """The key that was meant: one of that name in another section (lr: grpo.lr), else the nearest of the same one."""
    task = TASK_CONFIGS.get(str(location[1]) if location[1:] else "", FileTask)
    reward = WRAPPER_CONFIGS.get(str(location[2]), RewardConfig) if location[2:] else RewardConfig
    sections: dict[str, type[BaseModel]] = {"task": task, "reward": reward}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sections[name] = field.annotation
    *parents, leaf = (printable(str(part))[:100] for part in unknown)
    if not parents:
        elsewhere = [f"{name}.{leaf}" for name, section in sections.items() if leaf in section.model_fields]
        return next(iter(elsewhere), "") or nearest(leaf, Recipe.model_fields)
    deeper = _DEEPER.get(parents[0], {})
    return ".".join([*parents, nearest(leaf, deeper.get(len(parents), sections[parents[0]]).model_fields)])
