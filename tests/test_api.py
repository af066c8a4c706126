"""The public door: light, complete, typed, and every example in it runs."""

import ast
import doctest
import inspect
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rlif
from rlif import tiny
from rlif.rewards import registry

DOCS = Path(__file__).parents[1] / "docs" / "api.md"
TABLES = {"SIGNALS", "REWARDS"}  # data: their examples stand in docs/api.md


@pytest.fixture(autouse=True)
def _table_as_before() -> Iterator[None]:
    before = dict(registry._known)
    yield
    registry._known.clear()
    registry._known.update(before)


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_rlif_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "pydantic", "rich", "yaml", "difflib")
    assert in_a_fresh_process(f"import sys, rlif; dir(rlif); print(*set({heavy!r}) & set(sys.modules))") == ""


def test_what_needs_no_torch_loads_none() -> None:
    use = "rlif.parse_recipe, rlif.Recipe, rlif.RlifError, rlif.Grader"
    assert in_a_fresh_process(f"import sys, rlif; {use}; print('torch' in sys.modules)") == "False"


def test_a_misspelt_name_is_told_its_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no public name 'load_polcy'; did you mean load_policy\?"):
        rlif.load_polcy  # noqa: B018
    with pytest.raises(ImportError):
        from rlif import load_polcy  # noqa: F401
    assert not hasattr(rlif, "__wrapped__")


def test_every_public_name_is_there_and_star_brings_exactly_them() -> None:
    brought = in_a_fresh_process(
        "from rlif import *; print(*sorted(n for n in dir() if n[:2] != '__' or n in ('__version__',)))"
    )
    assert brought.split() == sorted(rlif.__all__)
    assert set(rlif.__all__) <= set(dir(rlif))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(rlif.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in block.body:
        if isinstance(node, ast.Assign):  # a public name of its own
            (target,), value = node.targets, node.value
            typed[ast.unparse(target)] = typed.pop(ast.unparse(value))
    assert typed == rlif.PUBLIC


@pytest.mark.parametrize("name", sorted({*rlif.PUBLIC} - TABLES))
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    value = getattr(rlif, name)
    (found,) = (
        test
        for test in doctest.DocTestFinder(recurse=False).find(value, name, module=inspect.getmodule(value), globs={})
    )
    assert found.examples, f"rlif.{name}: its docstring has no example"
    run(found)


def test_the_examples_of_the_package_and_of_its_page_run() -> None:
    parser = doctest.DocTestParser()
    for name, text in (("rlif", rlif.__doc__ or ""), ("docs/api.md", DOCS.read_text("utf-8"))):
        # A fence of Markdown would be taken for output that is expected.
        test = parser.get_doctest(text.replace("```", ""), {}, name, name, 0)
        assert test.examples
        run(test)


def run(test: doctest.DocTest) -> None:
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not failed, "".join(said)


def test_the_page_lists_every_public_name_with_a_line() -> None:
    rows = [line.split("|")[1:3] for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `rlif.")]
    listed = {cells[0].strip().strip("`").removeprefix("rlif."): cells[1].strip() for cells in rows}
    assert listed.keys() == {*rlif.__all__}
    assert all(listed.values())
    assert all(f"{name}`" in DOCS.read_text("utf-8") for name in TABLES)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -1.0}, "temperature: -1.0; give 0 (greedy) or more"),
        ({"temperature": math.nan}, "temperature: nan; give 0 (greedy) or more"),
        ({"top_p": 0.0}, "top_p: 0.0; give more than 0, at most 1 (off)"),
        ({"top_p": 2.0}, "top_p: 2.0; give more than 0, at most 1 (off)"),
        ({"top_k": -3}, "top_k: -3; give 0 (off) or more"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; give 1 or more"),
    ],
)
def test_a_sampling_that_draws_nothing_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(rlif.RlifError) as caught:
        rlif.Sampling(**wrong)
    assert str(caught.value) == said


def test_paths_and_names_are_taken_where_a_model_or_a_recipe_is(tmp_path: Path) -> None:
    folder = tiny.path("tiny-base")
    assert rlif.load_policy(folder, dtype="float32").source == str(folder)
    settings = rlif.EvalSettings(tasks=("additions",), limit=1, samples=1, max_new_tokens=4, baselines=())
    found = rlif.evaluate(folder, settings, tmp_path / "eval")
    assert [one["model"] for one in found["results"]] == [str(folder)]
    with pytest.raises(rlif.RlifError, match="no such recipe"):
        rlif.train("tinny", tmp_path / "run")


