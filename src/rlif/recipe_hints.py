"""What is said of the mistakes in a recipe: whose they are, and which key was probably meant.

A hint names a key that is near, or one that other trainers call so (TRL, verl, transformers); else there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from rlif.config import (
    TASK_CONFIGS,
    WRAPPER_CONFIGS,
    ArithmeticTask,
    FileTask,
    LoraConfig,
    Merge,
    MergedModel,
    Recipe,
    RewardConfig,
    Section,
    TemplateText,
    VllmConfig,
)
from rlif.errors import near, printable, shortened, shown
from rlif.utils.validation import explained, listed, misspelt_first

ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("learning_rate", "actor_lr", "optim_lr"), "grpo.lr"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "lr_schedule", "warmup_style"), "grpo.schedule"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "lr_warmup_steps", "lr_warmup_steps_ratio"), "grpo.warmup"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_betas"), "grpo.betas"),
    **dict.fromkeys(("grad_clip", "clip_grad", "gradient_clipping"), "grpo.max_grad_norm"),
    **dict.fromkeys(("beta", "kl_loss_coef", "init_kl_coef", "kl_beta", "kl_penalty"), "grpo.kl_coef"),
    **dict.fromkeys(("epsilon", "clip_ratio", "clip_ratio_low", "cliprange", "clip_eps"), "grpo.clip_low"),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high", "clip_eps_high"), "grpo.clip_high"),
    **dict.fromkeys(("num_iterations", "ppo_epochs", "update_epochs"), "grpo.epochs"),
    **dict.fromkeys(("ppo_mini_batch_size", "mini_batch_size", "num_mini_batches"), "grpo.minibatches"),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu", "micro_batch_size"),
        "grpo.micro_batch_tokens",
    ),
    **dict.fromkeys(("loss_type", "loss_agg_mode"), "grpo.aggregation"),
    **dict.fromkeys(
        ("vllm_importance_sampling_cap", "vllm_importance_sampling_clip_max", "tis_imp_ratio_cap"),
        "grpo.importance_cap",
    ),
    **dict.fromkeys(("use_vllm", "rollout_engine"), "rollout.engine"),
    **dict.fromkeys(("vllm_gpu_memory_utilization", "gpu_memory_utilization"), "rollout.vllm"),
    **dict.fromkeys(("entropy_coeff", "entropy_bonus"), "grpo.entropy_coef"),
    **dict.fromkeys(("num_generations", "num_return_sequences", "n", "n_samples_per_prompt"), "rollout.group_size"),
    **dict.fromkeys(
        ("max_completion_length", "max_response_length", "response_length", "max_length", "max_tokens"),
        "rollout.max_new_tokens",
    ),
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "train_batch_size",
            "batch_size",
            "generation_batch_size",
        ),
        "rollout.prompts",
    ),
    **dict.fromkeys(("scale_rewards", "norm_adv_by_std_in_grpo"), "advantage.std"),
    **dict.fromkeys(("mask_truncated_completions", "overlong_filtering"), "advantage.cap_incomplete"),
    **dict.fromkeys(("reward_funcs", "reward_function", "reward_fn", "reward_weights", "reward_model"), "reward"),
    **dict.fromkeys(("model_name_or_path", "model_name", "model_path", "model_id", "pretrain"), "policy.model"),
    **dict.fromkeys(("torch_dtype", "bf16", "fp16", "model_dtype"), "policy.dtype"),
    "trust_remote_code": "policy.remote_code",
    **dict.fromkeys(("dataset", "dataset_name", "train_files", "train_file", "data_path", "prompt_data"), "task.path"),
    **dict.fromkeys(("val_files", "eval_dataset", "validation_file", "eval_file"), "task.eval_path"),
    **dict.fromkeys(("dataset_config", "dataset_config_name"), "task.config"),
    **dict.fromkeys(("dataset_split", "dataset_train_split"), "task.split"),
    **dict.fromkeys(("prompt_key", "prompt_column", "input_key"), "task.question_column"),
    **dict.fromkeys(("label_key", "answer_key", "ground_truth"), "task.answer_column"),
    **dict.fromkeys(("system_prompt", "prompt_template"), "task.template"),
    **dict.fromkeys(("num_train_epochs", "max_steps", "total_training_steps", "total_epochs", "num_episodes"), "steps"),
    **dict.fromkeys(("random_seed", "data_seed"), "seed"),
    **dict.fromkeys(("eval_steps", "test_freq", "eval_strategy"), "eval.every"),
    **dict.fromkeys(("save_steps", "save_freq", "save_strategy"), "checkpoint.every"),
    **dict.fromkeys(("save_total_limit", "max_ckpt_to_keep"), "checkpoint.keep_last"),
    **dict.fromkeys(("metric_for_best_model", "load_best_model_at_end"), "checkpoint.best"),
    **dict.fromkeys(("report_to", "logger", "log_with"), "log.sinks"),
    "log_completions": "log.rollouts_every",
    **dict.fromkeys(("output_dir", "default_local_dir", "save_path"), "--out"),
    "resume_from_checkpoint": "--resume",
}
"""What TRL, verl and transformers call it: their key, and ours (or the option of ``rlif train``)."""

_KIND_AT: dict[tuple[str | int, ...], int] = {("task",): 1, ("policy", "model"): 2, ("reward",): 2}
"""Where pydantic's location of a key below these holds the kind of its section: task.arithmetic.low,
policy.model.merged.merge.base, reward.0.negated.of; and, behind these, task.file.template.own.user."""

_DEEPER: Mapping[tuple[str, ...], type[BaseModel]] = {
    ("policy", "model"): MergedModel,
    ("policy", "model", "merge"): Merge,
    ("policy", "lora"): LoraConfig,
    ("rollout", "vllm"): VllmConfig,
    ("task", "template"): TemplateText,
}
"""Sections within sections."""

_OF_FILES = frozenset(FileTask.model_fields) - frozenset(ArithmeticTask.model_fields) | {"file", "data"}


def explain(error: ValidationError, source: str, overrides: Sequence[str] = ()) -> str:
    """The mistakes in one line: where, key, what is wrong, what to do. Misspelt keys come first.

    ``source`` is whose recipe it is; ``overrides`` are what was put into it (``key=value``), and a mistake in one of
    them is said of that one.
    """
    by_place: dict[str, list[str]] = {}
    meant = set()
    for mistake in misspelt_first(error.errors()):
        location = mistake["loc"]
        kinds = {_KIND_AT.get(location[:n]) for n in (1, 2)}
        kinds |= {3} if location[:1] == ("task",) and location[2:3] == ("template",) else set()
        keys = [part for i, part in enumerate(location) if i not in kinds]
        key = shortened(printable(".".join(str(part) for part in keys)), 200)
        said = ""
        if mistake["type"] == "extra_forbidden":
            known = _meant(keys, location)
            meant.add(known)
            said = _unknown(keys, location, known)
        elif mistake["type"] != "missing":
            said = explained(mistake)
        elif key not in meant:  # what was misspelt is missing under its right name
            said = f"{'a further value' if isinstance(keys[-1], int) else 'this key'} is required"
        if said:
            override = _override(key or said.partition(":")[0], overrides)
            place = source if override is None else f"override {shown(override, 200)}"
            by_place.setdefault(place, []).append(f"{key}: {said}" if key else said)
    ordered = sorted(by_place.items(), key=lambda item: item[0] == source)
    return "; also ".join(f"{place}: {listed(each)}" for place, each in ordered)


def _override(key: str, overrides: Sequence[str]) -> str | None:
    """The last override that said something of a key, of a section that it is in, or of what is in it."""
    for one in reversed(overrides):
        of = one.partition("=")[0]
        if key == of or key.startswith(f"{of}.") or (key and of.startswith(f"{key}.")):
            return one
    return None


def _unknown(keys: Sequence[Any], location: tuple[Any, ...], known: str) -> str:
    if location[:2] == ("task", "arithmetic") and keys[-1] in _OF_FILES:
        return (
            "the task arithmetic reads no file; for problems of yours give --data FILE, or say the whole section: "
            "task='{name: file, path: FILE}'"
        )
    if known.startswith("--"):
        return f"unknown key; that is the option {known} of rlif train"
    return f"unknown key; did you mean {known}?" if known else "unknown key"


def _meant(unknown: list[Any], location: tuple[Any, ...]) -> str:
    """The key that was meant: one of that name in another section (lr: grpo.lr), one that other trainers call so, or a
    near one of the same section; "" if there is none."""
    task = TASK_CONFIGS.get(str(location[1]) if location[1:] else "", FileTask)
    reward = WRAPPER_CONFIGS.get(str(location[2]), RewardConfig) if location[2:] else RewardConfig
    sections: dict[str, type[BaseModel]] = {"task": task, "reward": reward}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sections[name] = field.annotation
    *parents, leaf = (printable(str(part))[:100] for part in unknown)
    if not parents:
        elsewhere = [f"{name}.{leaf}" for name, section in sections.items() if leaf in section.model_fields]
        return next(iter(elsewhere), "") or ALIASES.get(leaf, "") or near(leaf, Recipe.model_fields)
    section = _DEEPER.get(tuple(parents), sections.get(parents[0], Recipe))
    if own := near(leaf, section.model_fields):
        own = ".".join([*parents, own])
    deeper = tuple(parents) in _DEEPER  # there no other trainer has a name of its own
    return own if deeper and own else ALIASES.get(leaf, own)
