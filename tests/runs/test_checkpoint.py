"""Checkpoints: whole or absent, refused when a byte is wrong, exact when they are right."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlif.errors import RlifError
from rlif.runs import checkpoint
from rlif.runs.checkpoint import (
    checkpoint_name,
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    prune,
    remove_leftovers,
    restore_optimizer,
    save_checkpoint,
)

FILES = [
    "config.json",
    "manifest.json",
    "model.safetensors",
    "nested/tokenizer.json",
    "optimizer.safetensors",
    "state.json",
]
STATE = {"seed": 2**70, "best": {"step": 3, "value": 0.1 + 0.2}, "history": [1, None, "ä"]}


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "toy"}')
    (folder / "nested").mkdir()
    (folder / "nested" / "tokenizer.json").write_text("{}")
    save_file({"weight": torch.arange(6.0)}, folder / "model.safetensors")


def some_tensors() -> dict[str, Tensor]:
    """Shapes, types and layouts that are easy to lose: a scalar, nothing at all, a transposed view, bytes, NaN."""
    return {
        "a/step": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "half": torch.tensor([1.0, -0.0, float("nan")], dtype=torch.bfloat16),
        "random_state": torch.arange(256).to(torch.uint8),
    }


def save(root: Path, step: int, **changes: Any) -> Path:
    arguments = {"write_model": write_model, "tensors": some_tensors(), "state": STATE, **changes}
    return save_checkpoint(root, step, **arguments)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 10)
    assert path == tmp_path / "checkpoints" / "step-000010"
    assert sorted(contents(path)) == FILES
    assert hidden(path.parent) == []
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.path, loaded.state) == (10, path, STATE)
    assert loaded.tensors.keys() == some_tensors().keys()
    for name, tensor in some_tensors().items():
        assert (loaded.tensors[name].dtype, loaded.tensors[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(loaded.tensors[name]) == bits(tensor), name
    assert torch.equal(load_file(path / "model.safetensors")["weight"], torch.arange(6.0))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_refused_by_name(tmp_path: Path, name: str) -> None:
    save(tmp_path, 8)
    path = save(tmp_path, 10)
    whole = (path / name).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        (path / name).write_bytes(damaged)
        with pytest.raises(RlifError) as caught:
            load_checkpoint(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: {name} "), message
        assert message.endswith("remove this folder to resume from step-000008")
        assert "\n" not in message
    (path / name).write_bytes(whole)
    load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 10)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1])
    with pytest.raises(RlifError, match=rf"step-000010: {name} is damaged"):
        load_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(RlifError, match=rf"step-000010: {name} is missing.*start the run again"):
        load_checkpoint(path)


def test_an_added_file_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    (path / "adapter_config.json").write_text("{}")  # transformers would load an adapter on top
    with pytest.raises(RlifError, match=r"adapter_config\.json is not in the manifest"):
        load_checkpoint(path)


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", 2)
        path = save(tmp_path, 10)
        load_checkpoint(path)
    with pytest.raises(RlifError, match=r"step-000010: manifest.json has format version 2, this rlif reads 1"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 1}', '{"format": 1, "step": 1, "files": 3, "sha256": ""}', "[" * 9999]
)
def test_nonsense_in_the_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 10)
    (path / "manifest.json").write_text(text)
    with pytest.raises(RlifError, match=r"manifest\.json is damaged"):
        load_checkpoint(path)


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*arguments: object, **options: object) -> None:
    raise disk_full()


def rust_fail(*arguments: object, **options: object) -> None:
    raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")


def fail_after_half(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise disk_full()


FULL_DISKS: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]] = {
    "model": lambda patch: {"write_model": fail_after_half},
    "model, said by a Rust library": lambda patch: {"write_model": rust_fail},
    "tensors": lambda patch: patch.setattr(checkpoint, "save_file", rust_fail) or {},
    "flush": lambda patch: patch.setattr(os, "fsync", fail) or {},
    "manifest": lambda patch: patch.setattr(checkpoint, "write_whole", fail) or {},
    "modes": lambda patch: patch.setattr(checkpoint, "settle", fail) or {},
    "after the rename": lambda patch: patch.setattr(checkpoint, "flush_folder", fail) or {},
}


@pytest.mark.parametrize("where", FULL_DISKS)
def test_a_full_disk_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(tmp_path, 10)
    before = contents(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(RlifError) as caught:
        save(tmp_path, 20, **FULL_DISKS[where](patch))
    assert str(caught.value) == (
        f"{tmp_path}/step-000020: disk full, checkpoint not written; the last good checkpoint is {tmp_path}/step-000010"
    )
    assert contents(tmp_path) == before
    assert hidden(tmp_path) == []
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000010"
    load_checkpoint(tmp_path / "step-000010")
    load_checkpoint(save(tmp_path, 20))  # room again: the same call works


def test_the_first_checkpoint_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match="disk full, checkpoint not written; there is no earlier checkpoint"):
        save(tmp_path / "checkpoints", 1, write_model=fail)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_other_failures_keep_their_traceback_and_leave_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 10, write_model=interrupted)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path, 10, state={"tensor": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_that_name_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 10, state={"try": 1})
    path = save(tmp_path, 10, state={"try": 2})
    assert load_checkpoint(path).state == {"try": 2}
    assert [child.name for child in tmp_path.iterdir()] == ["step-000010"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_all_files_honour_the_umask_alike(tmp_path: Path, umask: int) -> None:
    """safetensors leaves its own readable by their owner alone: 0600 beside 0644."""

    def write_private_model(folder: Path) -> None:
        write_model(folder)
        (folder / "model.safetensors").chmod(0o600)

    before = os.umask(umask)
    try:
        path = save(tmp_path / "checkpoints", 10, write_model=write_private_model)
    finally:
        os.umask(before)
    files = {name: stat.S_IMODE((path / name).stat().st_mode) for name in FILES}
    assert files == dict.fromkeys(FILES, 0o666 & ~umask)
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path, path / "nested")} == {0o777 & ~umask}
    load_checkpoint(path)


def test_a_failed_replacement_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 10, state={"try": 1})
    rename = Path.rename

    def rename_but_not_into_place(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-"):
            raise disk_full()
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_but_not_into_place)
        with pytest.raises(RlifError, match=f"last good checkpoint is {path}"):
            save(tmp_path, 10, state={"try": 2})
    assert load_checkpoint(path).state == {"try": 1}
    assert hidden(tmp_path) == []


def test_leftovers_of_a_killed_run(tmp_path: Path) -> None:
    save(tmp_path, 10)
    shutil.copytree(tmp_path / "step-000010", tmp_path / ".tmp-step-000020-123")  # killed before the rename
    shutil.copytree(tmp_path / "step-000010", tmp_path / ".old-step-000010-123")  # killed after a replacement
    save(tmp_path, 30)
    (tmp_path / "step-000030").rename(tmp_path / ".old-step-000030-123")  # killed in the middle of one
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000010"
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000030"]
    assert load_checkpoint(latest_checkpoint(tmp_path) or tmp_path).step == 30
    remove_leftovers(tmp_path / "never")


def test_the_latest_is_the_highest_whole_one(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "never") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 10, 1_000_000, 2):
        save(tmp_path, step)
    (tmp_path / "step-2000000").mkdir()  # no manifest
    shutil.copytree(tmp_path / "step-000009", tmp_path / "step-3000000-copy")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"


def test_names() -> None:
    assert [checkpoint_name(step) for step in (0, 10, 1_234_567)] == ["step-000000", "step-000010", "step-1234567"]
    with pytest.raises(ValueError, match="negative"):
        checkpoint_name(-1)


def test_prune_keeps_the_newest_and_the_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    prune(tmp_path, 2, {20, 99})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000020", "step-000040", "step-000050"]
    prune(tmp_path, 9, set())
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError, match="keep_last"):
        prune(tmp_path, 0, set())
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000050"


def model_with_adamw(*, fused: bool) -> tuple[nn.Module, torch.optim.AdamW, list[str]]:
    """Two layers and a parameter that no loss reaches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model.register_parameter("unused", nn.Parameter(torch.ones(4)))
    names = [name for name, _ in model.named_parameters()]
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), fused=fused), names


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        data = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        model(data).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, fused: bool) -> None:
    model, optimizer, names = model_with_adamw(fused=fused)
    train(model, optimizer, range(5))
    path = save_checkpoint(
        tmp_path,
        5,
        write_model=lambda folder: save_file(model.state_dict(), folder / "model.safetensors"),
        tensors=flatten_optimizer(optimizer, names),
        state={},
    )
    train(model, optimizer, range(5, 12))

    resumed, resumed_optimizer, _ = model_with_adamw(fused=fused)
    loaded = load_checkpoint(path)
    resumed.load_state_dict(load_file(path / "model.safetensors"))
    restore_optimizer(resumed_optimizer, names, loaded.tensors)
    kept = {name: tensor.clone() for name, tensor in loaded.tensors.items()}
    train(resumed, resumed_optimizer, range(5, 12))

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    ours, theirs = flatten_optimizer(optimizer, names), flatten_optimizer(resumed_optimizer, names)
    assert ours.keys() == theirs.keys()
    assert {key for key in ours if key.startswith("unused")} == {"unused/step"}
    assert ours["0.weight/step"] == 12
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key
    assert all(torch.equal(kept[key], loaded.tensors[key]) for key in kept), "the checkpoint's tensors were written to"


