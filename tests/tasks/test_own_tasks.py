"""Tasks and templates of the user's own, and those of the package reasoning-gym."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import reasoning_gym

from rlif.config import TemplateText
from rlif.errors import RlifError
from rlif.evals.plan import Plan
from rlif.evals.settings import settings_of
from rlif.recipes import parse_recipe
from rlif.rollout.prompts import render
from rlif.runs.provenance import _effect
from rlif.tasks import build_task
from rlif.tasks.base import Task
from rlif.tasks.gym import names
from rlif.tasks.templates import find_template, render_messages, render_text
from rlif.training.resolve import resolved
from rlif.utils import own_code
from toys import toy_policy

BASE = {"steps": 1, "policy": {"model": "tiny-base"}, "reward": "length"}


def task(**section: object) -> Task:
    return build_task(parse_recipe({**BASE, "task": section}).task)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(own_code, "_folders", [])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


# Templates


OWN = {"user": "Q: {question}\nA:", "system": "Be brief.", "format": "last_number", "stop": ["\n\n"]}


def test_a_template_in_the_recipe_words_the_prompt_and_brings_form_and_stop_strings() -> None:
    recipe = parse_recipe({**BASE, "task": {"name": "arithmetic", "template": OWN}})
    assert render_text(recipe.task.template, "1+1=?") == "Be brief.\n\nQ: 1+1=?\nA:"
    system, user = render_messages(recipe.task.template, "{answer}?")
    assert (system["content"], user["content"]) == ("Be brief.", "Q: {answer}?\nA:")  # only {question} is a place
    whole = resolved(recipe)
    assert (whole.task.format, whole.rollout.stop) == ("last_number", ("\n\n",))
    assert whole.task.template == recipe.task.template  # and recipe.yaml reads back
    assert parse_recipe(whole.model_dump(mode="json")) == whole


def test_a_template_of_a_file_is_written_into_the_recipe_of_the_run(folder: Path) -> None:
    (folder / "mine.yaml").write_text("user: 'Say {question}'\nformat: last_number\n")
    recipe = parse_recipe({**BASE, "task": {"name": "arithmetic", "template": "mine.yaml"}})
    whole = resolved(recipe)
    assert whole.task.template == TemplateText(user="Say {question}", format="last_number")
    assert find_template("mine.yaml") == find_template(whole.task.template)
    (prompt,) = render(toy_policy("llama"), "mine.yaml", whole_problems(whole))
    assert prompt.text.startswith("Say ")


def whole_problems(recipe: object) -> list:
    return list(build_task(recipe.task).eval_problems(1))  # type: ignore[attr-defined]


def test_two_templates_of_ones_own_are_told_apart_by_name() -> None:
    one, other = (find_template(TemplateText(user=f"{word} {{question}}")).name for word in ("Say", "Tell"))
    assert one != other
    assert one.startswith("own-")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"user": "no place"}, r"task.template.user: expected a text that holds \{question\}"),
        ({"usr": "{question}"}, r"task.template.usr: unknown key; did you mean task.template.user\?"),
        ({"user": "{question}", "stop": [""]}, "task.template.stop.0: expected text that is not empty"),
        (3, "task.template: expected text"),
    ],
)
def test_a_wrong_template_is_told_by_its_key(template: object, said: str) -> None:
    with pytest.raises(RlifError, match=said):
        parse_recipe({**BASE, "task": {"name": "arithmetic", "template": template}})


def test_a_file_that_is_no_template_is_named(folder: Path) -> None:
    (folder / "bad.yaml").write_text("user: x\n")
    with pytest.raises(RlifError, match=r"bad.yaml: user: expected a text that holds"):
        find_template("bad.yaml")
    with pytest.raises(RlifError, match=r"none.yaml: cannot read the template"):
        find_template("none.yaml")
    with pytest.raises(RlifError, match=r"no template 'plian'; did you mean plain\?"):
        resolved(parse_recipe({**BASE, "task": {"name": "arithmetic", "template": "plian"}}))


# Functions


FUNCTIONS = """\
import rlif

def rows(count, start=0):
    return ({"question": f"{n}+1=?", "answer": n + 1} for n in range(start, start + count))

def ready():
    return rlif.task_of([{"question": "2+2=?", "answer": 4}], eval_problems=[{"question": "3+3=?", "answer": 6}])

def fails():
    return {}["k"]

def number():
    return 3
