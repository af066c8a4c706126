"""Sampling: prompts in, completions with their signals out.

`Engine` runs each prompt once for all its completions, lets finished rows leave and waiting ones enter, and reads every
signal from the very logits it samples from. `sample_reference` is the slow, obvious version: one row at a
time, no cache, no padding; the tests hold the two together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlif.errors import Argument, RlifError, expect, expect_each, shown
from rlif.model.decoder import decoder_of, has_decoder, joined
from rlif.model.in_training import check_sampling_mode
from rlif.model.kernels.cpu import kernels_for
from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.cuda_graphs import CudaGraphBatch
from rlif.rollout.decode_batch import DecodeBatch, PackedBatch, TransformersBatch, check_rows, rows_that_fit
from rlif.rollout.kv_cache import KernelCache, RowCache
from rlif.rollout.prompts import check_context
from rlif.rollout.recorder import Recorder
from rlif.types import Prompt, Rollouts, Sampling
from rlif.utils.memory import release_free_memory

_LEAVE_SHARE = 0.05  # finished rows are carried along until they make up this share of the batch
_ENTER_SHARE = 0.125  # waiting rows enter when so much of the room is free: a prefill costs as much as a decode step
_ROOM = 256  # columns of the cache to allocate ahead, in tokens


class SamplerError(RlifError):
    """What samples has failed, through no mistake of who asked it."""


class Engine:
    """Samples from a policy with a key-value cache, at most ``max_rows`` completions side by side (None:
    `rlif.rollout.decode_batch.rows_that_fit`). ``cuda_graphs`` replays the decode step on a GPU
    (`rlif.rollout.cuda_graphs`).

    Holds no state between calls. Raises `RlifError` for a model that takes no key-value cache (Mamba, say), or whose
    rows are not what they are alone (`rlif.rollout.decode_batch.check_rows`, which ``max_mismatch``, in nats, widens;
    0: any), and for one in train mode with gradient checkpointing (`rlif.model.in_training.sampling_mode`).

    >>> import rlif
    >>> policy = rlif.load_policy("tiny-base")
    >>> prompts = rlif.render(policy, "plain", [rlif.Problem("sum", "12+34=?")])
    >>> draw = dict(group_size=4, sampling=rlif.Sampling(max_new_tokens=8), key=rlif.Key(seed=0, step=1))
    >>> rollouts = rlif.Engine(policy).sample(prompts, **draw)
    >>> rollouts.texts == rlif.Engine(policy, max_rows=2).sample(prompts, **draw).texts  # however it is split
    True
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_rows: int | None = None,
        cuda_graphs: bool = False,
        max_mismatch: float | None = None,
    ) -> None:
        expect(policy, Policy, "policy", "an rlif.Policy, which rlif.load_policy makes")
        self.policy = policy
        self.max_rows = max_rows
        self.cuda_graphs = cuda_graphs
        check_sampling_mode(policy.model)
        if not has_decoder(policy.model):
            check_rows(policy, max_mismatch)  # a model that cannot be sampled from is found now, not at the first step

    @property
    def facts(self) -> Mapping[str, str]:
        """What a record of what was sampled has to say of this engine; nothing of our own."""
        return {}

    def close(self) -> None:
        """Free what the engine holds beside the policy. Nothing is sampled afterwards."""

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
        first_sample: Sequence[int] | None = None,
    ) -> Rollouts:
        """Draw ``group_size`` completions for each prompt; rows of a group are adjacent, prompts in the given order.

        ``progress`` is told the number of tokens drawn, after each decode step (on a GPU after several).
        ``first_sample`` is, for each prompt, the number of its first completion among all that are drawn of it under
        this key (None: 0): parts of a group that are drawn in several calls, or by several processes, are then what one
        call would draw. Raises `RlifError` for a prompt that does not fit into the model's context together with
        ``sampling.max_new_tokens``, for an argument of another type, and for a model in train mode with gradient
        checkpointing; FloatingPointError if the model's logits are no distribution.
        """
        recorder = self._recorder(prompts, group_size, sampling, key, first_sample)
        for drawn in self.steps(recorder):
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
        recorder = self._recorder(prompts, group_size, sampling, key)
        under_way = list(range(len(prompts)))
        for drawn in self.steps(recorder):
            if progress is not None:
                progress(drawn)
            whole = recorder.finished.view(-1, group_size).all(dim=1).tolist()
            if done := [i for i in under_way if whole[i]]:
                under_way = [i for i in under_way if not whole[i]]
                yield recorder.rollouts(done)

    def _recorder(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        key: Key,
        first_sample: Sequence[int] | None = None,
    ) -> Recorder:
        check_sampling_mode(self.policy.model)
        expect_each(prompts, Prompt, "prompts", "a list of rlif.Prompt, which rlif.render makes")
        expect(sampling, Sampling, "sampling", "an rlif.Sampling")
        expect(key, Key, "key", "an rlif.Key")
        if not isinstance(group_size, int) or group_size < 1:
            raise RlifError(Argument("group_size"), f": {shown(group_size)}; give a whole number, 1 or more")
        if first_sample is not None:
            expect_each(first_sample, int, "first_sample", "a whole number for each prompt")
            if len(first_sample) != len(prompts) or min(first_sample, default=0) < 0:
                raise RlifError(
                    Argument("first_sample"), f": {shown(first_sample)}; give each prompt a number of 0 or more"
                )
        return Recorder(self.policy, prompts, group_size, sampling, key, first_sample)

    def steps(self, recorder: Recorder) -> Iterator[int]:
        """Draw what the recorder is to hold; yields the number of tokens drawn, now and then. All that another engine
        does otherwise."""
        prompts, sampling = recorder.prompts, recorder.sampling
        check_context(self.policy, prompts, sampling.max_new_tokens)
        columns = max(len(prompt.token_ids) for prompt in prompts) + sampling.max_new_tokens
        most = min(self.max_rows or rows_that_fit(self.policy, columns), recorder.n_rows)
        batch = self._decode_batch(most, columns, room=min(sampling.max_new_tokens, _ROOM))
        chunk = 1 if sampling.stop else min(batch.chunk, sampling.max_new_tokens)
        waiting = list(recorder.owners)
        rows = torch.zeros(0, dtype=torch.long, device=self.policy.device)  # the completion that each row belongs to
        tokens = rows
        while waiting or len(rows):
            with torch.no_grad():  # not over a yield: what others do meanwhile is their affair
                alive = ~recorder.finished[rows]
                n_alive = int(alive.sum())
                entering = _entering(batch, most, n_alive, len(waiting))
                if len(rows) and (entering or n_alive <= (1.0 - _LEAVE_SHARE) * len(rows)):
                    kept = _closed_up(alive)
                    rows, tokens = rows[kept], tokens[kept]
                    batch.select(kept)
                logits = [batch.step(tokens)] if len(rows) else []
                if entering:
                    first = recorder.n_rows - len(waiting)
                    logits.append(batch.prefill(waiting[:entering]))
                    rows = torch.cat([rows, torch.arange(first, first + entering, device=rows.device)])
                    del waiting[:entering]
                if not len(rows):
                    break
                tokens = recorder.sample(rows, torch.cat(logits))
                for _ in range(chunk - 1):
                    tokens = recorder.sample(rows, batch.step(tokens))
                drawn = recorder.sync()
            yield drawn
        del batch
        release_free_memory(self.policy.device)

    def _decode_batch(self, rows: int, columns: int, *, room: int) -> DecodeBatch:
        decoder = decoder_of(self.policy.model, joined)
        if decoder is None:
            return TransformersBatch(self.policy, room=room)
        if self.cuda_graphs and self.policy.device.type == "cuda":
            return CudaGraphBatch(self.policy, decoder, rows=rows, columns=columns)
        if (kernels := kernels_for(next(self.policy.model.parameters()))) is not None:
            return PackedBatch(self.policy, decoder, KernelCache(rows, columns, kernels))
        return PackedBatch(self.policy, decoder, RowCache())


def _entering(batch: DecodeBatch, most: int, n_alive: int, n_waiting: int) -> int:
    """How many rows enter now: whatever finds room, if it is all that wait or worth a prefill."""
    if n_alive and not batch.joins:
        return 0
    entering = min(n_waiting, most - n_alive)
    return entering if entering == n_waiting or entering >= _ENTER_SHARE * most else 0


def _closed_up(alive: Bool[Tensor, " slot"]) -> Int[Tensor, " kept"]:
    """The rows that are alive, the last of them in the places of those that are not: few have to move."""
    n = int(alive.sum())
    kept = torch.arange(n, device=alive.device)
    kept[~alive[:n]] = alive[n:].nonzero().squeeze(-1) + n
    return kept
