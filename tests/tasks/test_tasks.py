"""Draws that are pure functions of (step, seed), files read exactly or refused with their line, templates by name."""

import json
import re
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rlif.config import ArithmeticTask, FileTask
from rlif.errors import RlifError
from rlif.rng import is_held_out
from rlif.tasks import BUILDERS, build_task
from rlif.tasks.arithmetic import Arithmetic
from rlif.tasks.base import walk
from rlif.tasks.files import ProblemFile, read_problems
from rlif.tasks.templates import TEMPLATES, render_messages, render_text
from rlif.types import Problem

DATA = Path(__file__).parents[3] / "shared" / "data"


def arithmetic(**keys: Any) -> Arithmetic:
    return Arithmetic(ArithmeticTask(name="arithmetic", **keys))


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def numbered(tmp_path: Path, size: int, **keys: Any) -> ProblemFile:
    """A file task of ``size`` rows whose ids are their row numbers."""
    path = jsonl(tmp_path / "rows.jsonl", *({"id": str(n), "problem": f"q{n}", "answer": n} for n in range(size)))
    return ProblemFile(FileTask(name="file", path=str(path), **keys))


def read(path: Path, name: Any = "file", **keys: Any) -> tuple[Problem, ...]:
    return read_problems(path, FileTask(name=name, path=str(path), **keys))


# The walk through a file.


@pytest.mark.parametrize(("size", "count"), [(10, 3), (10, 5), (10, 1), (7, 7), (10, 9), (13, 7), (30, 4), (100, 33)])
@pytest.mark.parametrize("seed", [0, 1])
def test_walk_shows_each_row_once_an_epoch_and_never_twice_a_step(size: int, count: int, seed: int) -> None:
    steps = [walk(size, step, count, seed) for step in range(1, size * 3 + 1)]  # `count` * 3 whole epochs
    assert all(len(set(rows)) == count for rows in steps)
    stream = [row for rows in steps for row in rows]
    epochs = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert len(epochs) == count * 3
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)


def test_walk_depends_on_seed_epoch_and_step_alone() -> None:
    assert walk(50, 8, 10, 3) == walk(50, 8, 10, 3)
    assert sorted(walk(50, 1, 50, 3)) != walk(50, 1, 50, 3)  # shuffled (a false alarm once in 50! seeds)
    assert walk(50, 1, 10, 3) != walk(50, 1, 10, 4)
    assert walk(50, 1, 10, 3) != walk(50, 6, 10, 3)  # the same place in the next epoch


def test_walk_is_the_same_in_every_process() -> None:
    rows = list(range(20))
    Random("epoch/5/0").shuffle(rows)  # seeded with the text's SHA-512, not with its hash(), which differs by process
    assert walk(20, 2, 6, 5) == rows[6:12]


def test_file_task_draws_what_the_walk_says(tmp_path: Path) -> None:
    task = numbered(tmp_path, 10)
    drawn = [problem.id for step in (1, 2, 3) for problem in task.train_problems(step, 4, seed=7)]
    assert drawn == [str(row) for step in (1, 2, 3) for row in walk(10, step, 4, 7)]
    assert len(set(drawn[:10])) == 10
    with pytest.raises(RlifError, match=r"rows\.jsonl: 10 problems, but 11 .* lower prompts to 10"):
        task.train_problems(1, 11, seed=7)


