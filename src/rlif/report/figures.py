"""Pictures of some runs, each with its finding as title: accuracy, form, confidence, and how surer was not better.

Drawn for print: lines are labelled at their ends, colours can be told apart by the colour-blind and marks in black and
white, what needs no training is dashed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.transforms import Bbox

from rlif.report.summary import baselines, gain, headline, is_surer_and_wrong, summarise
from rlif.utils.atomic_io import make_folder, write_whole, writing
from rlif.utils.palette import DARK, LIGHT
from rlif.utils.plotting import MARKERS, End, bare, drawn_in, headed, label_ends, legible, png, theme

_SCORE = "right_and_formatted"
MOST_CURVES = len(MARKERS)
"""Runs that a picture shows at most: so many colours and marks are told apart."""


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


def write_figures(curves: Sequence[Curve], folder: Path, *, dark: bool = False) -> list[Path]:
    """Write accuracy.png, surer.png, format.png and confidence.png; returns their paths. ``dark``: on a dark ground, as
    accuracy-dark.png and so on.

    Raises ValueError without curves, `RlifError` if they cannot be written.
    """
    if not curves:
        raise ValueError("no curves to draw")
    paths = []
    with writing(folder, "choose another folder"), drawn_in(DARK if dark else LIGHT):
        make_folder(folder)
        for name, draw in FIGURES.items():
            paths.append(folder / f"{name}{'-dark' if dark else ''}.png")
            write_whole(paths[-1], png(draw(curves)))
    return paths


def accuracy(curves: Sequence[Curve]) -> Figure:
    """Right and formatted answers over steps, a panel a way to decode: sampled with a band of one standard error, and
    greedy. Dashed: the best that the untrained model gives, by whatever way to decode."""
    decodings = {"sampled": _SCORE, "greedy": f"greedy_{_SCORE}"}
    shown = {name: key for name, key in decodings.items() if any(curve.has(key) for curve in curves)}
    figure, grid = _panels(len(shown), sharey=True)
    for axes, (name, key) in zip(grid, shown.items(), strict=True):
        for curve, style in _styled(curves):
            if curve.has(key):
                _line(axes, curve.steps, curve.values(key), style)
                _band(axes, curve, key, style)
        _share(axes, "step", "right and formatted, share" if axes is grid[0] else "")
        axes.set_title(f"{name} answers", fontsize=9, loc="left")
    first = curves[0].lines[0]
    problems = int(first.get("eval/problems", first["eval/n"]))
    told = headline([summarise(curve.label, curve.lines) for curve in curves])
    title = f"Sampled answers: {told}" if len(curves) > 1 else f"{curves[0].label}: {told.partition(' ')[2]}"
    best = _untrained(curves)
    how = "; ".join(f"{model}, {words}" for model, (words, _) in best.items())
    headed(figure, title, f"{problems} problems; band: one standard error; dashed: untrained at its best ({how})")
    for axes, key in zip(grid, shown.values(), strict=True):
        for _, score in best.values():
            axes.axhline(score, color=theme().soft, linestyle="--", linewidth=0.9, zorder=1)
        edge = axes.get_xlim()[1]
        untrained = [
            (edge, score, f"{model} untrained: {score:.2f}", theme().soft) for model, (_, score) in best.items()
        ]
        label_ends(axes, [*_ends(curves, key), *untrained], size=8.0)
    return figure


def surer(curves: Sequence[Curve]) -> Figure:
    """Accuracy against entropy, a path a run: surer is to the right. Rings: before training; stars: the best step."""
    figure, (axes,) = _panels(1)
    for curve, style in _styled(curves):
        _path(axes, curve.values("entropy"), curve.values(_SCORE), style)
    axes.invert_xaxis()
    _share(axes, "mean token entropy, nats (surer to the right)", "right and formatted, share, sampled")
    wrong = any(is_surer_and_wrong(summarise(curve.label, curve.lines)) for curve in curves)
    every = sorted({b - a for curve in curves for a, b in zip(curve.steps, curve.steps[1:], strict=False)})
    dots = f"a mark every {every[0]} steps" if len(every) == 1 else "a mark an evaluation"
    title = "It grew surer, and wrong" if wrong else "Surer and right: do they go together?"
    headed(figure, title, f"a path a run, {dots}; ring: before training, star: its best step")
    _mark_paths(axes, curves, "entropy", _SCORE)
    return figure


def right_against_formatted(curves: Sequence[Curve]) -> Figure:
    """Right answers in any form against answers in the asked form, a path a run: a gain of form goes to the right, one
    of right answers up."""
    figure, (axes,) = _panels(1)
    for curve, style in _styled(curves):
        _path(axes, curve.values("formatted"), curve.values("right"), style)
    _share(axes, "in the asked form, share, sampled", "right in any form, share, sampled")
    told = gain(summarise(curves[0].label, curves[0].lines))
    headed(figure, "What is gained: form goes right, reasoning goes up", told)
    _mark_paths(axes, curves, "formatted", "right")
    return figure


def confidence(curves: Sequence[Curve]) -> Figure:
    """Token entropy and the share of completions with a transitional word, over steps."""
    keys = {"entropy": "mean token entropy, nats", "transitional_share": "answers with a transitional word, share"}
    figure, grid = _panels(len(keys))
    for axes, (key, title) in zip(grid, keys.items(), strict=True):
        for curve, style in _styled(curves):
            _line(axes, curve.steps, curve.values(key), style)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        bare(axes)
    points = [summarise(curve.label, curve.lines) for curve in curves]
    fell = sum(one["last"]["entropy"] < one["start"]["entropy"] for one in points)
    fewer = sum(one["last"]["transitional"] < one["start"]["transitional"] for one in points)
    headed(figure, f"Entropy falls in {fell} of {len(points)} runs, transitional words in {fewer}", "sampled answers")
    for axes, key in zip(grid, keys, strict=True):
        label_ends(axes, _ends(curves, key), size=8.0)
    return figure


FIGURES: Mapping[str, Callable[[Sequence[Curve]], Figure]] = {
    "accuracy": accuracy,
    "surer": surer,
    "format": right_against_formatted,
    "confidence": confidence,
}
"""The pictures by the name of their file."""

_Style = tuple[str, str]
"""Colour and mark."""


def _panels(n: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    size = (5.2 * n, 4.2) if n > 1 else (7.2, 4.8)
    figure, grid = plt.subplots(1, n, figsize=size, sharey=sharey, squeeze=False, layout="constrained")
    return figure, list(grid[0])


def _styled(curves: Sequence[Curve]) -> Iterator[tuple[Curve, _Style]]:
    """Each curve with its colour and mark; of those beyond `MOST_CURVES` nothing is drawn."""
    yield from zip(curves, zip(theme().colours, MARKERS, strict=True), strict=False)


def _line(axes: Axes, x: Sequence[int], y: Sequence[float | int], style: _Style) -> None:
    colour, marker = style
    axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.5)


def _band(axes: Axes, curve: Curve, key: str, style: _Style) -> None:
    pairs = list(zip(curve.values(key), curve.values(f"{key}_stderr"), strict=True))
    low, high = ([value + sign * error for value, error in pairs] for sign in (-1, 1))
    axes.fill_between(curve.steps, low, high, color=style[0], alpha=0.13, linewidth=0)


def _path(axes: Axes, x: Sequence[float | int], y: Sequence[float | int], style: _Style) -> None:
    """Marks joined in their order, the first in a ring."""
    colour, marker = style
    axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.3, zorder=2)
    axes.plot(x[:1], y[:1], color=colour, marker="o", markersize=10, markerfacecolor="none", linestyle="none", zorder=3)


def _mark_paths(axes: Axes, curves: Sequence[Curve], x: str, y: str) -> None:
    """A star at the step with the highest score, and the run's name near where its path ends, where least is."""
    stars = []
    for curve, (colour, _) in _styled(curves):
        scores = curve.values(_SCORE)
        best = max(range(len(scores)), key=lambda i, of=scores: of[i])  # type: ignore[misc]
        at = (curve.values(x)[best : best + 1], curve.values(y)[best : best + 1])
        stars.append(axes.transData.transform((at[0][0], at[1][0])) + _AROUND)
        edge = theme().ground
        axes.plot(*at, color=colour, marker="*", markersize=14, markeredgecolor=edge, linestyle="none", zorder=4)
    points = [axes.transData.transform([*zip(curve.values(x), curve.values(y), strict=True)]) for curve in curves]
    taken = np.concatenate([*stars, *(_dense(path[np.isfinite(path).all(axis=1)]) for path in points)])
    named: list[Bbox] = []
    for curve, (colour, _) in _styled(curves):
        end = (curve.values(x)[-1], curve.values(y)[-1])
        if all(map(math.isfinite, end)):
            named.append(_place(axes, end, curve.label, colour, taken, named))


