"""What was drawn, completion by completion, and when one is finished."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlif.model.policy import Policy
from rlif.rng import Key, uniforms
from rlif.rollout.sampling import draw
from rlif.types import Prompt, Rollouts, Sampling, StopReason, TokenSignals


class Recorder:
    """Collects what was drawn, completion by completion, and decides when one is finished.

    It all stays on the policy's device, and drawing reads nothing back (but for stop strings): a GPU is not waited for
    at every token. A column behind the last takes what finished rows that are carried along draw.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        key: Key,
        first_sample: Sequence[int] | None = None,
    ) -> None:
        """``first_sample``: the number of each prompt's first random stream; None: 0."""
        self.prompts, self.sampling = tuple(prompts), sampling
        self._policy, self._group_size = policy, group_size
        self.owners = [prompt for prompt in prompts for _ in range(group_size)]
        self.n_rows = len(self.owners)
        device, shape = policy.device, (self.n_rows, sampling.max_new_tokens + 1)
        streams = [
            uniforms(key, prompt.id, first + i, shape[1])
            for prompt, first in zip(prompts, first_sample or [0] * len(prompts), strict=True)
            for i in range(group_size)
        ]
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

    def sample(self, rows: Int[Tensor, " slot"], logits: Float[Tensor, "slot vocab"]) -> Int[Tensor, " slot"]:
        """Draw a token for each row, and append it to those that are not finished yet."""
        tokens, sampler_logprobs, signals = draw(logits, self.numbers(rows), self.sampling)
        self.append(rows, tokens, sampler_logprobs, signals)
        return tokens

    def rewind(self, rows: Int[Tensor, " slot"], lengths: Int[Tensor, " slot"]) -> None:
        """Forget what was drawn of these rows behind so many tokens, if anything was: it is drawn again."""
        shorter = lengths < self._lengths[rows]
        self._lengths[rows] = torch.where(shorter, lengths, self._lengths[rows])
        self.finished[rows] &= ~shorter
        if self._stopped:
            self._stopped.difference_update(rows[shorter].tolist())

    def numbers(self, rows: Int[Tensor, " slot"]) -> Float[Tensor, " slot"]:
        """The random number each row draws its next token with."""
        return self._numbers[rows, self._lengths[rows]]

    def append(
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

    def sync(self) -> int:
        """How many tokens have been drawn since the last call. Raises FloatingPointError if a row's logits were no
        distribution."""
        total, sound = torch.stack([self._lengths.sum(), self._sound.long()]).tolist()
        if not sound:
            raise FloatingPointError("the policy's logits are not finite")
        drawn, self._seen = total - self._seen, total
        return int(drawn)

    def completions(self) -> list[list[int]]:
        """The tokens of each row so far."""
        return [ids[:n] for ids, n in zip(self._tokens.tolist(), self._lengths.tolist(), strict=True)]

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
            sampling=self.sampling,
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
