"""`rlif.model.lm_head` on a GPU: the matrix unit makes a tile of logits, a Triton kernel folds it, nothing else is ever
written.

A tile is one product of the vendor's library into a buffer that is used again for the next tile. Three small kernels
go over it: `_fold` reads it once and leaves five numbers for every `_BLOCK` columns of a row, `_merge` joins these into
log-probability, entropy and self-certainty, `_differentiate` overwrites the logits with their gradient. A row's columns
are folded by many programs at once, so few rows (decoding) fill the machine as well as many.

Why not one kernel that multiplies and folds, so that even the tile stays on the chip? Counted for an H100 (650 TFLOP/s
and 3 TB/s assumed, bf16, 4,096 rows): over the forward and backward pass a logit costs 8 · hidden operations, 25 ps at
hidden size 2,048, and its tile is written or read five times beyond what the products read, 3.3 ps. The backward pass
needs its tile for two more products, so fusing could save the forward pass's two trips, 5 % (13 % at hidden size 576),
and only if a product written in Triton kept the library's rate on every machine. Kernels without a product have no
tuning that goes stale, hold 32 numbers a thread, and leave it to the library what the hidden size is. These are
estimates on paper; there was no GPU to measure on.

Extra memory: the tile (2^26 numbers of the model's own type), the partial sums of the rows in it, and in the backward
pass fp32 gradients of the hidden states and of one block of columns. The plain-PyTorch tiles of `rlif.model.lm_head`
are the reference; there as here the products are rounded to the model's type.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, no_type_check, runtime_checkable

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from rlif.types import TokenSignals

_BLOCK = 4096  # columns that one program folds: 32 numbers for each of its 128 threads
_TILE = 1 << 26  # numbers in a tile: large enough that the host is done with one launch before the last has finished
_TILE_ROWS = 4096


@runtime_checkable
class Head(Protocol):
    """What is read of `rlif.model.lm_head.Head`, which explains it."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def softcap(self) -> float | None: ...
    @property
    def vocab_size(self) -> int: ...


@torch.no_grad()
def head_signals(hidden: Float[Tensor, "row hidden"], head: Head, tokens: Int[Tensor, " row"]) -> TokenSignals:
    """`rlif.model.lm_head.head_signals`; tensors on one CUDA device (any device in Triton's interpreter)."""
    return _statistics(hidden, head, tokens, 1.0).signals


def head_logprobs(
    hidden: Float[Tensor, "row hidden"], head: Head, tokens: Int[Tensor, " row"], temperature: float = 1.0
) -> Float[Tensor, " row"]:
    """`rlif.model.lm_head.head_logprobs`; tensors on one CUDA device (any device in Triton's interpreter)."""
    logprobs: Tensor = _HeadLogprobs.apply(hidden, head.weight, head.bias, head, tokens, temperature)
    return logprobs


class _Statistics(NamedTuple):
    """Per row, fp32: the signals, and ln Σ e^z, all at the temperature asked for."""

    signals: TokenSignals
    log_normaliser: Tensor


def _statistics(hidden: Tensor, head: Head, tokens: Tensor, temperature: float) -> _Statistics:
    """One pass over all tiles, a block of rows after the other."""
    n, vocab, tokens = len(tokens), head.vocab_size, tokens.contiguous()
    tile = _Tile(hidden, head, temperature)
    slots = triton.cdiv(vocab, _BLOCK)
    partial = hidden.new_empty(4, tile.height, slots, dtype=torch.float32)
    chosen = hidden.new_empty(tile.height, dtype=torch.float32)
    results = hidden.new_empty(4, n, dtype=torch.float32)
    for rows in _ranges(n, tile.height):
        height = rows.stop - rows.start
        for columns in _ranges(vocab, tile.width):
            z = tile.fill(rows, columns)
            width = columns.stop - columns.start
            _fold[height, triton.cdiv(width, _BLOCK)](
                z, z.stride(0), width, columns.start, tokens[rows], partial, slots, tile.height * slots, chosen,
                **tile.shape, BLOCK=_BLOCK,
            )  # fmt: skip
        _merge[height,](
            partial, slots, tile.height * slots, chosen, results[:, rows], n, vocab, math.log(vocab),
            BLOCK=_BLOCK, SLOTS=triton.next_power_of_2(slots),
        )  # fmt: skip
    return _Statistics(TokenSignals(*results[:3]), results[3])


