"""The paper's four figures (arXiv 2506.17219) made of our runs and evaluations, as PNG and as SVG for print.

1. along an answer: entropy and transitional words, right and wrong answers apart (of an evaluation);
2. accuracy during training less that before it, a panel a model, a line a reward;
3. accuracy during training for each merge ratio, a panel a reward;
4. the three internal rewards compared: accuracy, entropy, self-certainty, length.

Lines are means over seeds, bands one standard error over seeds; of a single run they are over problems. Colours can be
told apart by the colour-blind; lines are labelled at their ends.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rlif.config import MergedModel
from rlif.errors import printable, shortened
from rlif.report.charts import curve
from rlif.report.eval_record import EvalRecord
from rlif.report.run_record import Group
from rlif.utils.palette import DARK, LIGHT
from rlif.utils.plotting import End, bare, drawn_in, label_ends, theme, write_drawn

SCORE = "eval/right_and_formatted"
INTERNAL = ("self_certainty", "token_entropy", "trajectory_entropy")
Points = Sequence[tuple[int, float, float]]
"""Step, value, standard error (NaN: unknown)."""


def write_paper_figures(
    groups: Sequence[Group], evaluations: Sequence[EvalRecord], folder: Path, *, dark: bool = False
) -> list[Path]:
    """Write those of the four figures that the runs and evaluations have the numbers for; returns their paths.

    ``dark``: on a dark ground. Raises `RlifError` if they cannot be written.
    """
    scored = [group for group in groups if len(curve(group, SCORE)) > 1]
    with drawn_in(DARK if dark else LIGHT):
        made = {f"figure-1-{printable(task)}": along_answers(one.of(task)) for one in evaluations for task in one.tasks}
        made |= {name: draw(scored) for name, draw in _OF_RUNS.items()}
        drawn = {name: figure for name, figure in made.items() if figure is not None}
        return [path for name, figure in drawn.items() for path in write_drawn(name, figure, folder)]


def along_answers(results: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Figure 1: a row a model, entropy on the left, transitional words on the right; None where neither is known."""
    known = [one for one in results if "transitional" in one.get("course", {})]
    if not known:
        return None
    figure, grid = plt.subplots(len(known), 2, figsize=(7.2, 2.5 * len(known)), squeeze=False, layout="constrained")
    for row, one in zip(grid, known, strict=True):
        panels = (("entropy", "entropy, nats"), ("transitional", "transitional words"))
        for axes, (name, label) in zip(row, panels, strict=True):
            _along(axes, one.get("course", {}).get(name, {}), label)
        row[0].set_title(shortened(printable(str(one["model"])), 60), fontsize=9, loc="left")
    figure.draw_without_rendering()  # from here on it is known how high the panels are
    for row in grid:
        for axes in row:
            label_ends(axes, [_end(line) for line in axes.get_lines()])
    return figure


def _end(line: Any) -> End:
    """Where a drawn line ends, its name and its colour."""
    return float(line.get_xdata()[-1]), float(line.get_ydata()[-1]), line.get_label(), line.get_color()


def change_of_accuracy(groups: Sequence[Group]) -> Figure | None:
    """Figure 2: right and formatted answers, less those before training, in points."""

    def change(group: Group) -> Points:
        points = curve(group, SCORE)
        return [(step, 100 * (value - points[0][1]), 100 * error) for step, value, error in points]

    panels = _by(groups, _model_of)
    return _panels({model: {_reward_of(one): change(one) for one in own} for model, own in panels.items()}, "points")


def accuracy_by_ratio(groups: Sequence[Group]) -> Figure | None:
    """Figure 3: right and formatted answers for each merge ratio; None without merges."""
    merged = sorted((one for one in groups if _ratio(one) is not None), key=lambda one: _ratio(one) or 0.0)
    panels = _by(merged, _reward_of)
    lines = {reward: {f"r = {_ratio(one):g}": curve(one, SCORE) for one in own} for reward, own in panels.items()}
    return _panels(lines, "right and formatted, share", ordered=True)


