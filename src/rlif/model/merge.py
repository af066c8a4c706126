"""Merged models: (1 − r) · base + r · instruct, between a base model and what was tuned from it.

Weights are read from the safetensors files and written to new ones slice by slice, for several ratios in one pass, so
that memory does not grow with the models. Source of the ratio and its use: arXiv 2506.17219, section 5; averaging
weights of one ancestor: arXiv 2203.05482.

Differences from mergekit's linear merge, whose values these are to a rounding:

1. a ratio of 0 or 1 copies the bits, where types are equal;
2. configs that describe another function of the same weights (rope, norms, activation) are told of;
3. tensors of one name and different shapes are refused, never cut.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock
from torch import Tensor

from rlif.config import MergedModel
from rlif.errors import Argument, RlifError
from rlif.model.files import StoredTensor
from rlif.model.merge_sources import DTYPES, ITEM_BYTES, Side, Source, common_tensors, model_folder, read_source
from rlif.utils.atomic_io import disk_reason, make_folder, settle, system_error, unfinished, writing
from rlif.utils.paths import cache_dir

_LOG = logging.getLogger(__name__)

SLICE_BYTES = 1 << 26
"""Most bytes of a tensor that are held at once."""

SHARD_BYTES = 5 * 10**9
"""Most bytes of weights in one output file, if it holds more than one tensor."""

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

_TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
)
_TOKENIZER_FILES += ("*.jinja", "*.model")


def merge(
    base: str,
    instruct: str,
    ratios: Sequence[float],
    out: Path,
    *,
    tokenizer_from: Side = "base",
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write (1 − r) · base + r · instruct for each ratio r; returns the folders, in the order of ``ratios``.

    One ratio goes into ``out``, several into ``out/r0.1`` and so on. Each is a folder that transformers loads;
    nothing is left behind if it cannot be finished, and what a killed merge left goes at the next one into ``out``.
    At most `SLICE_BYTES` of each model are in memory at a time.

    Args:
        base, instruct: named models, hub ids or folders, of one architecture.
        ratios: each in [0, 1]; 0 copies the base's weights and 1 the instruct model's, bit for bit where the types
            are equal (a tensor is stored in the base's type, or ``dtype``).
        out: a new or empty folder.
        tokenizer_from: whose tokenizer, chat template, generation config and special tokens the merged model takes.
        dtype: float32, float16 or bfloat16; None: each tensor's type in ``base``.
        shard_bytes: most bytes of one output file.

    Warns where both are the same weights. Raises `RlifError` if a model is missing, damaged or quantised, if the two
    differ in architecture, names or shapes, or if the disk is full.
    """
    _check_arguments(ratios, out, dtype)
    pair = read_source(base, "base"), read_source(instruct, "instruct")
    tensors = common_tensors(*pair)
    if pair[0].weights == pair[1].weights:
        _LOG.warning("base and instruct are the same weights (%s): so is what lies between them", pair[0].folder)
    side = pair[0] if tokenizer_from == "base" else pair[1]
    if not any(
        path.name.startswith(("tokenizer", "vocab")) or path.suffix == ".model" for path in _tokenizer_files(side)
    ):
        _LOG.warning("%s has no tokenizer: the merged folder has none either", side.folder)
    try:
        with unfinished(out, "merging") as temporary:
            folders = [temporary] if len(ratios) == 1 else [temporary / f"r{ratio:g}" for ratio in ratios]
            for folder in folders:
                make_folder(folder)
            _write_weights(pair, tensors, dict(zip(folders, ratios, strict=True)), dtype, shard_bytes)
            for folder in folders:
                _write_rest(folder, pair, side, dtype)
                settle(folder)
            if out.exists():
                out.rmdir()
            temporary.rename(out)
    except Exception as error:
        reason = system_error(error)
        if reason is None or isinstance(error, RlifError):
            raise
        raise RlifError(f"{out}: {disk_reason(reason)}; nothing was kept, free some space and merge again") from error
    return [out / folder.relative_to(temporary) for folder in folders]


def model_source(model: str | MergedModel) -> str:
    """The name of a model as it is; of one between two others the folder, made in the cache the first time.

    It is made anew when a file of the two changes. Raises `RlifError` as `merge` does.
    """
    if isinstance(model, str):
        return model
    wanted = model.merge
    sides = [model_folder(wanted.base, "base"), model_folder(wanted.instruct, "instruct")]
    files = sorted(path for folder in sides for path in folder.iterdir() if path.is_file())
    stamps = [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in files]
    mark = hashlib.sha256(json.dumps([stamps, wanted.ratio, wanted.tokenizer_from]).encode()).hexdigest()[:12]
    out = cache_dir() / "merged" / f"{sides[0].name}-{sides[1].name}-r{wanted.ratio:g}-{mark}"
    if not out.is_dir():
        with writing(out, "free some space, or set RLIF_CACHE"):
            make_folder(out.parent)
            with FileLock(out.with_name(f".{out.name}.lock")):  # runs that begin together: one makes it for all
                if not out.is_dir():
                    merge(wanted.base, wanted.instruct, [wanted.ratio], out, tokenizer_from=wanted.tokenizer_from)
    return str(out)


