"""A transformer over a line of tokens, with attention handed in.

transformers runs a rectangle (row, position) and pads it. But all of a decoder except attention works token by token.
So here the tokens of many sequences stand in one line without padding, and the one part that must know which token
belongs where, ``attend``, comes from the caller: `rlif.model.packing` for whole sequences (prefill, update),
`rlif.rollout.kv_cache` for one more token on each row. The weights are those of the transformers model itself, used in
place.

Serves the Llama family in the wide sense (`FAMILIES`); `decoder_of` returns None for any other model, which is then run
by transformers' own forward pass, the slow reference for this one.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rlif.model.layers import ElementwiseOp, Gated, Identity, Norm, Rotation, products, rotated
from rlif.model.lora import LoraLinear, joined_low_rank, low_rank_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""``model_type`` of the models whose layers `decoder_of` knows how to read."""

_ROPE = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not depend on the length of the text


@dataclass(frozen=True)
class Heads:
    """What attention must know of a layer: its place, its scale, how far back it sees (None: everything), and the norms
    of its queries and keys (None: there are none)."""

    layer: int
    scaling: float
    window: int | None
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def apply_norm_and_rope(self, q: Tensor, k: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are compared: normed, and turned to their positions."""
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        return rotated(q, rotation), rotated(k, rotation)


Attend = Callable[[Heads, Tensor, Tensor, Tensor, Rotation], Tensor]
"""Attention over a line of tokens: (heads, q (tok, head, feature), k and v (tok, kv_head, feature), rotation) ->
(tok, head * feature); q and k as the products with the weights left them, see `Heads.apply_norm_and_rope`."""


@runtime_checkable
class LinearGroup(Protocol):
    """One or several linear layers of what ``op`` makes of its inputs; ``residual`` is added to the only output."""

    def __call__(self, op: ElementwiseOp, *inputs: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]: ...


class PlainLinearGroup:
    """The modules' own weights, with gradient. ``lean``: the backward pass runs the operation again
    (`rlif.model.layers.products`), which is of no use in a layer that is made again as a whole."""

    def __init__(self, modules: Sequence[nn.Linear], *, lean: bool = True) -> None:
        self._modules, self._lean = modules, lean

    def __call__(self, op: ElementwiseOp, *inputs: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]:
        if self._lean:
            weights, biases = zip(*((module.weight, module.bias) for module in self._modules), strict=True)
            outputs = products(op, inputs, weights, biases, low_rank_of(self._modules))
        else:
            x = op(*inputs)
            outputs = [module(x) for module in self._modules]
        return outputs if residual is None else [residual + outputs[0]]


class JoinedLinearGroup:
    """A copy of the weights, side by side in one matrix: fewer, larger products, for decoding; without gradient.

    On a CPU the copy is laid out as oneDNN multiplies it: a decode step multiplies few rows with every weight once, and
    to lay weights out anew at each product, as bf16's would be, costs more than the product. In fp32 the laid-out
    product beats the usual one (of MKL) where weights come from memory. The two operators are those that PyTorch's own
    compiler emits for frozen weights in bf16.

    An adapter is merged into the copy: W + scaling · B A. Not in types of 16 bits: there the sum would be rounded to
    W's own steps and lose what is smaller, so that the sampler would hear of an update only when it had grown. Its
    product is added beside W's, as in the update.
    """

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self._sizes = [module.out_features for module in modules]
        merges = modules[0].weight.dtype.itemsize >= 4
        self._low_rank = None if merges else joined_low_rank(modules)
        weights = [
            module.merged_weight() if merges and isinstance(module, LoraLinear) else module.weight.detach()
            for module in modules
        ]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._laid_out = _can_lay_out(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._laid_out else weight

    def __call__(self, op: ElementwiseOp, *inputs: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]:
        x = op(*inputs)
        if not self._laid_out:
            joined = functional.linear(x, self._weight, self._bias)
            joined = joined if residual is None else residual + joined
        elif residual is None:
            joined = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        else:
            joined = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
        if self._low_rank is not None:
            a, b = self._low_rank
            joined = torch.addmm(joined, functional.linear(x, a), b.t())
        return [joined] if len(self._sizes) == 1 else joined.split(self._sizes, dim=-1)


_SMALL = 1 << 20  # bytes: fp32 weights that stay in a core's cache are no faster laid out


def _can_lay_out(weight: Tensor) -> bool:
    operators = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(operators, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:  # not of every processor
        return bool(operators._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and weight.nbytes >= _SMALL


def joined(modules: Sequence[nn.Linear]) -> LinearGroup:
    """A copy made for decoding; it does not follow later changes of the model."""
    same = len({module.bias is None for module in modules}) == 1
    return JoinedLinearGroup(modules) if same else PlainLinearGroup(modules)


@dataclass(frozen=True)
class _Layer:
    """One layer's parts. A norm that the family does not have is None."""

    heads: Heads
    kind: str
    feature: int
    before_attention: Norm
    qkv: LinearGroup
    out: LinearGroup
    after_attention: Norm | None
    before_mlp: Norm
    gate_up: LinearGroup
    gated: Gated
    down: LinearGroup
    after_mlp: Norm | None


class Decoder:
    """The layers of a model as one function (tokens, positions, attend) -> hidden states. See `decoder_of`."""

    def __init__(self, model: Any, linears: Callable[[Sequence[nn.Linear]], LinearGroup], *, recompute: bool) -> None:
        body = model.model
        self._embed, self._rotary, self._norm = body.embed_tokens, body.rotary_emb, Norm(body.norm)
        self._layers = [_read_layer(layer, i, linears) for i, layer in enumerate(body.layers)]
        self._by_kind = "layer_type" in inspect.signature(self._rotary.forward).parameters
        self._recompute = recompute

    def __call__(
        self, tokens: Int[Tensor, " tok"], positions: Int[Tensor, " tok"], attend: Attend
    ) -> Float[Tensor, "tok hidden"]:
        """Final hidden states, normalised: what the head turns into logits."""
        x = self._embed(tokens)
        rotations = {kind: self._rotation(x, positions, kind) for kind in {layer.kind for layer in self._layers}}
        for layer in self._layers:
            if self._recompute:
                x = checkpoint(_run_layer, x, layer, rotations[layer.kind], attend, use_reentrant=False)
            else:
                x = _run_layer(x, layer, rotations[layer.kind], attend)
        return self._norm(x)

    def _rotation(self, x: Tensor, positions: Tensor, kind: str) -> Rotation:
        cos, sin = self._rotary(x, positions[None], **({"layer_type": kind} if self._by_kind else {}))
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos[0, :, None], signed[0, :, None]


def decoder_of(
    model: nn.Module,
    linears: Callable[[Sequence[nn.Linear]], LinearGroup] | None = None,
    *,
    recompute: bool = False,
) -> Decoder | None:
    """The decoder of a transformers causal LM, or None if its layers are not of a kind that is known here.

    Args:
        linears: `joined` for decoding; None: the modules' own weights, for training.
        recompute: make each layer again as a whole in the backward pass. Otherwise only norms, gates and (on a CPU, up
            to 512 keys) attention's probabilities are made again.
    """
    if not has_decoder(model):
        return None
    return Decoder(model, linears or partial(PlainLinearGroup, lean=not recompute), recompute=recompute)


def has_decoder(model: nn.Module) -> bool:
    """Whether `decoder_of` finds a decoder. Asked anew each time: a hook or an adapter may have come since."""
    config: Any = model.config
    return config.model_type in FAMILIES and _plain_parts(model) and _rope_types(config) <= set(_ROPE)


def _plain_parts(model: Any) -> bool:
    """Whether the model is transformers' own, and every projection a linear layer on which no hook hangs, as it was
    loaded or with an adapter of `rlif.model.lora` (no other one, and no quantisation)."""
    if not type(model).__module__.startswith("transformers.models."):
        return False
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        return False
    if getattr(model.config, "use_bidirectional_attention", False):
        return False
    projections = [
        getattr(part, name)
        for layer in model.model.layers
        for part, names in ((layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, _MLP))
        for name in names
    ]
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return (
        not hooked
        and type(model.lm_head) is nn.Linear
        and all(type(module) in (nn.Linear, LoraLinear) for module in projections)
    )


_MLP = ("gate_proj", "up_proj", "down_proj")


def _rope_types(config: Any) -> set[str]:
    parameters = config.rope_parameters
    kinds = parameters.values() if "rope_type" not in parameters else [parameters]
    return {kind["rope_type"] for kind in kinds if kind is not None}


def _read_layer(layer: Any, index: int, linears: Callable[[Sequence[nn.Linear]], LinearGroup]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    sandwich = hasattr(layer, "pre_feedforward_layernorm")  # Gemma: a norm on both sides of each half
    everywhere = attention.config.sliding_window if attention.config.model_type == "mistral" else None
    window = getattr(attention, "sliding_window", everywhere)

    def norm(owner: Any, name: str) -> Norm | None:
        return Norm(getattr(owner, name)) if hasattr(owner, name) else None

    return _Layer(
        heads=Heads(
            index, attention.scaling, window, q_norm=norm(attention, "q_norm"), k_norm=norm(attention, "k_norm")
        ),
        kind=getattr(attention, "layer_type", None) or "full_attention",
        feature=attention.head_dim,
        before_attention=Norm(layer.input_layernorm),
        qkv=linears([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=linears([attention.o_proj]),
        after_attention=Norm(layer.post_attention_layernorm) if sandwich else None,
        before_mlp=Norm(layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm),
        gate_up=linears([mlp.gate_proj, mlp.up_proj]),
        gated=Gated(mlp.act_fn),
        down=linears([mlp.down_proj]),
        after_mlp=Norm(layer.post_feedforward_layernorm) if sandwich else None,
    )


def _run_layer(x: Tensor, layer: _Layer, rotation: Rotation, attend: Attend) -> Tensor:
    q, k, v = (part.unflatten(-1, (-1, layer.feature)) for part in layer.qkv(layer.before_attention, x))
    x = _add(x, layer.after_attention, layer.out, Identity(), attend(layer.heads, q, k, v, rotation))
    return _add(x, layer.after_mlp, layer.down, layer.gated, *layer.gate_up(layer.before_mlp, x))


def _add(x: Tensor, norm: Norm | None, linears: LinearGroup, op: ElementwiseOp, *inputs: Tensor) -> Tensor:
    if norm is None:
        return linears(op, *inputs, residual=x)[0]
    return x + norm(linears(op, *inputs)[0])
