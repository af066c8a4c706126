"""What a training run holds between steps: the policy with its optimizer, the frozen reference, and the run folder.

`Run.start` and `Run.resume` find everything that can be wrong before the first step; `rlif.training.loop` is the loop.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from rlif.config import MergedModel, Recipe
from rlif.errors import RlifError
from rlif.evals.during_training import evaluate
from rlif.model.fingerprint import weights_digest
from rlif.model.merge import model_source
from rlif.model.registry import MODELS
from rlif.model.template_clock import present
from rlif.monitoring.mismatch import Guard, comparable
from rlif.recipes import load_recipe, parse_recipe
from rlif.rewards.registry import check_rewards, needs_labels
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import check_context, prompts_digest, render
from rlif.runs.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    latest_checkpoint,
    prune,
    save_checkpoint,
)
from rlif.runs.environment import collect_info
from rlif.runs.layout import INFO, recipe_path
from rlif.runs.metric_keys import find_metric
from rlif.runs.provenance import Provenance, accept, model_files, read_provenance, start_of
from rlif.runs.resumption import find_start, keep_what_is_dropped
from rlif.runs.run_log import BEGINNING, RunLog
from rlif.runs.trackers import Sinks, open_sinks
from rlif.tasks import build_task
from rlif.tasks.base import Task
from rlif.tasks.templates import find_template
from rlif.training.callbacks import Watcher
from rlif.training.setup import _load_reference, _load_trainable
from rlif.types import Problem, Prompt, Rollouts, Sampling, Scored
from rlif.utils.atomic_io import disk_reason, emptied_on_failure, flush_folder, locked, system_error
from rlif.utils.memory import peak_memory_gb
from rlif.utils.paths import expanded


class Run:
    """What a run holds between steps: the policy with its optimizer, the frozen reference, and the run folder.

    ``now`` is the moment that chat templates are told: the start of the run, also if it is resumed on another day.
    ``began`` is what was recorded then, if it is resumed. A changed reference is refused unless ``allow_changed``.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        watcher: Watcher,
        checkpoint: Checkpoint | None,
        *,
        now: datetime,
        began: Provenance | None = None,
        allow_changed: bool = False,
    ) -> None:
        check_rewards(recipe.reward)
        _check_best(recipe)
        self.recipe, self.out, self.watcher, self.now = recipe, out, watcher, now
        self.step = checkpoint.step if checkpoint else 0
        self.state: dict[str, Any] = checkpoint.state if checkpoint else {"tokens": 0, "seconds": 0.0, "best": None}
        self.sampling = Sampling.from_config(recipe.rollout)
        self.rows = recipe.rollout.prompts * recipe.rollout.group_size
        self.task: Task = build_task(recipe.task)
        self.policy, self.optimizer = _load_trainable(recipe, checkpoint)
        keys = recipe.rollout
        self.engine = Engine(
            self.policy, max_rows=keys.max_rows, cuda_graphs=keys.cuda_graphs, max_mismatch=keys.max_mismatch
        )
        self._guard = Guard(self.policy, recipe.rollout.max_mismatch, key="rollout.max_mismatch")
        self._sampler_checked = False
        self._check_prompts()
        self.reference = _load_reference(recipe, self.policy, fresh=checkpoint is None)
        self._check_reference(allow_changed)
        self._eval_prompts: tuple[Prompt, ...] = self._render_eval() if recipe.eval.every else ()
        self.provenance = self._provenance(began)
        self.state["provenance"] = self.provenance.model_dump(mode="json")
        self._log: RunLog
        self._sinks: Sinks
        self._started = time.monotonic() - self.state["seconds"]

    @classmethod
    @contextmanager
    def start(cls, recipe: Recipe, out: Path, watcher: Watcher) -> Iterator["Run"]:
        """A new run in a new folder. If anything is wrong, no folder is left behind."""
        RunLog.check_free(out)
        recipe = resolved(recipe)
        run = cls(recipe, out, watcher, None, now=present())
        with locked(out), ExitStack() as stack:
            RunLog.check_free(out)  # again: nobody else can take it from here on
            with emptied_on_failure(out, last=BEGINNING):
                info = collect_info(model=str(recipe.policy.model))
                run._log = RunLog.create(out, recipe, info={**info, "provenance": run.state["provenance"]})
                stack.enter_context(run._open())
            yield run

    @classmethod
    @contextmanager
    def resume(cls, out: Path, watcher: Watcher, *, allow_changed: bool = False) -> Iterator["Run"]:
        """An old run, from its last checkpoint (from the beginning if it never had one).

        Raises `RlifError` if what decides the result has changed since it began, unless ``allow_changed``.
        """
        recipe = load_recipe(recipe_path(out))
        with locked(out):
            start = find_start(out)
            recipe = _as_before(recipe, start.info)
            recorded, where = (
                (start.checkpoint.state, start.checkpoint.path) if start.checkpoint else (start.info, out / INFO)
            )
            began = read_provenance(recorded, where)
            now = began.date if began else start_of(start.info)
            run = cls(recipe, out, watcher, start.checkpoint, now=now, began=began, allow_changed=allow_changed)
            changed = accept(began, run.provenance, step=run.step, out=out, allow=allow_changed)
            keep_what_is_dropped(out, start)
            info = {**collect_info(model=str(recipe.policy.model)), **({"changed": changed} if changed else {})}
            # Without a checkpoint nothing is kept, the evaluation of step 0 included: it will be made again.
            run._log = RunLog.resume(out, start.step, info=info)
            with run._open():
                if start.lost is not None:
                    run._log.note_checkpoint(start.step)  # told once
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
        return self._render(problems)

    def _render(self, problems: tuple[Problem, ...]) -> tuple[Prompt, ...]:
        return render(self.policy, self.recipe.task.template, problems, now=self.now)

    def _render_eval(self) -> tuple[Prompt, ...]:
        return self._render(self.task.eval_problems(self.recipe.eval.problems))

    def check_sampler(self, rollouts: Rollouts) -> None:
        """Hold the first completions of this process against a plain forward pass; those of later steps are compared in
        the update. Raises `RlifError` if they are too far apart (rollout.max_mismatch)."""
        if not self._sampler_checked:
            self._guard.check(f"step {self.step + 1}", rollouts)
            self._sampler_checked = True

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the policy as it stands on the fixed evaluation problems."""
        config = self.recipe.eval
        self._eval_prompts = self._eval_prompts or self._render_eval()
        sampling = eval_sampling(self.recipe)
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
        if scored is not None and comparable(self.sampling):
            self._guard.watch(step, metrics["mismatch/mean"])
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
        self._log.check_place()
        save_checkpoint(
            root,
            self.step,
            write_model=lambda folder: self.policy.save(folder, state_dict=self.optimizer.master_state_dict()),
            tensors=flatten_optimizer(self.optimizer.inner, self.optimizer.names),
            state=self.state,
        )
        self._log.note_checkpoint(self.step)
        prune(root, self.recipe.checkpoint.keep_last, {best["step"]} if best else set())

    def finish(self) -> Path:
        """Write final/, a folder that plain transformers loads, in the type the policy computed in."""
        final, unfinished, replaced = (self.out / name for name in ("final", ".tmp-final", ".old-final"))
        self._log.check_place()
        for leftover in (unfinished, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            self.policy.save(unfinished)
            if final.exists():
                final.rename(replaced)
            unfinished.rename(final)
            flush_folder(self.out)
            shutil.rmtree(replaced, ignore_errors=True)
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
        """Turn a number that is not finite, or a device that is full, into an end without damage."""
        try:
            yield
        except FloatingPointError as error:
            last = latest_checkpoint(self.out / "checkpoints")
            begin = f"begin a new run at it (policy.model={last})" if last else "begin again"
            raise RlifError(
                f"step {step}: not finite: {error}; nothing of this step is kept; {self._last_checkpoint()}; "
                f"{begin} with a lower grpo.lr or a higher grpo.kl_coef"
            ) from error
        except torch.OutOfMemoryError as error:
            raise RlifError(
                f"step {step}: out of memory ({str(error).splitlines()[0]}); {self._last_checkpoint()}; "
                "lower grpo.micro_batch_tokens (null: 16384 on a GPU) or rollout.max_rows, or set "
                "grpo.gradient_checkpointing"
            ) from error

    def _last_checkpoint(self) -> str:
        last = latest_checkpoint(self.out / "checkpoints")
        return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"

    def _provenance(self, began: Provenance | None) -> Provenance:
        prompts = {"train": self.prompts(1), **({"eval": self._eval_prompts} if self._eval_prompts else {})}
        files, stamps = model_files(model_source(self.recipe.policy.model), began)
        return Provenance(
            date=self.now,
            recipe=self.recipe.model_dump(mode="json"),
            model=files,
            stamps=stamps,
            problems=dict(self.task.digests()),
            prompts={name: prompts_digest(rendered) for name, rendered in prompts.items()},
        )

    def _check_reference(self, allow_changed: bool) -> None:
        """A resumed run loads its reference again, by name: it must be the model it began with."""
        if self.reference is None:
            return
        digest = weights_digest(self.reference)
        if self.state.setdefault("reference", digest) != digest and not allow_changed:
            raise RlifError(
                f"policy.model: {self.recipe.policy.model} has changed since this run began, and with it the reference "
                "of its KL term; put the old weights back, start a new run, or go on with the change on purpose: "
                f"rlif train --resume {self.out} --allow-changed"
            )
        self.state["reference"] = digest

    def _remember_best(self, step: int, metrics: Mapping[str, float | int]) -> None:
        name, best = self.recipe.checkpoint.best, self.state["best"]
        value = metrics.get(name or "", math.nan)
        # Values of two metrics are not compared: a resumed run may have been told to go by another one.
        known = best is not None and best["metric"] == name
        if step > 0 and math.isfinite(value) and (not known or value > best["value"]):
            self.state["best"] = {"step": step, "value": value, "metric": name}

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
        check_context(self.policy, self._render(problems), self.sampling.max_new_tokens)


def eval_sampling(recipe: Recipe) -> Sampling:
    """How the evaluation during training draws: as rollouts do, but for what the section eval says otherwise."""
    rollout, own = recipe.rollout, recipe.eval
    return Sampling(
        temperature=own.temperature,
        top_p=rollout.top_p if own.top_p is None else own.top_p,
        top_k=rollout.top_k if own.top_k is None else own.top_k,
        max_new_tokens=rollout.max_new_tokens,
        stop=rollout.stop,
    )


def _as_before(recipe: Recipe, info: Mapping[str, Any]) -> Recipe:
    """The recipe of a run to go on with. One whose run.json holds no provenance is of before: its evaluation never took
    over the filters of its rollouts, and must not begin to in the middle of its metrics."""
    data = recipe.model_dump(mode="json")
    unfiltered = {"top_p": 1.0, "top_k": 0}
    if "provenance" not in info:
        data["eval"] |= {key: value for key, value in unfiltered.items() if data["eval"][key] is None}
    return parse_recipe(data)


def _absolute_model(model: str | MergedModel) -> str | dict[str, Any]:
    """A model named so that the name means the same in every folder."""
    if isinstance(model, str):
        local = model not in MODELS and expanded(model).exists()
        return str(expanded(model).resolve()) if local else model
    sides = {name: _absolute_model(getattr(model.merge, name)) for name in ("base", "instruct")}
    return {"merge": model.merge.model_dump(mode="json") | sides}


def resolved(recipe: Recipe) -> Recipe:
    """A recipe that says what will be done, wherever it is resumed: local paths are absolute, and what the template
    brings (stop strings, the form of answer it asks for) and the evaluation takes over from rollouts is spelled out."""
    data = recipe.model_dump(mode="json")
    data["policy"]["model"] = _absolute_model(recipe.policy.model)
    for key in ("path", "eval_path"):
        if data["task"].get(key):
            data["task"][key] = str(expanded(data["task"][key]).resolve())
    template, sampling = find_template(recipe.task.template), eval_sampling(recipe)
    data["task"]["format"] = recipe.task.format or template.format
    data["rollout"]["stop"] = list(dict.fromkeys((*template.stop, *recipe.rollout.stop)))
    data["eval"] |= {"top_p": sampling.top_p, "top_k": sampling.top_k}
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
