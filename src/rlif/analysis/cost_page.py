"""docs/cost.md, from the cost model: ``python -m rlif.analysis.cost_page > docs/cost.md`` writes the page."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from rlif.analysis.cost import Cost, Work, cost
from rlif.analysis.hardware import DEVICES, SHAPES, Device
from rlif.recipes import load_recipe, shipped_recipes

PROMPT_TOKENS, TOKENS = 300.0, 1024.0
MODELS = ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-4B-Base", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-32B")
PLACES = (("rtx4090", 1), ("h100", 1), ("h100", 8), ("h100", 64), ("h200", 8))
TRAINED = {"all": 0, "adapter": 16}  # rank
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Measured(NamedTuple):
    """Benchmark W1 as docs/performance.md has it: tokens of a step, seconds, GB, and the rates of the same run."""

    device: str
    tokens: float
    rollout: float
    update: float
    peak: float
    matrix: float
    bandwidth: float


W1 = (
    Measured("cpu-amx", 3406, 4.8, 7.5, 4.4, 2319e9, 28e9),
    Measured("cpu-avx2", 3348, 22.9, 41.4, 4.3, 104e9, 16e9),
)

_PAGE = """\
# What a step costs, estimated

**All from a model, nothing measured on a GPU.** Seconds and memory follow from the shape of the decoder
and the data sheet of the device. `rlif estimate` does the same for a recipe of yours:

```sh
rlif estimate paper-qwen3-1.7b-base --device h100 --count 8 --tokens 1024 --price 2.50
```

This page is written by `python -m rlif.analysis.cost_page > docs/cost.md`.

## A step of the paper's recipe

`recipes/paper-qwen3-1.7b-base.yaml` with each model in its place: {prompts} prompts × {group} completions
of at most {limit} tokens, here {tokens} on average, prompts of {prompt_tokens}; bf16, a KL term with its
frozen copy, gradient checkpointing. *adapter* is `policy.lora={{}}` (r = 16), which needs no copy.

{steps}

- *Rows* decode side by side on each device; the cache is theirs at the greatest length. The engine takes
  40 % of the memory for it. Where that is more than the weights leave, the table has what is left, and a
  recipe has to say so: `rollout.max_rows`. `rlif estimate` tells the number.
- *Hours* are device hours of {run} steps without evaluations. Times your price an hour they are what a
  run costs.
- What is not in the table does not fit.
- A decode step that waits for *calls* waits for Python, which starts about 30 operations a layer, 5 µs
  each. More devices do not help: each has fewer rows. `rollout.cuda_graphs` is meant to.

## The fewest cards of 80 GB

The same recipe, by what has to fit on each card at {limit} tokens.

{fits}

*Sharded* is all weights under FSDP2 or ZeRO-3, for which there is TRL ([trl.md](trl.md)): 18 bytes a
parameter over all cards, with activations; what its sampler needs comes on top.

## Held against a measurement

Benchmark W1 ([performance.md](performance.md)) on two CPU cores, at the rates of matrix products and
memory that the same run measured. Measured over estimated:

{w1}

So an estimate without shares is short by a factor of {least} to {most}. For GPUs it is made at
{matrix_share} of the matrix rate and {bandwidth_share} of the bandwidth. These shares are assumptions;
take the tables for an order of magnitude, and their comparisons for more. A first step on your machine
tells: `time/*` and `memory/peak_gb` in metrics.jsonl.

The peak of memory was 1.5 times the estimate in both. So *fits* is a hope where more than two thirds of a
device are filled: take a larger one, or try two steps first.

## What goes into it

A phase takes as long as its arithmetic or its reading, whichever is longer. P are the parameters, L the
layers. A prompt counts once for its group.

- **Prefill**: 2 operations a parameter of the layers and prompt token.
- **A decode step** of R rows reads all weights once and R times the keys and values so far. It makes 2
  operations a parameter and row, or 30 L calls.
- **Update**: 2 operations a parameter and token forward, 4 back, with an adapter 2, with checkpointing 2
  more. The head makes its logits again: 2. A KL term takes one more forward pass.
- **Attention**: 4 operations a head, feature, token and token before it; back twice as many.
- **Exchange**: gradients are summed in fp32 over a ring, weights in bf16 handed round: 10 (n − 1) / n
  bytes a trained parameter on n devices.
- **Memory in the rollout**: weights 2 P, masters and moments 12 P / n, a frozen copy 2 P, the matrices
  that the decoder joins once more, the cache.
- **Memory in the update**: the same without joined matrices and cache, gradients 4 P, activations of a
  micro-batch.

Left out: rows that wait for the longest of their batch, the probe's looks, `log.entropy_share`, grading,
evaluation, checkpoints, and the completions that ranks send each other.

| device | bf16, TFLOP/s | bandwidth, TB/s | memory, GB | link, GB/s | network, GB/s |
|---|---|---|---|---|---|
{devices}

