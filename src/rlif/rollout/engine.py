"""Sampling: prompts in, completions with their signals out.

`Engine` runs each prompt once for all its completions, lets finished rows leave and waiting ones enter, and reads every
signal from the very logits it samples from. `sample_slowly` is the same thing said plainly: one row at a time, no
cache, no padding; the tests hold the two together.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlif.errors import RlifError
from rlif.model.decoder import decoder_of, joined
from rlif.model.kernels.cpu import kernels_for
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.rollout.cuda_graphs import GraphRows
from rlif.rollout.decode_batch import InFlight, LineRows, TransformersRows, check_rows, rows_that_fit
from rlif.rollout.kv_cache import KernelCache, RowCache
from rlif.rollout.sampling import Key, Sampling, draw, uniforms
from rlif.signals import token_signals
from rlif.types import Prompt, Rollouts, StopReason, TokenSignals
from rlif.utils.memory import release_free_memory

__all__ = ["Engine", "Key", "Sampling", "check_context", "sample_slowly"]

_LEAVE_SHARE = 0.05  # finished rows are carried along until they make up this share of the rows in flight
_ENTER_SHARE = 0.125  # waiting rows enter when so much of the room is free: a prefill costs as much as a decode step
_ROOM = 256  # columns of the cache to allocate ahead, in tokens


class Engine:
    """Samples from a policy with a key-value cache, at most ``max_rows`` completions side by side (None:
    `rlif.rollout.decode_batch.rows_that_fit`). ``cuda_graphs`` replays the decode step on a GPU
    (`rlif.rollout.cuda_graphs`).

    Holds no state between calls. Raises `RlifError` for a model that takes no key-value cache (Mamba, say), or whose
    rows are not what they are alone (`rlif.rollout.decode_batch.check_rows`, which ``max_mismatch``, in nats, widens;
    0: any).
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_rows: int | None = None,
        cuda_graphs: bool = False,
        max_mismatch: float | None = None,
    ) -> None:
        self.policy = policy
        self.max_rows = max_rows
        self.cuda_graphs = cuda_graphs
        if decoder_of(policy.model) is None:
            check_rows(policy, max_mismatch)  # a model that cannot be sampled from is found now, not at the first step

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

        ``progress`` is told the number of tokens drawn, after each decode step (on a GPU after several). Raises
        `RlifError` for a prompt that does not fit into the model's context together with ``sampling.max_new_tokens``,
        FloatingPointError if the model's logits are no distribution.
        """
        recorder = _Recorder(self.policy, prompts, group_size, sampling, key)
        for drawn in self._steps(recorder):
            if progress is not None:
                progress(drawn)
        return recorder.rollouts(range(len(prompts)))

    def groups(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Rollouts]:
        """The same completions as `sample`, handed out as soon as all those of a prompt are finished, in that order."""
        recorder = _Recorder(self.policy, prompts, group_size, sampling, key)
        under_way = list(range(len(prompts)))
        for drawn in self._steps(recorder):
            if progress is not None:
                progress(drawn)
            whole = recorder.finished.view(-1, group_size).all(dim=1).tolist()
            if done := [i for i in under_way if whole[i]]:
                under_way = [i for i in under_way if not whole[i]]
                yield recorder.rollouts(done)

    def _steps(self, recorder: "_Recorder") -> Iterator[int]:
        """Draw what the recorder is to hold; yields the number of tokens drawn, now and then."""
        prompts, sampling = recorder.prompts, recorder.sampling
        check_context(self.policy, prompts, sampling.max_new_tokens)
        columns = max(len(prompt.token_ids) for prompt in prompts) + sampling.max_new_tokens
        most = min(self.max_rows or rows_that_fit(self.policy, columns), recorder.n_rows)
        in_flight = self._in_flight(most, columns, room=min(sampling.max_new_tokens, _ROOM))
        stretch = 1 if sampling.stop else min(in_flight.stretch, sampling.max_new_tokens)
        waiting = list(recorder.owners)
        rows = torch.zeros(0, dtype=torch.long, device=self.policy.device)  # the completion that each row belongs to
        tokens = rows
        while waiting or len(rows):
            with torch.no_grad():  # not over a yield: what others do meanwhile is their affair
                alive = ~recorder.finished[rows]
                n_alive = int(alive.sum())
                entering = _entering(in_flight, most, n_alive, len(waiting))
                if len(rows) and (entering or n_alive <= (1.0 - _LEAVE_SHARE) * len(rows)):
                    kept = _closed_up(alive)
                    rows, tokens = rows[kept], tokens[kept]
                    in_flight.keep(kept)
                logits = [in_flight.step(tokens)] if len(rows) else []
                if entering:
                    first = recorder.n_rows - len(waiting)
                    logits.append(in_flight.enter(waiting[:entering]))
                    rows = torch.cat([rows, torch.arange(first, first + entering, device=rows.device)])
                    del waiting[:entering]
                if not len(rows):
                    break
                tokens = recorder.extend(rows, torch.cat(logits))
                for _ in range(stretch - 1):
                    tokens = recorder.extend(rows, in_flight.step(tokens))
                drawn = recorder.look()
            yield drawn
        del in_flight
        release_free_memory(self.policy.device)

    def _in_flight(self, rows: int, columns: int, *, room: int) -> InFlight:
        decoder = decoder_of(self.policy.model, joined)
        if decoder is None:
            return TransformersRows(self.policy, room=room)
        if self.cuda_graphs and self.policy.device.type == "cuda":
            return GraphRows(self.policy, decoder, rows=rows, columns=columns)
        if (kernels := kernels_for(next(self.policy.model.parameters()))) is not None:
            return LineRows(self.policy, decoder, KernelCache(rows, columns, kernels))
        return LineRows(self.policy, decoder, RowCache())


def _entering(in_flight: InFlight, most: int, n_alive: int, n_waiting: int) -> int:
    """How many rows enter now: whatever finds room, if it is all that wait or worth a prefill."""
    if n_alive and not in_flight.joins:
        return 0
    entering = min(n_waiting, most - n_alive)
    return entering if entering == n_waiting or entering >= _ENTER_SHARE * most else 0


def _closed_up(alive: Bool[Tensor, " slot"]) -> Int[Tensor, " kept"]:
    """The rows that are alive, the last of them in the places of those that are not: few have to move."""
    n = int(alive.sum())
    kept = torch.arange(n, device=alive.device)
    kept[~alive[:n]] = alive[n:].nonzero().squeeze(-1) + n
    return kept


class _Recorder:
    """Collects what was drawn, completion by completion, and decides when one is finished.

    It all stays on the policy's device, and drawing reads nothing back (but for stop strings): a GPU is not waited for
    at every token. A column behind the last takes what finished rows that are carried along draw.
    """

    def __init__(
        self, policy: Policy, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: Key
    ) -> None:
        self.prompts, self.sampling = tuple(prompts), sampling
        self._policy, self._group_size = policy, group_size
        self.owners = [prompt for prompt in prompts for _ in range(group_size)]
        self.n_rows = len(self.owners)
        device, shape = policy.device, (self.n_rows, sampling.max_new_tokens + 1)
        streams = [uniforms(key, prompt.id, i, shape[1]) for prompt in prompts for i in range(group_size)]
        self._numbers = torch.from_numpy(np.stack(streams)).to(device)
        self._tokens = torch.full(shape, policy.pad_id, dtype=torch.long, device=device)
        self._values = torch.zeros(1 + len(TokenSignals._fields), *shape, device=device)  # sampler_logprobs, signals
        self._lengths = torch.zeros(self.n_rows, dtype=torch.long, device=device)
        self.finished = torch.zeros(self.n_rows, dtype=torch.bool, device=device)
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._seen = 0
        self._stopped: set[int] = set()
        self._eos = torch.tensor(policy.eos_ids, device=device)
        self._tail = max((len(text.encode()) for text in sampling.stop), default=0) + 8

    def extend(self, rows: Int[Tensor, " slot"], logits: Float[Tensor, "slot vocab"]) -> Int[Tensor, " slot"]:
        """Draw a token for each row, and append it to those that are not finished yet."""
        tokens, sampler_logprobs, signals = draw(logits, self.numbers(rows), self.sampling)
        self.record(rows, tokens, sampler_logprobs, signals)
        return tokens

    def numbers(self, rows: Int[Tensor, " slot"]) -> Float[Tensor, " slot"]:
        """The random number each row draws its next token with."""
        return self._numbers[rows, self._lengths[rows]]

    def record(
        self,
        rows: Int[Tensor, " slot"],
        tokens: Int[Tensor, " slot"],
        sampler_logprobs: Float[Tensor, " slot"],
        signals: TokenSignals,
    ) -> None:
        """Append a token to each row that is not finished yet."""
        alive, limit = ~self.finished[rows], self.sampling.max_new_tokens
        columns = torch.where(alive, self._lengths[rows], limit)
        self._tokens[rows, columns] = tokens
        self._values[:, rows, columns] = torch.stack([sampler_logprobs, *signals])
        self._sound &= ((sampler_logprobs + signals.logprob).isfinite() | ~alive).all()
        self._lengths[rows] += alive
        ended = (tokens[:, None] == self._eos).any(dim=1) | (self._lengths[rows] == limit)
        self.finished[rows] = ended | ~alive
        if self.sampling.stop:
            self._stop_at_strings(rows[alive & (tokens[:, None] != self._eos).all(dim=1)])

    def _stop_at_strings(self, rows: Int[Tensor, " some_slots"]) -> None:
        """Finish those rows whose newest token ends a stop string."""
        for row, length in zip(rows.tolist(), self._lengths[rows].tolist(), strict=True):
            # The string lies within the last few tokens: each decodes to a byte at least.
            tail = self._tokens[row, max(0, length - self._tail) : length].tolist()
            text = self._policy.tokenizer.decode(tail, skip_special_tokens=True)
            if any(stop in text for stop in self.sampling.stop):
                self._stopped.add(row)
                self.finished[row] = True

    def look(self) -> int:
        """How many tokens have been drawn since the last look. Raises FloatingPointError if a row's logits were no
        distribution."""
        total, sound = torch.stack([self._lengths.sum(), self._sound.long()]).tolist()
        if not sound:
            raise FloatingPointError("the policy's logits")
        drawn, self._seen = total - self._seen, total
        return int(drawn)

    def rollouts(self, groups: Sequence[int]) -> Rollouts:
        """The completions of some prompts on the CPU, as wide as the longest of them."""
        numbers = [group * self._group_size + i for group in groups for i in range(self._group_size)]
        rows = torch.tensor(numbers, device=self._lengths.device)
        lengths = self._lengths[rows].cpu()
        width = int(lengths.max())
        tokens = self._tokens[rows, :width].cpu()
        sampler_logprobs, *signals = self._values[:, rows, :width].cpu()
        completions = [ids[:n] for ids, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        return Rollouts(
            prompts=tuple(self.prompts[group] for group in groups),
            group_size=self._group_size,
            tokens=tokens,
            mask=torch.arange(width) < lengths[:, None],
            sampler_logprobs=sampler_logprobs,
            signals=TokenSignals(*signals),
            texts=tuple(self._text(row, ids) for row, ids in zip(numbers, completions, strict=True)),
            stop_reasons=tuple(self._stop_reason(row, ids) for row, ids in zip(numbers, completions, strict=True)),
        )

    def _text(self, row: int, ids: Sequence[int]) -> str:
        """The completion's text, cut before the first stop string."""
        text = self._policy.decode(ids)
        if row in self._stopped:
            text = text[: min((text.find(stop) for stop in self.sampling.stop if stop in text), default=len(text))]
        return text

    def _stop_reason(self, row: int, ids: Sequence[int]) -> StopReason:
        if row in self._stopped:
            return "stop_string"
        return "eos" if ids[-1] in self._policy.eos_ids else "length"