class _HeadLogprobs(torch.autograd.Function):
    """`head_logprobs`: keeps the logarithm of each row's normaliser, makes every tile again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, tokens: Tensor, temperature: float
    ) -> Tensor:
        statistics = _statistics(hidden, head, tokens, temperature)
        ctx.save_for_backward(hidden, weight, bias, tokens, statistics.log_normaliser)
        ctx.head, ctx.temperature = head, temperature
        return statistics.signals.logprob

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, log_normaliser = ctx.saved_tensors
        gradient, tokens = gradients[0].contiguous(), tokens.contiguous()
        n, vocab = len(tokens), ctx.head.vocab_size
        tile = _Tile(hidden, ctx.head, ctx.temperature)
        to_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        block = torch.empty(0)
        for columns in _ranges(vocab, tile.width):
            for rows in _ranges(n, tile.height):
                d = tile.fill(rows, columns)
                width = columns.stop - columns.start
                _differentiate[rows.stop - rows.start, triton.cdiv(width, _BLOCK)](
                    d, d.stride(0), width, columns.start, tokens[rows], log_normaliser[rows], gradient[rows],
                    **tile.shape, BLOCK=_BLOCK,
                )  # fmt: skip
                if to_bias is not None:
                    to_bias[columns] += d.sum(dim=0, dtype=torch.float32)
                if to_hidden is not None:
                    to_hidden[rows] += d @ weight[columns]
                if to_weight is None:
                    continue
                if rows.stop - rows.start == n:
                    torch.mm(d.t(), hidden, out=to_weight[columns])
                    continue
                part = (d.t() @ hidden[rows]).float()  # the gradient of a column block comes in parts: summed in fp32
                block = part if rows.start == 0 else block.add_(part)
                if rows.stop == n:
                    to_weight[columns] = block.to(to_weight.dtype)
        return (
            None if to_hidden is None else to_hidden.to(hidden.dtype),
            to_weight,
            None if bias is None or to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _Tile:
    """The buffer that every tile of products is written to, and how the kernels make logits of them."""

    def __init__(self, hidden: Tensor, head: Head, temperature: float) -> None:
        self.height = max(1, min(len(hidden), _TILE_ROWS))
        # A multiple of the block, so that a block of columns has the same place in every tile; rows start on 16 bytes.
        most = max(1, _TILE // self.height // _BLOCK)
        self.width = min(most, triton.cdiv(head.vocab_size, _BLOCK)) * _BLOCK
        self._buffer = hidden.new_empty(self.height, self.width)
        self._hidden, self._head = hidden, head
        self.shape = {
            "scale": head.scale,
            "softcap": head.softcap or 1.0,
            "per_temperature": 1.0 / temperature,
            "HAS_SOFTCAP": head.softcap is not None,
        }

    def fill(self, rows: slice, columns: slice) -> Tensor:
        """Hidden states times weight, bias added: the products of some rows and columns. Overwrites the last tile."""
        out = self._buffer[: rows.stop - rows.start, : columns.stop - columns.start]
        hidden, weight, bias = self._hidden[rows], self._head.weight[columns].t(), self._head.bias
        if bias is None:
            return torch.mm(hidden, weight, out=out)
        return torch.addmm(bias[columns], hidden, weight, out=out)


def _ranges(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


# The kernels. Triton reads their source: no annotation but tl.constexpr means anything to it, and checking shapes at
# run time, or types, must leave them alone (no_type_check).


@triton.jit
@no_type_check
def _capped(x, softcap):
    """tanh(x / softcap). Triton has no tanh of its own that every target and the interpreter know."""
    small = tl.exp(-2.0 * tl.abs(x) / softcap)
    tanh = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0.0, -tanh, tanh)


@triton.jit
@no_type_check
def _logits(products, scale, softcap, per_temperature, HAS_SOFTCAP: tl.constexpr):
    z = products.to(tl.float32) * scale
    if HAS_SOFTCAP:
        z = softcap * _capped(z, softcap)
    return z * per_temperature


# A kernel takes pointers, strides and numbers one by one: Triton knows no records, hence the long lists of arguments.


@triton.jit(do_not_specialize=["first"])
@no_type_check
def _fold(
    tile, stride, width, first, tokens, partial, slots, plane, chosen,
    scale, softcap, per_temperature, HAS_SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, segment): maximum m, Σ e^(z−m), Σ (z−m) e^(z−m), Σ (z−m) of one block of a row's columns, and z of
    the row's token if it is among them. ``first``: the tile's first column, in the vocabulary."""
    row, segment = tl.program_id(0), tl.program_id(1)
    columns = segment * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    products = tl.load(tile + row * stride + columns, mask=inside, other=0.0)
    z = _logits(products, scale, softcap, per_temperature, HAS_SOFTCAP)
    maximum = tl.max(tl.where(inside, z, -float("inf")), axis=0)
    z = tl.where(inside, z - maximum, 0.0)
    weights = tl.where(inside, tl.exp(z), 0.0)
    at = partial + row * slots + first // BLOCK + segment
    tl.store(at, maximum)
    tl.store(at + plane, tl.sum(weights, axis=0))
    tl.store(at + 2 * plane, tl.sum(weights * z, axis=0))
    tl.store(at + 3 * plane, tl.sum(z, axis=0))

    place = tl.load(tokens + row) - first
    mine = (place >= segment * BLOCK) & (place < tl.minimum((segment + 1) * BLOCK, width))
    product = tl.load(tile + row * stride + place, mask=mine, other=0.0)
    tl.store(chosen + row, _logits(product, scale, softcap, per_temperature, HAS_SOFTCAP), mask=mine)