def test_file_evaluation_is_fixed_and_nested(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = numbered(tmp_path, 20)
    few, more = task.eval_problems(5), task.eval_problems(12)
    assert few == task.eval_problems(5)
    assert set(few) <= set(more)
    assert len(set(more)) == 12
    assert [int(p.id) for p in more] == sorted(int(p.id) for p in more)
    assert caplog.text.count("evaluation uses training problems") == 1  # said, and said once
    with pytest.raises(RlifError, match=r"20 problems, but 21 .* lower eval_problems to 20"):
        task.eval_problems(21)


def test_file_evaluation_uses_its_own_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held_out = jsonl(tmp_path / "held_out.jsonl", {"problem": "p", "answer": "1"}, {"problem": "q", "answer": "2"})
    task = numbered(tmp_path, 10, eval_path=str(held_out), limit=3)
    assert [problem.question for problem in task.eval_problems(2)] == ["p", "q"]  # the limit is for training
    assert {problem.id for problem in task.train_problems(1, 3, seed=0)} == {"0", "1", "2"}
    assert not caplog.text


# Additions.


def test_arithmetic_draws_fresh_distinct_right_sums() -> None:
    task = arithmetic()
    first, second = task.train_problems(1, 100, seed=0), task.train_problems(2, 100, seed=0)
    assert first == arithmetic().train_problems(1, 100, seed=0)
    assert first != second
    assert first != task.train_problems(1, 100, seed=1)
    assert len({problem.id for problem in first}) == 100
    for problem in first:
        a, b = (int(n) for n in problem.question.removesuffix("=?").split("+"))
        assert 10 <= a <= 99
        assert 10 <= b <= 99
        assert problem == Problem(f"arithmetic/{a}+{b}", f"{a}+{b}=?", str(a + b))


@pytest.mark.parametrize("keys", [{}, {"low": 1, "high": 20}, {"low": 0, "high": 10**6}])
def test_arithmetic_evaluates_on_sums_never_trained_on(keys: dict[str, int]) -> None:
    task = arithmetic(**keys)
    held_out = {problem.id for problem in task.eval_problems(40)}
    trained = {problem.id for step in range(1, 41) for problem in task.train_problems(step, 100, seed=0)}
    swapped = {re.sub(r"(\d+)\+(\d+)", r"\2+\1", name) for name in trained}
    assert len(held_out) == 40
    assert not held_out & (trained | swapped)
    assert task.eval_problems(40) == task.eval_problems(40)


def test_arithmetic_with_a_limit_trains_on_so_many_sums_each_once_an_epoch() -> None:
    task = Arithmetic(ArithmeticTask(name="arithmetic", limit=12))
    drawn = [problem for step in (1, 2, 3, 4, 5, 6) for problem in task.train_problems(step, 4, seed=3)]
    epochs = set(drawn[:12]), set(drawn[12:])
    assert epochs[0] == epochs[1]
    assert len(epochs[0]) == 12
    free = Arithmetic(ArithmeticTask(name="arithmetic"))
    assert not epochs[0] & set(free.eval_problems(512))
    assert task.eval_problems(64) == free.eval_problems(64)  # the limit is for training
    assert set(task.train_problems(1, 12, seed=4)) != epochs[0]
    with pytest.raises(RlifError, match=r"12 problems, but 13 distinct ones .* raise limit or lower prompts"):
        task.train_problems(1, 13, seed=0)
    with pytest.raises(RlifError, match="lower limit to"):
        Arithmetic(ArithmeticTask(name="arithmetic", limit=9000)).train_problems(1, 1, seed=0)


def test_arithmetic_holds_out_an_eighth() -> None:
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    share = sum(is_held_out(a, b) for a, b in pairs)
    # 4,095 unordered pairs: the share of 8,100 has a standard deviation of about 42 around 1,012; this is 4 of them.
    assert 844 < share < 1180
    assert len(arithmetic().eval_problems(share)) == share
    with pytest.raises(
        RlifError, match=rf"evaluation share .*: {share} problems, but {share + 1} .*lower eval_problems"
    ):
        arithmetic().eval_problems(share + 1)
    assert len(arithmetic().train_problems(1, 8100 - share, seed=0)) == 8100 - share
    with pytest.raises(RlifError, match=r"training share of sums from 10 to 99: .*lower prompts to"):
        arithmetic().train_problems(1, 8101 - share, seed=0)


def test_arithmetic_draws_summands_evenly() -> None:
    task = arithmetic(low=0, high=9)
    counts = Counter(p.question[0] for step in range(1, 201) for p in task.train_problems(step, 20, seed=0))
    available = Counter(str(a) for a in range(10) for b in range(10) if not is_held_out(a, b))
    for digit, pairs in available.items():
        # Hypergeometric within a step: variance below the binomial 4000·p(1-p). Six deviations: one alarm in 10^8.
        p = pairs / available.total()
        assert abs(counts[digit] - 4000 * p) < 6 * (4000 * p * (1 - p)) ** 0.5, digit


def test_arithmetic_question_is_yours() -> None:
    problem = arithmetic(question=r"What is {a} + {b}? \boxed{}").train_problems(1, 1, seed=0)[0]
    assert re.fullmatch(r"What is \d\d \+ \d\d\? \\boxed\{\}", problem.question)
    with pytest.raises(RlifError, match=r"question: '\{a\}\+1' does not contain \{b\}"):
        arithmetic(question="{a}+1")


def test_problems_to_fit_hold_the_longest(tmp_path: Path) -> None:
    assert arithmetic().problems_to_fit() == (Problem("arithmetic/99+99", "99+99=?", "198"),)
    held_out = jsonl(tmp_path / "held_out.jsonl", {"id": "x", "problem": "long", "answer": "1"})
    task = numbered(tmp_path, 3, eval_path=str(held_out))
    assert [problem.id for problem in task.problems_to_fit()] == ["0", "1", "2", "x"]


def test_tasks_grade(tmp_path: Path) -> None:
    problem = Problem("arithmetic/27+58", "27+58=?", "85")
    verdict = arithmetic().grade(r"7+8=15, 2+5+1=8, so \boxed{85}", problem)
    assert (verdict.right, verdict.formatted, verdict.extracted) == (True, True, "85")
    verdict = numbered(tmp_path, 3, format="hash").grade(r"\boxed{84}", problem)
    assert (verdict.right, verdict.formatted, verdict.extracted) == (False, False, "84")


# Files.


def test_hub_schemas(tmp_path: Path) -> None:
    gsm8k = jsonl(tmp_path / "gsm8k.jsonl", {"question": "How many?", "answer": "1,000+72 is\n#### 1,072"})
    assert read(gsm8k, "gsm8k") == (Problem("gsm8k.jsonl:1", "How many?", "1072"),)
    math500 = {"problem": "P", "solution": r"\boxed{9}", "answer": r"\frac{1}{2}", "unique_id": "test/1.json"}
    assert read(jsonl(tmp_path / "m.jsonl", math500), "math") == (Problem("test/1.json", "P", r"\frac{1}{2}"),)
    lighteval: list[dict[str, Any]] = [
        {"problem": "P", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{1}, so $\boxed{\frac{3}{4}}$."},
        {"problem": "Q", "level": "Level 1", "type": "Algebra", "solution": r"so \boxed{}"},  # there are such rows
    ]
    problems = read(jsonl(tmp_path / "l.jsonl", *lighteval), "math")
    assert [problem.answer for problem in problems] == [r"\frac{3}{4}", None]


@pytest.mark.parametrize(
    ("file", "name", "rows"), [("gsm8k_train", "gsm8k", 7473), ("math_train", "math", 7498), ("aime2025", "math", 30)]
)
def test_prepared_data_sets(file: str, name: str, rows: int) -> None:
    path = DATA / f"{file}.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path.name} in {path.parent}")
    problems = read(path, name)
    assert len(problems) == len({problem.id for problem in problems}) == rows
    assert all(problem.answer for problem in problems)


def test_your_own_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"q": "one", "gold": 0.10, "key": 7, "answer": "no"},
        {"q": "two", "gold": None, "key": 8, "answer": "no"},
    ]
    path = jsonl(tmp_path / "own.jsonl", *rows)
    keys = {"question_column": "q", "answer_column": "gold", "id_column": "key"}
    assert read(path, **keys) == (Problem("7", "one", "0.1"), Problem("8", "two", None))


