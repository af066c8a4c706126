"""What a study says of the paper's claims: each with its test, effect, interval over seeds and verdict.

Every claim is a line of `CLAIMS`, judged on the study's finished runs (rows of `rlif.experiments.study.collect`):

1. A run gives one number, such as its early gain: the mean score of the evaluations in the first third of its steps,
   less the score before training. The window is fixed beforehand, so that no peak is picked out of noise.
2. Runs of one seed are averaged; seeds are the sample. The interval is Student's t over them, 95 %.
3. A claim about "internal rewards" is made of each of the three, so the effect told is that of the one which speaks
   most against it. It is reproduced if all of them show it, and not reproduced if one of them shows the opposite.
4. The claim on initial entropy has merges for its sample: every seed starts from the same ones. An exact permutation
   test over them decides (p ≤ .05).
5. Undecided: the interval holds the boundary, there are fewer than two seeds, what is asked for was not measured, or a
   signal of the grid has no number. ``seen`` names it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rlif.analysis.student import interval
from rlif.experiments.courses import SCORE, Course, Needs, Parts, Signals, courses_of, each_signal, signals_of
from rlif.experiments.effects import (
    GREEDY,
    GREEDY_RIGHT,
    RIGHT,
    against_labels,
    baselines_before,
    chance_of_gain_with_entropy,
    change,
    each_pair,
    early_gain,
    fall_of_each_setting,
    form_of_a_gain,
    gain_with_entropy,
    gaining,
    outcomes_correlate,
    over_baselines,
    sign_change,
    signals_correlate,
    without_gain,
)
from rlif.utils.atomic_io import write_whole

Verdict = Literal["reproduced", "not reproduced", "undecided"]

MARGIN = 0.05
"""Two scores closer than this match, and a gain below it is little: two standard errors of the difference that two
evaluations on 500 problems tell at .8, 2 · sqrt(2 · .8 · .2 / 500) = .05."""
ALIKE = 0.5
"""Correlation above which two signals are alike: they share a quarter of their variance at least."""

SIGNIFICANT = 0.05
"""p of a one-sided test. Four models can give 1/24, three not less than 1/6."""


@dataclass(frozen=True)
class Finding:
    """One claim and what became of it. ``low`` and ``high`` bound the effect (95 %, over n seeds); NaN: unknown.

    Where a permutation test decides, there are no bounds, and n is the number of models. ``why`` says of an undecided
    one what it lacks.
    """

    claim: str
    source: str
    test: str
    verdict: Verdict
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    seen: str = ""
    why: str = ""

    @property
    def effect_text(self) -> str:
        return "–" if math.isnan(self.effect) else f"{self.effect:+.3f}"

    @property
    def interval_text(self) -> str:
        return "–" if math.isnan(self.low) else f"{self.low:+.3f} to {self.high:+.3f}"


@dataclass(frozen=True)
class Claim:
    """What is claimed: ``effect`` lies above ``boundary`` (below it, if ``above`` is false).

    ``effect(courses)`` gives, for each part that has to show it (a signal, a pair of them), one number a seed.
    """

    text: str
    source: str
    test: str
    effect: Callable[[Sequence[Course]], Parts]
    boundary: float = 0.0
    above: bool = True
    remark: Callable[[Sequence[Course]], str] = lambda courses: ""
    needs: Needs = lambda courses, signals: signals.get("base", ())
    chance: Callable[[Sequence[Course]], tuple[float, int]] | None = None
    """p of a permutation test and the number of its points; it decides where seeds are not the sample."""

    def judge(self, courses: Sequence[Course], signals: Signals) -> Finding:
        """On finished runs, of a grid that has these ``signals``."""
        parts = {name: _finite(seeds) for name, seeds in self.effect(courses).items()}
        parts = {name: values for name, values in parts.items() if values}
        if not parts:
            nothing = self.remark(courses) or "not measured"
            return Finding(self.text, self.source, self.test, "undecided", seen=nothing, why=nothing)
        p, points = self.chance(courses) if self.chance else (math.nan, 0)
        verdicts = {
            name: self._by_chance(values, p) if points else self._verdict(values) for name, values in parts.items()
        }
        sign = 1.0 if self.above else -1.0
        weakest = min(parts, key=lambda name: sign * fmean(parts[name]))
        missing = [name for name in self.needs(courses, signals) if name not in parts]
        worst = next(each for each in _WORST_FIRST if each in verdicts.values())
        verdict: Verdict = "undecided" if missing else worst
        told = [f"{name} {fmean(values):+.3f} ({verdicts[name]})" for name, values in parts.items()]
        told += [f"p = {p:.3f} over {points} models"] if points else []
        told += [f"without a number: {', '.join(missing)}"] if missing else []
        seen = "; ".join(filter(None, [*told, self.remark(courses)]))
        mean, low, high = interval(parts[weakest])
        lacking = {name: len(parts[name]) for name, each in verdicts.items() if each == "undecided"}
        why = self._why(missing, lacking, p) if verdict == "undecided" else ""
        n = points or len(parts[weakest])
        return Finding(self.text, self.source, self.test, verdict, mean, low, high, n, seen, why)

    def _why(self, missing: Sequence[str], lacking: Mapping[str, int], p: float) -> str:
        """What an undecided claim lacks; ``lacking``: the undecided parts, and how many seeds each has."""
        if missing:
            return f"no number yet for {', '.join(missing)}"
        if not math.isnan(p):
            return f"p = {p:.3f}, more than {SIGNIFICANT:g}"
        if alone := [name for name, seeds in lacking.items() if seeds < 2]:
            return f"a single seed of {', '.join(alone)}; two at least make an interval"
        return f"the interval of {', '.join(lacking)} holds {self.boundary:g}"

    def _by_chance(self, values: Sequence[float], p: float) -> Verdict:
        shown = (fmean(values) > self.boundary) == self.above
        return ("reproduced" if shown else "not reproduced") if p <= SIGNIFICANT else "undecided"

    def _verdict(self, values: Sequence[float]) -> Verdict:
        _, low, high = interval(values)
        if self.above:
            return "reproduced" if low > self.boundary else "not reproduced" if high < self.boundary else "undecided"
        return "reproduced" if high < self.boundary else "not reproduced" if low > self.boundary else "undecided"


_WORST_FIRST: tuple[Verdict, ...] = ("not reproduced", "undecided", "reproduced")


def findings(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Every claim, judged on the rows of one grid of `rlif.experiments.study.collect`.

    On the runs with the recipe's own settings; where there are none (`vary`), on those of each setting.
    """
    rows = list(rows)
    courses, signals = courses_of(rows), signals_of(rows)
    each_setting = sorted({course.setting for course in courses})
    plain = [course for course in courses if course.setting in ("", "none")]
    found = [claim.judge(plain, signals) for claim in CLAIMS]
    if courses and not plain:  # no setting is the recipe's own (`vary`)
        settings = {setting: [course for course in courses if course.setting == setting] for setting in each_setting}
        found = [
            replace(claim, text=f"{claim.text} ({setting})").judge(runs, signals)
            for setting, runs in settings.items()
            for claim in CLAIMS
        ]
    return [*found, SETTINGS.judge(courses, signals)] if len(each_setting) > 1 else found


