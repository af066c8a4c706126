"""What lies in a model folder, or in a .gguf file, looked at before anything is built from it.

Model files come from anywhere. A library that builds what they describe can hang, fill the memory, or leave weights out
without a word; so their headers and sizes are checked first, file by file, and the first thing that is wrong is named.
Nothing here needs torch, and no weights are read.
"""

import json
import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlif.errors import Argument, RlifError, brief

ADAPTER_CONFIG = "adapter_config.json"

_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "model.safetensors.index.json",
    ADAPTER_CONFIG,
)
"""Files that hold a JSON object, each optional here."""

_KINDS = {".json", ".safetensors", ".jinja", ".model", ".txt", ".bin"}
"""What the files of a model end in: they must be files, and no pipe that would be waited on for ever."""

_MOST_JSON = 1 << 28
"""Bytes; the largest tokenizers in use have 40 million."""

_FLOATS = {"F64", "F32", "F16", "BF16"}

_COUNT = re.compile(r"(^|_)(n_)?(layers?|depths?|blocks?|stages|experts|codebooks)$|^num_.*_(layers|experts|blocks)$")
"""Keys of a config that say how many modules are built, one after another in Python."""

_ALWAYS_PLAUSIBLE = 1000
"""So many modules of a kind are built in seconds, whether or not there are weights for them."""


class DamagedFileError(ValueError):
    """A file that is not what its name says: the message is the file's name and what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {reason}")


class StoredTensor(NamedTuple):
    """A tensor as its file's header describes it."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFiles:
    """What the files of a model say of themselves.

    Attributes:
        folder: where they lie; None for a .gguf file, and for a model that is still on the hub.
        config: config.json; empty for a .gguf file.
        tensors: every stored tensor by its name; empty where the weights are no safetensors.
    """

    folder: Path | None
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def quantised(self) -> bool:
        """Whether the weights are packed: their shapes and types are then not those of the model."""
        return bool(self.config.get("quantization_config"))


def inspect_folder(folder: Path) -> ModelFiles:
    """Read the headers of a model folder.

    Raises `DamagedFileError`, and `RlifError` for an adapter beside the weights. A tokenizer.json is not read: the
    largest take seconds. `check_tokenizer_files` says what is wrong with it once it is known that something is.
    """
    try:
        _check_kinds(folder)
        objects = {name: read_object(folder / name) for name in _OBJECTS if (folder / name).exists()}
    except OSError as error:
        raise DamagedFileError(folder, error.strerror or str(error)) from error
    _check_adapter(folder, objects)
    config = objects.get("config.json", {})
    tensors = _stored(folder, objects.get("model.safetensors.index.json"))
    found = ModelFiles(folder, config, tensors)
    if tensors:
        _check_counts(folder / "config.json", config, len(tensors))
        _check_types(folder, found)
    return found


def check_tokenizer_files(folder: Path) -> None:
    """Raise `DamagedFileError` for a tokenizer.json that holds no JSON object, or a chat template that is no text."""
    if (folder / "tokenizer.json").exists():
        read_object(folder / "tokenizer.json")
    for path in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DamagedFileError(path, f"no UTF-8 ({error}); fetch the model again") from error


def inspect_gguf(path: Path) -> None:
    """Read the header of a .gguf file. Raises `DamagedFileError` if it is cut short or describes what it lacks."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Gguf(data)
    except (OSError, ValueError, struct.error, IndexError, OverflowError) as error:
        raise DamagedFileError(path, f"no GGUF file, or a damaged one ({error}); fetch it again") from error
    widest = max((size for shape in header.shapes for size in shape), default=0)
    for key, value in header.numbers.items():
        leaf = key.rpartition(".")[2]
        most = len(header.shapes) if leaf == "block_count" else widest
        if leaf in _GGUF_SIZES and value > most:
            raise DamagedFileError(
                path, f"{key} is {value}, which its {len(header.shapes)} tensors do not have; fetch it again"
            )


def adapter_of(folder: Path) -> str | None:
    """The model that the adapter in a folder belongs to, in words; None if there is no adapter. Raises `RlifError`."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        base = read_object(path).get("base_model_name_or_path")
    except DamagedFileError as error:
        raise RlifError(Argument("model"), f": {brief(str(folder))}: {brief(str(error))}") from error
    return base if isinstance(base, str) and base else "a base model that it does not name"


def merge_first(source: object, base: str) -> RlifError:
    """The complaint about a model that is only an adapter."""
    return RlifError(
        Argument("model"),
        f": {brief(str(source))} is a LoRA adapter of {brief(base)}, not a whole model; merge it "
        "first (peft: merge_and_unload, then save_pretrained) and give the merged folder",
    )