def test_answers_may_be_absent(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "unlabelled.jsonl", {"question": "one"}, {"question": "two"})
    expected = (Problem("unlabelled.jsonl:1", "one", None), Problem("unlabelled.jsonl:2", "two", None))
    assert read(path) == expected


def test_jsonl_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    # A byte order mark, a separator that str.splitlines would break at, Windows line ends, a blank line, exact numbers.
    first = '{"id": "a", "problem": "x\u2028y", "answer": 0.10}'
    second = '{"id": "b", "problem": "z", "answer": ' + "9" * 5000 + "}"
    path.write_bytes(f"\ufeff{first}\r\n\r\n{second}".encode())
    assert read(path) == (Problem("a", "x\u2028y", "0.10"), Problem("b", "z", "9" * 5000))


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "one", "answer": 1, "id": 10},
        {"problem": "two", "answer": None, "id": 11},
    ]
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read(path) == read(jsonl(tmp_path / "p.jsonl", *rows)) == (Problem("10", "one", "1"), Problem("11", "two"))
    assert read_problems(path, FileTask(name="file", path="-"), limit=1) == (Problem("10", "one", "1"),)
    with pytest.raises(RlifError, match=r"p\.parquet:1: no column 'q' \(there are problem, answer, id\)"):
        read(path, question_column="q")
    path.write_bytes(b"PAR1")
    with pytest.raises(RlifError, match=r"p\.parquet: not a readable Parquet file"):
        read(path)


