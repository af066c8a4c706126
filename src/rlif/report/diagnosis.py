"""A diagnosis as a picture: what is free, what training is predicted to give, how settled the frozen answers are."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlif.errors import printable, shortened
from rlif.utils.palette import BLUE, GREEN, GREY, ORANGE
from rlif.utils.plotting import bare

WAYS: Mapping[str, str] = {
    "temperature_1": "temperature 1",
    "own": "as you decode",
    "low_temperature": "low temperature",
    "greedy": "greedy",
    "majority": "vote",
    "borda": "vote by confidence",
    "best_of_k/self_certainty": "surest by self-certainty",
    "best_of_k/token_entropy": "surest by −entropy",
    "best_of_k/trajectory_entropy": "surest by logprob",
}
"""What a way to answer is called in tables and pictures, in their order."""
_TRUST = {
    "answered": "have a frozen answer",
    "trusted": "… a significant one",
    "disputed": "temperatures disagree",
    "in_doubt": "… or no significant one",
}


def figure(found: Mapping[str, Any]) -> Figure:
    """Of what `rlif.experiments.diagnose.Diagnosis.as_json` says. Bars are shares, lines one standard error."""
    drawn, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4.4), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
    )
    _draw_ways(left, found)
    _draw_shares(right, found)
    model = shortened(printable(found["model"]), 48)
    drawn.suptitle(f"{model}: {found['verdict']} ({found['prompts']} prompts; no label was read for it)", fontsize=11)
    return drawn


def _draw_ways(axes: Axes, found: Mapping[str, Any]) -> None:
    """Agreement with the frozen answers in the asked form; beside it the truth, where there are labels."""
    ways = found["numbers"]["ways"]
    names = [name for name in WAYS if name in ways][::-1]
    truth = found["labels"]["ways"] if found["labels"] else {}
    height = 0.38 if truth else 0.7
    for row, name in enumerate(names):
        _bar(axes, row + (height / 2 if truth else 0.0), height, ways[name]["agrees_in_form"], BLUE)
        if name in truth:
            _bar(axes, row - height / 2, height, truth[name]["right_and_formatted"], GREEN)
    axes.set_yticks(range(len(names)), [WAYS[name] for name in names], fontsize=8)
    own = ways[found["decoding"]]["agrees_in_form"]["value"]
    if own is not None:
        axes.axvline(own, color=GREY, linewidth=1.0, linestyle="--")
    prediction = found["prediction"]
    best = ways[found["numbers"]["headroom"]["over_best"]["best"]]["agrees_in_form"]["value"]
    if prediction is not None and best is not None:
        low, high = best + prediction["low"], best + prediction["high"]
        axes.plot([low, high], [-1, -1], color=ORANGE, linewidth=3)
        axes.plot([best + prediction["gain"]], [-1], color=ORANGE, marker="o")
        axes.set_yticks([-1, *range(len(names))], ["after training", *(WAYS[name] for name in names)], fontsize=8)
    axes.set_xlim(0.0, 1.02)
    kinds = "blue: agrees with its own frozen answers" + (", green: right" if truth else "")
    axes.set_title(f"in the asked form ({kinds})", fontsize=9)
    bare(axes)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _bar(axes: Axes, row: float, height: float, estimate: Mapping[str, float | None], colour: str) -> None:
    if estimate["value"] is not None:
        axes.barh(row, estimate["value"], height, color=colour, xerr=estimate["stderr"], error_kw={"elinewidth": 0.8})


def _draw_shares(axes: Axes, found: Mapping[str, Any]) -> None:
    """How settled the frozen answers are, and how much is in the asked form."""
    numbers = found["numbers"]
    rows = {label: numbers["trust"].get(name) for name, label in _TRUST.items()}
    rows |= {f"in form, {name}": value for name, value in numbers["formatted"].items()}
    rows |= {"cut off": numbers["repetition"]["truncated"], "repeat themselves": numbers["repetition"]["looping"]}
    for row, value in enumerate(list(rows.values())[::-1]):
        axes.barh(row, value or 0.0, 0.7, color=GREY)
    axes.set_yticks(range(len(rows)), list(rows)[::-1], fontsize=8)
    axes.set_xlim(0.0, 1.02)
    axes.set_title("share of prompts, of completions", fontsize=9)
    bare(axes)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
