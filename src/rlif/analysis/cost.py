"""What a step costs, from the shape of a model and the data sheet of a device: seconds, memory, what it waits for.

Nothing is measured. It is the roofline: a phase takes as long as its arithmetic at the device's matrix rate, or as what
it reads at the rate of its memory, whichever is longer (Williams et al. 2009); each rate at the share of the data sheet
that good code reaches, which is an assumption. Update passes count 2 operations a parameter and token forward, 4 back
(arXiv 2001.08361, section 2.1), and those of attention.

Left out: rows that wait for the longest of their batch, the probe's looks, `log.entropy_share`, grading, evaluation,
checkpoints, the sending of completions.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from rlif.analysis.hardware import Device, Shape
from rlif.config import Recipe

_MOST_ROWS = 1024  # as rlif.rollout.decode_batch
_CACHE_SHARE = 0.4  # of a GPU's memory, likewise
_GPU_MICRO_BATCH = 16384  # tokens, as rlif.model.logprobs
_CALLS_A_LAYER, _SECONDS_A_CALL = 30, 5e-6  # of a decode step (docs/performance.md); what PyTorch takes to start one
_SPARE_SHARE = 0.1  # of the memory that is left to workspaces, fragments and the library itself


@dataclass(frozen=True)
class Work:
    """A step, as far as it matters here."""

    prompts: int
    group: int
    prompt_tokens: float
    tokens: float
    """Of a completion, on average."""
    limit: int
    """Most tokens of a completion: what rows of the cache are made for."""
    width: int = 2
    """Bytes of a weight: 2 in bf16, 4 in fp32."""
    passes: int = 1
    """Passes over the rollouts."""
    several_steps: bool = False
    """Several optimizer steps a rollout: a forward pass before them says what the sampler's weights gave."""
    reference: bool = False
    """A frozen copy and a forward pass of it, for a KL term."""
    frozen_start: bool = False
    """A frozen copy for the probe."""
    lora: int = 0
    """Rank of the adapter; 0: all weights are trained."""
    micro_batch: int = _GPU_MICRO_BATCH
    """Most tokens in a forward pass of the update."""
    checkpointing: bool = False
    max_rows: int | None = None
    vllm: float | None = None
    """The share of the device's memory that vLLM takes for weights and cache; None: our engine samples."""
    vllm_sleeps: bool = False
    """Whether vLLM gives it back while nothing is sampled."""

    @classmethod
    def of(cls, recipe: Recipe, device: Device, *, prompt_tokens: float, tokens: float | None = None) -> "Work":
        """The step of a recipe; ``tokens`` of a completion on average (None: its limit). Source: project."""
        grpo, rollout, limit = recipe.grpo, recipe.rollout, recipe.rollout.max_new_tokens
        bf16 = recipe.policy.dtype == "bfloat16" or (recipe.policy.dtype == "auto" and device.bf16 > 2 * device.fp32)
        return cls(
            prompts=rollout.prompts,
            group=rollout.group_size,
            prompt_tokens=prompt_tokens,
            tokens=float(limit) if tokens is None else tokens,
            limit=limit,
            width=2 if bf16 else 4,
            passes=grpo.epochs,
            several_steps=grpo.epochs * grpo.minibatches > 1,
            reference=grpo.needs_reference,
            frozen_start=recipe.probe.start and recipe.probe.every != 0 and recipe.steps >= 20,
            lora=recipe.policy.lora.r if recipe.policy.lora else 0,
            micro_batch=grpo.micro_batch_tokens or (_GPU_MICRO_BATCH if device.is_gpu else 1024),
            checkpointing=grpo.gradient_checkpointing,
            max_rows=rollout.max_rows,
            vllm=rollout.vllm.memory if rollout.engine == "vllm" else None,
            vllm_sleeps=rollout.vllm.sleep and device.is_gpu,
        )


