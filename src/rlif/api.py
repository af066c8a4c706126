"""The functions of `import rlif` that take what is at hand: a model's name, a path as text, rows of your own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlif.config import OwnData, PolicyConfig, Recipe
from rlif.errors import expect
from rlif.evals.backends.engine import EngineBackend
from rlif.evals.runner import Candidate
from rlif.evals.runner import evaluate as evaluate_candidates
from rlif.evals.settings import Settings, as_trained
from rlif.experiments.diagnose import Diagnosis
from rlif.experiments.diagnose import diagnose as diagnose_policy
from rlif.experiments.subject import ARITHMETIC, DiagnoseSettings, Subject, subject_of
from rlif.experiments.subject import as_trained as as_trained_before
from rlif.model import loading
from rlif.model.loading import check_source
from rlif.model.policy import Policy
from rlif.recipes import find_recipe
from rlif.recipes import load_recipe as read_recipe
from rlif.report.card import write_card
from rlif.rewards.base import Reward
from rlif.rewards.registry import rewards_of
from rlif.rollout.engine import Engine
from rlif.runs.layout import recipe_path
from rlif.tasks.base import Task
from rlif.tasks.problems import Row, task_of
from rlif.tasks.templates import find_template
from rlif.training import loop
from rlif.training.own_data import recipe_for as recipe_of_own_data
from rlif.types import Problem

Dtype = Literal["auto", "float32", "bfloat16"]
Switch = Literal["auto", "on", "off"]
Rewards = Mapping[str, Reward | Callable[..., Any]]
Problems = Task | Iterable[Problem | Row]


def load_policy(
    model: str | Path | PolicyConfig, *, dtype: Dtype = "auto", device: str = "auto", chat_template: Switch = "auto"
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
    if not isinstance(model, PolicyConfig):
        model = PolicyConfig(model=str(model), dtype=dtype, device=device, chat_template=chat_template)
    return loading.load_policy(model)


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file, or a shipped recipe by its name, with ``key=value`` overrides as on the command line.

    Raises `RlifError` naming the file and the key of each mistake.

    >>> import rlif
    >>> recipe = rlif.load_recipe("tiny", ["steps=2", "reward=token_entropy"])
    >>> recipe.steps, recipe.reward[0].name
    (2, 'token_entropy')
    """
    expect(recipe, (str, Path), "recipe", "a recipe's file, or the name of a shipped one")
    return read_recipe(find_recipe(Path(recipe)), list(overrides))


