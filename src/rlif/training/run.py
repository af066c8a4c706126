"""A training run between its steps: what `rlif.training.setup` loaded, and the run's folder.

`rlif.training.opening` opens one, `rlif.training.loop` is the loop.
"""

import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from rlif.config import GrpoConfig
from rlif.monitoring.mismatch import Guard, comparable
from rlif.rewards.score import grade_rows
from rlif.rollout.engine import Engine
from rlif.runs.checkpoint import checkpoint_name, prune, save_checkpoint
from rlif.runs.layout import FINAL, LAST, resume_with
from rlif.runs.run_log import RunLog
from rlif.runs.trackers import Sinks
from rlif.training.callbacks import ProgressCallback
from rlif.training.coefficients import in_force, moved_levels, settings_of
from rlif.training.consensus import Consensus
from rlif.training.evaluation import Evaluator
from rlif.training.final import trained_weights, write_masters, write_model
from rlif.training.looks import Looks
from rlif.training.lora import start_for_merge_back
from rlif.training.optim import merge_back
from rlif.training.phases import Phases
from rlif.training.setup import Setup, build_engine, initial_policy, policy_at
from rlif.training.teacher import decay_at
from rlif.types import Prompt, Rollouts, Sampling, Scored, Verdict
from rlif.utils.interrupts import Interrupted, Stop
from rlif.utils.memory import peak_memory_gb

_LOG = logging.getLogger(__name__)
_UNEVALUATED = "unevaluated"
"""Of a run's state: true where a signal broke off the evaluation of the step that the checkpoint is of."""


