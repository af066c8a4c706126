"""The page of a study and of an evaluation, and the paper's figures of them."""

import json
import re
from pathlib import Path

import pytest

from evaluations import Scripted, candidate, settings
from pages import STEPS, data_of, line, write_run
from rlif.cli.report import gather
from rlif.evals.runner import evaluate
from rlif.evals.store import read_answers
from rlif.experiments.findings import findings
from rlif.experiments.study import collect
from rlif.report.page import page
from rlif.report.paper_figures import along_answers, change_of_accuracy, write_paper_figures
from rlif.report.run_record import grouped

STUB = "/* plotly stands here */"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged") / "judged"
    evaluate([candidate(Scripted("weak", right=0.2)), candidate(Scripted("strong", right=0.9))], settings(), out)
    return out


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rewards with two seeds each, and one run of a merge; a cell that has not begun."""
    out = tmp_path_factory.mktemp("study") / "study"
    merged = {"merge": {"base": "tiny-base", "instruct": "tiny-instruct", "ratio": 0.5}}
    cells = []
    for model, source in (("base", "tiny-base"), ("r0.5", merged)):
        for reward in ("self_certainty", "token_entropy"):
            for seed in (0, 1):
                name = f"{model}-{reward}-s{seed}"
                kind = {"model_kind": "base" if model == "base" else "merged", "merge_ratio": None}
                axes = {"model": model, "reward": reward, "seed": seed}
                cells.append({"cell": name, "axes": axes, **kind, "reward_kind": "internal"})
                if model == "base" or (seed, reward) == (0, "self_certainty"):
                    write_run(out / "runs" / name, policy={"model": source}, reward=reward, seed=seed)
    (out / "grids").mkdir()
    (out / "grids" / "small.json").write_text(json.dumps({"grid": {}, "cells": cells}))
    return out


def test_an_evaluation_is_told_by_its_numbers(judged: Path) -> None:
    html = page(gather([judged]), STUB)
    results = json.loads((judged / "results.json").read_text())["results"]
    for one in results:
        shown = f"{100 * one['metrics']['right']:.1f} ± {100 * one['metrics']['right_stderr']:.1f}"
        assert f'<th scope="row">{one["model"]}</th><td>{shown}</td>' in html
    best = max(results, key=lambda one: one["metrics"]["right"])
    assert f"arithmetic: {best['model']} {100 * best['metrics']['right']:.1f}" in html
    data = data_of(html)
    assert data["panels"][0]["groups"] == ["weak", "strong"]
    drawn = {(one["group"], one["key"]): one for chart in data["panels"][0]["charts"] for one in chart["lines"]}
    for i, one in enumerate(results):
        known = [value for value in one["course"]["entropy"]["wrong"]["value"] if value is not None]
        shown_values = [value for value in drawn[i, "course/entropy/wrong"]["y"] if value is not None]
        assert shown_values == pytest.approx(known, rel=1e-5)


def test_answers_of_an_evaluation_stand_model_by_model(judged: Path) -> None:
    (source,) = data_of(page(gather([judged]), STUB))["sources"]
    assert (source["axis"], source["places"]) == ("model", ["strong", "weak"])
    assert len(source["answers"]) == 2 * 6 * 3
    for place, model in enumerate(source["places"]):
        kept = read_answers(judged / model / "arithmetic")
        expected = sorted(zip(kept.table.texts, (one.right for one in kept.table.verdicts), strict=True))
        shown = [("".join(one["t"]), one["r"]) for one in source["answers"] if one["s"] == place]
        assert sorted(shown) == expected
    first = source["answers"][0]
    assert first["m"]["entropy"] is not None
    assert "v" not in first, "no token's signal is kept"


def test_an_evaluation_that_is_not_finished_says_so(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_bytes((judged / "eval.json").read_bytes())
    html = page(gather([tmp_path]), STUB)
    assert "results.json is missing: finish it with the same rlif eval" in html
    assert "is not finished." in html


def test_a_study_has_its_findings_and_its_runs(study: Path) -> None:
    html = page(gather([study]), STUB)
    text = re.sub(r"<[^>]+>", " ", html)
    judged = findings(collect(study).to_pylist())
    for one in judged:
        assert f'<th scope="row">{one.claim}</th><td class="verdict {one.verdict.replace(" ", "-")}">' in html
    counts = [sum(one.verdict == name for one in judged) for name in ("reproduced", "not reproduced", "undecided")]
    said = "{} reproduced, {} not reproduced, {} undecided".format(*counts)
    assert f"small, 5 of 8 cells finished. Of the paper's claims and rlif's own: {said}." in text.replace("&#39;", "'")
    groups = data_of(html)["panels"][0]["groups"]
    assert groups == ["base, self_certainty", "base, token_entropy", "r0.5, self_certainty"]
    assert "5 runs, 5 of them finished." in text


def test_the_papers_figures_are_written(study: Path, judged: Path, tmp_path: Path) -> None:
    subjects = gather([study, judged])
    paths = write_paper_figures(grouped(subjects.runs), subjects.evaluations, tmp_path / "figures")
    names = ["figure-1-arithmetic", "figure-2", "figure-3", "figure-4"]
    assert sorted(path.name for path in paths) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    for path in paths:
        assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    again = write_paper_figures(grouped(subjects.runs), subjects.evaluations, tmp_path / "again")
    svgs = [[path.read_bytes() for path in some if path.suffix == ".svg"] for some in (paths, again)]
    assert svgs[0] == svgs[1], "the same bytes each time"
    assert write_paper_figures([], [], tmp_path / "none") == []


def test_names_of_the_paper_s_figures_do_not_cover_each_other(judged: Path, tmp_path: Path) -> None:
    (record,) = gather([judged]).evaluations
    figure = along_answers(record.of("arithmetic"))
    assert figure is not None
    for axes in figure.axes:
        right, wrong = (text for text in axes.texts)
        assert {right.get_text(), wrong.get_text()} == {" right", " wrong"}
        assert not right.get_window_extent().overlaps(wrong.get_window_extent())
    rewards = {"a": ("self_certainty", "token_entropy"), "b": ("token_entropy",)}
    runs = [write_run(tmp_path / f"{a}-{b}", policy={"model": a}, reward=b) for a, own in rewards.items() for b in own]
    pairs = change_of_accuracy(grouped(gather(runs).runs))
    assert pairs is not None
    first, second = ({line.get_label(): line.get_color() for line in axes.get_lines()} for axes in pairs.axes)
    assert first["token entropy"] == second["token entropy"] != first["self certainty"]


def test_figure_2_draws_the_change_in_points(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (0, 1)]
    lines = [{"step": step, **line(step), "eval/right_and_formatted": 0.5 + step / 100} for step in STEPS]
    (runs[1] / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    figure = change_of_accuracy(grouped(gather(runs).runs))
    assert figure is not None
    (drawn,) = figure.axes[0].lines
    # means of .25, .75, .125 and .5, .52, .54, less the first of them
    assert list(drawn.get_xdata()) == [0, 2, 4]
    assert list(drawn.get_ydata()) == pytest.approx([0.0, 26.0, -4.25])