@triton.jit
@no_type_check
def _merge(
    partial, slots, plane, chosen, results, n, vocab, log_vocab, BLOCK: tl.constexpr, SLOTS: tl.constexpr
):  # fmt: skip
    """Program (row): the partial sums of all blocks, moved to their common maximum -> log-probability, entropy,
    self-certainty and ln Σ e^z."""
    row, slot = tl.program_id(0), tl.arange(0, SLOTS)
    inside = slot < slots
    at = partial + row * slots + slot
    maxima = tl.load(at, mask=inside, other=-float("inf"))
    maximum = tl.max(maxima, axis=0)
    moved = tl.where(inside, maxima - maximum, 0.0)
    decay = tl.exp(moved)
    totals = tl.load(at + plane, mask=inside, other=0.0)
    weighted = tl.load(at + 2 * plane, mask=inside, other=0.0)
    plain = tl.load(at + 3 * plane, mask=inside, other=0.0)
    counts = tl.minimum(vocab - slot * BLOCK, BLOCK).to(tl.float32)
    total = tl.sum(totals * decay, axis=0)
    log_total = tl.log(total)
    entropy = log_total - tl.sum((weighted + moved * totals) * decay, axis=0) / total
    certainty = log_total - tl.sum(plain + moved * counts, axis=0) / vocab - log_vocab
    tl.store(results + row, tl.load(chosen + row) - maximum - log_total)
    tl.store(results + n + row, tl.maximum(entropy, 0.0))
    tl.store(results + 2 * n + row, tl.maximum(certainty, 0.0))
    tl.store(results + 3 * n + row, maximum + log_total)


@triton.jit(do_not_specialize=["first"])
@no_type_check
def _differentiate(
    tile, stride, width, first, tokens, log_normaliser, gradient,
    scale, softcap, per_temperature, HAS_SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, segment): products -> gradient · d logp / d product, in place; d logp / d z = 1[v = token] − p."""
    row, segment = tl.program_id(0), tl.program_id(1)
    columns = segment * BLOCK + tl.arange(0, BLOCK)
    at, inside = tile + row * stride + columns, columns < width
    products = tl.load(at, mask=inside, other=0.0)
    z = _logits(products, scale, softcap, per_temperature, HAS_SOFTCAP)
    p = tl.exp(z - tl.load(log_normaliser + row))
    d = tl.where(columns == tl.load(tokens + row) - first, 1.0 - p, -p) * tl.load(gradient + row)
    d *= scale * per_temperature
    if HAS_SOFTCAP:
        capped = _capped(products.to(tl.float32) * scale, softcap)
        d *= 1.0 - capped * capped
    tl.store(at, d.to(tile.dtype.element_ty), mask=inside)