_ACROSS, _UP = {1: "left", -1: "right", 0: "center"}, {1: "bottom", -1: "top", 0: "center"}
_SIDES = [side for side in product(_ACROSS, _UP) if side != (0, 0)]
"""Where a name may stand from its point: right, left or neither, above, below or neither; tried in this order."""


def _place(axes: Axes, at: tuple[float, float], name: str, colour: str, taken: Any, named: Sequence[Bbox]) -> Bbox:
    """Write a name beside a point, on the side where it covers the fewest ``taken`` points (n, 2, in pixels) and no
    other name; returns where it stands."""
    style: dict[str, Any] = {"color": legible(colour), "fontsize": 8, "path_effects": _halo()}
    text = axes.annotate(name, at, xytext=(0, 0), textcoords="offset points", annotation_clip=False, **style)
    ground = axes.get_window_extent()

    def stand(side: tuple[int, int]) -> Bbox:
        text.xyann = (8 * side[0], 6 * side[1])
        text.set(ha=_ACROSS[side[0]], va=_UP[side[1]])
        return text.get_window_extent()

    def cost(side: tuple[int, int]) -> float:
        box = stand(side)
        covered = ((taken >= box.min) & (taken <= box.max)).all(axis=1).sum()
        beyond = max(0.0, ground.y0 - box.y0, box.y1 - ground.y1, ground.x0 - box.x0)  # at the right there is room
        return float(covered + beyond + 100 * sum(box.overlaps(other) for other in named))

    return stand(min(_SIDES, key=cost))


