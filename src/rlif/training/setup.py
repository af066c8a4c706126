"""What a run needs before its first step, loaded and checked. Nothing here writes into the run's folder.

Whatever can be wrong with recipe, model, task or prompts is found here, and not in the middle of the night.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import rlif
from rlif.config import PolicyConfig, Recipe
from rlif.errors import Argument, RlifError
from rlif.model.fingerprint import weights_digest
from rlif.model.loading import compute_dtype, load_policy
from rlif.model.lora import cast_adapter
from rlif.model.merge import model_source
from rlif.model.policy import Policy
from rlif.monitoring.sameness import BY_READING, Sameness, sameness
from rlif.rewards.base import Reward
from rlif.rewards.registry import follows_policy
from rlif.rollout.engine import Engine
from rlif.rollout.engines import ENGINES
from rlif.rollout.prompts import check_context, prompts_digest
from rlif.runs.checkpoint import Checkpoint, checkpoint_name, load_checkpoint
from rlif.runs.layout import resume_with
from rlif.runs.provenance import ENCODER, Provenance, model_files
from rlif.tasks import build_task
from rlif.tasks.base import digest
from rlif.training.custom import Custom
from rlif.training.fit import fitted
from rlif.training.launch import check_loaded, check_start
from rlif.training.lora import adapted_policy, start_of
from rlif.training.optim import MasterOptimizer, adamw
from rlif.training.parallel import ALONE, Ranks
from rlif.training.prompt_source import PromptSource, check_problems
from rlif.training.resolve import check_best, with_looks
from rlif.training.split_engine import SplitEngine
from rlif.training.teacher import Teacher
from rlif.types import Prompt

LABELS = "labels"
"""What the provenance of a run calls the prompts of probe.labels."""

BEGAN_WITH = "began_with"
"""The key of a checkpoint's state that holds the steps which a run began with, where it has been told to do more."""


@dataclass(frozen=True)
class Origin:
    """Where a run starts: at the beginning, or from ``checkpoint``.

    ``now`` is the moment that chat templates are told: the start of the run, also if it is resumed on another day.
    ``began`` is what was recorded then, if the run is resumed. A changed reference is refused unless ``allow_changed``.
    """

    out: Path
    now: datetime
    checkpoint: Checkpoint | None = None
    began: Provenance | None = None
    allow_changed: bool = False


@dataclass(frozen=True)
class Setup:
    """A run but for its folder. ``rewards`` is every reward by name, ``state`` what its checkpoints hold as JSON.

    ``eval_prompts``, ``probe_prompts`` and ``labelled_prompts`` are empty where nothing is evaluated or looked at.
    ``start`` is the untrained policy, frozen; None where neither a KL term nor the probe needs it. ``teacher`` is None
    where no reward asks one that follows the policy. ``same`` says which answers are the same to the probe. Of several
    ``ranks`` each has a setup, and the same one.
    """

    recipe: Recipe
    rewards: Mapping[str, Reward]
    policy: Policy
    optimizer: MasterOptimizer
    engine: Engine
    start: Policy | None
    teacher: Teacher | None
    prompts: PromptSource
    eval_prompts: tuple[Prompt, ...]
    probe_prompts: tuple[Prompt, ...]
    labelled_prompts: tuple[Prompt, ...]
    provenance: Provenance
    step: int
    state: dict[str, Any]
    same: Sameness = BY_READING
    ranks: Ranks = ALONE


