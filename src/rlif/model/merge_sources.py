"""The two models that are merged: where they lie, what their files say, and whether one can lie between them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rlif.errors import Argument, RlifError, brief
from rlif.model import registry
from rlif.model.files import DamagedFileError, ModelFiles, StoredTensor, adapter_of, inspect_folder, merge_first
from rlif.utils.paths import expanded

_LOG = logging.getLogger(__name__)

Side = Literal["base", "instruct"]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are averaged, as safetensors calls them."""

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of one number, of every type that is merged or copied."""

_FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is asked of the hub."""

_SAME_FUNCTION = {
    *("_name_or_path", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"),
    *("transformers_version", "use_cache", "max_position_embeddings", "max_window_layers", "unsloth_version"),
    *("unsloth_fixed", "rlif_tiny_version", "attention_dropout", "initializer_range", "tie_word_embeddings"),
}
"""Keys of config.json that two models of one ancestor may have of their own: weights mean the same under both."""


@dataclass(frozen=True)
class Source:
    """One of the two models: what it is called, where it lies, what its files say."""

    name: str
    folder: Path
    files: ModelFiles

    @property
    def weights(self) -> set[Path]:
        """The files that the weights lie in, wherever links to them may stand."""
        return {(self.folder / tensor.file).resolve() for tensor in self.files.tensors.values()}

    @property
    def tied(self) -> bool:
        return bool(self.files.config.get("tie_word_embeddings", True))


def read_source(name: str, role: Side) -> Source:
    """Find a model's folder and look at its files."""
    folder = model_folder(name, role)
    try:
        files = inspect_folder(folder)
    except DamagedFileError as error:
        raise RlifError(Argument(role), f": {brief(name)}: {error}") from error
    if not files.config:
        if (of := adapter_of(folder)) is not None:
            raise merge_first(name, of)
        raise RlifError(Argument(role), f": {folder} is a folder without a config.json; give a model folder")
    if not files.tensors:
        raise RlifError(Argument(role), f": {folder} holds no safetensors; save the model with transformers first")
    if files.quantised:
        raise RlifError(Argument(role), f": the weights of {brief(name)} are quantised; merge models of plain weights")
    return Source(name, folder, files)


def model_folder(name: str, role: Side) -> Path:
    source = registry.resolve(name)
    path = expanded(source)
    if path.is_dir():
        return path
    if source.endswith(".gguf") or path.exists():
        raise RlifError(Argument(role), f": {brief(name)} is a file; merge model folders, hub ids or named models")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_FETCHED)))
    except Exception as error:  # whatever the HTTP client raises, and an id that is none
        raise RlifError(
            Argument(role), f": no such folder, and the hub cannot give {brief(name)} ({brief(str(error), 200)})"
        ) from error


def common_tensors(base: Source, instruct: Source) -> dict[str, StoredTensor]:
    """The tensors of the merged model as the base stores them. Raises `RlifError` with what differs."""
    if (one := base.files.config.get("model_type")) != (other := instruct.files.config.get("model_type")):
        raise RlifError(
            f"{base.name} and {instruct.name} are of two architectures, {one} and {other}; merge one with its own"
        )
    ours, theirs = dict(base.files.tensors), dict(instruct.files.tensors)
    if base.tied and instruct.tied:  # whether the one matrix is stored under two names is a matter of who saved it
        for name in {"lm_head.weight"} & (set(ours) ^ set(theirs)):
            ours.pop(name, None)
            theirs.pop(name, None)
    wrong = [f"{name} is only in {base.name}" for name in ours if name not in theirs]
    wrong += [f"{name} is only in {instruct.name}" for name in theirs if name not in ours]
    wrong += [
        f"{name} is {_form(ours[name])} in {base.name} ({ours[name].file}) "
        f"and {_form(theirs[name])} in {instruct.name} ({theirs[name].file})"
        for name in ours
        if name in theirs and not _alike(ours[name], theirs[name])
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RlifError(f"cannot merge: {'; '.join(wrong[:5])}{more}; merge models of one architecture and vocabulary")
    if strange := [name for name, tensor in ours.items() if tensor.dtype not in ITEM_BYTES]:
        raise RlifError(
            f"cannot merge: {strange[0]} is of type {ours[strange[0]].dtype}; save the model in another type"
        )
    _tell_of_configs(base, instruct)
    return ours


def _alike(one: StoredTensor, other: StoredTensor) -> bool:
    both_float = one.dtype in DTYPES and other.dtype in DTYPES
    return one.shape == other.shape and (both_float or one.dtype == other.dtype)


def _form(tensor: StoredTensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _tell_of_configs(base: Source, instruct: Source) -> None:
    one, other = base.files.config, instruct.files.config
    keys = sorted((set(one) | set(other)) - _SAME_FUNCTION)
    if differing := [key for key in keys if one.get(key) != other.get(key)]:
        told = ", ".join(f"{key} ({one.get(key)} and {other.get(key)})" for key in differing[:5])
        _LOG.warning("config.json differs in %s: the merged weights may mean something else under it", brief(told))
