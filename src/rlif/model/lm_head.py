"""The last layer without its logits: hidden states and the head's weight in, log-probabilities and signals out.

At a vocabulary of 150,000 the logits of one long completion weigh more than the model. Everything wanted of them is a
few sums over the vocabulary, so they are made tile by tile (tokens x vocabulary), folded into running sums, and
forgotten; the backward pass makes each tile again. Extra memory is a few tiles, whatever the number of tokens or the
vocabulary. `rlif.signals.token_signals` on materialised logits is the slow reference; on a GPU
`rlif.model.kernels.lm_head_triton` serves.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rlif.types import TokenSignals

_TILE = {"cpu": 1 << 21, "cuda": 1 << 27}  # numbers in a tile of fp32 logits; 8 MB still lie in a processor's cache
_TILE_TOKENS = {"cpu": 1024, "cuda": 4096}


@dataclass(frozen=True)
class Head:
    """How a model turns a hidden state into logits: softcap(scale · (W h + b)), over the true vocabulary.

    Attributes:
        weight: (vocabulary with padding, hidden).
        scale: factor on the logits (Cohere's logit_scale, one over Granite's logits_scaling).
        softcap: c in c · tanh(z / c) (Gemma); None: none.
        vocab_size: rows of ``weight`` that count; the others pad it for the hardware.
    """

    weight: Float[Tensor, "padded_vocab hidden"]
    bias: Float[Tensor, " padded_vocab"] | None
    scale: float
    softcap: float | None
    vocab_size: int

    def logits(self, hidden: Float[Tensor, "row hidden"], columns: slice = slice(None)) -> Float[Tensor, "row vocab"]:
        """fp32 logits of some columns (default: the true vocabulary) at temperature 1; the product in the own dtype."""
        columns = slice(*columns.indices(self.vocab_size))
        bias = None if self.bias is None else self.bias[columns]
        return self.shaped(functional.linear(hidden, self.weight[columns], bias).float())

    def shaped(self, products: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        """Logits from the products of hidden states and weight (bias added): scaled and capped."""
        scaled = products if self.scale == 1.0 else products * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def head_of(model: nn.Module, vocab_size: int) -> Head:
    """The head of a transformers causal LM. Raises TypeError if it is not one linear layer.

    Of a head that FSDP2 has sharded the weight is gathered: every rank has to ask then.
    """
    layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    if type(layer) is not nn.Linear and type(layer).__name__ != "FSDPLinear":
        raise TypeError(f"the head is a {type(layer).__name__}, not a Linear")
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    weight, bias = (part.full_tensor() if hasattr(part, "full_tensor") else part for part in (layer.weight, layer.bias))
    return Head(weight, bias, scale, getattr(config, "final_logit_softcapping", None), vocab_size)


@torch.no_grad()
def head_signals(hidden: Float[Tensor, "row hidden"], head: Head, tokens: Int[Tensor, " row"]) -> TokenSignals:
    """`rlif.signals.token_signals` of each row's distribution, fp32, in nats, without gradient.

    Args:
        hidden: final hidden states, any float dtype (that of the head's weight).
        tokens: the token each distribution produced.

    Source: project; the sums are those of `rlif.signals`, with a running maximum.
    """
    if (kernels := _kernels(hidden.device.type)) is not None:
        return kernels.head_signals(hidden, head, tokens)
    sums = _fold(hidden, head, tokens, 1.0)
    log_total = sums.log_total
    return TokenSignals(
        sums.chosen - log_total,
        (log_total - sums.weighted / sums.total).clamp_min(0.0),
        (log_total - sums.plain / head.vocab_size - math.log(head.vocab_size)).clamp_min(0.0),
    )


def head_logprobs(
    hidden: Float[Tensor, "row hidden"], head: Head, tokens: Int[Tensor, " row"], temperature: float = 1.0
) -> Float[Tensor, " row"]:
    """Log-probability (nats, fp32) of each row's token at a temperature, with gradient to hidden states and head.

    Source: project; the tiled backward pass is the plain one, d logp / d z_v = 1[v = token] − p_v.
    """
    if (kernels := _kernels(hidden.device.type)) is not None:
        return kernels.head_logprobs(hidden, head, tokens, temperature)
    logprobs: Tensor = _HeadLogprobs.apply(hidden, head.weight, head.bias, head, tokens, temperature)
    return logprobs


def head_logprobs_and_entropy(
    hidden: Float[Tensor, "row hidden"], head: Head, tokens: Int[Tensor, " row"], temperature: float = 1.0
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """`head_logprobs`, and the entropy of each row's distribution at that temperature (nats, fp32); both with gradient.

    The entropy is over the whole vocabulary, and so is its gradient, d H / d z_v = −p_v (ln p_v + H): it costs a few
    operations on tiles that are made anyway. These are the plain tiles on every device. Source: project.
    """
    logprobs, entropy = _HeadLogprobsAndEntropy.apply(hidden, head.weight, head.bias, head, tokens, temperature)
    return logprobs, entropy


@cache
def _kernels(device: str) -> Any:
    """The module whose kernels serve this type of device, or None: plain PyTorch does. Triton comes with PyTorch for
    CUDA on Linux only, and is imported when first needed."""
    if device != "cuda" or find_spec("triton") is None:
        return None
    from rlif.model.kernels import lm_head_triton

    return lm_head_triton


@dataclass
class _Sums:
    """Per row, relative to a running maximum m: Σ e^(z−m), Σ (z−m) e^(z−m), Σ (z−m), and z_token − m."""

    maximum: Tensor
    total: Tensor
    weighted: Tensor
    plain: Tensor
    chosen: Tensor

    @property
    def log_total(self) -> Tensor:
        return self.total.log()


def _fold(hidden: Tensor, head: Head, tokens: Tensor, temperature: float, *, signals: bool = True) -> _Sums:
    """One pass over all tiles. Without ``signals`` the sums that only they need stay 0."""
    n = len(tokens)
    zeros = lambda: hidden.new_zeros(n, dtype=torch.float32)  # noqa: E731
    sums = _Sums(zeros().fill_(-torch.inf), zeros(), zeros(), zeros(), zeros())
    for rows, columns in _tiles(n, head.vocab_size, hidden.device):
        z = head.logits(hidden[rows], columns)
        if temperature != 1.0:
            z = z / temperature
        maximum = torch.maximum(sums.maximum[rows], z.amax(dim=-1))
        shift = sums.maximum[rows] - maximum  # how far the sums so far move down; -inf before the first tile
        decay = shift.exp()
        z -= maximum[:, None]
        width = columns.stop - columns.start
        local = tokens[rows] - columns.start
        here = (local >= 0) & (local < width)
        chosen = z.gather(-1, local.clamp(0, width - 1)[:, None]).squeeze(-1)
        moved = torch.where(shift.isfinite(), shift, 0.0)  # 0 · inf before the first tile
        sums.chosen[rows] = torch.where(here, chosen, sums.chosen[rows] + moved)
        if signals:
            weights = z.exp()
            before = sums.weighted[rows] + moved * sums.total[rows]
            sums.weighted[rows] = before * decay + torch.linalg.vecdot(weights, z)
            sums.plain[rows] = sums.plain[rows] + moved * columns.start + z.sum(dim=-1)
        else:
            weights = z.exp_()
        sums.total[rows] = sums.total[rows] * decay + weights.sum(dim=-1)
        sums.maximum[rows] = maximum
    return sums


def _tiles(n: int, vocab: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Tiles as (rows, columns), all rows of a column block before the next."""
    height = min(n, _TILE_TOKENS.get(device.type, 1024))
    width = max(1, _TILE.get(device.type, 1 << 21) // max(1, height))
    for column in range(0, vocab, width):
        for row in range(0, n, height):
            yield slice(row, min(row + height, n)), slice(column, min(column + width, vocab))


class _HeadLogprobs(torch.autograd.Function):
    """`head_logprobs`: keeps the logarithm of each row's normaliser, makes every tile again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, tokens: Tensor, temperature: float
    ) -> Tensor:
        sums = _fold(hidden, head, tokens, temperature, signals=False)
        ctx.save_for_backward(hidden, weight, bias, tokens, sums.maximum + sums.log_total)
        ctx.head, ctx.temperature = head, temperature
        return sums.chosen - sums.log_total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return _to_leaves(ctx, gradient, lambda logp, rows: logp.exp_().mul_(-gradient[rows, None]))


class _HeadLogprobsAndEntropy(torch.autograd.Function):
    """`head_logprobs_and_entropy`: keeps each row's normaliser and entropy, makes every tile again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, tokens: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        sums = _fold(hidden, head, tokens, temperature)
        entropy = (sums.log_total - sums.weighted / sums.total).clamp_min(0.0)
        ctx.save_for_backward(hidden, weight, bias, tokens, sums.maximum + sums.log_total, entropy)
        ctx.head, ctx.temperature = head, temperature
        return sums.chosen - sums.log_total, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_logprob, of_entropy = gradients
        entropy = ctx.saved_tensors[5]

        def through_all(logp: Tensor, rows: slice) -> Tensor:
            factor = (logp + entropy[rows, None]).mul_(of_entropy[rows, None]).add_(of_logprob[rows, None])
            return logp.exp_().mul_(factor.neg_())

        return _to_leaves(ctx, of_logprob, through_all)


def _to_leaves(
    ctx: Any, of_logprob: Tensor, through_all: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden states, weight and bias, tile by tile.

    ``through_all``: (ln p of a tile, its rows) → the gradient of its logits at the temperature, but for what reaches
    the chosen token's alone, which is ``of_logprob``. It may overwrite the tile.
    """
    hidden, weight, bias, tokens, log_normaliser = ctx.saved_tensors[:5]
    head, temperature = ctx.head, ctx.temperature
    to_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
    if to_weight is not None:
        to_weight[head.vocab_size :] = 0.0  # padding, which no tile reaches
    to_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
    block = torch.empty(0)
    for rows, columns in _tiles(len(tokens), head.vocab_size, hidden.device):
        z = head.logits(hidden[rows], columns)
        slope = None if head.softcap is None else 1.0 - (z / head.softcap).square()
        d = through_all(z.div_(temperature).sub_(log_normaliser[rows, None]), rows)
        local = tokens[rows] - columns.start
        inside = ((local >= 0) & (local < columns.stop - columns.start)).nonzero().squeeze(-1)
        d[inside, local[inside]] += of_logprob[rows][inside]
        factor = head.scale / temperature
        d = d if factor == 1.0 else d.mul_(factor)
        d = d if slope is None else d.mul_(slope)
        if to_bias is not None:
            to_bias[columns] += d.sum(dim=0).to(to_bias.dtype)
        d = d.to(hidden.dtype)
        to_hidden[rows] += d @ weight[columns]
        if to_weight is None:
            continue
        if rows.stop - rows.start == len(tokens):
            torch.mm(d.t(), hidden[rows], out=to_weight[columns])
            continue
        part = (d.t() @ hidden[rows]).float()  # the gradient of a column block comes in parts: summed in fp32
        block = part if rows.start == 0 else block.add_(part)
        if rows.stop == len(tokens):
            to_weight[columns] = block.to(to_weight.dtype)
    return to_hidden.to(hidden.dtype), to_weight, to_bias, None, None, None
