"""What a recipe leaves unsaid, spelled out: the recipe that a run's folder holds."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlif.config import MergedModel, Recipe
from rlif.errors import RlifError
from rlif.evals.during_training import MAJORITY_FROM
from rlif.model.registry import MODELS, final_of
from rlif.monitoring.entropy_change import sees_every_action
from rlif.recipes import parse_recipe
from rlif.rewards.base import Reward
from rlif.rewards.score import logged_names
from rlif.runs.metric_keys import find_metric
from rlif.runs.provenance import as_recorded
from rlif.tasks.readers import is_on_hub
from rlif.tasks.templates import find_template, is_file, read_template
from rlif.training.coefficients import CONTROLLERS, Controller, is_on
from rlif.training.probe_problems import looks_every
from rlif.training.token_terms import GATES
from rlif.types import Sampling
from rlif.utils.paths import expanded


def resolved(recipe: Recipe, own: Mapping[str, Reward] = MappingProxyType({})) -> Recipe:
    """A recipe that says what will be done, wherever it is resumed: local paths are absolute, and what the template
    brings (stop strings, the form of answer it asks for), how often is looked, and what the evaluation takes over from
    rollouts is spelled out. ``own``: rewards of the run's own, by name. With rollout.fit how often is looked waits for
    what comes of the fit (`with_looks`), for it follows from what a step costs."""
    data = recipe.model_dump(mode="json")
    data["policy"]["model"] = _absolute_model(recipe.policy.model)
    for key in ("path", "eval_path"):
        if data["task"].get(key) and not is_on_hub(data["task"][key]):
            data["task"][key] = str(expanded(data["task"][key]).resolve())
    template, sampling = find_template(recipe.task.template), eval_sampling(recipe)
    if isinstance(recipe.task.template, str) and is_file(recipe.task.template):  # which may change
        data["task"]["template"] = read_template(Path(recipe.task.template)).model_dump(mode="json")
    data["task"]["format"] = recipe.task.format or template.format
    data["rollout"]["stop"] = list(dict.fromkeys((*template.stop, *recipe.rollout.stop)))
    data["eval"] |= {"top_p": sampling.top_p, "top_k": sampling.top_k}
    if not recipe.rollout.fit:
        data["probe"]["every"] = looks_every(recipe, own)
    data["grpo"]["importance_cap"] = importance_cap(recipe)
    for key in ("path", "labels"):
        if data["probe"][key] is not None and not is_on_hub(data["probe"][key]):
            data["probe"][key] = str(expanded(data["probe"][key]).resolve())
    if recipe.probe.similarity is not None:
        data["probe"]["similarity"]["model"] = _absolute_model(recipe.probe.similarity.model)
    return parse_recipe(data)


def with_looks(recipe: Recipe, own: Mapping[str, Reward] = MappingProxyType({})) -> Recipe:
    """A recipe that says how often is looked. ``own``: as in `resolved`."""
    data = recipe.model_dump(mode="json")
    data["probe"]["every"] = looks_every(recipe, own)
    return parse_recipe(data)


IMPORTANCE_CAP = 2.0
"""`grpo.importance_cap` where vLLM samples: that of the first report of the mismatch (docs/vllm.md)."""


def importance_cap(recipe: Recipe) -> float | None:
    """What grpo.importance_cap comes to: null is a cap where another program samples, if the two can be compared."""
    given, rollout = recipe.grpo.importance_cap, recipe.rollout
    comparable = rollout.temperature == 1.0 or (rollout.top_p == 1.0 and not rollout.top_k)
    return IMPORTANCE_CAP if given is None and rollout.engine == "vllm" and comparable else given


def _absolute_model(model: str | MergedModel) -> str | dict[str, Any]:
    """A model named so that the name means the same in every folder."""
    if isinstance(model, str):
        local = model not in MODELS and expanded(model).exists()
        return str(expanded(final_of(model)).resolve()) if local else model
    sides = {name: _absolute_model(getattr(model.merge, name)) for name in ("base", "instruct")}
    return {"merge": model.merge.model_dump(mode="json") | sides}


def as_before(recipe: Recipe, info: Mapping[str, Any]) -> Recipe:
    """The recipe of a run to resume, as it was meant when the run began (`as_recorded`). One whose run.json holds no
    provenance is of before: its evaluation never took over the filters of its rollouts, and must not begin to in the
    middle of its metrics."""
    data = as_recorded(recipe).model_dump(mode="json")
    data["probe"]["every"] = data["probe"]["every"] or 0  # of a run that began before there were probes
    unfiltered = {"top_p": 1.0, "top_k": 0}
    if "provenance" not in info:
        data["eval"] |= {key: value for key, value in unfiltered.items() if data["eval"][key] is None}
    return parse_recipe(data)


def eval_sampling(recipe: Recipe) -> Sampling:
    """How the evaluation during training draws: as rollouts do, but for what the section eval says otherwise."""
    rollout, own = recipe.rollout, recipe.eval
    return Sampling(
        temperature=own.temperature,
        top_p=rollout.top_p if own.top_p is None else own.top_p,
        top_k=rollout.top_k if own.top_k is None else own.top_k,
        max_new_tokens=rollout.max_new_tokens,
        stop=rollout.stop,
    )


def check_best(recipe: Recipe, own: Mapping[str, Reward] = MappingProxyType({})) -> None:
    """Raise `RlifError` if the run will never log the metric that checkpoint.best names. ``own``: as in `resolved`."""
    name = recipe.checkpoint.best
    if name is None:
        return
    rewards = {f"reward/{reward}/{part}" for reward in logged_names(recipe.reward) for part in ("mean", "std")}
    logged = name in rewards if name.startswith("reward/") else find_metric(name) is not None
    if not logged:
        raise RlifError(f"checkpoint.best: this run logs no {name!r}; see docs/metrics.md")
    for keys, (made, needs) in _NEEDS.items():
        if re.fullmatch(keys.replace("*", ".*"), name) and not made(recipe, own):
            raise RlifError(f"checkpoint.best: this run logs no {name!r}: {keys} needs {needs}")


def _looked_at(recipe: Recipe, own: Mapping[str, Reward]) -> bool:
    return looks_every(recipe, own) > 0


def _unfiltered(recipe: Recipe, own: Mapping[str, Reward]) -> bool:
    return sees_every_action(Sampling.from_config(recipe.rollout))


def _followed(controller: Controller) -> Callable[[Recipe, Mapping[str, Reward]], bool]:
    return lambda recipe, own: is_on(controller, recipe.grpo)


_NEEDS: Mapping[str, tuple[Callable[[Recipe, Mapping[str, Reward]], bool], str]] = {
    "eval/*": (lambda recipe, own: recipe.eval.every > 0, "eval.every"),
    "eval/greedy_*": (lambda recipe, own: recipe.eval.greedy, "eval.greedy"),
    "eval/pass_*": (lambda recipe, own: recipe.eval.samples > 1, "eval.samples=2 or more"),
    "eval/majority_*": (
        lambda recipe, own: recipe.eval.samples >= MAJORITY_FROM,
        f"eval.samples={MAJORITY_FROM} or more",
    ),
    "time/eval": (lambda recipe, own: recipe.eval.every > 0, "eval.every"),
    "probe/*": (_looked_at, "probe.every"),
    "guard/*": (_looked_at, "probe.every"),
    "time/probe": (_looked_at, "probe.every"),
    "time/reference": (_looked_at, "probe.every"),
    "probe/labelled_*": (lambda recipe, own: recipe.probe.labels is not None, "probe.labels"),
    "probe/cross_entropy*": (lambda recipe, own: recipe.probe.start, "probe.start"),
    "probe/kl*": (lambda recipe, own: recipe.probe.start, "probe.start"),
    "probe/renewals": (lambda recipe, own: recipe.probe.refresh > 0, "probe.refresh"),
    "entropy/measured": (lambda recipe, own: recipe.log.entropy_share > 0.0, "log.entropy_share"),
    "entropy/advantage_covariance": (_unfiltered, "rollouts without top_p and top_k"),
    "entropy/predicted*": (
        lambda recipe, own: recipe.log.entropy_share > 0.0 and _unfiltered(recipe, own),
        "log.entropy_share, and rollouts without top_p and top_k",
    ),
    "advantage/token_share": (
        lambda recipe, own: any(getattr(recipe.grpo, gate) is not None for gate in GATES),
        " or ".join(f"grpo.{gate}" for gate in GATES),
    ),
    "importance/*": (lambda recipe, own: bool(importance_cap(recipe)), "grpo.importance_cap"),
    "kl_cov": (lambda recipe, own: recipe.grpo.kl_cov is not None, "grpo.kl_cov"),
    **{name: (_followed(one), f"grpo.{one.target}") for name, one in CONTROLLERS.items()},
}
"""Keys that only some recipes log, ``*`` for any end: when, and what is missing otherwise."""
