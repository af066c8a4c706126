"""What drawing inside vLLM costs, and how far its signals are from our engine's; docs/vllm.md has the numbers.

    python benchmarks/vllm_engine.py --rounds 3

Wants vLLM beside rlif (`.ci/vllm` makes such an environment). CPU seconds of the whole process, with one thread; on a
GPU they say nothing. A round draws the same completions by both engines, in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import rlif
from rlif.config import PolicyConfig, RolloutConfig, VllmConfig
from rlif.model.loading import load_policy
from rlif.rollout import vllm_engine
from rlif.rollout.vllm_draw import Drawing
from rlif.utils.terminal import say


def timed(owner: Any, name: str, spent: dict[str, float]) -> None:
    """Add up the CPU seconds of a method under its name."""
    method: Callable[..., Any] = getattr(owner, name)

    def wrapped(*given: Any) -> Any:
        began = time.process_time()
        try:
            return method(*given)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - began

    setattr(owner, name, wrapped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--memory", type=float, default=0.3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(PolicyConfig(model=options.model, dtype="float32", device="cpu"))
    problems = [rlif.Problem(f"p{i}", f"What is {12 + i} plus {34 + i}?") for i in range(options.prompts)]
    prompts = rlif.render(policy, "boxed", problems)
    sampling = rlif.Sampling(max_new_tokens=options.tokens)
    config = RolloutConfig(engine="vllm", vllm=VllmConfig(memory=options.memory, eager=True))
    engines = {"vllm": vllm_engine.VllmEngine(policy, config), "native": rlif.Engine(policy)}
    spent: dict[str, float] = {}
    timed(Drawing, "draw", spent)
    timed(vllm_engine.Server, "take", spent)
    shares, gaps, same, rows = [], [], 0, 0
    for step in range(options.rounds + 1):  # the first warms up
        spent.clear()
        drawn, seconds = {}, {}
        for name, engine in engines.items():
            began = time.process_time()
            given: dict[str, Any] = {"group_size": options.samples, "sampling": sampling, "key": rlif.Key(0, step)}
            drawn[name] = engine.sample(prompts, **given)
            seconds[name] = time.process_time() - began
        if step == 0:
            continue
        mine, ours = drawn["vllm"], drawn["native"]
        equal = [row for row in range(mine.n_rows) if mine.texts[row] == ours.texts[row]]
        same, rows = same + len(equal), rows + mine.n_rows
        width = min(mine.mask.shape[1], ours.mask.shape[1])
        gaps += [
            max((one[row, :width] - other[row, :width]).abs().max().item() for row in equal)
            for one, other in zip(mine.signals, ours.signals, strict=True)
        ]
        shares.append(spent["draw"] / (seconds["vllm"] - spent["take"]))
        say(
            f"round {step}: {int(mine.mask.sum())} tokens; vllm {seconds['vllm']:.2f} s, of which weights "
            f"{spent['take']:.2f} and draws {spent['draw']:.2f}; native {seconds['native']:.2f} s"
        )
    say(f"draws: {100 * statistics.median(shares):.1f} % of sampling; the same text in {same} of {rows} rows")
    for place, name in enumerate(rlif.TokenSignals._fields):
        say(f"{name}: at most {max(gaps[place::3]):.1e} nats from our engine's, where the text is the same")


if __name__ == "__main__":
    main()
