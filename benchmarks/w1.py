"""W1: one step of self-certainty on SmolLM2-135M-Instruct, beside TRL and beside transformers' generate.

    python benchmarks/w1.py [--steps 5] [--systems rlif,trl-bf16,trl-fp32,generate-bf16] [--group 8] [--out runs/bench]

Unless told otherwise it compares with TRL and generate in the type that rlif computes in: bf16 where the hardware
multiplies it, else fp32. On a GPU rlif-graphs replays its decode step, and trl-vllm is TRL with vLLM on the same GPU;
neither has been run yet.

4 prompts x 8 completions x at most 128 tokens, T = 1, one optimizer step, no KL; --group for more completions. Each
system lives in a process of its own and waits; the parent lets them step in turn, so that a slow minute of the machine
hits all of them. Completions differ in length from system to system: times are divided by completion tokens. TRL has
its defaults (gradient checkpointing and a scoring pass of the model for the reward, as its public hooks ask for) but
for what W1 fixes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import DEVICE, matrix_rate, memory_rate, print_table, spread, wait, write

MODEL = "smollm2-135m-instruct"
SUMS = ((3, 4), (12, 9), (17, 5), (20, 11))
QUESTIONS = [f"What is {a} + {b}? Explain step by step." for a, b in SUMS]
LIMIT = 128

Step = Callable[[], dict[str, float]]


def serve(step: Step) -> None:
    """Answer every line on stdin with one step, measured."""
    print("ready", file=sys.__stdout__, flush=True)
    for _ in sys.stdin:
        tell(step())


def tell(step: dict[str, float]) -> None:
    """The parent about a step; peak memory is that of the GPU if there is one."""
    from rlif.utils.memory import peak_memory_gb

    print(json.dumps({**step, "peak_gb": peak_memory_gb(DEVICE)}), file=sys.__stdout__, flush=True)


def rlif(group: int, *, cuda_graphs: bool = False) -> None:
    import torch

    from rlif.config import AdvantageConfig, GrpoConfig, PolicyConfig, RewardConfig
    from rlif.model.loading import compute_dtype, load_policy
    from rlif.model.logprobs import micro_batches
    from rlif.model.packing import rounded
    from rlif.rewards.score import score
    from rlif.rng import Key
    from rlif.rollout.engine import Engine
    from rlif.rollout.prompts import render
    from rlif.training.grpo import grpo_step
    from rlif.training.optim import MasterOptimizer, adamw
    from rlif.types import Problem, Sampling, Verdict

    policy = load_policy(PolicyConfig(model=MODEL), dtype=torch.float32)
    config = GrpoConfig(kl_coef=0.0, lr=1e-6)
    dtype = compute_dtype("auto", policy.device)
    optimizer = MasterOptimizer(policy.model, adamw(config), compute_dtype=dtype)
    prompts = render(policy, "plain", [Problem(str(i), question) for i, question in enumerate(QUESTIONS)])
    engine, n = Engine(policy, cuda_graphs=cuda_graphs), 0
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    text = policy.model.config
    width = torch.finfo(dtype).bits // 8
    column = (
        2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * width
    )  # bytes of the cache, a token

    def step() -> dict[str, float]:
        nonlocal n
        n += 1
        rate, bandwidth = matrix_rate(dtype), memory_rate()
        started = time.perf_counter()
        rollouts = engine.sample(prompts, group_size=group, sampling=Sampling(max_new_tokens=LIMIT), key=Key(0, n))
        sampled = time.perf_counter()
        unjudged = (Verdict(None, False, None),) * rollouts.n_rows
        scored = score(rollouts, unjudged, [RewardConfig(name="self_certainty")], AdvantageConfig(), Key(0, n))
        grpo_step(policy, optimizer, scored, config, lr=config.lr)
        done = time.perf_counter()
        tokens = int(rollouts.mask.sum())
        lengths, line = rollouts.lengths.tolist(), []
        for part in micro_batches(policy.model, rollouts, range(rollouts.n_rows), config.micro_batch_tokens):
            owners = {row // group for row in part}
            line.append(sum(len(prompts[i].token_ids) for i in owners) + sum(lengths[row] - 1 for row in part))
        once = tokens + sum(len(prompt.token_ids) for prompt in prompts)
        # A decode step reads every weight once, and each row the keys and values before its token.
        ahead = [len(prompt.token_ids) for prompt in rollouts.row_prompts]
        seen = sum(drawn * before + drawn * drawn / 2 for before, drawn in zip(ahead, lengths, strict=True))
        read = max(lengths) * parameters * width + seen * column
        return {
            "tokens": tokens,
            "bandwidth": bandwidth,
            "rollout_memory_floor": read / bandwidth / 1e9,
            "rollout": sampled - started,
            "update": done - sampled,
            "step": done - started,
            "rate": rate,
            "filling": 1 - sum(line) / sum(map(rounded, line)),
            "rollout_floor": 2 * parameters * once / rate / 1e9,
            "update_floor": 6 * parameters * once / rate / 1e9,
        }

    serve(step)


def trl(group: int, *, bf16: bool, vllm: bool = False) -> None:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlif.model.registry import resolve

    state: dict[str, Any] = {}

    def self_certainty(prompts: Any, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """One forward pass more, as the public hooks of TRL ask for; the logits in slices of rows."""
        started = time.perf_counter()
        state["tokens"] = sum(map(len, completion_ids))
        tokenizer, model = state["tokenizer"], state["model"]
        result = []
        for prompt, completion in zip(prompts, completion_ids, strict=True):
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
                text = torch.tensor([ids + completion], device=model.device)
                logits = model(input_ids=text).logits[0, len(ids) - 1 : -1].float()
            certainty = logits.logsumexp(-1) - logits.mean(-1)
            result.append(certainty.mean().item())
        state["reward"] = time.perf_counter() - started
        return result

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Wait for the parent before every step."""

        def on_train_begin(self, args: Any, *_: Any, **kwargs: Any) -> None:
            state.update(model=kwargs["model"], tokenizer=kwargs["processing_class"])
            print("ready", file=sys.__stdout__, flush=True)
            sys.stdin.readline()
            state["started"] = time.perf_counter()

        def on_step_end(self, *_: Any, **kwargs: Any) -> None:
            wait()
            seconds = time.perf_counter() - state["started"]
            tell({"step": seconds, "tokens": state["tokens"], "reward": state["reward"]})
            if not sys.stdin.readline():
                os._exit(0)
            state["started"] = time.perf_counter()

    sys.stdout = sys.stderr  # TRL prints; the parent reads JSON
    trainer = GRPOTrainer(
        model=resolve(MODEL),
        reward_funcs=self_certainty,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=DEVICE.type == "cpu",
            use_vllm=vllm,
            vllm_mode="colocate",
            bf16=bf16,
            per_device_train_batch_size=group,
            gradient_accumulation_steps=len(QUESTIONS),
            num_generations=group,
            max_completion_length=LIMIT,
            temperature=1.0,
            learning_rate=1e-6,
            max_steps=1000,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS]),
        callbacks=[Turns()],
    )
    trainer.train()


