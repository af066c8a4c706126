"""Callbacks for TRL: a probe that looks at the policy through unlabelled prompts, and a guard that acts on it.

A look's prompts are split over the processes, its completions gathered; the first process alone says what was seen and
what is to be done, and tells the others. To stop on one process only would hang the rest.

`rlif.monitoring` says what is measured and when a fall is one; docs/keep-the-gain.md how well that works.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback

from rlif.config import SimilarityConfig
from rlif.errors import RlifError, expect
from rlif.integrations.trl_batch import joined, sampling_of, tokenized, unbound
from rlif.integrations.trl_scoring import check_layout, gathered_copy, is_sharded
from rlif.model.in_training import policy_of, sampling_mode
from rlif.model.policy import Policy
from rlif.monitoring.guards import Alarm, best_look, can_choose, examine, worst
from rlif.monitoring.probe import Probe, distinct_prompts, freeze
from rlif.monitoring.record import ProbeRecord
from rlif.monitoring.reference import Reference, ReferenceSettings, reference_digest, reference_path
from rlif.monitoring.sameness import BY_READING, Sameness, sameness
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import check_context
from rlif.tasks.problems import task_of
from rlif.types import Prompt, Rollouts, Sampling
from rlif.utils.atomic_io import make_folder, write_whole, writing

T = TypeVar("T")
LOOKS = "looks.json"


class SharedEngine(Engine):
    """An engine whose prompts are split over the processes; each gets all completions, in the order of the prompts.

    Every process has to call it, with the same arguments.
    """

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        sampling: Sampling,
        key: Key,
        progress: Callable[[int], None] | None = None,
        first_sample: Sequence[int] | None = None,
    ) -> Rollouts:
        """As `Engine.sample`."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        check_context(self.policy, prompts, sampling.max_new_tokens)  # on every process, or the others would wait
        here, of = PartialState().process_index, PartialState().num_processes
        size = -(-len(prompts) // of)
        own = slice(here * size, (here + 1) * size)
        drawn = []
        if len(prompts[own]):
            firsts = None if first_sample is None else first_sample[own]
            options: dict[str, Any] = {"group_size": group_size, "sampling": sampling, "key": key}
            drawn = [super().sample(prompts[own], **options, progress=progress, first_sample=firsts)]
        return joined(gather_object(drawn))


def told(make: Callable[[], T]) -> T:
    """What the first process makes, on every process; each has to ask. What it raises is raised on all of them."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = make()
        except RlifError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise RlifError(found[1])
    value: T = found[0]
    return value


class AgreementProbe(TrainerCallback):
    """Looks at the policy through prompts that it does not train on, beside what it answered before training.

    Before the first step the policy answers every prompt many times; then, every so many steps, a few times more
    (`rlif.monitoring.probe`). No label is read. The records, their reference answers and nothing else lie in
    ``output_dir/probe``; a resumed run goes on with them. The numbers (``probe/*``) stand in the trainer's log history;
    a reward that is given this probe sends them to the trackers, one step later.

    Args:
        prompts: texts or conversations, as in the dataset's column ``prompt``; 64 say enough, fewer than 18 cannot
            show a fall.
        format: how an answer is read (docs/grading.md).
        every: steps between two looks.
        samples: completions of each prompt at a look.
        reference_samples: completions before training, at the sampling's temperature and at a low one.
        start: the untrained policy, frozen, as a second witness (`rlif.monitoring.guards`); None: do without.
        similarity: for answers in sentences (``format="text"``): ``{"model": ENCODER, "least": 0.85}``, as
            ``probe.similarity`` of a recipe; None: answers are the same if they read alike.
        folder: None: ``output_dir/probe``.

    Raises `RlifError` for prompts that do not fit, and for a resumed run whose records are gone or whose frozen answers
    are others.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        *,
        format: str = "boxed",
        every: int = 10,
        samples: int = 4,
        reference_samples: int = 16,
        start: Policy | None = None,
        similarity: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        if not len(prompts) or every < 1:
            raise RlifError("AgreementProbe: give it at least one prompt, and a whole number of steps as `every`")
        self._asked, self._format, self._every = list(prompts), format, every
        self._samples, self._reference_samples, self._start, self._folder = samples, reference_samples, start, folder
        self._similarity = None if similarity is None else _similarity(similarity)
        self._same: Sameness = BY_READING
        self._probe: Probe | None = None
        self._policy: Policy | None = None
        self._copy: Any = None
        self._unlogged: dict[str, float] = {}
        self._state: Any = None
        self._writes: Path | None = None

    @property
    def records(self) -> list[ProbeRecord]:
        """The looks so far."""
        return [] if self._probe is None else self._probe.records

    @property
    def reference(self) -> Reference | None:
        """The frozen answers; None before training."""
        return None if self._probe is None else self._probe.reference

    def take_unlogged(self) -> dict[str, float]:
        """The numbers of the last look, once."""
        taken, self._unlogged = self._unlogged, {}
        return taken

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Freeze the reference and look at the start; of a resumed run read what was there. Once in each training."""
        if self._state is state:
            return
        self._state = state
        policy = self._adopt(given["model"], given["processing_class"])
        options, sampling = getattr(args, "chat_template_kwargs", None), sampling_of(args)
        prompts = distinct_prompts(tokenized(policy, self._asked, options))
        task = task_of([prompt.problem for prompt in prompts], format=self._format)
        low = min(0.4, sampling.temperature / 2.0)
        same = self._same = sameness(self._similarity, policy.device, called="AgreementProbe: similarity")
        settings = ReferenceSettings(sampling, low, self._reference_samples, args.seed, same)
        folder = Path(args.output_dir) / "probe" if self._folder is None else Path(self._folder)
        with sampling_mode(policy.model):
            engine = SharedEngine(policy)
            if state.global_step:
                reference, records = told(lambda: _read(folder, state.global_step, self._compared(same)))
            else:
                digest = told(lambda: reference_digest(policy, task, prompts, settings))
                path = reference_path(folder, digest)
                known = told(lambda: Reference.read(path) if path.exists() else None)
                frozen = known or freeze(engine, task, prompts, settings)
                reference, records = told(lambda: frozen), []
        self._probe = Probe(engine, task, prompts, reference, settings, samples=self._samples, start=self._start)
        self._probe.records += records
        self._writes = folder if state.is_world_process_zero else None
        if self._writes is not None:
            reference.write(folder)
        self.look(state, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Look, if it is time."""
        self.look(state, given["model"])

    def look(self, state: Any, model: Any) -> ProbeRecord | None:
        """The look at this step, made now unless it was made before; None where none is due."""
        step = state.global_step
        if self.records and self.records[-1].step == step:
            return self.records[-1]
        if self._probe is None:
            raise unbound("AgreementProbe", "callbacks=[probe]")
        if step % self._every and step != state.max_steps:
            return None
        policy = self._adopt(model, None)
        with sampling_mode(policy.model):
            seen = self._probe.measure(step)
        self._probe.records[-1] = seen = told(lambda: seen)  # a grader that ran out of time saw less than another
        self._unlogged = dict(seen.metrics)
        state.log_history.append({"step": step, **seen.metrics})
        if self._writes is not None:
            _write(self._writes, self._probe, self._compared(self._same))
        return seen

    def _compared(self, same: Sameness) -> list[str | None]:
        """By what answers are held beside each other."""
        return [self._format, same.digest]

    def _adopt(self, model: Any, tokenizer: Any) -> Policy:
        """The policy that is looked at: the model itself, or this rank's copy of one that is sharded, filled anew."""
        check_layout(model)
        if is_sharded(model):
            model = self._copy = gathered_copy(model, self._copy)
        if self._policy is None:
            self._policy = policy_of(model, tokenizer)
        return self._policy


def _similarity(given: Mapping[str, Any]) -> SimilarityConfig:
    expect(given, Mapping, "AgreementProbe: similarity", "a mapping of model and least")
    try:
        return SimilarityConfig(**given)
    except RlifError as error:
        raise RlifError(f"AgreementProbe: similarity: {error}") from None


def _write(folder: Path, probe: Probe, compared: list[str | None]) -> None:
    frozen = {"reference": probe.reference.digest, "sha256": probe.reference.checksum, "compared": compared}
    content = {**frozen, "records": [record.as_json() for record in probe.records]}
    with writing(folder / LOOKS, "free some space, or choose another folder"):
        make_folder(folder)
        write_whole(folder / LOOKS, json.dumps(content, allow_nan=False).encode())


def _read(folder: Path, step: int, compared: list[str | None]) -> tuple[Reference, list[ProbeRecord]]:
    """What a run has seen until a step, from which it is resumed."""
    path = folder / LOOKS
    try:
        content = json.loads(path.read_bytes())
        records = [ProbeRecord.from_json(record) for record in content["records"]]
        reference = Reference.read(reference_path(folder, content["reference"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RlifError(
            f"{path}: a run that is resumed needs its looks ({type(error).__name__}); restore the folder, or resume "
            "without the probe"
        ) from error
    if content.get("sha256") not in (None, reference.checksum):  # an older rlif did not note it
        raise RlifError(
            f"{reference_path(folder, reference.digest)}: these are not the answers that were frozen (another sha256); "
            "restore the folder, or resume without the probe"
        )
    if content.get("compared") not in (None, compared):
        raise RlifError(
            f"{path}: the looks so far were compared in another way; give AgreementProbe the format and similarity "
            "that the run began with"
        )
    return reference, [record for record in records if record.step <= step]


class CollapseGuard(TrainerCallback):
    """Ends training when the probe says that the policy has left what it knew, and keeps the best checkpoint.

    The best is the look that agrees most with the frozen answers. Its checkpoint is saved at once, whatever
    ``save_strategy`` says, and named in ``state.best_model_checkpoint``, which ``save_total_limit`` spares.

    Args:
        probe: also when it is among the callbacks itself.
        stop: end training at a guard's stop (`rlif.monitoring.guards.GUARDS`); False: warn.
        keep_best: save the best.

    Attributes:
        stopped: step, guard and reason of the first stop; None so far.
        best_step: the step of the best look; 0: the model as it came; None: the looks do not say enough.

    Raises `RlifError` if TRL is asked to choose the best by another number, too.
    """

    def __init__(self, probe: AgreementProbe, *, stop: bool = True, keep_best: bool = True) -> None:
        self.probe, self._stop, self._keep_best = probe, stop, keep_best
        self.stopped: dict[str, Any] | None = None
        self.best_step: int | None = None
        self._said: set[tuple[str, str]] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin the probe where nobody else does."""
        if self._keep_best and args.metric_for_best_model is not None:
            raise RlifError(
                f"CollapseGuard: it chooses the best checkpoint, and so does metric_for_best_model="
                f"{args.metric_for_best_model!r}; leave that out (and load_best_model_at_end), or set keep_best=False"
            )
        self.probe.on_train_begin(args, state, control, **given)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        """Look, if it is time, and do what the first process decides."""
        if self.probe.look(state, given["model"]) is None:
            return control
        alarms, best = told(lambda: decide(self.probe.records))
        self.best_step = best
        for name, alarm in alarms.items():
            self._tell(state, name, alarm)
        if self._stop and worst(alarms) == "stop":
            control.should_training_stop = True
        if self._keep_best and best == state.global_step:
            control.should_save = True
            # Read by the trainer when it thins out checkpoints, in this very step.
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{best}")
            state.best_global_step = best
            state.best_metric = self.probe.records[-1].metrics.get("probe/agreement")
        return control

    def _tell(self, state: Any, name: str, alarm: Alarm) -> None:
        """Each word of a guard once, by the first process; the first that says stop is kept."""
        if alarm.level == "stop" and self.stopped is None:
            self.stopped = {"step": state.global_step, "guard": name, "reason": alarm.reason}
        if (name, alarm.level) not in self._said:
            self._said.add((name, alarm.level))
            if state.is_world_process_zero:
                warnings.warn(f"step {state.global_step}: {name}: {alarm.reason}", RuntimeWarning, stacklevel=4)


def decide(records: Sequence[ProbeRecord]) -> tuple[dict[str, Alarm], int | None]:
    """What the guards say after the last look, and the step of the best one; None where that cannot be told."""
    return examine(records), best_look(records).step if can_choose(records) else None
