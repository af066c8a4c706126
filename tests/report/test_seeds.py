"""Several seeds in one table, worked out by hand."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlif.errors import RlifError
from rlif.report.seeds import read_results, seeds_table


def points(*scores: float) -> dict[str, Any]:
    return {name: {"score": score} for name, score in zip(("start", "best", "last"), scores, strict=True)}


def run(label: str, sampled: tuple[float, ...], **others: tuple[float, ...]) -> dict[str, Any]:
    return {"label": label, **points(*sampled), **{name: points(*scores) for name, scores in others.items()}}


def test_gains_are_over_the_best_baseline_of_the_seed_and_their_error_is_over_seeds() -> None:
    first = [run("base, x", (0.4, 0.7, 0.5), greedy=(0.5, 0.9, 0.5), majority=(0.6, 0.72, 0.72))]
    second = [run("base, x", (0.5, 0.8, 0.7), greedy=(0.5, 0.9, 0.4), majority=(0.54, 0.8, 0.8))]
    # Baselines .60 and .54. Sampled at its best: gains .10 and .26, mean .18, error .16 / 2 = .08.
    assert seeds_table([first, second]).splitlines()[2:] == [
        "| base, x | sampled | 0.45 ± 0.05 | 0.75 ± 0.05 | 0.60 ± 0.10 | +0.18 ± 0.08 | +0.03 ± 0.13 |",
        "| base, x | greedy | 0.50 ± 0.00 | 0.90 ± 0.00 | 0.45 ± 0.05 | +0.33 ± 0.03 | -0.12 ± 0.02 |",
        "| base, x | majority | 0.57 ± 0.03 | 0.76 ± 0.04 | 0.76 ± 0.04 | +0.19 ± 0.07 | +0.19 ± 0.07 |",
    ]


def test_the_last_gain_is_bold_where_its_interval_lies_above_zero_and_the_best_never() -> None:
    """Gains over .4 at t(2) = 4.303: .10, .12, .14 ± .05 lie above 0; .02, .12, .22 ± .25 do not."""
    for last, bold in (((0.5, 0.52, 0.54), "**+0.12 ± 0.01**"), ((0.42, 0.52, 0.62), "+0.12 ± 0.06")):
        (row,) = seeds_table([[run("base, x", (0.4, 0.9, score))] for score in last]).splitlines()[2:]
        assert row.split(" | ")[-2:] == ["+0.50 ± 0.00", f"{bold} |"]


def test_a_single_seed_has_no_error_and_nothing_bold() -> None:
    (row,) = seeds_table([[run("base, x", (0.4, 0.7, 0.5))]]).splitlines()[2:]
    assert row == "| base, x | sampled | 0.40 | 0.70 | 0.50 | +0.30 | +0.10 |"


def test_the_command_prints_the_table_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps([run("base, x", (0.4, 0.7, 0.5))]))
    command = [sys.executable, "-m", "rlif.report.seeds", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == seeds_table(read_results([tmp_path]))


def test_what_is_missing_or_of_other_runs_is_named(tmp_path: Path) -> None:
    for name, label in (("a", "base, x"), ("b", "base, y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps([run(label, (0.4, math.pi, 0.5))]))
    assert read_results([tmp_path / "a"])[0][0]["best"]["score"] == math.pi
    with pytest.raises(RlifError, match=r"b/results\.json: not the same runs as in .*a$"):
        read_results([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(RlifError, match=r"c/results\.json: no such file; make it with: rlif quickstart --out .*c"):
        read_results([tmp_path / "c"])
