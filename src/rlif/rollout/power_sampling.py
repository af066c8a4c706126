"""Power sampling: completions from p^α / Z, the model's own distribution over whole texts sharpened, by Markov chains.

Source: arXiv 2510.14901, "Reasoning with Sampling". A low temperature sharpens each token, p^α sharpens the text: of a
token it asks how likely its best continuations are, not how many there are. Each completion is a Markov chain of its
own (Metropolis-Hastings). A move keeps the text up to a position, draws another suffix, and takes or refuses it.

Where it differs from the paper and its program:

1. texts have different lengths, so the acceptance holds the lengths: position t is drawn with chance 1 / length, and
   the way back with 1 / the other length; of two suffixes all tokens count, not as many as the shorter one has;
2. a text that has ended goes on to be moved in later blocks. `Schedule.leave_ended` lets it go, as the program does:
   cheaper, but texts that end early are then too rare, for one that goes on counted for more than its best end;
3. all completions move side by side, and each draws from random streams of its own (`rlif.rng`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlif.errors import Argument, RlifError
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.rng import Key, uniforms
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import check_context
from rlif.types import Prompt, Rollouts, Sampling, StopReason, TokenSignals


@dataclass(frozen=True)
class Schedule:
    """How long the chains are. The defaults are the paper's.

    Attributes:
        alpha: the power; 1 is the model itself.
        blocks: the length limit grows in so many steps, so that the chain settles beginnings before ends.
        moves: proposals to each completion in each block.
        leave_ended: a text that has ended when its block is over stays as it is.

    Raises `RlifError` for numbers that make no chain.
    """

    alpha: float = 4.0
    blocks: int = 16
    moves: int = 10
    leave_ended: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0.0):
            raise RlifError(Argument("alpha"), f": {self.alpha}; a power is greater than 0")
        if self.blocks < 1:
            raise RlifError(Argument("blocks"), f": {self.blocks}; there is one at least")
        if self.moves < 0:
            raise RlifError(Argument("moves"), f": {self.moves}; there are 0 or more")

    def limits(self, max_new_tokens: int) -> list[int]:
        """The length limit of each block, in tokens, rising to ``max_new_tokens``."""
        return sorted({math.ceil(max_new_tokens * (block + 1) / self.blocks) for block in range(self.blocks)})


@dataclass(frozen=True)
class PowerSamples:
    """Completions from (nearly) p^α / Z, and what they cost.

    Attributes:
        rollouts: ``sampler_logprobs`` are the proposal's, of each token when it was drawn; signals are as always.
        drawn: tokens that were drawn for each completion, those refused included.
        accepted: the share of each completion's moves that was taken; NaN without a move.
    """

    rollouts: Rollouts
    drawn: Int[np.ndarray, " row"]
    accepted: Float[np.ndarray, " row"]


class Suffix(NamedTuple):
    """What the acceptance knows of a text x and of its tokens from position t on.

    Attributes:
        logprob: ln p(x_t…|x_<t), nats, at temperature 1.
        proposal_logprob: ln q(x_t…|x_<t), nats.
        length: of the whole text, in tokens.
    """

    logprob: float
    proposal_logprob: float
    length: int


def log_acceptance(old: Suffix, new: Suffix, alpha: float) -> float:
    """ln A of a move between two texts with the same tokens before t; it is taken with chance min(1, A).

    The target's ratio is (p(new) / p(old))^α, in which the kept tokens cancel. The way there has chance
    q(new) / length(old), position and suffix, and the way back q(old) / length(new).
    """
    target = alpha * (new.logprob - old.logprob)
    return target + old.proposal_logprob - new.proposal_logprob + math.log(old.length / new.length)


def power_sample(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    group_size: int,
    proposal: Sampling,
    key: Key,
    schedule: Schedule | None = None,
    progress: Callable[[int], None] | None = None,
) -> PowerSamples:
    """Draw ``group_size`` completions for each prompt from p^α / Z over texts of at most ``proposal.max_new_tokens``.

    A text cut off at the limit is a text like any other: its p is that of its tokens. However the engine splits the
    batch, and whichever other prompts there are, the result is the same.

    Args:
        proposal: how suffixes are drawn; the paper's temperature is 1/α. With top-p or top-k the target is p^α over
            what these let through.
        schedule: None: the paper's.
        progress: is told the number of tokens drawn, as by `Engine.sample`.

    Raises `RlifError` for a greedy proposal, which could never come back, and as `Engine.sample` does.
    """
    if proposal.temperature <= 0.0:
        remedy = "; power sampling has to be able to draw every text, take 1/alpha"
        raise RlifError(Argument("proposal"), f": temperature {proposal.temperature:g}", remedy)
    check_context(engine.policy, prompts, proposal.max_new_tokens)
    chains = _Chains(engine, prompts, group_size, proposal, key, progress)
    schedule = schedule or Schedule()
    for limit in schedule.limits(proposal.max_new_tokens):
        rows = [row for row, text in enumerate(chains.texts) if not schedule.leave_ended or text.open]
        chains.extend([row for row in rows if chains.texts[row].open], limit)
        for _ in range(schedule.moves):
            chains.move(rows, limit, schedule.alpha)
    accepted = np.where(chains.moves > 0, chains.accepted / np.maximum(chains.moves, 1), math.nan)
    return PowerSamples(chains.rollouts(), chains.drawn, accepted)


@dataclass(frozen=True)
class _Text:
    """A completion: its tokens, of each the proposal's log-probability and the signals, and why it ends."""

    tokens: tuple[int, ...]
    values: Float[Tensor, "tok 4"]  # sampler_logprobs, then TokenSignals
    stop: StopReason

    @property
    def open(self) -> bool:
        """Whether a greater limit would let it go on."""
        return self.stop == "length"

    def suffix(self, start: int) -> Suffix:
        proposal, logprob = self.values[start:, :2].double().sum(dim=0).tolist()
        return Suffix(logprob, proposal, len(self.tokens))


