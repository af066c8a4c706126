"""A transformer over a line of tokens, with attention handed in.

transformers runs a rectangle (row, position) and pads it. But all of a decoder except attention works token by token.
So here the tokens of many sequences stand in one line without padding, and the one part that must know which token
belongs where, ``attend``, comes from the caller: `rlif.packing` for whole sequences (prefill, update), `rlif.cache` for
one more token on each row. The weights are those of the transformers model itself, used in place.

Serves the Llama family in the wide sense (`FAMILIES`); `decoder_of` returns None for any other model, which is then run
by transformers' own forward pass, the slow twin of this one.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""``model_type`` of the models whose layers `decoder_of` knows how to read."""

_ROPE = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not depend on the length of the text


@dataclass(frozen=True)
class Heads:
    """What attention must know of a layer: its place, its scale, how far back it sees (None: everything)."""

    layer: int
    scaling: float
    window: int | None


Attend = Callable[[Heads, Tensor, Tensor, Tensor], Tensor]
"""Attention over a line of tokens: (heads, q (tok, head, feature), k and v (tok, kv_head, feature)) ->
(tok, head * feature)."""


@runtime_checkable
class Linears(Protocol):
    """One or several linear layers that share their input, as one call; ``residual`` is added to the only output."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]: ...


class PlainLinears:
    """The modules' own weights, with gradient."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self._modules = modules

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]:
        outputs = [functional.linear(x, module.weight, module.bias) for module in self._modules]
        return outputs if residual is None else [residual + outputs[0]]