def _finite(seeds: Mapping[int, float]) -> list[float]:
    return [value for value in seeds.values() if math.isfinite(value)]


def _nothing(courses: Sequence[Course], signals: Signals) -> Sequence[str]:
    """Of claims whose parts are no signals; or pairs that a single run measures all of."""
    return ()


CLAIMS = (
    Claim(
        "internal rewards raise a base model at first",
        "arXiv 2506.17219, abstract, figure 2",
        "early gain above 0, each signal",
        each_signal(early_gain),
    ),
    Claim(
        "at first they match verifiable rewards",
        "arXiv 2506.17219, abstract",
        f"early gain less that of verifiable rewards above −{MARGIN:g}, each signal",
        against_labels,
        boundary=-MARGIN,
    ),
    Claim(
        "in the end the base model is below its start",
        "arXiv 2506.17219, abstract, figure 2",
        "last score less the first below 0, each signal",
        each_signal(change(SCORE)),
        above=False,
    ),
    Claim(
        "the early gain is format rather than reasoning (sampled)",
        "arXiv 2506.17219, table of right and wrong answers with and without format",
        "gain of right and formatted, less twice that of right in any form, above 0; signals that gain",
        form_of_a_gain(SCORE, RIGHT),
        remark=without_gain(SCORE),
        needs=gaining(SCORE),
    ),
    Claim(
        "the early gain is format rather than reasoning (greedy)",
        "arXiv 2506.17219, table of right and wrong answers with and without format",
        "the same of greedy answers",
        form_of_a_gain(GREEDY, GREEDY_RIGHT),
        remark=without_gain(GREEDY),
        needs=gaining(GREEDY),
    ),
    Claim(
        "instruct models gain little or lose",
        "arXiv 2506.17219, abstract",
        f"early gain below {MARGIN:g}, each signal",
        each_signal(early_gain, "instruct"),
        boundary=MARGIN,
        above=False,
        needs=lambda courses, signals: signals.get("instruct", ()),
    ),
    Claim(
        "the lower the initial entropy, the smaller the gain",
        "arXiv 2506.17219, section 5, figure 3",
        "rank correlation of initial entropy and early gain (mean of seeds and signals) over merge ratios above 0",
        gain_with_entropy,
        remark=sign_change,
        needs=_nothing,
        chance=chance_of_gain_with_entropy,
    ),
    Claim(
        "entropy falls under each signal",
        "arXiv 2506.17219, theory and figure 4",
        "last entropy less the first below 0 nats, each signal",
        each_signal(change("eval/entropy")),
        above=False,
    ),
    Claim(
        "transitional words fall",
        "arXiv 2506.17219, table of transitional words",
        "last rate less the first below 0 words a token, each signal",
        each_signal(change("eval/transitional_rate")),
        above=False,
    ),
    Claim(
        "the three signals are alike: as rewards",
        "arXiv 2506.17219, partial equivalence",
        f"correlation over completions above {ALIKE:g}, early, each pair",
        signals_correlate("reward"),
        boundary=ALIKE,
        needs=_nothing,
    ),
    Claim(
        "the three signals are alike: as advantages",
        "arXiv 2506.17219, partial equivalence",
        f"correlation over completions above {ALIKE:g}, early, each pair",
        signals_correlate("advantage"),
        boundary=ALIKE,
        needs=_nothing,
    ),
    Claim(
        "the three signals are alike: in outcome",
        "arXiv 2506.17219, figure 4",
        f"correlation of changes between evaluations after the first, mean of models, above {ALIKE:g}, each pair",
        outcomes_correlate,
        boundary=ALIKE,
        needs=each_pair,
    ),
    Claim(
        "training on internal rewards brings more than what needs no training",
        "rlif",
        "better of sampled and greedy, early, less the best of sampled, greedy and vote before, above 0; each signal",
        each_signal(over_baselines),
        remark=baselines_before,
    ),
)

