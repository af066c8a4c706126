"""What a run does not hold longer than it needs: a checkpoint's file, a second model on the device, another's lock."""

import json
import sys
import threading
from pathlib import Path

import pytest
import torch

from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.experiments.pool import check_recipes
from rlif.model import logprobs
from rlif.recipes import dump_recipe, load_recipe, parse_recipe
from rlif.training.callbacks import NullCallback
from rlif.training.loop import resume, train
from rlif.training.resolve import resolved, with_looks
from rlif.training.setup import policy_at
from rlif.utils.atomic_io import fcntl, locked
from toys import toy_policy

pytestmark = pytest.mark.filterwarnings("ignore:step [0-9]+:RuntimeWarning")  # guards have their say on random models


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_policy("llama").save(folder)
    return folder


def recipe(model: Path | str, **changes: object) -> Recipe:
    data: dict[str, object] = {
        "steps": 3,
        "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
        "task": {"name": "arithmetic"},
        "rollout": {"prompts": 2, "group_size": 2, "max_new_tokens": 8},
        "reward": "self_certainty",
        "grpo": {"kl_coef": 0.0, "schedule": "constant", "warmup": 0.0},
        "log": {"entropy_share": 0.0},
        "probe": {"every": 0},
        "checkpoint": {"every": 1, "keep_last": 1},
    }
    return parse_recipe({**data, **changes})


class Mapped(NullCallback):
    """Which files of a folder lie in memory when a step is logged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = str(folder), list[str]()

    def logged(self, step: int, metrics: object) -> None:
        self.found += [line for line in Path("/proc/self/maps").read_text().splitlines() if self.folder in line]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what is mapped")
def test_a_resumed_run_keeps_nothing_of_its_checkpoint_in_memory(toy_model: Path, tmp_path: Path) -> None:
    train(recipe(toy_model), tmp_path / "run", until=1)
    callback = Mapped(tmp_path / "run" / "checkpoints")
    resume(tmp_path / "run", callback=callback)
    assert callback.found == []


def test_a_model_that_is_to_be_written_is_loaded_on_the_cpu_in_the_type_of_the_run(
    toy_model: Path, tmp_path: Path
) -> None:
    """On a machine without CUDA it could be loaded nowhere else."""
    far = {"model": str(toy_model), "dtype": "bfloat16", "device": "cuda"}
    policy = policy_at(recipe(toy_model, policy=far), tmp_path, 0, torch.device("cuda"))
    assert {(parameter.device.type, parameter.dtype) for parameter in policy.model.parameters()} == {
        ("cpu", torch.bfloat16)
    }


def test_a_look_runs_no_more_tokens_at_once_than_an_update(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets, real = [], logprobs.micro_batches

    def micro_batches(model: object, rollouts: object, rows: object, budget: int | None) -> list[list[int]]:
        budgets.append(budget)
        return real(model, rollouts, rows, budget)

    monkeypatch.setattr(logprobs, "micro_batches", micro_batches)
    probe = {"every": 1, "prompts": 4, "samples": 2, "reference_samples": 2}
    grpo = {"kl_coef": 0.0, "micro_batch_tokens": 64}
    train(recipe(toy_model, probe=probe, grpo=grpo, steps=1), tmp_path / "run")
    assert len(budgets) >= 2  # the start is shown the completions of two looks
    assert set(budgets) == {64}


def test_a_low_temperature_that_is_none_leaves_no_folder(tmp_path: Path) -> None:
    for probe in ({"every": 1, "low_temperature": 1.0}, {"low_temperature": 1.5}):
        with pytest.raises(RlifError, match=r"probe\.low_temperature: 1(\.5)? is not below rollout\.temperature \(1\)"):
            train(recipe("tiny-base", steps=20, probe=probe), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert recipe("tiny-base", probe={"every": 0, "low_temperature": 1.0}).probe.low_temperature == 1.0  # nobody looks


def test_how_often_is_looked_follows_from_the_prompts_that_there_are(toy_model: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"{10 + i}+{i}=?", "answer": str(10 + 2 * i)}) for i in range(4)]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(rows))
    task = {"name": "file", "path": str(path), "eval_path": str(path), "template": "plain"}
    rollout = {"prompts": 16, "group_size": 4, "max_new_tokens": 4, "fit": True}
    probe = {"prompts": 4, "samples": 6, "reference_samples": 1}
    train(recipe(toy_model, steps=20, task=task, rollout=rollout, probe=probe), tmp_path / "run", until=1)
    kept = load_recipe(tmp_path / "run" / "recipe.yaml")
    # A look is 4 x 6 completions, 4/3 of half a step's cost each; a tenth of 2 x 4 x 4 halves is 3.2, and of the 16
    # prompts that were asked for 12.8.
    assert (kept.rollout.prompts, kept.probe.every) == (4, 10)


def test_a_run_that_was_fitted_is_known_by_the_recipe_that_asked_for_it(toy_model: Path, tmp_path: Path) -> None:
    asked = recipe(toy_model, steps=20, rollout={"prompts": 2, "fit": True}, probe={})
    assert resolved(asked).probe.every is None, "the fit decides"
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "recipe.yaml").write_text(dump_recipe(with_looks(resolved(asked))))
    check_recipes({"cell": asked}, tmp_path)
    with pytest.raises(RlifError, match="a run of other settings"):
        check_recipes({"cell": recipe(toy_model, steps=20, rollout={"prompts": 3, "fit": True}, probe={})}, tmp_path)


@pytest.mark.skipif(fcntl is None, reason="a system without flock")
def test_who_asks_whether_a_folder_is_in_use_keeps_nobody_out(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    with (tmp_path / ".lock").open("rb") as asked:
        fcntl.flock(asked, fcntl.LOCK_SH | fcntl.LOCK_NB)
        threading.Timer(0.1, lambda: fcntl.flock(asked, fcntl.LOCK_UN)).start()
        with locked(tmp_path):
            pass
        fcntl.flock(asked, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(RlifError, match="another process is at work in it"), locked(tmp_path):
            pytest.fail("two at once")