class Memory(NamedTuple):
    """Bytes on each device."""

    rollout: float
    """Weights, what the optimizer keeps, the decoder's copy or vLLM's weights; without the cache."""
    update: float
    """The same with gradients and activations."""
    rows: int
    """Completions that decode side by side: as many as the engine takes, as far as there is room, which may be 0."""
    cache: float
    """Their keys and values, at their longest; all that vLLM keeps for them."""
    usable: float
    """What the device has, less a tenth."""

    @property
    def peak(self) -> float:
        return max(self.rollout + self.cache, self.update)

    @property
    def fits(self) -> bool:
        """Whether there is room for the update, and for one row beside the weights."""
        return self.rows > 0 and self.peak <= self.usable


class Cost(NamedTuple):
    """A step on so many devices."""

    devices: int
    prefill: float
    decode: float
    update: float
    exchange: float
    """Seconds of gradients and weights between the devices."""
    decode_bound: str
    """What a decode step waits for: keys and values, weights, matmuls, or calls."""
    tokens_drawn: float
    memory: Memory

    @property
    def seconds(self) -> float:
        return self.prefill + self.decode + self.update + self.exchange

    @property
    def tokens_a_second(self) -> float:
        """Completion tokens of all devices."""
        return self.tokens_drawn / self.seconds

    @property
    def bound(self) -> str:
        """The longest phase, with its share of the step and what it waits for."""
        phases = {
            f"decoding: {self.decode_bound}": self.decode,
            "update: matmuls": self.update,
            "exchange of gradients": self.exchange,
            "prefill: matmuls": self.prefill,
        }
        name = max(phases, key=lambda phase: phases[phase])
        return f"{name} ({100 * phases[name] / self.seconds:.0f} %)"


def cost(shape: Shape, work: Work, device: Device, devices: int = 1) -> Cost:
    """What a step costs with the rows split evenly and all weights on each device (docs/scaling.md).

    A step whose weights do not fit has ``memory.fits`` False; its times are those of a device that had the room. Times
    are those of our engine also where vLLM samples.
    Source: project.
    """
    matrix = (device.bf16 if work.width == 2 else device.fp32) * device.matrix_share
    rows, prompts = work.prompts * work.group / devices, work.prompts / devices
    found = memory(shape, work, device, devices)
    side = max(1, found.rows)
    decode, bound = _decode_step(shape, work, device, side)
    line = prompts * work.prompt_tokens + rows * work.tokens  # a prompt once for its group
    prefill = 2 * shape.in_layers * prompts * work.prompt_tokens
    prefill += shape.attention(prompts * work.prompt_tokens, work.prompt_tokens / 2)
    return Cost(
        devices=devices,
        prefill=prefill / matrix,
        decode=decode * max(1.0, rows / side) * work.tokens,
        update=_update(shape, work, line, rows) / matrix,
        exchange=_exchange(shape, work, device, devices),
        decode_bound=bound,
        tokens_drawn=work.prompts * work.group * work.tokens,
        memory=found,
    )


def memory(shape: Shape, work: Work, device: Device, devices: int = 1) -> Memory:
    """Bytes on each of so many devices. The table of docs/scaling.md, with the decoder's copy and activations."""
    weights, trained = work.width * shape.parameters, shape.parameters
    if work.lora:
        trained = shape.adapter(work.lora)
        weights += work.width * trained
    # In fp32 a process alone has no masters beside the weights.
    separate = work.width == 2 or devices > 1
    states = (12 if separate else 8) * trained / devices
    copies = int(work.frozen_start or work.reference) * (0 if work.lora else work.width * shape.parameters)
    stays = weights + states + copies
    line = min(float(work.micro_batch), work.prompts * (work.prompt_tokens + work.group * work.tokens) / devices)
    activations = shape.activations(work.width, checkpointing=work.checkpointing) * line
    share = math.ceil(work.prompts * work.group / devices)
    sampler = (_own_sampler if work.vllm is None else _vllm)(shape, work, device, stays, share)
    return Memory(
        rollout=stays + sampler.beside,
        update=stays + 4 * trained + activations + sampler.in_update,
        rows=sampler.rows,
        cache=sampler.cache,
        usable=device.memory * (1 - _SPARE_SHARE),
    )


class _Sampler(NamedTuple):
    """Bytes of what samples: beside what stays, its cache, and what it holds during an update; rows side by side."""

    beside: float
    cache: float
    in_update: float
    rows: int


