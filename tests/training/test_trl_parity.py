"""One optimizer step on the same rollouts: rlif and TRL's GRPOTrainer arrive at the same weights.

TRL is fed through its public hooks: ``rollout_func`` hands it the completions, a reward function their rewards.

Measured with TRL 1.16 in fp32 on a CPU, over all weights of the toy models, each of which is at most 1:

| case                   | largest difference | mean difference | largest step | mean step |
|------------------------|--------------------|-----------------|--------------|-----------|
| plain descent, 8 cases | 3e-8               | 3e-11           | 1e-3         | 4e-5      |
| with KL                | 6e-8               | 2e-11           | 1e-3         | 4e-5      |
| two epochs, clipping   | 6e-8               | 3e-10           | 6e-3         | 4e-4      |
| std (TRL adds 1e-4)    | 2e-7               | 6e-9            | 1e-3         | 4e-5      |
| AdamW                  | 3e-7               | 3e-11           | 1e-4         | 1e-4      |

Numbers near 1 lie 6e-8 apart in fp32: the rest is rounding, but for std, where the two differ by design.
"""

import dataclasses
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlif.config import GrpoConfig
from rlif.model.policy import Policy
from rlif.rewards.advantages import advantages
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.training.grpo import grpo_step
from rlif.training.optim import MasterOptimizer, adamw
from rlif.types import Rollouts, Sampling, Scored, Update, Verdict
from toys import toy_policy, toy_prompts

