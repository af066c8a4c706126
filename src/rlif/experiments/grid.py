"""Grids: one YAML file that says many runs, and the cells it is made of.

A grid takes one recipe and says what varies: models (and merges of two), rewards, seeds, any other key. Its cells are
all combinations but those it leaves out. A cell is known by the digest of its settings, whatever it is called: two
cells of equal settings are one run.
"""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from rlif.config import MergedModel, ModelSource, Natural, Recipe, Section
from rlif.errors import RlifError, did_you_mean, named, near, nearest, printable, shortened
from rlif.recipes import RECIPE_KEYS, find_recipe, parse_recipe, read_mapping, set_key
from rlif.utils.validation import explained, listed, misspelt_first

INTERNAL = ("self_certainty", "token_entropy", "trajectory_entropy")
"""The paper's three internal rewards."""

ModelKind = Literal["base", "merged", "instruct"]
RewardKind = Literal["internal", "verifiable", "control"]

_FOLDERS = (Path(__file__).parents[1] / "grids", Path(__file__).parents[3] / "grids")  # in a wheel; in a checkout
_OWN_AXES = {"policy.model": "models", "reward": "rewards", "seed": "seeds"}
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]


class MergeAxis(Section):
    """Models between two others, (1 − ratio) · base + ratio · instruct, labelled r0.1 and so on."""

    base: str
    """A named model, hub id or folder."""
    instruct: str
    """Another of the same architecture, tuned from the same ancestor."""
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)]
    """0: the base model; 1: the instruct model, with the tokenizer of `tokenizer_from` like all the others."""
    tokenizer_from: Literal["base", "instruct"] = "base"
    """Whose tokenizer and chat template all of them take, so that they are given the same prompts."""


def _by_label(value: Any) -> Any:
    """A list of values as label → value; what stands twice is one. Else as it is."""
    return {_label(item): item for item in value} if isinstance(value, list | tuple) else value