@torch.no_grad()
def sample_slowly(
    policy: Policy, prompts: Sequence[Prompt], *, group_size: int, sampling: Sampling, key: Key
) -> Rollouts:
    """`Engine.sample` said plainly: every token of every row from one forward pass over the whole text so far."""
    recorder = _Recorder(policy, prompts, group_size, sampling, key)
    for i, prompt in enumerate(recorder.owners):
        row, text = torch.tensor([i]), list(prompt.token_ids)
        while not recorder.finished[i]:
            logits = policy.model(input_ids=torch.tensor([text])).logits[:, -1, : policy.vocab_size].float()
            tokens, sampler_logprobs, _ = draw(logits, recorder.numbers(row), sampling)
            recorder.record(row, tokens, sampler_logprobs, token_signals(logits, tokens))
            recorder.look()
            text.append(int(tokens))
    return recorder.rollouts(range(len(prompts)))


def check_context(policy: Policy, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Raise `RlifError` for the first prompt that is empty or, with its completion, longer than the context (of which
    `rlif.model.positions` has two)."""
    for prompt in prompts:
        if not prompt.token_ids:
            raise RlifError(f"prompt {prompt.id}: it is empty; a model needs at least one token to go on from")
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    limit = limit_passed(policy, longest + max_new_tokens)
    if limit is None:
        return
    for prompt in prompts:
        if (length := len(prompt.token_ids)) + max_new_tokens > limit.tokens:
            raise RlifError(
                f"prompt {prompt.id}: {length} tokens and rollout.max_new_tokens={max_new_tokens} "
                f"exceed {limit.words}; shorten the prompt or lower the limit"
            )
