"""Problems handed over in Python are drawn and judged as those of a file are."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlif.config import FileTask
from rlif.errors import RlifError
from rlif.tasks.base import Task
from rlif.tasks.files import ProblemFile
from rlif.tasks.problems import task_of
from rlif.types import Problem

ROWS = [{"id": f"{a}", "question": f"{a}+1=?", "answer": str(a + 1)} for a in range(11)]


def test_it_draws_what_a_file_of_the_same_rows_would(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    file = ProblemFile(FileTask(name="file", path=str(tmp_path / "rows.jsonl"), eval_path=str(tmp_path / "eval.jsonl")))
    task = task_of(ROWS, eval_problems=ROWS[:5])
    assert isinstance(task, Task)
    for step in range(1, 8):
        assert task.train_problems(step, 4, seed=3) == file.train_problems(step, 4, seed=3)
    assert task.eval_problems(3) == file.eval_problems(3)
    assert task.problems_to_fit() == file.problems_to_fit()
    assert list(task.digests().values()) == list(file.digests().values())
    assert list(task.digests().values()) != list(task_of(ROWS[1:]).digests().values())
    verdict = task.grade(r"\boxed{4}", Problem("3", "3+1=?", "4"))
    assert verdict == file.grade(r"\boxed{4}", Problem("3", "3+1=?", "4"))
    assert (verdict.right, verdict.formatted) == (True, True)


class Dataset:
    """What is needed of a ``datasets.Dataset``: to be iterated, in rows."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self._columns = columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(self._columns, values, strict=True))


def test_problems_rows_and_data_sets_are_the_same_task() -> None:
    columns = {key: [row[key] for row in ROWS] for key in ("id", "problem", "answer") if key != "problem"}
    dataset = Dataset({**columns, "problem": [row["question"] for row in ROWS]})
    problems = [Problem(row["id"], row["question"], row["answer"]) for row in ROWS]
    digests = [task_of(each).digests() for each in (ROWS, dataset, problems, iter(problems))]
    assert all(each == digests[0] for each in digests)


def test_answers_may_be_numbers_or_unknown_and_ids_are_the_places() -> None:
    (first, second, third) = task_of(
        [{"question": "3+1=?", "answer": 4}, {"question": "?", "answer": None}, {"question": "1/2", "answer": 0.5}],
        name="mine",
    ).problems_to_fit()
    assert (first.id, first.answer) == ("mine:1", "4")
    assert (second.id, second.answer) == ("mine:2", None)
    assert third.answer == "0.5"


def test_problems_none_of_which_has_an_answer_are_a_task() -> None:
    problems = (Problem("a", "1+1=?"), Problem("b", "2+2=?"))
    assert task_of(problems).problems_to_fit() == problems


def test_an_evaluation_on_the_problems_of_training_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task_of(ROWS, name="shared", eval_problems=ROWS).eval_problems(2)
        assert not caplog.records
        task_of(ROWS, name="shared").eval_problems(2)
    assert "shared: evaluation uses training problems" in caplog.text


@pytest.mark.parametrize(
    ("problems", "said"),
    [
        ([], "mine: holds no problems"),
        ([*ROWS, ROWS[3]], "mine:12: the id '3' was used before, in mine:4; ids must differ"),
        (["3+1=?"], "mine:1: a str; expected a Problem, or a mapping with question and answer"),
        ([ROWS[0], {"id": "x", "answer": "4"}], "mine:2: no column 'question' (there are id, answer)"),
        ([{"question": " "}], "mine:1: column 'question' is empty"),
        ([Problem("a", "3+1=?"), Problem("b", "")], "mine:2: column 'question' is empty"),
    ],
)
def test_what_is_no_problem_is_named_by_its_place(problems: list[Any], said: str) -> None:
    with pytest.raises(RlifError) as error:
        task_of(iter(problems), name="mine")
    assert str(error.value) == said


def test_too_few_problems_and_an_unknown_format() -> None:
    with pytest.raises(RlifError, match="mine: 11 problems, but 12 distinct ones are asked for"):
        task_of(ROWS, name="mine").train_problems(1, 12, seed=0)
    with pytest.raises(RlifError, match="'boxd'"):
        task_of(ROWS, format="boxd")
