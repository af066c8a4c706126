"""Pictures of runs: what is drawn is what the numbers say, and so is the title."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from eval_lines import greedy_line, line
from rlif.report.figures import Curve, accuracy, confidence, right_against_formatted, surer, write_figures
from rlif.utils.plotting import BLUE, ORANGE, spread_apart

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
    assert "base before training, greedy: 0.70" in names(figure)
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
    assert "0.15 are answers newly right in any form and 0.05 are a matter of form." in form.texts[1].get_text()
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


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    curves = [Curve(label, [line(s, 0.6) | greedy_line(0.7, 0.8) for s in (0, 10)]) for label in LABELS]
    paths = write_figures(curves, tmp_path / "figures")
    assert [path.name for path in paths] == ["accuracy.png", "surer.png", "format.png", "confidence.png"]
    for path in paths:
        image = imread(path)
        assert image.shape[0] > 300
        assert image.std() > 0.05  # not an empty canvas
    with pytest.raises(ValueError, match="no curves"):
        write_figures([], tmp_path)