_EMPTY = _Text((), torch.zeros(0, 1 + len(TokenSignals._fields)), "length")


class _Chains:
    """One Markov chain a row, row r belongs to prompt r // group_size."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        group_size: int,
        proposal: Sampling,
        key: Key,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._engine, self._proposal, self._key, self._progress = engine, proposal, key, progress
        self._prompts, self._group_size = tuple(prompts), group_size
        self._owners = [(prompt, sample) for prompt in prompts for sample in range(group_size)]
        self._longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
        self._calls = 0  # rounds of proposals so far: each has random streams of its own
        self.texts = [_EMPTY] * len(self._owners)
        self.drawn, self.moves, self.accepted = (np.zeros(len(self._owners), dtype=np.int64) for _ in range(3))

    def extend(self, rows: Sequence[int], limit: int) -> None:
        """Let these rows go on up to the limit."""
        starts = {row: len(self.texts[row].tokens) for row in rows}
        for row, text in self._propose(starts, limit).items():
            self.texts[row] = text

    def move(self, rows: Sequence[int], limit: int, alpha: float) -> None:
        """One proposal to each of these rows, which take or refuse it."""
        numbers = {row: uniforms(self._stream("move"), *self._name(row), 2) for row in rows}
        starts = {row: int(numbers[row][0] * len(self.texts[row].tokens)) for row in rows}
        for row, text in self._propose(starts, limit).items():
            ratio = log_acceptance(self.texts[row].suffix(starts[row]), text.suffix(starts[row]), alpha)
            self.moves[row] += 1
            if numbers[row][1] < math.exp(min(ratio, 0.0)):
                self.accepted[row] += 1
                self.texts[row] = text

    def rollouts(self) -> Rollouts:
        """The texts as the engine would hand them out."""
        policy, lengths = self._engine.policy, torch.tensor([len(text.tokens) for text in self.texts])
        width = int(lengths.max())
        tokens = torch.full((len(self.texts), width), policy.pad_id)
        values = torch.zeros(*tokens.shape, 1 + len(TokenSignals._fields))
        for row, text in enumerate(self.texts):
            tokens[row, : len(text.tokens)] = torch.tensor(text.tokens)
            values[row, : len(text.tokens)] = text.values
        sampler_logprobs, *signals = values.unbind(dim=-1)
        return Rollouts(
            prompts=self._prompts,
            group_size=self._group_size,
            tokens=tokens,
            mask=torch.arange(width) < lengths[:, None],
            sampler_logprobs=sampler_logprobs,
            signals=TokenSignals(*signals),
            texts=tuple(self._visible(text) for text in self.texts),
            stop_reasons=tuple(text.stop for text in self.texts),
        )

    def _visible(self, text: _Text) -> str:
        """What stands before the first stop string."""
        visible = self._engine.policy.decode(text.tokens)
        return visible[: min((visible.find(stop) for stop in self._proposal.stop if stop in visible), default=None)]

    def _propose(self, starts: dict[int, int], limit: int) -> dict[int, _Text]:
        """For each row a text that shares its first tokens, as many as ``starts`` says, and is drawn from there on."""
        key, found = self._stream("proposal"), {}
        self._calls += 1
        for rows in self._batches({row: limit - start for row, start in starts.items()}, limit):
            heads = [self.texts[row].tokens[: starts[row]] for row in rows]
            prompts = [self._prompt(row, head) for row, head in zip(rows, heads, strict=True)]
            sampling = replace(self._proposal, max_new_tokens=limit - min(starts[row] for row in rows))
            rollouts = self._engine.sample(prompts, group_size=1, sampling=sampling, key=key, progress=self._progress)
            for i, row in enumerate(rows):
                found[row] = self._joined(self.texts[row], starts[row], rollouts, i, limit)
                self.drawn[row] += len(found[row].tokens) - starts[row]
        return found

    def _batches(self, remaining: dict[int, int], limit: int) -> list[list[int]]:
        """Rows that are drawn in one call: it has one limit for all, and what is beyond a row's own is cut off.

        So no row may be given more than twice its own, nor more than the model's context holds.
        """
        passed = limit_passed(self._engine.policy, self._longest + 2 * limit)
        spare = limit if passed is None else passed.tokens - self._longest - limit
        batches: list[list[int]] = []
        for row in sorted(remaining, key=remaining.__getitem__):
            least = remaining[batches[-1][0]] if batches else 0
            if batches and remaining[row] - least <= min(least, spare):
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def _joined(self, old: _Text, start: int, rollouts: Rollouts, row: int, limit: int) -> _Text:
        """The first tokens of a text and a drawn suffix, which ends where the two together do."""
        drawn = int(rollouts.mask[row].sum())
        length = min(drawn, limit - start)
        stop: StopReason = rollouts.stop_reasons[row] if length == drawn else "length"
        tokens = (*old.tokens[:start], *rollouts.tokens[row, :length].tolist())
        if end := _stop_string_end(self._engine.policy, tokens, start, self._proposal.stop):
            tokens, stop = tokens[:end], "stop_string"  # it may have begun in the tokens that were kept
        fields = [rollouts.sampler_logprobs, *rollouts.signals]
        values = torch.stack([field[row, : len(tokens) - start] for field in fields], dim=1)
        return _Text(tokens, torch.cat([old.values[:start], values]), stop)

    def _prompt(self, row: int, head: tuple[int, ...]) -> Prompt:
        prompt, sample = self._owners[row]
        return replace(prompt, id=f"{prompt.id}/{sample}", token_ids=(*prompt.token_ids, *head))

    def _name(self, row: int) -> tuple[str, int]:
        prompt, sample = self._owners[row]
        return prompt.id, sample

    def _stream(self, purpose: str) -> Key:
        return Key(self._key.seed, f"{self._key.step}/power sampling/{self._calls}/{purpose}")


def _stop_string_end(policy: Policy, tokens: Sequence[int], start: int, stops: Sequence[str]) -> int | None:
    """How many tokens it takes until one of the strings stands in the text, more than ``start``; None if none does."""

    def stopped(length: int) -> bool:
        text = policy.decode(tokens[:length])
        return any(stop in text for stop in stops)

    if not stops or not stopped(len(tokens)):
        return None
    outside, inside = start, len(tokens)  # a string that stands in a text stands in every longer one
    while inside - outside > 1:
        middle = (outside + inside) // 2
        outside, inside = (outside, middle) if stopped(middle) else (middle, inside)
    return inside
