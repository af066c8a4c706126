"""What a model gives before any training, by its own lights: its training-free answers beside its frozen ones.

No label enters. The frozen answers (`rlif.monitoring.reference`) stand in the label's place, so a share here is one of
agreement with what the model itself would settle on. Where it settles on what is wrong, all of these numbers are wrong
with it; `Untrained.reference` says how far to trust them, and `Truth` what they hide, if there are labels.

The votes and the low temperature are judged by answers that they have themselves cast: a vote agrees with itself. That
makes these baselines look better than they are, and what is left for training to win smaller. One answer at the
temperature of training is judged on samples that cast none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from rlif.analysis import estimators
from rlif.analysis.estimators import Estimate
from rlif.experiments.ways import GREEDY, LOW, OWN, TRAINING, Marks, Pass, Way, groups, share, ways_of
from rlif.monitoring.measurement import Look, judge, measure
from rlif.monitoring.probe import PROBE_KEY, freeze
from rlif.monitoring.reference import FrozenAnswer, Reference, ReferenceSettings
from rlif.monitoring.sameness import BY_READING, Sameness
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.tasks.base import Task
from rlif.types import Prompt, Rollouts, Sampling, Verdict

OnPass = Callable[[str, int], None]
"""Told of each pass before it is drawn: what it is, and how many completions it takes."""


@dataclass(frozen=True)
class Found:
    """Does a mark that needs no label find what the greedy answer gets wrong? Counts of labelled prompts."""

    marked: int
    greedy_wrong: int
    both: int

    @property
    def precision(self) -> float:
        """Of the marked prompts, those whose greedy answer is wrong; NaN without any."""
        return self.both / self.marked if self.marked else float("nan")

    @property
    def recall(self) -> float:
        """Of the prompts whose greedy answer is wrong, those that are marked; NaN without any."""
        return self.both / self.greedy_wrong if self.greedy_wrong else float("nan")


MARKS: Mapping[str, Callable[[FrozenAnswer], bool]] = {
    "disputed": lambda one: one.disputed,
    "in_doubt": lambda one: one.in_doubt,
}
"""What tells of a prompt, without a label, that its greedy answer may be wrong (`rlif.monitoring.reference`)."""


@dataclass(frozen=True)
class Untrained:
    """A model before training, on some prompts.

    Attributes:
        prompts: how many there are; those with a frozen answer are what `Way` counts.
        own: the name of the way in which the user decodes.
        look: the step-0 numbers of the probe (keys of docs/metrics.md without ``probe/``), of fresh samples.
        entropy: nats a token at temperature 1, over the states that each source visits.
        formatted: share of each source's completions with an answer in the asked form.
        votes: samples of a vote.
        tokens: all that was drawn.
        labelled: prompts with a label that was read; 0 unless asked to.
        reference_right: share of them whose frozen answer is right; None without labels.
        greedy_mistakes: how well each of `MARKS` finds wrong greedy answers; None without labels.
        same: says which answers are the same, throughout.
    """

    prompts: int
    own: str
    ways: Mapping[str, Way]
    reference: Reference
    look: Mapping[str, float]
    entropy: Mapping[str, Estimate]
    formatted: Mapping[str, float]
    votes: int
    tokens: int
    labelled: int = 0
    reference_right: float | None = None
    greedy_mistakes: Mapping[str, Found] | None = None
    same: Sameness = BY_READING

    @property
    def trust(self) -> Mapping[str, float]:
        """How far the frozen answers go (`rlif.monitoring.reference.trust_numbers`)."""
        return self.reference.trust

    def best(self, names: Sequence[str] | None = None) -> str:
        """The way that agrees most in the asked form, of these names (None: of all); of equals the first."""
        return max(names or self.ways, key=lambda name: share(self.ways[name].in_form))


@dataclass(frozen=True)
class Asking:
    """How a model is asked: as it is sampled in training, how the user decodes, samples of a vote and of a look, and
    which answers are the same."""

    training: Sampling
    temperature: float
    low_temperature: float = 0.4
    votes: int = 16
    look: int = 4
    seed: int = 0
    labels: bool = False
    same: Sameness = BY_READING

    def at(self, temperature: float) -> Sampling:
        return replace(self.training, temperature=temperature)

    @property
    def own(self) -> str:
        """The way in which the user decodes; one of its own where it is not drawn anyway."""
        drawn = {self.training.temperature: TRAINING, self.low_temperature: LOW, 0.0: GREEDY}
        return drawn.get(self.temperature, OWN)


def look_at(
    engine: Engine,
    task: Task,
    prompts: Sequence[Prompt],
    asking: Asking,
    *,
    on_pass: OnPass = lambda name, completions: None,
    progress: Callable[[int], None] | None = None,
) -> Untrained:
    """Draw what a model gives without training, and judge it by its own frozen answers.

    Args:
        prompts: distinct ones (`rlif.monitoring.probe.distinct_prompts`).
        on_pass: told of each pass.
        progress: told of tokens drawn, as `Engine.sample` does.

    Raises `RlifError` where `rlif.monitoring.probe.freeze` does.
    """
    n, drawn = len(prompts), dict[str, Rollouts]()
    same = asking.same
    settings = ReferenceSettings(asking.training, asking.low_temperature, asking.votes, asking.seed, same)
    on_pass("votes, low temperature, greedy", n * (2 * asking.votes + 1))
    reference = freeze(engine, task, prompts, settings, on_draw=drawn.__setitem__, progress=progress)
    further = {"look": (asking.training, PROBE_KEY)}
    if asking.own == OWN:
        further[OWN] = (asking.at(asking.temperature), f"{PROBE_KEY}/own")
    for name, (sampling, step) in further.items():
        on_pass(f"one answer, temperature {sampling.temperature:g}", n * asking.look)
        key = Key(asking.seed, step)
        drawn[name] = engine.sample(prompts, group_size=asking.look, sampling=sampling, key=key, progress=progress)
    frozen = reference.answers
    passes = {
        name: Pass(
            rollouts,
            judge(task, rollouts, [one.answer for one in frozen], same),
            judge(task, rollouts, [prompt.problem.answer for prompt in prompts], same) if asking.labels else None,
        )
        for name, rollouts in drawn.items()
    }
    seen = measure(Look(passes["look"].rollouts, passes["look"].verdicts, frozen, same=same), 0)
    marks = Marks(
        np.array([one.answer is not None for one in frozen], dtype=bool),
        np.array([asking.labels and prompt.problem.answer is not None for prompt in prompts], dtype=bool),
    )
    truth = _truth(passes, reference, marks.labelled, same) if marks.labelled.any() else {}
    return Untrained(
        prompts=n,
        own=asking.own,
        ways=ways_of(passes, marks, same.keys),
        reference=reference,
        look={name.removeprefix("probe/"): value for name, value in seen.metrics.items()},
        entropy={name: _entropy(one.rollouts) for name, one in passes.items() if name not in (OWN, "look")},
        formatted={name: _formatted(one.verdicts) for name, one in passes.items() if name not in (OWN, "look")},
        votes=asking.votes,
        tokens=sum(int(one.rollouts.mask.sum()) for one in passes.values()),
        same=same,
        **truth,
    )


def _entropy(rollouts: Rollouts) -> Estimate:
    by_prompt = (-1, rollouts.group_size)
    sums: Any = rollouts.signals.entropy.double().sum(dim=1).numpy().reshape(by_prompt)
    return estimators.ratio(sums, rollouts.lengths.double().numpy().reshape(by_prompt))


def _formatted(verdicts: Sequence[Verdict]) -> float:
    return float(np.mean([verdict.formatted for verdict in verdicts]))


def _truth(
    passes: Mapping[str, Pass], reference: Reference, labelled: Bool[np.ndarray, " prompt"], same: Sameness
) -> dict[str, Any]:
    """The fields of `Untrained` that labels fill."""
    frozen = [one for one, known in zip(reference.answers, labelled, strict=True) if known]
    truths = {
        name: [row for row, known in zip(groups(one.truth or (), one.rollouts), labelled, strict=True) if known]
        for name, one in passes.items()
    }
    wrong = [row[0].right is not True for row in truths["greedy"]]
    right = [_is_right(one, truths[one.source or "greedy"][i], same) for i, one in enumerate(frozen)]
    return {
        "labelled": len(frozen),
        "reference_right": float(np.mean(right)),
        "greedy_mistakes": {name: _found([mark(one) for one in frozen], wrong) for name, mark in MARKS.items()},
    }


def _found(marked: Sequence[bool], wrong: Sequence[bool]) -> Found:
    return Found(sum(marked), sum(wrong), sum(a and b for a, b in zip(marked, wrong, strict=True)))


def _is_right(frozen: FrozenAnswer, verdicts: Sequence[Verdict], same: Sameness) -> bool:
    """A frozen answer was given by one of the completions it was chosen from, whose verdicts these are."""
    right = [one.extracted for one in verdicts if one.right is True and one.extracted]
    key, *given = same.keys([frozen.answer, *right])
    return key is not None and key in given
