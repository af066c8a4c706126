"""One step of SmolLM2-135M-Instruct that trains all weights, beside one that trains an adapter (policy.lora).

    python benchmarks/lora.py [--tokens 24] [--r 16] [--rounds 1] [--out runs/bench]

4 prompts x 8 completions of at most so many tokens, T = 1, self-certainty, one optimizer step, no KL, fp32, one thread.
Each is a process of its own, for its peak memory; they take turns. Times are CPU seconds: what else runs on the machine
slows them less than it slows a clock. The first step draws the same completions both ways, for B is 0.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import print_table, spread, write

SYSTEMS = ("all weights", "adapter")


def step(adapter: bool, tokens: int, r: int) -> dict[str, float]:
    """A step, measured; the model's loading is not."""
    import torch
    from w1 import MODEL, QUESTIONS

    from rlif.config import AdvantageConfig, GrpoConfig, LoraConfig, PolicyConfig, RewardConfig
    from rlif.model.loading import load_policy
    from rlif.model.lora import with_adapter
    from rlif.rewards.score import score
    from rlif.rng import Key
    from rlif.rollout.engine import Engine
    from rlif.rollout.prompts import render
    from rlif.training.grpo import grpo_step
    from rlif.training.optim import MasterOptimizer, adamw
    from rlif.types import Problem, Sampling, Verdict
    from rlif.utils.memory import peak_memory_gb

    policy = load_policy(PolicyConfig(model=MODEL), dtype=torch.float32)
    if adapter:
        policy = with_adapter(policy, LoraConfig(r=r, alpha=2 * r), base=MODEL, mark="", seed=0)
    config = GrpoConfig(kl_coef=0.0, lr=1e-6)
    optimizer = MasterOptimizer(policy.model, adamw(config))
    prompts = render(policy, "plain", [Problem(str(i), question) for i, question in enumerate(QUESTIONS)])
    began = time.process_time()
    rollouts = Engine(policy).sample(prompts, group_size=8, sampling=Sampling(max_new_tokens=tokens), key=Key(0, 1))
    sampled = time.process_time()
    unjudged = (Verdict(None, False, None),) * rollouts.n_rows
    scored = score(rollouts, unjudged, [RewardConfig(name="self_certainty")], AdvantageConfig(), Key(0, 1))
    update = grpo_step(policy, optimizer, scored, config, lr=config.lr)
    return {
        "tokens": int(rollouts.mask.sum()),
        "rollout": sampled - began,
        "update": time.process_time() - sampled,
        "peak_gb": peak_memory_gb(policy.device),
        "mismatch": update.metrics["mismatch/max"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--step", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(step(arguments.step == "adapter", arguments.tokens, arguments.r)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for _ in range(arguments.rounds):
        for name in SYSTEMS:
            command = [sys.executable, __file__, "--step", name, f"--tokens={arguments.tokens}", f"--r={arguments.r}"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, results[name][-1], file=sys.stderr, flush=True)
    print_table(
        [
            {
                "trained": name,
                "completion tokens": spread([run["tokens"] for run in runs], 0),
                "rollout, CPU s": spread([run["rollout"] for run in runs], 1),
                "update, CPU s": spread([run["update"] for run in runs], 1),
                "peak GB": spread([run["peak_gb"] for run in runs], 2),
            }
            for name, runs in results.items()
        ]
    )
    write(arguments.out, "lora", {"r": arguments.r, "limit": arguments.tokens, "steps": results})


if __name__ == "__main__":
    main()