def signals_compared(groups: Sequence[Group]) -> Figure | None:
    """Figure 4: the internal rewards on the first model that was trained on two or more of them."""
    by_model = _by([one for one in groups if _reward_of(one) in INTERNAL], _model_of)
    own = next((own for own in by_model.values() if len(own) > 1), [])
    keys = {
        SCORE: "right and formatted",
        "eval/entropy": "entropy, nats",
        "eval/self_certainty": "self-certainty, nats",
        "eval/length": "length, tokens",
    }
    lines = {label: {_reward_of(one): curve(one, key) for one in own} for key, label in keys.items()}
    return _panels(lines if own else {}, "")


_OF_RUNS: Mapping[str, Callable[[Sequence[Group]], Figure | None]] = {
    "figure-2": change_of_accuracy,
    "figure-3": accuracy_by_ratio,
    "figure-4": signals_compared,
}


def _panels(panels: Mapping[str, Mapping[str, Points]], label: str, *, ordered: bool = False) -> Figure | None:
    """A panel a name, in it a labelled line each; ``ordered``: colours go from dark to light in the lines' order."""
    drawn = {name: lines for name, lines in panels.items() if any(lines.values())}
    if not drawn:
        return None
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    size = (3.9 * columns, 2.8 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    names = list(dict.fromkeys(name for lines in drawn.values() for name, points in lines.items() if points))
    ramp = _ramp(len(names)) if ordered else theme().colours
    colours = {name: ramp[i % len(ramp)] for i, name in enumerate(names)}  # a line's colour is the same in all panels
    for axes, (name, lines) in zip(grid.flat, drawn.items(), strict=False):
        for which, points in lines.items():
            if points:
                _line(axes, points, colours[which], which.replace("_", " "))
        axes.set_title(shortened(name, 50), fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=8)
        bare(axes)
    for axes in list(grid.flat)[len(drawn) :]:
        axes.set_axis_off()
    figure.draw_without_rendering()  # from here on it is known how high the panels are
    for axes in list(grid.flat)[: len(drawn)]:
        label_ends(axes, [_end(line) for line in axes.get_lines()])
    return figure


def _line(axes: Axes, points: Points, colour: str, name: str) -> None:
    steps, values = [step for step, _, _ in points], [value for _, value, _ in points]
    axes.plot(steps, values, color=colour, marker="o", markersize=2.5, linewidth=1.4, label=name)
    known = [point for point in points if math.isfinite(point[2])]
    low, high = ([value + sign * error for _, value, error in known] for sign in (-1, 1))
    axes.fill_between([step for step, _, _ in known], low, high, color=colour, alpha=0.15, linewidth=0)


def _along(axes: Axes, course: Mapping[str, Any], label: str) -> None:
    bare(axes)
    axes.set_xlabel("tenth of the answer", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.set_xticks(range(1, 11))
    axes.tick_params(labelsize=8)
    for kind, colour in zip(("right", "wrong"), theme().colours, strict=False):
        of = course.get(kind, {"value": [], "stderr": []})
        points = [
            (tenth, value, math.nan if error is None else error)
            for tenth, (value, error) in enumerate(zip(of["value"], of["stderr"], strict=True), 1)
            if value is not None
        ]
        if points:
            _line(axes, points, colour, kind)


def _by(groups: Sequence[Group], name: Callable[[Group], str]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(name(group), []).append(group)
    return found


def _model_of(group: Group) -> str:
    return group.label.partition(", ")[0]


def _reward_of(group: Group) -> str:
    return group.label.partition(", ")[2] or group.label


def _ratio(group: Group) -> float | None:
    recipe = group.runs[0].recipe
    model = recipe.policy.model if recipe else None
    return model.merge.ratio if isinstance(model, MergedModel) else None


def _ramp(n: int) -> list[str]:
    """So many colours of viridis, from dark to light, without the end that is too near to the ground."""
    low, high = (0.25, 1.0) if theme() is DARK else (0.0, 0.85)
    return [to_hex(plt.get_cmap("viridis")(low + (high - low) * i / max(n - 1, 1))) for i in range(n)]
