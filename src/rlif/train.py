"""The training loop, and the run around it.

`train` reads top to bottom: sample, grade, score, update, evaluate, log, checkpoint. Everything random is keyed by
(seed, step, prompt), so a run killed at any moment and resumed from its last checkpoint gives the same weights as one
never killed.
"""

import copy
import math
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from rlif.analysis import transitional
from rlif.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    prune,
    remove_leftovers,
    restore_optimizer,
    save_checkpoint,
)
from rlif.config import PolicyConfig, Recipe, load_recipe, parse_recipe
from rlif.errors import RlifError
from rlif.evaluate import evaluate, grade
from rlif.grpo import grpo_step
from rlif.optim import MasterOptimizer, adamw, learning_rate
from rlif.policy import Policy, compute_dtype, load_policy
from rlif.prompts import render
from rlif.rewards import check_rewards, needs_labels, score
from rlif.rollout import Engine, Key, Sampling, check_context
from rlif.runlog import RECIPE, RunLog, collect_info, disk_reason, find_metric, system_error
from rlif.sinks import Sinks, open_sinks
from rlif.tasks import build_task
from rlif.tasks.base import Task
from rlif.types import Prompt, Rollouts, Scored, Update


@runtime_checkable
class Watcher(Protocol):
    """Somebody who looks on: a progress bar, a test."""

    def begin(self, phase: str, step: int, total: int) -> None:
        """A phase (rollout, update, eval) starts; ``total`` completion tokens at most lie ahead."""

    def advance(self, tokens: int) -> None:
        """So many more tokens of the phase are done."""

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """A line was added to the run log."""


class Unwatched:
    """Nobody looks on."""

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None: ...


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


def recipe_path(out: Path) -> Path:
    """The recipe of a run. Raises `RlifError` if the folder holds no run."""
    if not (out / RECIPE).is_file():
        raise RlifError(f"{out}: holds no run ({RECIPE} is missing); start one with rlif train RECIPE.yaml --out DIR")
    return out / RECIPE


def resumes_at(out: Path) -> int:
    """The step a run would go on from."""
    last = latest_checkpoint(out / "checkpoints")
    return int(last.name.removeprefix("step-")) if last else 0


def _loop(run: "Run", until: int | None) -> Path | None:
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
            lr = learning_rate(recipe.grpo, step, recipe.steps)
            with run.guarded(step):
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

            run.step = step
            metrics = describe(scored, update) | {"lr": lr, "optimizer_steps": float(run.optimizer_steps)}
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


