"""Short trainings by TRL with rlif's parts, in one process or under torchrun; what they saw, as JSON.

    torchrun --nproc-per-node 2 tests/integrations/trl_runs.py FOLDER

runs the cases of `CASES` one after another and leaves ``FOLDER/rank-N.json``.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from rlif.integrations import trl_callbacks
from rlif.integrations.trl import AgreementProbe, AgreementReward, CollapseGuard, EngineRollouts, InternalReward
from rlif.monitoring.guards import Alarm
from toys import toy_policy

STEPS = 3
PROMPTS = ["12+34=?", "a", "what is this", "56+7=?", "say 42", "x+y"]


def train(out: Path, *, rows: int, group: int, shard: bool = False, **options: Any) -> dict[str, Any]:
    """Three steps of a toy model on its self-certainty; ``rows`` on each process, ``group`` completions a prompt.

    Signals come from the engine and, beside them, from a pass over the same completions.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    policy = toy_policy()
    if shard:
        fsdp2(policy.model)
    read, votes, scored = InternalReward(), AgreementReward("soft_consensus", format="last_number"), InternalReward()
    seen: dict[str, Any] = {"read": [], "votes": [], "scored": [], "completions": []}

    def spied(name: str, reward: Any, *, by_pass: bool = False) -> Callable[..., list[float]]:
        def call(prompts: Any, completions: Any, completion_ids: Any, **given: Any) -> list[float]:
            if by_pass:
                given.pop("rlif_recorded")
                model = reward.policy.model
                assert model.training, "the trap is not set"
                assert model.is_activation_checkpointing, "the trap is not set"
            values: list[float] = reward(prompts, completions, completion_ids, **given)
            seen[name].append(values)
            return values

        call.__name__ = name
        return call

    def rollouts(prompts: Any, trainer: Any) -> dict[str, Any]:
        drawn = engine(prompts, trainer)
        seen["completions"].append(drawn["completion_ids"])
        return drawn

    engine = EngineRollouts()
    callbacks = [read, votes, scored, *options.pop("callbacks", [])]
    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": rows,
        "num_generations": group,
        "max_completion_length": 16,
        "max_steps": STEPS,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "reward_weights": [1.0, 0.0, 0.0],
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=[spied("read", read), spied("votes", votes), spied("scored", scored, by_pass=True)],
        rollout_func=rollouts,
        callbacks=callbacks,
        args=GRPOConfig(**{**arguments, **options}),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
    )
    trainer.train()
    return {
        **seen,
        "world": trainer.accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "step": trainer.state.global_step,
        "moved": moved(trainer.model),
    }


def moved(model: nn.Module) -> float:
    """The largest change of a weight from where it began."""
    before = dict(toy_policy().model.named_parameters())
    changes = []
    for name, now in model.named_parameters():
        whole: Any = now.full_tensor() if hasattr(now, "full_tensor") else now
        changes.append(float((whole - before[name]).detach().abs().max()))
    return max(changes)


def fsdp2(model: Any) -> None:
    """Real FSDP2 on a CPU, where accelerate would silently run DDP: shard first, and let accelerate wrap nothing."""
    from accelerate import Accelerator, PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PartialState(cpu=True).num_processes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    Accelerator.prepare_model = lambda self, model, **options: model  # type: ignore[method-assign]


def guarded(out: Path) -> dict[str, Any]:
    """Ends at step 2, for a guard of the first process says so; that of the second one never does."""
    first = os.environ.get("RANK", "0") == "0"
    probe = AgreementProbe(PROMPTS, format="last_number", every=1, samples=2, reference_samples=2)

    def decided(records: Any) -> tuple[dict[str, Alarm], int | None]:
        said = {"agreement": Alarm("stop", "as the test wants it")} if first and records[-1].step == 2 else {}
        return said, 1 if first else None

    trl_callbacks.decide = decided
    guard = CollapseGuard(probe)
    found = train(out, rows=4, group=4, callbacks=[guard])
    return {
        **found,
        "records": [record.as_json() for record in probe.records],
        "best": guard.best_step,
        "saved": sorted(path.name for path in out.glob("checkpoint-*")),
    }


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "whole": lambda out: train(out, rows=4, group=4),
    "split": lambda out: train(out, rows=4, group=8),
    "guarded": guarded,
    "sharded": lambda out: train(out, rows=4, group=4, shard=True),  # last: it changes accelerate
}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    found = {name: case(folder / name) for name, case in CASES.items()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found), "utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
