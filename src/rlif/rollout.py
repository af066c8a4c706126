"""Sampling: prompts in, completions with their signals out.

`Engine` prefills each prompt once, expands it to its G completions, lets finished rows leave, and reads every signal
from the very logits it samples from. `sample_slowly` is the same thing said plainly: one row at a time, no cache, no
padding; the tests hold the two together.

Randomness belongs to the row, not to the batch: completion i of a prompt draws its t-th token with the t-th number of a
stream keyed by (run seed, step, prompt id, i). So the batch split, the other prompts and the number of machines change
nothing. Tokens are drawn by inverse transform: the first token whose cumulative probability exceeds the number.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlif.cache import append_cache
from rlif.config import RolloutConfig
from rlif.errors import RlifError
from rlif.policy import Policy
from rlif.signals import token_signals
from rlif.types import Prompt, Rollouts, StopReason, TokenSignals

# Finished rows are carried along until they make up this share of the batch: removing one copies the cache.
_COMPACT_SHARE = 0.125


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature (0 is greedy), nucleus, top-k (0 is off), length limit in tokens, stop strings."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: RolloutConfig) -> "Sampling":
        return cls(config.temperature, config.top_p, config.top_k, config.max_new_tokens, config.stop)


@dataclass(frozen=True)
class Key:
    """What makes a draw reproducible, besides the prompt: the run's seed and the step (or an evaluation's name)."""

    seed: int
    step: int | str


def uniforms(key: Key, prompt_id: str, sample: int, count: int) -> np.ndarray:
    """The first ``count`` numbers in [0, 1) of one completion's random stream; float64. Source: project."""
    text = f"{key.seed}/{key.step}/{prompt_id}/{sample}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def draw(
    logits: Float[Tensor, "row vocab"], numbers: Float[Tensor, " row"], sampling: Sampling
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """One token a row, and its log-probability (nats) under the distribution it was drawn from.

    Args:
        logits: fp32, at temperature 1, true vocabulary only.
        numbers: one uniform number in [0, 1) a row.

    Raises FloatingPointError if a row's logits are not a distribution: the model has been blown up or is damaged.
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise FloatingPointError("the policy's logits")
    if sampling.temperature == 0.0:
        tokens = logits.argmax(dim=-1)
        return tokens, torch.zeros_like(numbers, dtype=torch.float32)
    scores = _filtered(logits / sampling.temperature, sampling)
    probs = scores.softmax(dim=-1)
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding must not carry the target up to the total itself: no token lies beyond it.
    target = torch.minimum(numbers.to(total)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens, probs.gather(-1, tokens[:, None]).squeeze(-1).log()


def _filtered(scores: Float[Tensor, "row vocab"], sampling: Sampling) -> Float[Tensor, "row vocab"]:
    """Top-k, then top-p: -inf outside. The likeliest token always stays."""
    if sampling.top_k and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True)
        probs = ordered.softmax(dim=-1)
        outside = probs.cumsum(dim=-1) - probs >= sampling.top_p
        scores = scores.masked_fill(outside.gather(-1, order.argsort(dim=-1)), -torch.inf)
    return scores


class Engine:
    """Samples from a policy with a key-value cache, many rows side by side. Holds no state between calls.

    Raises `RlifError` for a model that takes no key-value cache (Mamba, say).
    """

    def __init__(self, policy: Policy, *, max_rows: int = 1024) -> None:
        self.policy = policy
        self.max_rows = max_rows
        parameters = inspect.signature(policy.model.forward).parameters
        if "past_key_values" not in parameters:  # it would vanish among other keywords, and the text so far with it
            raise RlifError(f"policy.model: {policy.source} has no key-value cache to sample with; use another model")
        self._takes_positions = "position_ids" in parameters
        self._keep_last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Draw ``group_size`` completions for each prompt; rows of a group are adjacent, prompts in the given order.

        ``progress`` is told the number of tokens drawn after each decode step. Raises `RlifError` for a prompt that
        does not fit into the model's context together with ``sampling.max_new_tokens``.
        """
        check_context(self.policy, prompts, sampling.max_new_tokens)
        rows = [(prompt, sample) for prompt in prompts for sample in range(group_size)]
        batches = [
            self._sample_rows(rows[start : start + self.max_rows], sampling, key, progress)
            for start in range(0, len(rows), self.max_rows)
        ]
        return _gather(tuple(prompts), group_size, batches, self.policy)

    def _sample_rows(
        self,
        rows: Sequence[tuple[Prompt, int]],
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None,
    ) -> "_Recorder":
        policy, device = self.policy, self.policy.device
        numbers = torch.from_numpy(
            np.stack([uniforms(key, prompt.id, sample, sampling.max_new_tokens) for prompt, sample in rows])
        ).to(device)
        recorder = _Recorder(policy, len(rows), sampling, device)
        state, logits = self._prefill([prompt for prompt, _ in rows], sampling)
        n_alive = len(rows)
        for position in range(sampling.max_new_tokens):
            logits = logits[:, : policy.vocab_size].float()
            tokens, sampler_logprobs = draw(logits, numbers[state.rows, position], sampling)
            finished = recorder.record(state, position, tokens, sampler_logprobs, token_signals(logits, tokens))
            state.alive &= ~finished
            if progress is not None:
                progress(n_alive)
            n_alive = int(state.alive.sum())
            if n_alive == 0 or position + 1 == sampling.max_new_tokens:
                break
            if n_alive <= (1.0 - _COMPACT_SHARE) * len(state.rows):
                tokens = state.compact(tokens)
            logits = self._decode(state, tokens)
        return recorder

    def _prefill(self, row_prompts: Sequence[Prompt], sampling: Sampling) -> tuple["_Slots", Float[Tensor, "row v"]]:
        """Run each distinct prompt once, left-padded; then one slot a row, sharing nothing."""
        distinct = list(dict.fromkeys(row_prompts))
        index = {prompt: i for i, prompt in enumerate(distinct)}
        device = self.policy.device
        tokens, mask = left_pad([prompt.token_ids for prompt in distinct], self.policy.pad_id, device)
        cache = append_cache(self.policy.model.config, room=min(sampling.max_new_tokens, 256))
        padded = not bool(mask.all())
        output = self.policy.model(
            input_ids=tokens,
            attention_mask=mask.long() if padded else None,
            past_key_values=cache,
            use_cache=True,
            **self._positions(positions_of(mask)),
            **self._keep_last,
        )
        slot_prompt = torch.tensor([index[prompt] for prompt in row_prompts], device=device)
        cache.reorder_cache(slot_prompt)
        room = torch.ones(len(row_prompts), sampling.max_new_tokens, dtype=torch.bool, device=device)
        slots = _Slots(
            rows=torch.arange(len(row_prompts), device=device),
            alive=torch.ones(len(row_prompts), dtype=torch.bool, device=device),
            cache=cache,
            mask=torch.cat([mask[slot_prompt], room], dim=1) if padded else None,
            lengths=mask.sum(dim=1)[slot_prompt],
            filled=tokens.shape[1],
        )
        return slots, output.logits[:, -1].index_select(0, slot_prompt)

    def _decode(self, slots: "_Slots", tokens: Int[Tensor, " slot"]) -> Float[Tensor, "slot v"]:
        """Append one token to every slot; logits of the next."""
        slots.filled += 1
        mask = None if slots.mask is None else slots.mask[:, : slots.filled].long()
        output = self.policy.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            past_key_values=slots.cache,
            use_cache=True,
            **self._positions(slots.lengths[:, None]),
        )
        slots.lengths = slots.lengths + 1
        return output.logits[:, -1]

    def _positions(self, positions: Int[Tensor, "slot n"]) -> dict[str, Tensor]:
        return {"position_ids": positions} if self._takes_positions else {}


