"""Low-rank adapters: W + (alpha / r) · B A in the place of W, where only A (r, in) and B (out, r) are trained.

Source: LoRA, arXiv 2106.09685. The factors lie in linear layers of our own, `LoraLinear`, in the model itself: its
forward pass by transformers and `rlif.model.decoder` read the same tensors. The base weights are frozen, so that views
of the model (`without_adapter`, `merged`, `sharing_frozen`) hold them once more without holding them twice.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rlif.config import LoraConfig
from rlif.errors import Argument, RlifError, brief
from rlif.model.layers import LowRank
from rlif.rng import Key, uniforms

if TYPE_CHECKING:
    from rlif.model.policy import Policy


@dataclass(frozen=True)
class Adapter:
    """What a policy's adapter is, its numbers aside.

    Attributes:
        base: where the base model lies, a folder or a hub id, as whoever loads the adapter is told.
        mark: what tells the base's weights from others (`rlif.model.fingerprint.base_mark`).
    """

    r: int
    alpha: int | float
    base: str
    mark: str


class LoraLinear(nn.Linear):
    """A linear layer with an adapter: x Wᵀ + b + scaling · (x Aᵀ) Bᵀ; weight and bias are the tensors it was made of.

    A and B are fp32 (or wider, as W is) until an optimizer casts the model to its compute type. B is 0 at first.
    """

    def __init__(self, linear: nn.Linear, r: int, alpha: int | float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias, self.scaling = linear.weight, linear.bias, alpha / r
        options: dict[str, Any] = {
            "device": linear.weight.device,
            "dtype": torch.promote_types(linear.weight.dtype, torch.float32),
        }
        self.lora_A = nn.Parameter(torch.zeros(r, linear.in_features, **options))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r, **options))
        self.train(linear.training)

    def forward(self, x: Float[Tensor, "*row size"]) -> Float[Tensor, "*row out"]:
        low: Tensor = functional.linear(functional.linear(x, self.lora_A), self.lora_B)
        return functional.linear(x, self.weight, self.bias) + self.scaling * low

    @torch.no_grad()
    def merged_weight(self) -> Float[Tensor, "out size"]:
        """W + scaling · B A, added up in fp32 or wider and rounded to the type of W; without gradient."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        merged = torch.addmm(self.weight.to(wide), self.lora_B.to(wide), self.lora_A.to(wide), alpha=self.scaling)
        return merged.to(self.weight.dtype)


def with_adapter(policy: "Policy", config: LoraConfig, *, base: str, mark: str, seed: int) -> "Policy":
    """The policy with a new adapter in its model, which is changed in place: only the adapter has gradients then.

    A is uniform within ±1/√in, as peft draws it, from streams keyed by ``seed`` and the layer's name; B is 0, so the
    policy answers as before. Raises `RlifError` for targets that the model lacks, and for a rank above that of a layer.
    """
    model = policy.model
    model.requires_grad_(False)
    for name, linear in _targets(policy, config):
        if config.r > (most := min(linear.in_features, linear.out_features)):
            raise RlifError(
                Argument("lora.r"), f": {config.r} is more than the rank of {brief(name)}, {most}; choose a lower one"
            )
        layer = LoraLinear(linear, config.r, config.alpha)
        drawn = torch.from_numpy(uniforms(Key(seed, "lora"), name, 0, layer.lora_A.numel()))
        with torch.no_grad():
            layer.lora_A.copy_((2.0 * drawn.view_as(layer.lora_A) - 1.0) / math.sqrt(linear.in_features))
        replace_module(model, name, layer)
    return replace(policy, adapter=Adapter(config.r, config.alpha, base, mark))


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers of a model that have an adapter, by name; {} for a model without one."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def sharing_frozen(model: nn.Module) -> nn.Module:
    """A copy of a model that shares its frozen parameters and owns the others: all of them without an adapter."""
    return _copy(model, (parameter for parameter in model.parameters() if not parameter.requires_grad))


def without_adapter(model: nn.Module) -> nn.Module:
    """The same model with its adapter off: it shares all weights, and holds nothing besides."""
    bare = _copy(model, model.parameters())
    for name, layer in adapted_layers(bare).items():
        replace_module(bare, name, _plain(layer, layer.weight))
    return bare


def merged(policy: "Policy") -> "Policy":
    """The policy with its adapter added to its weights (`LoraLinear.merged_weight`): a plain model, which shares the
    weights that had no adapter."""
    model = _copy(policy.model, policy.model.parameters())
    for name, layer in adapted_layers(model).items():
        replace_module(model, name, _plain(layer, layer.merged_weight()))
    return replace(policy, model=model, adapter=None)


@torch.no_grad()
def cast_adapter(model: nn.Module) -> None:
    """Round an adapter to the type of the weights it stands beside, as an optimizer over masters does."""
    for layer in adapted_layers(model).values():
        for factor in (layer.lora_A, layer.lora_B):
            factor.data = factor.data.to(layer.weight.dtype)


def low_rank_of(modules: Sequence[nn.Linear]) -> list[LowRank]:
    """The adapters of linear layers side by side, for `rlif.model.layers.products`."""
    return [
        LowRank(at, module.lora_A, module.lora_B, module.scaling)
        for at, module in enumerate(modules)
        if isinstance(module, LoraLinear)
    ]


@torch.no_grad()
def joined_low_rank(modules: Sequence[nn.Linear]) -> tuple[Tensor, Tensor] | None:
    """(A, B) of linear layers side by side as if they were one: (Σ rank, in) and (Σ out, Σ rank), scaled; a copy.

    B is 0 where output and rank are of different layers. None if no layer has an adapter.
    """
    if not (adapters := low_rank_of(modules)):
        return None
    a = torch.cat([low.a for low in adapters])
    starts = [sum(module.out_features for module in modules[: low.at]) for low in adapters]
    b = a.new_zeros(sum(module.out_features for module in modules), len(a))
    rank = 0
    for low, start in zip(adapters, starts, strict=True):
        out, width = low.b.shape
        b[start : start + out, rank : rank + width] = low.b * low.scaling
        rank += width
    return a, b


def _targets(policy: "Policy", config: LoraConfig) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers that the recipe names by the ends of their names; all but the head for ``all-linear``."""
    model: Any = policy.model
    head = model.get_output_embeddings()
    known = {n: m for n, m in model.named_modules() if type(m) is nn.Linear and m is not head}
    ends = sorted({name.rpartition(".")[2] for name in known})
    if not known:
        raise RlifError(Argument("lora"), f": {policy.source} has no linear layers to adapt; train it whole")
    targets = ends if "all-linear" in config.targets else config.targets
    for target in targets:
        if not any(_is_called(name, target) for name in known):
            raise RlifError(
                Argument("lora.targets"),
                f": no linear layer of {policy.source} is called {brief(repr(target))}; there are {', '.join(ends)}",
            )
    return ((n, m) for n, m in known.items() if any(_is_called(n, target) for target in targets))


def _is_called(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _copy(model: nn.Module, shared: Iterable[Tensor]) -> nn.Module:
    """A copy of modules and buffers; ``shared`` parameters are the model's own."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in shared})


def _plain(layer: LoraLinear, weight: Tensor) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    linear.bias = layer.bias
    return linear.train(layer.training)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into the place of another one."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