def test_restoring_replaces_what_the_optimizer_held() -> None:
    model, optimizer, names = model_with_adamw(fused=False)
    fresh = {key: tensor.clone() for key, tensor in flatten_optimizer(optimizer, names).items()}
    assert set(fresh) == {f"{name}/step" for name in names}
    train(model, optimizer, range(3))
    restore_optimizer(optimizer, names, fresh)
    assert flatten_optimizer(optimizer, names).keys() == fresh.keys()


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.rpartition("/")[0] != name}


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "a parameter is missing": (lambda t: without(t, "2.bias"), "only the model has '2.bias'"),
    "a parameter too many": (lambda t: {**t, "3.bias/step": torch.zeros(())}, "only the checkpoint has '3.bias'"),
    "another shape": (
        lambda t: {**t, "0.weight/exp_avg": torch.zeros(5, 7)},
        r"shape \(5, 7\), the model wants \(7, 5\)",
    ),
    "a step per element": (lambda t: {**t, "0.bias/step": torch.zeros(7)}, r"0.bias/step has shape \(7,\)"),
    "a moment is missing": (lambda t: {k: v for k, v in t.items() if k != "0.bias/exp_avg_sq"}, "0.bias lacks"),
    "no step": (lambda t: {k: v for k, v in t.items() if k != "0.bias/step"}, "0.bias lacks"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_an_optimizer_state_that_does_not_fit_is_refused(what: str) -> None:
    change, message = MISFITS[what]
    model, optimizer, names = model_with_adamw(fused=False)
    train(model, optimizer, range(2))
    before = {key: tensor.clone() for key, tensor in flatten_optimizer(optimizer, names).items()}
    with pytest.raises(RlifError, match=message):
        restore_optimizer(optimizer, names, change(before))
    assert all(torch.equal(tensor, before[key]) for key, tensor in flatten_optimizer(optimizer, names).items())


def test_names_have_to_be_those_of_the_parameters() -> None:
    _, optimizer, names = model_with_adamw(fused=False)
    for wrong in (names[:-1], [*names[:-1], names[0]]):
        with pytest.raises(ValueError, match="names"):
            flatten_optimizer(optimizer, wrong)


def test_the_manifest_says_what_it_says(tmp_path: Path) -> None:
    """Size and sha256 as sha256sum prints them: others may check a checkpoint too."""
    path = save(tmp_path, 10)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["step"] == 10
    assert manifest["files"]["nested/tokenizer.json"] == {
        "size": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",  # of "{}"
    }
