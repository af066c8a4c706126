"""The training loop.

It reads top to bottom: sample, grade, score, update, evaluate, log, checkpoint. Everything random is keyed by (seed,
step, prompt), so a run killed at any moment and resumed from its last checkpoint gives the same weights as one never
killed.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rlif.analysis import transitional
from rlif.config import Recipe
from rlif.entropy_watch import change, watch
from rlif.evaluate import grade
from rlif.grpo import grpo_step
from rlif.optim import learning_rate
from rlif.rewards import score
from rlif.rollout import Key
from rlif.run import Run, Unwatched, Watcher
from rlif.types import Rollouts, Scored, Update


class Interrupted(Exception):  # noqa: N818  (a request that was met, not an error)
    """A signal asked the run to stop; it did, with a checkpoint. ``signum`` is the signal's number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(signum, message)  # all arguments, so that it travels between processes
        self.signum, self.message = signum, message

    def __str__(self) -> str:
        return self.message


def train(recipe: Recipe, out: Path, *, watcher: Watcher | None = None, until: int | None = None) -> Path | None:
    """Run a recipe into a new folder; returns the folder of the final model.

    With ``until`` the run pauses after that step, with a checkpoint, and returns None unless it was the last; `resume`
    goes on, and the pause changes nothing.

    Raises `RlifError` for what the user can mend, `Interrupted` after SIGINT or SIGTERM (the checkpoint is written).
    """
    with ExitStack() as stack:
        run = stack.enter_context(Run.start(recipe, out, watcher or Unwatched()))
        return _loop(run, until)


def resume(out: Path, *, watcher: Watcher | None = None, until: int | None = None) -> Path | None:
    """Go on with a run from its last checkpoint, as if it had never stopped; as `train` otherwise."""
    with ExitStack() as stack:
        run = stack.enter_context(Run.resume(out, watcher or Unwatched()))
        return _loop(run, until)


def _loop(run: Run, until: int | None) -> Path | None:
    recipe, policy = run.recipe, run.policy
    last = recipe.steps if until is None else min(until, recipe.steps)
    with _stop_on_signal() as stop:
        if run.step == 0 and recipe.eval.every:
            with run.guarded(0):
                run.log(0, run.evaluate(0))
        while run.step < last:
            if stop and run.step == 0:
                raise Interrupted(stop[0], f"stopped before the first step; begin with: rlif train --resume {run.out}")
            step, key, clock = run.step + 1, Key(recipe.seed, run.step + 1), _Clock()

            prompts = run.prompts(step)
            run.watcher.begin("rollout", step, run.rows * run.sampling.max_new_tokens)
            with run.guarded(step):
                rollouts = run.engine.sample(
                    prompts,
                    group_size=recipe.rollout.group_size,
                    sampling=run.sampling,
                    key=key,
                    progress=run.watcher.advance,
                )
            clock.lap("rollout")

            verdicts = grade(run.task, rollouts)
            with run.guarded(step):
                scored = score(rollouts, verdicts, recipe.reward, recipe.advantage, key)
            clock.lap("score")

            run.watcher.begin("update", step, int(rollouts.mask.sum()) * recipe.grpo.epochs)
            lr, budget = learning_rate(recipe.grpo, step, recipe.steps), recipe.grpo.micro_batch_tokens
            with run.guarded(step):
                watched = watch(policy, scored, share=recipe.log.entropy_share, budget=budget)
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
                    progress=run.watcher.advance,
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
            signums = tuple(stop)  # read once: a signal from here on waits for the next step
            if run.checkpoint_due() or signums or step == last:
                run.save_checkpoint()
            if signums and step < recipe.steps:
                raise Interrupted(
                    signums[0],
                    f"stopped after step {step} of {recipe.steps}; go on with: rlif train --resume {run.out}",
                )
        return run.finish() if last == recipe.steps else None


def describe(scored: Scored, update: Update) -> dict[str, float]:
    """The step's metrics, keys as in docs/metrics.md."""
    rollouts, verdicts = scored.rollouts, scored.verdicts
    n, tokens = rollouts.n_rows, int(rollouts.mask.sum())
    words = transitional(rollouts.texts, tokens)
    groups = scored.advantages.view(-1, rollouts.group_size)
    metrics = {
        "advantage/std": scored.advantages.std().item(),
        "advantage/zero_groups": (groups == 0).all(dim=1).float().mean().item(),
        "signal/self_certainty": rollouts.signals.self_certainty.sum().item() / tokens,
        "signal/entropy": rollouts.signals.entropy.sum().item() / tokens,
        "signal/logprob": rollouts.signals.logprob.sum().item() / tokens,
        "length/mean": tokens / n,
        "length/max": float(rollouts.lengths.max()),
        "verdict/right": sum(verdict.right is True for verdict in verdicts) / n,
        "verdict/formatted": sum(verdict.formatted for verdict in verdicts) / n,
        "verdict/right_and_formatted": sum(v.right is True and v.formatted for v in verdicts) / n,
        "verdict/undecided": sum(verdict.right is None for verdict in verdicts) / n,
        "transitional/rate": words.rate,
        "transitional/share": words.share,
        "tokens/prompt": float(sum(len(prompt.token_ids) for prompt in rollouts.prompts)),
        "tokens/completion": float(tokens),
        "loss": update.loss,
        "grad_norm": update.grad_norm,
        **update.metrics,
    }
    for reason in ("eos", "stop_string", "length"):
        metrics[f"stop/{reason}"] = rollouts.stop_reasons.count(reason) / n
    for name, values in scored.rewards.items():
        metrics |= {f"reward/{name}/mean": values.mean().item(), f"reward/{name}/std": values.std().item()}
    return metrics


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


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """A list that a first SIGINT or SIGTERM is put into: the loop ends after the step. A second one ends it at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python hands signals to the main thread alone
        yield caught
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signum)
        print("\nstopping after this step, with a checkpoint (once more: at once)", file=sys.stderr)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