LIMIT = 24
GROUP = 4
REWARDS = [1.0, 0.0, 0.25, -0.5, 2.0, 2.0, -1.0, 0.5, 0.0, 0.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def trl() -> ModuleType:
    """Imported here and not above: it takes seconds, and only these tests need it. Where CI=true it must be there."""
    if os.environ.get("CI") == "true" and sys.version_info >= (3, 11):  # TRL's own floor
        return importlib.import_module("trl")
    return pytest.importorskip("trl")


def whole_vocabulary(policy: Policy) -> Policy:
    """TRL knows no padding of the vocabulary: here every embedding row is a token."""
    return dataclasses.replace(policy, vocab_size=policy.model.config.vocab_size)


def sampled(policy: Policy) -> Rollouts:
    """Three prompts of different lengths, completions of different lengths, some cut off by the limit."""
    prompts = toy_prompts(policy, ["a", "12+34=?", "what is this"])
    sampling = Sampling(max_new_tokens=LIMIT)
    rollouts = Engine(policy).sample(prompts, group_size=GROUP, sampling=sampling, key=Key(0, 1))
    assert {"eos", "length"} <= set(rollouts.stop_reasons), "the case should hold both endings"
    return rollouts


def rlif_step(
    policy: Policy, rollouts: Rollouts, config: GrpoConfig, *, optim: str, std: bool, reference: Policy | None
) -> Update:
    build = adamw(config) if optim == "adamw_torch" else lambda masters: torch.optim.SGD(masters, lr=math.nan)
    given = advantages(torch.tensor(REWARDS), GROUP, std=std)
    scored = Scored(rollouts, (Verdict(None, False, None),) * len(REWARDS), {}, given)
    optimizer = MasterOptimizer(policy.model, build)
    return grpo_step(policy, optimizer, scored, config, lr=config.lr, reference=reference)


def trl_step(
    trl: ModuleType, policy: Policy, rollouts: Rollouts, config: GrpoConfig, out: Path, **options: Any
) -> nn.Module:
    """The model after one step of GRPOTrainer on these rollouts and `REWARDS`."""
    from datasets import Dataset  # comes with TRL

    completions = [row[counts].tolist() for row, counts in zip(rollouts.tokens, rollouts.mask, strict=True)]
    first_row = {prompt.text: i * GROUP for i, prompt in enumerate(rollouts.prompts)}

    def rollout_func(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        # Each prompt comes G times, copies adjacent.
        rows = [first_row[prompt] + i % GROUP for i, prompt in enumerate(prompts)]
        assert sorted(rows) == list(range(len(REWARDS)))
        return {
            "prompt_ids": [list(rollouts.row_prompts[row].token_ids) for row in rows],
            "completion_ids": [completions[row] for row in rows],
            "logprobs": None,
            "row": rows,
        }

    def reward(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        assert completion_ids == [completions[i] for i in row]
        return [REWARDS[i] for i in row]

    arguments = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": len(REWARDS),
        "num_generations": GROUP,
        "max_completion_length": LIMIT,
        "max_steps": 1,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "beta": config.kl_coef,
        "epsilon": config.clip_low,
        "epsilon_high": config.clip_high,
        "scale_rewards": "none",
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    trainer = trl.GRPOTrainer(
        model=policy.model,
        reward_funcs=reward,
        args=trl.GRPOConfig(**{**arguments, **options}),
        train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in rollouts.prompts]),
        processing_class=policy.tokenizer,
        rollout_func=rollout_func,
    )
    trainer.train()
    return trainer.model


def weights_of(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


@dataclasses.dataclass(frozen=True)
class Case:
    """The same step in both languages, and how closely the weights must agree: largest and mean difference."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    largest: float = 1.5e-7
    mean: float = 1e-9
    family: str = "llama"
    std: bool = False


CASES = {
    # Aggregations, for three architectures.
    "token mean": Case({}, {"loss_type": "dapo"}),
    "token mean, qwen3": Case({}, {"loss_type": "dapo"}, family="qwen3"),
    "token mean, gemma3": Case({}, {"loss_type": "dapo"}, family="gemma3"),
    "token mean, one batch": Case({}, {"loss_type": "bnpo"}),
    "sequence mean": Case({"aggregation": "sequence_mean"}, {"loss_type": "grpo"}),
    "fixed length": Case({"aggregation": "fixed_length"}, {"loss_type": "dr_grpo"}),
    # Memory settings that must not matter: micro-batches here, gradient accumulation there.
    "micro-batches": Case(
        {"micro_batch_tokens": 100},
        {"loss_type": "dapo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    ),
    "clipped gradient": Case({"max_grad_norm": 0.1}, {"loss_type": "dapo"}),
    # TRL multiplies k3 by the ratio unless told not to; the term of the papers, and of rlif, is k3 itself.
    "kl": Case({"kl_coef": 0.1}, {"loss_type": "dapo", "use_bias_correction_kl": False}),
    # The second step has ratios to the policy before the first, some of them clipped.
    "two epochs": Case(
        {"epochs": 2, "lr": 0.1, "clip_low": 0.05, "clip_high": 0.02},
        {"loss_type": "dapo", "num_iterations": 2, "max_steps": 2},
    ),
    # TRL divides by the standard deviation + 1e-4, rlif by no less than 1e-4: with deviations from 0.5 on, advantages
    # differ by up to 2e-4 of themselves, and so do steps of up to 1e-3.
    "std": Case({}, {"loss_type": "dapo", "scale_rewards": "group"}, largest=3e-7, mean=1e-8, std=True),
    # Adam divides each gradient by its own size: where that is rounding, the step of 1e-4 is rounding too.
    "adamw": Case({"lr": 1e-4}, {"loss_type": "dapo", "optim": "adamw_torch"}, largest=1e-5, mean=1e-9),
}


# TRL, accelerate and datasets warn about themselves.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(CASES))
def test_one_step_gives_the_same_weights(
    name: str, trl: ModuleType, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case = CASES[name]
    ours, theirs = (whole_vocabulary(toy_policy(case.family)) for _ in range(2))
    rollouts, start = sampled(ours), weights_of(ours.model)
    config = GrpoConfig.model_validate({"lr": 0.01, "kl_coef": 0.0, **case.ours})
    reference = None
    if config.kl_coef:
        reference = whole_vocabulary(toy_policy(case.family, seed=1))
        reference.model.eval().save_pretrained(tmp_path / "reference")
        theirs.model.config._name_or_path = str(tmp_path / "reference")  # where TRL takes its reference from
    options = {"optim": "sgd", **case.theirs}
    update = rlif_step(ours, rollouts, config, optim=options["optim"], std=case.std, reference=reference)
    model = trl_step(trl, theirs, rollouts, config, tmp_path, **options)
    assert (update.metrics["kl"] > 0.1) == (config.kl_coef > 0.0), "the case should be far from its reference"
    for side in ("low", "high"):
        assert (update.metrics[f"clip/fraction_{side}"] > 0.05) == (config.epochs > 1), "the case should clip"
    difference, moved = (weights_of(ours.model) - weights_of(model)).abs(), (weights_of(ours.model) - start).abs()
    found = {
        "largest difference": difference.max().item(),
        "mean difference": difference.mean().item(),
        "largest step": moved.max().item(),
        "mean step": moved.mean().item(),
    }
    for what, value in found.items():
        record_property(what, value)
    assert found["largest step"] > 10 * case.largest, found
    assert found["mean step"] > 1000 * case.mean, found
    assert found["largest difference"] < case.largest, found
    assert found["mean difference"] < case.mean, found
