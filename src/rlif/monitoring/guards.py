"""Guards: small functions of the looks so far that say ok, warn or stop, and why in words a person understands.

Where a guard says that a share has fallen it has asked `rlif.monitoring.sequential`: the chance that it ever does so in
a run in which nothing fell is at most its entry in `FALSE_ALARMS`, however often it is asked. Sizes beside that (half
of all answers, an eighth of the length) are no tests: they say what is bad enough to stop for, and are to be
calibrated.

A run asks them after each look of its `rlif.monitoring.probe.Probe` (`rlif.training.looks`).

`GUARDS` is the table; `examine` asks all of it; `best_look` chooses the checkpoint to keep.

Tried on the tiny models (64 prompts of 4 samples, a look every 5 of 60 steps, one seed each; the share right and
formatted, on the same samples). Self-certainty goes .43 → .58 (step 20) → .25 and is stopped at 40 (.52); token entropy
.43 → .61 (30) → .18, at 45 (.54); the instruct model under self-certainty .86 → .95 (25) → .73, at 50 (.87); labels
.43 → .93 (60) and trajectory entropy .43 → .70 (50) → .67, no word from agreement. `best_look` takes the best step of
the truth in all five.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rlif.monitoring.record import ProbeRecord
from rlif.monitoring.sequential import Fall, fall, fewest_prompts

Level = Literal["ok", "warn", "stop"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "stop")

FALSE_ALARMS: Mapping[str, float] = {
    "agreement": 0.025,
    "content": 0.025,
    "no_answer": 0.01,
    "truncation": 0.01,
    "repetition": 0.01,
    "entropy": 0.01,
}
"""A guard's chance ever to speak of a fall in a run in which nothing fell; .09 for all of them together."""


LEAST_TRUSTED = 0.5
"""Share of prompts with a significant frozen vote from which agreement may stop a run by itself."""


LABELLED = "probe/labelled_right_and_formatted"
"""The one number of a record that has seen labels. No guard reads it; `best_by_labels` does."""


VETO_LOOKS = 3
"""For so many looks in a row the frozen start may speak against a fall of agreement. A policy that sharpens onto one
fluent answer stays likely under its start, too: what is still better after three looks is a person's to say. Not
fitted; to be calibrated."""


class Alarm(NamedTuple):
    """What a guard says, and why; ok is none."""

    level: Level
    reason: str


OK = Alarm("ok", "")
Records = Sequence[ProbeRecord]


def since_renewal(records: Records) -> Records:
    """The looks that were held against the frozen answers of the last one: all, if these were never renewed."""
    return [record for record in records if record.renewals == records[-1].renewals]


def agreement(records: Records) -> Alarm:
    """Agreement with the frozen answers in the asked form: stop when it is below its best (`_left_the_start`)."""
    records = since_renewal(records)
    frozen = len(records[-1].counts["agreement"])
    needed = fewest_prompts(max(len(records) - 1, 1), FALSE_ALARMS["agreement"])
    if frozen < needed:
        return Alarm("warn", f"only {frozen} prompts have a frozen answer; a fall shows on {needed} or more")
    return _left_the_start(records, "agreement", "agreement with the frozen answers")


def content(records: Records) -> Alarm:
    """The same in whatever form: what is lost shows here first while better form still makes up for it."""
    what = "agreement with the frozen answers in whatever form"
    return _left_the_start(since_renewal(records), "content", what)


def constant_answer(records: Records) -> Alarm:
    """One answer to all prompts: warn from a quarter, stop from half, if training brought it.

    Which it did if that is twice as much as at the first look, or half way from there to all.
    """
    now, first = (record.metrics["probe/constant"] for record in (records[-1], records[0]))
    if now < 0.25 or now < min(2.0 * first, (1.0 + first) / 2.0):
        return OK
    level: Level = "stop" if now >= 0.5 else "warn"
    return Alarm(level, f"one and the same answer is given on {now:.0%} of the prompts where it was not the start's")


def no_answer(records: Records) -> Alarm:
    """Answers that can no longer be read: stop when they are less than half of the best look's."""
    return _share_fell(records, "no_answer", "answered", "completions with a readable answer")


