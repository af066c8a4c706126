"""The head: log-probabilities with gradient, from hidden states; plain PyTorch, TRL's chunked kernel, rlif.

    python benchmarks/head.py [--dtype bfloat16] [--device cpu] [--tokens 1024] [--hidden 896] [--rounds 5]

In the type that rlif computes in unless told otherwise: bf16 where the hardware multiplies it, else fp32.
For vocabularies of 49,152, 151,936 and 262,144 words, one forward and backward pass:

- seconds, the systems in turn within a round, after one round of warm-up; beside the floor, 6 · tokens · hidden ·
  vocabulary operations (the logits, and a gradient to each factor) at the rate of a plain product in the same round;
  with `--clock cpu` (and OMP_NUM_THREADS=1) those of the processor, for a machine that others use meanwhile;
- memory beyond inputs and gradients, for the number of tokens and for a quarter of it, each in a process of its own:
  the growth of the process's peak, on a GPU of the allocator's;
- the largest error of a log-probability, and the relative error of the gradient to the hidden states, against float64,
  over 64 tokens.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import print_table, spread, write
from torch import Tensor

from rlif.model.loading import compute_dtype

VOCABULARIES = (49_152, 151_936, 262_144)
SETTINGS = ("dtype", "device", "tokens", "hidden", "rounds", "clock")


def plain(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return -torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), tokens, reduction="none")


def rlif(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    from rlif.model.lm_head import Head, head_logprobs

    return head_logprobs(hidden, Head(weight, None, 1.0, None, len(weight)), tokens)


def trl(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    logprobs: Tensor = ChunkedLogProbFunction.apply(hidden, weight, None, tokens, 1.0, 32768, None, 1.0, ())[0]
    return logprobs


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
System = Callable[[Tensor, Tensor, Tensor], Tensor]
SYSTEMS: dict[str, System] = {"plain": plain, "trl": trl, "rlif": rlif}


class Case:
    """Random hidden states, weight, tokens, and a gradient that comes from above, on one device.

    The weight is drawn in place: a temporary copy would raise the peak that memory is measured against.
    """

    def __init__(self, given: argparse.Namespace, vocab: int, tokens: int) -> None:
        self.device = torch.device(given.device)
        self.clock = CLOCKS[given.clock]
        generator = torch.Generator(self.device).manual_seed(0)
        dtype, place = getattr(torch, given.dtype), {"device": self.device}
        self.hidden = torch.empty(tokens, given.hidden, dtype=dtype, **place).normal_(generator=generator)
        self.weight = torch.empty(vocab, given.hidden, dtype=dtype, **place)
        self.weight.normal_(0, given.hidden**-0.5, generator=generator)
        self.tokens = torch.randint(0, vocab, (tokens,), generator=generator, **place)
        self.upstream = torch.randn(tokens, generator=generator, **place)
        self.hidden.requires_grad_()
        self.weight.requires_grad_()

    def run(self, function: System, rows: int | None = None) -> Tensor:
        """Forward and backward pass over some rows (None: all)."""
        self.hidden.grad = self.weight.grad = None
        logprobs = function(self.hidden[:rows], self.weight, self.tokens[:rows])
        logprobs.backward(self.upstream[:rows])
        self.wait()
        return logprobs.detach()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        self.wait()
        started = self.clock()
        work()
        self.wait()
        return self.clock() - started

    def rate(self) -> float:
        """Operations a second of plain products of these hidden states with eight blocks of the weight."""
        with torch.no_grad():
            hidden, blocks = self.hidden[:4096].detach(), self.weight.detach()[: 8 * 4096].split(4096)
            taken = self.seconds(lambda: [hidden @ block.t() for block in blocks])
        return 2 * hidden.numel() * sum(map(len, blocks)) / taken

    def errors(self, function: System) -> dict[str, float]:
        rows = slice(0, 64)
        found = self.run(function, 64)
        with torch.no_grad():
            exact = (self.hidden[rows].double() @ self.weight.double().t()).log_softmax(dim=-1)
            chosen = exact.gather(1, self.tokens[rows, None])
            d = exact.exp_().neg_().scatter_add_(1, self.tokens[rows, None], torch.ones_like(chosen))
            gradient = (d @ self.weight.double()) * self.upstream[rows, None]
            assert self.hidden.grad is not None
            off = torch.linalg.norm(self.hidden.grad[rows] - gradient) / torch.linalg.norm(gradient)
        return {"error": (found - chosen[:, 0]).abs().max().item(), "gradient_error": off.item()}


def times(given: argparse.Namespace, vocab: int) -> dict[str, Any]:
    """Every system in turn, round by round, in one process."""
    case = Case(given, vocab, given.tokens)
    for function in SYSTEMS.values():
        case.run(function)
    rounds = []
    for _ in range(given.rounds):
        floor = 6 * given.tokens * given.hidden * vocab / case.rate()
        seconds = {name: case.seconds(lambda f=function: case.run(f)) for name, function in SYSTEMS.items()}
        rounds.append({"floor": floor, **seconds})
    return {"rounds": rounds, "errors": {name: case.errors(function) for name, function in SYSTEMS.items()}}


def extra_memory(given: argparse.Namespace, vocab: int, tokens: int, system: str) -> float:
    """GB beyond inputs and gradients."""
    Case(given, 1000, 2).run(SYSTEMS[system])  # libraries loaded, threads awake
    case = Case(given, vocab, tokens)
    case.weight.grad, case.hidden.grad = torch.zeros_like(case.weight), torch.zeros_like(case.hidden)  # paid before
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = _peak(case.device)
    case.run(SYSTEMS[system])
    return (_peak(case.device) - before) / 1e9


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(given: argparse.Namespace, *what: object) -> Any:
    """What a process of its own finds out."""
    options = [f"--{name}={getattr(given, name)}" for name in SETTINGS]
    command = [sys.executable, __file__, *options, "--one", *map(str, what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.dtype = given.dtype or str(compute_dtype("auto", torch.device(given.device))).removeprefix("torch.")
    if given.one:
        vocab, *rest = given.one
        print(json.dumps(extra_memory(given, int(vocab), int(rest[0]), rest[1]) if rest else times(given, int(vocab))))
        return
    rows, table = [], []
    for vocab in VOCABULARIES:
        print(f"{vocab:,} words ...", file=sys.stderr)
        found = apart(given, vocab)
        for system in SYSTEMS:
            memory = {n: apart(given, vocab, n, system) for n in (given.tokens // 4, given.tokens)}
            rounds = found["rounds"]
            row = {"vocabulary": vocab, "system": system, "extra_gb": memory, **found["errors"][system]}
            rows.append({**row, "rounds": rounds})
            table.append(
                {
                    "vocabulary": f"{vocab:,}",
                    "system": system,
                    "s": spread([one[system] for one in rounds]),
                    "/ rlif": f"{statistics.median(one[system] / one['rlif'] for one in rounds):.2f}",
                    "/ floor": f"{statistics.median(one[system] / one['floor'] for one in rounds):.2f}",
                    **{f"GB, {n} tok": f"{gb:.2f}" for n, gb in memory.items()},
                    "error": f"{row['error']:.0e}",
                    "of gradient": f"{row['gradient_error']:.0e}",
                }
            )
    print_table(table)
    settings = {name: getattr(given, name) for name in SETTINGS}
    write(given.out, f"head-{given.dtype}-{given.device}", {**settings, "rows": rows})


if __name__ == "__main__":
    main()
