"""Results for documents, spreadsheets and the tools of others; own tasks and random subsets in an evaluation."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluations import Scripted, candidate, settings
from rlif.errors import RlifError
from rlif.evals.export import as_csv, as_markdown
from rlif.evals.export_logs import EXPORTS, export_inspect, export_lm_eval
from rlif.evals.runner import evaluate
from rlif.evals.store import read_answers
from rlif.tasks.benchmarks import BENCHMARKS, load_benchmark, some_of


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("judged")
    others = [Scripted("a|b"), Scripted("org/other", known=False)]
    return out, evaluate([candidate(one) for one in others], settings(), out)


def test_a_table_a_task_with_the_numbers_of_the_results(judged: tuple[Path, dict[str, Any]]) -> None:
    out, results = judged
    said = (out / "results.md").read_text()
    assert said == as_markdown(results)
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert [len(row.replace("\\|", "").split("|")) for row in rows] == [10] * 4  # heads, rule, two models
    right = results["results"][0]["metrics"]
    assert f"{100 * right['right']:.1f} ± {100 * right['right_stderr']:.1f}" in rows[2]
    assert "a\\|b" in rows[2]


def test_a_spreadsheet_has_every_number(judged: tuple[Path, dict[str, Any]]) -> None:
    out, results = judged
    said = (out / "results.csv").read_text()
    assert said == as_csv(results)
    rows = {(row["model"], row["number"]): row for row in csv.DictReader(io.StringIO(said))}
    for one in results["results"]:
        for name, value in one["metrics"].items():
            column = "stderr" if name.endswith("_stderr") else "value"
            cell = rows[one["model"], name.removesuffix("_stderr")][column]
            assert (float(cell) == value) if cell else value != value  # NaN alone
        assert float(rows[one["model"], "pass@3"]["value"]) == one["pass_at"]["3"]["value"]


def test_a_log_of_inspect_holds_every_answer(judged: tuple[Path, dict[str, Any]]) -> None:
    out, results = judged
    paths = export_inspect(out)
    log = json.loads(paths[0].read_text())
    assert (log["version"], log["status"], log["eval"]["model"]) == (2, "success", "rlif/a|b")
    answers = read_answers(out / "a-b" / "arithmetic")
    assert [sample["output"]["choices"][0]["message"]["content"] for sample in log["samples"]] == list(
        answers.table.texts
    )
    right = [sample["scores"]["right"]["value"] == "C" for sample in log["samples"]]
    assert sum(right) / len(right) == pytest.approx(results["results"][0]["metrics"]["right"])
    accuracy = {score["name"]: score["metrics"]["accuracy"]["value"] for score in log["results"]["scores"]}
    assert accuracy["right"] == results["results"][0]["metrics"]["right"]
    assert {sample["epoch"] for sample in log["samples"]} == {1, 2, 3}


def test_a_log_of_lm_eval_holds_every_problem(judged: tuple[Path, dict[str, Any]]) -> None:
    out, results = judged
    paths = export_lm_eval(out)
    totals, samples = json.loads(paths[0].read_text()), [json.loads(x) for x in paths[1].read_text().splitlines()]
    assert totals["results"]["arithmetic"]["exact_match,none"] == results["results"][0]["metrics"]["right"]
    assert len(samples) == 6
    assert all(len(sample["resps"][0]) == 3 for sample in samples)
    assert sum(sample["exact_match"] for sample in samples) / 6 == pytest.approx(
        results["results"][0]["metrics"]["right"]
    )


@pytest.mark.parametrize("export", EXPORTS.values())
def test_an_evaluation_that_is_not_finished_is_not_exported(
    export: Callable[[Path], list[Path]], tmp_path: Path
) -> None:
    with pytest.raises(RlifError, match="no finished evaluation; run the same rlif eval again"):
        export(tmp_path)


def test_inspect_itself_reads_its_log(judged: tuple[Path, dict[str, Any]]) -> None:
    """Where the package is installed; it is no part of the development environment."""
    log = pytest.importorskip("inspect_ai.log")
    read = log.read_eval_log(str(export_inspect(judged[0])[0]))
    assert (read.status, len(read.samples)) == ("success", 18)


# What is asked


def test_a_random_subset_is_drawn_by_its_seed_and_a_smaller_one_is_part_of_it() -> None:
    every = load_benchmark(BENCHMARKS["arithmetic"])
    big, small = (some_of(every, n, 1) for n in (20, 10))
    assert set(small) < set(big)
    assert [every.index(one) for one in big] == sorted(every.index(one) for one in big)
    assert some_of(every, 20, 2) != big != every[:20]


def test_a_seed_of_a_subset_is_in_the_protocol_and_needs_a_limit(tmp_path: Path) -> None:
    results = evaluate([candidate(Scripted())], settings(sample_seed=3), tmp_path / "a")
    assert results["asked"]["tasks"]["arithmetic"]["sample_seed"] == 3
    with pytest.raises(RlifError, match="--sample-seed: say with limit"):
        settings(sample_seed=3, limit=None)
    with pytest.raises(RlifError, match="holds another evaluation"):
        evaluate([candidate(Scripted())], settings(), tmp_path / "a")


def test_a_task_of_ones_own_and_one_of_the_gym_judge_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_tasks_of_evals.py").write_text(
        "import rlif\n"
        "class Loud:\n"
        "    name = 'loud'\n"
        "    def train_problems(self, step, count, seed): return self.eval_problems(count)\n"
        "    def eval_problems(self, count, seed=0):\n"
        "        if count > 4: raise rlif.RlifError('there are four')\n"
        "        return tuple(rlif.Problem(str(n), f'say {n}', 'x') for n in range(count))\n"
        "    def problems_to_fit(self): return self.eval_problems(4)\n"
        "    def digests(self): return {}\n"
        "    def grade(self, text, problem): return rlif.Verdict('wait' in text, True, text)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    asked = settings(tasks=("loud", "reasoning_gym.chain_sum"), data={"loud": "own_tasks_of_evals:Loud"}, limit=None)
    asked = asked.model_copy(update={"limit": 5})
    results = evaluate([candidate(Scripted())], asked, tmp_path / "out")
    loud, gym = results["results"]
    assert loud["metrics"]["problems"] == 4  # all there are
    assert loud["metrics"]["right"] == pytest.approx(2 / 3)  # all samples of each problem but the first say wait
    assert 0.0 < gym["metrics"]["right"] < 1.0
    assert results["asked"]["tasks"]["reasoning_gym.chain_sum"]["grader"].startswith("reasoning-gym ")
