"""Figures from metrics: what training did to accuracy, to format, to confidence. Sampled answers are drawn solid,
greedy ones dashed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlif.utils.plotting import BLUE, COLOURS, GREY, ORANGE, bare, png


@dataclass(frozen=True)
class Curve:
    """One run's evaluations: ``lines`` are its metrics.jsonl lines that carry eval/* keys, in order of steps."""

    label: str
    lines: Sequence[Mapping[str, float | int]]

    @property
    def steps(self) -> list[int]:
        return [int(line["step"]) for line in self.lines]

    def values(self, key: str) -> list[float]:
        """The values of one eval key, ``eval/`` left out; NaN at a step that lacks it."""
        return [line.get(f"eval/{key}", math.nan) for line in self.lines]

    def has(self, key: str) -> bool:
        return any(f"eval/{key}" in line for line in self.lines)


def write_figures(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write accuracy.png, format.png and confidence.png; returns their paths. Raises ValueError without curves."""
    if not curves:
        raise ValueError("no curves to draw")
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "accuracy": accuracy(curves),
        "format": right_against_formatted(curves),
        "confidence": confidence(curves),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(png(figure))
    return paths


def accuracy(curves: Sequence[Curve]) -> Figure:
    """Right-and-formatted answers over steps, sampled with a band of one standard error, and greedy."""
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for curve, colour in zip(curves, COLOURS, strict=False):
        values, errors = curve.values("right_and_formatted"), curve.values("right_and_formatted_stderr")
        axes.plot(curve.steps, values, color=colour, marker="o", markersize=3, label=curve.label)
        low = [value - error for value, error in zip(values, errors, strict=True)]
        high = [value + error for value, error in zip(values, errors, strict=True)]
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        if curve.has("greedy_right_and_formatted"):
            axes.plot(curve.steps, curve.values("greedy_right_and_formatted"), color=colour, **_GREEDY)
    _share(axes, "right and formatted answers")
    first = curves[0].lines[0]
    n = int(first.get("eval/problems", first["eval/n"]))
    axes.set_title(f"Accuracy during training ({n} held-out problems, band: one standard error)", fontsize=10)
    handles, labels = _with_greedy(axes, curves)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def right_against_formatted(curves: Sequence[Curve]) -> Figure:
    """One panel a run: answers right in any form against answers in the asked form, sampled and greedy."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.7 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, curve in zip(grid.flat, curves, strict=False):
        for key, colour, label in _VERDICTS:
            axes.plot(curve.steps, curve.values(key), color=colour, label=label)
            if curve.has(f"greedy_{key}"):
                axes.plot(curve.steps, curve.values(f"greedy_{key}"), color=colour, **_GREEDY)
        _share(axes, "")
        axes.set_title(curve.label, fontsize=9)
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_axis_off()
    handles, labels = _with_greedy(grid[0][0], curves)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle("What is gained: form or reasoning?", fontsize=11)
    return figure


def confidence(curves: Sequence[Curve]) -> Figure:
    """Token entropy and the share of completions with a transitional word, over steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for curve, colour in zip(curves, COLOURS, strict=False):
        left.plot(curve.steps, curve.values("entropy"), color=colour, label=curve.label)
        right.plot(curve.steps, curve.values("transitional_share"), color=colour, label=curve.label)
    for axes, title in ((left, "mean token entropy, nats"), (right, "completions with a transitional word, share")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0.0)
        bare(axes)
    left.legend(frameon=False, fontsize=8)
    return figure


_GREEDY: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2}
_VERDICTS = (
    ("formatted", ORANGE, "formatted"),
    ("right", BLUE, "right in any form"),
)


def _with_greedy(axes: Axes, curves: Sequence[Curve]) -> tuple[list[Artist], list[str]]:
    """What the legend of these axes shows, and what a dashed line is where there is one."""
    handles, labels = axes.get_legend_handles_labels()
    if not any(curve.has("greedy_right_and_formatted") for curve in curves):
        return handles, labels
    return [*handles, Line2D([], [], color=GREY, **_GREEDY)], [*labels, "greedy decoding"]


def _share(axes: Axes, label: str) -> None:
    axes.set_ylim(0.0, 1.02)  # a line at 1 is seen whole
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    bare(axes)
