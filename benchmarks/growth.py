"""Growth: time and peak memory of a step over completion length, group size, vocabulary and model size.

    python benchmarks/growth.py [--steps 3] [--axes length,group,vocabulary,model] [--out runs/bench]

Each point is a process of its own (a peak cannot be taken back), and makes one warm-up step and some measured ones: 2
prompts of 32 tokens, self-certainty, no KL, bf16 where the hardware has it. Length, group and vocabulary vary on a
Llama of 8 layers of 512 with random weights, which all but never ends a completion early, so that the number of tokens
is what was asked for; model size on tiny-base, SmolLM2-135M and Gemma 3 270M. The exponent b of a curve is that of
c · x^b fitted to its medians; beside it that of the floor, 8 · P · N operations and attention's share. Working memory
is the peak beyond what stays from step to step (interpreter, weights, optimizer): the part that could grow.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import print_table, spread, write

PROMPTS, PROMPT_TOKENS = 2, 32
USUAL = {"model": "random", "length": 128, "group": 8, "vocabulary": 32_768}
AXES: Mapping[str, Sequence[Any]] = {
    "length": (64, 128, 256, 512, 1024),
    "group": (4, 8, 16, 32),
    "vocabulary": (32_768, 151_936, 262_144),
    "model": ("tiny-base", "smollm2-135m-instruct", "gemma3-270m"),
}


def policy_of(name: str, vocabulary: int) -> Any:
    """A named model, or the random one with a vocabulary of this size; no EOS of it is ever likely."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlif.config import PolicyConfig
    from rlif.model.loading import load_policy
    from rlif.model.policy import Policy

    if name != "random":
        return load_policy(PolicyConfig(model=name), dtype=torch.float32)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    tokenizer = load_policy(PolicyConfig(model="tiny-base", dtype="float32")).tokenizer
    return Policy(LlamaForCausalLM(config).eval(), tokenizer, (0,), 0, vocabulary, 4096, False, "random")


def measure(point: dict[str, Any], steps: int) -> None:
    """Print one JSON line a step of this point: seconds, tokens, peak memory, floor."""
    from common import matrix_rate

    from rlif.config import AdvantageConfig, GrpoConfig, RewardConfig
    from rlif.model.loading import compute_dtype
    from rlif.rewards.score import score
    from rlif.rng import Key
    from rlif.rollout.engine import Engine
    from rlif.training.grpo import grpo_step
    from rlif.training.optim import MasterOptimizer, adamw
    from rlif.types import Problem, Prompt, Sampling, Verdict
    from rlif.utils.memory import peak_memory_gb

    policy = policy_of(point["model"], point["vocabulary"])
    config = GrpoConfig(kl_coef=0.0, lr=1e-6)
    dtype = compute_dtype("auto", policy.device)
    optimizer = MasterOptimizer(policy.model, adamw(config), compute_dtype=dtype)
    ids = tuple(range(5, 5 + PROMPT_TOKENS))
    prompts = [Prompt(str(i), "", ids, Problem(str(i), "")) for i in range(PROMPTS)]
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    text = policy.model.config.get_text_config()
    length = min(point["length"], (policy.context or 1 << 30) - PROMPT_TOKENS)
    for step in range(steps + 1):
        rate, started = matrix_rate(dtype), time.perf_counter()
        rollouts = Engine(policy).sample(
            prompts, group_size=point["group"], sampling=Sampling(max_new_tokens=length), key=Key(0, step)
        )
        sampled = time.perf_counter()
        unjudged = (Verdict(None, False, None),) * rollouts.n_rows
        scored = score(rollouts, unjudged, [RewardConfig(name="self_certainty")], AdvantageConfig(), Key(0, step))
        grpo_step(policy, optimizer, scored, config, lr=config.lr)
        done = time.perf_counter()
        tokens = rollouts.lengths.double()
        n = float(tokens.sum()) + PROMPTS * PROMPT_TOKENS
        # A query against the keys before it, and the values: 4 operations a feature, four times in all, like 2 · P · N.
        pairs = float((tokens * (tokens / 2 + PROMPT_TOKENS)).sum())
        heads = text.num_attention_heads * (
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        floor = (8 * parameters * n + 16 * text.num_hidden_layers * heads * pairs) / rate / 1e9
        print(
            json.dumps(
                {
                    "rollout": sampled - started,
                    "update": done - sampled,
                    "step": done - started,
                    "tokens": float(tokens.sum()),
                    "parameters": parameters,
                    "floor": floor,
                    "peak_gb": peak_memory_gb(policy.device),
                    "working_gb": peak_memory_gb(policy.device) - resident_gb(),
                }
            ),
            flush=True,
        )


def resident_gb() -> float:
    """Memory of the process as it stands (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(json.loads(arguments.one), arguments.steps)
        return
    results: dict[str, list[dict[str, Any]]] = {}
    for axis in arguments.axes.split(","):
        results[axis] = [{"point": point, "runs": run({**USUAL, axis: point}, arguments.steps)} for point in AXES[axis]]
        print_table([row(axis, entry) for entry in results[axis]])
        print(exponents(axis, results[axis]) + "\n", flush=True)
    write(arguments.out, "growth", {"usual": USUAL, "axes": results})


def run(point: dict[str, Any], steps: int) -> list[dict[str, float]]:
    """The measured steps of a point, from a process of its own; the first is warm-up."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, __file__, "--steps", str(steps), "--one", json.dumps(point)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{point}: exit code {done.returncode}; {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return [json.loads(line) for line in done.stdout.splitlines()[1:]]


def row(axis: str, entry: dict[str, Any]) -> dict[str, Any]:
    runs = entry["runs"]
    return {
        axis: entry["point"],
        "parameters, M": round(runs[0]["parameters"] / 1e6, 1),
        "tokens": round(statistics.median(run["tokens"] for run in runs)),
        "rollout, s": spread([run["rollout"] for run in runs]),
        "update, s": spread([run["update"] for run in runs]),
        "step / floor": spread([run["step"] / run["floor"] for run in runs], 1),
        "peak, GB": f"{max(run['peak_gb'] for run in runs):.2f}",
        "of it working": f"{max(run['working_gb'] for run in runs):.2f}",
    }


def exponents(axis: str, entries: Sequence[dict[str, Any]]) -> str:
    """The fitted exponents of step time, peak memory and floor over an axis (models: over their parameters)."""
    xs = [entry["runs"][0]["parameters"] if axis == "model" else entry["point"] for entry in entries]
    median = {
        key: fitted(xs, [statistics.median(run[key] for run in entry["runs"]) for entry in entries])
        for key in ("step", "rollout", "update", "working_gb", "floor")
    }
    return "exponents: " + ", ".join(f"{key} {value:.2f}" for key, value in median.items())


def fitted(xs: Sequence[float], ys: Sequence[float]) -> float:
    """b of c · x^b by least squares on the logarithms."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


if __name__ == "__main__":
    main()
