"""Colours of pictures and pages, light and dark: such as the colour-blind can tell apart."""

from dataclasses import dataclass

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#cc8500", "#00996b", "#4d4d4d"
PINK, RED, SKY, BROWN = "#cc72a5", "#a33b00", "#3d9ae0", "#4a3a00"
COLOURS = (BLUE, ORANGE, GREEN, GREY, PINK, RED, SKY, BROWN)
"""In the order of curves: after Okabe and Ito's (Color Universal Design), the pale ones darker, so that each has a
contrast of 3 to white, black and yellow changed for a grey and a brown."""


@dataclass(frozen=True)
class Theme:
    """The colours of a picture: its ground, letters, what stands back, faint lines, curves in their order, and the
    ground of a token of which the model is least sure."""

    ground: str
    ink: str
    soft: str
    faint: str
    colours: tuple[str, ...]
    unsure: str


LIGHT = Theme("#ffffff", "#1b1f23", "#555555", "#dddddd", COLOURS, "#e58f4d")
_LIGHTER = ("#4aa0f5", "#f2b632", "#22cf95", "#858585", "#f09ad0", "#e06040", "#c8efff", "#eaf53a")
DARK = Theme("#12161b", "#e6edf3", "#9aa7b4", "#38424d", _LIGHTER, "#a8541a")
