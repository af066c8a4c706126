"""What the result of a run depends on, recorded when it begins, and held against what a resumed run finds.

A run resumed with another recipe, other problems or another model is no longer the run it was. What decides
nothing may change: how a file is formatted, where it lies, what is logged and which checkpoints are kept. What changes
no more than rounding may change with a warning.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.model.adapter_files import read_adapter
from rlif.model.files import ADAPTER_CONFIG
from rlif.model.registry import MODELS, resolve
from rlif.model.template_clock import present
from rlif.recipes import parse_recipe
from rlif.runs.layout import resume_with
from rlif.utils.atomic_io import sha256
from rlif.utils.validation import explained

FREE = (
    *("checkpoint.", "log.", "eval.every", "eval.greedy", "rollout.max_mismatch"),
    *("probe.every", "guards.stop", "guards.restore", "guards.choose_by"),
)
"""Keys, or beginnings of them, that decide neither weights nor the value of any number: they may change."""

UNLESS_MERGED = "probe.every"
"""The one of them that decides weights after all, where guards.merge_back moves them by what is seen."""

ROUNDING = (
    *("policy.device", "rollout.max_rows", "rollout.cuda_graphs", "rollout.engine"),
    *("rollout.vllm.memory", "rollout.vllm.eager", "rollout.vllm.sleep"),
    *("grpo.micro_batch_tokens", "grpo.gradient_checkpointing"),
)
"""Keys that change speed and memory, and no result beyond rounding: they may change, with a warning."""

_MODEL_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("*token*", "vocab*", "merges.txt", "*.model", "chat_template*", "additional_chat_templates/*", "*.py"),
)
"""What transformers reads of a model folder."""

ENCODER = "probe.similarity.model"
"""The key of the one thing that is looked into as data are, and is a model."""

_GGUF = "model.gguf"
"""What a .gguf file is called here, whatever its name: a renamed one is the same model."""


class Provenance(BaseModel):
    """What decided a run when it began: JSON in run.json and in the state of every checkpoint.

    Attributes:
        date: the local time that chat templates are told, whenever a prompt is rendered.
        recipe: as it was parsed, every default spelled out.
        model: file of the model to sha256 of its contents; empty where nothing is known.
        stamps: file of the model to size, inode and times it had when it was read: as long as they are the same it need
            not be read again.
        problems: recipe key of a data file to the digest of the problems in it (`rlif.tasks.base.digest`); `ENCODER` to
            that of what the probe calls the same.
        prompts: digest of the first step's prompts (train), of all prompts of the evaluation (eval).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    date: datetime
    recipe: dict[str, Any]
    model: dict[str, str]
    problems: dict[str, str]
    prompts: dict[str, str]
    stamps: dict[str, str] = {}


class Change(NamedTuple):
    """Something that is not as it was when the run began, and how far it reaches."""

    said: str
    effect: Literal["result", "rounding", "none"]
    key: str = ""


def read_provenance(data: Any, where: Path) -> Provenance | None:
    """What stands under ``provenance`` in ``data``; None for a run of an rlif that did not record it.

    Raises `RlifError` naming ``where`` if it is damaged.
    """
    found = data.get("provenance") if isinstance(data, Mapping) else None
    if found is None:
        return None
    try:
        return Provenance.model_validate(found)
    except ValidationError as error:
        key = ".".join(map(str, ("provenance", *error.errors()[0]["loc"])))
        raise RlifError(f"{where}: {key} is damaged ({explained(error.errors()[0])}); restore the file") from error


def start_of(info: Mapping[str, Any]) -> datetime:
    """When a run began that recorded no date for its templates: ``started`` of its run.json, as local time."""
    try:
        return datetime.fromisoformat(info["started"]).astimezone().replace(tzinfo=None, microsecond=0)
    except (KeyError, TypeError, ValueError):
        return present()


def accept(
    began: Provenance | None,
    found: Provenance,
    *,
    step: int,
    out: Path,
    allow: bool,
    extended: bool = False,
    teacher: bool = False,
) -> list[str]:
    """Decide whether a run may go on from ``step`` with what is ``found``; returns all that has changed, in words.

    ``extended``: it was told to go on for so many steps, whatever a schedule makes of that. ``teacher``: one follows
    the policy, whose decay depends on the number of steps. Raises `RlifError` for a change that decides the result,
    unless ``allow``; warns of one that changes rounding.
    """
    if (steps := found.recipe["steps"]) < step:
        raise RlifError(f"{out}/recipe.yaml: steps is {steps}, but {step} are done; give {step} or more")
    if began is None:
        return []
    changes = [one for one in _changes(began, found, teacher) if not (extended and one.key == "steps")]
    deciding = [change.said for change in changes if change.effect == "result"]
    if deciding and not allow:
        more = f" (and {len(deciding) - 1} more)" if len(deciding) > 1 else ""
        raise RlifError(
            f"{deciding[0]}{more} since the run in {out} began; put that back, or go on with the change on purpose: ",
            resume_with(out, allow_changed=True),
        )
    for change in changes:
        if change.effect == "rounding":
            message = f"{change.said} since the run in {out} began: the same to rounding, not bit for bit"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    return [change.said for change in changes]


