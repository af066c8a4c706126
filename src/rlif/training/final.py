"""The weights that a run writes: into its checkpoints, and at its end a folder that plain transformers loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rlif.errors import RlifError
from rlif.model.adapter_files import WEIGHTS, write_adapter
from rlif.model.files import ADAPTER_CONFIG
from rlif.model.policy import Policy
from rlif.runs.layout import ADAPTER, resume_with
from rlif.training.optim import MasterOptimizer
from rlif.utils.atomic_io import disk_reason, flush_folder, settle, system_error


def trained_weights(policy: Policy, optimizer: MasterOptimizer) -> dict[str, Tensor]:
    """What is trained, in fp32 and whole: a model's state dict, or the factors of an adapter. All ranks call it."""
    return optimizer.master_state_dict() if policy.adapter is None else optimizer.named_masters()


def write_masters(folder: Path, policy: Policy, weights: Mapping[str, Tensor]) -> None:
    """Write `trained_weights` into a checkpoint that is being made: a model, or only an adapter of one."""
    if policy.adapter is None:
        policy.save(folder, state_dict=dict(weights))
        return
    write_adapter(folder, policy, weights)
    policy.tokenizer.save_pretrained(folder)  # whoever reads answers cuts them into tokens by it


def write_model(out: Path, name: str, policy: Policy, checkpoint: Path | None) -> Path:
    """Write the policy into ``out/name``, in the type it computes in; one that is there is replaced, or stays whole.

    An adapter is merged, and lies beside the whole model in fp32, as ``checkpoint`` of the same step has it; without
    one it is written as the policy has it. Raises `RlifError` if the disk is full or cannot be written.
    """
    final, unfinished, replaced = (out / folder for folder in (name, f".tmp-{name}", f".old-{name}"))
    for leftover in (unfinished, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        policy.save(unfinished)
        if policy.adapter is not None:
            _write_adapter(unfinished / ADAPTER, policy, checkpoint)
        if final.exists():
            final.rename(replaced)
        unfinished.rename(final)
        flush_folder(out)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = system_error(error)  # safetensors raises a full disk as its own exception
        if reason is None:
            raise
        raise RlifError(
            f"{final}: {disk_reason(reason)}; the last checkpoint is whole: free some space, then ", resume_with(out)
        ) from error
    return final


def _write_adapter(folder: Path, policy: Policy, checkpoint: Path | None) -> None:
    folder.mkdir()
    if checkpoint is None:
        write_adapter(folder, policy, {n: p for n, p in policy.model.named_parameters() if p.requires_grad})
    else:
        for name in (ADAPTER_CONFIG, WEIGHTS):
            shutil.copyfile(checkpoint / name, folder / name)
    settle(folder)
