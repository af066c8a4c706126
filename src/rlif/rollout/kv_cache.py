"""Key-value caches that append in place.

transformers' own dynamic cache copies every layer's keys and values for each token decoded. Here a layer owns a buffer
with room to grow and hands out views of the filled part, so a token costs one write. Rows can be selected (finished
ones leave) and repeated (a prompt is prefilled once and expanded to its group).

`KeyValueCache` says what a cache for `rlif.model.decoder` must do. `KernelCache` (on a CPU, with
`rlif.model.kernels.cpu`) and `RowCache` do it here, `rlif.rollout.cuda_graphs.SlotCache` on memory that never moves.
`rlif.rollout.transformers_cache.append_cache` makes one for transformers' own forward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from rlif.model.decoder import Attend, Heads
from rlif.model.kernels.cpu import Kernels, padded
from rlif.model.layers import Rotation

_COLUMNS = 32  # a `RowCache` grows by so many columns


@runtime_checkable
class KeyValueCache(Protocol):
    """Keys and values of the rows that are being decoded, layer by layer. tests/rollout/test_cache_laws.py holds each
    implementation to these laws:

    1. **Order.** Rows stand in the caller's order. Those that `prefill` adds come last, as `copies` lists them; after
       ``select(rows)``, row i is the former ``rows[i]``. There may be none.
    2. **Rows are alone.** A row sees its own tokens, within the layer's window, and nothing else: not the prompt beside
       it, not what a row that left has written, not memory that nobody wrote. What must not be seen may be weighed by 0
       instead of being skipped, so all states have to be finite. Copies of a prompt share nothing once they are in.
    3. **A step** appends one token to every row, and the token sees itself.
    4. **Lengths** count each row's tokens: the position of its next. A tensor that was handed out does not change.
    5. **Full rows.** A cache made for so many rows and columns refuses more with a ValueError and is what it was. A row
       of ``columns - 1`` tokens is full. It may be carried along: its next token takes the last column, sees all that
       is before it, and is overwritten by the one that follows; its length stays.
    """

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """Tokens of each row so far: the position of its next."""

    def prefill(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        places: Int[Tensor, "prompt position"],
        lengths: Int[Tensor, " prompt"],
        copies: Int[Tensor, " entered"],
    ) -> None:
        """Add rows with the keys and values of their prompts.

        Args:
            layers: for each layer keys (`Heads.apply_norm_and_rope`) and values (tok, head, feature) of a line of
                tokens.
            places: where each prompt's tokens stand in the line, padded on the right to the longest.
            lengths: prompt lengths in tokens.
            copies: the prompt of each row that enters.
        """

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Let all other rows leave; row i is then the former ``rows[i]``. Each row at most once."""

    def step(self) -> AbstractContextManager[Attend]:
        """Give the attention of one more token in each row, to be called once for each layer; the step is complete
        when the context ends."""


