"""Pictures of runs: what is drawn is what the numbers say, and so is the title."""

from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from eval_lines import greedy_line, line
from rlif.report.figures import Curve, accuracy, confidence, right_against_formatted, surer, write_figures
from rlif.utils.palette import BLUE, DARK, LIGHT, ORANGE, Theme
from rlif.utils.plotting import spread_apart

LABELS = ("base, self-certainty", "base, token entropy", "instruct, self-certainty")


def drawn(axes: Axes) -> dict[str, list[float]]:
    """Heights of the lines of axes by colour; of the dashed ones by their style."""
    return {
        one.get_color() if one.get_linestyle() == "-" else one.get_linestyle(): list(one.get_ydata())
        for one in axes.get_lines()
        if one.get_linestyle() != "None"  # marks of the first and the best step
    }


def names(figure: Figure) -> list[str]:
    return [text.get_text().strip() for axes in figure.axes for text in axes.texts]


def test_accuracy_is_drawn_beside_what_needs_no_training() -> None:
    rows = [line(0, 0.6) | greedy_line(0.7, 0.65), line(10, 0.8) | greedy_line(0.9, 0.6)]
    figure = accuracy([Curve("base, x", rows), Curve("base, y", [line(0, 0.6), line(10, 0.3)])])
    sampled, greedy = figure.axes
    assert drawn(sampled) == {BLUE: [0.6, 0.8], ORANGE: [0.6, 0.3], "--": [0.7, 0.7]}
    assert drawn(greedy) == {BLUE: [0.7, 0.9], "--": [0.7, 0.7]}
    assert names(figure).count("base, x") == 2
    assert names(figure).count("base, y") == 1
    assert names(figure).count("base untrained: 0.70") == 2
    assert "dashed: untrained at its best (base, greedy)" in figure.texts[1].get_text()
    assert figure.texts[0].get_text() == "Sampled answers: 1 rises and stays up; 1 only loses"
    assert len(accuracy([Curve("base, x", [line(0, 0.6)])]).axes) == 1, "no panel of what was not evaluated"


def test_paths_go_from_a_ring_by_a_star_to_a_name() -> None:
    curve = Curve("base, x", [line(10 * i, *one) for i, one in enumerate(PATH)])
    (axes,) = surer([curve]).axes
    path, ring, star = axes.get_lines()
    assert list(zip(path.get_xdata(), path.get_ydata(), strict=True)) == [(0.3, 0.6), (0.2, 0.8), (0.1, 0.4)]
    assert (list(ring.get_xdata()), list(star.get_ydata())) == ([0.3], [0.8])
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "surer is to the right"
    assert axes.figure.texts[0].get_text() == "It grew surer, and wrong"
    held = Curve("base, y", [line(0, 0.6, entropy=0.3), line(10, 0.8, entropy=0.1)])
    assert surer([held]).texts[0].get_text() == "Surer and right: do they go together?"
    form = right_against_formatted([curve])
    assert list(form.axes[0].get_lines()[0].get_ydata()) == [0.66, 0.81, 0.41]
    # 0.20 gained, of which 0.81 - 0.66 are newly right
    assert "0.15 are answers newly right in any form and 0.05 are a matter of form." in form.texts[
        1
    ].get_text().replace("\n", " ")
    assert confidence([curve]).texts[0].get_text() == "Entropy falls in 1 of 1 runs, transitional words in 0"


PATH = ((0.6, 0.66, 0.8, 0.3), (0.8, 0.81, 0.9, 0.2), (0.4, 0.41, 0.9, 0.1))
"""Score, right in any form, formatted and entropy of a run at three steps."""