SETTINGS = Claim(
    "no setting prevents the fall",
    "arXiv 2505.21444, 2603.08660",
    "last score less the first below 0, mean of the signals, each setting",
    fall_of_each_setting,
    above=False,
    needs=_nothing,
)
"""Judged where a grid has settings besides models, rewards and seeds."""


def basis(rows: Iterable[Mapping[str, Any]]) -> str:
    """How much of a grid its findings rest on."""
    states = {row["cell"]: row["status"] for row in rows}
    return f"{list(states.values()).count('finished')} of {len(states)} cells finished"


def write_findings(found: Mapping[str, Sequence[Finding]], out: Path, bases: Mapping[str, str]) -> tuple[Path, Path]:
    """Write findings.md and findings.json (numbers that are unknown: null), grid by grid; returns their paths.

    ``bases``: what the findings of each grid rest on (`basis`).
    """
    parts = ["# Findings\n\nRules and thresholds: docs/study.md. Effects with 95 % intervals over n seeds.\n"]
    for grid, claims in found.items():
        parts.append(f"\n## {grid}\n\n{bases[grid]}.\n\n")
        parts.append("| claim | test | effect | 95 % interval | n | verdict | seen | source |\n")
        parts.append("|---|---|---|---|---|---|---|---|\n")
        for one in claims:
            verdict = f"{one.verdict}: {one.why}" if one.why else one.verdict
            cells = (one.claim, one.test, one.effect_text, one.interval_text, str(one.n), verdict, one.seen)
            parts.append("| " + " | ".join(cell.replace("|", "/") for cell in (*cells, one.source)) + " |\n")
    plain = {
        grid: {"basis": bases[grid], "findings": [_without_nan(asdict(one)) for one in claims]}
        for grid, claims in found.items()
    }
    paths = out / "findings.md", out / "findings.json"
    for path, text in zip(paths, ("".join(parts), json.dumps(plain, indent=1, allow_nan=False) + "\n"), strict=True):
        write_whole(path, text.encode())
    return paths


def _without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
