"""Decoding on a GPU: the same operations on the same memory for every token, so that they can be recorded and replayed.

A decode step of a small model is some thousand kernels of a few microseconds, and Python needs longer to launch them
than the GPU to run them. A CUDA graph launches them all at once, but it replays addresses and numbers, not code. So
here nothing that a step reads or writes moves, and nothing in it depends on a number that Python knows:

- every row owns a slot in buffers that are made once; a row that leaves is overwritten by the last one, no other is
  copied, and one that enters is written behind the others;
- a row's text begins in column 0, so its next token's column is its length, which is a tensor like the mask it makes;
- a step is recorded once for each bucket of rows and columns (`_up`): a view of the same buffers, at most half as
  large again as what is filled.

`rlif.rollout.decode_batch.PackedBatch`, of which this is the static form, is its reference. Tested on a CPU, where a
traced list of operations stands in for the graph; not yet run on a GPU, so `rollout.cuda_graphs` is off unless asked
for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlif.model.decoder import Attend, Decoder, Heads
from rlif.model.layers import Rotation
from rlif.model.policy import Policy
from rlif.rollout.decode_batch import PackedBatch

_FEWEST_COLUMNS = 128


class SlotCache:
    """A `rlif.rollout.kv_cache.KeyValueCache`, (slot, head, column, feature), of at most ``rows`` rows of at most
    ``columns`` tokens.

    Attributes:
        slots: the slot of each row, in the caller's order; always the first ones, in any order.
        positions: for each slot the column, and the position, of its next token; 0 for a slot without a row.
        longest: the largest of them.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self._rows, self._columns = rows, columns
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._each = torch.arange(rows, device=device)
        self.slots = self._each[:0]
        self.positions = torch.zeros_like(self._each)
        self.longest = 0

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        return self.positions[self.slots]

    def prefill(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        places: Int[Tensor, "prompt position"],
        lengths: Int[Tensor, " prompt"],
        copies: Int[Tensor, " entered"],
    ) -> None:
        if not self._keys:  # zeros: what a row must not see is multiplied by a probability of 0, not skipped
            for buffers, states in zip((self._keys, self._values), zip(*layers, strict=True), strict=True):
                buffers += [x.new_zeros(self._rows, x.shape[1], self._columns, x.shape[2]) for x in states]
        width, entering = places.shape[1], len(copies)
        if len(self.slots) + entering > self._rows or width >= self._columns:
            raise ValueError(f"{entering} rows of {width} tokens do not fit beside {len(self.slots)} others")
        new = slice(len(self.slots), len(self.slots) + entering)
        for (keys, values), key_buffer, value_buffer in zip(layers, self._keys, self._values, strict=True):
            key_buffer[new, :, :width] = keys[places[copies]].transpose(1, 2)
            value_buffer[new, :, :width] = values[places[copies]].transpose(1, 2)
        self.positions[new] = lengths[copies]
        self.slots = torch.cat([self.slots, self._each[new]])
        self.longest = max(self.longest, width)

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """As the protocol says; of the rows that stay, those with the last slots move into slots that are free."""
        kept = self.slots[rows].tolist()
        free = iter(sorted(set(range(len(kept))) - set(kept)))
        moves = {slot: next(free) for slot in kept if slot >= len(kept)}
        if moves:
            sources, targets = (
                torch.tensor(list(part), device=self.slots.device) for part in zip(*moves.items(), strict=True)
            )
            for buffer in (*self._keys, *self._values, self.positions):
                buffer[targets] = buffer[sources]
        self.slots = torch.tensor([moves.get(slot, slot) for slot in kept], dtype=torch.long, device=self.slots.device)
        self.positions[len(kept) :] = 0  # slots without a row go through the motions, in column 0
        self.longest = int(self.positions.max())

    @contextmanager
    def step(self) -> Iterator[Attend]:
        """What `CudaGraphBatch` replays, as it comes: `attention` in the order of the slots, handed out in that of the
        rows."""
        rows, columns = self.bucket()
        attend_slots, slots = self.attention(rows, columns), self.slots

        def by_slot(x: Tensor) -> Tensor:
            return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, slots, x)

        def attend(heads: Heads, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> Tensor:
            turned = by_slot(rotation[0]), by_slot(rotation[1])
            return attend_slots(heads, by_slot(q), by_slot(k), by_slot(v), turned)[slots]

        yield attend
        self.grown()

    def grown(self) -> None:
        """Every row has one more token, but for those that are full."""
        self.positions[: len(self.slots)].add_(1).clamp_(max=self._columns - 1)
        self.longest = min(self.longest + 1, self._columns - 1)

    def bucket(self) -> tuple[int, int]:
        """Slots and columns that the next token needs, rounded up."""
        columns = max(_FEWEST_COLUMNS, _up(self.longest + 1))
        return min(_up(len(self.slots)), self._rows), min(columns, self._columns)

    def attention(self, rows: int, columns: int) -> Attend:
        """Attention of one more token in each of the first slots: it is written, and sees what its row holds."""
        each, at, biases = self._each[:rows], self.positions[:rows], dict[int | None, Tensor]()

        def attend(heads: Heads, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> Tensor:
            q, k = heads.apply_norm_and_rope(q, k, rotation)
            keys, values = self._keys[heads.layer], self._values[heads.layer]
            keys[each, :, at] = k
            values[each, :, at] = v
            if heads.window not in biases:
                bias = self._bias_of(at, columns, heads.window, q.dtype)
                biases[heads.window] = bias.repeat_interleave(k.shape[1], dim=0)[:, None]
            seen_keys, seen_values = (x[:rows, :, :columns].flatten(0, 1) for x in (keys, values))
            grouped = q.unflatten(1, (k.shape[1], -1)).flatten(0, 1)
            scores = torch.baddbmm(biases[heads.window], grouped, seen_keys.mT, alpha=heads.scaling)
            return torch.bmm(scores.softmax(dim=-1), seen_values).view(rows, -1)

        return attend

    def _bias_of(
        self, at: Int[Tensor, " row"], columns: int, window: int | None, dtype: torch.dtype
    ) -> Float[Tensor, "row column"]:
        """0 in the columns that a row sees, −inf in the others."""
        behind = at[:, None] - torch.arange(columns, device=at.device)
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return torch.zeros(seen.shape, dtype=dtype, device=at.device).masked_fill(~seen, -torch.inf)


Step = Callable[[], Tensor]
"""One decode step on fixed memory: reads tokens and lengths, writes keys and values, and gives logits, overwritten by
the next step. Until the rows are `grown` it may run any number of times: the same numbers go to the same places."""


def replayed(step: Step, device: torch.device, pool: Any, stream: Any) -> Step:
    """The step recorded as a CUDA graph; where there is no CUDA, the step itself.

    ``pool``: of `torch.cuda.graph_pool_handle`. Steps never run at once, so they share memory for what is in between,
    and the ``stream`` on which they are recorded.
    """
    if device.type != "cuda":
        return step
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # a first run chooses kernels and workspaces; not to be recorded
        step()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


class CudaGraphBatch(PackedBatch):
    """`PackedBatch` for at most ``rows`` rows of at most ``columns`` tokens, whose step is replayed.

    The graphs hold the addresses of the decoder's weights: they live as long as this object, and no longer than the
    weights stay where they are.
    """

    def __init__(self, policy: Policy, decoder: Decoder, *, rows: int, columns: int) -> None:
        super().__init__(policy, decoder, SlotCache(rows, columns, policy.device))
        self._cache: SlotCache
        self._tokens = torch.zeros(rows, dtype=torch.long, device=policy.device)
        self._found = torch.zeros(rows, policy.vocab_size, device=policy.device)
        on_gpu = policy.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
        self._stream = torch.cuda.Stream(policy.device) if on_gpu else None
        self._steps: dict[tuple[int, int], Step] = {}

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        slots, bucket = self._cache.slots, self._cache.bucket()
        self._tokens[slots] = tokens
        if bucket not in self._steps:
            self._steps[bucket] = replayed(lambda: self._static_step(*bucket), self._device, self._pool, self._stream)
        logits = self._steps[bucket]()[slots]
        self._cache.grown()
        return logits

    def _static_step(self, rows: int, columns: int) -> Tensor:
        positions = self._cache.positions[:rows]
        hidden = self._decoder(self._tokens[:rows], positions, self._cache.attention(rows, columns))
        return self._found[:rows].copy_(self._logits(hidden))


def _up(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least n."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power