class Run:
    """What a run holds between steps: the policy with its optimizer, the frozen reference, and the run folder."""

    def __init__(self, recipe: Recipe, out: Path, watcher: Watcher, checkpoint: Checkpoint | None) -> None:
        check_rewards(recipe.reward)
        _check_best(recipe)
        self.recipe, self.out, self.watcher = recipe, out, watcher
        self.step = checkpoint.step if checkpoint else 0
        self.state: dict[str, Any] = checkpoint.state if checkpoint else {"tokens": 0, "seconds": 0.0, "best": None}
        self.sampling = Sampling.from_config(recipe.rollout)
        self.rows = recipe.rollout.prompts * recipe.rollout.group_size
        self.task: Task = build_task(recipe.task)
        self.policy, self.optimizer = _load_trainable(recipe, checkpoint)
        self.engine = Engine(self.policy, max_rows=recipe.rollout.max_rows)
        self._check_prompts()
        self.reference = _load_reference(recipe, self.policy, fresh=checkpoint is None)
        self._eval_prompts: tuple[Prompt, ...] = ()
        self._log: RunLog
        self._sinks: Sinks
        self._started = time.monotonic() - self.state["seconds"]

    @classmethod
    @contextmanager
    def start(cls, recipe: Recipe, out: Path, watcher: Watcher) -> Iterator["Run"]:
        """A new run in a new folder. Everything that can be wrong is found before the folder is made."""
        RunLog.check_free(out)
        recipe = _with_absolute_paths(recipe)
        run = cls(recipe, out, watcher, None)
        run._log = RunLog.create(out, recipe, info=collect_info(model=recipe.policy.model))
        with run._open():
            yield run

    @classmethod
    @contextmanager
    def resume(cls, out: Path, watcher: Watcher) -> Iterator["Run"]:
        """An old run, from its last checkpoint (from the beginning if it has none)."""
        recipe = load_recipe(recipe_path(out))
        remove_leftovers(out / "checkpoints")
        path = latest_checkpoint(out / "checkpoints")
        checkpoint = load_checkpoint(path) if path else None
        run = cls(recipe, out, watcher, checkpoint)
        # Without a checkpoint nothing is kept, the evaluation of step 0 included: it will be made again.
        run._log = RunLog.resume(
            out, checkpoint.step if checkpoint else -1, info=collect_info(model=recipe.policy.model)
        )
        with run._open():
            yield run

    @contextmanager
    def _open(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self._log.close)
            sinks = open_sinks(
                self.recipe.log.sinks, self.out, self.recipe, first_step=self.step + 1 if self.step else 0
            )
            self._sinks = stack.enter_context(sinks)
            yield

    @property
    def optimizer_steps(self) -> int:
        return self.step * self.recipe.grpo.epochs * self.recipe.grpo.minibatches

    def prompts(self, step: int) -> tuple[Prompt, ...]:
        """The step's training prompts: a function of (seed, step) alone."""
        problems = self.task.train_problems(step, self.recipe.rollout.prompts, self.recipe.seed)
        return render(self.policy, self.recipe.task.template, problems)

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the policy as it stands on the fixed evaluation problems."""
        config = self.recipe.eval
        if not self._eval_prompts:
            problems = self.task.eval_problems(config.problems)
            self._eval_prompts = render(self.policy, self.recipe.task.template, problems)
        rollout = self.recipe.rollout
        sampling = Sampling(config.temperature, max_new_tokens=rollout.max_new_tokens, stop=rollout.stop)
        self.watcher.begin("eval", step, len(self._eval_prompts) * config.samples * sampling.max_new_tokens)
        # The same random numbers at every evaluation: what differs between two of them is the policy.
        result = evaluate(
            self.engine,
            self.task,
            self._eval_prompts,
            samples=config.samples,
            sampling=sampling,
            key=Key(self.recipe.seed, "eval"),
            progress=self.watcher.advance,
        )
        return {f"eval/{name}": value for name, value in result.metrics.items()}

    def log(self, step: int, metrics: dict[str, float], scored: Scored | None = None) -> None:
        """One line of metrics, to the log, the sinks and the watcher; and the rollouts if they are due."""
        if scored is not None:
            self.state["tokens"] += int(scored.rollouts.mask.sum())
            metrics["tokens/total"] = float(self.state["tokens"])
            every = self.recipe.log.rollouts_every
            if every and step % every == 0:
                self._log.write_rollouts(step, scored)
        metrics |= {"time": time.monotonic() - self._started, "memory/peak_gb": peak_memory_gb(self.policy.device)}
        self._log.write(step, metrics)
        self._sinks.write(step, metrics)
        self._remember_best(step, metrics)
        self.watcher.logged(step, metrics)

    def checkpoint_due(self) -> bool:
        """At the end, every so many steps, and whenever the metric of checkpoint.best reaches a new high."""
        every, best = self.recipe.checkpoint.every, self.state["best"]
        scheduled = self.step == self.recipe.steps or (every > 0 and self.step % every == 0)
        return scheduled or (best is not None and best["step"] == self.step)

    def save_checkpoint(self) -> None:
        """Write weights, optimizer and counters; drop the checkpoints that are no longer kept."""
        self.state["seconds"] = time.monotonic() - self._started
        root, best = self.out / "checkpoints", self.state["best"]
        save_checkpoint(
            root,
            self.step,
            write_model=lambda folder: self.policy.save(folder, state_dict=self.optimizer.master_state_dict()),
            tensors=flatten_optimizer(self.optimizer.inner, self.optimizer.names),
            state=self.state,
        )
        prune(root, self.recipe.checkpoint.keep_last, {best["step"]} if best else set())

    def finish(self) -> Path:
        """Write final/, a folder that plain transformers loads, in the type the policy computed in."""
        final, unfinished = self.out / "final", self.out / ".tmp-final"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            self.policy.save(unfinished)
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = system_error(error)  # safetensors raises a full disk as its own exception
            if reason is None:
                raise
            raise RlifError(
                f"{final}: {disk_reason(reason)}; the last checkpoint is whole: "
                f"free some space and run rlif train --resume {self.out}"
            ) from error
        return final

    @contextmanager
    def guarded(self, step: int) -> Iterator[None]:
        """Turn a number that is not finite into an end without damage."""
        try:
            yield
        except FloatingPointError as error:
            last = latest_checkpoint(self.out / "checkpoints")
            raise RlifError(
                f"step {step}: not finite: {error}; stopped before this optimizer step; "
                + (f"the last good checkpoint is {last}" if last else "there is no checkpoint yet")
                + "; lower grpo.lr or raise grpo.kl_coef"
            ) from error

    def _remember_best(self, step: int, metrics: Mapping[str, float | int]) -> None:
        value, best = metrics.get(self.recipe.checkpoint.best or "", math.nan), self.state["best"]
        if step > 0 and math.isfinite(value) and (best is None or value > best["value"]):
            self.state["best"] = {"step": step, "value": value, "metric": self.recipe.checkpoint.best}

    def _check_prompts(self) -> None:
        """Find what the task cannot give before the first step, not in the middle of the night."""
        recipe, problems = self.recipe, self.task.problems_to_fit()
        self.task.train_problems(1, recipe.rollout.prompts, recipe.seed)
        if recipe.eval.every:
            self.task.eval_problems(recipe.eval.problems)
        if (names := needs_labels(recipe.reward)) and (bare := [p.id for p in problems if p.answer is None]):
            raise RlifError(
                f"reward {names[0]} needs answers, but {len(bare)} problems have none (the first is {bare[0]}); "
                "mend task.answer_column, leave those rows out, or choose a reward without labels"
            )
        check_context(
            self.policy, render(self.policy, self.recipe.task.template, problems), self.sampling.max_new_tokens
        )


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


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory since the start, in GB: of the GPU if the policy lives there, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class _Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self._laps[f"time/{phase}"], self._last = now - self._last, now

    def laps(self, rollouts: Rollouts) -> dict[str, float]:
        speed = int(rollouts.mask.sum()) / max(self._laps["time/rollout"], 1e-9)
        return {**self._laps, "tokens_per_second/rollout": speed}


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Local paths made absolute, so that the run can be resumed from another folder."""
    data = recipe.model_dump(mode="json")
    if Path(recipe.policy.model).expanduser().exists():
        data["policy"]["model"] = str(Path(recipe.policy.model).expanduser().resolve())
    for key in ("path", "eval_path"):
        if data["task"].get(key):
            data["task"][key] = str(Path(data["task"][key]).expanduser().resolve())
    return parse_recipe(data)


