"""The code on a model card, run as it stands there: the model is given what training gave it, and says the same."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from rlif.config import PolicyConfig, Recipe
from rlif.model.loading import load_policy
from rlif.recipes import load_recipe, parse_recipe, shipped_recipes
from rlif.report.usage import usage
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import render
from rlif.tasks import build_task
from rlif.types import Problem, Sampling
from toys import toy_policy

CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TWICE = {"user": "{question} i ask: {question}", "system": "what is {question}, they say", "format": "last_number"}
OWN = {"user": 'work out {question}\nsay it\'s "done".', "system": "be brief.", "format": "last_number"}


def run_of(folder: Path, template: object, *, chats: bool, **policy: Any) -> Recipe:
    """A run's recipe, and its final model in the folder."""
    toy_policy().save(folder / "final")
    if chats:
        (folder / "final" / "chat_template.jinja").write_text(CHAT)
    question = "so, what is {a} plus {b}?"
    task = {"name": "arithmetic", "template": template, "question": question, "low": 27, "high": 58}
    rollout = {"max_new_tokens": 12, "stop": ["q"]}
    head = {"steps": 1, "reward": "self_certainty", "policy": {"model": str(folder / "final"), **policy}}
    return parse_recipe({**head, "task": task, "rollout": rollout})


def told(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], str]:
    """The prompt's token ids that the code gives the model, and what it prints."""
    given: list[list[int]] = []
    generate = transformers.LlamaForCausalLM.generate

    def spied(model: Any, **inputs: Any) -> Any:
        given.append(inputs["input_ids"][0].tolist())
        return generate(model, **inputs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "generate", spied)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace("DIR", str(folder / "final")), {})
    (ids,) = given
    return ids, printed.getvalue().removesuffix("\n")


@pytest.mark.parametrize("chats", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("template", ["plain", "qa", "intuitor_small", OWN, TWICE], ids=str)
def test_the_model_is_asked_as_in_training(
    template: Any, chats: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = run_of(tmp_path, template, chats=chats)
    ids, _ = told(usage(recipe, tmp_path), tmp_path, monkeypatch)
    policy = load_policy(PolicyConfig(model=str(tmp_path / "final"), dtype="float32"))
    assert policy.chat_template == chats
    task = build_task(recipe.task)
    (problem,) = [one for one in task.train_problems(1, 800, 0) if one.question == "so, what is 27 plus 58?"]
    (prompt,) = render(policy, recipe.task.template, [problem])
    assert ids == list(prompt.token_ids)


def test_the_model_says_what_it_says_here(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base_path, tmp_path / "came")
    came = {"eos_token_id": 48, "pad_token_id": 0, "repetition_penalty": 1.8}  # as models of the hub have one
    (tmp_path / "came" / "generation_config.json").write_text(json.dumps(came))
    policy = load_policy(PolicyConfig(model=str(tmp_path / "came"), dtype="float32"))
    assert len(policy.eos_ids) == 2
    policy.save(tmp_path / "final")
    prompts = render(policy, "plain", [Problem("one", "27+58=?")])
    for stop in ((), ("=",)):
        recipe = load_recipe(shipped_recipes()["tiny"], [f"rollout.stop={list(stop)}"])
        _, said = told(usage(recipe, tmp_path), tmp_path, monkeypatch)
        greedy = Sampling(temperature=0.0, max_new_tokens=96, stop=stop)
        here = Engine(policy).sample(prompts, group_size=1, sampling=greedy, key=Key(0, "usage"))
        assert here.stop_reasons[0] == ("stop_string" if stop else "eos")
        assert said.removesuffix("=") == here.texts[0], "transformers leaves the stop string in"


def test_a_chat_template_that_was_off_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = run_of(tmp_path, "plain", chats=True, chat_template="off")
    assert "prompt = question\n" in usage(recipe, tmp_path)
    on = run_of(tmp_path / "on", "plain", chats=False, chat_template="on")
    assert 'prompt = [{"role": "user", "content": question}]' in usage(on, tmp_path / "on")