"""


def test_a_function_of_the_current_folder_makes_a_task_of_rows_or_a_task(folder: Path) -> None:
    (folder / "own_tasks_a.py").write_text(FUNCTIONS)
    made = task(name="own_tasks_a:rows", options={"count": 3, "start": 5}, template="plain", format="last_number")
    assert [problem.question for problem in made.eval_problems(3)] == ["5+1=?", "6+1=?", "7+1=?"]
    assert made.grade("it is 6", made.eval_problems(1)[0]).formatted
    assert task(name="own_tasks_a:ready").eval_problems(1)[0].answer == "6"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"name": "own_tasks_a:fails"}, "task own_tasks_a:fails: it raised KeyError: 'k', own_tasks_a.py:10; mend"),
        ({"name": "own_tasks_a:rows"}, "it raised TypeError: .*missing 1 required positional argument: 'count'"),
        ({"name": "own_tasks_a:number"}, "returned a int; expected an rlif.Task, or rows"),
        ({"name": "own_tasks_a:rows", "low": 3}, r"task.low: unknown key"),
        ({"name": "arithmetik"}, "task: expected one of 'arithmetic', .*package.module:function' as its name"),
        ({"name": "package.module:function"}, "no module package.module"),
        ({"name": "subprocess:run", "options": {"args": "ls"}}, "subprocess is a module of Python itself"),
        ({"name": "typer.main:Typer"}, r"no file of the current folder; a package brings tasks by entry points"),
        ({}, "task: expected a section with a name"),
    ],
)
def test_a_task_that_cannot_be_used_is_one_line(folder: Path, section: dict[str, object], said: str) -> None:
    (folder / "own_tasks_a.py").write_text(FUNCTIONS)
    with pytest.raises(RlifError, match=said):
        task(**section)


def test_an_installed_package_brings_tasks(folder: Path) -> None:
    info = folder / "other_tasks-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-tasks\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rlif.tasks]\nriddles = other_tasks_a:rows\n")
    (folder / "other_tasks_a.py").write_text(FUNCTIONS)
    sys.path.insert(0, str(folder))
    assert len(task(name="riddles", options={"count": 4}).eval_problems(4)) == 4


# reasoning-gym


def test_a_data_set_of_the_gym_holds_an_eighth_of_its_questions_out() -> None:
    gym = task(name="reasoning_gym", dataset="chain_sum", options={"max_terms": 2, "max_digits": 1})
    assert isinstance(gym, Task)
    train = {problem.question for step in range(1, 9) for problem in gym.train_problems(step, 16, seed=0)}
    held_out = {problem.question for problem in gym.eval_problems(16)}
    assert len(held_out) == 16
    assert not train & held_out
    assert gym.train_problems(3, 8, 1) == gym.train_problems(3, 8, 1) != gym.train_problems(3, 8, 2)
    assert gym.eval_problems(8) == gym.eval_problems(16)[:8]


def test_a_problem_of_the_gym_is_the_one_that_the_package_makes_of_its_number() -> None:
    gym = task(name="reasoning_gym", dataset="chain_sum")
    for problem in gym.train_problems(1, 4, 0):
        entry = reasoning_gym.create_dataset("chain_sum", seed=0, size=1 << 16)[int(problem.id.rpartition("/")[2])]
        assert (problem.question, problem.answer) == (entry["question"], entry["answer"])


def test_the_gyms_own_scorer_decides() -> None:
    """countdown takes any expression with the right value, of which its own answer is but one."""
    gym = task(name="reasoning_gym", dataset="countdown", options={"min_numbers": 2, "max_numbers": 2})
    problem = gym.eval_problems(1)[0]
    swapped = " + ".join(reversed(problem.answer.split(" + "))) if "+" in problem.answer else problem.answer
    for answer in (problem.answer, swapped, rf"\text{{{swapped}}}"):
        verdict = gym.grade(rf"So \boxed{{{answer}}}.", problem)
        assert (verdict.right, verdict.formatted) == (True, True), answer
    assert gym.grade(r"\boxed{1}", problem).right is False
    assert gym.grade(problem.answer, problem).formatted is False
    assert gym.grade("<think>so", problem).extracted is None


def test_parts_of_the_score_count_from_where_the_recipe_says() -> None:
    part = r"\boxed{the answer is 7, I think}"
    for right_from, right in ((1.0, False), (0.01, True)):
        gym = task(name="reasoning_gym", dataset="chain_sum", right_from=right_from, limit=4)
        problem = next(p for p in gym.train_problems(1, 4, 0))
        assert gym.grade(part.replace("7", str(problem.answer)), problem).right is right
        assert {p.id for p in gym.train_problems(1, 4, 0)} == {p.id for p in gym.train_problems(2, 4, 0)}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"dataset": "chain_sums"}, r"task.dataset: reasoning-gym has no 'chain_sums'; did you mean chain_sum\?"),
        ({"dataset": "chain_sum", "options": {"size": 3}}, "task.options.size: leave it out"),
        ({"dataset": "chain_sum", "options": {"terms": 3}}, "task.options: chain_sum does not take them"),
        ({"dataset": "chain_sum", "options": {"min_terms": -1}}, "task.options: chain_sum does not take them"),
        ({}, "task.dataset: this key is required"),
    ],
)
def test_what_the_gym_does_not_have_is_one_line(section: dict[str, object], said: str) -> None:
    with pytest.raises(RlifError, match=said):
        task(name="reasoning_gym", **section)


def test_a_data_set_with_few_questions_says_how_few_there_are() -> None:
    with pytest.raises(RlifError, match=r"the training share of coin_flip: \d+ problems, but 10000 distinct ones"):
        task(name="reasoning_gym", dataset="coin_flip", options={"min_trials": 3, "max_trials": 3}).train_problems(
            1, 10000, 0
        )


def test_the_gym_has_the_names_that_the_package_has() -> None:
    assert {"chain_sum", "countdown", "sudoku"} <= set(names())
    assert (
        _effect("task.options", *[parse_recipe({**BASE, "task": {"name": "arithmetic"}})] * 2, teacher=False)
        == "result"
    )


@pytest.mark.parametrize(("limit", "asked", "said"), [(None, 512, True), (20, 20, False)])
def test_an_evaluation_that_leaves_problems_out_says_so(
    limit: int | None,
    asked: int,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / f"many_rows_{asked}.py").write_text(
        'def rows():\n    return [{"question": f"{a}+1=?", "answer": str(a + 1)} for a in range(600)]\n'
    )
    monkeypatch.chdir(tmp_path)
    settings = settings_of(tasks=("many",), data={"many": f"many_rows_{asked}:rows"}, limit=limit)
    assert len(Plan("many", settings).problems) == asked
    assert ("512 of its problems are asked" in caplog.text) is said
