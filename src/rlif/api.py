"""The functions of `import rlif` that take what is at hand: a model's name, a path as text, rows of your own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rlif.config import PolicyConfig, Recipe
from rlif.evals.backends.engine import EngineBackend
from rlif.evals.runner import Candidate
from rlif.evals.runner import evaluate as evaluate_candidates
from rlif.evals.settings import Settings
from rlif.model import loading
from rlif.model.loading import check_source
from rlif.model.policy import Policy
from rlif.recipes import find_recipe
from rlif.recipes import load_recipe as read_recipe
from rlif.training import loop

Dtype = Literal["auto", "float32", "bfloat16"]
Switch = Literal["auto", "on", "off"]


def load_policy(
    model: str | PolicyConfig, *, dtype: Dtype = "auto", device: str = "auto", chat_template: Switch = "auto"
) -> Policy:
    """A model with its tokenizer: a shipped or fetched one by name, a hub id, a folder, a .gguf file.

    Args:
        model: or a whole `PolicyConfig`, which then says the rest, too.
        dtype: compute type; auto is bfloat16 where the hardware multiplies it.
        device: a torch device; auto takes CUDA when there is one.
        chat_template: auto is on if the tokenizer has one.

    Raises `RlifError` for a model that is not there, damaged, or not what it says (`rlif.model.loading.load_policy`).

    >>> import rlif
    >>> policy = rlif.load_policy("tiny-base", dtype="float32")
    >>> policy.context, policy.chat_template
    (256, False)
    """
    if isinstance(model, str):
        model = PolicyConfig(model=model, dtype=dtype, device=device, chat_template=chat_template)
    return loading.load_policy(model)


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file, or a shipped recipe by its name, with ``key=value`` overrides as on the command line.

    Raises `RlifError` naming the file and the key of the first mistake.

    >>> import rlif
    >>> recipe = rlif.load_recipe("tiny", ["steps=2", "reward=token_entropy"])
    >>> recipe.steps, recipe.reward[0].name
    (2, 'token_entropy')
    """
    return read_recipe(find_recipe(Path(recipe)), list(overrides))


def train(recipe: Recipe, out: str | Path) -> Path | None:
    """Train as a recipe says, into a new folder; returns the folder of the final model, which transformers loads.

    Raises `RlifError` for what the user can fix; `rlif.utils.interrupts.Interrupted` after Ctrl-C, with a checkpoint.

    >>> import rlif, tempfile
    >>> small = ["rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "eval.every=0"]
    >>> recipe = rlif.load_recipe("tiny", ["steps=1", *small])
    >>> with tempfile.TemporaryDirectory() as out:
    ...     final = rlif.train(recipe, out)
    ...     trained = rlif.load_policy(str(final))
    """
    return loop.train(recipe, Path(out))


def resume(out: str | Path, *, allow_changed: bool = False) -> Path | None:
    """Go on with a run from its last checkpoint, as if it had never stopped; as `train` otherwise.

    Recipe, problems or model that have changed are refused unless ``allow_changed``.

    >>> import rlif, tempfile
    >>> small = ["rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "eval.every=0"]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     final = rlif.train(rlif.load_recipe("tiny", ["steps=1", *small]), out)
    ...     rlif.resume(out) == final  # there is nothing left to do
    True
    """
    return loop.resume(Path(out), allow_changed=allow_changed)


def evaluate(
    models: str | Sequence[str], settings: Settings, out: str | Path, *, dtype: Dtype = "auto", device: str = "auto"
) -> dict[str, Any]:
    """Ask models every problem of the tasks; returns what ``out/results.json`` holds.

    Every answer is kept in ``out``; in a folder of the same evaluation only what is missing is asked for. Raises
    `RlifError` for what the user can fix.

    >>> import rlif, tempfile
    >>> settings = rlif.EvalSettings(tasks=("additions",), limit=4, samples=2, max_new_tokens=16)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     results = rlif.evaluate("tiny-base", settings, out)
    >>> [(found["model"], found["task"], found["metrics"]["n"]) for found in results["results"]]
    [('tiny-base', 'additions', 8.0)]
    """
    candidates = [
        _candidate(name, settings, dtype, device) for name in ([models] if isinstance(models, str) else models)
    ]
    return evaluate_candidates(candidates, settings, Path(out))


def _candidate(model: str, settings: Settings, dtype: Dtype, device: str) -> Candidate:
    config = PolicyConfig(model=model, dtype=dtype, device=device, chat_template=settings.chat_template)
    check_source(config)  # a model that is not there is found before the first one is asked
    return Candidate(model, lambda: EngineBackend(model, config))
