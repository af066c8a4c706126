"""The probe: unlabelled prompts kept from training, looked at again and again beside what the untrained policy said.

Before training: ``reference = kept_reference(folder, engine, task, prompts, settings)``, made once. At a look:
``record = probe.measure(step)``, whose ``metrics`` go into the log and which `rlif.monitoring.guards` read. Every look
draws with the same random numbers (`PROBE_KEY`), so that two looks differ by the policy alone; the reference is drawn
with others, or the first look would agree with votes that it had itself cast.

A run does all this by `rlif.training.looks`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rlif.analysis.paired import paired
from rlif.errors import Argument, RlifError
from rlif.model.logprobs import signals_of
from rlif.model.policy import Policy
from rlif.monitoring.measurement import Look, answer_starts, judge, measure
from rlif.monitoring.record import ProbeRecord
from rlif.monitoring.reference import (
    Answer,
    Reference,
    ReferenceSettings,
    Source,
    choose_reference,
    reference_digest,
    reference_path,
    trust_numbers,
)
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.tasks.base import Task
from rlif.types import Prompt, Rollouts
from rlif.utils.splitting import Split, unsplit

PROBE_KEY = "probe"
"""The step of the `Key` with which every look draws: common random numbers."""


def distinct_prompts(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts without those whose tokens stood before: one voice each.

    Raises `RlifError` for two prompts of one id that differ: they would draw with the same random numbers.
    """
    by_tokens = {prompt.token_ids: prompt for prompt in reversed(prompts)}
    kept = tuple(prompt for prompt in prompts if by_tokens[prompt.token_ids] is prompt)
    ids = [prompt.id for prompt in kept]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise RlifError(Argument("prompts"), f": two different ones are called {twice}; give each an id of its own")
    return kept


