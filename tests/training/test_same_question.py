"""Training, its evaluation and `rlif eval` put one question in one way, and end its answer at the same place."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlif.config import Recipe
from rlif.evals.plan import Plan
from rlif.evals.settings import settings_of
from rlif.model.policy import Policy
from rlif.recipes import load_recipe, parse_recipe
from rlif.rollout.prompts import render
from rlif.tasks.templates import TEMPLATES, render_messages, render_text
from rlif.training.callbacks import NullCallback
from rlif.training.opening import new_run, old_run
from rlif.training.resolve import eval_sampling
from rlif.types import Sampling

QUESTIONS = '{"question": "What is 1+1?", "answer": "2"}\n{"question": "What is 2+2?", "answer": "4"}\n'


def recipe(path: Path, **sections: Any) -> Recipe:
    data: dict[str, Any] = {
        "steps": 1,
        "policy": {"model": "tiny-base", "device": "cpu", "dtype": "float32"},
        "task": {"name": "file", "path": str(path)},
        "rollout": {"prompts": 2, "group_size": 2, "max_new_tokens": 4},
        "reward": "self_certainty",
        "eval": {"every": 1, "problems": 2},
        "probe": {"every": 0},
    }
    for name, keys in sections.items():
        data[name] = {**data[name], **keys}
    return parse_recipe(data)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(QUESTIONS)
    return path


@pytest.mark.parametrize("template", sorted(set(TEMPLATES) - {"intuitor_large"}))  # too long for the tiny model
def test_one_question_is_put_and_ended_in_one_way(template: str, questions: Path, tmp_path: Path) -> None:
    wanted = recipe(questions, task={"template": template}, rollout={"stop": ["\n\n", "Question:"], "top_k": 3})
    with new_run(wanted, tmp_path / "run", NullCallback()) as run:
        drawn, evaluated, kept = run.sampling, eval_sampling(run.recipe), load_recipe(tmp_path / "run" / "recipe.yaml")
        prompts = run.prompts(1)
        policy: Policy = run.policy
    plan = Plan(
        "own",
        settings_of(
            tasks=("own",),
            data={"own": str(questions)},
            samples=1,
            temperature=1.0,
            top_k=3,
            max_new_tokens=4,
            template=template,
            stop=("\n\n", "Question:"),
        ),
    )
    assert set(drawn.stop) == {"\n\n", "Question:"} | set(TEMPLATES[template].stop)
    assert drawn == evaluated == plan.sampling
    assert kept == run.recipe  # what the folder holds is what was done, and what a resumed run does
    assert kept.task.format == plan.format == TEMPLATES[template].format
    rendered = {one.problem.question: policy.encode_text(one.text)[1] for one in plan.rendered}
    assert {prompt.problem.question: prompt.token_ids for prompt in prompts} == rendered
    problems = [prompt.problem for prompt in prompts]
    assert [prompt.token_ids for prompt in render(policy, template, problems)] == [
        prompt.token_ids for prompt in prompts
    ]
    for one in plan.rendered:
        assert list(one.messages) == render_messages(template, one.problem.question)
        assert one.text == render_text(template, one.problem.question)


@pytest.mark.parametrize(
    ("rollout", "own", "expected"),
    [
        ({}, {}, (1.0, 1.0, 0)),
        ({"top_p": 0.9, "top_k": 5}, {}, (1.0, 0.9, 5)),
        ({"top_p": 0.9, "top_k": 5}, {"top_p": 1.0, "top_k": 0}, (1.0, 1.0, 0)),
        ({"top_p": 0.9}, {"top_k": 7, "temperature": 0.5}, (0.5, 0.9, 7)),
        ({"temperature": 0.3}, {}, (1.0, 1.0, 0)),  # a key of its own, 1 unless it is set
    ],
)
def test_the_evaluation_draws_as_rollouts_do_but_for_its_own_keys(
    rollout: dict[str, Any], own: dict[str, Any], expected: tuple[float, float, int], questions: Path
) -> None:
    sampling = eval_sampling(recipe(questions, rollout={**rollout, "stop": ["x"]}, eval=own))
    assert sampling == Sampling(*expected, max_new_tokens=4, stop=("x",))


def test_the_evaluation_during_training_is_given_that_sampling(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    class SeenError(Exception):
        pass

    def evaluate(*_: Any, sampling: Sampling, **__: Any) -> None:
        given.append(sampling)
        raise SeenError

    monkeypatch.setattr("rlif.training.evaluation.evaluate_policy", evaluate)
    wanted = recipe(questions, task={"template": "qa"}, rollout={"top_p": 0.5, "top_k": 4}, eval={"temperature": 0.7})
    with new_run(wanted, tmp_path / "run", NullCallback()) as run, pytest.raises(SeenError):
        run.evaluate()
    assert given == [Sampling(0.7, 0.5, 4, 4, ("Question:",))]


def test_an_old_run_goes_on_as_it_began(questions: Path, tmp_path: Path) -> None:
    """Its recipe.yaml names no stop strings of the template: its rollouts never had them. Nor does it filter in the
    evaluation, which never took over what its rollouts do."""
    filters = {"top_p": 0.9, "top_k": 5}
    old = recipe(questions, task={"template": "qa", "format": "boxed"}, rollout=filters)
    with new_run(old, tmp_path / "run", NullCallback()):
        pass
    path = tmp_path / "run" / "recipe.yaml"
    text = path.read_text().replace("  stop:\n  - 'Question:'\n", "  stop: []\n")
    head, evaluation = text.split("eval:\n")
    for line in ("  top_p: 0.9\n", "  top_k: 5\n", "  greedy: true\n"):
        assert line in evaluation
        evaluation = evaluation.replace(line, "")
    text = head + "eval:\n" + evaluation
    path.write_text(text)
    info = path.with_name("run.json")
    info.write_text(json.dumps({key: value for key, value in json.loads(info.read_text()).items() if key == "started"}))
    assert load_recipe(path) == old.model_copy(update={"task": old.task.model_copy(update={"path": str(questions)})})
    with old_run(tmp_path / "run", NullCallback()) as run:
        assert (run.sampling.stop, run.sampling.top_p, run.sampling.top_k) == ((), 0.9, 5)
        assert (eval_sampling(run.recipe).top_p, eval_sampling(run.recipe).top_k) == (1.0, 0)
        assert not run.recipe.eval.greedy  # nor did it have such an evaluation
        run.log({})
        run.save_checkpoint()
    assert "provenance" not in json.loads(info.read_text())
    with old_run(tmp_path / "run", NullCallback()) as run:  # from a checkpoint that does record where it comes from
        assert (eval_sampling(run.recipe).top_p, eval_sampling(run.recipe).top_k) == (1.0, 0)
    path.write_text(text.replace("eval:\n", "eval:\n  top_p: 0.8\n"))
    with old_run(tmp_path / "run", NullCallback(), allow_changed=True) as run:  # what is said stays said
        assert (eval_sampling(run.recipe).top_p, eval_sampling(run.recipe).top_k) == (0.8, 0)


def test_a_format_of_ones_own_stays(questions: Path, tmp_path: Path) -> None:
    wanted = recipe(questions, task={"template": "gsm8k_short", "format": "last_number"})
    with new_run(wanted, tmp_path / "run", NullCallback()) as run:
        assert run.recipe.task.format == "last_number"
