"""Digests of short training runs: equal before and after a change that must not move numbers, on the same machine.

    python benchmarks/digests.py
    PYTHONPATH=../other/src python benchmarks/digests.py    # the same of another checkout

Two runs of tiny-base, 12 steps each: `recipes/tiny.yaml`, and the same with KL, two epochs and a mix of rewards. Of
each it prints the sha256 of the final weights, and of metrics.jsonl without what the machine decides (times, speeds,
memory).
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT = ("steps=12", "eval.every=6", "eval.problems=64", "checkpoint.every=6")
RUNS = {
    "tiny": SHORT,
    "kl, two epochs, a mix": (
        *(*SHORT, "grpo.kl_coef=0.01", "grpo.epochs=2", "grpo.minibatches=2"),
        "reward=[self_certainty, {name: token_entropy, weight: 0.5}]",
    ),
}
RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.yaml"


def main() -> None:
    for name, overrides in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            subprocess.run(
                [sys.executable, "-m", "rlif", "train", RECIPE, "--out", out, *overrides],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            print(f"{name}: weights {weights(out)}, metrics {metrics(out)}", flush=True)


def weights(out: Path) -> str:
    """Of the final model's file."""
    return hashlib.sha256((out / "final" / "model.safetensors").read_bytes()).hexdigest()[:16]


def metrics(out: Path) -> str:
    """Of the lines of metrics.jsonl, keys in order, without times, speeds and the peak of memory."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    kept = [
        {key: line[key] for key in sorted(line) if not key.startswith(("time", "tokens_per_second", "memory"))}
        for line in lines
    ]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
