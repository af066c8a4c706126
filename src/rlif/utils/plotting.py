"""What all pictures share: no display, colours that the colour-blind can tell apart, bare axes, PNG and SVG."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

plt.rcParams["text.parse_math"] = False  # a $ in a model's name is no formula

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"
PINK, RED, SKY, YELLOW = "#CC79A7", "#D55E00", "#56B4E9", "#F0E442"
COLOURS = (BLUE, ORANGE, GREEN, GREY, PINK, RED, SKY, YELLOW)
"""In the order of curves. Source: Okabe and Ito, Color Universal Design."""


def bare(axes: Axes) -> None:
    """Two spines and faint horizontal lines behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


End = tuple[float | int, float | int, str, str]
"""Where a line ends, its name and its colour."""


def label_ends(axes: Axes, ends: Sequence[End], *, size: float = 7.5, room: float = 0.42) -> None:
    """Each line's name beside its end, moved apart where two would overlap; a thin line leads to one that was moved.

    ``size``: points; ``room``: how much wider the axes become for the names, as a share of their width.
    """
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height * 72 / plt.rcParams["figure.dpi"]  # points
    ranked = sorted(ends, key=lambda end: end[1])
    places = spread_apart([y for _, y, _, _ in ranked], low, high, 1.25 * size * (high - low) / height)
    left, right = axes.get_xlim()
    edge = max((x for x, _, _, _ in ends), default=right)
    gap = 0.03 * (right - left)
    leaders = [((x, y), (edge + gap, at)) for (x, y, _, _), at in zip(ranked, places, strict=True)]
    colours = [colour for *_, colour in ranked]
    axes.add_collection(LineCollection(leaders, colors=colours, linewidths=0.5, alpha=0.6), autolim=False)
    for (_, _, name, colour), at in zip(ranked, places, strict=True):
        style: dict[str, Any] = {"color": colour, "fontsize": size, "va": "center"}
        axes.annotate(f" {name}", (edge + gap, at), annotation_clip=False, **style)
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= right])  # none below the names
    axes.set_xlim(left, right + room * (right - left))
    axes.set_ylim(low, high)


def spread_apart(values: Sequence[float | int], low: float, high: float, apart: float) -> list[float | int]:
    """Ascending values moved so that each is ``apart`` from the next and, where there is room, between the bounds."""
    apart = min(apart, (high - low) / max(len(values) - 1, 1))
    places: list[float | int] = []
    for value in values:
        places.append(max(value, low, places[-1] + apart if places else low))
    for i in reversed(range(len(places))):
        places[i] = min(places[i], places[i + 1] - apart if i + 1 < len(places) else high)
    return places


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The picture; the figure is closed."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks is drawn as a box
            figure.savefig(buffer, format="png", dpi=dpi)
    finally:
        plt.close(figure)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The picture as SVG, its letters as shapes, the same bytes for the same figure; the figure is left open."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), plt.rc_context({"svg.hashsalt": "rlif"}):
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