@pytest.mark.parametrize("missing", ["NaN", "Infinity", "-Infinity", "null", '""', '"  "', '"nan"', '"N/A"', '"NULL"'])
def test_a_missing_ground_truth_by_another_name_is_missing(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"problem": "p", "answer": {missing}}}\n{{"problem": "q", "answer": "None"}}\n', "utf-8")
    assert [problem.answer for problem in read(path)] == [None, "None"]


@pytest.mark.parametrize("missing", ["NaN", "Infinity", "-Infinity", "null", '""', '"  "'])
def test_a_missing_question_by_another_name_is_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"problem": {missing}}}\n', "utf-8")
    with pytest.raises(RlifError, match=r"rows\.jsonl:1: column 'problem' is empty"):
        read(path)


@pytest.mark.parametrize(
    ("values", "type", "answers"),
    [
        ([0.1, float("nan"), None, float("inf"), 16777216.0], pyarrow.float32(), ["0.1", None, None, None, "16777216"]),
        (
            [0.1, float("nan"), None, 1e22, -2.5e-7],
            pyarrow.float64(),
            ["0.1", None, None, "1" + "0" * 22, "-0.00000025"],
        ),
        ([2**63 - 1, None, -5], pyarrow.int64(), ["9223372036854775807", None, "-5"]),
        (["1,234", None, "nan"], pyarrow.string(), ["1,234", None, None]),
        ([Decimal("0.10"), None], pyarrow.decimal128(5, 2), ["0.10", None]),
    ],
)
def test_numbers_of_parquet_are_read_exactly_in_their_own_width(
    tmp_path: Path, values: list[Any], type: pyarrow.DataType, answers: list[str | None]
) -> None:
    problems = [f"p{number}" for number in range(len(values))]
    table = pyarrow.table({"problem": problems, "answer": pyarrow.array(values, type)})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert [problem.answer and problem.answer.removesuffix(".0") for problem in read(tmp_path / "p.parquet")] == answers


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, date(2024, 5, 12), b"1"])
def test_what_is_neither_text_nor_a_number_is_refused_with_its_row(tmp_path: Path, value: object) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([{"problem": "p", "answer": value}]), tmp_path / "p.parquet")
    with pytest.raises(RlifError, match=r"p\.parquet:1: column 'answer' holds a \w+; expected text or a number"):
        read(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", ["file", "gsm8k", "math"])
def test_a_solution_that_ends_as_gsm8ks_do_is_read_under_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a", "answer": "12+34=46, so\\n#### 1,046"}\n{"question": "b", "answer": "7"}\n')
    assert [problem.answer for problem in read_problems(path, FileTask(name=name, path="-"))] == ["1046", "7"]


def test_answers_that_the_first_row_lacks_are_not_ignored(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a"}\n{"question": "b", "answer": "7"}\n')
    with pytest.raises(RlifError, match=r"p.jsonl:2: has a column 'answer' that the first row lacks"):
        read_problems(path, FileTask(name="file", path="-"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 1,234", "1234"),
        ("#### -1,234,567.5", "-1234567.5"),
        ("#### 1, 2", "1, 2"),
        ("#### 1,2", "1,2"),
        ("7", "7"),
    ],
)
def test_only_thousands_lose_their_comma_in_gsm8k(tmp_path: Path, text: str, answer: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {"question": "q", "answer": text})
    assert read(path, name="gsm8k")[0].answer == answer


GOOD = '{"id": "a", "problem": "p", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (GOOD + "{oops\n", {}, r"rows\.jsonl:2: not JSON \(.+\); each line holds one JSON object"),
        (GOOD + "[" * 100_000 + "\n", {}, r"rows\.jsonl:2: not JSON"),
        (GOOD + "[1]\n", {}, r"rows\.jsonl:2: a list, not a JSON object"),
        (GOOD + '{"id": "b", "answer": "1"}\n', {}, r"rows\.jsonl:2: no column 'problem' \(there are id, answer\)"),
        (GOOD + '{"id": "b", "problem": "q"}\n', {}, r"rows\.jsonl:2: no column 'answer' \(there are id, problem\)"),
        (GOOD + '\n{"problem": "q", "answer": "1"}\n', {}, r"rows\.jsonl:3: no column 'id'"),
        (
            '{"text": "p"}\n',
            {},
            r"rows\.jsonl:1: no column 'problem', 'question', 'prompt' or 'messages'; .*question_column .*are text\)",
        ),
        ("{}\n", {}, r"rows\.jsonl:1: .*\(there are none\)"),
        (GOOD, {"question_column": "q"}, r"rows\.jsonl:1: no column 'q' \(there are id, problem, answer\)"),
        (GOOD, {"answer_column": "gold"}, r"rows\.jsonl:1: no column 'gold'"),
        (GOOD, {"id_column": "key"}, r"rows\.jsonl:1: no column 'key'"),
        (GOOD + GOOD, {}, r"rows\.jsonl:2: the id 'a' was used before, in .*rows\.jsonl:1"),
        ('{"id": "", "problem": "p"}\n', {}, r"rows\.jsonl:1: column 'id' is empty"),
        ('{"problem": null}\n', {}, r"rows\.jsonl:1: column 'problem' is empty"),
        ('{"problem": [{"role": "user"}]}\n', {}, r"rows\.jsonl:1: column 'problem' holds a list; expected text"),
        ('{"problem": "p", "answer": true}\n', {}, r"rows\.jsonl:1: column 'answer' holds a bool"),
        ('{"problem": "\\ud800"}\n', {}, r"rows\.jsonl:1: .*lone surrogate"),
        ('{"problem": "p", "answer": ""}\n', {}, r"rows\.jsonl: no answer in column 'answer' of any row"),
        (b"\xff\n", {}, r"rows\.jsonl:1: not UTF-8"),
        ("", {}, r"rows\.jsonl: holds no problems"),
        ("\n\n", {}, r"rows\.jsonl: holds no problems"),
    ],
)
def test_bad_files_are_refused_with_their_line(
    tmp_path: Path, content: str | bytes, keys: dict[str, str], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RlifError, match=message) as caught:
        read(path, **keys)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_known(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match=r"none\.jsonl: No such file or directory; check path$"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(RlifError, match=r"rows\.xlsx: expected a file ending in \.jsonl, .* or \.parquet"):
        read(tmp_path / "rows.xlsx")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RlifError, match=r"folder\.jsonl: Is a directory"):
        read(tmp_path / "folder.jsonl")


