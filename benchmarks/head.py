"""The head: log-probabilities with gradient, from hidden states; plain PyTorch, TRL's chunked kernel, rlif.

    python benchmarks/head.py [--tokens 1024] [--hidden 896] [--repeats 3] [--out runs/bench]

For vocabularies of 49,152, 151,936 and 262,144 words: seconds of a forward and a backward pass, the memory they need
beyond inputs and gradients, and the largest error of a log-probability against float64. Each system runs in a process
of its own, fp32 numbers and bf16 numbers apart; memory is the growth of the process's peak.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import print_table, write
from torch import Tensor

VOCABULARIES = (49_152, 151_936, 262_144)


def plain(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return -torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), tokens, reduction="none")


def rlif(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    from rlif.head import Head, head_logprobs

    return head_logprobs(hidden, Head(weight, None, 1.0, None, len(weight)), tokens)


def trl(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    logprobs: Tensor = ChunkedLogProbFunction.apply(hidden, weight, None, tokens, 1.0, 4096, None, 1.0, ())[0]
    return logprobs


SYSTEMS = {"plain": plain, "trl": trl, "rlif": rlif}


def measure(
    system: str, dtype: torch.dtype, vocab: int, tokens: int, hidden_size: int, repeats: int
) -> dict[str, float]:
    """One process's work; see the module's text for what is measured."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, hidden_size, generator=generator) * hidden_size**-0.5).to(dtype).requires_grad_()
    chosen = torch.randint(0, vocab, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator)
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)  # paid before the peak is read
    weight.grad = hidden.grad = None
    function = SYSTEMS[system]
    function(hidden[:2], weight, chosen[:2]).sum().backward()  # libraries loaded, threads awake
    hidden.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        weight.grad = hidden.grad = None
        started = time.perf_counter()
        logprobs = function(hidden, weight, chosen)
        logprobs.backward(upstream)
        seconds.append(time.perf_counter() - started)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
    with torch.no_grad():
        some = slice(0, 64)
        exact = (hidden[some].double() @ weight.double().t()).log_softmax(dim=-1)
        error = (logprobs[some] - exact.gather(1, chosen[some, None])[:, 0]).abs().max().item()
    return {"seconds": statistics.median(seconds), "peak_gb": peak, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        system, dtype, vocab = given.one
        result = measure(system, getattr(torch, dtype), int(vocab), given.tokens, given.hidden, given.repeats)
        print(json.dumps(result))
        return
    rows = []
    for dtype in ("float32", "bfloat16"):
        for vocab in VOCABULARIES:
            for system in SYSTEMS:
                command = [sys.executable, __file__, "--one", system, dtype, str(vocab)]
                command += [
                    "--tokens",
                    str(given.tokens),
                    "--hidden",
                    str(given.hidden),
                    "--repeats",
                    str(given.repeats),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
                rows.append({"dtype": dtype, "vocabulary": vocab, "system": system, **json.loads(done.stdout)})
    print_table(
        [
            {
                "dtype": row["dtype"],
                "vocabulary": f"{row['vocabulary']:,}",
                "system": row["system"],
                "s": f"{row['seconds']:.2f}",
                "extra GB": f"{row['peak_gb']:.2f}",
                "largest error, nats": f"{row['error']:.1e}",
            }
            for row in rows
        ]
    )
    write(given.out, "head", {"tokens": given.tokens, "hidden": given.hidden, "rows": rows})


if __name__ == "__main__":
    main()