def as_recorded(recipe: Recipe) -> Recipe:
    """The recipe of a run as its rlif understood it. A run's recipe spells out every key there was: one that is silent
    about eval.greedy is of before, and has no such evaluation."""
    if "greedy" in recipe.eval.model_fields_set:
        return recipe
    return recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"greedy": False})})


def _changes(began: Provenance, found: Provenance, teacher: bool) -> Iterator[Change]:
    source = "the recipe that the run began with"
    old, new = (as_recorded(parse_recipe(one.recipe, source=source)) for one in (began, found))
    known = {key for key in found.problems if key in began.problems}
    known |= {"policy.model"} if began.model and found.model else set()
    yield from _recipe_changes(old, new, known, teacher)
    if "policy.model" in known and (file := _first_difference(began.model, found.model)):
        yield Change(f"policy.model: {file} of {new.policy.model} has changed", "result")
    for key, digest in found.problems.items():
        used = key not in ("task.eval_path", "task.eval_problems") or (old.eval.every and new.eval.every)
        if used and began.problems.get(key, digest) != digest:
            given = _value(new, key) if "." in key else None  # the task itself: rows, or an object
            path = given or getattr(new.task, "path", "what was given from Python")
            what = "weights, tokenizer or threshold of" if key == ENCODER else "the problems in"
            yield Change(f"{key}: {what} {path} have changed", "result")
    if any(began.prompts.get(key, digest) != digest for key, digest in found.prompts.items()):
        yield Change("prompts: tokenizer, chat template or task render the first ones differently,", "result")


def _value(recipe: Recipe, key: str) -> Any:
    """What a recipe has under a dotted key; None if there is no such key."""
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name, None)
    return found


def _recipe_changes(old: Recipe, new: Recipe, known: set[str], teacher: bool) -> Iterator[Change]:
    """Keys with another value; ``known`` are those whose files were looked into: what they are called is no matter."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    for key in dict.fromkeys((*before, *after)):
        was, now = before.get(key), after.get(key)
        if was != now and key not in known:
            effect = _effect(key, old, new, teacher)
            yield Change(f"recipe.yaml: {key} was {_brief(was)}, is {_brief(now)}", effect, key)


def _effect(key: str, old: Recipe, new: Recipe, teacher: bool) -> Literal["result", "rounding", "none"]:
    if key == "steps":  # where neither learning rates nor a teacher's decay depend on them, more steps only follow
        return "none" if new.grpo.schedule == "constant" and new.grpo.warmup == 0.0 and not teacher else "result"
    if is_free(key, old) and is_free(key, new):
        return "none"
    return "rounding" if key in ROUNDING else "result"


def is_free(key: str, recipe: Recipe) -> bool:
    """Whether a key of a run's recipe, as ``section.key``, may have another value when the run goes on (`FREE`)."""
    if key == UNLESS_MERGED and recipe.guards.merge_back:
        return False
    return any(key.startswith(one) if one.endswith(".") else key == one for one in FREE)


def _flat(data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return found


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    return next((name for name in sorted({*old, *new}) if old.get(name) != new.get(name)), "")


def model_files(source: str, began: Provenance | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """What a recipe's model consists of: file to sha256, and file to stamp (`Provenance`).

    It is a folder, a .gguf file or what the cache holds of a hub id; of an adapter also its base, as ``base/FILE``.
    Empty for what is not there, and for a fetched model: its name stands for one sha256 (`rlif.model.registry`). A file
    with the stamp it had when the run ``began`` is not read again. Of a hub id only the files count, not the commit;
    what the cache lacks of a newer commit was not loaded, and counts as it was.
    """
    files, on_hub = _model_paths(source)
    rest = began.model if began and on_hub else {}
    stamps = {name: _stamp(file) for name, file in files.items()}
    unchanged = dict(began.stamps.items() & stamps.items()) if began else {}
    known = {name: began.model[name] for name in unchanged if name in began.model} if began else {}
    return rest | {name: known.get(name) or _digest(file) for name, file in files.items()}, stamps


def _model_paths(source: str) -> tuple[dict[str, Path], bool]:
    """The files of a model, and whether they are what the hub's cache has of it."""
    if source in MODELS and not MODELS[source].shipped:
        return {}, False
    path = Path(resolve(source)).expanduser()
    if path.is_file():
        return {_GGUF: path}, False
    folder = path if path.is_dir() else _snapshot(source)
    if folder is None:
        return {}, False
    files, on_hub = _files_of(folder), folder != path
    if ADAPTER_CONFIG in files and "config.json" not in files:
        base, base_on_hub = _model_paths(read_adapter(folder).base)
        files |= {f"base/{name}": file for name, file in base.items()}
        on_hub |= base_on_hub
    return files, on_hub


def _files_of(folder: Path) -> dict[str, Path]:
    files = {file for pattern in _MODEL_FILES for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): file for file in sorted(files)}


def _snapshot(source: str) -> Path | None:
    """The folder of a hub id in the hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(source, name) for name in ("config.json", ADAPTER_CONFIG)]
    except HFValidationError:
        return None
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def _stamp(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}"


def _digest(file: Path) -> str:
    """sha256 of a file. The hub's cache calls its large files by theirs, and links to them."""
    blob = file.resolve()
    named = file.is_symlink() and blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name)
    return blob.name if named else sha256(file)
