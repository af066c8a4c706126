"""A run's folder as a reader finds it, whatever is missing; and runs that differ by their seed alone, as groups."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlif.config import ArithmeticTask, FileTask, GymTask, Recipe, RewardConfig
from rlif.errors import RlifError, printable, shortened
from rlif.recipes import load_recipe
from rlif.runs.history import read_metrics
from rlif.runs.layout import FINAL, INFO, METRICS_FILE, RECIPE

Line = Mapping[str, float | int]

_LIKE_SEEDS = ("seed", "checkpoint", "log", "policy.device", "task.path", "task.eval_path")
"""Keys, or sections, in which runs of a group may differ: none decides a number but the seed, or says it otherwise."""


@dataclass(frozen=True)
class RunRecord:
    """One run: its recipe (None if it cannot be read), facts and metrics; ``notes`` say what is missing.

    ``given``: a name that comes before the recipe's own, such as a study's labels.
    """

    folder: Path
    recipe: Recipe | None
    recipe_text: str
    info: Mapping[str, Any]
    lines: tuple[dict[str, float | int], ...]
    notes: tuple[str, ...]
    given: str = ""

    @property
    def name(self) -> str:
        """Model and reward, or the folder's name where there is no recipe."""
        if self.given or self.recipe is None:
            return self.given or self.folder.name
        return f"{_model(self.recipe)}, {self.rewards}"

    @property
    def rewards(self) -> str:
        """What it is trained on, with weights where that is a mix."""
        return " + ".join(_reward(one, self.recipe) for one in self.recipe.reward) if self.recipe else "unknown"

    @property
    def models(self) -> list[str]:
        """The policy's model; of a merged one those it was made of."""
        if self.recipe is None:
            return []
        model = self.recipe.policy.model
        return [model] if isinstance(model, str) else [model.merge.base, model.merge.instruct]

    @property
    def judged_on_training(self) -> bool:
        """Whether its evaluation asks problems that it was trained on, for it was given no others."""
        return self.recipe is not None and isinstance(self.recipe.task, FileTask) and not self.recipe.task.holds_out

    @property
    def judged_on_others(self) -> bool:
        """Whether its evaluation is known to ask problems that it was not trained on. Of a task of the user's own that
        is not known."""
        if self.recipe is None or "task" in (self.info.get("needs") or {}):
            return False
        task = self.recipe.task
        return isinstance(task, ArithmeticTask | GymTask) or (isinstance(task, FileTask) and task.holds_out)

    @property
    def last_step(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def state(self) -> str:
        """How far it came, in words."""
        steps = f"{self.last_step}" + (f" of {self.recipe.steps}" if self.recipe else "")
        if (self.folder / FINAL).is_dir():
            return f"finished: {steps} steps"
        return f"not finished: {steps} steps so far"


def is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file() or (folder / METRICS_FILE).is_file()


def read_run(folder: Path, name: str = "") -> RunRecord:
    """What there is of a run, called ``name`` if that is given.

    Damaged metrics raise `RlifError`; whatever else cannot be read is noted.
    """
    notes: list[str] = []
    recipe, text, info = None, "", {}
    try:
        text = (folder / RECIPE).read_text("utf-8", errors="replace")
        recipe = load_recipe(folder / RECIPE)
    except (OSError, RlifError) as error:
        notes.append(f"{folder / RECIPE} cannot be used ({getattr(error, 'strerror', None) or error})")
    try:
        info = json.loads((folder / INFO).read_bytes())
    except (OSError, ValueError) as error:
        notes.append(f"{folder / INFO} cannot be read ({getattr(error, 'strerror', None) or 'not JSON'})")
    there = (folder / METRICS_FILE).is_file()
    lines = tuple(read_metrics(folder / METRICS_FILE)) if there else ()
    if recipe is not None and not recipe.grpo.needs_reference:  # 0 is logged where no reference measures it
        lines = tuple({key: value for key, value in line.items() if key != "kl"} for line in lines)
    if not lines:
        notes.append(f"{folder / METRICS_FILE} holds no step yet" if there else f"{folder / METRICS_FILE} is missing")
    return RunRecord(folder, recipe, text, info if isinstance(info, dict) else {}, lines, tuple(notes), name)


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone, under one name."""

    label: str
    runs: tuple[RunRecord, ...]

    @cached_property
    def keys(self) -> list[str]:
        """Every metric that one of its runs has."""
        return sorted({key for run in self.runs for line in run.lines for key in line})

    @cached_property
    def evaluated(self) -> list[dict[str, float | int]]:
        """The steps that all runs evaluated, each number their mean.

        Standard errors are those of the evaluation for one run; for several, over seeds.
        """
        by_step = [{line["step"]: line for line in run.lines if "eval/n" in line} for run in self.runs]
        common = [step for step in by_step[0] if all(step in lines for lines in by_step)] if by_step else []
        return [self._mean([lines[step] for lines in by_step]) for step in common]

    def _mean(self, lines: Sequence[Line]) -> dict[str, float | int]:
        if len(lines) == 1:
            return dict(lines[0])
        keys = [key for key in lines[0] if all(key in line for line in lines)]
        found: dict[str, float | int] = {key: fmean(line[key] for line in lines) for key in keys}
        for key in keys:
            if key.endswith("_stderr"):
                found[key] = stdev(line[key.removesuffix("_stderr")] for line in lines) / math.sqrt(len(lines))
        return found


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Runs as groups, in their order; groups of one name are told apart by the keys in which they differ."""
    by_key: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_key.setdefault(_key(run), []).append(run)
    members = list(by_key.values())
    names = [own[0].name for own in members]
    found = []
    for own, name in zip(members, names, strict=True):
        alike = [other[0] for other, its in zip(members, names, strict=True) if its == name]
        found.append(Group(printable(name + _difference(own[0], alike)), tuple(own)))
    return found


def _key(run: RunRecord) -> str:
    if run.recipe is None:
        return f"folder {run.folder}"
    return json.dumps(dict(_deciding(run.recipe)), sort_keys=True)


def _deciding(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for key, value in flat(recipe.model_dump(mode="json")):
        if not any(key == one or key.startswith(f"{one}.") for one in _LIKE_SEEDS):
            yield key, value


def flat(data: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of nested mappings, dotted, with their values."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _difference(run: RunRecord, alike: Sequence[RunRecord]) -> str:
    """What sets a run apart from others of its name: up to three keys, else its folder."""
    if len(alike) < 2:
        return ""
    if run.recipe is None:
        return f" ({run.folder})"
    settings = [dict(_deciding(one.recipe)) for one in alike if one.recipe is not None]
    own = dict(_deciding(run.recipe))
    differing = [key for key in own if any(other.get(key) != own[key] for other in settings)]
    if not differing or len(differing) > 3:
        return f" ({run.folder.name})"
    return " (" + ", ".join(f"{key}={shortened(json.dumps(own[key]), 40)}" for key in differing) + ")"


def _model(recipe: Recipe) -> str:
    model = recipe.policy.model
    name = model if isinstance(model, str) else str(model)
    return (Path(name).name if "/" in name and Path(name).is_absolute() else name).replace(", ", " ")


def _reward(one: RewardConfig, recipe: Recipe) -> str:
    return one.label if len(recipe.reward) == 1 else f"{one.weight:g} {one.label}"
