"""What guarded training brought elsewhere, and what that says of a model that has not been trained.

A calibration is a list of finished runs (`Case`): of each, what its untrained model agreed with by itself, and what the
checkpoint that was chosen without labels then gained over the best training-free baseline, with labels. It ships with
the package as calibration.json and says on which runs it stands; `rlif.experiments.calibrate` writes it.

A line is fitted for each way to decode and each reward, by least squares over the models, each the mean of its runs:

    gain = a + b · sampled

*sampled* is the untrained model's agreement with its frozen answers, in the asked form, when it is sampled as in
training. Of all its numbers that one is not flattered: these samples cast no vote, while the low temperature, greedy
answers and votes are held against answers of their own making. Training has to work with what samples disagree on.

The interval is as wide as the worst error on a model that was left out of the fit: of models like these n, about one in
n + 1 lies outside it. A model unlike them (`Fit.unlike`) is told so and gets no number. And no gain is predicted beyond
what the best training-free baseline leaves (`predict`).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any, NamedTuple

from rlif.config import RewardConfig
from rlif.errors import RlifError
from rlif.experiments.untrained import Untrained
from rlif.experiments.ways import TRAINING, share

SHIPPED = Path(__file__).parent / "calibration.json"
FORMAT = 2
LEAST_MODELS = 4
"""Models without which a reward has no fit: an error on one that is left out is then that of a line through three."""
DECODINGS: Mapping[str, float] = {"sampled": 1.0, "greedy": 0.0}
"""How runs are evaluated, and the temperature of that."""


def label_of(rewards: Sequence[RewardConfig]) -> str:
    """What a calibration calls the rewards of a recipe: their names, with weights, sums and what they are made of."""
    return " + ".join(
        (f"{one.weight:g} " if one.weight != 1.0 else "") + one.label + (" (sum)" if one.reduce == "sum" else "")
        for one in rewards
    )


Start = tuple[str, str]
"""An untrained model, and what it is asked."""


class Features(NamedTuple):
    """Of an untrained model, without labels: what decides whether it is like those of a calibration, and what a gain is
    predicted from (``sampled``). ``own`` is agreement as it is decoded."""

    own: float
    sampled: float
    trusted: float
    disputed: float
    entropy: float


@dataclass(frozen=True)
class Case:
    """A finished run, decoded in one way.

    Attributes:
        model, task, reward, seed: which run.
        decoding: a key of `DECODINGS`.
        prompts: how many the untrained model was diagnosed on.
        features: of the untrained model.
        step: of the checkpoint of highest agreement.
        gain: its share right and formatted, less the best of sampled, low-temperature, greedy and voted answers before
            training.
        change: the same, less that of the untrained model decoded in the same way.
        lower: of the untrained model, what one answer at a lower temperature gives over this decoding (0 where it is
            greedy).
    """

    model: str
    task: str
    reward: str
    seed: int
    decoding: str
    prompts: int
    features: Features
    step: int
    gain: float
    change: float
    lower: float

    @property
    def start(self) -> Start:
        return self.model, self.task

    @property
    def run(self) -> tuple[Start, str, int]:
        return self.start, self.reward, self.seed


@dataclass(frozen=True)
class Calibration:
    """Cases, the recipe of each reward (what its runs share, without model, task and seed), and where they are from."""

    cases: tuple[Case, ...] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    date: str = ""
    rlif: str = ""
    least_models: int = LEAST_MODELS

    def fit(self, decoding: str, reward: str) -> "Fit | None":
        """None if fewer than ``least_models`` were trained so."""
        own = [case for case in self.cases if (case.decoding, case.reward) == (decoding, reward)]
        return fit(own) if len({case.start for case in own}) >= self.least_models else None

    @property
    def rewards(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(case.reward for case in self.cases))

    def stands_on(self, cases: Sequence[Case] | None = None) -> dict[str, Any]:
        """On which runs: how many, models, rewards, seeds, date, version of rlif. ``cases``: these (None: all)."""
        own = self.cases if cases is None else cases
        return {
            "runs": len({case.run for case in own}),
            "models": sorted({case.model for case in own}),
            "tasks": sorted({case.task for case in own}),
            "rewards": sorted({case.reward for case in own}),
            "seeds": sorted({case.seed for case in own}),
            "date": self.date,
            "rlif": self.rlif,
        }

    def as_json(self) -> dict[str, Any]:
        """For the file; `read_calibration` reads it. The fits stand there to be read by people, and are made anew."""
        fits = {
            decoding: {
                reward: {"gain": found.gain._asdict(), "error": found.error, "models": len(found.starts)}
                for reward in self.rewards
                if (found := self.fit(decoding, reward)) is not None
            }
            for decoding in DECODINGS
        }
        cases = [{**asdict(case), "features": case.features._asdict()} for case in self.cases]
        return {
            "format": FORMAT,
            "stands_on": self.stands_on(),
            "fits": fits,
            "recipes": dict(self.recipes),
            "cases": cases,
        }


def together(known: Calibration, new: Calibration) -> Calibration:
    """The cases of both; a run that is in both counts as the new one has it. Date and version are the new one's.

    Raises `RlifError` if their runs have other settings: a calibration speaks of one recipe.
    """
    settings = [
        {key: value for key, value in recipe.items() if key != "reward"}
        for recipe in (*known.recipes.values(), *new.recipes.values())
    ]
    if differing := sorted(
        {key for one in settings for key in one.keys() | settings[0] if one.get(key) != settings[0].get(key)}
    ):
        raise RlifError(f"the runs of the two calibrations differ in {', '.join(differing)}; calibrate them apart")
    again = {case.run for case in new.cases}
    kept = tuple(case for case in known.cases if case.run not in again)
    return replace(new, cases=(*kept, *new.cases), recipes={**known.recipes, **new.recipes})


class Line(NamedTuple):
    """A share as a line over sampled agreement."""

    slope: float
    intercept: float

    def at(self, sampled: float) -> float:
        return self.intercept + self.slope * sampled


@dataclass(frozen=True)
class Fit:
    """What the runs of one reward say, decoded in one way; ``error`` is half the width of the gain's interval."""

    cases: tuple[Case, ...]
    gain: Line
    change: Line
    error: float

    @property
    def starts(self) -> tuple[Start, ...]:
        return tuple(dict.fromkeys(case.start for case in self.cases))

    def unlike(self, features: Features, prompts: int) -> str:
        """In what a model is unlike those of the runs, in words; "" if in nothing.

        Each feature may lie as far outside as the runs reach among themselves, at least .05, or twofold (entropy). Of
        ``prompts`` so few that a share outside is within two standard errors of that, it is said that they are.
        """
        for name, value in features._asdict().items():
            known = [getattr(case.features, name) for case in self.cases]
            low, high = _reach(name, min(known), max(known))
            if not low <= value <= high:
                error = 0.0 if name == "entropy" else 2.0 * math.sqrt(value * (1.0 - value) / prompts)
                few = f" ± {error / 2.0:.2g} on {prompts} prompts" if low - error <= value <= high + error else ""
                more = "; more prompts may tell" if few else ""
                return (
                    f"{_WORDS[name]} is {value:.2g}{few}, that of the runs {min(known):.2g} to {max(known):.2g}{more}"
                )
        return ""