def generate(group: int, dtype: str) -> None:
    """transformers' generate on the same prompts."""
    import torch

    from rlif.config import PolicyConfig
    from rlif.model.loading import load_policy
    from rlif.rollout.decode_batch import left_pad
    from rlif.rollout.prompts import render
    from rlif.types import Problem

    policy = load_policy(PolicyConfig(model=MODEL, dtype=dtype))
    prompts = render(policy, "plain", [Problem(str(i), question) for i, question in enumerate(QUESTIONS)])
    rows = [prompt.token_ids for prompt in prompts for _ in range(group)]
    tokens, mask = left_pad(rows, policy.pad_id, policy.device)
    eos = torch.tensor(policy.eos_ids, device=policy.device)

    def step() -> dict[str, float]:
        started = time.perf_counter()
        with torch.no_grad():
            output = policy.model.generate(  # type: ignore[operator]
                input_ids=tokens,
                attention_mask=mask.long(),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=LIMIT,
                pad_token_id=policy.pad_id,
            )
        wait()
        seconds = time.perf_counter() - started
        ended = torch.isin(output[:, tokens.shape[1] :], eos).int().cumsum(dim=1)
        return {
            "tokens": int((ended - torch.isin(output[:, tokens.shape[1] :], eos).int() == 0).sum()),
            "step": seconds,
        }

    serve(step)


