"""Ways to get an answer from a model without training it, each judged prompt by prompt.

A way is a baseline of `rlif.analysis.baselines` on one draw of completions. What it hands in is held against the
model's own frozen answers and, where there are labels, against these.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rlif.analysis.baselines import BASELINES, GradedSamples, uniform
from rlif.grading.voting import Keys, by_reading
from rlif.types import Rollouts, Verdict

TRAINING, OWN, LOW, GREEDY, MAJORITY = "temperature_1", "own", "low_temperature", "greedy", "majority"
"""Ways to answer: one sample as in training, one as the user decodes, one at the low temperature, the greedy answer,
the vote. Votes weighted by confidence and best of k have their names of `rlif.analysis.baselines.BASELINES`."""
MAIN = (TRAINING, OWN, LOW, GREEDY, MAJORITY)

PerPrompt = Float[np.ndarray, " prompt"]


class Truth(NamedTuple):
    """Of each labelled prompt: the chance that the answer handed in is right, and right and formatted."""

    right: PerPrompt
    right_and_formatted: PerPrompt


@dataclass(frozen=True)
class Way:
    """A way to get an answer without training.

    Attributes:
        temperature: at which its completions are drawn.
        one: an answer takes one completion.
        agrees: of each prompt that has a frozen answer, the chance that the answer handed in is that one.
        in_form: the same, and in the asked form.
        tokens: what an answer costs, mean over prompts.
        answers: of each prompt, the chance of each answer (by what it is counted under) to be handed in.
        truth: None without labels.
    """

    temperature: float
    one: bool
    agrees: PerPrompt
    in_form: PerPrompt
    tokens: float
    answers: tuple[Mapping[str, float], ...]
    truth: Truth | None = None


class Pass(NamedTuple):
    """One draw for all prompts, judged by the frozen answers and, where there are labels, by these."""

    rollouts: Rollouts
    verdicts: tuple[Verdict, ...]
    truth: tuple[Verdict, ...] | None


class Marks(NamedTuple):
    """Which prompts have a frozen answer, and which a label that may be read."""

    given: Bool[np.ndarray, " prompt"]
    labelled: Bool[np.ndarray, " prompt"]


def ways_of(passes: Mapping[str, Pass], marks: Marks, keys: Keys = by_reading) -> dict[str, Way]:
    """One answer from each pass that is a way to decode, then what the votes give. ``keys`` say which answers of a
    prompt are the same, those of all passes at once."""
    singles = {TRAINING: "look", OWN: OWN, LOW: "low", GREEDY: "greedy"}
    said = _said(passes, keys)
    judged = {name: _Judged(one, marks, said[name], keys) for name, one in passes.items()}
    found = {name: judged[source].way(None) for name, source in singles.items() if source in passes}
    votes = judged["sampled"]
    return found | {name: votes.way(name) for name in BASELINES if name != "sampled"}


def _said(passes: Mapping[str, Pass], keys: Keys) -> dict[str, list[Sequence[str | None]]]:
    """What each answer of a pass is counted under, by prompt and sample. Answers of a prompt are asked for together:
    what is near each other is then the same in whichever passes it was drawn."""
    read = {name: groups([verdict.extracted for verdict in one.verdicts], one.rollouts) for name, one in passes.items()}
    found: dict[str, list[Sequence[str | None]]] = {name: [] for name in passes}
    for rows in zip(*read.values(), strict=True):
        given = iter(keys([answer for row in rows for answer in row]))
        for name, row in zip(read, rows, strict=True):
            found[name].append([next(given) for _ in row])
    return found


def share(values: PerPrompt) -> float:
    """The mean over prompts; 0 of none."""
    return float(values.mean()) if len(values) else 0.0


def same_answer(one: Way, other: Way) -> float:
    """The chance that both hand in the same answer, mean over prompts; one that cannot be read is the same as none."""
    pairs = zip(one.answers, other.answers, strict=True)
    return float(np.mean([sum(p * b.get(key, 0.0) for key, p in a.items()) for a, b in pairs]))


class _Judged:
    """A pass as (prompt, sample) tables."""

    def __init__(self, one: Pass, marks: Marks, said: Sequence[Sequence[str | None]], keys: Keys) -> None:
        self._samples = GradedSamples.from_rollouts(one.rollouts, one.verdicts, keys=keys)
        self._truth = None if one.truth is None else GradedSamples.from_rollouts(one.rollouts, one.truth)
        self._temperature, self._marks, self._said = one.rollouts.sampling.temperature, marks, said

    def way(self, baseline: str | None) -> Way:
        """What a baseline makes of the pass; None: any one of its answers."""
        choose, one = (uniform, True) if baseline is None else (BASELINES[baseline].choose, BASELINES[baseline].one)
        chances, samples = choose(self._samples), self._samples
        agrees, in_form = _expected(chances, samples, self._marks.given)
        tokens = samples.tokens.mean(axis=1) if one else samples.tokens.sum(axis=1)
        return Way(
            temperature=self._temperature,
            one=one,
            agrees=agrees,
            in_form=in_form,
            tokens=float(tokens.mean()),
            answers=tuple(_by_answer(row, chance) for row, chance in zip(self._said, chances, strict=True)),
            truth=None if self._truth is None else Truth(*_expected(chances, self._truth, self._marks.labelled)),
        )


def _expected(
    chances: Float[np.ndarray, "all sample"], samples: GradedSamples, kept: Bool[np.ndarray, " all"]
) -> tuple[PerPrompt, PerPrompt]:
    """The chance that the answer handed in is right, and right and formatted, of the prompts that are kept."""
    right = (chances * samples.right).sum(axis=1)
    return right[kept], (chances * (samples.right & samples.formatted)).sum(axis=1)[kept]


def groups(values: Sequence[Any], rollouts: Rollouts) -> list[Sequence[Any]]:
    """One value a row as one sequence a prompt."""
    return [values[i : i + rollouts.group_size] for i in range(0, len(values), rollouts.group_size)]


def _by_answer(keys: Sequence[str | None], chances: Float[np.ndarray, " sample"]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for key, chance in zip(keys, chances.tolist(), strict=True):
        if key is not None:
            found[key] += chance
    return dict(found)