_WORDS = {
    "own": "agreement with its own frozen answers",
    "sampled": "agreement of its samples with its own frozen answers",
    "trusted": "the share of trusted answers",
    "disputed": "the share of disputed answers",
    "entropy": "initial entropy (nats)",
}


def _reach(name: str, low: float, high: float) -> tuple[float, float]:
    if name == "entropy":
        factor = max(2.0, high / low if low > 0.0 else 2.0)
        return low / factor, high * factor
    slack = max(0.05, high - low)
    return low - slack, high + slack


class Prediction(NamedTuple):
    """What training is expected to bring, as shares right and formatted.

    ``gain`` is over the best training-free baseline, from ``low`` to ``high``; ``change`` over the untrained model as
    it is decoded, ``change_high`` at most (within the same distance). ``stands_on``: which runs say so.
    """

    reward: str
    gain: float
    low: float
    high: float
    change: float
    change_high: float
    stands_on: Mapping[str, Any]


def fit(cases: Sequence[Case]) -> Fit:
    """Fit both lines, and the error on models left out. ``cases``: of one reward and decoding, two models at least."""
    starts = list(dict.fromkeys(case.start for case in cases))
    errors = [0.0]
    for start in starts:
        gain = _line([case for case in cases if case.start != start], "gain")
        errors += [abs(case.gain - gain.at(case.features.sampled)) for case in cases if case.start == start]
    return Fit(tuple(cases), _line(cases, "gain"), _line(cases, "change"), max(errors))