@dataclass
class _Slots:
    """The rows in flight: which row sits where, and what the model must know to go on with it."""

    rows: Int[Tensor, " slot"]
    alive: Bool[Tensor, " slot"]
    cache: object
    mask: Bool[Tensor, "slot position"] | None
    lengths: Int[Tensor, " slot"]
    filled: int

    def compact(self, tokens: Int[Tensor, " slot"]) -> Int[Tensor, " kept"]:
        """Let finished rows leave; returns the tokens of those that stay."""
        keep = self.alive.nonzero().squeeze(-1)
        self.cache.reorder_cache(keep)  # type: ignore[attr-defined]
        self.rows, self.alive, self.lengths = self.rows[keep], self.alive[keep], self.lengths[keep]
        self.mask = None if self.mask is None else self.mask[keep]
        return tokens[keep]


class _Recorder:
    """Collects what was drawn, row by row, and decides when a row is finished."""

    def __init__(self, policy: Policy, n_rows: int, sampling: Sampling, device: torch.device) -> None:
        self._policy, self._sampling = policy, sampling
        shape = (n_rows, sampling.max_new_tokens)
        self.tokens = torch.full(shape, policy.pad_id, dtype=torch.long, device=device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.sampler_logprobs = torch.zeros(shape, device=device)
        self.signals = TokenSignals(*(torch.zeros(shape, device=device) for _ in TokenSignals._fields))
        self.stop_reasons: list[StopReason] = ["length"] * n_rows
        self._eos = torch.tensor(policy.eos_ids, device=device)
        self._tail = max((len(text.encode()) for text in sampling.stop), default=0) + 8

    def record(
        self,
        slots: _Slots,
        position: int,
        tokens: Int[Tensor, " slot"],
        sampler_logprobs: Float[Tensor, " slot"],
        signals: TokenSignals,
    ) -> Bool[Tensor, " slot"]:
        """Write one column for the rows alive; returns which of them are now finished."""
        alive, rows = slots.alive, slots.rows[slots.alive]
        self.tokens[rows, position] = tokens[alive]
        self.mask[rows, position] = True
        self.sampler_logprobs[rows, position] = sampler_logprobs[alive]
        for record, value in zip(self.signals, signals, strict=True):
            record[rows, position] = value[alive]
        finished = torch.isin(tokens, self._eos) & alive
        for row in slots.rows[finished].tolist():
            self.stop_reasons[row] = "eos"
        if self._sampling.stop:
            finished |= self._at_stop_string(slots, position, alive & ~finished)
        return finished

    def _at_stop_string(self, slots: _Slots, position: int, among: Bool[Tensor, " slot"]) -> Bool[Tensor, " slot"]:
        # A stop string that ends with this token lies within the last few tokens: each decodes to a byte at least.
        stopped = torch.zeros_like(among)
        for slot in among.nonzero().squeeze(-1).tolist():
            row = int(slots.rows[slot])
            tail = self.tokens[row, max(0, position + 1 - self._tail) : position + 1].tolist()
            text = self._policy.tokenizer.decode(tail, skip_special_tokens=True)
            if any(stop in text for stop in self._sampling.stop):
                self.stop_reasons[row] = "stop_string"
                stopped[slot] = True
        return stopped

    def text(self, row: int) -> str:
        """The completion's text, cut before the first stop string."""
        text = self._policy.decode(self.tokens[row][self.mask[row]].tolist())
        if self.stop_reasons[row] == "stop_string":
            text = text[: min((text.find(stop) for stop in self._sampling.stop if stop in text), default=len(text))]
        return text


def _gather(prompts: tuple[Prompt, ...], group_size: int, batches: list[_Recorder], policy: Policy) -> Rollouts:
    """Batches end to end, on the CPU, as wide as the longest completion."""
    mask = torch.cat([batch.mask for batch in batches])
    width = int(mask.sum(dim=1).max())

    def column(pick: Callable[[_Recorder], Tensor]) -> Tensor:
        return torch.cat([pick(batch)[:, :width] for batch in batches]).cpu()

    return Rollouts(
        prompts=prompts,
        group_size=group_size,
        tokens=column(lambda batch: batch.tokens),
        mask=mask[:, :width].cpu(),
        sampler_logprobs=column(lambda batch: batch.sampler_logprobs),
        signals=TokenSignals(*(column(attrgetter(f"signals.{name}")) for name in TokenSignals._fields)),
        texts=tuple(batch.text(row) for batch in batches for row in range(len(batch.stop_reasons))),
        stop_reasons=tuple(reason for batch in batches for reason in batch.stop_reasons),
    )


@torch.no_grad()
def sample_slowly(
    policy: Policy, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, key: Key
) -> Rollouts:
    """`Engine.sample` said plainly: every token of every row from one forward pass over the whole text so far."""
    batches = []
    for prompt in prompts:
        for sample in range(group_size):
            recorder = _Recorder(policy, 1, sampling, policy.device)
            slots = _Slots(
                torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool), None, None, torch.zeros(1).long(), 0
            )
            numbers = torch.from_numpy(uniforms(key, prompt.id, sample, sampling.max_new_tokens))
            text = list(prompt.token_ids)
            for position in range(sampling.max_new_tokens):
                logits = policy.model(input_ids=torch.tensor([text])).logits[:, -1, : policy.vocab_size].float()
                tokens, sampler_logprobs = draw(logits, numbers[position : position + 1], sampling)
                if recorder.record(slots, position, tokens, sampler_logprobs, token_signals(logits, tokens)).item():
                    break
                text.append(int(tokens))
            batches.append(recorder)
    return _gather(tuple(prompts), group_size, batches, policy)


def left_pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
    """Token ids aligned at their right end, and the mask of the real ones."""
    width = max(len(ids) for ids in sequences)
    tokens = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = True
    return tokens.to(device), mask.to(device)


def positions_of(mask: Bool[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """Position ids that start at 0 with the first real token."""
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)


def check_context(policy: Policy, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Raise `RlifError` for the first prompt that is empty or, with its completion, longer than the context."""
    for prompt in prompts:
        if not prompt.token_ids:
            raise RlifError(f"prompt {prompt.id}: it is empty; a model needs at least one token to go on from")
        needed = len(prompt.token_ids) + max_new_tokens
        if policy.context is not None and needed > policy.context:
            raise RlifError(
                f"prompt {prompt.id}: {len(prompt.token_ids)} tokens and rollout.max_new_tokens={max_new_tokens} "
                f"exceed the context of {policy.source} ({policy.context}); shorten the prompt or lower the limit"
            )
