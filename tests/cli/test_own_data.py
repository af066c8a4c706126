"""`rlif train --model M --data FILE`, `rlif eval MODEL --data FILE`: problems of one's own, without a recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlif.cli.commands.evaluate import _asked
from rlif.cli.main import app
from rlif.config import ArithmeticTask, FileTask, OwnData
from rlif.errors import RlifError
from rlif.model.template_clock import present
from rlif.recipes import load_recipe, shipped_recipes
from rlif.runs.layout import recipe_path
from rlif.training.own_data import recipe_for, usual_folder
from rlif.training.prompt_source import PromptSource, check_problems
from toys import toy_policy


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_file_and_a_models_name_are_a_run_and_its_folder_is_a_model(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sums.csv").write_text("text,level\n" + "".join(f"{i}+{i + 3}=?,easy\n" for i in range(10, 15)))
    said = invoke(
        *("train", "--model", "tiny-base", "--data", "sums.csv", "--question", "text", "--steps", "2", "--until", "1"),
        *("rollout.group_size=2", "eval.every=0", "--out", "run"),
    )
    assert said.splitlines()[0] == (
        "tiny-base on self_certainty: 2 steps of 5 prompts × 2 answers, into run"  # as many as there are rows
    )
    assert said.splitlines()[1].endswith("metrics.jsonl has every step")
    assert "right" not in said
    assert "  self-agree 0." in said
    assert said.splitlines()[-1] == "paused; go on with: rlif train --resume run"
    recipe = load_recipe(recipe_path(Path("run")))
    assert isinstance(recipe.task, FileTask)
    assert (recipe.task.path, recipe.task.question_column) == (str(tmp_path / "sums.csv"), "text")
    assert (recipe.rollout.prompts, recipe.steps) == (5, 2)  # as many as there are rows
    assert (recipe.task.template, recipe.rollout.max_new_tokens, recipe.grpo.lr) == ("plain", 96, 1e-4)  # the model's
    again = invoke("train", "--resume", "run", "--quiet")
    assert again.splitlines() == ["final model: run/final"]
    said = invoke("train", "--resume", "run", "--steps", "2")
    assert said.splitlines()[0] == "run: 2 steps are done; --steps counts them, too"
    further = recipe_for("run", OwnData("sums.csv", "text"))  # a run is asked as it was trained
    assert (further.task.template, further.rollout.max_new_tokens, further.policy.model) == ("plain", 96, "run")
    asked = "asked as run/final was trained: template plain, format boxed, at most 96 tokens"
    data = ("--data", "sums.csv", "--question", "text", "--limit", "1")
    said = invoke("eval", "run/final", *data, "--samples", "2", "--baselines", "none", "--out", "judged")
    assert said.splitlines()[:2] == [asked, "run/final: loading"]
    assert "sums: 1 problems" in said
    assert "nothing is said of right and wrong" in said
    judged = json.loads(Path("judged/results.json").read_text())
    assert judged["results"][0]["metrics"]["right"] is None
    assert judged["asked"]["tasks"]["sums"]["template"] == "plain v1"
    assert judged["asked"]["tasks"]["sums"]["max_new_tokens"] == 96
    assert asked in invoke("diagnose", "run/final", *data, "--samples", "4")
    said = invoke("sample", "run/final", "12+34=?", "--max-new-tokens", "4")
    assert said.splitlines()[0] == "asked as run/final was trained: template plain, format boxed"


def test_prompts_and_lengths_are_fitted_to_the_rows_and_the_context(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rlif.model.template_clock import present
    from rlif.tasks import build_task
    from rlif.training.fit import fitted
    from toys import toy_policy

    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": "a" * n}) + "\n" for n in range(1, 8)))
    recipe = recipe_for("someone/model", OwnData(str(path)), overrides=["task.template=plain", "grpo.minibatches=2"])
    assert recipe.rollout.fit
    policy = toy_policy()  # a token a character, 128 of them
    found = fitted(recipe, build_task(recipe.task), policy, present())
    assert (found.rollout.prompts, found.eval.problems) == (6, 7)  # 7 rows, in two minibatches
    assert found.rollout.max_new_tokens == policy.context - 7 if policy.context else False
    assert "rollout.prompts is 6, not 16: there are no more" in caplog.text
    assert "not 512: the context has no room for more" in caplog.text
    assert fitted(recipe, build_task(recipe.task), policy, present(), ranks=4).rollout.prompts == 4  # lcm(2, 4)
    assert fitted(recipe, build_task(recipe.task), policy, present(), ranks=3).rollout.prompts == 6
    unbound = recipe_for("someone/model", OwnData(str(path)), overrides=["task.template=plain", "rollout.prompts=2"])
    assert fitted(unbound, build_task(unbound.task), policy, present()).rollout.prompts == 2


def test_prompts_are_fitted_to_as_many_ranks_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlif.model.template_clock import present
    from rlif.training import setup
    from rlif.training.custom import Custom
    from rlif.training.parallel import Group
    from toys import toy_policy

    class Asked(Exception):  # noqa: N818
        pass

    def asked(*arguments: object, ranks: int) -> None:
        raise Asked(ranks)

    recipe = load_recipe(shipped_recipes()["tiny"], ["rollout.fit=true"])
    monkeypatch.setattr(setup, "check_start", lambda *arguments: None)
    monkeypatch.setattr(setup, "load_trainable", lambda *arguments: (toy_policy(), None))
    monkeypatch.setattr(setup, "fitted", asked)
    with pytest.raises(Asked, match=r"^3$"):
        setup.prepare(recipe, setup.Origin(Path("run"), present()), Custom(), Group(1, 3))


def test_answers_in_a_column_of_another_name_are_missed_by_name(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from rlif.config import FileTask
    from rlif.evals.plan import Plan
    from rlif.evals.settings import Settings
    from rlif.tasks import build_task

    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text('{"text": "1+1=?", "gold": "2"}\n')
    absent = "no column 'answer' (there are text, gold)"
    asked = "--model tiny-base --data own.jsonl --question text --reward verifiable --out x"
    with pytest.raises(RlifError) as raised:
        invoke("train", *asked.split())
    assert f"reward verifiable needs answers: {absent}; name it with --answer COLUMN" in str(raised.value)
    assert absent not in caplog.text, "said once"
    own, few = OwnData("own.jsonl", question_column="text"), ["rollout.prompts=1", "eval.every=0"]
    unlabelled = recipe_for("tiny-base", own, reward="self_certainty", overrides=few)
    check_problems(PromptSource(unlabelled, build_task(unlabelled.task), toy_policy(), present()), labelled=[])
    assert f"{absent}: nothing is said of right and wrong" in caplog.text
    assert caplog.text.count("right and wrong") == 1, "said once"
    caplog.clear()
    Plan("own", Settings(tasks=("own",), data={"own": "own.jsonl"}, question_column="text"))
    assert f"{absent}: nothing is said of right and wrong" in caplog.text
    caplog.clear()
    Plan("own", Settings(tasks=("own",), data={"own": "own.jsonl"}, question_column="text", answer_column="gold"))
    assert not caplog.text
    assert absent == build_task(FileTask(name="file", path="own.jsonl", question_column="text")).no_answers
    assert not build_task(FileTask(name="file", path="own.jsonl", question_column="gold", id_column="text")).no_answers


def test_a_reward_beside_data_is_whatever_a_recipe_takes() -> None:
    for reward in ("{name: formatted, of: soft_consensus}", "[{name: formatted, of: soft_consensus}, length]"):
        (first, *_) = recipe_for("m", OwnData("x.jsonl"), reward=reward).reward
        assert first == recipe_for("m", OwnData("x.jsonl"), overrides=[f"reward={reward}"]).reward[0]
        assert first.label == "formatted soft_consensus"
    assert recipe_for("m", OwnData("x.jsonl"), reward="formatted").reward[0].label == "formatted majority_vote"
    both = recipe_for("m", OwnData("x.jsonl"), reward="length", overrides=["reward=random"])
    assert [one.name for one in both.reward] == ["random"]


def test_what_is_said_beside_a_recipe_comes_before_its_overrides_and_keeps_its_words() -> None:
    tiny = shipped_recipes()["tiny"]
    recipe = recipe_for("m", OwnData("x.jsonl", answer_column="gold"), recipe=tiny, reward="length", steps=3)
    assert (recipe.policy.model, recipe.reward[0].name, recipe.steps) == ("m", "length", 3)
    assert recipe.task == FileTask(name="file", path="x.jsonl", answer_column="gold", template="plain")
    assert recipe.grpo.lr == load_recipe(tiny).grpo.lr
    gsm8k = recipe_for(None, OwnData("x.csv"), recipe=shipped_recipes()["smollm2-gsm8k"], overrides=["steps=9"])
    assert isinstance(gsm8k.task, FileTask)
    assert (gsm8k.task.template, gsm8k.task.format, gsm8k.steps) == ("gsm8k_short", "hash", 9)
    assert recipe_for("m", steps=4, recipe=tiny, overrides=["steps=5"]).steps == 5
    assert usual_folder("Qwen/Qwen3-0.6B", OwnData("data/mine.jsonl")) == Path("runs/qwen3-0.6b-mine")
    # Another task leaves the keys of the old one behind, but for those that are given with it.
    task = load_recipe(shipped_recipes()["smollm2-additions"], ["task.name=file", "task.path=x.jsonl"]).task
    assert task == FileTask(name="file", path="x.jsonl", format="last_number")
    assert isinstance(load_recipe(tiny, ["task.limit=3"]).task, ArithmeticTask)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data x.jsonl", "say which model: rlif train --model MODEL --data FILE"),
        ("", "give a recipe, or a model and data"),
        ("tiny --question q --out x", "--question: belongs to --data FILE"),
        ("tiny", "give a folder for the run: rlif train tiny --out DIR"),
        (
            "tiny task.path=x.jsonl --out x",
            "override 'task.path=x.jsonl': task.path: the task arithmetic reads no file; for ",
        ),
        ("tiny task.pth=x.jsonl --out x", "override 'task.pth=x.jsonl': task.pth: unknown key"),
        (
            "tiny learning_rate=1 --out x",
            "override 'learning_rate=1': learning_rate: unknown key; did you mean grpo.lr?",
        ),
        (
            "tiny steps=0 seed=-1 --out x",
            "override 'steps=0': steps: expected 1 or more (given 0); also override 'seed=-1': ",
        ),
        ("tiny rollout.group_size=1 --out x", "override 'rollout.group_size=1': rollout.group_size: 1 makes every"),
        ("tinyy --out x", "did you mean tiny?"),
        ("--model m --data none.jsonl --out x", "none.jsonl: No such file or directory; check --data"),
        ("--model m --data own.jsonl --out x", "--model: no such folder or file: m"),
        ("--resume x --data y", "--resume DIR goes with --steps, --until, --allow-changed and KEY=VALUE alone"),
        ("--resume x guards.stop=false", "x: holds no run"),
        ("--model tiny-bace --data own.jsonl --out x", "did you mean tiny-base?"),
        (
            "--model tiny-base --data own.jsonl --reward verifiable --out x",
            "have none (the first is own.jsonl:1); fix --answer",
        ),
        ("--model m --data own.jsonl --reward nme --out x", "--reward: no reward 'nme'"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(arguments: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text('{"question": "1+1=?"}\n')
    with pytest.raises(RlifError) as raised:
        invoke("train", *arguments.split())
    message = str(raised.value)
    assert said in message
    assert "pydantic" not in message
    assert not Path("x").exists()


def test_a_bare_file_is_a_task_called_like_it() -> None:
    assert _asked(None, ["data/my sums.jsonl"]) == (("my-sums",), {"my-sums": "data/my sums.jsonl"})
    assert _asked("gsm8k", ["a=b.csv", "c.csv"]) == (("gsm8k", "c"), {"a": "b.csv", "c": "c.csv"})
    assert _asked(None, ["openai/gsm8k"]) == (("gsm8k",), {"gsm8k": "openai/gsm8k"})
    for tasks, data, said in ((None, [], "--data PATH"), (None, ["a/x.csv", "b/x.csv"], "two are called x")):
        with pytest.raises(RlifError, match=said):
            _asked(tasks, data)


def test_another_template_takes_neither_form_nor_stop_strings_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = {"task.template": "qa", "task.format": "hash", "rollout.stop": ["Question:"], "grpo.lr": 1e-4}
    monkeypatch.setattr("rlif.training.own_data.model_defaults", lambda model: brought)
    kept = recipe_for("m", OwnData("x.jsonl"))
    assert (kept.rollout.stop, kept.task.template) == (("Question:",), "qa")
    other = recipe_for("m", OwnData("x.jsonl"), overrides=["task.template=boxed"])
    assert (other.rollout.stop, other.task.template, other.task.format) == ((), "boxed", None)
    assert other.grpo.lr == 1e-4
