"""Pictures of some runs, each with its finding as title: accuracy, form, confidence, and how surer was not better.

Drawn for print: lines are labelled at their ends, colours can be told apart by the colour-blind, what needs no training
is dashed.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from rlif.report.summary import baselines, gain, headline, is_surer_and_wrong, summarise
from rlif.utils.plotting import COLOURS, GREY, bare, label_ends, png

_SCORE = "right_and_formatted"


@dataclass(frozen=True)
class Curve:
    """One run's evaluations: ``lines`` are its metrics.jsonl lines that carry eval/* keys, in order of steps."""

    label: str
    lines: Sequence[Mapping[str, float | int]]

    @property
    def steps(self) -> list[int]:
        return [int(line["step"]) for line in self.lines]

    def values(self, key: str) -> list[float | int]:
        """The values of one eval key, ``eval/`` left out; NaN at a step that lacks it."""
        return [line.get(f"eval/{key}", math.nan) for line in self.lines]

    def has(self, key: str) -> bool:
        return any(f"eval/{key}" in line for line in self.lines)


def write_figures(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write accuracy.png, surer.png, format.png and confidence.png; returns their paths. Raises ValueError without
    curves."""
    if not curves:
        raise ValueError("no curves to draw")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(png(draw(curves)))
    return paths


def accuracy(curves: Sequence[Curve]) -> Figure:
    """Right and formatted answers over steps, a panel a way to decode: sampled with a band of one standard error, and
    greedy. Dashed: the best that the untrained model gives, by whatever way to decode."""
    decodings = {"sampled": _SCORE, "greedy": f"greedy_{_SCORE}"}
    shown = {name: key for name, key in decodings.items() if any(curve.has(key) for curve in curves)}
    figure, grid = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), 4.4), sharey=True, squeeze=False)
    for axes, (name, key) in zip(grid[0], shown.items(), strict=True):
        drawn = [(curve, colour) for curve, colour in zip(curves, COLOURS, strict=False) if curve.has(key)]
        for curve, colour in drawn:
            _line(axes, curve.steps, curve.values(key), colour)
            _band(axes, curve, key, colour)
        _share(axes, "step", "right and formatted, share" if axes is grid[0][0] else "")
        axes.set_title(f"{name} answers", fontsize=9, loc="left")
        _untrained(axes, curves, told=axes is grid[0][0])
        _named(axes, [(curve, curve.steps[-1], curve.values(key)[-1], colour) for curve, colour in drawn])
    first = curves[0].lines[0]
    problems = int(first.get("eval/problems", first["eval/n"]))
    told = headline([summarise(curve.label, curve.lines) for curve in curves])
    title = f"Sampled answers: {told}" if len(curves) > 1 else f"{curves[0].label}: {told.partition(' ')[2]}"
    _title(figure, title, f"{problems} held-out problems; band: one standard error; dashed: the best without training")
    return figure


def surer(curves: Sequence[Curve]) -> Figure:
    """Accuracy against entropy, a path a run: surer is to the right. Rings: before training; stars: the best step."""
    figure, axes = plt.subplots(figsize=(7.2, 5.0))
    for curve, colour in zip(curves, COLOURS, strict=False):
        _path(axes, curve.values("entropy"), curve.values(_SCORE), colour)
    axes.invert_xaxis()
    _share(axes, "mean token entropy, nats (surer to the right)", "right and formatted, share, sampled")
    axes.set_ylim(-0.02, 1.05)
    _mark_ends(axes, curves, "entropy", _SCORE)
    wrong = any(is_surer_and_wrong(summarise(curve.label, curve.lines)) for curve in curves)
    every = sorted({b - a for curve in curves for a, b in zip(curve.steps, curve.steps[1:], strict=False)})
    dots = f"a dot every {every[0]} steps" if len(every) == 1 else "a dot an evaluation"
    title = "It grew surer, and wrong" if wrong else "Surer and right: do they go together?"
    _title(figure, title, f"a path a run, {dots}; ring: before training, star: its best step")
    return figure


def right_against_formatted(curves: Sequence[Curve]) -> Figure:
    """Right answers in any form against answers in the asked form, a path a run: a gain of form goes to the right, one
    of right answers up."""
    figure, axes = plt.subplots(figsize=(7.2, 5.0))
    for curve, colour in zip(curves, COLOURS, strict=False):
        _path(axes, curve.values("formatted"), curve.values("right"), colour)
    _share(axes, "in the asked form, share, sampled", "right in any form, share, sampled")
    axes.set_ylim(-0.02, 1.05)
    _mark_ends(axes, curves, "formatted", "right")
    told = gain(summarise(curves[0].label, curves[0].lines))
    _title(figure, "What is gained: form goes right, reasoning goes up", told)
    return figure


def confidence(curves: Sequence[Curve]) -> Figure:
    """Token entropy and the share of completions with a transitional word, over steps."""
    keys = {"entropy": "mean token entropy, nats", "transitional_share": "answers with a transitional word, share"}
    figure, grid = plt.subplots(1, len(keys), figsize=(10.4, 4.2), squeeze=False)
    for axes, (key, title) in zip(grid[0], keys.items(), strict=True):
        drawn = list(zip(curves, COLOURS, strict=False))
        for curve, colour in drawn:
            _line(axes, curve.steps, curve.values(key), colour)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        bare(axes)
        _named(axes, [(curve, curve.steps[-1], curve.values(key)[-1], colour) for curve, colour in drawn])
    points = [summarise(curve.label, curve.lines) for curve in curves]
    fell = sum(one["last"]["entropy"] < one["start"]["entropy"] for one in points)
    fewer = sum(one["last"]["transitional"] < one["start"]["transitional"] for one in points)
    _title(figure, f"Entropy falls in {fell} of {len(points)} runs, transitional words in {fewer}", "sampled answers")
    return figure


_HALO = [withStroke(linewidth=2.5, foreground="white")]
"""Around letters that lines may cross."""

FIGURES: Mapping[str, Callable[[Sequence[Curve]], Figure]] = {
    "accuracy": accuracy,
    "surer": surer,
    "format": right_against_formatted,
    "confidence": confidence,
}
"""The pictures by the name of their file."""


def _line(axes: Axes, x: Sequence[int], y: Sequence[float | int], colour: str) -> None:
    axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.5)


def _band(axes: Axes, curve: Curve, key: str, colour: str) -> None:
    pairs = list(zip(curve.values(key), curve.values(f"{key}_stderr"), strict=True))
    low, high = ([value + sign * error for value, error in pairs] for sign in (-1, 1))
    axes.fill_between(curve.steps, low, high, color=colour, alpha=0.13, linewidth=0)


def _path(axes: Axes, x: Sequence[float | int], y: Sequence[float | int], colour: str) -> None:
    """Dots joined in their order, the first as a ring."""
    axes.plot(x, y, color=colour, marker="o", markersize=3.5, linewidth=1.3, zorder=2)
    axes.plot(x[:1], y[:1], color=colour, marker="o", markersize=9, markerfacecolor="none", linestyle="none", zorder=3)


def _mark_ends(axes: Axes, curves: Sequence[Curve], x: str, y: str) -> None:
    """A star at the step with the highest score, and the run's name where its path ends."""
    drawn = list(zip(curves, COLOURS, strict=False))
    for curve, colour in drawn:
        scores = curve.values(_SCORE)
        best = max(range(len(scores)), key=lambda i, of=scores: of[i])  # type: ignore[misc]
        at = (curve.values(x)[best : best + 1], curve.values(y)[best : best + 1])
        axes.plot(*at, color=colour, marker="*", markersize=13, markeredgecolor="white", linestyle="none", zorder=4)
    for curve, colour in drawn:
        heights = curve.values(y)
        below = len(heights) > 1 and heights[-2] > heights[-1]  # beyond the end, where the path does not come from
        where: dict[str, Any] = {
            "textcoords": "offset points",
            "xytext": (5, -11 if below else 5),
            "annotation_clip": False,
        }
        end = (curve.values(x)[-1], heights[-1])
        axes.annotate(curve.label, end, color=colour, fontsize=8, path_effects=_HALO, **where)
    first, last = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if min(first, last) <= tick <= max(first, last)])
    axes.set_xlim(first, last + 0.24 * (last - first))


