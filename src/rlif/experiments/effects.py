"""What a claim is tested by: from finished runs to one number a seed, for each part that has to show the claim."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations, pairwise
from statistics import fmean

from rlif.experiments.courses import SCORE, Course, Parts, by_seed, each_signal, internal, pearson, spearman

RIGHT = "eval/right"
GREEDY, GREEDY_RIGHT = "eval/greedy_right_and_formatted", "eval/greedy_right"
_BASELINE = re.compile(r"eval/(greedy|low_temperature|majority|borda|best_of_\w+|power_sampling)_right_and_formatted")


def against_labels(courses: Sequence[Course]) -> Parts:
    """Early gain less that of the same model and seed with verifiable rewards."""
    labels = {(c.model, c.seed): c.early_gain(SCORE) for c in courses if c.reward_kind == "verifiable"}
    return each_signal(lambda c: c.early_gain(SCORE) - labels.get((c.model, c.seed), math.nan))(courses)


def _form_over_reasoning(score: str, right: str) -> Callable[[Course], float]:
    """Of an early gain, what is form (right answers put into the asked form) less what is newly right in any form."""
    return lambda course: course.early_gain(score) - 2.0 * course.early_gain(right)


def form_of_a_gain(score: str, right: str) -> Callable[[Sequence[Course]], Parts]:
    """The same, of those signals that have a gain to divide: their mean early gain is above 0."""

    def effect(courses: Sequence[Course]) -> Parts:
        gains = each_signal(lambda course: course.early_gain(score))(courses)
        gaining = [signal for signal, seeds in gains.items() if sum(seeds.values()) > 0.0]
        parts = each_signal(_form_over_reasoning(score, right))(courses)
        return {signal: parts[signal] for signal in gaining}

    return effect


def without_gain(score: str) -> Callable[[Sequence[Course]], str]:
    """Which signals have no early gain to divide."""

    def remark(courses: Sequence[Course]) -> str:
        gains = each_signal(lambda course: course.early_gain(score))(courses)
        none = [signal for signal, seeds in gains.items() if sum(seeds.values()) <= 0.0]
        return f"no early gain to divide with {', '.join(none)}" if none else ""

    return remark


def gain_with_entropy(courses: Sequence[Course]) -> Parts:
    """Spearman's rank correlation of initial entropy and mean early gain over the models of a merge, for each seed."""
    seeds: dict[int, list[Course]] = {}
    for course in courses:
        if course.reward_kind == "internal" and course.lines[0].get("merge_ratio") is not None:
            seeds.setdefault(course.seed, []).append(course)
    points = {seed: _entropy_and_gain(runs) for seed, runs in seeds.items()}
    return {"over ratios": {seed: spearman(*zip(*each, strict=True)) for seed, each in points.items() if len(each) > 2}}


def _entropy_and_gain(courses: Iterable[Course]) -> list[tuple[float, float]]:
    """Of each model: initial entropy and mean early gain; the lowest entropy first."""
    models: dict[str, list[Course]] = {}
    for course in courses:
        models.setdefault(course.model, []).append(course)
    return sorted(
        (fmean(c.start("eval/entropy") for c in runs), fmean(c.early_gain(SCORE) for c in runs))
        for runs in models.values()
    )


def sign_change(courses: Sequence[Course]) -> str:
    """Between which initial entropies the mean gain over all seeds changes its sign."""
    merged = [c for c in courses if c.reward_kind == "internal" and c.lines[0].get("merge_ratio") is not None]
    points = _entropy_and_gain(merged)
    if len(points) < 3:
        return ""
    changes = [f"{low:.3f} and {high:.3f}" for (low, a), (high, b) in pairwise(points) if (a < 0.0) != (b < 0.0)]
    return f"the gain changes sign between {' and between '.join(changes)} nats" if changes else "no change of sign"


def signals_correlate(kind: str) -> Callable[[Sequence[Course]], Parts]:
    """Early correlation of every two signals on the same completions (``correlation/<kind>/A~B``)."""

    def effect(courses: Sequence[Course]) -> Parts:
        runs = [run for each in internal(courses, "base").values() for run in each]
        prefix = f"correlation/{kind}/"
        keys = sorted({key for run in runs for line in run.lines for key in line if key.startswith(prefix)})
        return {key.removeprefix(prefix): by_seed(runs, partial(Course.early, key=key)) for key in keys}

    return effect


def outcomes_correlate(courses: Sequence[Course]) -> Parts:
    """Correlation of the gains of two signals over the evaluated steps of all base models, for each seed."""
    gains: dict[tuple[str, int], dict[tuple[str, int], float]] = {}
    for signal, runs in internal(courses, "base").items():
        for run in runs:
            found = gains.setdefault((signal, run.seed), {})
            found |= {(run.model, line["step"]): run.value(line, SCORE) - run.start(SCORE) for line in run.lines[1:]}
    seeds = sorted({seed for _, seed in gains})
    correlations: dict[str, dict[int, float]] = {}
    for a, b in combinations(sorted({signal for signal, _ in gains}), 2):
        for seed in seeds:
            one, other = gains.get((a, seed), {}), gains.get((b, seed), {})
            if len(both := sorted(set(one) & set(other))) > 2:
                r = pearson([one[point] for point in both], [other[point] for point in both])
                correlations.setdefault(f"{a}~{b}", {})[seed] = r
    return correlations


def over_baselines(course: Course) -> float:
    """The better of sampled and greedy answers, early, less the best that needs no training; NaN without greedy."""
    greedy = course.early_gain(GREEDY)  # a number only if it was measured before training and early
    starts = [course.start(key) for key in course.lines[0] if key == SCORE or _BASELINE.fullmatch(key)]
    free = max(start for start in starts if math.isfinite(start))
    return max(course.early(SCORE), course.early(GREEDY)) - free if math.isfinite(greedy) else math.nan


def fall_of_each_setting(courses: Sequence[Course]) -> Parts:
    """Last score less the first, mean of the internal rewards, for each setting besides models, rewards and seeds."""
    found: dict[str, list[Course]] = {}
    for run in (run for each in internal(courses, "base").values() for run in each):
        found.setdefault(run.setting, []).append(run)
    return {setting: by_seed(runs, lambda run: run.last_gain(SCORE)) for setting, runs in found.items()}


def change(key: str) -> Callable[[Course], float]:
    """What a number did from before training to the end."""
    return lambda course: course.last_gain(key)


def early_gain(course: Course) -> float:
    """Of the share right and formatted, in the first third of the steps."""
    return course.early_gain(SCORE)
