"""What a claim is tested by: from finished runs to one number a seed, for each part that has to show the claim."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, pairwise

from rlif.experiments.courses import (
    SCORE,
    Course,
    Needs,
    Parts,
    Signals,
    by_seed,
    each_signal,
    internal,
    mean_of_finite,
    one_sided,
    pearson,
    spearman,
)

RIGHT = "eval/right"
GREEDY, GREEDY_RIGHT = "eval/greedy_right_and_formatted", "eval/greedy_right"
TRAINING_FREE = {"sampled": SCORE, "greedy": GREEDY, "majority": "eval/majority_right_and_formatted"}
"""What answers without training, as an evaluation during training measures it."""


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
        gaining = [signal for signal, seeds in gains.items() if mean_of_finite(seeds.values()) > 0.0]
        parts = each_signal(_form_over_reasoning(score, right))(courses)
        return {signal: parts[signal] for signal in gaining}

    return effect


def without_gain(score: str) -> Callable[[Sequence[Course]], str]:
    """Which signals have no early gain to divide."""

    def remark(courses: Sequence[Course]) -> str:
        none = _without_gain(courses, score)
        return f"no early gain to divide with {', '.join(none)}" if none else ""

    return remark


def gaining(score: str) -> Needs:
    """The signals that have to show the form of a gain: all but those without one."""

    def needs(courses: Sequence[Course], signals: Signals) -> list[str]:
        none = _without_gain(courses, score)
        return [signal for signal in signals.get("base", ()) if signal not in none]

    return needs


def _without_gain(courses: Sequence[Course], score: str) -> list[str]:
    gains = each_signal(lambda course: course.early_gain(score))(courses)
    return [signal for signal, seeds in gains.items() if mean_of_finite(seeds.values()) <= 0.0]


def gain_with_entropy(courses: Sequence[Course]) -> Parts:
    """Spearman's rank correlation of initial entropy and mean early gain over the models of a merge.

    The merges are the sample, for all seeds start from the same ones: a model's runs are averaged, over signals too.
    """
    points = _entropy_and_gain(_merged(courses))
    return {"over ratios": {0: spearman(*zip(*points, strict=True))}} if len(points) > 2 else {}


def chance_of_gain_with_entropy(courses: Sequence[Course]) -> tuple[float, int]:
    """p of its exact permutation test (`rlif.experiments.courses.one_sided`), and how many models it is over."""
    points = _entropy_and_gain(_merged(courses))
    return (one_sided(*zip(*points, strict=True)) if len(points) > 2 else math.nan), len(points)


def _merged(courses: Sequence[Course]) -> list[Course]:
    return [c for c in courses if c.reward_kind == "internal" and c.lines[0].get("merge_ratio") is not None]


def _entropy_and_gain(courses: Iterable[Course]) -> list[tuple[float, float]]:
    """Of each model that has both: initial entropy and mean early gain; the lowest entropy first."""
    models: dict[str, list[Course]] = {}
    for course in courses:
        models.setdefault(course.model, []).append(course)
    points = [
        (mean_of_finite(c.start("eval/entropy") for c in runs), mean_of_finite(c.early_gain(SCORE) for c in runs))
        for runs in models.values()
    ]
    return sorted(point for point in points if all(map(math.isfinite, point)))


def sign_change(courses: Sequence[Course]) -> str:
    """Between which initial entropies the mean gain over all seeds changes its sign."""
    points = _entropy_and_gain(_merged(courses))
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
    """For each seed: correlation of what two signals change from one evaluation to the next, mean over base models.

    What stood before training is left out: the runs of a seed share its noise, which alone makes gains over it alike.
    Nor are models pooled, whose levels differ whatever the signal.
    """
    changes: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    for signal, runs in internal(courses, "base").items():
        for run in runs:
            steps = {
                after["step"]: run.value(after, SCORE) - run.value(before, SCORE)
                for before, after in pairwise(run.lines[1:])
            }
            changes.setdefault((signal, run.seed), {})[run.model] = steps
    correlations: dict[str, dict[int, float]] = {}
    for a, b in combinations(sorted({signal for signal, _ in changes}), 2):
        for seed in sorted({seed for _, seed in changes}):
            one, other = changes.get((a, seed), {}), changes.get((b, seed), {})
            each = [_correlation(one[model], other[model]) for model in sorted(set(one) & set(other))]
            correlations.setdefault(f"{a}~{b}", {})[seed] = mean_of_finite(each)
    return correlations


def _correlation(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Over the steps of both; NaN for fewer than three."""
    both = [step for step in one if step in other and math.isfinite(one[step]) and math.isfinite(other[step])]
    return pearson([one[step] for step in both], [other[step] for step in both]) if len(both) > 2 else math.nan


def each_pair(_: Sequence[Course], signals: Signals) -> list[str]:
    """Every two of the grid's internal rewards for base models."""
    return [f"{a}~{b}" for a, b in combinations(signals.get("base", ()), 2)]


def over_baselines(course: Course) -> float:
    """The better of sampled and greedy answers, early, less the best of `TRAINING_FREE` before training.

    NaN unless each of them was measured: without the vote, the best is not known.
    """
    free = [course.start(key) for key in TRAINING_FREE.values()]
    trained = [course.early(SCORE), course.early(GREEDY)]
    return max(trained) - max(free) if all(map(math.isfinite, (*free, *trained))) else math.nan


def baselines_before(courses: Sequence[Course]) -> str:
    """Which baselines the finished runs of base models have: the score of each before training."""
    runs = [run for each in internal(courses, "base").values() for run in each]
    means = {name: mean_of_finite(run.start(key) for run in runs) for name, key in TRAINING_FREE.items()}
    told = [f"{name} {mean:.3f}" if math.isfinite(mean) else f"{name} not measured" for name, mean in means.items()]
    return f"before training: {', '.join(told)}" if runs else ""


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