def prepare(recipe: Recipe, origin: Origin, custom: Custom, ranks: Ranks = ALONE) -> Setup:
    """Load what a run needs, and check it. Raises `RlifError` for what the user can fix."""
    custom.check_rewards(recipe)
    check_best(recipe, custom.rewards)
    check_start(ranks, recipe, custom.needs(recipe))
    task = custom.task or build_task(recipe.task)
    policy, optimizer = load_trainable(recipe, origin.checkpoint, ranks)
    if recipe.rollout.fit and origin.began is None:
        recipe = with_looks(fitted(recipe, task, policy, origin.now, ranks=ranks.size), custom.rewards)
    engine = build_engine(recipe, policy, ranks)
    prompts = PromptSource(recipe, task, policy, origin.now)
    check_problems(prompts, custom.needs_labels(recipe))
    state: dict[str, Any] = (
        origin.checkpoint.state if origin.checkpoint else {"tokens": 0, "seconds": 0.0, "best": None}
    )
    start = load_start(recipe, policy, fresh=origin.checkpoint is None)
    if start is not None:
        state["reference"] = _digest_of_start(recipe, start, state.get("reference"), origin)
    same = sameness(recipe.probe.similarity, policy.device) if recipe.probe.every else BY_READING
    # A probe keeps its prompts when the run goes on for more steps: they were chosen for as many as it began with.
    began_with = state.get(BEGAN_WITH, origin.began.recipe["steps"] if origin.began else recipe.steps)
    if began_with != recipe.steps:
        state[BEGAN_WITH] = began_with
    eval_prompts, probe_prompts = prompts.evaluation() if recipe.eval.every else (), prompts.probe(began_with)
    labelled_prompts = prompts.labelled()
    check_context(policy, (*probe_prompts, *labelled_prompts), recipe.rollout.max_new_tokens)
    held_out = {"eval": eval_prompts, "probe": probe_prompts, LABELS: labelled_prompts}
    provenance = _provenance(prompts, held_out, origin.began, same)
    state["provenance"] = provenance.model_dump(mode="json")
    check_loaded(ranks, loaded(recipe, provenance, policy))
    return Setup(
        recipe=recipe,
        rewards=custom.table,
        policy=policy,
        optimizer=optimizer,
        engine=engine,
        start=start,
        teacher=load_teacher(recipe, policy, optimizer, custom, origin.checkpoint),
        ranks=ranks,
        prompts=prompts,
        eval_prompts=eval_prompts,
        probe_prompts=probe_prompts,
        labelled_prompts=labelled_prompts,
        provenance=provenance,
        step=origin.checkpoint.step if origin.checkpoint else 0,
        state=state,
        same=same,
    )


def load_trainable(
    recipe: Recipe, checkpoint: Checkpoint | None, ranks: Ranks = ALONE
) -> tuple[Policy, MasterOptimizer]:
    """The policy in compute type, under an optimizer that holds the fp32 masters of what is trained.

    A checkpoint is read by the first of several ranks. Others need not have its folder: the model that the run began
    with tells them the shapes.
    """
    path = checkpoint.path if checkpoint is not None and (ranks.first or checkpoint.path.is_dir()) else None
    if recipe.policy.lora is not None:
        policy = adapted_policy(recipe, path)
    else:
        policy = load_policy(_from(recipe, path), dtype=torch.float32)
        if path is not None:  # on a CPU they are the checkpoint's file, mapped, which is kept on the disk by that
            for weight in policy.model.parameters():
                weight.data = weight.data.clone()
    if checkpoint is not None:
        ranks.copied(parameter.data for parameter in policy.model.parameters() if parameter.requires_grad)
    if recipe.grpo.gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    dtype = compute_dtype(recipe.policy.dtype, policy.device)
    optimizer = MasterOptimizer(policy.model, adamw(recipe.grpo), compute_dtype=dtype, ranks=ranks)
    if checkpoint is not None:
        optimizer.restore(checkpoint.tensors)
    return policy, optimizer


def build_engine(recipe: Recipe, policy: Policy, ranks: Ranks = ALONE) -> Engine:
    """What samples from a policy as the recipe's section rollout says, with the help of all ranks."""
    engine = ENGINES[recipe.rollout.engine](policy, recipe.rollout)
    return engine if ranks.size == 1 else SplitEngine(engine, ranks)


def initial_policy(recipe: Recipe, device: torch.device) -> Policy:
    """The policy as it was before the first step, loaded again, in the type the run computes in."""
    return _load_frozen(recipe, None, device)


def policy_at(recipe: Recipe, checkpoints: Path, step: int, device: torch.device) -> Policy:
    """The policy after a step, from its checkpoint; step 0 is the untrained one. On the CPU, for it is to be written,
    and ``device``, on which the run trains, is full; in the type that the run computes in there."""
    dtype = str(compute_dtype(recipe.policy.dtype, device)).removeprefix("torch.")
    there = recipe.policy.model_copy(update={"device": "cpu", "dtype": dtype})
    recipe, device = recipe.model_copy(update={"policy": there}), torch.device("cpu")
    if step == 0:
        return initial_policy(recipe, device)
    path = checkpoints / checkpoint_name(step)
    if not path.is_dir():
        raise RlifError(
            f"{path}: this checkpoint, which the run is to end with, is gone; restore it, or set guards.restore to "
            "false in the run's recipe.yaml to end with the last step"
        )
    load_checkpoint(path)  # every byte is what was written
    return _load_frozen(recipe, path, device)