def _check_best(recipe: Recipe) -> None:
    """Raise `RlifError` if the run will never log the metric that checkpoint.best names."""
    name = recipe.checkpoint.best
    if name is None:
        return
    rewards = {f"reward/{reward.name}/{part}" for reward in recipe.reward for part in ("mean", "std")}
    logged = name in rewards if name.startswith("reward/") else find_metric(name) is not None
    if not logged or (name.startswith("eval/") and not recipe.eval.every):
        raise RlifError(f"checkpoint.best: this run logs no {name!r}; see docs/metrics.md (eval/* needs eval.every)")


def _load_trainable(recipe: Recipe, checkpoint: Checkpoint | None) -> tuple[Policy, MasterOptimizer]:
    """The policy in compute type, under an optimizer that holds its fp32 masters."""
    config = recipe.policy
    if checkpoint is not None:
        config = PolicyConfig(**{**config.model_dump(), "model": str(checkpoint.path)})
    policy = load_policy(config, dtype=torch.float32)
    if recipe.grpo.gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    dtype = compute_dtype(recipe.policy.dtype, policy.device)
    optimizer = MasterOptimizer(policy.model, adamw(recipe.grpo), compute_dtype=dtype)
    if checkpoint is not None:
        restore_optimizer(optimizer.inner, optimizer.names, checkpoint.tensors)
    return policy, optimizer


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; transformers renamed the call within version 5."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _load_reference(recipe: Recipe, policy: Policy, *, fresh: bool) -> nn.Module | None:
    """The policy as it was before the first step, frozen; None where no KL term needs it."""
    if recipe.grpo.kl_coef == 0.0:
        return None
    # A resumed policy has moved on: its reference is the model the recipe started from.
    dtype = compute_dtype(recipe.policy.dtype, policy.device)
    model = copy.deepcopy(policy.model) if fresh else load_policy(recipe.policy, dtype=dtype).model
    return model.requires_grad_(False).eval()


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