def _untrained(axes: Axes, curves: Sequence[Curve], *, told: bool) -> None:
    """For each model a dashed line at the best that it gives before training, ``told``: with what that is."""
    results = [summarise(curve.label, curve.lines) for curve in curves]
    for model, starts in baselines(results).items():
        name, start = max(starts.items(), key=lambda item: item[1]["score"])
        votes = results[0]["n"] // results[0]["problems"]
        words = f"vote of {votes}" if name == "majority" else name
        axes.axhline(start["score"], color=GREY, linestyle="--", linewidth=0.9, zorder=1)
        if told:
            said = f"{model} before training, {words}: {start['score']:.2f}"
            where: dict[str, Any] = {"xytext": (2, 2), "textcoords": "offset points"}
            axes.annotate(said, (0, start["score"]), fontsize=7, color=GREY, path_effects=_HALO, **where)


def _named(axes: Axes, ends: Sequence[tuple[Curve, int, float | int, str]]) -> None:
    label_ends(axes, [(x, y, curve.label, colour) for curve, x, y, colour in ends if math.isfinite(y)], size=8.0)


def _share(axes: Axes, x: str, y: str) -> None:
    axes.set_ylim(0.0, 1.02)  # a line at 1 is seen whole
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    bare(axes)


def _title(figure: Figure, finding: str, how: str) -> None:
    """What is seen, and below it what is drawn."""
    figure.subplots_adjust(left=0.09, right=0.97, top=0.84, bottom=0.11, wspace=0.12)
    figure.text(0.02, 0.985, finding, fontsize=12, fontweight="bold", va="top")
    width = int(18 * figure.get_figwidth())
    figure.text(0.02, 0.93, textwrap.shorten(how, 2 * width), fontsize=8, color=GREY, va="top", wrap=True)
