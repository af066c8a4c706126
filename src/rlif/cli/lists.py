"""What there is by name: rewards, signals, templates, tasks, benchmarks, recipes, and the keys of a recipe."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel
from rich.table import Table

from rlif.config import TASK_CONFIGS, WRAPPER_CONFIGS, MergedModel, Recipe, RewardConfig, Section, TemplateText
from rlif.config.task import OWN, TASKS_GROUP
from rlif.errors import RlifError, nearest
from rlif.recipes import read_mapping, shipped_recipes
from rlif.utils.terminal import Console, say


def print_rewards() -> None:
    """Every reward, whether it needs labels, what it is, and its source; those of other packages unloaded."""
    from rlif.config import MIXES
    from rlif.rewards.registry import GROUP, REWARDS, WRAPPERS

    rows = [(one.name, _labels(one.uses_labels), one.meaning, one.citation) for one in REWARDS.values()]
    rows += [(one.name, "as `of`", one.meaning, one.citation) for one in WRAPPERS.values()]
    for name, parts in MIXES.items():
        mix = " and ".join(part.name for part in parts)
        rows.append(
            (name, _labels(any(REWARDS[part.name].uses_labels for part in parts)), f"a mix: {mix}", "docs/rewards.md")
        )
    rows += _installed(GROUP, known={row[0] for row in rows})
    _table(("reward", "labels", "what it is", "source"), rows)
    say()
    say("One of yours: reward=my_rewards:function (docs/own.md).")


def print_signals() -> None:
    """Every signal, with formula, unit and source. None needs a label."""
    from rlif.signals import SIGNALS

    rows = [(one.name, "no", f"{one.formula}; {one.unit}; {one.direction}", one.citation) for one in SIGNALS.values()]
    _table(("signal", "labels", "what it is", "source"), rows)


def print_templates() -> None:
    """Every prompt template, the form of answer it asks for, its words, and their source."""
    from rlif.tasks.templates import TEMPLATES

    rows = [
        (one.name, one.format, " / ".join(part for part in (one.system, one.user) if part), one.citation)
        for one in TEMPLATES.values()
    ]
    _table(("template", "form", "words", "source"), rows)
    say()
    say("One of yours: task.template=FILE.yaml (docs/own.md).")


_LABELLED = {
    "arithmetic": "yes",
    "file": "if it has answers",
    "gsm8k": "yes",
    "math": "yes",
    "reasoning_gym": "scorers",
    OWN: "as you say",
}


def print_tasks() -> None:
    """Every task that a recipe may train on, whether it has labels, and what it is; then the data sets of the gym."""
    about = {"gsm8k": "The same with the schema of GSM8K.", "math": "The same with the schema of MATH."}
    rows = [
        (name, _LABELLED[name], about.get(name) or _first_line(section), "rlif")
        for name, section in TASK_CONFIGS.items()
    ]
    rows += _installed(TASKS_GROUP, known={row[0] for row in rows})
    _table(("task", "labels", "what it is", "source"), rows)
    if importlib.util.find_spec("reasoning_gym"):
        from rlif.tasks.gym import installed_version, names

        found = names()
        say()
        say(f"reasoning_gym: the {len(found)} data sets of reasoning-gym {installed_version()}:")
        Console().print(", ".join(found))
    else:
        say()
        say("reasoning_gym: a hundred kinds of problems, after pip install 'rlif[gym]'")
    say()
    say("rlif eval --tasks list shows the benchmarks.")


def print_benchmarks() -> None:
    """What `rlif eval` knows by name: problems, template, length limit, source."""
    from rlif.tasks.benchmarks import BENCHMARKS, GYM

    rows = [
        (one.name, f"{one.size:,}" if one.size else "–", one.template, str(one.max_new_tokens), _source(one))
        for one in BENCHMARKS.values()
    ]
    rows.append((f"{GYM}DATASET", "512", "boxed", "1024", "reasoning-gym (rlif tasks lists them)"))
    _table(("benchmark", "problems", "template", "tokens", "source"), rows)
    say()
    say("Yours: --tasks NAME --data NAME=FILE.jsonl, or NAME=my_tasks:function (docs/own.md).")


def _source(benchmark: Any) -> str:
    return ", ".join(part for part in (benchmark.hub, benchmark.citation) if part)


def print_recipes() -> None:
    """Every shipped recipe: model, reward, whether that needs labels, steps, and its first sentence."""
    from rlif.recipes import load_recipe
    from rlif.rewards.registry import needs_labels

    rows = []
    for name, path in shipped_recipes().items():
        recipe = load_recipe(path)
        labels = _labels(bool(needs_labels(recipe.reward)))
        rewards = " + ".join(one.name for one in recipe.reward)
        rows.append(
            (name, labels, f"{recipe.policy.model}, {rewards}, {recipe.steps} steps", _comment(path.read_text("utf-8")))
        )
    _table(("recipe", "labels", "what it trains", "in words"), rows)
    say()
    say("rlif recipe NAME prints one; rlif train NAME --out DIR runs it.")


def print_recipe(name: str) -> None:
    """A shipped recipe as it is written. Raises `RlifError` for a name that there is not."""
    shipped = shipped_recipes()
    if name not in shipped:
        raise RlifError(f"{name}: no shipped recipe; did you mean {nearest(name, shipped)}? (rlif recipes lists them)")
    read_mapping(shipped[name], "recipe")  # a damaged one is told of
    for line in shipped[name].read_text("utf-8").splitlines():
        say(line)


def print_keys(section: str | None) -> None:
    """Every key that a recipe may have, with its default and its meaning; of one section if that is named.

    Raises `RlifError` for a section that there is not.
    """
    known = sections()
    if section is not None and section not in known:
        raise RlifError(
            f"--keys {section}: no such section; did you mean {nearest(section, known)}? ({', '.join(known)})"
        )
    for name in [section] if section else known:
        for title, model in known[name]:
            rows = [(key, _default(field), _meaning(field)) for key, field in model.model_fields.items()]
            if name == TOP:
                rows = [row for row in rows if row[0] not in known]
            say()
            say(title)
            _table(("key", "default", "meaning"), rows)


TOP = "recipe"


def sections() -> Mapping[str, Sequence[tuple[str, type[BaseModel]]]]:
    """The sections of a recipe by name, each with the models that say its keys, and a title for each."""
    found: dict[str, list[tuple[str, type[BaseModel]]]] = {TOP: [("keys outside of all sections", Recipe)]}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found[name] = [(f"{name}:", field.annotation)]
    found["policy"].append(("policy.model.merge:", MergedModel.model_fields["merge"].annotation))  # type: ignore[arg-type]
    kinds: dict[type[BaseModel], list[str]] = {}
    for name, model in TASK_CONFIGS.items():
        kinds.setdefault(model, []).append(name)
    found["task"] = [(f"task: {{name: {' | '.join(names)}}}", model) for model, names in kinds.items()]
    found["task"].append(("task.template:, one of yours", TemplateText))
    found["reward"] = [("reward: a name, or a list of", RewardConfig)]
    found["reward"] += [(f"reward: {{name: {name}}}", model) for name, model in WRAPPER_CONFIGS.items()]
    return found


def keys_in_short() -> str:
    """A line a section with its keys, as paragraphs."""
    lines = []
    for name, models in sections().items():
        keys = dict.fromkeys(key for _, model in models for key in model.model_fields)
        shown = [key for key in keys if name != TOP or key not in sections()]
        lines.append(f"{name}: {', '.join(shown)}")
    return "\n\n".join(lines)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(field: Any) -> str:
    return " ".join((field.description or "").split())


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().partition("\n")[0]


def _comment(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ") if text.startswith("# ") else ""


def _labels(uses: bool) -> str:
    return "yes" if uses else "no"


def _installed(group: str, *, known: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """What other packages bring, by their entry points; none of them is loaded."""
    taken = set(known)
    entries = [entry for entry in entry_points(group=group) if entry.name not in taken]
    return [
        (one.name, "?", "of another package", f"{one.dist.name if one.dist else ''} ({one.value})") for one in entries
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, no_wrap=place == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
