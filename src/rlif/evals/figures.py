"""The paper's figure 1 of an evaluation: what happens along the answers, of each model and task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlif.analysis.text import TENTHS
from rlif.errors import printable
from rlif.utils.atomic_io import write_whole, writing
from rlif.utils.palette import BLUE, ORANGE
from rlif.utils.plotting import bare, png

_PANELS = {
    "transitional": "transitional words in a tenth of an answer",
    "entropy": "token entropy, nats",
    "self_certainty": "self-certainty, nats",
    "logprob": "log-probability, nats",
}
_GROUPS = {"right": BLUE, "wrong": ORANGE}
_COLOURS = {**_GROUPS, "all": BLUE}  # all: without labels
"""Without ground truths there are no right and wrong ones."""
_WIDTH = 48  # characters of a model's name


def write_figures(results: Mapping[str, Any], out: Path) -> list[Path]:
    """Write course-TASK.png for each task of results.json; returns their paths. Raises `RlifError` if it cannot."""
    paths = []
    for task in results["asked"]["tasks"]:
        paths.append(out / f"course-{task}.png")
        image = png(profile(task, [result for result in results["results"] if result["task"] == task]))
        with writing(paths[-1], "numbers and answers are intact"):
            write_whole(paths[-1], image)
    return paths


def profile(task: str, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Transitional words and signals in each tenth of the answer, right and wrong answers apart where they are known.

    Args:
        results: the entries of results.json of this task. Each has a row of panels, each thing known of any a column.

    Bands are one standard error, clustered by problem. Source: arXiv 2506.17219, figure 1.
    """
    known = [name for name in _PANELS if any(name in result["course"] for result in results)]
    size = 3.3 * len(known), 0.7 + 2.5 * len(results)
    figure, grid = plt.subplots(
        len(results), len(known), figsize=size, sharex=True, sharey="col", squeeze=False, layout="constrained"
    )
    for row, result in zip(grid, results, strict=True):
        for axes, name in zip(row, known, strict=True):
            _draw(axes, result, name)
        counts = ", ".join(f"{n:,} {group}" for group, n in _counts(result).items())
        row[0].set_ylabel(f"{printable(result['model'])[-_WIDTH:]}\n{counts}", fontsize=8)
    for axes, name in zip(grid[0], known, strict=True):
        axes.set_title(_PANELS[name], fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("tenth of the answer", fontsize=8)
    keys = [
        Line2D([], [], color=colour, marker="o", markersize=3, label=f"{group} answers")
        for group, colour in _COLOURS.items()
        if any(group in _counts(result) for result in results)
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
    figure.suptitle(f"{task}: along the answers (band: one standard error, clustered by problem)", fontsize=10)
    return figure


def _draw(axes: Axes, result: Mapping[str, Any], name: str) -> None:
    bare(axes)
    axes.set_xticks(range(1, TENTHS + 1))
    axes.tick_params(labelsize=8)
    counts = _counts(result)
    if name not in result["course"] or not any(counts.values()):
        missing = "not known" if any(counts.values()) else "no answer could be decided"
        axes.text(0.5, 0.5, missing, ha="center", transform=axes.transAxes, fontsize=8)
        return
    tenth = np.arange(1, TENTHS + 1)
    for group, answers in counts.items():
        if not answers:
            continue
        of = result["course"][name][group]
        value, error = (np.array(of[part], dtype=np.float64) for part in ("value", "stderr"))
        label = f"{group} ({answers:,})"
        axes.plot(tenth, value, color=_COLOURS[group], marker="o", markersize=3, label=label)
        axes.fill_between(tenth, value - error, value + error, color=_COLOURS[group], alpha=0.15, linewidth=0)
    if name == "transitional":
        axes.set_ylim(bottom=0.0)


def _counts(result: Mapping[str, Any]) -> dict[str, int]:
    """How many answers are right and wrong; without labels how many there are."""
    if not any(count for key, count in result["counts"].items() if key != "unlabelled"):
        return {"all": int(result["metrics"]["n"])}
    return {group: sum(n for key, n in result["counts"].items() if key.startswith(group)) for group in _GROUPS}