def _load_frozen(recipe: Recipe, checkpoint: Path | None, device: torch.device) -> Policy:
    if recipe.policy.lora is None:
        return load_policy(_from(recipe, checkpoint), dtype=compute_dtype(recipe.policy.dtype, device))
    policy = adapted_policy(recipe, checkpoint)
    cast_adapter(policy.model)
    return policy


def _from(recipe: Recipe, checkpoint: Path | None) -> PolicyConfig:
    """How to load the policy: as the recipe says, or from a checkpoint."""
    if checkpoint is None:
        return recipe.policy
    return PolicyConfig(**{**recipe.policy.model_dump(), "model": str(checkpoint)})


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; transformers renamed the call within version 5."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def load_start(recipe: Recipe, policy: Policy, *, fresh: bool) -> Policy | None:
    """The policy as it was before the first step, frozen; None where neither a KL term nor the probe needs it."""
    if not (recipe.grpo.needs_reference or (recipe.probe.every and recipe.probe.start)):
        return None
    if recipe.policy.lora is not None:
        start = start_of(recipe, policy)
    else:
        # A resumed policy has moved on: it is the model that the recipe started from.
        kept = replace(policy, model=copy.deepcopy(policy.model)) if fresh else None
        start = kept or initial_policy(recipe, policy.device)
    start.model.requires_grad_(False).eval()
    return start


def load_teacher(
    recipe: Recipe, policy: Policy, optimizer: MasterOptimizer, custom: Custom, checkpoint: Checkpoint | None
) -> Teacher | None:
    """A copy of the policy that follows it, as the checkpoint left it; None where no reward asks for one."""
    if not follows_policy(recipe.reward, custom.table):
        return None
    teacher = Teacher(policy, optimizer)
    if checkpoint is not None:
        teacher.restore(checkpoint.path, optimizer.ranks)
    return teacher


def _digest_of_start(recipe: Recipe, start: Policy, recorded: str | None, origin: Origin) -> str:
    """A resumed run loads its start again, by name: it must be the model it began with."""
    digest = weights_digest(start.model)
    if recorded not in (None, digest) and not origin.allow_changed:
        raise RlifError(
            Argument("model"),
            f": {recipe.policy.model} has changed since this run began, and with it what its KL term or its probe is "
            "held against; put the old weights back, start a new run, or go on with the change on purpose: ",
            resume_with(origin.out, allow_changed=True),
        )
    return digest


def loaded(recipe: Recipe, provenance: Provenance, policy: Policy) -> dict[str, Any]:
    """What must be the same on all ranks, wherever each keeps its files."""
    return {
        "rlif": rlif.__version__,
        "policy.model": provenance.model or str(recipe.policy.model),  # a fetched model is its name
        "data": provenance.problems,
        "prompts": provenance.prompts,
        "device": policy.device.type,
        "dtype": str(compute_dtype(recipe.policy.dtype, policy.device)),
    }


def _provenance(
    prompts: PromptSource, held_out: Mapping[str, tuple[Prompt, ...]], began: Provenance | None, same: Sameness
) -> Provenance:
    recipe = prompts.recipe
    rendered = {"train": prompts.train(1), **{name: some for name, some in held_out.items() if some}}
    files, stamps = model_files(model_source(recipe.policy.model), began)
    labels = tuple(prompt.problem for prompt in held_out[LABELS])
    beside = {"probe.labels": digest(labels) if labels else None, ENCODER: same.digest}
    return Provenance(
        date=prompts.now,
        recipe=recipe.model_dump(mode="json"),
        model=files,
        stamps=stamps,
        problems={**prompts.task.digests(), **{key: found for key, found in beside.items() if found is not None}},
        prompts={name: prompts_digest(some) for name, some in rendered.items()},
    )
