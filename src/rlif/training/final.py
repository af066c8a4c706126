"""What a run leaves behind when it has ended: a folder of the model that plain transformers loads."""

import shutil
from pathlib import Path

from rlif.errors import RlifError
from rlif.model.policy import Policy
from rlif.runs.layout import resume_with
from rlif.utils.atomic_io import disk_reason, flush_folder, system_error


def write_model(out: Path, name: str, policy: Policy) -> Path:
    """Write the policy into ``out/name``, in the type it computes in; one that is there is replaced, or stays whole.

    Raises `RlifError` if the disk is full or cannot be written.
    """
    final, unfinished, replaced = (out / folder for folder in (name, f".tmp-{name}", f".old-{name}"))
    for leftover in (unfinished, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        policy.save(unfinished)
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