def _check_arguments(ratios: Sequence[float], out: Path, dtype: str | None) -> None:
    if wrong := [ratio for ratio in ratios if not 0.0 <= ratio <= 1.0]:
        raise RlifError(
            Argument("ratios"), f": {wrong[0]} is not between 0 (the base model) and 1 (the instruct model)"
        )
    if not ratios or len({f"{ratio:g}" for ratio in ratios}) < len(ratios):
        raise RlifError(Argument("ratios"), ": give one at least, and none twice")
    if dtype is not None and dtype not in _NAMES:
        raise RlifError(Argument("dtype"), f": {dtype!r}; choose {', '.join(_NAMES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RlifError(f"{out}: there is something already; choose a new folder")


def _write_weights(
    pair: tuple[Source, Source],
    tensors: Mapping[str, StoredTensor],
    ratios: Mapping[Path, float],
    dtype: str | None,
    shard_bytes: int,
) -> None:
    """All output files, one shard after another, the same shard of every ratio at once."""
    stored = {name: _merged_type(tensor, dtype) for name, tensor in tensors.items()}
    shards = _shards(tensors, stored, shard_bytes)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        index |= dict.fromkeys(names, file)
        with ExitStack() as stack:
            outputs = {ratio: stack.enter_context((folder / file).open("wb")) for folder, ratio in ratios.items()}
            for output in outputs.values():
                _write_header(output, {name: (stored[name], tensors[name].shape) for name in names})
            for name in names:
                for slices in _slices(pair, name):
                    for ratio, output in outputs.items():
                        _write(output, merged(*slices, ratio), stored[name])
    if len(shards) > 1:
        total = sum(_size(tensors[name], stored[name]) for name in tensors)
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
        for folder in ratios:
            (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def merged(base: Tensor, instruct: Tensor, ratio: float) -> Tensor:
    """(1 − r) · base + r · instruct in fp32, or fp64 if stored so; one of the two itself at 0 and 1. Any shape.

    Raises `RlifError` for whole numbers that differ: between them there is nothing.
    """
    if ratio in (0.0, 1.0):
        return base if ratio == 0.0 else instruct
    if not base.is_floating_point():
        if not torch.equal(base, instruct):
            raise RlifError("cannot merge: a tensor of whole numbers differs; merge models of one architecture")
        return base
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    return torch.add(base.to(wide) * (1.0 - ratio), instruct.to(wide), alpha=ratio)


def _slices(pair: tuple[Source, Source], name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of a tensor in both models, at most `SLICE_BYTES` of each at a time."""
    from safetensors import safe_open

    with ExitStack() as stack:
        parts = []
        for source in pair:
            path = source.folder / source.files.tensors[name].file
            parts.append(stack.enter_context(safe_open(path, framework="pt")).get_slice(name))
        shape = parts[0].get_shape()
        if not shape or not all(shape):
            yield parts[0][...], parts[1][...]
            return
        row = max(ITEM_BYTES[part.get_dtype()] for part in parts) * torch.Size(shape[1:]).numel()
        rows = max(1, SLICE_BYTES // row)
        for first in range(0, shape[0], rows):
            yield parts[0][first : first + rows], parts[1][first : first + rows]


def _merged_type(tensor: StoredTensor, dtype: str | None) -> str:
    return _NAMES[dtype] if dtype is not None and tensor.dtype in DTYPES else tensor.dtype


def _size(tensor: StoredTensor, stored: str) -> int:
    return int(torch.Size(tensor.shape).numel()) * ITEM_BYTES[stored]


def _shards(tensors: Mapping[str, StoredTensor], stored: Mapping[str, str], most: int) -> list[list[str]]:
    """Names in their order, split where a file would hold more than ``most`` bytes."""
    shards: list[list[str]] = []
    held = 0
    for name, tensor in tensors.items():
        size = _size(tensor, stored[name])
        if not shards or held + size > most:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _write_header(output: IO[bytes], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """The head of a safetensors file: its length in 8 bytes, then JSON with each tensor's type, shape and place.

    The library writes whole tensors from memory; only this much of the format is needed to write slices.
    """
    at, entries = 0, dict[str, Any]({"__metadata__": {"format": "pt"}})
    for name, (dtype, shape) in tensors.items():
        end = at + int(torch.Size(shape).numel()) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    output.write(len(text).to_bytes(8, "little") + text)


def _write(output: IO[bytes], values: Tensor, stored: str) -> None:
    plain = (values.to(DTYPES[stored]) if stored in DTYPES else values).contiguous().flatten()
    output.write(plain.view(torch.uint8).numpy().tobytes())


def _write_rest(folder: Path, pair: tuple[Source, Source], side: Source, dtype: str | None) -> None:
    """config.json, generation config and tokenizer, from the side that was named."""
    config = dict(side.files.config)
    other = pair[0] if side is pair[1] else pair[1]
    if not other.tied:  # one of them keeps two matrices, and so does what lies between
        config["tie_word_embeddings"] = False
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (path := side.folder / "generation_config.json").is_file():
        shutil.copyfile(path, folder / path.name)
    for path in _tokenizer_files(side):
        shutil.copyfile(path, folder / path.name)


def _tokenizer_files(side: Source) -> set[Path]:
    return {path for pattern in _TOKENIZER_FILES for path in side.folder.glob(pattern) if path.is_file()}
