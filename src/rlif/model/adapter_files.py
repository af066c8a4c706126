"""Adapters on disk, in the format of peft: adapter_config.json and adapter_model.safetensors.

Plain LoRA is read and written here, with no need of peft. What else peft knows (DoRA, rank-stabilised scales, ranks
that differ from layer to layer, further weights beside the adapter) is merged by peft itself, if it is installed.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlif.errors import Argument, RlifError, brief, shown
from rlif.model.files import ADAPTER_CONFIG, DamagedFileError, read_object
from rlif.model.fingerprint import base_mark
from rlif.model.lora import LoraLinear, adapted_layers, merged, replace_module
from rlif.model.policy import Policy

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MARK = "rlif_base"  # in the header of the weights, where other readers pass it over


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as its adapter_config.json describes it.

    Attributes:
        base: where its base model lies: a name, folder or hub id.
        other: the setting that makes it another kind than plain LoRA, in words; None: there is none.
    """

    folder: Path
    base: str
    r: int
    alpha: int | float
    other: str | None


_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),  # the weights' names say it
    *("lora_alpha", "lora_dropout", "megatron_core", "qalora_group_size", "r"),
}
"""Keys of adapter_config.json that leave plain LoRA what it is, whatever they hold."""

_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base
}
"""What keys with a default that says something hold in plain LoRA. Any other key holds nothing: null, false, empty."""


def read_adapter(folder: Path) -> AdapterFiles:
    """What adapter_config.json says. Raises `RlifError` if it is damaged, or names no base model."""
    try:
        config = read_object(folder / ADAPTER_CONFIG)
        r, alpha, base = config.get("r", 8), config.get("lora_alpha", 8), config.get("base_model_name_or_path")
        if not _is_number(r) or r != int(r) or not _is_number(alpha):
            raise DamagedFileError(folder / ADAPTER_CONFIG, f"r is {shown(r)} and lora_alpha {shown(alpha)}")
        if not isinstance(base, str) or not base:
            reason = "names no base model; write its folder or hub id as base_model_name_or_path"
            raise DamagedFileError(folder / ADAPTER_CONFIG, reason)
    except (OSError, DamagedFileError) as error:
        raise RlifError(Argument("model"), f": {brief(str(folder))}: {brief(str(error))}") from error
    other = [
        f"{key} is {shown(value)}"
        for key, value in config.items()
        if key not in _HARMLESS and (value not in _PLAIN[key] if key in _PLAIN else bool(value))
    ]
    return AdapterFiles(folder, base, int(r), alpha, other[0] if other else None)


