"""The training loop.

It reads top to bottom: sample, score, update, evaluate, log, checkpoint. Everything random is keyed by (seed, step,
prompt), so a run killed at any moment and resumed from its last checkpoint gives the same weights as one never killed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.errors import Argument, RlifError, named
from rlif.monitoring.entropy_change import EntropyChangeProbe
from rlif.recipes import RECIPE_KEYS
from rlif.rewards.base import OwnRewardError, Reward
from rlif.rewards.score import score
from rlif.rng import Key
from rlif.runs.layout import resume_with
from rlif.tasks.base import Task
from rlif.training.callbacks import NullCallback, ProgressCallback
from rlif.training.custom import Custom
from rlif.training.grpo import grpo_step
from rlif.training.launch import joined
from rlif.training.opening import new_run, old_run
from rlif.training.optim import learning_rate
from rlif.training.run import Run
from rlif.training.step_metrics import describe
from rlif.training.token_terms import with_token_terms
from rlif.utils.interrupts import Interrupted, Stop, stop_on_signal

Card = Callable[[Path], Path]
"""Writes the evidence of the run in a folder; returns where."""


@named(RECIPE_KEYS)
def train(
    recipe: Recipe,
    out: Path,
    *,
    task: Task | None = None,
    rewards: Mapping[str, Reward] | None = None,
    callback: ProgressCallback | None = None,
    until: int | None = None,
    stop: Stop | None = None,
    card: Card | None = None,
) -> Path | None:
    """Run a recipe into a new folder; returns the folder of the final model.

    Args:
        task: trained on instead of the recipe's, whose template it is still put through.
        rewards: of your own, by the names the recipe calls them; they come before those of `REWARDS`.
        until: pause after that step (1 or more), with a checkpoint, and return None unless it was the last; `resume`
            continues, and the pause changes nothing.
        stop: asked instead of listening for SIGINT and SIGTERM.
        card: writes the evidence of the run in this folder beside its final model, once that is there.

    In processes that torchrun has started the run is one, shared among them (docs/scaling.md): call it alike in each.
    The first owns ``out`` and tells the ``callback``.

    Raises `RlifError` for what the user can fix, `Interrupted` after SIGINT or SIGTERM (the checkpoint is written).
    """
    _check_until(until)
    custom = Custom(task, rewards or {})
    with joined() as ranks, new_run(recipe, out, callback or NullCallback(), custom, ranks) as run:
        return _with_card(run, _loop(run, until, stop), card)


@named(RECIPE_KEYS)
def resume(
    out: Path,
    *,
    task: Task | None = None,
    rewards: Mapping[str, Reward] | None = None,
    callback: ProgressCallback | None = None,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    until: int | None = None,
    stop: Stop | None = None,
    allow_changed: bool = False,
    card: Card | None = None,
) -> Path | None:
    """Resume a run from its last checkpoint, as if it had never stopped; as `train` otherwise.

    A run that was given ``task`` or ``rewards`` needs the same again. Recipe, problems or model that have changed since
    it began are refused unless ``allow_changed``. ``steps``: go on until there are so many, a finished run as well.
    ``overrides``: ``key=value`` changes of its recipe, of keys alone that decide no number (docs/reliability.md).
    """
    _check_until(until)
    custom, told = Custom(task, rewards or {}), callback or NullCallback()
    options: dict[str, Any] = {"steps": steps, "overrides": overrides, "allow_changed": allow_changed}
    with joined() as ranks, old_run(out, told, custom, ranks, **options) as run:
        return _with_card(run, _loop(run, until, stop), card)


def _with_card(run: Run, final: Path | None, card: Card | None) -> Path | None:
    """Have the evidence of a run that has ended written, and shown where its metrics are."""
    if final is not None and card is not None and run.ranks.first:
        run.show_card(card(run.out))
    return final


def _check_until(until: int | None) -> None:
    if until is not None and until < 1:
        raise RlifError(Argument("until"), f": {until}; a run pauses after step 1 at the earliest, for a checkpoint")


@contextmanager
def _mended_and_resumed(out: Path) -> Iterator[None]:
    """Let the error of a user's reward say how the run goes on once its file is another one."""
    try:
        yield
    except OwnRewardError as error:
        error.args = (*error.args, "; to go on with it mended: ", resume_with(out, allow_changed=True))
        raise


def _loop(run: Run, until: int | None, stop: Stop | None) -> Path | None:
    recipe, policy, progress = run.recipe, run.policy, run.callback.advance
    last = recipe.steps if until is None else min(until, recipe.steps)
    with nullcontext(stop) if stop else stop_on_signal() as asked_by:
        run.ask_untrained(asked_by)
        asked_by = run.ranks.heard(asked_by)
        while run.step < last and not run.ended:
            if (signum := asked_by()) and run.step == 0:
                raise Interrupted(signum, "stopped before the first step; begin with: ", resume_with(run.out))
            run.begin_step()
            key, lr = Key(recipe.seed, run.step), learning_rate(recipe.grpo, run.step, recipe.steps)

            with run.phase("rollout", tokens=run.rows * run.sampling.max_new_tokens):
                prompts, size = run.prompts(run.step), recipe.rollout.group_size
                rollouts = run.engine.sample(
                    prompts, group_size=size, sampling=run.sampling, key=key, progress=progress
                )
                run.check_sampler(rollouts)

            with run.phase("score"):
                verdicts = run.grade(rollouts)
                mix, given = recipe.reward, run.consensus
                with _mended_and_resumed(run.out):
                    scored = score(rollouts, verdicts, mix, recipe.advantage, key, rewards=run.rewards, consensus=given)
                scored = with_token_terms(policy, scored, recipe.grpo, key)

            with run.phase("watch"):
                share, budget = recipe.log.entropy_share, recipe.grpo.micro_batch_tokens
                split = run.ranks.split
                probe = EntropyChangeProbe.before(policy, scored, share=share, budget=budget, split=split)
            with run.phase("update", tokens=int(rollouts.mask.sum()) * recipe.grpo.epochs):
                grpo, frozen = run.settings(rollouts), run.reference
                update = grpo_step(policy, run.optimizer, scored, grpo, lr=lr, reference=frozen, progress=progress)
            with run.phase("watch"):
                entropy = probe.after(policy)

            metrics = describe(scored, update) | entropy | {"lr": lr, "optimizer_steps": float(run.optimizer_steps)}
            metrics |= run.follow(grpo, metrics)
            run.log(metrics | run.observe(metrics, asked_by=asked_by), scored)

            signum = run.broken_off or asked_by()  # once: a signal from here on waits for the next step
            if run.checkpoint_due() or signum or run.step == last:
                run.save_checkpoint()
            if signum and (run.broken_off or not run.ended):
                done = f"stopped after step {run.step} of {recipe.steps}"
                raise Interrupted(signum, f"{done}; go on with: ", resume_with(run.out))
        return run.finish() if run.ended else None
