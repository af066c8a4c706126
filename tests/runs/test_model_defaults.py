"""What a model brings: a run how it was trained, a named model how it usually is; and who has the last word."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabricated_runs import FabricatedRun
from rlif.config import PolicyConfig, TemplateText
from rlif.errors import RlifError
from rlif.evals.plan import Plan
from rlif.evals.settings import Settings, as_trained
from rlif.experiments import subject
from rlif.experiments.subject import DiagnoseSettings, asking_of, subject_of
from rlif.runs.model_defaults import model_defaults, prompting_of
from toys import toy_policy

Run = Callable[..., str]
WORDS = ("task.template=qa", "task.format=hash", "rollout.stop=['Question:', 'Q:']", "policy.chat_template=off")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Makes an ended run in the current folder: its name, and changes to its recipe."""
    monkeypatch.chdir(tmp_path)

    def made(name: str, *changes: str) -> str:
        FabricatedRun(Path(name), overrides=("rollout.max_new_tokens=70", *changes)).finish()
        return name

    return made


@pytest.mark.parametrize("inside", ["", "final", "last", "checkpoints/step-000002", "final/adapter", "../own"])
def test_a_run_brings_what_it_was_trained_with_whichever_of_its_models_is_named(inside: str, run: Run) -> None:
    own = run("own", *WORDS)
    Path(own, inside).mkdir(parents=True, exist_ok=True)
    found = model_defaults(f"{own}/{inside}" if inside else own)
    assert found["task.template"] == "qa"
    assert found["rollout.stop"] == ("Question:", "Q:")
    assert (found["grpo.lr"], found["policy.dtype"]) == (1e-4, "float32")
    assert model_defaults("elsewhere/model") == model_defaults(".") == {}
    Path("model").mkdir()
    assert model_defaults("model") == {}


def test_settings_that_say_nothing_are_those_of_the_run(run: Run) -> None:
    own = run("own", *WORDS)
    found = prompting_of([own], {})
    assert found.settings == {
        "template": "qa",
        "format": "hash",
        "stop": ("Question:", "Q:"),
        "max_new_tokens": 70,
        "chat_template": "off",
    }
    assert found.said == (
        "asked as own was trained: template qa, format hash, stop 'Question:', 'Q:', at most 70 tokens, chat template "
        "off"
    )
    # Who words the question otherwise takes no form and no stop strings of other words.
    assert prompting_of([own], {"template": "boxed", "chat_template": "on"}).settings == {"max_new_tokens": 70}
    assert set(prompting_of([own], {"format": "boxed", "max_new_tokens": 5}).settings) == {
        *("template", "stop", "chat_template")
    }
    plain = run("plain")  # it has no stop strings, and left the chat template to the tokenizer
    assert prompting_of([plain], {}).said == "asked as plain was trained: template plain, at most 70 tokens"


def test_a_template_of_one_s_own_is_taken_as_it_is_written(run: Run) -> None:
    own = run("own", "task.template={user: 'Sum: {question}', stop: ['.']}")
    found = prompting_of([own], {})
    assert found.settings["template"] == TemplateText(user="Sum: {question}", stop=(".",))
    assert found.said.startswith("asked as own was trained: a template of its own, ")


def test_all_models_are_asked_alike_as_the_runs_among_them_were(run: Run) -> None:
    own, longer, other = run("own", *WORDS), run("longer", *WORDS, "rollout.max_new_tokens=90"), run("other")
    assert prompting_of(["tiny-base", own, "hub/model"], {}) == prompting_of([own], {})
    both = prompting_of([own, longer], {})
    assert both.settings["max_new_tokens"] == 90
    assert both.said.startswith("asked as own, longer were trained: template qa")
    assert prompting_of([own, other], {}).settings == {}
    said = "own, other: not alike in how they are asked (template), so all are asked as the task says"
    assert prompting_of([own, other], {}).said == said
    assert prompting_of([own, other], {"template": "boxed"}).settings == {"max_new_tokens": 70}


