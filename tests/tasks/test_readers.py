"""The same problems, whatever they are kept in: JSONL, JSON, CSV, TSV, Parquet, chat messages, the hub."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import Table, parquet

from rlif.config import FileTask
from rlif.errors import RlifError
from rlif.tasks.conversations import exchange_in
from rlif.tasks.files import ProblemFile, read_problems
from rlif.tasks.problems import task_of
from rlif.tasks.readers import READERS, is_on_hub, rows_of
from rlif.types import Problem

ROWS = [
    {"id": "a", "text": 'She said "2, 3"\nand left.', "gold": "5"},
    {"id": "b", "text": "½ + 0.10?", "gold": "0.60"},
    {"id": "c", "text": "ends in space ", "gold": None},
]
PROBLEMS = tuple(Problem(row["id"], str(row["text"]), row["gold"]) for row in ROWS)
COLUMNS = {"question_column": "text", "answer_column": "gold"}


def written(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}), "utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(ROWS), path)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets write it
            writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("suffix", READERS)
def test_every_kind_of_file_gives_the_same_problems(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"mine{suffix}")
    assert read_problems(path, FileTask(name="file", path=str(path), **COLUMNS)) == PROBLEMS
    assert read_problems(path, FileTask(name="file", path="", **COLUMNS), limit=2) == PROBLEMS[:2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1]", "a.json:1: a str, not a JSON object"),
        ("a.json", '{"q": {"0": "x"}}', "no list of JSON objects"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "if each line is an object of its own, call it .jsonl"),
        ("a.json", '{"a": [], "b": []}', "no list of JSON objects"),
        ("a.csv", "q,q\n1,2\n", "a.csv:1: two columns are called 'q'; rename one"),
        ("a.csv", 'q,a\n"x\ny",1\n2,3,4\n', "a.csv:4: 3 cells for 2 columns"),
        ("a.csv", 'q\n"x\n', "not CSV (unexpected end of data)"),
        ("a.xlsx", "", "expected a file ending in .jsonl, .json, .csv, .tsv or .parquet, or a data set of the hub"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(name: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(RlifError) as raised:
        list(rows_of(path))
    assert said in str(raised.value)


def test_chat_messages_are_a_question_and_what_the_reply_marks_as_the_answer() -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
    reply = {"role": "assistant", "content": r"2+3 is \boxed{4}, no: \boxed{5}."}
    assert exchange_in(asked, "x") == ("Be brief.\n\n2+3?", None)
    assert exchange_in([*asked, reply], "x").answer == "5"
    assert exchange_in([asked[1], {"role": "assistant", "content": "so\n#### 5"}], "x") == ("2+3?", "5")
    # A whole solution is no ground truth: everything would be wrong beside it.
    assert exchange_in([asked[1], {"role": "assistant", "content": "It is 5."}], "x").answer is None
    parts = [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "3?"}]}]
    assert exchange_in(parts, "x").question == "2+3?"
    for messages, said in (
        ([*asked, reply, asked[1]], "mine:1: column 'messages': a conversation with 2 user messages"),
        (asked[:1], "a conversation with 0 user messages"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds something else than text"),
    ):
        with pytest.raises(RlifError) as raised:
            task_of([{"messages": messages}], name="mine")
        assert said in str(raised.value)
    rows = [{"prompt": [asked[1]], "answer": 5}, {"prompt": [asked[1]], "answer": 6}]
    assert [problem.answer for problem in task_of(rows).problems_to_fit()] == ["5", "6"]


def test_a_name_is_the_hubs_only_where_nothing_lies_here(tmp_path: Path) -> None:
    assert is_on_hub("openai/gsm8k", tmp_path)
    for name in ("rows.jsonl", "data/rows.jsonl", "/openai/gsm8k", "./gsm8k", "a/b/c", "~/x", "openai/", "../gsm8k"):
        assert not is_on_hub(name, tmp_path), name
    (tmp_path / "openai").mkdir()
    assert not is_on_hub("openai/gsm8k", tmp_path)


def test_a_data_set_of_the_hub_is_read_by_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, name: str | None = None, *, split: str) -> list[dict[str, Any]]:
        asked.append((path, name, split))
        if name is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main']")
        return [{"question": f"{split} {i}?", "answer": f"so\n#### {i}"} for i in range(3)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    config = FileTask(name="file", path="openai/gsm8k", config="main", eval_split="test")
    task = ProblemFile(config)
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
    assert task.train_problems(1, 3, 0) != task.eval_problems(3)
    assert task.eval_problems(3)[1] == Problem("gsm8k:2", "test 1?", "1")
    with pytest.raises(RlifError, match=r"available configs: \['main'\]; name another config or split"):
        ProblemFile(config.model_copy(update={"config": None}))


def test_columns_of_a_data_set_in_python_are_named() -> None:
    task = task_of([{"q": "1+1?", "gold": 2}], question="q", answer="gold")
    assert task.problems_to_fit() == (Problem("problems:1", "1+1?", "2"),)
    with pytest.raises(RlifError, match=r"no column 'problem', .*; name the question's in question \(there are q\)"):
        task_of([{"q": "1+1?"}])
