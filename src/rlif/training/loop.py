"""The training loop.

It reads top to bottom: sample, grade, score, update, evaluate, log, checkpoint. Everything random is keyed by (seed,
step, prompt), so a run killed at any moment and resumed from its last checkpoint gives the same weights as one never
killed.
"""

import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

from rlif.config import Recipe
from rlif.monitoring.entropy_change import change, watch
from rlif.rewards.score import grade, score
from rlif.rng import Key
from rlif.training.callbacks import NullCallback, ProgressCallback
from rlif.training.grpo import grpo_step
from rlif.training.optim import learning_rate
from rlif.training.run import Run
from rlif.training.step_metrics import describe
from rlif.types import Rollouts
from rlif.utils.interrupts import Interrupted, Stop, stop_on_signal


def train(
    recipe: Recipe,
    out: Path,
    *,
    callback: ProgressCallback | None = None,
    until: int | None = None,
    stop: Stop | None = None,
) -> Path | None:
    """Run a recipe into a new folder; returns the folder of the final model.

    With ``until`` the run pauses after that step, with a checkpoint, and returns None unless it was the last; `resume`
    continues, and the pause changes nothing.

    Raises `RlifError` for what the user can fix, `Interrupted` after SIGINT or SIGTERM (the checkpoint is written).
    Where ``stop`` is given, it is asked instead of listening for these signals.
    """
    with ExitStack() as stack:
        run = stack.enter_context(Run.start(recipe, out, callback or NullCallback()))
        return _loop(run, until, stop)


def resume(
    out: Path,
    *,
    callback: ProgressCallback | None = None,
    until: int | None = None,
    stop: Stop | None = None,
    allow_changed: bool = False,
) -> Path | None:
    """Resume a run from its last checkpoint, as if it had never stopped; as `train` otherwise.

    Recipe, problems or model that have changed since it began are refused unless ``allow_changed``.
    """
    with ExitStack() as stack:
        run = stack.enter_context(Run.resume(out, callback or NullCallback(), allow_changed=allow_changed))
        return _loop(run, until, stop)


def _loop(run: Run, until: int | None, stop: Stop | None) -> Path | None:
    recipe, policy = run.recipe, run.policy
    last = recipe.steps if until is None else min(until, recipe.steps)
    with nullcontext(stop) if stop else stop_on_signal() as asked_by:
        if run.step == 0 and recipe.eval.every:
            with run.guarded(0):
                run.log(0, run.evaluate(0))
        while run.step < last:
            if (signum := asked_by()) and run.step == 0:
                raise Interrupted(signum, f"stopped before the first step; begin with: rlif train --resume {run.out}")
            step, key, clock = run.step + 1, Key(recipe.seed, run.step + 1), _Clock()

            prompts = run.prompts(step)
            run.callback.begin("rollout", step, run.rows * run.sampling.max_new_tokens)
            with run.guarded(step):
                rollouts = run.engine.sample(
                    prompts,
                    group_size=recipe.rollout.group_size,
                    sampling=run.sampling,
                    key=key,
                    progress=run.callback.advance,
                )
                run.check_sampler(rollouts)
            clock.lap("rollout")

            verdicts = grade(run.task, rollouts)
            with run.guarded(step):
                scored = score(rollouts, verdicts, recipe.reward, recipe.advantage, key)
            clock.lap("score")

            run.callback.begin("update", step, int(rollouts.mask.sum()) * recipe.grpo.epochs)
            lr, budget = learning_rate(recipe.grpo, step, recipe.steps), recipe.grpo.micro_batch_tokens
            with run.guarded(step):
                share = recipe.log.entropy_share
                watched = watch(policy, scored, sampling=run.sampling, share=share, budget=budget)
                clock.lap("watch")
                update = grpo_step(
                    policy,
                    run.optimizer,
                    scored,
                    recipe.grpo,
                    lr=lr,
                    temperature=recipe.rollout.temperature,
                    limit=recipe.rollout.max_new_tokens,
                    reference=run.reference,
                    progress=run.callback.advance,
                )
                clock.lap("update")
                entropy = change(policy, scored, watched, budget=budget)
            clock.lap("watch")

            run.step = step
            metrics = describe(scored, update) | entropy | {"lr": lr, "optimizer_steps": float(run.optimizer_steps)}
            if recipe.eval.every and (step % recipe.eval.every == 0 or step == recipe.steps):
                with run.guarded(step):
                    metrics |= run.evaluate(step)
                clock.lap("eval")
            run.log(step, metrics | clock.laps(rollouts), scored)
            signum = asked_by()  # once: a signal from here on waits for the next step
            if run.checkpoint_due() or signum or step == last:
                run.save_checkpoint()
            if signum and step < recipe.steps:
                raise Interrupted(
                    signum,
                    f"stopped after step {step} of {recipe.steps}; go on with: rlif train --resume {run.out}",
                )
        return run.finish() if last == recipe.steps else None


class _Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap was this phase's; a phase may come in parts."""
        now, key = time.monotonic(), f"time/{phase}"
        self._laps[key], self._last = self._laps.get(key, 0.0) + now - self._last, now

    def laps(self, rollouts: Rollouts) -> dict[str, float]:
        speed = int(rollouts.mask.sum()) / max(self._laps["time/rollout"], 1e-9)
        return {**self._laps, "tokens_per_second/rollout": speed}
