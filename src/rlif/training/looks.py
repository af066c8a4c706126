"""The looks of a run at its probe: when they are due, what the guards say of them, and which step they choose.

All they leave behind stands in the run's state, which every checkpoint holds: a run that is resumed goes on as if it
had never stopped. A run without a probe has looks that are never due.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlif.errors import RlifError
from rlif.monitoring.guards import (
    GUARDS,
    LABELLED,
    LEVELS,
    Alarm,
    best_by_labels,
    best_look,
    can_choose,
    examine,
    outgrown,
    worst,
)
from rlif.monitoring.labelled import LABELLED_KEY, LabelledProbe
from rlif.monitoring.probe import Probe, kept_reference
from rlif.monitoring.record import ProbeRecord
from rlif.monitoring.reference import Reference, ReferenceSettings, reference_path
from rlif.rewards.registry import needs_labels
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import prompts_digest
from rlif.runs.layout import LOOKS, PROBE
from rlif.tasks.base import digest
from rlif.training.probe_problems import low_temperature
from rlif.training.setup import Setup
from rlif.types import Sampling
from rlif.utils.atomic_io import make_folder, write_whole, writing


def _by_agreement(records: Sequence[ProbeRecord]) -> ProbeRecord | None:
    return best_look(records) if can_choose(records) else None


def _by_labels(records: Sequence[ProbeRecord]) -> ProbeRecord | None:
    return best_by_labels(records)


CHOICES: Mapping[str, tuple[str, Callable[[Sequence[ProbeRecord]], ProbeRecord | None]]] = {
    "agreement": ("probe/agreement", _by_agreement),
    "labels": (LABELLED, _by_labels),
}
"""guards.choose_by → what the checkpoint that is restored has the most of, and how it is found: None where the looks
cannot tell."""


ZERO_GROUPS = "advantage/zero_groups"
"""What a guard reads of the training step before a look."""


class Looks:
    """When a run is looked at, and what comes of it."""

    def __init__(self, setup: Setup, out: Path) -> None:
        recipe = setup.recipe
        self._every, self._last, self._guards = recipe.probe.every or 0, recipe.steps, recipe.guards
        self._setup, self._folder, self._ranks = setup, out / PROBE, setup.ranks
        self._labelled = bool(needs_labels(recipe.reward, setup.rewards))  # guards read nothing that labels made
        self._settings = ReferenceSettings(
            sampling=Sampling.from_config(recipe.rollout),
            low_temperature=low_temperature(recipe),
            samples=recipe.probe.reference_samples,
            seed=recipe.seed,
            same=setup.same,
        )
        self._labels = LabelledProbe(
            setup.engine,
            setup.prompts.task,
            setup.labelled_prompts,
            self._settings.sampling,
            samples=recipe.probe.samples,
            seed=recipe.seed,
        )
        self._state: dict[str, Any] = setup.state.setdefault("probe", {})
        for key, value in _nothing_seen().items():
            self._state.setdefault(key, value)  # a run may have begun before there was one of them
        self._probe: Probe | None = None
        if self._every:
            self._forget_other_questions()
            if known := self._ranks.told(self._known):
                self._open(known)

    @property
    def settled(self) -> bool:
        """Whether nothing has to be asked before the first look: the reference is there, or nobody looks."""
        return not self._every or self._probe is not None

    @property
    def reference_tokens(self) -> int:
        """The most tokens that `settle` draws, and `renew` beside its look."""
        answers = 2 * self._settings.samples + 1
        return len(self._setup.probe_prompts) * answers * self._settings.sampling.max_new_tokens

    @property
    def look_tokens(self) -> int:
        """The most tokens that a look draws."""
        samples = self._setup.recipe.probe.samples
        prompts = len(self._setup.probe_prompts) + len(self._setup.labelled_prompts)
        return prompts * samples * self._settings.sampling.max_new_tokens

    def settle(self, untrained: Engine, progress: Callable[[int], None]) -> None:
        """Have the untrained policy's answers frozen: they are kept in the run's folder, under their digest.

        Raises `RlifError` if they were renewed and are gone: the policy that gave them is no longer there.
        """
        if renewed := self._state["renewed"]:
            path = reference_path(self._folder, str(self._state["reference"]))
            raise RlifError(f"{path}: the answers that were frozen after step {renewed[-1]} are gone; {self._remedy}")
        self._open(self._frozen(untrained, progress))

    def _frozen(self, engine: Engine, progress: Callable[[int], None]) -> Reference:
        task, prompts = self._setup.prompts.task, self._setup.probe_prompts
        told = self._ranks.told
        return kept_reference(self._folder, engine, task, prompts, self._settings, progress=progress, told=told)

    def due(self, step: int) -> bool:
        """Before the first step, after every so many, and at the end."""
        return self._every > 0 and (step % self._every == 0 or step == self._last)

    def look(self, step: int, trained: Mapping[str, float], progress: Callable[[int], None]) -> dict[str, float]:
        """Look at the policy and ask the guards; returns what is logged. ``trained``: the metrics of the step."""
        assert self._probe is not None, "not settled"
        seen = self._ranks.agreed(self._probe.measure(step, progress))
        read = ZERO_GROUPS in trained and not self._labelled
        also = self._ranks.agreed({ZERO_GROUPS: trained[ZERO_GROUPS]} if read else {})
        by_labels = self._ranks.agreed(self._labels.measure(progress))
        self._probe.records[-1] = replace(seen, metrics={**seen.metrics, **by_labels, **also})  # guards read ``also``
        self._state["records"].append(self._probe.records[-1].as_json())
        alarms = self._ranks.agreed(examine(self._probe.records))
        for name, alarm in alarms.items():
            self._tell(step, name, alarm)
        if worst(alarms) == "stop":
            self._state["alarm"] = True
        levels = {name: alarms[name].level if name in alarms else "ok" for name in GUARDS}
        told = {f"guard/{name}": float(LEVELS.index(level)) for name, level in levels.items()}
        return {**seen.metrics, **by_labels, **told, **self._renewals()}

    @property
    def renewal_due(self) -> bool:
        """Whether `renew` is to follow the last look: it outgrew the frozen answers, and probe.refresh allows it."""
        allowed = len(self._state["renewed"]) < self._setup.recipe.probe.refresh
        return allowed and self._probe is not None and outgrown(self._probe.records)

    def renew(self, progress: Callable[[int], None]) -> dict[str, float]:
        """Freeze the answers of the policy as it stands, and hold later looks against these; returns what is logged."""
        assert self._probe is not None, "not settled"
        before = self._probe.records[-1].metrics.items()
        also = {key: value for key, value in before if key == ZERO_GROUPS or key.startswith(LABELLED_KEY)}
        reference = self._frozen(self._setup.engine, progress)
        seen = self._ranks.agreed(self._probe.renew(reference, progress))
        self._probe.records[-1] = replace(seen, metrics={**seen.metrics, **also})
        self._state["records"].append(self._probe.records[-1].as_json())
        self._note(reference)
        self._state["renewed"].append(seen.step)
        warnings.warn(
            f"step {seen.step}: the policy gives other answers than the frozen ones, which are as likely under the "
            "start; its own are frozen in their place",
            RuntimeWarning,
            stacklevel=2,
        )
        return self._renewals()

    def _renewals(self) -> dict[str, float]:
        """Logged where answers may be renewed at all."""
        allowed = self._setup.recipe.probe.refresh > 0
        return {"probe/renewals": float(len(self._state["renewed"]))} if allowed else {}

    @property
    def stopped(self) -> bool:
        """Whether a guard has ended the run."""
        return self._guards.stop and self._guards.merge_back is None and self._state["stopped"] is not None

    def take_alarm(self) -> bool:
        """Whether a guard has said stop at the last look, told once: what is to be done is done in the next step."""
        return bool(self._state.pop("alarm", False))

    @property
    def chosen(self) -> int | None:
        """The step whose weights final/ is to hold; None: the last one's, also where the looks cannot tell."""
        return None if (found := self._best()) is None else found.step

    def _best(self) -> ProbeRecord | None:
        records = [ProbeRecord.from_json(record) for record in self._state["records"]]
        if not (self._every and self._guards.restore and records):
            return None
        return CHOICES[self._guards.choose_by][1](records)

    def verdict(self, step: int) -> dict[str, Any] | None:
        """What came of it, for run.json, when the run has ended after ``step``; None without a look."""
        if not (records := self._state["records"]):
            return None
        criterion, best = CHOICES[self._guards.choose_by][0], self._best()
        chosen = step if best is None else best.step
        value = next((one["metrics"].get(criterion) for one in reversed(records) if one["step"] == chosen), None)
        looks = len({one["step"] for one in records})
        found = {"step": chosen, "criterion": criterion, "value": value, "looks": looks, "last": step}
        found["chosen"] = best is not None  # else it is the last step's, as nobody chose or the looks cannot tell
        renewed = {"renewed": self._state["renewed"]} if self._state["renewed"] else {}
        return found | {"stopped": self._state["stopped"]} | renewed

    def keep(self) -> None:
        """Write what was seen into the folder, for whoever tries other rules on it (`rlif.experiments.stop_rules`)."""
        if records := self._state["records"]:
            path = self._folder / LOOKS
            with writing(path, "free some space; the looks are in the checkpoint's state, too"):
                make_folder(self._folder)
                write_whole(path, json.dumps(records, allow_nan=False).encode())

    def _tell(self, step: int, name: str, alarm: Alarm) -> None:
        """Each word of a guard once: a warning, and the first that says stop is kept."""
        if alarm.level == "stop" and self._state["stopped"] is None:
            self._state["stopped"] = {"step": step, "guard": name, "reason": alarm.reason}
        if (said := f"{name}: {alarm.level}") not in self._state["said"]:
            self._state["said"].append(said)
            warnings.warn(f"step {step}: {name}: {alarm.reason}", RuntimeWarning, stacklevel=3)

    def _open(self, reference: Reference) -> None:
        setup = self._setup
        samples, start = setup.recipe.probe.samples, setup.start if setup.recipe.probe.start else None
        task, prompts = setup.prompts.task, setup.probe_prompts
        self._note(reference)
        renewals = len(self._state["renewed"])
        self._probe = Probe(
            setup.engine,
            task,
            prompts,
            reference,
            self._settings,
            samples=samples,
            start=start,
            renewals=renewals,
            budget=setup.recipe.grpo.micro_batch_tokens,
            split=setup.ranks.split,
        )
        self._probe.records += [ProbeRecord.from_json(record) for record in self._state["records"]]

    def _note(self, reference: Reference) -> None:
        """What is held against from here on: which file, and what stands in it."""
        self._state |= {"reference": reference.digest, "sha256": reference.checksum}

    def _known(self) -> Reference | None:
        """The reference that this run has had made, if it is still there. Raises `RlifError` if it has changed."""
        path = reference_path(self._folder, str(self._state["reference"]))
        if not self._state["reference"] or not path.is_file():
            return None
        found, asked = Reference.read(path, self._remedy), [prompt.id for prompt in self._setup.probe_prompts]
        if self._state["sha256"] not in (None, found.checksum):
            raise RlifError(f"{path}: these are not the answers that were frozen (another sha256); {self._remedy}")
        return found if [answer.prompt_id for answer in found.answers] == asked else None

    @property
    def _remedy(self) -> str:
        """What to do about a reference that is damaged or gone: only the untrained policy can be asked again."""
        if not self._state["renewed"]:
            return "delete it to make it anew"
        return (
            "the policy that gave them is no longer there: restore the file from a copy, or set probe.every to 0 in "
            "the run's recipe.yaml to go on without looks"
        )

    def _forget_other_questions(self) -> None:
        """Drop what was seen of prompts that the probe no longer has, with or without labels: nothing compares."""
        setup, state = self._setup, self._state
        prompts = prompts_digest(setup.probe_prompts)
        labels = digest(tuple(prompt.problem for prompt in setup.labelled_prompts))
        if state["prompts"] not in (None, prompts):
            state.clear()
            state |= _nothing_seen()
            _warn_of_others("prompts are others", "the untrained policy answers them anew, what guards saw is dropped")
        elif state["labels"] not in (None, labels) and any([*map(_without_labels, state["records"])]):
            _warn_of_others("labelled problems are others", "what was seen of the old ones is dropped")
        state |= {"prompts": prompts, "labels": labels}


def _nothing_seen() -> dict[str, Any]:
    """The state of a run that was not looked at yet. ``sha256`` is that of the reference, ``prompts`` and ``labels``
    are digests of what was asked; null where a run of before did not note it."""
    empty: dict[str, Any] = {"reference": None, "records": [], "said": [], "stopped": None, "renewed": []}
    return empty | {"sha256": None, "prompts": None, "labels": None}


def _without_labels(record: dict[str, Any]) -> bool:
    """Take out of a look what labels made; whether there was any."""
    seen = record["metrics"]
    record["metrics"] = {key: value for key, value in seen.items() if not key.startswith(LABELLED_KEY)}
    return len(record["metrics"]) < len(seen)


def _warn_of_others(what: str, done: str) -> None:
    warnings.warn(f"the probe's {what} than at the looks so far: {done}", RuntimeWarning, stacklevel=4)