def freeze(
    engine: Engine,
    task: Task,
    prompts: Sequence[Prompt],
    settings: ReferenceSettings,
    *,
    on_draw: Callable[[Source, Rollouts], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """Ask the policy, as it stands, for its reference answers (`choose_reference`) to distinct prompts.

    ``on_draw`` is handed each source's completions, which are not kept here. The task must be able to judge a problem
    without a label. Raises `RlifError` for a low temperature that is not below that of the sampling, and where
    `Engine.sample` does.
    """
    if not 0.0 < settings.low_temperature < settings.sampling.temperature:
        raise RlifError(
            Argument("low_temperature"),
            f": {settings.low_temperature:g} does not lie between 0 and the sampling's temperature "
            f"({settings.sampling.temperature:g}); give one that does",
        )
    _check_distinct(prompts)
    draws: dict[Source, list[list[Answer]]] = {}
    tokens, length, keys = 0, 0.0, settings.same.keys
    for source, (temperature, samples) in _sources(settings).items():
        sampling = dataclasses.replace(settings.sampling, temperature=temperature)
        key = Key(settings.seed, f"{PROBE_KEY}/reference/{source}")
        rollouts = engine.sample(prompts, group_size=samples, sampling=sampling, key=key, progress=progress)
        draws[source] = _read(task, rollouts)
        if on_draw is not None:
            on_draw(source, rollouts)
        tokens += int(rollouts.mask.sum())
        length = float(rollouts.lengths.double().mean()) if source == "low" else length
    answers = choose_reference([prompt.id for prompt in prompts], draws, keys)
    digest = reference_digest(engine.policy, task, prompts, settings)
    return Reference(digest, answers, trust_numbers(answers, draws, keys), length, tokens)


def kept_reference(
    folder: Path,
    engine: Engine,
    task: Task,
    prompts: Sequence[Prompt],
    settings: ReferenceSettings,
    *,
    progress: Callable[[int], None] | None = None,
    told: Callable[[Callable[[], Any]], Any] = lambda make: make(),
) -> Reference:
    """As `freeze`, made once: kept in a folder under its digest, and read there the next time.

    ``engine`` must sample from the untrained policy: a run that is resumed reads ``reference_path(folder, digest)``.
    ``told`` does what touches the folder: where several processes sample together, in the one that owns it.
    """
    path = reference_path(folder, reference_digest(engine.policy, task, prompts, settings))
    known: Reference | None = told(lambda: Reference.read(path) if path.exists() else None)
    if known is not None:
        return known
    reference = freeze(engine, task, prompts, settings, progress=progress)
    told(lambda: reference.write(folder))
    return reference


def _sources(settings: ReferenceSettings) -> dict[Source, tuple[float, int]]:
    return {
        "sampled": (settings.sampling.temperature, settings.samples),
        "low": (settings.low_temperature, settings.samples),
        "greedy": (0.0, 1),
    }


def _read(task: Task, rollouts: Rollouts) -> list[list[Answer]]:
    verdicts = judge(task, rollouts, [None] * len(rollouts.prompts))
    read = [
        Answer(verdict.extracted, reason != "length")
        for verdict, reason in zip(verdicts, rollouts.stop_reasons, strict=True)
    ]
    return [read[i : i + rollouts.group_size] for i in range(0, len(read), rollouts.group_size)]


class Probe:
    """Looks at a policy through prompts that it does not train on, against a frozen reference.

    ``records`` are the looks so far, for the guards; who resumes a run puts the old ones back.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        prompts: Sequence[Prompt],
        reference: Reference,
        settings: ReferenceSettings,
        *,
        samples: int = 4,
        start: Policy | None = None,
        renewals: int = 0,
        budget: int | None = None,
        split: Split = unsplit,
    ) -> None:
        """``engine`` samples from the policy that trains, ``start`` is a frozen copy of what it was (None: off).

        ``settings`` are those that the reference was made with; a look draws ``samples`` completions a prompt as they
        are drawn in training. ``renewals``: how often the reference had been renewed before. ``start`` is shown the
        completions in passes of ``budget`` tokens (None: what suits the device), by whoever takes part in ``split``.

        Raises `RlifError` if the reference is of other prompts.
        """
        _check_distinct(prompts)
        _check_same_prompts(prompts, reference)
        self.reference, self.records, self.renewals = reference, list[ProbeRecord](), renewals
        self._engine, self._task, self._prompts, self._start = engine, task, tuple(prompts), start
        self._budget, self._split, self._same = budget, split, settings.same
        self._sampling, self._samples, self._key = settings.sampling, samples, Key(settings.seed, PROBE_KEY)

    def measure(self, step: int, progress: Callable[[int], None] | None = None) -> ProbeRecord:
        """Look at the policy as it stands, and remember what was seen."""
        rollouts = self._engine.sample(
            self._prompts, group_size=self._samples, sampling=self._sampling, key=self._key, progress=progress
        )
        frozen = self.reference.answers
        verdicts = judge(self._task, rollouts, [one.answer for one in frozen], self._same)
        seen = Look(rollouts, verdicts, frozen, same=self._same)
        if self._start is not None:
            seen = dataclasses.replace(
                seen,
                start_logprobs=start_logprobs(self._start, rollouts, self._budget, self._split),
                answer_starts=answer_starts(self._engine.policy, rollouts, verdicts, self._split),
            )
        record = dataclasses.replace(measure(seen, step), renewals=self.renewals)
        first = next((one for one in self.records if one.renewals == self.renewals), None)
        if first is not None:
            record = dataclasses.replace(record, metrics={**record.metrics, **change(first, record)})
        self.records.append(record)
        return record

    def renew(self, reference: Reference, progress: Callable[[int], None] | None = None) -> ProbeRecord:
        """Hold the policy against these frozen answers from here on; they are those of the policy as it stands.

        The last look is taken once more (the same completions, for the random numbers are the same): against the new
        answers it is the first of the looks to come. Raises `RlifError` if the reference is of other prompts.
        """
        _check_same_prompts(self._prompts, reference)
        self.reference, self.renewals = reference, self.renewals + 1
        return self.measure(self.records[-1].step, progress)


def start_logprobs(
    start: Policy, rollouts: Rollouts, budget: int | None = None, split: Split = unsplit
) -> Float[Tensor, "row tok"]:
    """ln π_start of each completion token at temperature 1, nats, 0 where masked; on the CPU. ``budget``: tokens in one
    forward pass, as in an update."""
    return signals_of(start, rollouts, range(rollouts.n_rows), budget, split).logprob


def change(first: ProbeRecord, now: ProbeRecord) -> dict[str, float]:
    """Agreement less that of the first look, with its 95 % interval, paired over prompts."""
    before, after = (np.array(record.counts["agreement"]) / record.samples for record in (first, now))
    if not len(before):
        return {}
    found = paired(before, after)
    values = {"change": found.difference, "change_low": found.low, "change_high": found.high}
    return {f"probe/agreement/{name}": value for name, value in values.items()}


def _check_same_prompts(prompts: Sequence[Prompt], reference: Reference) -> None:
    if [prompt.id for prompt in prompts] != [answer.prompt_id for answer in reference.answers]:
        raise RlifError(Argument("reference"), ": it is of other prompts than the probe's; make it anew")


def _check_distinct(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise RlifError(Argument("prompts"), ": there are none; give the probe some")
    if len(distinct_prompts(prompts)) < len(prompts):
        raise RlifError(Argument("prompts"), ": some are the same; take distinct_prompts of them")
