"""The evidence that leaves with a model: a model card in ``final/README.md``, made from the run's files alone.

It has what a reader needs to believe a gain: the base model, the recipe, whether labels entered, the scores at the
start, at their best and at the end with their errors, the training-free baselines, and which step's weights these are.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from rlif.config import Recipe
from rlif.model.registry import MODELS
from rlif.report.run_record import Group, RunRecord, read_run
from rlif.report.story import chosen_step, has_labels, is_scored, table, tells
from rlif.report.usage import usage
from rlif.runs.layout import FINAL
from rlif.utils.atomic_io import write_whole, writing

if TYPE_CHECKING:
    from rlif.rewards.base import Reward

CARD = "README.md"
_USE = "Asked as in training; DIR is this folder, or the name that it has on a hub."


def write_card(run: Path, own: Mapping[str, "Reward"] = MappingProxyType({})) -> Path:
    """Write the card of a finished run into its final model; returns its path.

    ``own``: rewards that the run was handed besides those known by name. Raises `RlifError` if it cannot be written.
    """
    text, path = card_of(run, own), run / FINAL / CARD
    with writing(path, "the model beside it is whole"):
        write_whole(path, text.encode())
    return path


def card_of(run: Path, own: Mapping[str, "Reward"] = MappingProxyType({})) -> str:
    """The card of the run in a folder. ``own`` as in `write_card`."""
    from rlif.rewards.registry import needs_labels  # loads torch, which whoever trained has loaded

    record = read_run(run)
    mix = record.recipe.reward if record.recipe else ()
    return card(record, needs_labels([one for one in mix if one.weight > 0], own))


def card(run: RunRecord, labels: Sequence[str]) -> str:
    """The card as Markdown, its front matter as the Hugging Face hub reads it. ``labels``: rewards trained on that
    read ground truth."""
    if run.recipe is None:
        return f"# A model trained with rlif\n\nNo recipe was found beside it: {'; '.join(run.notes)}.\n"
    group = Group(run.name, (run,))
    parts = [
        f"---\n{yaml.safe_dump(_front(run), sort_keys=False, allow_unicode=True)}---\n",
        f"# {public_name(run.name)}\n",
        _training(run, run.recipe, labels),
        f"## Scores\n\n{_scores(group)}",
        f"## Use it\n\n{_USE}\n\n```python\n{usage(run.recipe, run.folder)}\n```\n",
        f"## Recipe\n\n```yaml\n{public_recipe(run.recipe_text)}```\n",
        f"## Made with\n\n{_versions(run.info)}",
    ]
    return "\n".join(parts)


def _front(run: RunRecord) -> dict[str, Any]:
    models = [public_name(model) for model in run.models]
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": models if len(models) > 1 else models[0],
        **_license(run.models),
        "tags": ["rlif", "grpo", "reinforcement-learning"],
    }


_LICENSES = {"Apache-2.0": "apache-2.0", "Gemma Terms of Use": "gemma"}
"""What the hub calls the licences of models that are known by name."""


def _license(models: Sequence[str]) -> dict[str, str]:
    """That of the base model; nothing where one is not known by name, or two differ."""
    found = {_LICENSES.get(MODELS[model].licence) if model in MODELS else None for model in models}
    (license,) = found if len(found) == 1 else (None,)
    return {"license": license} if license else {}


def public_name(model: str) -> str:
    """A model's name without the folders above it: a card may be published."""
    return re.sub(r"(?<![\w.])(?:~|\.{1,2})?/(?:[^/\s,]+/)*([^/\s,]+)", r"\1", model)


def _training(run: RunRecord, recipe: Recipe, labels: Sequence[str]) -> str:
    said = f"Labels entered: {', '.join(labels)} read the ground truth." if labels else "No label entered its reward."
    return (
        f"{public_name(' and '.join(run.models))}, trained with GRPO for {run.last_step} steps on "
        f"{run.rewards}, {recipe.rollout.prompts} prompts × {recipe.rollout.group_size} completions a step. "
        f"{said} {_chosen(run.info.get('selected'))}\n"
    )


def _chosen(selected: Any) -> str:
    """By what the weights were chosen; ``selected`` is what run.json says of it (`rlif.training.looks`), or None."""
    found = chosen_step(selected)
    return f"These are the weights of {found}." if found else "These are the weights of the last step; none was chosen."


def _scores(group: Group) -> str:
    if not group.evaluated:
        return "It was not evaluated while it was trained.\n"
    if not is_scored(group):
        why = "is not known" if has_labels(group.evaluated) else "cannot be said: no problem has a label"
        return f"How many of its answers are right {why}.\n{_known_without_labels(group)}"
    head = ("decoding", "before training", "best @ step", "last @ step", "right, any form", "formatted")
    rows = [head, ("---",) * len(head)]
    for row in table([group]):
        rows.append(tuple(row[key] for key in ("decoding", "start", "best", "last", "right", "formatted")))
    problems = int(group.evaluated[0].get("eval/problems", group.evaluated[0]["eval/n"]))
    return (
        "\n".join("| " + " | ".join(row) + " |" for row in rows)
        + f"\n\nShare right and formatted, ± one standard error, {_judged_on(group.runs[0], problems)}. What each way "
        "to decode gives before training needs no training: a gain is what goes beyond the best of them. The best is "
        "the highest of several noisy evaluations.\n"
    )


_WITHOUT_LABELS = (
    ("answers in the asked form", "eval/formatted", ".3f"),
    ("self-agreement of a prompt's answers", "eval/self_agreement", ".3f"),
    ("agreement with the untrained model's answers", "probe/agreement", ".3f"),
    ("entropy, nats a token", "eval/entropy", ".3f"),
    ("length, tokens", "eval/length", ".0f"),
)
"""What can be said of a model without labels, the metric it is read from, and how it is written."""


def _known_without_labels(group: Group) -> str:
    """What is known at the start, at the step that was chosen, and at the end; nothing where nothing is."""
    run, rows = group.runs[0], []
    selected = run.info.get("selected")
    chosen = selected["step"] if isinstance(selected, dict) else run.last_step
    for name, key, form in _WITHOUT_LABELS:
        course = {line["step"]: f"{line[key]:{form}}" for line in run.lines if key in line}
        if len(course) < 2 or not tells(group, key):
            continue
        values = list(course.values())
        rows.append((name, values[0], course.get(chosen, "–"), values[-1]))
    if not rows:
        return ""
    head = ("without labels", "before training", f"chosen, step {chosen}", f"last, step {run.last_step}")
    return "\n" + "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _judged_on(run: RunRecord, problems: int) -> str:
    """Of which kind the problems of the evaluation are."""
    if run.judged_on_training:
        return f"{problems} of the problems it was trained on"
    return f"{problems} {'held-out problems' if run.judged_on_others else 'problems of the evaluation'}"


def public_recipe(text: str) -> str:
    """A recipe as it was run, local paths cut to their last part."""
    return re.sub(r"(?m)(:\s+)(/\S+)$", lambda match: match[1] + Path(match[2]).name, text)


def _versions(info: Mapping[str, Any]) -> str:
    versions = info.get("versions")
    told = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    told += [f"commit {info['commit']}"] if info.get("commit") else []
    return (
        f"{', '.join(told) or 'versions are not known'}.\n\n"
        "```sh\nrlif train recipe.yaml --out DIR    # the recipe above; models and data by your own paths\n```\n"
    )