class JoinedLinears:
    """A copy of the weights, side by side in one matrix: fewer, larger products, for decoding; without gradient.

    In bf16 on a CPU the copy is laid out for the matrix unit. A decode step multiplies few rows with every weight once,
    and oneDNN would lay the weights out anew at each product, which costs more than the product. The two operators are
    those PyTorch's own compiler emits for frozen weights.
    """

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        self._sizes = [module.out_features for module in modules]
        weights = [module.weight.detach() for module in modules]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._laid_out = _can_lay_out(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._laid_out else weight

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Sequence[Tensor]:
        if not self._laid_out:
            joined = functional.linear(x, self._weight, self._bias)
            joined = joined if residual is None else residual + joined
        elif residual is None:
            joined = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        else:
            joined = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
        return [joined] if len(self._sizes) == 1 else joined.split(self._sizes, dim=-1)


def _can_lay_out(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def plain(modules: Sequence[nn.Linear]) -> Linears:
    """Weights in place, with gradient: for training."""
    return PlainLinears(modules)


def joined(modules: Sequence[nn.Linear]) -> Linears:
    """A copy made for decoding; it does not follow later changes of the model."""
    same = len({module.bias is None for module in modules}) == 1
    return JoinedLinears(modules) if same else PlainLinears(modules)


class _Norm:
    """RMSNorm, Llama's way or Gemma's (which stores weight − 1)."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._eps = getattr(module, "variance_epsilon", None) or module.eps
        self._gemma = type(module).__name__.startswith("Gemma")

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._module.weight
        if self._gemma:  # in fp32 to the end, as Gemma does it
            weight = 1.0 + weight.float()
        result: Tensor = _RmsNorm.apply(x, weight, self._eps)
        return result


class _RmsNorm(torch.autograd.Function):
    """PyTorch's RMSNorm, whose backward pass on a CPU is a dozen fp32 operations over several tensors kept from the
    forward pass. This one keeps the input alone, and its derivative is written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        wide = x if weight.dtype == x.dtype else x.to(weight.dtype)
        return functional.rms_norm(wide, weight.shape, weight, eps).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wide, size = x.float(), x.shape[-1]
        scale = torch.linalg.vecdot(wide, wide).div_(size).add_(ctx.eps).rsqrt_()[..., None]
        normed = wide * scale
        gradient = gradients[0].float()
        product = gradient * normed
        to_weight = product.flatten(0, -2).sum(dim=0).to(weight.dtype)
        # d normed_i / d x_j = scale · (1[i = j] − normed_i · normed_j / size)
        along = (product @ weight.float()).div_(size)[..., None]
        to_x = (gradient * weight.float()).addcmul_(normed, along, value=-1.0).mul_(scale)
        return to_x.to(x.dtype), to_weight, None


@dataclass(frozen=True)
class _Layer:
    """One layer's parts. A norm that the family does not have is None."""

    heads: Heads
    kind: str
    feature: int
    before_attention: _Norm
    qkv: Linears
    q_norm: _Norm | None
    k_norm: _Norm | None
    out: Linears
    after_attention: _Norm | None
    before_mlp: _Norm
    gate_up: Linears
    activation: Callable[[Tensor], Tensor]
    down: Linears
    after_mlp: _Norm | None


Rotation = tuple[Tensor, Tensor]  # cosines, and sines signed so that a half-turn of x needs no negation


class Decoder:
    """The layers of a model as one function (tokens, positions, attend) -> hidden states. See `decoder_of`."""

    def __init__(self, model: Any, linears: Callable[[Sequence[nn.Linear]], Linears], *, recompute: bool) -> None:
        body = model.model
        self._embed, self._rotary, self._norm = body.embed_tokens, body.rotary_emb, _Norm(body.norm)
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
    linears: Callable[[Sequence[nn.Linear]], Linears] = plain,
    *,
    recompute: bool = False,
) -> Decoder | None:
    """The decoder of a transformers causal LM, or None if its layers are not of a kind that is known here.

    Args:
        linears: `plain` or `joined`.
        recompute: recompute each layer's activations in the backward pass instead of keeping them.
    """
    config: Any = model.config
    if config.model_type not in FAMILIES or not _plain_parts(model) or not _rope_types(config) <= set(_ROPE):
        return None
    return Decoder(model, linears, recompute=recompute)


def _plain_parts(model: Any) -> bool:
    """Whether the model is transformers' own, and every projection an untouched linear layer (no adapter, no
    quantisation) on which no hook hangs."""
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
    return not hooked and all(type(module) is nn.Linear for module in (*projections, model.lm_head))


_MLP = ("gate_proj", "up_proj", "down_proj")


def _rope_types(config: Any) -> set[str]:
    parameters = config.rope_parameters
    kinds = parameters.values() if "rope_type" not in parameters else [parameters]
    return {kind["rope_type"] for kind in kinds if kind is not None}


def _read_layer(layer: Any, index: int, linears: Callable[[Sequence[nn.Linear]], Linears]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    sandwich = hasattr(layer, "pre_feedforward_layernorm")  # Gemma: a norm on both sides of each half
    everywhere = attention.config.sliding_window if attention.config.model_type == "mistral" else None
    window = getattr(attention, "sliding_window", everywhere)

    def norm(owner: Any, name: str) -> _Norm | None:
        return _Norm(getattr(owner, name)) if hasattr(owner, name) else None

    return _Layer(
        heads=Heads(index, attention.scaling, window),
        kind=getattr(attention, "layer_type", None) or "full_attention",
        feature=attention.head_dim,
        before_attention=_Norm(layer.input_layernorm),
        qkv=linears([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=norm(attention, "q_norm"),
        k_norm=norm(attention, "k_norm"),
        out=linears([attention.o_proj]),
        after_attention=_Norm(layer.post_attention_layernorm) if sandwich else None,
        before_mlp=_Norm(layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm),
        gate_up=linears([mlp.gate_proj, mlp.up_proj]),
        activation=mlp.act_fn,
        down=linears([mlp.down_proj]),
        after_mlp=_Norm(layer.post_feedforward_layernorm) if sandwich else None,
    )


def _run_layer(x: Tensor, layer: _Layer, rotation: Rotation, attend: Attend) -> Tensor:
    q, k, v = (part.unflatten(-1, (-1, layer.feature)) for part in layer.qkv(layer.before_attention(x)))
    q = q if layer.q_norm is None else layer.q_norm(q)
    k = k if layer.k_norm is None else layer.k_norm(k)
    context = attend(layer.heads, _rotate(q, rotation), _rotate(k, rotation), v)
    x = _add(x, layer.out, context, layer.after_attention)
    gate, up = layer.gate_up(layer.before_mlp(x))
    return _add(x, layer.down, layer.activation(gate) * up, layer.after_mlp)


def _add(x: Tensor, linears: Linears, inner: Tensor, norm: _Norm | None) -> Tensor:
    if norm is None:
        return linears(inner, residual=x)[0]
    return x + norm(linears(inner)[0])


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding: halves swapped, not neighbours."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)
