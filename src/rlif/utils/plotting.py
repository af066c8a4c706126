"""What all pictures share: no display, colours that the colour-blind can tell apart, bare axes, PNG and SVG."""

import io
import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
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
