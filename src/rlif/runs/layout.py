"""What lies where in the folder of a run. Free of torch, so that anybody can read one."""

import re
from collections.abc import Sequence
from pathlib import Path

from rlif.errors import Advice, RlifError

RECIPE, INFO, METRICS_FILE, ROLLOUTS = "recipe.yaml", "run.json", "metrics.jsonl", "rollouts"
"""The resolved recipe; the facts; the log, one JSON line a step; the folder of completions, one Parquet file a step."""

EVAL_ANSWERS = "eval_answers"
"""The folder of answers to the same problems at every evaluation, one Parquet file a step."""

EVAL_VERDICTS = "eval_verdicts"
"""The folder of what was said of every answer at every evaluation, without the answers, one Parquet file a step."""

BY_STEP = (ROLLOUTS, EVAL_ANSWERS, EVAL_VERDICTS)
"""Folders that hold a file a step: a run resumed from a checkpoint drops the files of later steps."""

FINAL = "final"
"""The folder of the trained model: it is there once the run has ended."""

LAST = "last"
"""The folder of the last step's model, where ``final`` is that of an earlier step (guards.restore)."""

ADAPTER = "adapter"
"""The folder in ``final`` and ``last`` of the adapter alone, where only one was trained (policy.lora)."""

EXTENDED = "extended"
"""The key of run.json under which a run that was told to go on for more steps says how many it has now."""

PROBE, LOOKS = "probe", "looks.json"
"""The folder of the probe: what the untrained policy answered (reference-*.json), and in this file what was seen at
each look up to the last checkpoint (`rlif.monitoring.measurement.ProbeRecord`)."""


def resume_with(
    out: Path, *, allow_changed: bool = False, steps: int | None = None, overrides: Sequence[str] = ()
) -> Advice:
    """How to resume the run in a folder; ``steps`` and ``overrides``: with these many in all, with these changes."""
    python, command = [repr(str(out))], [f"rlif train --resume {out}"]
    if steps is not None:
        python.append(f"steps={steps}")
        command.append(f"--steps {steps}")
    if overrides:
        python.append(f"overrides={list(overrides)!r}")
        command.extend(overrides)
    if allow_changed:
        python.append("allow_changed=True")
        command.append("--allow-changed")
    return Advice(f"rlif.resume({', '.join(python)})", " ".join(command))


def earlier_end(step: int) -> str:
    """What ``final`` is called once the run that had ended after this step goes on."""
    return f"{FINAL}-{step_name(step)}"


def begin_with(out: Path) -> Advice:
    """How to begin a run in a folder."""
    return Advice(f"rlif.train(recipe, {str(out)!r})", f"rlif train RECIPE --out {out}")


def recipe_path(out: Path) -> Path:
    """The recipe of a run. Raises `RlifError` if the folder holds no run."""
    if not (out / RECIPE).is_file():
        begun = (out / METRICS_FILE).is_file() and (out / METRICS_FILE).stat().st_size > 0
        remedy = ("restore it from a copy",) if begun else ("start one with ", begin_with(out))
        raise RlifError(f"{out}: holds no run ({RECIPE} is missing); ", *remedy)
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
