"""What all pictures share: no display, colours and marks (`rlif.utils.palette`), bare axes, PNG and SVG."""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from rlif.utils.atomic_io import make_folder, write_whole, writing
from rlif.utils.palette import DARK, LIGHT, Theme

plt.rcParams["text.parse_math"] = False  # a $ in a model's name is no formula

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
"""Beside the colours, for print in black and white."""

_THEME: ContextVar[Theme] = ContextVar("theme", default=LIGHT)


def theme() -> Theme:
    """The theme that pictures are drawn in now."""
    return _THEME.get()


@contextmanager
def drawn_in(chosen: Theme) -> Iterator[None]:
    """Draw in another theme: figures made meanwhile have its ground and letters."""
    letters = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    grounds = ("figure.facecolor", "axes.facecolor")
    token = _THEME.set(chosen)
    try:
        with plt.rc_context(dict.fromkeys(letters, chosen.ink) | dict.fromkeys(grounds, chosen.ground)):
            yield
    finally:
        _THEME.reset(token)


def legible(colour: str) -> str:
    """A curve's colour for its name: nearer to the letters, so that small type in it can be read."""
    pairs = zip(to_rgb(colour), to_rgb(theme().ink), strict=True)
    return to_hex([0.7 * own + 0.3 * ink for own, ink in pairs])


def bare(axes: Axes) -> None:
    """Two spines and faint horizontal lines behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=theme().faint, linewidth=0.6)
    axes.set_axisbelow(True)


def headed(figure: Figure, finding: str, how: str) -> None:
    """What is seen, and below it what is drawn, both from the left edge; the panels take the rest, and are laid out.

    The figure's layout has to be constrained.
    """
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(finding, int(9 * width)), textwrap.wrap(how, int(15 * width))
    styles: tuple[dict[str, Any], ...] = (
        {"fontsize": 12, "fontweight": "bold"},
        {"fontsize": 8, "color": theme().soft},
    )
    taken = 0.1  # inches from above
    for own, style in zip(lines, styles, strict=True):
        figure.text(0.1 / width, 1 - taken / height, "\n".join(own), va="top", **style)
        taken += len(own) * 1.3 * style["fontsize"] / 72 + 0.06
    engine: Any = figure.get_layout_engine()
    edge = 0.08  # inches
    engine.set(rect=(edge / width, edge / height, 1 - 2 * edge / width, 1 - (taken + edge) / height))
    figure.draw_without_rendering()  # names are put where there is room: what lies where must be known


End = tuple[float | int, float | int, str, str]
"""Where a line ends, its name and its colour."""


def label_ends(axes: Axes, ends: Sequence[End], *, size: float = 7.5) -> None:
    """Each line's name right of the axes, beside its end, moved apart where two would overlap; a thin line leads there.

    ``size``: points. The figure's layout has to be constrained (it makes room for the names) and its height settled:
    call `matplotlib.figure.Figure.draw_without_rendering` before.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # points
    ranked = sorted(ends, key=lambda end: end[1])
    places = spread_apart([y for _, y, _, _ in ranked], low, high, 1.25 * size * (high - low) / height)
    at = right + 0.01 * (right - left)
    leaders = [((x, y), (at, place)) for (x, y, _, _), place in zip(ranked, places, strict=True)]
    colours = [colour for *_, colour in ranked]
    lines = LineCollection(leaders, colors=colours, linewidths=0.5, alpha=0.6, clip_on=False)
    axes.add_collection(lines, autolim=False)
    for (_, _, name, colour), place in zip(ranked, places, strict=True):
        style: dict[str, Any] = {"color": legible(colour), "fontsize": size, "va": "center"}
        axes.annotate(f" {name}", (at, place), annotation_clip=False, **style)
    axes.set_xlim(left, right)
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


def write_drawn(name: str, figure: Figure, folder: Path) -> list[Path]:
    """Write a figure as SVG and as PNG, ``NAME-dark`` if that is the theme; returns their paths. It is closed.

    Raises `RlifError` if they cannot be written.
    """
    paths = []
    with writing(folder, "choose another --figures"):
        make_folder(folder)
        for kind, data in (("svg", svg(figure)), ("png", png(figure, dpi=200))):
            paths.append(folder / f"{name}{'-dark' if theme() is DARK else ''}.{kind}")
            write_whole(paths[-1], data)
    return paths
