"""Two runs side by side: recipes, courses, last evaluations paired by problem."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hostile import run as command
from pages import STEPS, judged, line, prompts, rollouts, write_run
from rlif.analysis.paired import paired
from rlif.errors import RlifError
from rlif.report.run_comparison import compare_runs
from rlif.runs.rollout_table import verdicts_parquet

ASKED = [f"what is {n} + 1?" for n in range(8)]


def verdicts_of(out: Path, step: int, right: list[bool], asked: Sequence[str] = ASKED, name: str = "p") -> None:
    """What a run keeps of an evaluation of eight problems, one answer each."""
    texts = ["7" if yes else "6" for yes in right]
    (out / "eval_verdicts").mkdir(exist_ok=True)
    table = verdicts_parquet(step, {"sampled": (rollouts(prompts(asked, name), texts), judged(texts))})
    (out / "eval_verdicts" / f"step-{step:06d}.parquet").write_bytes(table)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", reward="verifiable", grpo={"lr": 1e-4})
    verdicts_of(a, 2, [True] * 8)  # not the last
    verdicts_of(a, 4, [True, True, False, False, False, False, False, False])
    verdicts_of(b, 4, [True, False, True, True, True, True, False, False])
    return a, b


def test_recipes_differ_where_they_were_told_to(runs: tuple[Path, Path]) -> None:
    found = compare_runs(*runs)
    assert found.recipe["grpo.lr"] == (3e-6, 1e-4)
    assert set(found.recipe) == {"grpo.lr", "reward"}
    assert compare_runs(runs[0], runs[0]).recipe == {}


def test_last_evaluations_are_paired_by_problem(runs: tuple[Path, Path]) -> None:
    found = compare_runs(*runs)
    assert found.last == (4, 4)
    pair = found.pairs["sampled"]["right"]
    assert (pair.a, pair.b, pair.difference, pair.n) == (0.25, 0.625, 0.375, 8)
    a, b = np.array([1, 1, 0, 0, 0, 0, 0, 0.0]), np.array([1, 0, 1, 1, 1, 1, 0, 0.0])
    assert pair == paired(a, b)
    assert [(row["run"], row["decoding"]) for row in found.courses] == [
        (letter, how) for letter in "AB" for how in ("sampled", "greedy")
    ]
    assert found.courses[0]["best"] == "0.750 ± 0.030 @ 2"


def test_files_by_two_names_are_paired_by_what_they_ask(tmp_path: Path) -> None:
    """The ids of rows without one are names of files and lines. A question that stands twice is nobody's."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    twice = [*ASKED[:6], ASKED[0], "another"]
    verdicts_of(a, 4, [True, True, False, False, False, False, False, False], name="one.jsonl:")
    verdicts_of(b, 4, [False, True, True, True, False, False, True, True], asked=twice, name="other.jsonl:")
    pair = compare_runs(a, b).pairs["sampled"]["right"]
    assert (pair.n, pair.a, pair.b) == (5, 0.2, 0.6)


def test_a_few_problems_that_both_happen_to_have_are_not_paired(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    verdicts_of(a, 4, [True] * 8, name="one.jsonl:")
    verdicts_of(b, 4, [True] * 8, asked=[*ASKED[:3], *(f"other {n}?" for n in range(5))], name="other.jsonl:")
    found = compare_runs(a, b)
    assert not found.pairs
    assert "the evaluations have no problems in common, or fewer than half: nothing is paired" in found.notes
    verdicts_of(b, 4, [True] * 8, asked=[*ASKED[:4], *(f"other {n}?" for n in range(4))], name="other.jsonl:")
    assert compare_runs(a, b).pairs["sampled"]["right"].n == 4


def test_runs_that_kept_no_verdicts_are_paired_by_the_answers_that_they_kept(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", {4: ["6", "7"]})
    found = compare_runs(a, b)
    assert found.pairs["greedy"]["right"][:3] == (0.5, 0.5, 0.0)  # each has one of the two problems right
    assert found.pairs["greedy"]["right"].n == 2
    assert any("only these are paired" in note for note in found.notes)
    verdicts_of(a, 4, [True] * 8)
    assert not compare_runs(a, b).pairs
    assert any("kept no verdicts" in note for note in compare_runs(a, b).notes)


def test_the_command_prints_tables_and_writes_them(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    ended = command(["compare", str(runs[0]), str(runs[1]), "--out", str(tmp_path / "c.json")])
    assert (ended.code, ended.err) == (0, "")
    assert "grpo.lr" in ended.out
    assert "right and formatted, %" in ended.out
    assert "+37.5" in ended.out
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["pairs"]["sampled"]["right"]["difference"] == 0.375
    assert written["recipe"]["grpo.lr"] == [3e-6, 1e-4]


def test_runs_without_labels_are_compared_by_what_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations and looks where there are any, else the steps of training; one answer a problem says no agreement."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    unlabelled = {"eval/undecided": 1.0, "eval/truncated": 0.0}
    several = {"eval/n": 128, "eval/self_agreement": 0.5}
    looks = {0: {"probe/agreement": 0.9}, 2: {}, 4: {"probe/agreement": 0.25}}
    for run, more in ((a, lambda step: {**several, **looks[step]}), (b, lambda step: {"eval/self_agreement": 1.0})):
        lines = [{"step": step, **line(step), **unlabelled, **more(step)} for step in STEPS]
        (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = compare_runs(a, b)
    shown = {name: [one and str(one) for one in pair] for name, pair in found.trends.items()}
    assert shown["agreement of a prompt's answers"] == ["0.50 → 0.50", None]
    assert shown["agreement with the untrained policy's answers"] == ["0.90 → 0.25", None]
    assert shown["entropy"] == ["1.500 → 1.100"] * 2
    assert shown["length"] == ["8 → 4"] * 2
    assert "answers cut off at the limit" not in shown  # 0 at all times in both
    assert found.as_json()["trends"]["length"][1]["last"] == 4.0
    monkeypatch.setenv("COLUMNS", "80")
    printed = command(["compare", str(a), str(b)]).out
    assert re.search(r"agreement with the untrained policy's answers +0.90 → 0.25 +–", printed)
    kept = [{key: value for key, value in one.items() if not key.startswith("eval/")} for one in lines]
    (b / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    assert str(compare_runs(a, b).trends["length"][1]) == "9 → 5"


def test_what_cannot_be_compared_is_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert (
        "no run, but another of these folders is one" in command(["compare", str(runs[0]), str(tmp_path / "none")]).err
    )
    assert "two runs can be compared, not 1" in command(["compare", str(runs[0])]).err
    (runs[0] / "eval_verdicts" / "step-000004.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(RlifError, match=r"step-000004.parquet: damaged \(.*delete it, and an earlier"):
        compare_runs(*runs)