_AROUND = np.array([(x, y) for x in range(-9, 10, 3) for y in range(-9, 10, 3)])
"""Pixels that a star covers, from its middle."""


def _dense(path: Any) -> Any:
    """Points (n, 2) along the pieces of a path, in pixels, 3 apart."""
    pieces = [np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 3))) for a, b in pairwise(path)]
    return np.concatenate([path, *pieces])


def _untrained(curves: Sequence[Curve]) -> dict[str, tuple[str, float]]:
    """Of each model, the best that it gives before training: by what way to decode, and its score."""
    results = [summarise(curve.label, curve.lines) for curve in curves]
    votes = results[0]["n"] // results[0]["problems"]
    found = {}
    for model, starts in baselines(results).items():
        name, start = max(starts.items(), key=lambda item: item[1]["score"])
        found[model] = (f"vote of {votes}" if name == "majority" else name, float(start["score"]))
    return found


def _halo() -> list[AbstractPathEffect]:
    """Around letters that lines may cross."""
    return [withStroke(linewidth=2.5, foreground=theme().ground)]


def _ends(curves: Sequence[Curve], key: str) -> list[End]:
    ends = [(curve.steps[-1], curve.values(key)[-1], curve.label, style[0]) for curve, style in _styled(curves)]
    return [end for end in ends if math.isfinite(end[1])]


def _share(axes: Axes, x: str, y: str) -> None:
    axes.set_ylim(0.0, 1.02)  # a line at 1 is seen whole
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    bare(axes)
