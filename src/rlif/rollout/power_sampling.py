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
from jaxtyping import Bool, Float, Int, Shaped

from rlif.errors import Argument, RlifError
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.rng import Key, uniforms
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import check_context
from rlif.types import Prompt, Rollouts, Sampling, TokenSignals


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
        rollouts: ``sampling`` and ``sampler_logprobs`` are the proposal's, signals are as always.
        drawn: tokens that were drawn for each completion up to its own limit, those refused included. What the engine
            draws beyond it, where rows of different limits share a call, is left out: it depends on the batch.
        accepted: the share of each completion's moves that was taken; NaN without a move.
    """

    rollouts: Rollouts
    drawn: Int[np.ndarray, " row"]
    accepted: Float[np.ndarray, " row"]


class Suffix(NamedTuple):
    """What the acceptance knows of texts x and of their tokens from positions t on.

    Attributes:
        logprob: ln p(x_t…|x_<t), nats, at temperature 1.
        proposal_logprob: ln q(x_t…|x_<t), nats.
        length: of the whole text, in tokens.
    """

    logprob: Float[np.ndarray, " row"]
    proposal_logprob: Float[np.ndarray, " row"]
    length: Int[np.ndarray, " row"]


def log_acceptance(old: Suffix, new: Suffix, alpha: float) -> Float[np.ndarray, " row"]:
    """ln A of moves between two texts with the same tokens before t; each is taken with chance min(1, A).

    The target's ratio is (p(new) / p(old))^α, in which the kept tokens cancel. The way there has chance
    q(new) / length(old), position and suffix, and the way back q(old) / length(new).
    """
    target = alpha * (new.logprob - old.logprob)
    return target + old.proposal_logprob - new.proposal_logprob + np.log(old.length / new.length)


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
        rows = np.flatnonzero(chains.texts.open | (not schedule.leave_ended))
        chains.extend(limit)
        for number in range(1, schedule.moves + 1):
            chains.move(rows, limit, number, schedule.alpha)
    accepted = np.where(chains.moves > 0, chains.accepted / np.maximum(chains.moves, 1), math.nan)
    return PowerSamples(chains.rollouts(), chains.drawn, accepted)


@dataclass(frozen=True)
class _Texts:
    """Completions side by side, padded on the right; ``values`` are sampler_logprobs and `TokenSignals`."""

    tokens: Int[np.ndarray, "row tok"]
    values: Float[np.ndarray, "row tok 4"]
    lengths: Int[np.ndarray, " row"]
    stops: Shaped[np.ndarray, " row"]  # StopReason

    @classmethod
    def empty(cls, rows: int, width: int, pad_id: int) -> "_Texts":
        values = np.zeros((rows, width, 1 + len(TokenSignals._fields)), np.float32)
        lengths, stops = np.zeros(rows, np.int64), np.full(rows, "length", "<U11")
        return cls(np.full((rows, width), pad_id, np.int64), values, lengths, stops)

    @property
    def open(self) -> Bool[np.ndarray, " row"]:
        """Whether a greater limit would let a text go on."""
        return self.stops == "length"

    def at(self, rows: Shaped[np.ndarray, " some"]) -> "_Texts":
        """A copy of these rows, by number or by mask."""
        return _Texts(self.tokens[rows], self.values[rows], self.lengths[rows], self.stops[rows])

    def put(self, rows: Shaped[np.ndarray, " some"], texts: "_Texts") -> None:
        """Overwrite these rows."""
        self.tokens[rows], self.values[rows] = texts.tokens, texts.values
        self.lengths[rows], self.stops[rows] = texts.lengths, texts.stops

    def suffix(self, starts: Int[np.ndarray, " row"]) -> Suffix:
        places = np.arange(self.tokens.shape[1])
        inside = (places >= starts[:, None]) & (places < self.lengths[:, None])
        sums = np.where(inside[:, :, None], self.values[:, :, :2].astype(np.float64), 0.0).sum(axis=1)
        return Suffix(sums[:, 1], sums[:, 0], self.lengths)

    def spliced(self, starts: Int[np.ndarray, " row"], rollouts: Rollouts, limit: int, pad_id: int) -> "_Texts":
        """The first tokens of each text, and after them what was drawn, up to the limit."""
        drawn = rollouts.lengths.numpy()
        lengths = np.minimum(starts + drawn, limit)
        stops = np.where(starts + drawn > limit, "length", np.array(rollouts.stop_reasons, "<U11"))
        places = np.arange(self.tokens.shape[1]) - starts[:, None]
        kept, inside = places < 0, places < (lengths - starts)[:, None]
        source = places.clip(0, rollouts.tokens.shape[1] - 1)
        found = torch.stack([rollouts.sampler_logprobs, *rollouts.signals], dim=-1).numpy()
        new_tokens = np.where(inside, np.take_along_axis(rollouts.tokens.numpy(), source, axis=1), pad_id)
        new_values = np.where(inside[:, :, None], np.take_along_axis(found, source[:, :, None], axis=1), 0.0)
        tokens = np.where(kept, self.tokens, new_tokens)
        values = np.where(kept[:, :, None], self.values, new_values.astype(np.float32))
        return _Texts(tokens, values, lengths, stops)

    def cut(self, row: int, length: int, pad_id: int) -> None:
        """End a text at a stop string."""
        self.tokens[row, length:], self.values[row, length:] = pad_id, 0.0
        self.lengths[row], self.stops[row] = length, "stop_string"


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
        self._pad = engine.policy.pad_id
        self.texts = _Texts.empty(len(self._owners), proposal.max_new_tokens, self._pad)
        self.drawn, self.moves, self.accepted = (np.zeros(len(self._owners), dtype=np.int64) for _ in range(3))

    def extend(self, limit: int) -> None:
        """Let texts that have not ended go on up to the limit."""
        rows = np.flatnonzero(self.texts.open)
        self.texts.put(rows, self._propose(rows, self.texts.lengths[rows], limit, 0))

    def move(self, rows: Int[np.ndarray, " some"], limit: int, number: int, alpha: float) -> None:
        """One proposal to each of these rows, which take or refuse it; the ``number``-th at this limit."""
        key = self._stream(limit, number, "move")
        numbers = np.array([uniforms(key, *self._name(row), 2) for row in rows.tolist()]).reshape(-1, 2)
        old = self.texts.at(rows)
        starts = (numbers[:, 0] * old.lengths).astype(np.int64)
        new = self._propose(rows, starts, limit, number)
        ratio = log_acceptance(old.suffix(starts), new.suffix(starts), alpha)
        taken = numbers[:, 1] < np.exp(np.minimum(ratio, 0.0))
        self.moves[rows] += 1
        self.accepted[rows] += taken
        self.texts.put(rows[taken], new.at(taken))

    def rollouts(self) -> Rollouts:
        """The texts as the engine would hand them out."""
        texts, width = self.texts, int(self.texts.lengths.max())
        sampler_logprobs, *signals = torch.from_numpy(texts.values[:, :width]).unbind(dim=-1)
        return Rollouts(
            prompts=self._prompts,
            group_size=self._group_size,
            tokens=torch.from_numpy(texts.tokens[:, :width]),
            mask=torch.arange(width) < torch.from_numpy(texts.lengths)[:, None],
            sampler_logprobs=sampler_logprobs,
            signals=TokenSignals(*signals),
            texts=tuple(self._visible(row) for row in range(len(texts.lengths))),
            stop_reasons=tuple(texts.stops.tolist()),
            sampling=self._proposal,
        )

    def _visible(self, row: int) -> str:
        """What stands before the first stop string."""
        text = self._engine.policy.decode(self._tokens(row))
        return text[: min((text.find(stop) for stop in self._proposal.stop if stop in text), default=None)]

    def _tokens(self, row: int) -> list[int]:
        return self.texts.tokens[row, : self.texts.lengths[row]].tolist()

    def _propose(
        self, rows: Int[np.ndarray, " some"], starts: Int[np.ndarray, " some"], limit: int, number: int
    ) -> _Texts:
        """For each row a text with the same first tokens, as many as ``starts`` says, that is drawn from there on."""
        key, new = self._stream(limit, number, "proposal"), self.texts.at(rows)
        for batch in self._batches(limit - starts, limit):
            owners = zip(rows[batch].tolist(), starts[batch].tolist(), strict=True)
            sampling = replace(self._proposal, max_new_tokens=int(limit - starts[batch].min()))
            rollouts = self._engine.sample(
                [self._prompt(row, start) for row, start in owners],
                group_size=1,
                sampling=sampling,
                key=key,
                progress=self._progress,
            )
            new.put(batch, new.at(batch).spliced(starts[batch], rollouts, limit, self._pad))
        if self._proposal.stop:
            for i, start in enumerate(starts.tolist()):
                tokens = new.tokens[i, : new.lengths[i]].tolist()
                if end := _stop_string_end(self._engine.policy, tokens, start, self._proposal.stop):
                    new.cut(i, end, self._pad)  # the string may have begun in the tokens that were kept
        self.drawn[rows] += new.lengths - starts
        return new

    def _batches(self, remaining: Int[np.ndarray, " row"], limit: int) -> list[Int[np.ndarray, " some"]]:
        """Rows to draw in one call: it has one limit for all, and what is beyond a row's own is cut off.

        So no row may be given more than twice its own, nor more than the model's context holds.
        """
        passed = limit_passed(self._engine.policy, self._longest + 2 * limit)
        spare = limit if passed is None else passed.tokens - self._longest - limit
        order = np.argsort(remaining, kind="stable")
        batches, first = [], 0
        while first < len(order):
            least = remaining[order[first]]
            after = int(np.searchsorted(remaining[order], least + min(least, spare), side="right"))
            batches.append(order[first:after])
            first = after
        return batches

    def _prompt(self, row: int, start: int) -> Prompt:
        prompt, sample = self._owners[row]
        kept = self.texts.tokens[row, :start].tolist()
        return replace(prompt, id=f"{prompt.id}/{sample}", token_ids=(*prompt.token_ids, *kept))

    def _name(self, row: int) -> tuple[str, int]:
        prompt, sample = self._owners[row]
        return prompt.id, sample

    def _stream(self, limit: int, number: int, purpose: str) -> Key:
        return Key(self._key.seed, f"{self._key.step}/power sampling/{limit}/{number}/{purpose}")


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
