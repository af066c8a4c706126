"""What lies where in the folder of a run. Free of torch, so that anybody can read one."""

import re
from pathlib import Path

from rlif.errors import RlifError

RECIPE, INFO, METRICS_FILE, ROLLOUTS = "recipe.yaml", "run.json", "metrics.jsonl", "rollouts"
"""The resolved recipe; the facts; the log, one JSON line a step; the folder of completions, one Parquet file a step."""

EVAL_ANSWERS = "eval_answers"
"""The folder of answers to the same held-out problems at every evaluation, one Parquet file a step."""

BY_STEP = (ROLLOUTS, EVAL_ANSWERS)
"""Folders that hold a file a step: a run resumed from a checkpoint drops the files of later steps."""

FINAL = "final"
"""The folder of the trained model: it is there once the run has done its last step."""


def recipe_path(out: Path) -> Path:
    """The recipe of a run. Raises `RlifError` if the folder holds no run."""
    if not (out / RECIPE).is_file():
        begun = (out / METRICS_FILE).is_file() and (out / METRICS_FILE).stat().st_size > 0
        remedy = "restore it from a copy" if begun else f"start one with rlif train RECIPE.yaml --out {out}"
        raise RlifError(f"{out}: holds no run ({RECIPE} is missing); {remedy}")
    return out / RECIPE


def step_name(step: int) -> str:
    """``step-000010``: sorts by step as text, up to a million steps."""
    if step < 0:
        raise ValueError(f"step {step} is negative")
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """The step in a name made by `step_name`; None for any other name."""
    match = re.fullmatch(r"step-(\d{6,})", name)
    return int(match[1]) if match else None