def _line(cases: Iterable[Case], name: str) -> Line:
    """Least squares over models; level where all of them have the same agreement."""
    by_start: dict[Start, list[Case]] = {}
    for case in cases:
        by_start.setdefault(case.start, []).append(case)
    x = [fmean(run.features.sampled for run in runs) for runs in by_start.values()]
    y = [fmean(getattr(run, name) for run in runs) for runs in by_start.values()]
    slope = linear_regression(x, y).slope if max(x) - min(x) > 1e-9 else 0.0
    return Line(slope, fmean(y) - slope * fmean(x))


def features_of(untrained: Untrained, way: str) -> Features:
    """Of a model decoded in one of its ways."""
    trust = untrained.trust
    own = share(untrained.ways[way].in_form)
    sampled = share(untrained.ways[TRAINING].in_form)
    return Features(own, sampled, trust["trusted"], trust["disputed"], untrained.entropy["sampled"].value)


def predict(
    calibration: Calibration, untrained: Untrained, temperature: float, reward: str | None = None
) -> Prediction | str:
    """What training is expected to bring at a temperature; in words why that cannot be said, if it cannot.

    ``reward``: train on this one; None: on the one whose interval has the highest lower end. Between the temperatures
    that runs were evaluated at, the interval spans those of both. No gain is predicted beyond what the best
    training-free baseline leaves, as far as the frozen answers know: where one of them gives it already, none is left.
    """
    if not calibration.cases:
        return "the calibration of this version stands on no run"
    decodings = [name for name, at in DECODINGS.items() if at == temperature] or list(DECODINGS)
    if temperature > max(DECODINGS.values()):
        return f"no run was evaluated above temperature {max(DECODINGS.values()):g}"
    said = {one: _predict(calibration, untrained, decodings, one) for one in _asked(calibration, reward)}
    found = [one for one in said.values() if isinstance(one, Prediction)]
    if found:
        return max(found, key=lambda one: one.low)
    return next((why for why in said.values() if isinstance(why, str)), f"no run was trained on {reward}")


def _asked(calibration: Calibration, reward: str | None) -> Sequence[str]:
    return calibration.rewards if reward is None else [one for one in calibration.rewards if one == reward]


def _predict(calibration: Calibration, untrained: Untrained, decodings: Sequence[str], reward: str) -> Prediction | str:
    features = features_of(untrained, untrained.own)
    room = 1.0 - share(untrained.ways[untrained.best()].in_form)
    gains, lows, highs, cases = [], [], [], list[Case]()
    changes, most = [], []
    for decoding in decodings:
        known = calibration.fit(decoding, reward)
        if known is None:
            return f"fewer than {calibration.least_models} models were trained on {reward} and evaluated {decoding}"
        if why := known.unlike(features, untrained.prompts):
            return f"this model is unlike those of the runs: {why}"
        error = known.error * max(1.0, math.sqrt(max(case.prompts for case in known.cases) / untrained.prompts))
        gain, change = known.gain.at(features.sampled), known.change.at(features.sampled)
        changes.append(change)
        most.append(change + error)
        gains.append(min(gain, room))
        lows.append(min(gain - error, room))
        highs.append(min(gain + error, room))
        cases += known.cases
    stands_on = calibration.stands_on(cases)
    return Prediction(reward, fmean(gains), min(lows), max(highs), fmean(changes), max(most), stands_on)


def read_calibration(path: Path = SHIPPED) -> Calibration:
    """The calibration in a file. Raises `RlifError` if it is none."""
    try:
        data = json.loads(path.read_text("utf-8"))
        if data["format"] != FORMAT:
            raise RlifError(f"{path}: a calibration of format {data['format']}, not {FORMAT}; make it anew")
        cases = tuple(Case(**{**case, "features": Features(**case["features"])}) for case in data["cases"])
        return Calibration(cases, data["recipes"], data["stands_on"]["date"], data["stands_on"]["rlif"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RlifError(
            f"{path}: no calibration ({type(error).__name__}); make one with python -m rlif.experiments.calibrate"
        ) from error