def _check_kinds(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix in _KINDS and not path.is_file():
            what = "a link to nothing" if path.is_symlink() and not path.exists() else "no file"
            raise DamagedFileError(path, f"{what}; a model folder holds plain files under such names")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `DamagedFileError`."""
    if path.stat().st_size > _MOST_JSON:
        raise DamagedFileError(
            path, f"{path.stat().st_size:,} bytes are too many for such a file; fetch the model again"
        )
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))  # json would guess other encodings
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DamagedFileError(path, f"no JSON ({reason}); fetch the model again") from error
    if not isinstance(found, dict):
        raise DamagedFileError(
            path, f"holds a JSON {_TYPES.get(type(found), 'value')}, expected an object of keys and values"
        )
    return found


_TYPES: Mapping[type, str] = {list: "list", str: "string", int: "number", float: "number", bool: "boolean"}


def _check_adapter(folder: Path, objects: Mapping[str, Any]) -> None:
    """An adapter beside whole weights: some libraries would put it on, others pass it over."""
    if ADAPTER_CONFIG in objects and "config.json" in objects:
        raise RlifError(
            Argument("model"),
            f": {brief(str(folder))} holds an adapter (adapter_config.json) beside whole weights; "
            "merge it (peft: merge_and_unload), or take it out of the folder",
        )


def _stored(folder: Path, index: Mapping[str, Any] | None) -> dict[str, StoredTensor]:
    """Every tensor in the safetensors files, which are the same that transformers chooses."""
    if (folder / "model.safetensors").is_file():
        return _header(folder / "model.safetensors")
    if index is None:
        return {}
    path = folder / "model.safetensors.index.json"
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DamagedFileError(path, "names no weights: weight_map is missing or empty; fetch it again")
    found: dict[str, StoredTensor] = {}
    for shard in dict.fromkeys(shards.values()):
        if not isinstance(shard, str) or not shard or Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise DamagedFileError(path, f"{shard!r} is no name of a file in this folder")
        if not (folder / shard).is_file():
            raise DamagedFileError(path, f"names {shard}, which is not in the folder; fetch it")
        found |= _header(folder / shard)
    for name, shard in shards.items():
        if name not in found or found[name].file != shard:
            raise DamagedFileError(path, f"{name} should be in {shard}, and is not; fetch both again")
    return found


def _header(path: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                part = file.get_slice(name)
                found[name] = StoredTensor(path.name, part.get_dtype(), tuple(part.get_shape()))
    except Exception as error:  # of many types, all of them the library's verdict on the file
        raise DamagedFileError(path, f"no safetensors file, or a damaged one ({error}); fetch it again") from error
    return found


def _check_types(folder: Path, files: ModelFiles) -> None:
    """Whole numbers in the place of weights would be taken for values."""
    if files.quantised:
        return
    for name, tensor in files.tensors.items():
        if name.endswith(".weight") and tensor.dtype not in _FLOATS:
            path = folder / tensor.file
            raise DamagedFileError(
                path, f"{name} is of type {tensor.dtype}, and config.json has no quantization_config"
            )


def _check_counts(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """No config asks for more modules than its files have tensors: to build a million of them would take hours."""
    for key, value in _numbers("", config, 0):
        if isinstance(value, float) and math.isnan(value):
            raise DamagedFileError(path, f"{key} is not a number (NaN)")
        if _COUNT.search(key.rpartition(".")[2]) and value > max(_ALWAYS_PLAUSIBLE, tensors):
            raise DamagedFileError(path, f"{key} is {value}, but there are {tensors} tensors in the weights; fix it")


def _numbers(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, float]]:
    """Every number below ``value`` with its dotted key; those in a list carry the list's key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{prefix}.{key}" if prefix else str(key), inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(prefix, inner, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


_GGUF_SIZES = {"block_count", "embedding_length", "feed_forward_length", "expert_count"}
_GGUF_WIDTHS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


class _Gguf:
    """The header of a GGUF file (versions 2 and 3, little-endian). Source: the GGUF specification in ggml's docs."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0
        if bytes(data[:4]) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, entries = self._take("I"), self._take("Q"), self._take("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        self.numbers: dict[str, int] = {}
        for _ in range(entries):
            key = self._string()
            value = self._value(self._take("I"))
            if isinstance(value, int):
                self.numbers[key] = value
        self.shapes: list[tuple[int, ...]] = []
        furthest = 0
        for _ in range(tensors):
            self._string()
            rank = self._take("I")
            if rank > 8:
                raise ValueError(f"a tensor of {rank} dimensions")
            self.shapes.append(tuple(self._take("Q") for _ in range(rank)))
            self._take("I")
            furthest = max(furthest, self._take("Q"))
        if self._at + furthest >= len(data) and tensors:
            raise ValueError("it ends before its last tensor")

    def _take(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += size
        return value

    def _skip(self, size: int) -> None:
        if size < 0 or self._at + size > len(self._data):
            raise ValueError("it ends within its header")
        self._at += size

    def _string(self) -> str:
        length = self._take("Q")
        start = self._at
        self._skip(length)
        return bytes(self._data[start : start + min(length, 256)]).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _GGUF_STRING:
            return self._string()
        if kind != _GGUF_ARRAY:
            if kind not in _GGUF_WIDTHS:
                raise ValueError(f"a value of the unknown type {kind}")
            return self._take(_GGUF_WIDTHS[kind])
        inner, count = self._take("I"), self._take("Q")
        if inner in _GGUF_WIDTHS:
            self._skip(count * struct.calcsize(f"<{_GGUF_WIDTHS[inner]}"))
            return None
        if inner != _GGUF_STRING:
            raise ValueError(f"an array of the unknown type {inner}")
        for _ in range(count):
            self._skip(self._take("Q"))
        return None
