"""Whether training on internal feedback is worth it: five verdicts, each with reasons in plain words.

`RULES` are asked in order, and the first that has something to say decides. What they read is label-free agreement with
the model's own frozen answers (`rlif.experiments.untrained`), and the gain that a calibration predicts
(`rlif.experiments.calibration`) where it covers the model.

1. *cannot tell*: too few prompts, or frozen answers that are not to be trusted.
2. *will do harm*: what sharpens the model already loses answers that its samples have, or the calibration says so.
3. *worth training*: the predicted gain over the best training-free baseline is at least `MARGIN`, its interval above 0.
   The best is over every way that was tried, votes included: where one of them gives the gain already, none is left.
4. *just lower the temperature*: one answer at a lower temperature gives at least `MARGIN` more, and training no more.
5. *little to win*: the predicted gain, or all that the best baseline leaves, is less than `MARGIN`.
6. *cannot tell*: there is room, and no calibration says whether training takes it.

Without a calibration there is no *worth training*: that sharpening has room does not say that training uses it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rlif.analysis.paired import bootstrap_interval
from rlif.experiments.calibration import Prediction
from rlif.experiments.untrained import Untrained
from rlif.experiments.ways import GREEDY, LOW, MAJORITY, TRAINING, PerPrompt, share
from rlif.monitoring.guards import LEAST_TRUSTED
from rlif.monitoring.reference import LEAST_AGREEING, LEAST_VOTING

VerdictName = Literal["worth training", "just lower the temperature", "little to win", "will do harm", "cannot tell"]
VERDICTS: tuple[VerdictName, ...] = (
    "worth training",
    "just lower the temperature",
    "little to win",
    "will do harm",
    "cannot tell",
)
MARGIN = 0.05
"""A share that counts: what two evaluations on 500 problems can tell apart (two standard errors at .8)."""
LEAST_PROMPTS = 16
LEAST_ANSWERED = 0.5
"""Share of prompts with a frozen answer."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made of.

    Attributes:
        temperature: at which the user decodes.
        prediction: or in words why there is none.
        of_confidence: the training in question rewards confidence, not answers that agree.
        sentences: the whole text is the answer (format: text).
    """

    untrained: Untrained
    temperature: float
    prediction: Prediction | str
    of_confidence: bool = True
    sentences: bool = False

    def in_form(self, way: str) -> PerPrompt:
        return self.untrained.ways[way].in_form

    @property
    def room(self) -> float:
        """What the best training-free baseline leaves, as far as the frozen answers know."""
        return 1.0 - share(self.in_form(self.untrained.best()))


class Finding(NamedTuple):
    """A verdict, and why."""

    verdict: VerdictName
    reasons: tuple[str, ...]


def verdict_on(evidence: Evidence) -> Finding:
    """The verdict of the first rule that speaks, its reason first, then what else a reader should know."""
    for rule in RULES:
        if (found := rule(evidence)) is not None:
            verdict, reason = found
            return Finding(verdict, (reason, *remarks(evidence, verdict)))
    raise AssertionError("the last rule always speaks")


Ruling = tuple[VerdictName, str] | None


def too_few(evidence: Evidence) -> Ruling:
    n = evidence.untrained.prompts
    if n >= LEAST_PROMPTS:
        return None
    return "cannot tell", f"{n} prompts are too few; give {LEAST_PROMPTS} or more, better 64"


def no_answers(evidence: Evidence) -> Ruling:
    """Where most prompts have no frozen answer, nothing can be held against anything."""
    trust = evidence.untrained.trust
    if trust["answered"] >= LEAST_ANSWERED:
        return None
    cut = 1.0 - trust["ended/sampled"]
    why = f"; {_percent(cut)} of the samples are cut off, so allow more tokens" if cut > 0.5 else ""
    return "cannot tell", (
        f"only {_percent(trust['answered'])} of the prompts got an answer that could be read{why}; check template and "
        "format"
    )


def not_trusted(evidence: Evidence) -> Ruling:
    trusted = evidence.untrained.trust["trusted"]
    if trusted >= LEAST_TRUSTED:
        return None
    return "cannot tell", (
        f"the model has no settled answers to be held against: its votes are significant on {_percent(trusted)} of the "
        f"prompts, {_percent(LEAST_TRUSTED)} are needed{_of_sentences(evidence)}"
    )


def _of_sentences(evidence: Evidence) -> str:
    """What helps where hardly any two answers are the same."""
    if evidence.untrained.same.digest is not None:
        return "; if answers that mean the same are told apart, lower the least similarity"
    return "; answers in sentences need a similarity" if evidence.sentences else ""


def of_two_minds(evidence: Evidence) -> Ruling:
    """Samples and the low temperature both answer, and differently on most prompts: neither is a reference."""
    trust = evidence.untrained.trust
    agree = trust.get("agree/sampled_low", 1.0)
    if trust["voting/sampled"] < LEAST_VOTING or agree >= LEAST_AGREEING:
        return None
    return "cannot tell", (
        f"the model is of two minds: votes at temperature 1 and at the low one agree on {_percent(agree)} of prompts"
    )


def one_answer(evidence: Evidence) -> Ruling:
    """The same answer everywhere is agreement with itself, and nothing else."""
    answers = [one.answer for one in evidence.untrained.reference.answers if one.answer is not None]
    if len(set(evidence.untrained.same.keys(answers))) > 1:
        return None
    nearly = evidence.untrained.same.digest is not None and len(set(answers)) > 1
    why = "; they are near each other, so raise the least similarity if they are not one" if nearly else ""
    return "cannot tell", f"the model settles on one and the same answer to every prompt ({answers[0]!r:.40}){why}"


def harm(evidence: Evidence) -> Ruling:
    """Training on confidence sharpens. Lower temperatures show what that does: less agreement in whatever form at both,
    beyond noise and `MARGIN`, and no better form to make up for it."""
    prediction = evidence.prediction
    if isinstance(prediction, Prediction) and prediction.change_high < 0.0:
        change = f"{_signed(prediction.change)} (at most {_signed(prediction.change_high)})"
        return "will do harm", f"training on {prediction.reward} is predicted to change right and formatted by {change}"
    if evidence.temperature == 0.0 or not evidence.of_confidence:
        return None
    ways = evidence.untrained.ways
    lost = [_difference(ways[TRAINING].agrees, ways[way].agrees) for way in (LOW, GREEDY)]
    better_form = any(share(ways[way].in_form) > share(ways[TRAINING].in_form) for way in (LOW, GREEDY))
    if better_form or any(one.high >= 0.0 or one.mean > -MARGIN for one in lost):
        return None
    return "will do harm", (
        f"what sharpens this model makes it worse: agreement is {_percent(share(ways[TRAINING].agrees))} sampled at "
        f"temperature 1, {_percent(share(ways[LOW].agrees))} at the low temperature and "
        f"{_percent(share(ways[GREEDY].agrees))} greedily, and training on confidence sharpens"
    )


def worth(evidence: Evidence) -> Ruling:
    prediction = evidence.prediction
    if isinstance(prediction, str) or prediction.gain < MARGIN or prediction.low <= 0.0:
        return None
    return "worth training", (
        f"guarded training on {prediction.reward} is predicted to give {_predicted(prediction)} over the best "
        f"training-free baseline ({_named(evidence.untrained.best())})"
    )


def lower(evidence: Evidence) -> Ruling:
    """Only where training is known to bring no more."""
    if _could_bring_more(evidence):
        return None
    colder = _colder(evidence)
    if colder is None:
        return None
    way, gained = colder
    return "just lower the temperature", (
        f"{_named(way)} gives {_signed(gained)} over one answer at temperature {evidence.temperature:g}, for nothing; "
        f"{_nothing_more(evidence)}"
    )


def little(evidence: Evidence) -> Ruling:
    if _could_bring_more(evidence):
        return None
    return "little to win", _nothing_more(evidence)


def unknown(evidence: Evidence) -> Ruling:
    prediction = evidence.prediction
    if isinstance(prediction, Prediction):
        return "cannot tell", f"the predicted gain, {_predicted(prediction)}, may be nothing"
    room = f"the best training-free baseline ({_named(evidence.untrained.best())}) leaves {_percent(evidence.room)}"
    return "cannot tell", f"{room}, but nothing says whether training takes it: {prediction}"


RULES: tuple[Callable[[Evidence], Ruling], ...] = (
    *(too_few, no_answers, not_trusted, of_two_minds, one_answer),
    *(harm, worth, lower, little, unknown),
)


def remarks(evidence: Evidence, verdict: VerdictName) -> tuple[str, ...]:
    """What a reader should know besides: what is free, unless that is the verdict, what is in dispute, what the
    prediction stands on."""
    found = evidence.untrained
    if not len(found.ways[TRAINING].in_form):
        return ()
    said = []
    if verdict != "just lower the temperature" and (colder := _colder(evidence)) is not None:
        by = "" if found.trust["trusted"] >= LEAST_TRUSTED else ", by answers that are not settled, and partly its own"
        said.append(f"{_named(colder[0])} gives {_signed(colder[1])} over how you decode, without training{by}")
    if (disputed := found.trust["disputed"]) >= MARGIN:
        said.append(
            f"on {_percent(disputed)} of the prompts temperatures disagree: there sharpening and truth may part"
        )
    if isinstance(evidence.prediction, Prediction):
        runs = evidence.prediction.stands_on
        models = runs["models"]
        said.append(f"the prediction stands on {runs['runs']} runs of {len(models)} models ({_listed(models)})")
    return tuple(said)


def _listed(names: Sequence[str]) -> str:
    """Names with a comma between them; the words that all of them begin with once."""
    words = [name.split(" ") for name in names]
    shared = next((i for i, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1), 0)
    return " ".join([*words[0][:shared], ", ".join(" ".join(one[shared:]) for one in words)])


class Difference(NamedTuple):
    """Of two ways, paired over prompts, with its 95 % interval."""

    mean: float
    low: float
    high: float


def _difference(before: PerPrompt, after: PerPrompt) -> Difference:
    values = after - before
    return Difference(float(np.mean(values)), *bootstrap_interval(values))


def _colder(evidence: Evidence) -> tuple[str, float] | None:
    """The best single answer at a lower temperature, if it gives `MARGIN` more beyond noise."""
    ways, own = evidence.untrained.ways, evidence.untrained.own
    names = [name for name in (LOW, GREEDY) if ways[name].temperature < evidence.temperature]
    if not names:
        return None
    best = evidence.untrained.best(names)
    found = _difference(ways[own].in_form, ways[best].in_form)
    return (best, found.mean) if found.mean >= MARGIN and found.low > 0.0 else None


def _could_bring_more(evidence: Evidence) -> bool:
    """Whether training may bring `MARGIN` over the best baseline: as predicted, else as far as there is room."""
    prediction = evidence.prediction
    return (prediction.gain if isinstance(prediction, Prediction) else evidence.room) >= MARGIN


def _nothing_more(evidence: Evidence) -> str:
    best = _named(evidence.untrained.best())
    if isinstance(evidence.prediction, Prediction):
        return f"training is predicted to give {_predicted(evidence.prediction)} over the best without ({best})"
    return f"the best without training ({best}) leaves {_percent(evidence.room)} for training to win"


def _predicted(prediction: Prediction) -> str:
    gain, low, high = (100.0 * value for value in (prediction.gain, prediction.low, prediction.high))
    return f"{gain:+.0f} points ({low:+.0f} to {high:+.0f})"


NAMES: Mapping[str, str] = {
    TRAINING: "one answer, temperature 1",
    "own": "one answer, as you decode",
    LOW: "one answer, low temperature",
    GREEDY: "the greedy answer",
    MAJORITY: "the vote",
    "borda": "the vote by confidence",
    "best_of_k/self_certainty": "the surest by self-certainty",
    "best_of_k/token_entropy": "the surest by −entropy",
    "best_of_k/trajectory_entropy": "the surest by logprob",
}
"""What a way is called in a sentence."""


def _named(way: str) -> str:
    return NAMES.get(way, way)


def _percent(value: float) -> str:
    return f"{100.0 * value:.0f} %"


def _signed(value: float) -> str:
    return f"{100.0 * value:+.0f} points"