GPUs by their data sheets (dense, SXM where there are two kinds); link and network, one way and for each
device, as such machines usually have them. The CPUs are two cores that were measured.
"""


def cost_page() -> str:
    """The text of docs/cost.md. Source: project."""
    recipe = load_recipe(shipped_recipes()["paper-qwen3-1.7b-base"])
    h100 = DEVICES["h100"]
    work = Work.of(recipe, h100, prompt_tokens=PROMPT_TOKENS, tokens=TOKENS)
    compared = list(_compared())
    factors = [factor for _, *pair in compared for factor in pair]
    return _PAGE.format(
        prompts=work.prompts,
        group=work.group,
        limit=f"{work.limit:,}",
        tokens=f"{work.tokens:,.0f}",
        prompt_tokens=f"{work.prompt_tokens:.0f}",
        run=recipe.steps,
        steps=_steps(work, recipe.steps),
        fits=_fewest(work, h100),
        w1=_table(
            ("machine", "rollout", "update", "GB at the peak, measured and estimated"),
            [
                (one.device, f"{a:.1f}", f"{b:.1f}", f"{one.peak:.1f}, {found.memory.peak / 1e9:.1f}")
                for one, (found, a, b) in zip(W1, compared, strict=True)
            ],
        ),
        least=f"{min(factors):.1f}",
        most=f"{max(factors):.1f}",
        matrix_share=f"{h100.matrix_share:.0%}".replace("%", " %"),
        bandwidth_share=f"{h100.bandwidth_share:.0%}".replace("%", " %"),
        devices="\n".join(_device(device) for device in DEVICES.values()),
    )


def _steps(work: Work, steps: int) -> str:
    heads = ("model", "trained", "on", "GB, of those usable", "rows", "decode, s", "update, s", "exchange, s")
    rows = []
    for model in MODELS:
        for trained, rank in TRAINED.items():
            for name, count in PLACES:
                changed = replace(work, lora=rank)
                found = cost(SHAPES[model], changed, DEVICES[name], count)
                if found.memory.fits:
                    rows.append((_short(model), trained, f"{count} × {name}", *_numbers(found, steps)))
    return _table((*heads, "tokens/s", "longest", "hours"), rows)


def _numbers(found: Cost, steps: int) -> Sequence[str]:
    room = f"{found.memory.peak / 1e9:.0f} of {found.memory.usable / 1e9:.0f}"
    hours = found.seconds * steps * found.devices / 3600
    seconds = (f"{one:.2g}" if one < 10 else f"{one:.0f}" for one in (found.decode, found.update, found.exchange))
    return (
        room,
        f"{found.memory.rows}",
        *seconds,
        f"{found.tokens_a_second:,.0f}",
        found.bound,
        f"{hours:.2g}" if hours < 10 else f"{hours:.0f}",
    )


def _fewest(work: Work, device: Device) -> str:
    ways = (work, replace(work, reference=False, frozen_start=False), replace(work, lora=16))
    rows = []
    for model in MODELS:
        shape = SHAPES[model]
        native = [_first(n for n in COUNTS if cost(shape, way, device, n).memory.fits) for way in ways]
        line = work.micro_batch * shape.activations(work.width, checkpointing=work.checkpointing)
        usable = cost(shape, work, device).memory.usable
        rows.append((_short(model), *native, _first(n for n in COUNTS if 18 * shape.parameters / n + line <= usable)))
    return _table(("model", "all weights", "all, no KL and no probe.start", "adapter", "sharded (TRL)"), rows)


def _first(counts: Iterable[int]) -> str:
    return str(next(iter(counts), "none"))


def _compared() -> Iterator[tuple[Cost, float, float]]:
    """The estimate of W1 on each machine, and measured over estimated: rollout, update."""
    for one in W1:
        device = DEVICES[one.device]
        width = 2 if device.bf16 > device.fp32 else 4
        there = device._replace(bf16=one.matrix, fp32=one.matrix, bandwidth=one.bandwidth)
        work = Work(
            prompts=4, group=8, prompt_tokens=44, tokens=one.tokens / 32, limit=128, width=width, micro_batch=1024
        )
        found = cost(SHAPES["smollm2-135m-instruct"], work, there)
        yield found, one.rollout / (found.prefill + found.decode), one.update / found.update


def _device(device: Device) -> str:
    other = [f"{rate / 1e9:.0f}" if rate else "–" for rate in (device.link, device.network)]
    numbers = (f"{device.bf16 / 1e12:g}", f"{device.bandwidth / 1e12:g}", f"{device.memory / 1e9:.0f}", *other)
    return f"| {device.name} | {' | '.join(numbers)} |"


def _short(model: str) -> str:
    return model.rpartition("/")[2].removesuffix("-Base")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join((f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines))


if __name__ == "__main__":
    sys.stdout.write(cost_page())
