"""Where a run resumes: the checkpoint, and whether that is the newest one the run has written."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif.errors import Advice, RlifError
from rlif.runs.checkpoint import Checkpoint, load_checkpoint, remove_leftovers
from rlif.runs.history import last_step, lines_up_to, set_aside
from rlif.runs.layout import INFO, METRICS_FILE, RECIPE, step_name, step_of
from rlif.runs.run_log import check_resumable, read_info
from rlif.utils.atomic_io import writing


@dataclass(frozen=True)
class Start:
    """A checkpoint to resume from, None: the beginning. ``info`` is what run.json holds, ``last`` the last step logged.

    ``step`` is the checkpoint's, -1 without one: not even the evaluation of step 0 is kept then. ``lost`` is the step
    of a newer checkpoint that the run has written and that is gone, None if there is none.
    """

    checkpoint: Checkpoint | None
    info: Mapping[str, Any]
    last: int
    lost: int | None

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint else -1

    def release(self) -> None:
        """Let go of the checkpoint's tensors once they are restored: they are mapped from a file, which takes memory,
        and the disk's space even when the checkpoint has been pruned."""
        if self.checkpoint is not None:
            self.checkpoint.tensors.clear()


def find_start(out: Path) -> Start:
    """The newest checkpoint of a run, verified; a run killed before its first one begins again.

    Raises `RlifError` if the folder holds no run, if its newest checkpoint is damaged, if its checkpoints are gone, or
    if metrics.jsonl has a hole up to the checkpoint or ends before it.
    """
    check_resumable(out)
    root = out / "checkpoints"
    remove_leftovers(root)
    info, last = read_info(out / INFO), last_step(out / METRICS_FILE)
    noted = info.get("last_checkpoint")
    path = _newest(root)
    checkpoint = load_checkpoint(path) if path else None
    # A run that records where it comes from also notes its checkpoints: without a note it never had one.
    if checkpoint is None and (noted is not None or (last > 0 and "provenance" not in info)):
        raise RlifError(
            f"{root}: no checkpoint here, but {METRICS_FILE} has {last} steps; put the checkpoints back, or begin "
            "again in another folder: ",
            Advice(f"rlif.train({str(out / RECIPE)!r}, …)", f"rlif train {out / RECIPE} --out DIR"),
        )
    if checkpoint is not None and last < checkpoint.step:
        raise RlifError(
            f"{out / METRICS_FILE}: ends at step {max(last, 0)}, but the checkpoint is of step {checkpoint.step}; "
            "restore the file from a copy"
        )
    lines_up_to(out / METRICS_FILE, checkpoint.step if checkpoint else -1)  # told of before a model is loaded
    lost = noted if checkpoint is not None and isinstance(noted, int) and noted > checkpoint.step else None
    return Start(checkpoint, info, last, lost)


def keep_what_is_dropped(out: Path, start: Start) -> None:
    """Where a newer checkpoint is gone: set aside what was logged since the one that is left, and warn.

    The steps since the newest checkpoint, or before the first one, are cut off without a word: they come again.
    """
    if start.lost is None:
        return
    with writing(out, "put that right, then the same command"):
        copy = set_aside(out, start.step)
    warnings.warn(
        f"{out}: checkpoint {step_name(start.lost)} is gone: goes on from step {start.step}, steps {start.step + 1} to "
        f"{start.last} are made again; what was logged of them is kept in {copy.name}",
        RuntimeWarning,
        stacklevel=2,
    )


def _newest(root: Path) -> Path | None:
    """The checkpoint folder of the highest step, whole or not: a damaged one is to be told of, not passed over."""
    folders = {step_of(path.name): path for path in root.glob("step-*") if path.is_dir()}
    return folders[max(steps)] if (steps := [step for step in folders if step is not None]) else None