def truncation(records: Records) -> Alarm:
    """Completions cut off at the limit: stop when those that end are less than half of the best look's."""
    return _share_fell(records, "truncation", "ended", "completions that end before the length limit")


def repetition(records: Records) -> Alarm:
    """Completions that repeat themselves: stop when those that do not are less than half of the best look's."""
    return _share_fell(records, "repetition", "not_looping", "completions that do not repeat themselves")


def length(records: Records) -> Alarm:
    """Mean length beside the first look's: warn from half or twice, stop from an eighth or eight times.

    An eighth, for a model that rambled may rightly become a third as long.
    """
    first, now = (record.metrics["probe/length"] for record in (records[0], records[-1]))
    ratio = now / first
    if 0.5 < ratio < 2.0:
        return OK
    level: Level = "warn" if 0.125 < ratio < 8.0 else "stop"
    return Alarm(level, f"completions have {now:.0f} tokens, {first:.0f} at step {records[0].step}")


def entropy(records: Records) -> Alarm:
    """Entropy above the first look's on significantly many prompts: warn from 1.5 times, stop from 3 times."""
    first, now = (record.metrics["probe/entropy"] for record in (records[0], records[-1]))
    start = np.array(records[0].nats["entropy"])
    below = [np.sign(start - np.array(record.nats["entropy"])).astype(np.int64) for record in records]
    if now < 1.5 * first or fall(below, rate=FALSE_ALARMS["entropy"], start_only=True) is None:
        return OK
    level: Level = "stop" if now >= 3.0 * first else "warn"
    return Alarm(
        level, f"entropy rose from {first:.2g} to {now:.2g} nats a token: training makes it less sure, not more"
    )


def no_advantage(records: Records) -> Alarm:
    """Nothing left to learn from: every group of the step, or every prompt's samples here, are worth the same.

    Reads the training step's ``advantage/zero_groups`` if it was put into the record's metrics. Warns at one look, for
    a single step may be like that by chance, and stops at the second in a row.
    """
    if not _without_advantage(records[-1]):
        return OK
    level: Level = "stop" if len(records) > 1 and _without_advantage(records[-2]) else "warn"
    return Alarm(level, "no group has an advantage: all completions of each prompt are worth the same")


def _without_advantage(record: ProbeRecord) -> bool:
    return record.metrics.get("advantage/zero_groups", record.metrics["probe/identical"]) >= 1.0


GUARDS: Mapping[str, Callable[[Records], Alarm]] = {
    "agreement": agreement,
    "content": content,
    "constant_answer": constant_answer,
    "no_answer": no_answer,
    "truncation": truncation,
    "repetition": repetition,
    "length": length,
    "entropy": entropy,
    "no_advantage": no_advantage,
}


def examine(records: Records) -> dict[str, Alarm]:
    """What each guard says after the last look; ok is left out. ``records``: at least one, of one probe, in order."""
    alarms = {name: guard(records) for name, guard in GUARDS.items()}
    return {name: alarm for name, alarm in alarms.items() if alarm.level != "ok"}


def worst(alarms: Mapping[str, Alarm]) -> Level:
    """The gravest level of these; ok of none."""
    return max((alarm.level for alarm in alarms.values()), key=LEVELS.index, default="ok")


def outgrown(records: Records) -> bool:
    """Whether the policy has outgrown its frozen answers: it gives others, and all else speaks for these.

    The rule (probe.refresh), set before any run was looked at with it:

    1. agreement in whatever form has significantly fallen: the answers are others, not their form alone;
    2. the frozen start has its veto: the samples are as likely under it as ever (`_left_the_start`);
    3. no other guard has anything to say;
    4. the policy agrees with itself no less than when its answers were frozen: it is not scattering.

    A policy that drifts away from its start fails 2, one that falls for a single answer 3, one that guesses 4.
    """
    alarms, known = examine(records), since_renewal(records)
    if set(alarms) - {"agreement", "content"} or worst(alarms) == "stop":
        return False
    settled = [record.metrics.get("probe/self_agreement", 0.0) for record in (known[0], known[-1])]
    return "content" in alarms and settled[1] >= settled[0] and _still_sharpening(known)