def _own_sampler(shape: Shape, work: Work, device: Device, stays: float, share: int) -> _Sampler:
    """Our engine, for a share of the completions: the decoder joins matrices, rows enter as far as there is room."""
    copied = work.width * shape.copied(device.is_gpu)
    rows = min(engine_rows(shape, work, device), share, rows_that_fit(shape, work, device, stays + copied))
    return _Sampler(copied, rows * _row(shape, work), 0.0, rows)


def _vllm(shape: Shape, work: Work, device: Device, stays: float, share: int) -> _Sampler:
    """vLLM takes its part of the device when it starts: the weights once more, and what is left of it for the cache
    (docs/vllm.md). An adapter is merged for it. What its own passes need of that part is not known, and left out."""
    assert work.vllm is not None
    taken, weights = work.vllm * device.memory, work.width * shape.parameters
    cache = max(0.0, taken - weights)
    rows = min(work.max_rows or share, share, int(cache // _row(shape, work)))
    merged = work.width * shape.in_layers if work.lora else 0
    return _Sampler(weights + merged, cache, 0.0 if work.vllm_sleeps else taken, rows)


def rows_that_fit(shape: Shape, work: Work, device: Device, beside: float) -> int:
    """Rows of the greatest length for which there is room beside so many bytes; 0 if there is none."""
    return max(0, int((device.memory * (1 - _SPARE_SHARE) - beside) // _row(shape, work)))


def engine_rows(shape: Shape, work: Work, device: Device) -> int:
    """Rows that the engine takes by itself: `rlif.rollout.decode_batch.rows_that_fit` goes by the memory built in, not
    by what the weights leave. Where that is more than fits, a recipe has to set ``rollout.max_rows``."""
    share = _CACHE_SHARE if device.is_gpu else 0.1
    return work.max_rows or max(1, min(_MOST_ROWS, int(share * device.memory // _row(shape, work))))


def _row(shape: Shape, work: Work) -> float:
    return shape.cache(work.width) * (work.prompt_tokens + work.limit)


def _decode_step(shape: Shape, work: Work, device: Device, rows: int) -> tuple[float, str]:
    """Seconds of one token for each of so many rows, half-way through their completions, and what takes longest."""
    matrix = (device.bf16 if work.width == 2 else device.fp32) * device.matrix_share
    bandwidth = device.bandwidth * device.bandwidth_share
    seen = work.prompt_tokens + work.tokens / 2
    weights = work.width * shape.multiplied / bandwidth
    cached = rows * shape.cache(work.width) * seen / bandwidth
    arithmetic = (2 * shape.multiplied * rows + shape.attention(float(rows), seen)) / matrix
    calls = shape.layers * _CALLS_A_LAYER * _SECONDS_A_CALL if device.is_gpu else 0.0
    if calls > max(weights + cached, arithmetic):
        return calls, "calls"
    if arithmetic > weights + cached:
        return arithmetic, "matmuls"
    return weights + cached, "keys and values" if cached > weights else "weights"


def _update(shape: Shape, work: Work, line: float, rows: float) -> float:
    """Operations of the passes over a device's rows. Without gradients of weights, as with an adapter, the way back
    takes half; the head makes its logits twice, for it keeps none."""
    seen = work.prompt_tokens + work.tokens / 2
    layers = 2 * shape.in_layers * line + shape.attention(rows * work.tokens, seen)
    head = 2 * shape.head * rows * work.tokens
    back = 2 * shape.in_layers * line * (1 if work.lora else 2) + 2 * shape.attention(rows * work.tokens, seen)
    back += head * (2 if work.lora else 3)
    if work.checkpointing:
        back += layers
    forward_alone = int(work.several_steps) + int(work.reference)
    return work.passes * (layers + head + back) + forward_alone * (layers + head)


def _exchange(shape: Shape, work: Work, device: Device, devices: int) -> float:
    """Seconds of summing gradients in fp32 over a ring, and of handing round the weights made of them."""
    if devices == 1:
        return 0.0
    slowest = device.link if devices <= device.a_machine else device.network
    trained = shape.adapter(work.lora) if work.lora else shape.parameters
    sent = (devices - 1) / devices * (2 * 4 + work.width) * trained
    return math.inf if not slowest else sent / slowest