class KernelCache:
    """A `KeyValueCache` for `rlif.model.kernels.cpu.Kernels.attend`: each row owns a slot until it leaves.

    A row's text begins in column 0 of its slot and nothing is ever moved: rows that leave free their slots, rows that
    enter take free ones. The buffers are as large as they can get; what was never written takes (nearly) no memory.
    """

    def __init__(self, rows: int, columns: int, kernels: Kernels) -> None:
        """For at most ``rows`` rows of at most ``columns`` tokens."""
        self._columns, self._kernels = columns, kernels
        self._free = list(range(rows))
        self._slots = torch.zeros(0, dtype=torch.long)
        self.lengths = self._slots
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def prefill(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        places: Int[Tensor, "prompt position"],
        lengths: Int[Tensor, " prompt"],
        copies: Int[Tensor, " entered"],
    ) -> None:
        if not self._keys:
            for buffers, states in zip((self._keys, self._values), zip(*layers, strict=True), strict=True):
                buffers += [x.new_empty(len(self._free), x.shape[1], self._columns, padded(x.shape[2])) for x in states]
        if len(copies) > len(self._free) or int(lengths.max()) >= self._columns:
            wanted = f"{len(copies)} rows of up to {int(lengths.max())} tokens"
            raise ValueError(f"{wanted}; there are {len(self._free)} free slots of {self._columns} columns")
        taken, self._free = self._free[: len(copies)], self._free[len(copies) :]
        slots, right = torch.tensor(taken), places[copies]
        for states, key_buffer, value_buffer in zip(layers, self._keys, self._values, strict=True):
            for x, buffer in zip(states, (key_buffer, value_buffer), strict=True):
                padding = 0, buffer.shape[-1] - x.shape[-1]
                buffer[slots, :, : places.shape[1]] = functional.pad(x[right], padding).transpose(1, 2)
        self._slots = torch.cat([self._slots, slots])
        self.lengths = torch.cat([self.lengths, lengths[copies]])

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        left = torch.ones(len(self._slots), dtype=torch.bool)
        left[rows] = False
        self._free += self._slots[left].tolist()
        self._slots, self.lengths = self._slots[rows], self.lengths[rows]

    @contextmanager
    def step(self) -> Iterator[Attend]:
        def attend(heads: Heads, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> Tensor:
            norms, (q_norm, k_norm) = None, (heads.q_norm, heads.k_norm)
            if q_norm is not None and k_norm is not None:  # no family has one of them alone, or other settings in each
                norms = q_norm.weight, k_norm.weight, q_norm.offset, q_norm.eps
            return self._kernels.attend(
                *(q, k, v, norms, rotation, self._keys[heads.layer], self._values[heads.layer]),
                *(self._slots, self.lengths),
                window=heads.window,
                scaling=heads.scaling,
            )

        yield attend
        self.lengths = (self.lengths + 1).clamp_max_(self._columns - 1)


class RowCache:
    """A `KeyValueCache` of PyTorch's own operations, without a limit: rows share a time axis.

    A row's last token always stands in the newest column, so a step writes one column for all rows; a prompt that
    enters is aligned at its right end, and each row knows the column it begins in. Keys lie transposed, (row, head,
    feature, column): attention of a single query reads them as a plain matrix product. All columns are always read,
    those that a row must not see by a bias of −inf: a slice of them would be copied by the product, so they grow by a
    few columns at a time. Rows come first in memory, so that the first n of a buffer need no copy: rows that leave are
    replaced by the last ones, and rows that enter take what room they left.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._starts = torch.zeros(0, dtype=torch.long)
        self._first = 0  # the least of them: known beforehand, so that no decode step waits for a GPU to tell it
        self._end = 0
        self._capacity = 0

    def prefill(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        places: Int[Tensor, "prompt position"],
        lengths: Int[Tensor, " prompt"],
        copies: Int[Tensor, " entered"],
    ) -> None:
        width = places.shape[1]
        if not self._keys:
            self._create(layers)
        old, new = len(self._starts), len(self._starts) + len(copies)
        if new > len(self._keys[0]) or width > self._end:
            self._reframe(rows=new, first=min(0, self._end - width))
        # Aligned at the right end: column c of a prompt of n tokens holds its token c - (width - n).
        shift = torch.arange(width, device=places.device) - (width - lengths[:, None])
        right = places.gather(1, shift.clamp_min(0))[copies]
        columns = slice(self._end - width, self._end)
        for (keys, values), key_buffer, value_buffer in zip(layers, self._keys, self._values, strict=True):
            key_buffer[old:new, :, :, columns] = keys[right].permute(0, 2, 3, 1)
            value_buffer[old:new, :, columns] = values[right].transpose(1, 2)
        self._starts = torch.cat([self._starts, self._end - lengths[copies]])
        self._first = int(self._starts.min())

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        return self._end - self._starts

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """As the protocol says; only rows whose place changes are copied."""
        self._starts = self._starts[rows]
        self._first = int(self._starts.min()) if len(rows) else self._end
        to = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(-1)
        for buffer in (*self._keys, *self._values):
            buffer[to] = buffer[rows[to]]

    @contextmanager
    def step(self) -> Iterator[Attend]:
        n = len(self._starts)
        if self._end == self._capacity:
            self._reframe(rows=n, first=self._first)
        self._end += 1
        newest, biases = self._end - 1, dict[int | None, Tensor]()

        def attend(heads: Heads, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> Tensor:
            q, k = heads.apply_norm_and_rope(q, k, rotation)
            keys, values = self._keys[heads.layer][:n], self._values[heads.layer][:n]
            keys.select(3, newest).copy_(k)
            values.select(2, newest).copy_(v)
            if heads.window not in biases:
                biases[heads.window] = self._bias(heads.window, q.dtype).repeat_interleave(k.shape[1], dim=0)[:, None]
            grouped = q.unflatten(1, (k.shape[1], -1)).flatten(0, 1)
            scores = torch.baddbmm(biases[heads.window], grouped, keys.flatten(0, 1), alpha=heads.scaling)
            return torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1)).view(n, -1)

        yield attend

    def _bias(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "row column"]:
        """0 in the columns that a row sees, −inf in the others."""
        columns = torch.arange(self._capacity, device=self._starts.device)
        seen = (columns >= self._starts[:, None]) & (columns < self._end)
        if window is not None:
            seen &= columns >= self._end - window
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)

    def _create(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        for keys, values in layers:
            _, heads, features = keys.shape
            self._keys.append(keys.new_empty(0, heads, features, 0))
            self._values.append(values.new_empty(0, heads, 0, features))
        self._starts = torch.zeros(0, dtype=torch.long, device=layers[0][0].device)

    def _reframe(self, *, rows: int, first: int) -> None:
        """New buffers for so many rows, with the columns from ``first`` on (below 0: so many new ones in front).

        What holds nothing yet is 0: what a row must not see is multiplied by a probability of 0, not skipped.
        """
        width = self._end - first
        capacity = (width // _COLUMNS + 1) * _COLUMNS
        here, skipped, added = len(self._starts), max(first, 0), max(-first, 0)
        for buffers, axis in ((self._keys, 3), (self._values, 2)):
            for i, old in enumerate(buffers):
                shape = list(old.shape)
                shape[0], shape[axis] = rows, capacity
                new = old.new_zeros(shape)
                held = self._end - skipped
                new[:here].narrow(axis, added, held).copy_(old[:here].narrow(axis, skipped, held))
                buffers[i] = new
        self._starts, self._first = self._starts - first, self._first - first
        self._end, self._capacity = width, capacity