def can_choose(records: Records) -> bool:
    """Whether the looks say enough to choose one by agreement: as many prompts have a frozen answer as a fall needs to
    show, and somebody has agreed with one."""
    records = since_renewal(records)
    needed = fewest_prompts(max(len(records) - 1, 1), FALSE_ALARMS["agreement"])
    agreed = any(record.metrics.get("probe/agreement", 0.0) > 0.0 for record in records)
    return agreed and len(records[-1].counts["agreement"]) >= needed


def best_look(records: Records) -> ProbeRecord:
    """The look of highest agreement; of equals that of the lowest cross-entropy, then the first.

    Where the frozen answers were renewed, of the looks since: those before were held against what was outgrown.
    """

    def merit(record: ProbeRecord) -> tuple[float, float]:
        metrics = record.metrics
        return metrics.get("probe/agreement", 0.0), -metrics.get("probe/cross_entropy", math.inf)

    return max(since_renewal(records), key=merit)


def best_by_labels(records: Records) -> ProbeRecord:
    """The look with most right and formatted answers to the few labelled problems; of equals that of the highest
    agreement, then the first."""

    def merit(record: ProbeRecord) -> tuple[float, float]:
        return record.metrics.get(LABELLED, -math.inf), record.metrics.get("probe/agreement", 0.0)

    return max(records, key=merit)


def _left_the_start(records: Records, name: str, what: str) -> Alarm:
    """Stop if agreement has fallen below its best, unless a second witness speaks for the policy or is called for.

    All prompts count that have a frozen answer: a wrong one only adds noise, as long as few policies come upon it. The
    cross-entropy under the start has a veto, where there is a start: while it is at its lowest (within a standard
    error) the policy still sharpens what was there, and may become right where its reference is wrong. The veto ends
    after `VETO_LOOKS` looks in a row, and when agreement has lost more than half of its best. Without a start,
    a reference of which less than half is to be trusted does not stop alone.
    """
    if (found := _fallen(records, name, FALSE_ALARMS[name])) is None:
        return OK
    said = _said(records, name, what, found)
    witnesses = all("cross_entropy" in record.nats for record in records)
    if witnesses and _still_sharpening(records) and not _veto_is_over(records, name):
        return Alarm("warn", f"{said}, while the samples stay likely under the start: its answers may be the worse")
    if not witnesses and records[-1].metrics["probe/trusted"] < LEAST_TRUSTED:
        return Alarm("warn", f"{said}, but few of these are to be trusted, and no frozen start is there to be asked")
    return Alarm("stop", f"{said}: what is learnt since is not what the model knew")


def _veto_is_over(records: Records, name: str) -> bool:
    if _share(records[-1], name) < _share(_best(records, name), name) / 2.0:
        return True
    before = (records[: len(records) - back] for back in range(1, VETO_LOOKS + 1))
    return all(looks and _fallen(looks, name, FALSE_ALARMS[name]) is not None for looks in before)


def _share_fell(records: Records, name: str, counted: str, what: str) -> Alarm:
    found = _fallen(records, counted, FALSE_ALARMS[name])
    if found is None:
        return OK
    halved = _share(records[-1], counted) < _share(_best(records, counted), counted) / 2.0
    return Alarm("stop" if halved else "warn", _said(records, counted, what, found))


def _said(records: Records, counted: str, what: str, found: Fall) -> str:
    best, now = _best(records, counted), records[-1]
    shares = f"from {_share(best, counted):.0%} at step {best.step} to {_share(now, counted):.0%}"
    return f"{what} fell {shares} (p = {found.p:.1g} beside step {records[found.since].step})"


def _best(records: Records, counted: str) -> ProbeRecord:
    return max(records, key=lambda record: sum(record.counts[counted]))


def _fallen(records: Records, counted: str, rate: float) -> Fall | None:
    return fall([np.array(record.counts[counted], dtype=np.int64) for record in records], rate=rate)


def _share(record: ProbeRecord, counted: str) -> float:
    return float(np.mean(record.counts[counted])) / record.samples


def _still_sharpening(records: Records) -> bool:
    """Whether cross-entropy under the start is not above its lowest by more than a standard error, paired."""
    looks = [np.array(record.nats["cross_entropy"]) for record in records]
    rise = looks[-1] - min(looks, key=lambda look: float(look.mean()))
    return float(rise.mean()) <= float(rise.std()) / math.sqrt(len(rise))