WRONG_TYPES = {
    "rlif.Sampling(temperature='hot')": "temperature: expected a number (given 'hot')",
    "rlif.Sampling(max_new_tokens=2.5)": "max_new_tokens: expected a whole number (given 2.5)",
    "rlif.Sampling(stop='ab')": "stop: expected a list of texts (given 'ab')",
    "rlif.Sampling(stop=('a', 3))": "stop: expected a list of texts (given 3 at place 1)",
    "rlif.render('tiny-base', 'plain', [one])": "policy: expected an rlif.Policy, which rlif.load_policy makes (given",
    "rlif.render(policy, one, [one])": "template: expected the name of a template (given Problem(",
    "rlif.render(policy, 'plain', one)": "problems: expected a list of rlif.Problem (given Problem(",
    "rlif.render(policy, 'plain', '1+2=?')": "problems: expected a list of rlif.Problem (given '1+2=?')",
    "rlif.render(policy, 'plain', [one, '1'])": "problems: expected a list of rlif.Problem (given '1' at place 1)",
    "rlif.Engine('tiny-base')": "policy: expected an rlif.Policy, which rlif.load_policy makes (given 'tiny-base')",
    "engine.sample(['1+2='], **draw)": "prompts: expected a list of rlif.Prompt, which rlif.render makes (given '1+2='",
    "engine.sample([one], **draw)": "prompts: expected a list of rlif.Prompt, which rlif.render makes (given Problem(",
    "engine.sample(prompts, **{**draw, 'sampling': {}})": "sampling: expected an rlif.Sampling (given {})",
    "engine.sample(prompts, **{**draw, 'key': 0})": "key: expected an rlif.Key (given 0)",
    "engine.sample(prompts, **{**draw, 'group_size': 0})": "group_size: 0; give a whole number, 1 or more",
    "engine.sample(prompts, **{**draw, 'group_size': 2.5})": "group_size: 2.5; give a whole number, 1 or more",
    "engine.sample(prompts, **draw, first_sample=['1'])": "first_sample: expected a whole number for each prompt (give",
    "rlif.policy_of('tiny-base', None)": "model: expected a causal language model of transformers (given 'tiny-base')",
    "next(engine.groups([one], **draw))": "prompts: expected a list of rlif.Prompt, which rlif.render makes (giv",
    "rlif.evaluate('tiny-base', {'tasks': ('additions',)}, 'out')": "settings: expected an rlif.EvalSettings (given",
    "rlif.train(3, 'out')": "recipe: expected a recipe's file, or the name of a shipped one (given 3)",
    "rlif.load_policy('tiny-base', dtype='half')": "dtype: expected one of 'auto', 'float32' or 'bfloat16' (given",
}


def test_an_argument_of_another_type_is_told_by_its_name() -> None:
    """In a process of its own: in this one the tests check all types themselves."""
    said = in_a_fresh_process(
        f"""
import rlif
policy, one = rlif.load_policy("tiny-base"), rlif.Problem("sum", "1+2=?", "3")
engine, prompts = rlif.Engine(policy), rlif.render(policy, "plain", [one])
draw = dict(group_size=1, sampling=rlif.Sampling(max_new_tokens=2), key=rlif.Key(0, 1))
for call in {list(WRONG_TYPES)}:
    try:
        print("no error:", eval(call))
    except Exception as error:
        print(type(error).__name__, str(error))
"""
    ).splitlines()
    for call, expected, line in zip(WRONG_TYPES, WRONG_TYPES.values(), said, strict=True):
        assert line.startswith(f"RlifError {expected}"), call


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rlif.EvalSettings(), "tasks: this key is required"),
        (lambda: rlif.EvalSettings(tasks="additions"), "tasks: expected a list (given 'additions')"),
        (lambda: rlif.EvalSettings(tasks=("gsm8k",), sample=3), "sample: unknown key; did you mean samples?"),
        (lambda: rlif.EvalSettings(tasks=("gsm8k",), samples=0), "samples: expected 1 or more (given 0)"),
        (lambda: rlif.EvalSettings(tasks=()), "tasks: name at least one"),
        (lambda: rlif.EvalSettings(tasks=("a",), data={"a": 3}), "data.a: expected text (given 3)"),
        (
            lambda: rlif.EvalSettings(tasks=("gsm8k",), samples=0, top_p=2.0, sead=1),
            "sead: unknown key; did you mean seed?; also samples: expected 1 or more (given 0); also top_p: expe",
        ),
        (lambda: recipe(task={"name": "arithmetic", "low": -1}), "task.low: expected 0 or more (given -1)"),
        (lambda: recipe(task={"name": "gsm8k"}), "task.path: this key is required"),
        (lambda: recipe(reward={"name": "negated", "weight": -1}), "reward.0.weight: expected 0 or more (given -1)"),
        (lambda: recipe(policy={"model": {"merge": {"base": 3}}}), "policy.model.merge.base: expected text (given 3)"),
        (lambda: recipe(rollout={"groupsize": 3}), "rollout.groupsize: unknown key"),
        (lambda: recipe(reward=()), "reward: name at least one"),
    ],
)
def test_settings_made_in_python_are_refused_in_plain_words(make: Any, said: str) -> None:
    with pytest.raises(rlif.RlifError) as caught:
        make()
    assert str(caught.value).startswith(said)
    assert "pydantic" not in str(caught.value)


def recipe(**changes: Any) -> rlif.Recipe:
    whole = {"steps": 1, "policy": {"model": "m"}, "task": {"name": "arithmetic"}, "reward": "length", **changes}
    return rlif.Recipe(**whole)


def test_advantages_of_what_is_no_reward_are_refused() -> None:
    with pytest.raises(ValueError, match="the reward of row 1 is nan"):
        rlif.advantages(torch.tensor([1.0, math.nan]), group_size=2)
    with pytest.raises(ValueError, match="3 rewards do not make groups of 2"):
        rlif.advantages(torch.ones(3), group_size=2)
