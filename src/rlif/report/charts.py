"""The curves of a page: which metrics stand together, and what is drawn of several runs."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rlif.report.run_record import Group
from rlif.runs.metric_keys import find_metric

MOST_POINTS = 500
"""Points of a line; of more, evenly spread ones are drawn."""


@dataclass(frozen=True)
class Chart:
    """What stands together. ``lines``: patterns of metrics, each with what its line is called; the first is solid.

    ``instead``: lines for a run that has none of the others. ``kind``: curves, or states (0 ok, 1 warn, 2 stop), which
    are drawn one row a line. ``zero``: the axis reaches to 0; not where that is far from anything a policy has.
    ``without_first``: the title where no run has the first line.
    """

    title: str
    unit: str
    lines: Mapping[str, str]
    instead: Mapping[str, str] | None = None
    machinery: bool = False
    kind: str = "curves"
    zero: bool = True
    without_first: str = ""


CHARTS = (
    Chart(
        "Right and formatted answers",
        "share",
        {
            "eval/right_and_formatted": "sampled",
            "eval/greedy_right_and_formatted": "greedy",
            "eval/majority_right_and_formatted": "majority",
        },
        {"verdict/right_and_formatted": "training answers"},
    ),
    Chart(
        "Form or reasoning: right in any form, and in the asked form",
        "share",
        {"eval/right": "right in any form", "eval/formatted": "formatted"},
        {"verdict/right": "training: right in any form", "verdict/formatted": "training: formatted"},
        without_first="Answers in the asked form",
    ),
    Chart(
        "Agreement with the untrained policy's answers, without labels",
        "share",
        {
            "probe/agreement": "agreement, in the asked form",
            "probe/agreement/any_form": "agreement in any form",
            "probe/self_agreement": "of the samples among themselves",
        },
    ),
    Chart(
        "Right answers to the few labelled problems",
        "share",
        {"probe/labelled_right_and_formatted": "right and formatted", "probe/labelled_right": "right in any form"},
    ),
    Chart("Cross-entropy of new answers under the untrained policy", "nats", {"probe/cross_entropy": "cross-entropy"}),
    Chart("What the guards say", "0 ok, 1 warn, 2 stop", {"guard/<name>": ""}, kind="states"),
    Chart("Entropy of the policy", "nats", {"eval/entropy": "evaluation", "signal/entropy": "training"}),
    Chart(
        "Change of entropy by an update",
        "nats",
        {"entropy/measured": "measured", "entropy/predicted": "predicted"},
    ),
    Chart(
        "Self-certainty",
        "nats",
        {"eval/self_certainty": "evaluation", "signal/self_certainty": "training"},
        zero=False,
    ),
    Chart(
        "Length of answers",
        "tokens",
        {"eval/length": "evaluation, sampled", "eval/greedy_length": "greedy", "length/mean": "training"},
    ),
    Chart("Answers cut off at the limit", "share", {"eval/truncated": "evaluation", "stop/length": "training"}),
    Chart(
        "Answers with a transitional word (but, wait, …)",
        "share",
        {"eval/transitional_share": "evaluation", "transitional/share": "training"},
    ),
    Chart("Reward, before it is normalised", "reward", {"reward/<name>/mean": ""}),
    Chart("KL to the untrained policy", "nats", {"kl": "training", "probe/kl": "probe"}),
    Chart("Groups without an advantage", "share", {"advantage/zero_groups": "groups"}, machinery=True),
    Chart("Loss", "nats", {"loss": "loss"}, machinery=True),
    Chart("Gradient norm before clipping", "norm", {"grad_norm": "norm"}, machinery=True),
    Chart("Gap of sampler and trainer", "nats", {"mismatch/mean": "mean"}, machinery=True),
    Chart("Speed of sampling", "tokens/s", {"tokens_per_second/rollout": "rollout"}, machinery=True),
)


def charts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Each chart that has a line, as the page's script reads it.

    A line is of one group: ``x`` steps, ``y`` values (of several runs their mean), ``e`` one standard error (over
    seeds where a group has several, else the evaluation's own) or None where none is known. ``thinned``: how many
    lines show fewer points than there are.
    """
    found = []
    for chart in CHARTS:
        drawn = [line for i, group in enumerate(groups) for line in _lines(chart, i, group)]
        if drawn:
            thinned = sum(line.pop("thinned") for line in drawn)
            first = any(line["style"] == 0 for line in drawn)
            title = chart.title if first else chart.without_first or chart.title
            head = {"title": title, "unit": chart.unit, "machinery": chart.machinery, "thinned": thinned}
            own = _rows(drawn) if chart.kind == "states" else {"lines": drawn}
            found.append({**head, "kind": chart.kind, "zero": chart.zero, **own})
    return found


MOST_ROWS = 18
"""Rows of states that are drawn with all that were ok throughout."""


def _rows(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lines of states; of many those that ever said more than ok, and how many others are ``quiet``."""
    loud = [line for line in lines if any(line["y"])]
    kept = (loud or list(lines[:MOST_ROWS])) if len(lines) > MOST_ROWS else list(lines)
    return {"lines": kept, "quiet": len(lines) - len(kept)}


def _lines(chart: Chart, number: int, group: Group) -> Iterator[dict[str, Any]]:
    lines = list(_of_patterns(chart.lines, number, group))
    yield from lines or _of_patterns(chart.instead or {}, number, group)


def _of_patterns(patterns: Mapping[str, str], number: int, group: Group) -> Iterator[dict[str, Any]]:
    for pattern, name in patterns.items():
        expression = re.compile(re.sub(r"<\w+>", "([^/]+)", pattern))
        for key in group.keys:
            if (match := expression.fullmatch(key)) and (points := curve(group, key)):
                shown = points if len(points) <= MOST_POINTS else _thinned(points)
                yield {
                    "group": number,
                    "key": key,
                    "name": name or match[1],
                    "style": list(patterns).index(pattern),
                    "x": [step for step, _, _ in shown],
                    "y": [brief_number(value) for _, value, _ in shown],
                    "e": [brief_number(error) for _, _, error in shown]
                    if any(math.isfinite(error) for _, _, error in shown)
                    else None,
                    "thinned": int(len(shown) < len(points)),
                }


def curve(group: Group, key: str) -> list[tuple[int, float, float]]:
    """Step, mean over the group's runs that have the metric there, and its standard error (NaN: unknown)."""
    values: dict[int, list[float]] = {}
    errors: dict[int, float] = {}
    for run in group.runs:
        for line in run.lines:
            if math.isfinite(value := line.get(key, math.nan)):
                values.setdefault(int(line["step"]), []).append(value)
                errors[int(line["step"])] = _own_error(line, key)
    found = []
    for step in sorted(values):
        own = values[step]
        error = stdev(own) / math.sqrt(len(own)) if len(own) > 1 else errors[step]
        found.append((step, fmean(own), error if len(group.runs) == 1 or len(own) > 1 else math.nan))
    return found


def _own_error(line: Mapping[str, float | int], key: str) -> float:
    return line.get(f"{key}_stderr", line.get(f"{key}/stderr", math.nan))


def _thinned(points: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    last = len(points) - 1
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def brief_number(value: float) -> float | None:
    """Six significant digits; None for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def meaning(key: str) -> str:
    """What a metric is, with its unit; empty for one that this rlif does not know."""
    metric = find_metric(key)
    return f"{metric.meaning} ({metric.unit})" if metric else ""