class Run:
    """What a run holds between steps: the policy with its optimizer, the frozen reference, and the run folder.

    ``step`` is the one under way; those before it are done, logged, and in the checkpoints that were due.
    """

    def __init__(self, setup: Setup, out: Path, log: RunLog, sinks: Sinks, callback: ProgressCallback) -> None:
        self.recipe, self.task, self.rewards, self.ranks = setup.recipe, setup.prompts.task, setup.rewards, setup.ranks
        self.policy, self.optimizer = setup.policy, setup.optimizer
        self.reference = setup.start if self.recipe.grpo.needs_reference else None
        self._start = setup.start
        self.engine, self.step, self.state = setup.engine, setup.step, setup.state
        self.teacher = setup.teacher
        self._consensus = Consensus(setup)
        self.sampling = Sampling.from_config(self.recipe.rollout)
        self.rows = self.recipe.rollout.prompts * self.recipe.rollout.group_size
        self.out, self.callback = out, callback
        self._prompts = setup.prompts
        self._evaluator = Evaluator(setup)
        self._log, self._sinks = log, sinks
        self.looks = Looks(setup, out)
        self._guard = Guard(self.policy, self.recipe.rollout.max_mismatch)
        self._sampler_checked = False
        self.broken_off = 0  # by which signal the last evaluation was
        self._taught = self.step > 0  # of a run that goes on nobody knows
        self._phases = Phases(callback, out / "checkpoints")
        self._started = time.monotonic() - self.state["seconds"]

    @property
    def optimizer_steps(self) -> int:
        return self.step * self.recipe.grpo.epochs * self.recipe.grpo.minibatches

    def phase(self, name: str, tokens: int = 0) -> AbstractContextManager[None]:
        """Guard, clock and progress of a phase of the step under way: see `rlif.training.phases.Phases.phase`."""
        return self._phases.phase(name, step=self.step, tokens=tokens)

    def prompts(self, step: int) -> tuple[Prompt, ...]:
        """The step's training prompts: a function of (seed, step) alone."""
        return self._prompts.train(step)

    def check_sampler(self, rollouts: Rollouts) -> None:
        """Hold the first completions of this process against a plain forward pass; those of later steps are compared in
        the update. Raises `RlifError` if they are too far apart (rollout.max_mismatch)."""
        if not self._sampler_checked:
            self._guard.check(f"step {self.step}", rollouts)
            self._sampler_checked = True

    def grade(self, rollouts: Rollouts) -> tuple[Verdict, ...]:
        """The task's verdict on every completion."""
        parts = self.ranks.split(range(rollouts.n_rows), lambda rows: grade_rows(self.task, rollouts, rows))
        return tuple(verdict for part in parts for verdict in part)

    def settings(self, rollouts: Rollouts) -> GrpoConfig:
        """The section grpo as it is in force for the update on these rollouts: coefficients that follow are set."""
        return settings_of(self.recipe.grpo, self.state.get("coefficients", {}), rollouts)

    def follow(self, settings: GrpoConfig, metrics: Mapping[str, float]) -> dict[str, float]:
        """Move what follows the policy, after its update: coefficients, by what the step measured, and a teacher.
        Returns the coefficients that were in force, as ``settings`` have them."""
        config = self.recipe.grpo
        if self.teacher is not None:
            decay = decay_at(self.recipe.consensus.decay, self.step, self.recipe.steps)
            self.teacher.follow(self.optimizer, decay)
        if levels := moved_levels(config, self.state.get("coefficients", {}), metrics):
            self.state["coefficients"] = levels
        return in_force(config, settings)

    @property
    def consensus(self) -> Mapping[str, list[str]]:
        """What the teacher of this run answers to each problem, by its id; empty where no reward asks for it."""
        return self._consensus.answers

    def begin_step(self) -> None:
        """Count the next step, and do what comes before its rollouts."""
        self.step += 1
        self._merge_back()
        self._ask_teacher()

    def _merge_back(self) -> None:
        """Move the weights towards the start if a guard has said stop at the last look; only with guards.merge_back."""
        rho = self.recipe.guards.merge_back
        if self.looks.take_alarm() and rho is not None and self._start is not None:
            adapted = self.policy.adapter is not None
            start = start_for_merge_back(self.optimizer) if adapted else dict(self._start.model.named_parameters())
            merge_back(self.optimizer, start, rho)

    def _ask_teacher(self) -> None:
        """Have a teacher that follows the policy answer the problems of the step under way; nothing without one."""
        if self._consensus.teacher is not None:
            prompts = self.prompts(self.step)
            with self.phase("consensus", tokens=self._consensus.tokens(len(prompts))):
                self._consensus.ask_teacher(self.step, prompts, self.callback.advance)

    def _settle_consensus(self, asked_by: Stop) -> None:
        """Have the initial policy answer what it has not answered yet of all steps' problems, if a reward asks."""
        if batches := self._consensus.pending():
            untrained = self._untrained_engine()
            with self.phase("consensus", tokens=self._consensus.tokens(sum(map(len, batches)))):
                self._consensus.settle(untrained, self.callback.advance, lambda: self._end_if_asked(asked_by))

    def ask_untrained(self, asked_by: Stop) -> None:
        """Before the first step: freeze the probe's reference, look, evaluate, and settle the consensus.

        Of a run that goes on, what is missing of it. Raises `NoConsensusError`, and `Interrupted` if a signal asks to
        stop meanwhile.
        """

        def progress(tokens: int) -> None:
            """No step is done that a checkpoint would have to keep: a signal need not wait."""
            self.callback.advance(tokens)
            self._end_if_asked(asked_by)

        self._freeze_reference(progress)
        if self.step == 0 and (seen := self.observe({}, progress)):
            self.log(seen)
        self._settle_consensus(asked_by)
        if self.state.get(_UNEVALUATED):
            self._evaluate_anew(None if self.ranks.size > 1 else progress)

    def _evaluate_anew(self, progress: Callable[[int], None] | None) -> None:
        """Make the evaluation that a signal broke off, and put its numbers into the line of its step."""
        metrics = self.evaluate(progress) | self._phases.take_seconds()
        line = self._log.amend(self.step, metrics)
        self._sinks.write(self.step, metrics)
        self._remember_best(self.ranks.agreed(metrics))
        del self.state[_UNEVALUATED]
        self.save_checkpoint()
        self.callback.logged(self.step, line)

    def _freeze_reference(self, progress: Callable[[int], None]) -> None:
        """Have the untrained policy answer the probe's prompts, if it has not."""
        if self.looks.settled:
            return
        with self.phase("reference", tokens=self.looks.reference_tokens):
            self.looks.settle(self._untrained_engine(), progress)

    def _untrained_engine(self) -> Engine:
        untrained = initial_policy(self.recipe, self.policy.device) if self.step else None
        return build_engine(self.recipe, untrained, self.ranks) if untrained else self.engine

    def _end_if_asked(self, asked_by: Stop) -> None:
        if signum := asked_by():
            broken_off = self.state.get(_UNEVALUATED)
            where = f"in the evaluation of step {self.step}" if broken_off else f"before step {self.step + 1}"
            raise Interrupted(signum, f"stopped {where}; go on with: ", resume_with(self.out))

    @property
    def ended(self) -> bool:
        """Whether no step is left to do: the last one is done, or a guard has stopped the run."""
        return self.step == self.recipe.steps or self.looks.stopped

    def observe(
        self,
        trained: Mapping[str, float],
        progress: Callable[[int], None] | None = None,
        *,
        asked_by: Stop | None = None,
    ) -> dict[str, float]:
        """Metrics of the look and the evaluation that are due. ``trained``: the metrics of the step, {} before all.
        ``progress`` is told of tokens as they come; None: the callback.

        With ``asked_by`` a signal breaks off the evaluation (`broken_off`), and a run that goes on makes it anew. Not
        of several ranks: one alone must not leave the others in it.
        """
        metrics: dict[str, float] = {}
        progress = progress or self.callback.advance
        if self.looks.due(self.step):
            with self.phase("probe", tokens=self.looks.look_tokens):
                metrics |= self.looks.look(self.step, trained, progress)
            if self.looks.renewal_due:
                with self.phase("reference", tokens=self.looks.reference_tokens + self.looks.look_tokens):
                    metrics |= self.looks.renew(progress)
        if self._evaluator.due(self.step, ended=self.ended):
            if asked_by is None or self.ranks.size > 1:
                return metrics | self.evaluate(progress)
            try:
                metrics |= self.evaluate(_stopped_by(asked_by, progress))
            except _BrokenOff as signal:
                self.state[_UNEVALUATED], self.broken_off = True, signal.number
        return metrics

    def evaluate(self, progress: Callable[[int], None] | None = None) -> dict[str, float]:
        """Metrics of the policy as it stands on the fixed evaluation problems: sampled, and (eval.greedy) greedy."""
        with self.phase("eval", tokens=self._evaluator.tokens):
            metrics, answers = self._evaluator.evaluate(progress or self.callback.advance)
        self._log.write_eval_answers(self.step, answers, self.recipe.log.eval_answers)
        self._log.write_eval_verdicts(self.step, answers)
        self._sinks.completions(self.step, answers, self.recipe.log.eval_answers)
        return metrics

    def log(self, metrics: dict[str, float], scored: Scored | None = None) -> None:
        """One line of metrics, to the log, the sinks and the callback; and the rollouts if they are due."""
        seconds = self._phases.take_seconds()
        metrics |= seconds
        if scored is not None:
            tokens = int(scored.rollouts.mask.sum())
            self.state["tokens"] += tokens
            speed = tokens / max(seconds["time/rollout"], 1e-9)
            metrics |= {"tokens_per_second/rollout": speed, "tokens/total": float(self.state["tokens"])}
            every = self.recipe.log.rollouts_every
            if every and self.step % every == 0:
                self._log.write_rollouts(self.step, scored)
            self._warn_of_drift(scored.rollouts, metrics["mismatch/mean"])
            self._taught |= metrics["advantage/zero_groups"] < 1.0
        metrics |= {"time": time.monotonic() - self._started}
        if (peak := peak_memory_gb(self.policy.device)) is not None:
            metrics |= {"memory/peak_gb": peak}
        self._log.write(self.step, metrics)
        self._sinks.write(self.step, metrics)
        self._remember_best(self.ranks.agreed(metrics))
        self.callback.logged(self.step, metrics)

    def checkpoint_due(self) -> bool:
        """At the end, every so many steps, and at a new high of the metric of checkpoint.best or of the probe's."""
        every = self.recipe.checkpoint.every
        scheduled = self.ended or (every > 0 and self.step % every == 0)
        return scheduled or self.step in self._kept_steps()

    def _kept_steps(self) -> set[int]:
        best = self.state["best"]
        return {step for step in (best and best["step"], self.looks.chosen) if step is not None}

    def save_checkpoint(self) -> None:
        """Write weights, optimizer and counters; drop the checkpoints that are no longer kept."""
        self.state["seconds"] = time.monotonic() - self._started
        self._log.check_place()
        weights, moments = trained_weights(self.policy, self.optimizer), self.optimizer.moments()
        self.ranks.told(lambda: self._write_checkpoint(weights, moments))

    def _write_checkpoint(self, weights: dict[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        root = self.out / "checkpoints"

        def write_model(folder: Path) -> None:
            """What is trained, and the teacher's weights beside it, if there is one."""
            write_masters(folder, self.policy, weights)
            if self.teacher is not None:
                self.teacher.save(folder)

        save_checkpoint(root, self.step, write_model=write_model, tensors=moments, state=self.state)
        self._log.note_checkpoint(self.step)
        self.looks.keep()
        prune(root, self.recipe.checkpoint.keep_last, self._kept_steps())

    def finish(self) -> Path:
        """Write final/: the last step's policy or, with last/ beside it, that of the look that guards.restore chose."""
        if not self._taught:
            _LOG.warning(
                "nothing was learned: in every step all completions of each prompt were worth the same to the reward; "
                "take another reward, easier problems, or more completions (rollout.group_size)"
            )
        wanted, best = self.recipe.checkpoint.best, self.state["best"]
        if wanted is not None and (best is None or best["metric"] != wanted):
            _LOG.warning("no best checkpoint was kept: no step had a number for %s (checkpoint.best)", wanted)
        return self.ranks.told(self._write_final)

    def _write_final(self) -> Path:
        self._log.check_place()
        chosen = self.looks.chosen
        policy, root = self.policy, self.out / "checkpoints"
        at: Path | None = root / checkpoint_name(self.step)
        shutil.rmtree(self.out / LAST, ignore_errors=True)  # of an earlier end
        if chosen is not None and chosen != self.step:
            policy = policy_at(self.recipe, root, chosen, self.policy.device)
            write_model(self.out, LAST, self.policy, at)
            at = root / checkpoint_name(chosen) if chosen else None  # step 0 has no checkpoint
        final = write_model(self.out, FINAL, policy, at)
        verdict = self.looks.verdict(self.step)
        if verdict or self.recipe.probe.every:  # None takes back what was said of other prompts
            self._log.note(selected=verdict)
        return final

    def show_card(self, card: Path) -> None:
        """Pass the evidence that was written beside the final model on to the mirrors."""
        self._sinks.card(self.step, card.read_text("utf-8"))

    def _warn_of_drift(self, rollouts: Rollouts, mean: float) -> None:
        if comparable(rollouts) and self._guard.leaves_limit(mean):
            warnings.warn(
                f"step {self.step}: mismatch/mean is {mean:.2g} nats a token, more than rollout.max_mismatch "
                f"({self._guard.limit:g}): sampler and trainer drift apart; policy.dtype=float32 tells whether it is "
                "rounding",
                RuntimeWarning,
                stacklevel=3,
            )

    def _remember_best(self, metrics: Mapping[str, float | int]) -> None:
        name, best = self.recipe.checkpoint.best, self.state["best"]
        value = metrics.get(name or "", math.nan)
        # Values of two metrics are not compared: a resumed run may have been told to go by another one.
        known = best is not None and best["metric"] == name
        if self.step > 0 and math.isfinite(value) and (not known or value > best["value"]):
            self.state["best"] = {"step": self.step, "value": value, "metric": name}


class _BrokenOff(Exception):  # noqa: N818  (a request, not an error)
    """A signal, of this number, came in the middle of an evaluation."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stopped_by(asked_by: Stop, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Progress that raises `_BrokenOff` as soon as a signal is there."""

    def told(tokens: int) -> None:
        progress(tokens)
        if signum := asked_by():
            raise _BrokenOff(signum)

    return told
