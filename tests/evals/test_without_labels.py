"""Problems without a ground truth: nothing is said of right and wrong, and everything else is."""

import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from evaluations import Scripted, candidate, settings, timeless
from rlif.cli.train_progress import eval_parts, step_parts
from rlif.evals import figures, tables
from rlif.evals.compare import compare
from rlif.evals.runner import evaluate
from rlif.recipes import load_recipe, shipped_recipes
from rlif.report.eval_record import courses, read_evaluation, sentences
from rlif.report.eval_record import tables as page_tables
from rlif.report.summary import summarise
from rlif.runs.history import read_metrics
from rlif.training.callbacks import NullCallback
from rlif.training.loop import train
from rlif.utils.terminal import Console

LABELLED = [{"id": f"a{i}", "question": f"{i}+1=?", "answer": str(i + 1)} for i in range(5)]
BARE = [{"id": f"b{i}", "question": f"{i}+2=?", "answer": None} for i in range(4)]


def judged(path: Path, rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    chosen = settings(tasks=("own",), data={"own": str(path)}, limit=None, samples=3, baselines=("greedy",))
    return evaluate([candidate(Scripted())], chosen, out)


def shown(view: Any) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(view) if not isinstance(view, dict) else tables.print_results(console, view)
    return console.export_text()


def test_a_file_of_which_some_problems_have_an_answer_is_judged_by_these_alone(tmp_path: Path) -> None:
    both = judged(tmp_path / "mixed.jsonl", [BARE[0], *LABELLED, *BARE[1:]], tmp_path / "both")["results"][0]
    alone = judged(tmp_path / "own.jsonl", LABELLED, tmp_path / "alone")["results"][0]
    for name in ("right", "right_and_formatted", "undecided"):
        assert both["metrics"][name] == alone["metrics"][name]
        assert both["metrics"][f"{name}_stderr"] == pytest.approx(alone["metrics"][f"{name}_stderr"])
    for part in ("pass_at", "maj_at", "confidence", "baselines"):
        assert both[part] == alone[part], part
    assert both["counts"] == {**alone["counts"], "unlabelled": 3 * len(BARE)}
    assert (both["metrics"]["problems"], both["metrics"]["n"]) == (9.0, 27.0)
    assert f"{len(BARE)} have none" in shown(tables.scores(3, [both]))


def test_a_file_without_answers_says_all_that_needs_none(tmp_path: Path) -> None:
    results = judged(tmp_path / "own.jsonl", BARE, tmp_path / "e")
    (found,) = results["results"]
    assert math.isnan(found["metrics"]["right"])
    rows = parquet.read_table(tmp_path / "e/scripted/own").to_pylist()
    commonest = [Counter(row["extracted"] for row in rows if row["problem_id"] == one["id"]) for one in BARE]
    assert found["metrics"]["self_agreement"] == pytest.approx(sum(max(c.values()) for c in commonest) / 12)
    assert found["metrics"]["formatted"] == pytest.approx(2 / 3)
    assert found["baselines"] == {}
    screen = shown(results)
    assert "nothing is said of right and wrong" in screen
    assert "agree" in screen
    assert not {"avg@3", "nan", "neither", "AUROC"} & set(screen.split())
    document = (tmp_path / "e/results.md").read_text()
    assert "| model | self-agreement | formatted | cut off | tokens |" in document
    assert f"| scripted | {100 * found['metrics']['self_agreement']:.1f} ± " in document
    written = json.loads((tmp_path / "e/results.json").read_text())["results"][0]
    assert written["metrics"]["right"] is None
    assert written["pass_at"] == {k: {"value": None, "stderr": None} for k in ("1", "2", "3")}
    # The page and the figure of it.
    record = read_evaluation(tmp_path / "e")
    (said,) = sentences(record)
    assert "of a problem's answers agree" in said
    assert "are right" not in said
    assert [line["name"] for line in courses(record, "own")[0]["lines"]] == ["all answers"]
    assert "right, %" not in page_tables(record)[0]["head"]
    axes = figures.profile("own", results["results"]).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["all (12)"]
    # Compared with another model there is nothing to gain; again, the folder is gone on with.
    judged(tmp_path / "own.jsonl", BARE, tmp_path / "f")
    (comparison,) = compare(tmp_path / "e/scripted", tmp_path / "f/scripted")
    assert "right" not in comparison.metrics
    assert comparison.metrics["length"].a == found["metrics"]["length"]
    assert comparison.metrics["self_agreement"].b == pytest.approx(found["metrics"]["self_agreement"])
    compared = shown(tables._view(comparison))
    assert "self-agreement, %" in compared
    assert not {"by", "gained", "right,"} & set(compared.split()), "nothing needs a label"
    assert timeless(judged(tmp_path / "own.jsonl", BARE, tmp_path / "e")) == timeless(results)


def test_a_run_on_unlabelled_problems_claims_nothing_of_right_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}+11=?"}) + "\n" for i in range(10, 16)), "utf-8")
    changes = ["steps=1", f"task={{name: file, path: '{path}', template: plain}}", "rollout.prompts=4"]
    changes += ["rollout.max_new_tokens=24", "eval.problems=3", "eval.every=1", "checkpoint.best=eval/right"]
    said: list[dict[str, Any]] = []

    class Heard(NullCallback):
        def logged(self, step: int, metrics: Any) -> None:
            said.append(dict(metrics))

    train(load_recipe(shipped_recipes()["tiny"], changes), tmp_path / "run", callback=Heard())
    assert caplog.messages.count("no problem has an answer: nothing is known of right and wrong") == 1
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    for key in ("verdict/right", "verdict/right_and_formatted", "verdict/undecided", "eval/right", "eval/undecided"):
        assert last[key] is None, key
    assert not any(key.startswith("eval/majority") for key in last)
    rows = parquet.read_table(tmp_path / "run/rollouts/step-000001.parquet").to_pylist()
    by_prompt: dict[str, Counter[str]] = {row["prompt_id"]: Counter() for row in rows}
    for row in rows:
        by_prompt[row["prompt_id"]].update([row["extracted"]] if row["extracted"] else [])
    shares = [max(votes.values(), default=0) / 8 for votes in by_prompt.values()]
    assert last["verdict/self_agreement"] == pytest.approx(sum(shares) / 4)
    assert 0 < last["eval/self_agreement"] <= 1
    for line in ("  ".join(step_parts(1, said[-1])), "  ".join(eval_parts(said[-1]))):
        assert "right" not in line
        assert "self-agree 0." in line
        assert "nan" not in line
    assert math.isnan(read_metrics(tmp_path / "run/metrics.jsonl")[-1]["eval/right"])


def test_a_run_of_which_some_problems_have_an_answer_says_of_how_many_it_speaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"question": f"{i}+11=?", "answer": None if i % 3 else str(i + 11)} for i in range(10, 16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    changes = ["steps=1", f"task={{name: file, path: '{path}', template: plain}}", "rollout.prompts=4"]
    changes += ["rollout.max_new_tokens=24", "eval.problems=6", "eval.samples=2", "eval.every=1"]
    train(load_recipe(shipped_recipes()["tiny"], changes), tmp_path / "run")
    assert caplog.messages.count("4 of 6 problems have no answer; right and wrong are said of the others") == 1
    last = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert (last["eval/labelled"], last["eval/n"]) == (4, 12)  # of 12 and 15
    assert "n 4 of 12 with an answer" in eval_parts(last)
    summary = summarise("own", [last])
    assert (summary["n"], summary["problems"]) == (4, 2)
