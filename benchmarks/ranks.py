"""How much faster several ranks are than one process, each with one thread, in turn.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --ranks 4 --rounds 5 --steps 20 --model smollm2-135m-instruct

One process and N ranks train the same recipe for the same steps, one after the other, as many rounds as asked for.
Taken are the seconds of the phases of each step but the first (`time/rollout`, `time/score`, `time/watch`,
`time/update` of metrics.jsonl). Efficiency is seconds of one process over N times the seconds of N ranks: 1 is ideal.
Each rank needs a core that nobody else uses: on a machine with other work the numbers say nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import print_table, spread, write

PHASES = ("rollout", "score", "watch", "update")
RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description="Efficiency of several ranks.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="each a run of one process and a run of the ranks")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", default="tiny-base")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("changes", nargs="*", help="KEY=VALUE of the recipe")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: the first does not count, give 2 or more")
    changes = [f"steps={options.steps}", f"policy.model={options.model}", *options.changes]
    changes += ["eval.every=0", "checkpoint.every=0", "log.rollouts_every=0"]
    seconds: dict[int, list[dict[str, float]]] = {1: [], options.ranks: []}
    for _ in range(options.rounds):
        for ranks, rounds in seconds.items():
            rounds.append(measured(ranks, changes))
            print(f"{ranks} rank(s): {sum(rounds[-1].values()):.2f} s a step", flush=True)
    alone, together = seconds.values()
    rows = [
        {
            "phase": phase,
            "s a step, 1 process": spread([of_phase(one, phase) for one in alone]),
            f"s a step, {options.ranks} ranks": spread([of_phase(one, phase) for one in together]),
            "efficiency": spread(
                [of_phase(a, phase) / of_phase(b, phase) / options.ranks for a, b in zip(alone, together, strict=True)]
            ),
        }
        for phase in (*PHASES, "all")
    ]
    print_table(rows)
    write(options.out, "ranks", {"changes": changes, "seconds": seconds, "table": rows})


def measured(ranks: int, changes: list[str]) -> dict[str, float]:
    """Median seconds of each phase of a step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        subprocess.run(
            [sys.executable, *launcher, "-m", "rlif", "train", str(RECIPE), "--out", str(out), *changes],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    timed = [step for step in steps if step["step"] >= 2]
    return {phase: statistics.median(step[f"time/{phase}"] for step in timed) for phase in PHASES}


def of_phase(seconds: dict[str, float], phase: str) -> float:
    return sum(seconds.values()) if phase == "all" else seconds[phase]


if __name__ == "__main__":
    main()