def write_adapter(folder: Path, policy: Policy, factors: Mapping[str, Tensor]) -> None:
    """Write a policy's adapter into a folder, as peft, vLLM and `read_adapter` take it.

    ``factors``: fp32 values of its A and B, by the names that they have in the model.
    """
    assert policy.adapter is not None, "no adapter"
    adapter, layers = policy.adapter, adapted_layers(policy.model)
    ends = {name.rpartition(".")[2] for name in layers}
    called = {n for n, m in policy.model.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] in ends}
    config = {
        "base_model_name_or_path": adapter.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.r,
        "target_modules": sorted(ends if called == set(layers) else layers),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {f"{_PREFIX}{name}.weight": tensor.detach().cpu().contiguous() for name, tensor in factors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", _MARK: adapter.mark})


def load_factors(policy: Policy, files: AdapterFiles) -> None:
    """Give a policy's adapter the values of these files, bit for bit (in fp32).

    Raises `RlifError` unless they are of an adapter of the same kind: layers, rank, scale.
    """
    assert policy.adapter is not None, "no adapter"
    adapter, layers, found = policy.adapter, adapted_layers(policy.model), _factors(files)
    if (adapter.r, adapter.alpha) != (files.r, files.alpha):
        raise RlifError(
            Argument("lora"),
            f": r is {adapter.r} and alpha {adapter.alpha}, the adapter in {brief(str(files.folder))} has r {files.r} "
            f"and alpha {files.alpha:g}; say the same",
        )
    if strays := sorted(found.keys() ^ layers.keys()):
        owner = "only the adapter" if strays[0] in found else "all but the adapter"
        raise RlifError(
            Argument("lora.targets"),
            f": {owner} in {brief(str(files.folder))} has {brief(strays[0])}; name the layers that it has",
        )
    for name, layer in layers.items():
        _fill(layer, name, found[name], files)


def merge_adapter(policy: Policy, files: AdapterFiles) -> Policy:
    """The policy with an adapter of these files added to its weights: a model without one, all of which can be trained.

    Raises `RlifError` if it is damaged or of another base, and if it is no plain LoRA and peft is not installed.
    """
    check_base(policy.model, files)
    if files.other is not None:
        return replace(policy, model=_merged_by_peft(policy.model, files).requires_grad_(True))
    modules = dict(policy.model.named_modules())
    for name, factors in _factors(files).items():
        linear = modules.get(name)
        if type(linear) is not nn.Linear:
            raise _misfit(files, f"that has no linear layer {brief(name)}")
        layer = LoraLinear(linear, files.r, files.alpha)
        _fill(layer, name, factors, files)
        replace_module(policy.model, name, layer)
    whole = merged(policy)
    whole.model.requires_grad_(True)
    return whole


def check_base(model: nn.Module, files: AdapterFiles) -> str:
    """The mark of the base model (`rlif.model.fingerprint.base_mark`).

    Raises `RlifError` if the adapter was trained on other weights, as far as its files tell: those that rlif wrote do.
    """
    mark = base_mark(model)
    if (trained_on := _header(files).get(_MARK, mark)) != mark:
        raise _misfit(files, f"it was trained on other weights (marked {brief(trained_on)}, not {mark})")
    return mark


def _misfit(files: AdapterFiles, reason: str) -> RlifError:
    return RlifError(
        Argument("model"),
        f": the adapter in {brief(str(files.folder))} does not belong to {brief(files.base)}: {reason}; name its own "
        f"base model in {ADAPTER_CONFIG}",
    )


def _header(files: AdapterFiles) -> Mapping[str, str]:
    path = files.folder / WEIGHTS
    if not path.is_file():  # a pickle may lie there, which is not read
        raise RlifError(Argument("model"), f": {brief(str(files.folder))} is an adapter without its {WEIGHTS}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:  # the library's verdict on the file
        raise _damaged(files, error) from error


def _factors(files: AdapterFiles) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer, by its name."""
    _header(files)
    try:
        tensors = load_file(files.folder / WEIGHTS)
    except Exception as error:
        raise _damaged(files, error) from error
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, factor = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if key != f"{_PREFIX}{name}.{factor}.weight" or factor not in ("lora_A", "lora_B"):
            raise _damaged(files, f"{key} is no part of a plain LoRA adapter")
        if not tensor.dtype.is_floating_point:
            raise _damaged(files, f"{key} is of type {tensor.dtype}")
        pairs.setdefault(name, {})[factor] = tensor
    if halves := [name for name, pair in pairs.items() if len(pair) < 2]:
        raise _damaged(files, f"of {halves[0]} only {next(iter(pairs[halves[0]]))} is there")
    if not pairs:
        raise _damaged(files, "it is empty")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in pairs.items()}


def _damaged(files: AdapterFiles, reason: object) -> RlifError:
    return RlifError(
        Argument("model"), f": {brief(str(files.folder))}: {WEIGHTS} is damaged ({brief(str(reason))}); fetch it again"
    )


@torch.no_grad()
def _fill(layer: LoraLinear, name: str, factors: tuple[Tensor, Tensor], files: AdapterFiles) -> None:
    for mine, found, factor in zip((layer.lora_A, layer.lora_B), factors, ("lora_A", "lora_B"), strict=True):
        if mine.shape != found.shape:
            raise _misfit(files, f"{brief(name)}.{factor} is {tuple(found.shape)}, expected {tuple(mine.shape)}")
        mine.copy_(found)


def _merged_by_peft(model: nn.Module, files: AdapterFiles) -> nn.Module:
    """Any adapter that peft can merge."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise RlifError(
            Argument("model"),
            f": the adapter in {brief(str(files.folder))} is no plain LoRA ({files.other}), and peft, which merges it, "
            "is missing: pip install 'rlif[lora]'",
        ) from error
    try:
        with warnings.catch_warnings():  # what changes between peft and transformers is not the user's affair
            warnings.simplefilter("ignore", FutureWarning)
            whole: nn.Module = PeftModel.from_pretrained(model, str(files.folder)).merge_and_unload()
    except Exception as error:  # whatever peft raises is its verdict on the adapter
        raise RlifError(
            Argument("model"), f": peft cannot merge the adapter in {brief(str(files.folder))} ({brief(str(error))})"
        ) from error
    return whole.eval()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
