"""Checkpoints: whole or absent, checksummed, exact.

A checkpoint is a model folder that transformers loads, or that of an adapter (policy.lora), and beside the model:

    optimizer.safetensors     tensors by flat name
    state.json                everything else a run needs to go on
    manifest.json             step, format version, size and sha256 of every file, and its own checksum

It is written into a hidden folder, flushed to the disk and renamed, so a kill at any moment leaves the old ones and no
half of a new one. Nothing here is a pickle. One run writes a folder of checkpoints, not two.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlif.errors import RlifError
from rlif.runs.layout import step_name, step_of
from rlif.utils.atomic_io import (
    disk_reason,
    flush_folder,
    make_folder,
    one_line,
    settle,
    system_error,
    write_whole,
)

FORMAT = 1
TENSORS = "optimizer.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. ``path`` is also a model folder; ``tensors`` lie on the CPU."""

    step: int
    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class FileSum(BaseModel):
    """Size in bytes and sha256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What a checkpoint consists of: files by their path inside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    step: int
    files: dict[str, FileSum]

    def to_bytes(self) -> bytes:
        """The one way to write it down; ends with a checksum of itself, so any other byte shows."""
        body = {"format": FORMAT, **self.model_dump()}
        checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return json.dumps({**body, "sha256": checksum}, indent=2).encode() + b"\n"


def save_checkpoint(
    root: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write ``root/step-NNNNNN``, replacing one of that name, and return its path.

    Args:
        write_model: writes config, tokenizer and weights into the folder it is given.
        tensors: optimizer and random-number state by flat name.
        state: plain JSON: string keys, and lists, for tuples come back as lists.

    Raises `RlifError` if the disk is full or cannot be written; earlier checkpoints stay as they were.
    """
    final = root / checkpoint_name(step)
    temp = root / f".tmp-{final.name}-{os.getpid()}"
    try:
        make_folder(root)
        if temp.exists():
            shutil.rmtree(temp)
        temp.mkdir()
        write_model(temp)
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temp / TENSORS)
        (temp / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        settle(temp)
        manifest = Manifest(step=step, files={name: _sum(temp / name) for name in _files_in(temp)})
        write_whole(temp / MANIFEST, manifest.to_bytes())
        _publish(temp, final)
    except BaseException as error:
        if root.is_dir():
            remove_leftovers(root)
        failure = system_error(error)
        if failure is None:
            raise
        last = latest_checkpoint(root)
        kept = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise RlifError(f"{final}: {disk_reason(failure)}, checkpoint not written; {kept}") from error
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Check every file against the manifest, then read tensors and state (the model is left to transformers).

    Raises `RlifError` naming the folder and the file if a byte was changed, a file is missing or was added, or the
    format version is another one.
    """
    try:
        manifest = _read_manifest(path)
        present = set(_files_in(path)) - {MANIFEST}
        for name in sorted(present | set(manifest.files)):
            if name not in manifest.files:
                raise _refusal(path, name, "is not in the manifest")
            if name not in present:
                raise _refusal(path, name, "is missing")
            if _sum(path / name) != manifest.files[name]:
                raise _refusal(path, name, "is damaged (size or sha256 differs from the manifest)")
        tensors = load_file(path / TENSORS)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RlifError(f"{path}: cannot read the checkpoint ({one_line(error)}); {_alternatives(path)}") from error
    return Checkpoint(step=manifest.step, path=path, tensors=tensors, state=state)


def checkpoint_name(step: int) -> str:
    """The folder's name: ``step-000010``."""
    return step_name(step)


def latest_checkpoint(root: Path) -> Path | None:
    """The whole checkpoint of the highest step (not verified: `load_checkpoint` does that); None without one."""
    return max(_complete(root).items(), default=(0, None))[1]


def prune(root: Path, keep_last: int, keep: set[int]) -> None:
    """Remove checkpoints but the ``keep_last`` newest and those of the steps in ``keep``."""
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; the newest checkpoint is never removed")
    steps = _complete(root)
    removed = [steps[step] for step in sorted(steps)[:-keep_last] if step not in keep]
    # Out of sight first: a kill while deleting leaves a leftover, never half a checkpoint.
    hidden = [path.rename(root / f".tmp-{path.name}-{os.getpid()}") for path in removed]
    if hidden:
        flush_folder(root)  # nor does a power cut
    for path in hidden:
        shutil.rmtree(path)


def remove_leftovers(root: Path) -> None:
    """Clear away what a killed run left: half-written folders go, a checkpoint caught in replacement comes back.

    To be called before `latest_checkpoint` when a run is resumed.
    """
    for path in sorted(root.glob(".old-step-*")):
        name = path.name.removeprefix(".old-").rpartition("-")[0]
        if not (root / name).exists():
            path.rename(root / name)
    for path in [*root.glob(".tmp-step-*"), *root.glob(".old-step-*")]:
        shutil.rmtree(path)


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The state of AdamW or one of its kin as tensors named ``<parameter>/<field>``: step, exp_avg, exp_avg_sq.

    ``names`` are the parameters' names in the optimizer's order. A parameter that never had a gradient has step 0 and
    nothing else. The tensors are the optimizer's own, not copies. Raises ValueError unless each parameter has one name.
    """
    flat: dict[str, Tensor] = {}
    for name, parameter in _named_parameters(optimizer, names).items():
        fields = optimizer.state.get(parameter) or {"step": torch.zeros(())}
        flat |= {f"{name}/{field}": value for field, value in fields.items()}
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `flatten_optimizer` took, bit for bit; ``tensors`` are copied. Learning rates stay as they are.

    Raises `RlifError` if names or shapes are not those of this optimizer's parameters.
    """
    fields: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("/")
        fields.setdefault(name, {})[field] = tensor
    parameters = _named_parameters(optimizer, names)
    if strays := sorted(parameters.keys() ^ fields.keys()):
        owner = "the model" if strays[0] in parameters else "the checkpoint"
        raise RlifError(f"optimizer state: only {owner} has {strays[0]!r}; resume with the recipe that wrote it")
    for name, parameter in parameters.items():
        _check_fields(name, parameter, fields[name])
    entries = {
        index: {field: tensor.clone() for field, tensor in fields[name].items()}
        for index, name in enumerate(parameters)
        if fields[name]["step"] > 0
    }
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _publish(temp: Path, final: Path) -> None:
    """Give a finished folder its name."""
    replaced = final.with_name(f".old-{final.name}-{os.getpid()}")
    if final.exists():
        final.rename(replaced)  # a kill before the next rename: remove_leftovers brings it back
    temp.rename(final)
    try:
        flush_folder(final.parent)
    except OSError:  # whether its name is on the disk is not known: it has none, then
        final.rename(temp)
        raise
    if replaced.exists():
        shutil.rmtree(replaced.rename(temp))  # out of sight first, as in prune


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _sum(path: Path) -> FileSum:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileSum(size=size, sha256=digest.hexdigest())


def _read_manifest(path: Path) -> Manifest:
    if not (path / MANIFEST).is_file():
        raise _refusal(path, MANIFEST, "is missing: this is no checkpoint, or not a whole one")
    raw = (path / MANIFEST).read_bytes()
    try:
        body = json.loads(raw)
        version = body.pop("format")
        if version != FORMAT:
            raise _refusal(path, MANIFEST, f"has format version {version!r}, this rlif reads {FORMAT}")
        body.pop("sha256")
        manifest = Manifest.model_validate(body)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _refusal(path, MANIFEST, "is damaged") from error
    if manifest.to_bytes() != raw:
        raise _refusal(path, MANIFEST, "is damaged (its checksum differs)")
    return manifest


def _refusal(path: Path, name: str, fault: str) -> RlifError:
    return RlifError(f"{path}: {name} {fault}; {_alternatives(path)}")


def _alternatives(path: Path) -> str:
    others = {step: other for step, other in _complete(path.parent).items() if other.name != path.name}
    if not others:
        return "no other checkpoint lies beside it: start the run again"
    return f"remove this folder to resume from {others[max(others)].name}"


def _complete(root: Path) -> dict[int, Path]:
    """Checkpoints by step. A folder without a manifest is none."""
    found = ((step_of(path.parent.name), path.parent) for path in root.glob(f"*/{MANIFEST}"))
    return {step: path for step, path in found if step is not None}


def _named_parameters(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(set(names)) != len(parameters) or len(names) != len(parameters):
        raise ValueError(f"{len(names)} names ({len(set(names))} distinct) for {len(parameters)} parameters")
    return dict(zip(names, parameters, strict=True))


def _check_fields(name: str, parameter: Tensor, fields: Mapping[str, Tensor]) -> None:
    for field, tensor in fields.items():
        shape = torch.Size() if field == "step" else parameter.shape
        if tensor.shape != shape:
            raise RlifError(
                f"optimizer state: {name}/{field} has shape {tuple(tensor.shape)}, the model wants {tuple(shape)};"
                " resume with the recipe that wrote it"
            )
    if "step" not in fields or not ({"exp_avg", "exp_avg_sq"} <= fields.keys() or fields["step"] == 0):
        raise RlifError(f"optimizer state: {name} lacks step, exp_avg or exp_avg_sq; resume from another checkpoint")


def resumes_at(out: Path) -> int:
    """The step a run would resume from."""
    last = latest_checkpoint(out / "checkpoints")
    return int(last.name.removeprefix("step-")) if last else 0
