"""The table and the sentences say what the numbers say; the figures are drawn."""

from pathlib import Path

import pytest
from matplotlib.image import imread

from rlif.errors import RlifError
from rlif.quickstart import ARMS, explain, markdown, quickstart, summarise
from rlif.report.figures import Curve, draw_all


def line(
    step: int, score: float, right: float = 0.7, formatted: float = 0.8, entropy: float = 0.1
) -> dict[str, float | int]:
    return {
        "step": step,
        "eval/right_and_formatted": score,
        "eval/right_and_formatted_stderr": 0.02,
        "eval/right": right,
        "eval/formatted": formatted,
        "eval/entropy": entropy,
        "eval/transitional_share": 0.2,
        "eval/length": 25.0,
        "eval/n": 512.0,
    }


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            (0.60, 0.75, 0.40),
            "rose from 0.60 ± 0.02 to 0.75 ± 0.02 at step 10, then fell to 0.40 ± 0.02, below its start",
        ),
        ((0.60, 0.75, 0.62), "rose from 0.60 ± 0.02 to 0.75 ± 0.02 at step 10, then fell to 0.62 ± 0.02;"),
        ((0.60, 0.75, 0.90), "rose from 0.60 ± 0.02 to 0.90 ± 0.02 and held"),
        ((0.90, 0.80, 0.50), "did not rise above 0.90 ± 0.02 and fell to 0.50 ± 0.02"),
        ((0.60, 0.61, 0.62), "stayed near 0.60 ± 0.02"),  # within two standard errors of a difference: 0.057
    ],
)
def test_the_sentence_follows_the_numbers(scores: tuple[float, ...], said: str) -> None:
    result = summarise("one", [line(10 * i, score) for i, score in enumerate(scores)])
    assert said in explain([result, result])


@pytest.mark.parametrize(
    ("scores", "entropies", "said"),
    [
        ((0.6, 0.75, 0.4), (0.3, 0.2, 0.1), True),
        ((0.6, 0.75, 0.4), (0.3, 0.2, 0.25), False),  # no surer than at its best
        ((0.6, 0.75, 0.8), (0.3, 0.2, 0.1), False),  # it did not fall
    ],
)
def test_confidence_is_called_blind_only_if_it_was(
    scores: tuple[float, ...], entropies: tuple[float, ...], said: bool
) -> None:
    lines = [line(10 * i, score, entropy=h) for i, (score, h) in enumerate(zip(scores, entropies, strict=True))]
    assert ("does not tell the rise from the fall" in explain([summarise("one", lines)])) is said


def test_the_table_has_start_best_and_last() -> None:
    result = summarise("one", [line(0, 0.6), line(10, 0.75, formatted=0.9), line(20, 0.4, right=0.5)])
    assert "| one | 0.600 | 0.750 @ 10 | 0.400 | 0.70 → 0.50 | 0.80 → 0.80 |" in markdown([result])


def test_three_figures_are_drawn(tmp_path: Path) -> None:
    curves = [Curve(arm.label, [line(0, 0.6), line(10, 0.7), line(20, 0.5)]) for arm in ARMS]
    paths = draw_all(curves, tmp_path / "figures")
    assert [path.name for path in paths] == ["accuracy.png", "format.png", "confidence.png"]
    for path in paths:
        image = imread(path)
        assert image.shape[0] > 300
        assert image.std() > 0.05  # not an empty canvas
    with pytest.raises(ValueError, match="no curves"):
        draw_all([], tmp_path)


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("mine")
    with pytest.raises(RlifError, match="not an empty folder"):
        quickstart(tmp_path)


def test_quickstart_end_to_end(tmp_path: Path, tiny_base_path: Path) -> None:
    """Two steps of each run: the machinery, not the finding."""
    quickstart(tmp_path / "out", steps=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == sorted(
        [*(arm.name for arm in ARMS), "figures"]
    )
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(f"| {arm.label} |" in table for arm in ARMS)
