"""What a model brings with it: how it is asked and how fast it learns, where nobody says otherwise.

A run's folder brings what its model was trained with, a named model what suits it; any other model brings nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlif.config import TemplateText
from rlif.model.registry import MODELS, run_of
from rlif.recipes import load_recipe
from rlif.runs.layout import recipe_path

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
"""What a named model brings, as keys of a recipe (as in the shipped recipes)."""


def model_defaults(model: str) -> dict[str, Any]:
    """Keys of a recipe with the values that a model brings: of a run what its recipe says, also if one of the models
    inside its folder is named. Raises `RlifError` for a run whose recipe cannot be read."""
    if model in MODELS:
        return dict(USUAL.get(model, {}))
    if (run := run_of(model)) is None:
        return {}
    recipe = load_recipe(recipe_path(run))
    return {
        "task.template": recipe.task.template,
        "task.format": recipe.task.format,
        "rollout.max_new_tokens": recipe.rollout.max_new_tokens,
        "rollout.stop": recipe.rollout.stop,
        "grpo.lr": recipe.grpo.lr,
        "policy.dtype": recipe.policy.dtype,
        "policy.chat_template": recipe.policy.chat_template,
    }


_WORDING = ("task.template", "task.format", "rollout.stop")
"""They belong together: who words a question otherwise takes neither form nor stop strings from here."""
_SETTINGS = {
    **{"task.template": "template", "task.format": "format", "rollout.stop": "stop"},
    **{"rollout.max_new_tokens": "max_new_tokens", "policy.chat_template": "chat_template"},
}
_SILENT = (None, (), "auto")
"""What a setting holds that says nothing."""


def worded(defaults: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What a model brings, without its words where ``overrides`` (``key=value``) have a template of their own."""
    own = any(one.partition("=")[0].strip() in ("task", "task.template") for one in overrides)
    return {key: value for key, value in defaults.items() if not (own and key in _WORDING)}


@dataclass(frozen=True)
class Prompting:
    """How models are asked by those who know them.

    Attributes:
        settings: those that were left open, by the names that `rlif.evals.settings.Settings` has for them.
        runs: those of the models that were trained so.
        said: what is taken from whom, in one line; "" if there is nothing to say.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    said: str = ""


def prompting_of(models: Sequence[str], given: Mapping[str, Any]) -> Prompting:
    """How to ask these models, all alike, where ``given`` settings are silent (None, (), auto): as the runs among them
    were trained or, without a run, as the named ones usually are. Answers may be as long as in the longest of these.
    Models that are used to other words leave everything open, which is said.

    Raises `RlifError` as `model_defaults`.
    """
    runs = [model for model in models if run_of(model) is not None]
    known = {model: found for model in runs or models if (found := model_defaults(model))}
    if not known:
        return Prompting()
    each, names, asked = list(known.values()), ", ".join(known), {}
    for key, setting in _SETTINGS.items():
        values = [one.get(key) for one in each]
        if given.get(setting) not in _SILENT or (key in _WORDING and given.get("template") is not None):
            continue
        if key in _WORDING and any(value != values[0] for value in values):
            said = f"{names}: not alike in how they are asked ({setting}), so all are asked as the task says"
            return Prompting(runs=tuple(runs), said=said)
        if key == "rollout.max_new_tokens":
            asked[setting] = max(one[key] for one in each)
        elif values[0] not in _SILENT and all(value == values[0] for value in values):
            asked[setting] = values[0]
    trained = f"as {names} {'was' if len(runs) == 1 else 'were'} trained"
    said = f"asked {trained if runs else f'as is usual for {names}'}: {_words(asked)}" if asked else ""
    return Prompting(asked, tuple(runs), said)


def _words(settings: Mapping[str, Any]) -> str:
    """Each setting as a reader of the command line would give it."""
    words = []
    for name, value in settings.items():
        if name == "max_new_tokens":
            words.append(f"at most {value} tokens")
        elif name == "stop":
            words.append(f"stop {', '.join(map(repr, value))}")
        elif isinstance(value, TemplateText):
            words.append("a template of its own")
        else:
            words.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(words)