def test_labels_are_moved_apart_and_stay_inside() -> None:
    assert spread_apart([0.1, 0.5, 0.9], 0.0, 1.0, 0.1) == [0.1, 0.5, 0.9]
    assert spread_apart([0.5, 0.5], 0.0, 1.0, 0.1) == [0.5, 0.6]
    assert spread_apart([0.95, 1.0, 1.0], 0.0, 1.0, 0.1) == pytest.approx([0.8, 0.9, 1.0])
    crowded = spread_apart([0.5] * 5, 0.0, 1.0, 10.0)
    assert crowded == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert spread_apart([], 0.0, 1.0, 0.1) == []


def test_names_stand_right_of_the_panel_and_inside_the_picture() -> None:
    rows = [line(step, 0.6) | greedy_line(0.7, 0.65) for step in (0, 10)]
    figure = accuracy([Curve(f"base, {'long ' * 6}{i}", rows) for i in range(5)])
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if "long" in text.get_text()]
        assert len(boxes) == 5
        assert all(axes.get_window_extent().x1 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2)), "all end at one height"


def test_a_name_covers_no_other_name_and_no_path() -> None:
    """Two paths that end in one point and come to it from the right, where names stand first."""
    there = [line(0, 0.05, entropy=0.2), line(10, 0.5, entropy=0.3)]
    back = [line(0, 0.95, entropy=0.2), line(10, 0.5, entropy=0.3)]
    figure = surer([Curve("base, x", there), Curve("base, y", back)])
    one, other = (text.get_window_extent() for text in figure.axes[0].texts)
    assert not one.overlaps(other)
    for path in figure.axes[0].get_lines()[::2][:2]:
        points = figure.axes[0].transData.transform(list(zip(path.get_xdata(), path.get_ydata(), strict=True)))
        between = [points[0] + (points[1] - points[0]) * i / 100 for i in range(99)]
        assert not any(box.contains(*point) for box in (one, other) for point in between)


def test_dark_figures_are_drawn_on_a_dark_ground(tmp_path: Path) -> None:
    curves = [Curve(label, [line(s, 0.6) | greedy_line(0.7, 0.8) for s in (0, 10)]) for label in LABELS]
    paths = write_figures(curves, tmp_path, dark=True)
    assert [path.name for path in paths] == [
        f"{name}-dark.png" for name in ("accuracy", "surer", "format", "confidence")
    ]
    ground = [int(DARK.ground[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    for path in paths:
        image = imread(path)[..., :3]
        assert image[0, 0] == pytest.approx(ground, abs=0.003)
        assert (image.min(axis=2) > 0.9).mean() < 0.02, "no white panel"


def linear(colour: str) -> npt.NDArray[np.float64]:
    """Red, green, blue of a colour, as light (sRGB)."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """CIE 1976 L*a*b* of linear sRGB, white D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratios = to_xyz @ light.clip(0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


SEEN_BY = {
    "everybody": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""Machado, Oliveira and Fernandes 2009, severity 1.0: from linear sRGB to what is seen."""


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN_BY)
def test_curves_can_be_told_apart_by_everybody(theme: Theme, eyes: str) -> None:
    seen = [lab(np.array(SEEN_BY[eyes]) @ linear(colour)) for colour in theme.colours]
    # 2.3 is just noticeable (Mahy et al. 1994); lines are thin, so far more is asked
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 11
    luminances = [float(np.array([0.2126, 0.7152, 0.0722]) @ linear(one)) for one in (theme.ground, *theme.colours)]
    ground, *curves = luminances
    for one in curves:  # WCAG 2.2, 1.4.11
        assert (max(one, ground) + 0.05) / (min(one, ground) + 0.05) > 2.99


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    curves = [Curve(label, [line(s, 0.6) | greedy_line(0.7, 0.8) for s in (0, 10)]) for label in LABELS]
    paths = write_figures(curves, tmp_path / "figures")
    assert [path.name for path in paths] == ["accuracy.png", "surer.png", "format.png", "confidence.png"]
    for path in paths:
        image = imread(path)
        assert image.shape[0] > 300
        assert image.std() > 0.05  # not an empty canvas
        assert image[0, 0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no curves"):
        write_figures([], tmp_path)
