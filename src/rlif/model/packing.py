"""Whole sequences for `rlif.model.decoder`: prompts and their completions in one line, each prompt once.

The completions of a group continue the same prompt, so its tokens, and its keys and values, are made once and shared.
Only attention needs rectangles: rows of similar length form a block there, and its padding never reaches a matrix
product. The last token of a completion predicts nothing that counts and is left out.

The line is filled up to a round length (`rounded`): oneDNN prepares, and keeps, a product for every length it meets,
some milliseconds and megabytes each, and lengths that never come twice would fill the memory with them.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlif.model.decoder import Heads
from rlif.model.layers import Rotation

_ROUND = 64  # the line, and what it predicts, are as long as a multiple of this
_SIMILAR = 0.7  # rows of a block are at least this share of its longest ...
_SHORT = 512  # keys: up to here plain products beat the fused CPU kernel, whose backward pass is slow in bf16
_SMALLEST = 8  # ... unless the block is still so small that another one would cost more than the padding


class Packed:
    """Prompts and completions in one line, and causal attention among them.

    Args:
        prompts: token ids of each prompt, none of them empty.
        completions: for each completion the index of its prompt, and its token ids, none of them empty.

    Attributes:
        tokens: the line: all prompts, then all completions without their last token, then filling.
        positions: where in its own text each token stands.
        lasts: the place of each prompt's last token in the line.
        predicting: the places whose hidden states predict the completions' tokens, one completion after another.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[tuple[int, Sequence[int]]] = (),
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        lengths = [len(ids) for ids in prompts] + [len(ids) - 1 for _, ids in completions]
        spans = [range(start, stop) for start, stop in pairwise(accumulate(lengths, initial=0))]
        before = [0] * len(prompts) + [len(prompts[owner]) for owner, _ in completions]
        line = [token for ids in prompts for token in ids] + [token for _, ids in completions for token in ids[:-1]]
        positions = [ahead + i for ahead, span in zip(before, spans, strict=True) for i in range(len(span))]
        lasts = [span.stop - 1 for span in spans[: len(prompts)]]
        own = spans[len(prompts) :]
        predicting = [
            place for (owner, _), span in zip(completions, own, strict=True) for place in (lasts[owner], *span)
        ]
        self._length, self._filling = len(line), [0] * (rounded(len(line)) - len(line))
        self.tokens: Int[Tensor, " tok"] = torch.tensor(line + self._filling, device=device)
        self.positions: Int[Tensor, " tok"] = torch.tensor(positions + self._filling, device=device)
        self.lasts: Int[Tensor, " prompt"] = torch.tensor(lasts, device=device)
        self.predicting: Int[Tensor, " predicted"] = torch.tensor(predicting, dtype=torch.long, device=device)
        owners = [owner for owner, _ in completions]
        self._blocks = [_Block(spans[: len(prompts)], None, device)]
        for rows in _similar([len(span) for span in own]):
            continued = [owners[row] for row in rows], [len(ids) for ids in prompts]
            self._blocks.append(_Block([own[row] for row in rows], continued, device))
        self._places = torch.cat([block.places.flatten() for block in self._blocks])
        real = torch.cat([block.real.flatten() for block in self._blocks])
        self._back = torch.empty_like(self.tokens[: self._length])
        self._back[self._places[real]] = real.nonzero().squeeze(-1)

    @property
    def prompt_places(self) -> Int[Tensor, "prompt position"]:
        """The places of each prompt's tokens, padded on the right with a place that does not count."""
        return self._blocks[0].places

    def attend(
        self,
        heads: Heads,
        q: Float[Tensor, "tok head feature"],
        k: Float[Tensor, "tok kv_head feature"],
        v: Float[Tensor, "tok kv_head feature"],
        rotation: Rotation,
    ) -> Float[Tensor, "tok head*feature"]:
        """Causal attention of every token to its own text, within the layer's window; 0 for the filling."""
        return self.attend_after_norm_and_rope(heads, *heads.apply_norm_and_rope(q, k, rotation), v)

    def attend_after_norm_and_rope(
        self,
        heads: Heads,
        q: Float[Tensor, "tok head feature"],
        k: Float[Tensor, "tok kv_head feature"],
        v: Float[Tensor, "tok kv_head feature"],
    ) -> Float[Tensor, "tok head*feature"]:
        """The same of queries and keys in their places (`Heads.apply_norm_and_rope`)."""
        queries, keys, values = (self._spread(x[: self._length]) for x in (q, k, v))
        outputs = []
        for block, query, key, value in zip(self._blocks, queries, keys, values, strict=True):
            if block.owners is not None:
                key = torch.cat([keys[0].index_select(0, block.owners), key], dim=2)
                value = torch.cat([values[0].index_select(0, block.owners), value], dim=2)
            outputs.append(block.attention(heads, query, key, value).flatten(0, 1))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        result: Tensor = _Collect.apply(joined, self._back)
        return functional.pad(result, (0, 0, 0, len(self._filling)))

    def _spread(self, x: Float[Tensor, "tok head feature"]) -> list[Float[Tensor, "row head position feature"]]:
        """The line as one rectangle a block."""
        rows: Tensor = _Spread.apply(x, self._places, self._back)
        parts = rows.split([block.places.numel() for block in self._blocks])
        return [
            part.unflatten(0, block.places.shape).transpose(1, 2)
            for part, block in zip(parts, self._blocks, strict=True)
        ]