# Building.


def test_build_task_resolves_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "p.jsonl", {"problem": "p"})
    config = FileTask(name="math", path="p.jsonl")
    assert build_task(config, tmp_path).name == "math"
    monkeypatch.chdir(tmp_path)
    assert build_task(config).train_problems(1, 1, seed=0)[0].question == "p"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_task(FileTask(name="gsm8k", path="~/p.jsonl"), Path("/elsewhere")).name == "gsm8k"


def test_build_task_checks_names() -> None:
    assert build_task(ArithmeticTask(name="arithmetic")).name == "arithmetic"
    with pytest.raises(RlifError, match=r"^template: no template 'plan'; did you mean plain"):
        build_task(ArithmeticTask(name="arithmetic", template="plan"))
    with pytest.raises(RlifError, match=r"^format: no format 'hsh'; did you mean hash"):
        build_task(ArithmeticTask(name="arithmetic", format="hsh"))
    assert set(BUILDERS) == {"arithmetic", "file", "gsm8k", "math", "reasoning_gym"}


# Templates.


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_hold_the_question_as_it_is(name: str) -> None:
    template, question = TEMPLATES[name], r"Is {x} in \{1\}, {question}?"
    assert template.name == name
    assert template.user.count("{question}") == 1
    *system, user = render_messages(name, question)
    assert system == ([{"role": "system", "content": template.system}] if template.system else [])
    assert user == {"role": "user", "content": template.user.replace("{question}", question)}
    assert render_text(name, question) == "\n\n".join(message["content"] for message in [*system, user])


def test_templates_by_the_letter() -> None:
    assert render_text("plain", "27+58=?") == "27+58=?"
    boxed = "Q\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert render_messages("boxed", "Q") == [{"role": "user", "content": boxed}]
    assert render_text("gsm8k_short", "Q") == "Q\nThink step by step, and end with the final number after ####."
    for name in ("intuitor_small", "intuitor_large"):
        system, user = render_messages(name, "Q")
        assert system["content"].endswith("put your final answer within \\boxed{}.")
        assert user["content"] == "Q"


def test_unknown_template_names_its_neighbour() -> None:
    with pytest.raises(RlifError, match="no template 'boxxed'; did you mean boxed"):
        render_messages("boxxed", "Q")