def test_a_named_model_is_asked_as_usual() -> None:
    said = "asked as is usual for tiny-base, tiny-instruct: template plain, at most 96 tokens"
    assert prompting_of(["tiny-base", "tiny-instruct"], {}).said == said
    assert prompting_of(["hub/model"], {}).settings == {}
    assert prompting_of(["gemma3-270m", "tiny-base"], {}).settings == {}


def problems(path: Path) -> str:
    path.write_text('{"question": "1+1=?", "answer": "2"}\n', "utf-8")
    return str(path)


def test_an_evaluation_on_data_of_one_s_own_asks_as_the_run_did(run: Run, tmp_path: Path) -> None:
    own, data = run("own", *WORDS), problems(tmp_path / "sums.jsonl")
    settings = Settings(tasks=("sums",), data={"sums": data}, temperature=0.0, samples=1)
    asked, said = as_trained(settings, [own])
    assert said == prompting_of([own], {}).said
    protocol = Plan("sums", asked).protocol()
    assert {key: protocol[key] for key in ("template", "format", "max_new_tokens", "stop")} == {
        "template": "qa v1",
        "format": "hash",
        "max_new_tokens": 70,
        "stop": ["Question:", "Q:"],
    }
    assert asked.chat_template == "off"
    assert as_trained(settings, ["hub/model"]) == (settings, "")


def test_a_benchmark_is_asked_as_always_and_a_run_that_was_trained_otherwise_is_told(run: Run) -> None:
    own, plain = run("own", *WORDS), run("plain")
    settings = Settings(tasks=("arithmetic",))
    assert as_trained(settings, ["tiny-base", own]) == (
        settings,
        "arithmetic: asked as always, not as own (template qa)",
    )
    assert as_trained(settings, [plain]) == (settings, "")
    assert as_trained(settings, ["gemma3-270m"]) == (settings, "")
    assert as_trained(settings.model_copy(update={"template": "boxed"}), [own])[1] == ""


def test_a_recipe_that_nobody_needs_may_be_unreadable(run: Run, tmp_path: Path) -> None:
    own, data = run("own"), problems(tmp_path / "sums.jsonl")
    Path(own, "recipe.yaml").write_text("steps: [", "utf-8")
    benchmark = Settings(tasks=("arithmetic",))
    assert as_trained(benchmark, [own]) == (benchmark, "")
    with pytest.raises(RlifError, match=r"recipe\.yaml"):
        as_trained(Settings(tasks=("sums",), data={"sums": data}), [own])


def test_a_diagnosis_asks_as_the_run_did(run: Run, tmp_path: Path) -> None:
    own, data = run("own", *WORDS), problems(tmp_path / "sums.jsonl")
    settings, policy, said = subject.as_trained(DiagnoseSettings(limit=1), PolicyConfig(model=own))
    assert said == prompting_of([own], {}).said
    assert policy.chat_template == "off"
    one = subject_of(data, settings, policy)
    assert one.template == "qa"
    toy = toy_policy()
    asking: Any = asking_of(toy, one, one.prompts(toy, settings), settings)
    assert (asking.training.max_new_tokens, asking.training.stop) == (70, ("Question:", "Q:"))
    assert one.sections is not None
    assert (one.sections["task"]["format"], one.sections["policy"]["chat_template"]) == ("hash", "off")


def test_a_diagnosis_fits_the_length_that_a_run_brings_to_the_context(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As training does; where nothing was brought or asked for, nothing is said of it."""
    own, data, toy = run("own", "rollout.max_new_tokens=4000"), problems(tmp_path / "sums.jsonl"), toy_policy()
    assert toy.context is not None
    for settings, length in ((subject.as_trained(DiagnoseSettings(), PolicyConfig(model=own))[0], 4000), (None, None)):
        one = subject_of(data, settings or DiagnoseSettings(), PolicyConfig(model="tiny-base"))
        prompts = one.prompts(toy, DiagnoseSettings())
        caplog.clear()
        asking = asking_of(toy, one, prompts, settings or DiagnoseSettings())
        left = toy.context - len(prompts[0].token_ids)
        assert asking.training.max_new_tokens == min(left, length or subject.MOST_TOKENS)
        said = f"max_new_tokens is {left}, not {length}: the context has no room for more"
        assert [record.getMessage() for record in caplog.records] == ([said] if length else [])
