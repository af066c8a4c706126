"""A task and rewards given from Python: trained on, noted in run.json, and asked for again when the run is resumed."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlif.cli.main import main
from rlif.config import ArithmeticTask, Recipe, RewardConfig
from rlif.errors import RlifError
from rlif.recipes import parse_recipe
from rlif.rewards.base import Reward, RewardInputs
from rlif.tasks.arithmetic import Arithmetic
from rlif.tasks.problems import task_of
from rlif.training.custom import Custom
from rlif.training.loop import resume, train
from rlif.types import Problem, Verdict
from rlif.utils import own_code
from rlif.utils.atomic_io import sha256
from toys import toy_policy


class Shouting(Arithmetic):
    """Sums that are right if they are answered aloud."""

    def grade(self, text: str, problem: Problem) -> Verdict:
        return Verdict("!" in text, False, None)


def _mine(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    return torch.tensor([float(verdict.right is True) for verdict in inputs.verdicts]) - inputs.rollouts.lengths


MINE = {"mine": Reward("mine", "aloud, and short", "this test", False, _mine)}
TASK = Shouting(ArithmeticTask(name="arithmetic"))


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_policy("llama").save(folder)
    return folder


def recipe(model: Path, reward: object = "mine") -> Recipe:
    return parse_recipe(
        {
            "steps": 2,
            "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
            "task": {"name": "arithmetic"},
            "rollout": {"prompts": 2, "group_size": 3, "max_new_tokens": 8},
            "reward": reward,
            "grpo": {"lr": 1e-3, "kl_coef": 0.0},
            "checkpoint": {"every": 1},
        }
    )


def weights(final: Path | None) -> Mapping[str, Tensor]:
    assert final is not None
    return load_file(final / "model.safetensors")


def test_a_run_with_a_task_and_a_reward_of_its_own_is_resumed_with_them_only(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    whole = weights(train(recipe(toy_model), tmp_path / "whole", task=TASK, rewards=MINE))
    assert train(recipe(toy_model), out, task=TASK, rewards=MINE, until=1) is None
    assert json.loads((out / "run.json").read_text())["needs"] == {
        "rewards": ["mine"],
        "task": f"{Shouting.__module__}.Shouting",
    }
    before = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.name != ".lock"}
    for given, lacking, call in (
        ({}, r"the reward 'mine' and the task \S+\.Shouting", r"rewards=\{'mine': …\}, task=…\)"),
        ({"rewards": MINE}, r"the task \S+\.Shouting", r"task=…\)"),
        ({"task": TASK}, "the reward 'mine'", r"rewards=\{'mine': …\}, task=…\)"),
    ):
        with pytest.raises(RlifError, match=rf"was given {lacking} from Python, .*: rlif\.resume\('{out}', {call}$"):
            resume(out, **given)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["rlif", "train", "--resume", str(out), "--allow-changed"])
        patch.setattr("signal.signal", lambda *_: None)  # this process keeps its handlers
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the reward 'mine' and the task" in line
    assert before == {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.name != ".lock"}
    again = weights(resume(out, task=TASK, rewards=MINE))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_what_a_run_was_not_given_when_it_began_is_a_change(toy_model: Path, tmp_path: Path) -> None:
    """Also a reward that takes the place of one of the same name: the recipe says nothing of it."""
    out = tmp_path / "run"
    train(recipe(toy_model, "length"), out, until=1)
    assert "needs" not in json.loads((out / "run.json").read_text())
    for given in ({"task": TASK}, {"rewards": {"length": replace(MINE["mine"], name="length")}}):
        with pytest.raises(RlifError, match=r"was given nothing from Python when it began, and \{.*allow_changed=True"):
            resume(out, **given)  # type: ignore[arg-type]
    assert resume(out, rewards=MINE) is not None  # which its recipe does not name


def test_a_reward_of_ones_own_may_look_at_labels_and_says_so(toy_model: Path) -> None:
    custom = Custom(rewards={"mine": replace(MINE["mine"], uses_labels=True)})
    mix = recipe(toy_model, ["mine", "length", "verifiable"])
    assert sorted(custom.needs_labels(mix)) == ["mine", "verifiable"]
    assert Custom(rewards=MINE).needs_labels(recipe(toy_model)) == []
    with pytest.raises(RlifError, match="no reward 'mine'"):
        Custom().check_rewards(mix)
    assert custom.table["length"].function is not custom.table["mine"].function


# A module that the recipe names


MODULE = "def short(inputs):\n    return [-len(text) for text in inputs.rollouts.texts]\nshort.uses_labels = False\n"


def test_a_reward_of_a_module_is_found_again_from_another_folder(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    module = place / "own_of_custom_a.py"
    module.write_text(MODULE)
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr(own_code, "_folders", [])
    mine = recipe(toy_model, "own_of_custom_a:short")
    whole = weights(train(mine, tmp_path / "whole"))
    out = tmp_path / "run"
    train(mine, out, until=1)
    (code,) = json.loads((out / "run.json").read_text())["code"].items()
    assert code == ("own_of_custom_a:short", {"file": str(module), "folder": str(place), "sha256": sha256(module)})
    assert '"reward/own_of_custom_a:short/mean"' in (out / "metrics.jsonl").read_text()

    monkeypatch.chdir(elsewhere)
    module.rename(tmp_path / "away.py")
    with pytest.raises(
        RlifError, match=rf"no module own_of_custom_a in .*; it lay in {module} when the run began: put"
    ):
        resume(out)
    module.write_text(f"# longer\n{MODULE}")
    with pytest.raises(RlifError, match=rf"{module} has changed since this run began; .*allow_changed=True"):
        resume(out)
    module.write_text(MODULE)
    again = weights(resume(out))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_problems_without_answers_are_refused_with_how_to_say_that_none_is_read(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "own_of_custom_b.py").write_text(MODULE.partition("short.uses")[0])
    task = task_of([Problem(str(n), f"{n}+1=?") for n in range(4)])
    said = r"needs answers, .*\(one that reads none says so in own_of_custom_b: short.uses_labels = False\)"
    with pytest.raises(RlifError, match=said):
        train(recipe(toy_model, "own_of_custom_b:short"), tmp_path / "run", task=task)


@pytest.mark.parametrize(("flat", "told"), [(True, 1), (False, 0)])
def test_a_run_in_which_nothing_is_worth_more_says_that_it_learned_nothing(
    flat: bool, told: int, toy_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def worth(inputs: RewardInputs, config: RewardConfig) -> Tensor:
        return torch.zeros(6) if flat else torch.arange(6.0)

    train(recipe(toy_model), tmp_path / "run", rewards={"mine": Reward("mine", "", "this test", False, worth)})
    assert caplog.text.count("nothing was learned: in every step") == told


def test_a_best_checkpoint_that_never_was_is_told_of_at_the_end(
    toy_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Self-agreement is logged of a task without labels alone, and this one has them."""
    for name, told in (("verdict/self_agreement", 1), ("length/mean", 0)):
        caplog.clear()
        chosen = recipe(toy_model, "self_certainty")
        best = chosen.model_copy(update={"checkpoint": chosen.checkpoint.model_copy(update={"best": name})})
        train(best, tmp_path / name.replace("/", "-"))
        assert caplog.text.count(f"no best checkpoint was kept: no step had a number for {name}") == told