SYSTEMS: dict[str, Callable[[int], None]] = {
    "rlif": rlif,
    "rlif-graphs": partial(rlif, cuda_graphs=True),
    "trl-bf16": partial(trl, bf16=True),
    "trl-fp32": partial(trl, bf16=False),
    "trl-vllm": partial(trl, bf16=True, vllm=True),
    "generate-bf16": partial(generate, dtype="bfloat16"),
    "generate-fp32": partial(generate, dtype="float32"),
}


def usual_systems() -> str:
    import torch

    from rlif.model.loading import compute_dtype

    kind = "bf16" if compute_dtype("auto", DEVICE) == torch.bfloat16 else "fp32"
    return f"rlif,trl-{kind},generate-{kind}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--systems", default=usual_systems(), help=", ".join(SYSTEMS))
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        SYSTEMS[arguments.serve](arguments.group)
        return
    names = arguments.systems.split(",")
    workers = {name: start(name, arguments.group) for name in names}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(arguments.steps + 1):
        for name, worker in workers.items():
            result = ask(worker)
            if i:  # the first is warm-up
                results[name].append(result)
            when = f"step {i}" if i else "warm-up"
            print(f"{when:8} {name:14} {result['step']:6.1f} s, {result['tokens']:.0f} tokens", file=sys.stderr)
    for worker in workers.values():
        worker.stdin.close()  # type: ignore[union-attr]
        worker.wait(timeout=60)

    print_table([row(name, runs, results.get("rlif", [])) for name, runs in results.items()])
    if "rlif" in results:
        ours = results["rlif"]
        print(f"\nrlif, n = {len(ours)} steps: matrix rate {spread([r['rate'] for r in ours], 0)} GFLOP/s, ", end="")
        print(f"memory {spread([r['bandwidth'] for r in ours], 0)} GB/s; ", end="")
        for phase in ("rollout", "update"):
            ratios = [r[phase] / r[f"{phase}_floor"] for r in ours]
            print(f"{phase} {spread([r[phase] for r in ours])} s, {spread(ratios)} times its floor; ", end="")
        beside = spread([r["rollout"] / r["rollout_memory_floor"] for r in ours])
        print(f"rollout {beside} times its floor of memory; ", end="")
        print(f"{statistics.median([r['tokens'] / r['rollout'] for r in ours]):.0f} tokens/s; ", end="")
        print(f"filling {spread([100 * r['filling'] for r in ours], 1)} % of an update's tokens")
    write(arguments.out, "w1", {"group": arguments.group, "steps": results})


def row(name: str, runs: list[dict[str, float]], ours: list[dict[str, float]]) -> dict[str, str]:
    """A line of the table; ``ours`` are rlif's steps of the same rounds (generate is compared with its rollouts)."""
    phase = "rollout" if name.startswith("generate") else "step"
    times = [
        (run["step"] / run["tokens"]) / (own[phase] / own["tokens"]) for run, own in zip(runs, ours, strict=bool(ours))
    ]
    return {
        "system": name,
        "s a step": spread([run["step"] for run in runs], 1),
        "completion tokens": spread([run["tokens"] for run in runs], 0),
        "s per 1,000 tokens": spread([1000 * run["step"] / run["tokens"] for run in runs]),
        "times as long as rlif, per token": spread(times, 1) if times and name != "rlif" else "",
        "peak GB": f"{max(run['peak_gb'] for run in runs):.1f}",
    }


def start(name: str, group: int) -> subprocess.Popen[str]:
    """A worker that has loaded its model and waits."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parent)}
    worker = subprocess.Popen(
        [sys.executable, __file__, "--serve", name, "--group", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    while (line := worker.stdout.readline().strip()) != "ready":  # type: ignore[union-attr]
        if not line and worker.poll() is not None:
            sys.exit(f"{name}: could not start; run {sys.executable} {__file__} --serve {name} to see why")
    return worker


def ask(worker: subprocess.Popen[str]) -> dict[str, float]:
    worker.stdin.write("step\n")  # type: ignore[union-attr]
    worker.stdin.flush()  # type: ignore[union-attr]
    result: dict[str, float] = json.loads(worker.stdout.readline())  # type: ignore[union-attr]
    return result


if __name__ == "__main__":
    main()