def _label(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return str(value["name"])  # a reward's section
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


Labelled = Annotated[dict[str, Any], Field(min_length=1)]


class Grid(Section):
    """A recipe, and what varies around it."""

    recipe: str
    """A recipe file, or the name of a shipped one."""
    set: dict[str, Any] = Field(default={})
    """Recipe key → value, for all cells: {grpo.lr: 1e-4}."""
    models: Annotated[dict[str, ModelSource], Field(min_length=1)] | None = None
    """Label → model, as `policy.model` takes it. Neither models nor merge: the recipe's own."""
    instruct: tuple[str, ...] = ()
    """Labels of those models that are instruction-tuned; findings on base models leave them out."""
    merge: MergeAxis | None = None
    """More models: merges of two."""
    rewards: Labelled | None = None
    """Names, or label → reward as a recipe says it; null: the recipe's own."""
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0,)
    vary: dict[str, Labelled] = Field(default={})
    """Recipe key → its values, or label → value. Several keys: all combinations."""
    one_by_one: dict[str, Labelled] = Field(default={})
    """As `vary`, but one key at a time, the others as the recipe has them; the axis is called `change`."""
    settings: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] | None = None
    """Label → {recipe key: value, …}, {} for the recipe as it is: what is changed together; the axis is called
    `setting`."""
    leave_out: tuple[dict[str, tuple[str, ...]], ...] = ()
    """Each {axis: labels, …}: cells that match all its axes are not run."""
    keep_checkpoints: bool = True
    """false: a finished cell keeps its final model alone."""

    @field_validator("rewards", mode="before")
    @classmethod
    def _reward_labels(cls, value: Any) -> Any:
        return _by_label([value] if isinstance(value, str) else value)

    @field_validator("vary", "one_by_one", mode="before")
    @classmethod
    def _value_labels(cls, value: Any) -> Any:
        return {key: _by_label(values) for key, values in value.items()} if isinstance(value, Mapping) else value

    @field_validator("leave_out", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
            return value
        lists = [{key: one if isinstance(one, list | tuple) else [one] for key, one in each.items()} for each in value]
        return [{key: [_label(label) for label in labels] for key, labels in each.items()} for each in lists]


@dataclass(frozen=True)
class Cell:
    """One run of a grid: a label for each axis, and the recipe with everything spelled out."""

    axes: Mapping[str, str]
    recipe: Recipe
    digest: str
    model_kind: ModelKind
    merge_ratio: float | None

    @property
    def name(self) -> str:
        """Of its folder: the labels, and the first 8 signs of the digest."""
        text = "-".join(f"s{label}" if axis == "seed" else label for axis, label in self.axes.items())
        return f"{slug(text)}-{self.digest[:8]}"

    @property
    def reward_kind(self) -> RewardKind:
        """internal: of the paper's three alone; verifiable: the supervised baseline; control: anything else."""
        names = {reward.name for reward in self.recipe.reward}
        if names <= set(INTERNAL):
            return "internal"
        return "verifiable" if names == {"verifiable"} else "control"


def slug(text: str) -> str:
    """A text as part of a file's name; what it has in parentheses is left out."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", re.sub(r"\(.*?\)", "", text)).strip("-.")[:80]


def shipped_grids() -> dict[str, Path]:
    """Name → file of every grid that ships with rlif."""
    return {path.stem: path for folder in _FOLDERS for path in sorted(folder.glob("*.yaml"))}


def find_grid(grid: Path) -> Path:
    """The file itself, or the shipped grid of that name. Raises `RlifError` if there is neither."""
    if grid.is_file():
        return grid
    shipped = shipped_grids()
    if str(grid) in shipped:
        return shipped[str(grid)]
    raise RlifError(f"{grid}: no such grid; give a YAML file, or the name of a shipped one: {', '.join(shipped)}")


def load_grid(path: Path) -> Grid:
    """Read a grid and check it. Raises `RlifError` naming the file and the key of each mistake."""
    try:
        return Grid.model_validate(read_mapping(path, "grid"))
    except ValidationError as error:
        said, meant = [], set()
        for mistake in misspelt_first(error.errors()):
            key = shortened(printable(".".join(str(part) for part in mistake["loc"])), 200)
            if mistake["type"] == "extra_forbidden":
                section = MergeAxis if mistake["loc"][0] == "merge" else Grid
                *parents, leaf = (str(part) for part in mistake["loc"])
                known = near(leaf[:100], section.model_fields)
                meant.add(".".join([*parents, known]))
                said.append(f"{key}: unknown key{did_you_mean(leaf[:100], section.model_fields)}")
            elif mistake["type"] != "missing" or key not in meant:  # what was misspelt is missing
                said.append(f"{key}: {_wrong(mistake)}")
        raise RlifError(f"{path}: {listed(said)}") from None


def _wrong(mistake: Any) -> str:
    if mistake["type"] == "missing":
        return "this key is required"
    if mistake["type"] == "too_short":
        return "empty; name one at least, or leave the key out"
    return explained(mistake)


def cells(grid: Grid) -> tuple[Cell, ...]:
    """All runs of a grid, one seed after the other. Raises `RlifError` for labels that are not there and for settings
    that no run can have; whether its models are there is not looked at."""
    from rlif.rewards.registry import check_rewards  # these load torch
    from rlif.training.resolve import resolved, with_looks

    found = []
    for labels, recipe in combinations(grid):
        with named({**RECIPE_KEYS, "reward.name": "rewards", "reward.of": "rewards"}):
            whole = resolved(recipe)
            check_rewards(whole.reward)
        found.append(Cell(labels, whole, _digest(with_looks(whole)), *_model_kind(grid, labels["model"])))
    return tuple(found)


def combinations(grid: Grid) -> list[tuple[Mapping[str, str], Recipe]]:
    """The labels and the recipe of every cell, one seed after the other. Raises as `cells`; free of torch."""
    path = find_recipe(Path(grid.recipe))
    data = read_mapping(path, "recipe")
    for key, value in grid.set.items():
        set_key(data, key, value, where=f"set.{key}")
    axes = _axes(grid, parse_recipe(data, source=f"{path} with the grid's set"))
    for entry in grid.leave_out:
        check_labels(axes, entry, where="leave_out")
    found: list[tuple[Mapping[str, str], Recipe]] = []
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        if any(matches(labels, entry) for entry in grid.leave_out):
            continue
        changed = copy.deepcopy(data)
        for axis, label in labels.items():
            for key, value in axes[axis][label].items():
                set_key(changed, key, value, where=f"{axis} {label}")
        found.append((labels, parse_recipe(changed, source=f"cell {', '.join(combination)}")))
    if not found:
        raise RlifError("leave_out: it leaves no cell at all; take an entry out")
    seeds = list(axes["seed"])
    return sorted(found, key=lambda cell: seeds.index(cell[0]["seed"]))


def matches(labels: Mapping[str, str], entry: Mapping[str, Collection[str]]) -> bool:
    """Whether a cell's labels are among those of every axis that ``entry`` names."""
    return all(labels.get(axis) in wanted for axis, wanted in entry.items())


def check_labels(axes: Mapping[str, Collection[str]], entry: Mapping[str, Collection[str]], *, where: str) -> None:
    """Raise `RlifError` if ``entry`` names an axis or a label that the grid has not; ``where`` it stands."""
    for axis, labels in entry.items():
        if axis not in axes:
            raise RlifError(f"{where}: no axis {axis!r}; there are {', '.join(axes)}")
        for label in labels:
            if label not in axes[axis]:
                raise RlifError(f"{where}: no {axis} {label!r}; there are {', '.join(axes[axis])}")


Axis = Mapping[str, Mapping[str, Any]]
"""Label → what it changes, as recipe key → value."""


def _axes(grid: Grid, recipe: Recipe) -> dict[str, Axis]:
    for key in (*grid.vary, *grid.one_by_one, *chain.from_iterable((grid.settings or {}).values())):
        if key in _OWN_AXES:
            raise RlifError(f"vary: {key} has a key of its own in a grid: {_OWN_AXES[key]}")
    own = "+".join(reward.name for reward in recipe.reward)
    rewards = {own: {}} if grid.rewards is None else {name: {"reward": value} for name, value in grid.rewards.items()}
    changes = {
        f"{key}={label}": {key: value} for key, values in grid.one_by_one.items() for label, value in values.items()
    }
    return {
        "model": dict(_models(grid)) or {str(recipe.policy.model): {}},
        "reward": rewards,
        "seed": {str(seed): {"seed": seed} for seed in grid.seeds},
        **{key: {label: {key: value} for label, value in values.items()} for key, values in grid.vary.items()},
        **({"change": {"none": {}, **changes}} if changes else {}),
        **({"setting": grid.settings} if grid.settings else {}),
    }


def _models(grid: Grid) -> Iterator[tuple[str, Mapping[str, Any]]]:
    models = grid.models or {}
    for label, source in models.items():
        plain = source.model_dump(mode="json") if isinstance(source, MergedModel) else source
        yield label, {"policy.model": plain}
    for label in grid.instruct:
        if label not in models:
            raise RlifError(f"instruct: no model {label!r}; there are {', '.join(models) or 'none under models'}")
    for ratio in grid.merge.ratios if grid.merge else ():
        label, merge = f"r{ratio:g}", grid.merge.model_dump(exclude={"ratios"}) if grid.merge else {}
        if label in models:
            raise RlifError(f"models: {label} is what the merge of that ratio is called; choose another label")
        yield label, {"policy.model": {"merge": {**merge, "ratio": ratio}}}


def _model_kind(grid: Grid, label: str) -> tuple[ModelKind, float | None]:
    for ratio in grid.merge.ratios if grid.merge else ():
        if label == f"r{ratio:g}":
            return "base" if ratio == 0.0 else "instruct" if ratio == 1.0 else "merged", ratio
    return "instruct" if label in grid.instruct else "base", None


def _digest(recipe: Recipe) -> str:
    """Of everything that differs from the defaults: a key that later versions add does not change it."""
    text = json.dumps(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def choose(all_cells: Sequence[Cell], *, only: Sequence[str], where: Mapping[str, Collection[str]]) -> list[Cell]:
    """The cells whose name matches a pattern of ``only`` (``*`` for anything; none: all) and whose labels are in
    ``where``. Raises `RlifError` if there is none."""
    from fnmatch import fnmatchcase

    axes = {axis: dict.fromkeys(cell.axes[axis] for cell in all_cells) for axis in all_cells[0].axes}
    check_labels(axes, where, where="where")
    for pattern in only:
        if not any(fnmatchcase(cell.name, pattern) for cell in all_cells):
            raise RlifError(
                f"only: no cell {pattern!r}; the nearest is {nearest(pattern, [c.name for c in all_cells])}"
            )
    chosen = [
        cell
        for cell in all_cells
        if matches(cell.axes, where) and (not only or any(fnmatchcase(cell.name, pattern) for pattern in only))
    ]
    if not chosen:
        raise RlifError("only, where: no cell is in both; loosen one of them")
    return chosen
