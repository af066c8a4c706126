"""A run that goes on for more steps than it was begun with, or with keys changed that decide no number:
`rlif train --resume DIR --steps N KEY=VALUE`.

With a constant learning rate, no teacher and no guards.merge_back that is the run which was asked for N steps at once:
its weights are the same, bit for bit. Anything else is laid over N steps from here on, and what was done so far is not
done again: that is said.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from rlif.config import Recipe
from rlif.errors import Argument, RlifError, shown
from rlif.recipes import dump_recipe, overridden, parse_recipe
from rlif.runs.layout import EXTENDED, FINAL, RECIPE, earlier_end, resume_with
from rlif.runs.provenance import FREE, is_free
from rlif.runs.run_log import RunLog
from rlif.training.optim import learning_rate
from rlif.training.setup import Setup
from rlif.utils.atomic_io import flush_folder, write_whole, writing


def with_steps(recipe: Recipe, steps: int | None) -> Recipe:
    """The recipe for so many steps; None: for as many as it says. Raises `RlifError` for less than one."""
    if steps is None:
        return recipe
    if steps < 1:
        raise RlifError(Argument("steps"), f": {steps}; give 1 or more")
    return parse_recipe(recipe.model_dump(mode="json") | {"steps": steps})


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run with ``key=value`` changes. Raises `RlifError` for a key that a run which goes on may not
    change freely (`rlif.runs.provenance.FREE`), and for a value that the recipe does not take."""
    for override in overrides:
        if "=" in override and not is_free(override.partition("=")[0], recipe):
            free = ", ".join(f"{one}*" if one.endswith(".") else one for one in FREE if is_free(one, recipe))
            raise RlifError(
                f"override {shown(override, 200)}: a run that goes on takes ",
                Argument("steps"),
                f" and changes of {free} alone, which decide no number; for others begin a new run",
            )
    return overridden(recipe.model_dump(mode="json"), overrides, source=RECIPE) if overrides else recipe


def check_extension(setup: Setup, out: Path) -> None:
    """Raise `RlifError` if a guard has ended the run; warn of a schedule that more steps bend."""
    recipe, stopped = setup.recipe, (setup.state.get("probe") or {}).get("stopped")
    if stopped and recipe.guards.stop and recipe.guards.merge_back is None:
        raise RlifError(
            f"{out}: a guard ended this run after step {stopped['step']} ({stopped['reason']}); to go on "
            "nevertheless: ",
            resume_with(out, steps=recipe.steps, overrides=["guards.stop=false"]),
        )
    for reason in _other_than_at_once(setup):
        warnings.warn(
            f"{out}: {reason}, so this is not the run that so many steps from the start would have been",
            RuntimeWarning,
            stacklevel=2,
        )
    grpo, step = recipe.grpo, setup.step
    if step < recipe.steps and (grpo.schedule != "constant" or grpo.warmup > 0.0):
        now = learning_rate(grpo, step + 1, recipe.steps)
        warnings.warn(
            f"{out}: the learning rate's schedule ({grpo.schedule}, warm-up {grpo.warmup:g}) is laid over "
            f"{recipe.steps} steps from here on: step {step + 1} has {now:.3g}; the steps "
            "so far had another course, so this is not the run that so many steps from the start would have been",
            RuntimeWarning,
            stacklevel=2,
        )


def _other_than_at_once(setup: Setup) -> list[str]:
    """What more steps bend besides a schedule."""
    recipe, every = setup.recipe, setup.recipe.probe.every or 0
    found = []
    if setup.teacher is not None:
        found.append("the teacher's decay (consensus.decay) is laid over all steps from here on")
    if recipe.guards.merge_back is not None and every and setup.step % every:
        found.append("its old end was looked at out of turn, and guards.merge_back goes by what was seen there")
    return found


def extend(log: RunLog, setup: Setup, out: Path, *, more_steps: bool) -> None:
    """Write the run's recipe as it is now, and set the model aside with which it had ended if steps are left: it is
    called ``final-step-NNNNNN`` from here on. ``more_steps``: it was told how many steps it has, which run.json then
    holds as well. Raises `RlifError` if that cannot be written."""
    with writing(out, "put that right, then the same command"):
        write_whole(out / RECIPE, dump_recipe(setup.recipe).encode())
        if setup.step < setup.recipe.steps and (out / FINAL).is_dir():
            aside = out / earlier_end(setup.step)
            if not aside.exists():
                (out / FINAL).rename(aside)
                flush_folder(out)
    if more_steps:
        log.note(**{EXTENDED: setup.recipe.steps})
