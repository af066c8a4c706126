"""What all pictures share: no display, colours that the colour-blind can tell apart, bare axes, PNG."""

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