def rounded(length: int) -> int:
    """A length in tokens, rounded up."""
    return -(-length // _ROUND) * _ROUND


class _Block:
    """Rows that attend side by side, each to itself and to the prompt it continues, if it does.

    Attributes:
        places: (row, position), the place of each token in the line; padding points at place 0.
        real: which of them are no padding.
        owners: the row of the prompts' block that each row continues; None: rows stand alone.
    """

    def __init__(
        self, spans: Sequence[range], continued: tuple[list[int], list[int]] | None, device: torch.device | str
    ) -> None:
        lengths = torch.tensor([len(span) for span in spans])[:, None]
        own = torch.arange(int(lengths.max()))[None]
        starts = torch.tensor([span.start for span in spans])[:, None]
        self.real = (own < lengths).to(device)
        self.places = torch.where(own < lengths, starts + own, 0).to(device)
        self.owners: Tensor | None = None
        keys, self._queries = own.expand(len(spans), -1), own
        if continued is not None:
            owners, prompt_lengths = continued
            ahead = torch.tensor([prompt_lengths[owner] for owner in owners])[:, None]
            prompt = torch.arange(max(prompt_lengths))[None]
            # Padding between a prompt and its completion lies in the far future: nobody sees it.
            keys = torch.cat([torch.where(prompt < ahead, prompt, 1 << 30), ahead + own], dim=1)
            self._queries = ahead + own
            self.owners = torch.tensor(owners, device=device)
        self._keys = keys
        self._bias: dict[tuple[int | None, int, torch.dtype], Tensor] = {}
        self._device = device

    @cached_property
    def _distance(self) -> Int[Tensor, "row query key"]:
        return self._queries[:, :, None] - self._keys[:, None, :]

    def attention(self, heads: Heads, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "row query joined"]:
        """Heads that share their keys are taken as further queries: the keys are read once, not copied for each."""
        share = q.shape[1] // k.shape[1]
        folded = q.unflatten(1, (k.shape[1], share)).flatten(2, 3)
        bias = self._mask(heads.window, share, q.dtype)
        if q.device.type == "cpu" and k.shape[2] <= _SHORT:
            plain = _attention if torch.is_autocast_enabled("cpu") else _PlainAttention.apply
            out: Tensor = plain(folded, k, v, bias, heads.scaling)
        else:
            out = functional.scaled_dot_product_attention(folded, k, v, attn_mask=bias, scale=heads.scaling)
        return out.unflatten(2, (share, q.shape[2])).permute(0, 3, 1, 2, 4).flatten(2)

    def _mask(self, window: int | None, share: int, dtype: torch.dtype) -> Float[Tensor, "row 1 query key"]:
        """0 where a query sees a key, −inf elsewhere; made once for all layers of a kind."""
        if (window, share, dtype) not in self._bias:
            seen = self._distance >= 0
            if window is not None:
                seen &= self._distance < window
            bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
            self._bias[window, share, dtype] = bias.repeat(1, share, 1)[:, None].to(self._device)
        return self._bias[window, share, dtype]


class _PlainAttention(torch.autograd.Function):
    """`_attention` that keeps no probabilities: the backward pass makes them again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.scaling = scaling
        return _attention(q, k, v, bias, scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        (gradient,) = gradients
        probabilities = _probabilities(q, k, bias, ctx.scaling)
        to_v = probabilities.transpose(-1, -2) @ gradient
        to_scores = torch.ops.aten._softmax_backward_data(
            gradient @ v.transpose(-1, -2), probabilities, -1, probabilities.dtype
        )
        to_scores *= ctx.scaling
        return to_scores @ k, to_scores.transpose(-1, -2) @ q, to_v, None, None


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """softmax(bias + scaling · q kᵀ) v"""
    return _probabilities(q, k, bias, scaling) @ v


def _probabilities(q: Tensor, k: Tensor, bias: Tensor, scaling: float) -> Tensor:
    return torch.add(bias, q @ k.transpose(-1, -2), alpha=scaling).softmax(dim=-1)


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of similar length together, longest first; empty ones nowhere."""
    blocks: list[list[int]] = []
    for row in sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row]):
        if blocks and (len(blocks[-1]) < _SMALLEST or lengths[row] >= _SIMILAR * lengths[blocks[-1][0]]):
            blocks[-1].append(row)
        else:
            blocks.append([row])
    return blocks


class _Spread(torch.autograd.Function):
    """Pick places out of the line, some of them more than once as padding; only the real ones send a gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None


class _Collect(torch.autograd.Function):
    """The way back into the line: what stands at padding is dropped and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.rows = len(x)
        return x.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient.new_zeros(ctx.rows, *gradient.shape[1:]).index_copy_(0, back, gradient), None