def recipe_for(
    model: str | Path,
    data: str | Path,
    *,
    question: str | None = None,
    answer: str | None = None,
    reward: str | None = None,
    steps: int | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """A recipe for problems of your own, as ``rlif train --model M --data FILE`` makes one.

    Args:
        model: as `load_policy` takes it; a named one brings its own template, form, length and learning rate.
        data: a .jsonl, .json, .csv, .tsv or .parquet file, or a data set of the hub (openai/gsm8k).
        question: the column of the question; None: problem, question, prompt or messages.
        answer: the column of the answer; None: answer, where there is one. None is needed for internal rewards.
        reward: a name, or what else a recipe's key takes, as YAML (docs/rewards.md); None: self_certainty.
        steps: of training; None: 40.
        overrides: further changes, ``key=value`` as on the command line (``task.config=main`` for the hub).

    Prompts and lengths are fitted to the data and the model's context when training begins. Raises `RlifError` for what
    is wrong.

    >>> import rlif
    >>> recipe = rlif.recipe_for("tiny-base", "sums.jsonl", question="text", steps=10, overrides=["seed=1"])
    >>> recipe.task.question_column, recipe.rollout.max_new_tokens, recipe.seed
    ('text', 96, 1)
    """
    own = OwnData(str(data), question, answer)
    return recipe_of_own_data(str(model), own, reward=reward, steps=steps, overrides=overrides)


def train(
    recipe: Recipe | str | Path, out: str | Path, *, rewards: Rewards | None = None, task: Problems | None = None
) -> Path | None:
    """Train as a recipe says, into a new folder; returns the folder of the final model, which transformers loads.

    Args:
        recipe: or a recipe file, or the name of a shipped recipe.
        rewards: rewards of your own for this run, by the name that the recipe uses; a plain function
            ``f(inputs: RewardInputs) -> (row,)`` is taken to use labels.
        task: problems of your own (see `task_of`), in place of those of the recipe's task, whose template still words
            the prompts and whose format still reads the answers.

    Raises `RlifError` for what the user can fix; `rlif.utils.interrupts.Interrupted` after Ctrl-C, with a checkpoint.

    >>> import rlif, tempfile
    >>> small = ["rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "eval.every=0"]
    >>> recipe = rlif.load_recipe("tiny", ["steps=1", "reward=few_words", *small])
    >>> def few_words(inputs):
    ...     return [-len(text.split()) for text in inputs.rollouts.texts]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     final = rlif.train(recipe, out, rewards={"few_words": few_words})
    ...     trained = rlif.load_policy(str(final))
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    own = rewards_of(rewards or {})
    return loop.train(recipe, Path(out), task=_task(task, recipe), rewards=own, card=partial(write_card, own=own))


def resume(
    out: str | Path,
    *,
    rewards: Rewards | None = None,
    task: Problems | None = None,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    allow_changed: bool = False,
) -> Path | None:
    """Resume a run from its last checkpoint, as if it had never stopped; as `train` otherwise.

    ``rewards`` and ``task`` are given again, for a folder holds no code. ``steps``: go on until there are so many, a
    finished run as well. ``overrides``: ``key=value`` changes of its recipe, of keys alone that decide no number, such
    as ``guards.stop=false`` (docs/reliability.md). Recipe, problems or model that have changed are refused unless
    ``allow_changed``.

    >>> import rlif, tempfile
    >>> small = ["rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "eval.every=0"]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     final = rlif.train(rlif.load_recipe("tiny", ["steps=1", *small]), out)
    ...     rlif.resume(out) == final  # there is nothing left to do
    True
    """
    out = Path(out)
    problems = None if task is None else _task(task, read_recipe(recipe_path(out)))
    own = rewards_of(rewards or {})
    card = partial(write_card, own=own)
    options: dict[str, Any] = {"steps": steps, "overrides": overrides, "allow_changed": allow_changed}
    return loop.resume(out, task=problems, rewards=own, card=card, **options)


def _task(task: Problems | None, recipe: Recipe) -> Task | None:
    if task is None or isinstance(task, Task):
        return task
    return task_of(task, format=recipe.task.format or find_template(recipe.task.template).format)


def evaluate(
    models: str | Path | Sequence[str | Path],
    settings: Settings,
    out: str | Path,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
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
    expect(settings, Settings, "settings", "an rlif.EvalSettings")
    names = [str(model) for model in ([models] if isinstance(models, str | Path) else models)]
    settings, _ = as_trained(settings, names)
    candidates = [_candidate(name, settings, dtype, device) for name in names]
    return evaluate_candidates(candidates, settings, Path(out))


def _candidate(model: str, settings: Settings, dtype: Dtype, device: str) -> Candidate:
    config = PolicyConfig(model=model, dtype=dtype, device=device, chat_template=settings.chat_template)
    check_source(config)  # a model that is not there is found before the first one is asked
    return Candidate(model, lambda: EngineBackend(model, config))


def diagnose(
    model: str | Path | PolicyConfig | Policy,
    problems: str | Path | Problems = "arithmetic",
    settings: DiagnoseSettings | None = None,
) -> Diagnosis:
    """Is it worth training this model on its own feedback? Minutes, no labels.

    Args:
        model: as `load_policy` takes it, or what that gave.
        problems: a file, ``arithmetic``, or problems of your own (see `task_of`), whose answers are not read.
        settings: how you decode, how many prompts; None: the usual ones.

    Returns verdict, reasons and numbers (docs/diagnose.md). Raises `RlifError` for what the user can fix.

    >>> import rlif
    >>> few = rlif.DiagnoseSettings(limit=4, samples=4, max_new_tokens=48)
    >>> found = rlif.diagnose("tiny-instruct", "arithmetic", few)
    >>> found.verdict, found.reasons[0]
    ('cannot tell', '4 prompts are too few; give 16 or more, better 64')
    """
    settings = settings or DiagnoseSettings()
    config = model if isinstance(model, PolicyConfig) else PolicyConfig(model=_name(model))
    if problems != ARITHMETIC:
        settings, config, _ = as_trained_before(settings, config)
    policy = model if isinstance(model, Policy) else load_policy(config)
    if isinstance(problems, str | Path):
        subject = subject_of(problems, settings, config)
    else:
        template = settings.template or "boxed"
        format = settings.format or find_template(template).format
        task = problems if isinstance(problems, Task) else task_of(problems, format=format)
        subject = Subject(task, template, None)
    return diagnose_policy(Engine(policy), subject, settings)


def _name(model: str | Path | Policy) -> str:
    return model.source if isinstance(model, Policy) else str(model)
