"""A finished run goes on for more steps; a run's folder stands for its model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlif.cli.train_progress import kept_line
from rlif.config import PolicyConfig, Recipe
from rlif.errors import RlifError
from rlif.model import registry
from rlif.model.loading import check_source, load_policy
from rlif.recipes import load_recipe, shipped_recipes
from rlif.rewards.base import RewardInputs, reward_of
from rlif.runs.history import read_metrics
from rlif.runs.layout import FINAL, METRICS_FILE, RECIPE, recipe_path
from rlif.training.callbacks import NullCallback
from rlif.training.extension import check_extension, with_overrides
from rlif.training.loop import resume, train
from rlif.training.resolve import resolved
from rlif.training.setup import Setup
from rlif.utils.interrupts import AtOnce

SMALL = ["rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=6", "eval.every=0", "reward=random"]


def tiny(steps: int, *changes: str) -> Recipe:
    return load_recipe(shipped_recipes()["tiny"], [f"steps={steps}", *SMALL, *changes])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / FINAL / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_with_a_constant_rate_it_is_the_run_that_was_asked_for_so_many_steps_at_once(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(tiny(3), whole)
    train(tiny(2), part)
    at_two = weights(part)
    assert not same(at_two, weights(whole))
    resume(part, steps=3, until=2)  # nothing to do before the pause, and it is written down
    assert not (part / FINAL).exists()
    with pytest.raises(RlifError, match=rf"^model: {part} is a run that has not ended .*checkpoints/step-000002"):
        check_source(PolicyConfig(model=str(part)))
    resume(part)
    assert same(weights(part), weights(whole))
    assert same(load_file(part / "final-step-000002/model.safetensors"), at_two)  # what it had ended with is kept
    assert load_recipe(recipe_path(part)) == load_recipe(recipe_path(whole))
    ours, theirs = ([line["loss"] for line in read_metrics(out / METRICS_FILE)] for out in (part, whole))
    assert ours == theirs
    with pytest.raises(RlifError, match="steps is 1, but 3 are done"):
        resume(part, steps=1)
    # The folder is its model, by whatever it is asked for.
    assert registry.resolve(str(part)) == str(part / FINAL)
    policy = load_policy(PolicyConfig(model=str(part), dtype="float32"))
    assert same(weights(whole), dict(policy.model.state_dict()))
    assert resolved(tiny(1, f"policy.model={part}")).policy.model == str((part / FINAL).resolve())
    assert registry.final_of(str(part / FINAL)) == str(part / FINAL)
    assert {*registry._OF_A_RUN} == {RECIPE, METRICS_FILE}


def test_another_schedule_is_laid_over_all_steps_and_that_is_said(tmp_path: Path) -> None:
    train(tiny(2, "grpo.schedule=linear"), tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=r"the learning rate's schedule \(linear, .*over 4 steps.*step 3 has 5e-05"):
        resume(tmp_path / "run", steps=4, until=2)
    resume(tmp_path / "run", until=3)  # it is written down: going on again changes nothing, and nothing is refused
    rates = [line["lr"] for line in read_metrics(tmp_path / "run" / METRICS_FILE)]
    assert rates == pytest.approx([1e-4, 5e-5, 5e-5])  # of 2 steps: 1, 1/2; of 4: 1, 3/4, 1/2
    assert json.loads((tmp_path / "run/run.json").read_text())["extended"] == 4
    recipe = tmp_path / "run" / RECIPE
    recipe.write_text(recipe.read_text().replace("steps: 4", "steps: 5"))
    with pytest.raises(RlifError, match="steps was 4, is 5"):  # by hand it is another run, as before
        resume(tmp_path / "run")


def test_a_run_that_goes_on_takes_changes_of_keys_that_decide_no_number(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(2), out, until=1)
    before = (out / RECIPE).read_text()
    free = r"checkpoint\.\*, log\.\*, eval\.every, .*guards\.choose_by alone"
    with pytest.raises(RlifError, match=rf"^override 'seed=3': a run that goes on takes steps and changes of {free}"):
        resume(out, overrides=["log.rollouts_every=1", "seed=3"])
    with pytest.raises(RlifError, match=r"^override 'log\.rolouts=1': .*unknown key"):
        resume(out, overrides=["log.rolouts=1"])
    with pytest.raises(RlifError, match=r"^override 'guards\.stop': write key=value"):
        resume(out, overrides=["guards.stop"])
    assert (out / RECIPE).read_text() == before
    resume(out, overrides=["checkpoint.keep_last=7", "log.rollouts_every=1"])
    kept = load_recipe(out / RECIPE)
    assert (kept.checkpoint.keep_last, kept.log.rollouts_every, kept.steps) == (7, 1, 2)
    assert (out / "rollouts" / "step-000002.parquet").is_file()
    assert "extended" not in json.loads((out / "run.json").read_text())
    train(tiny(2), tmp_path / "whole")
    assert same(weights(out), weights(tmp_path / "whole"))


def test_a_reward_that_raised_says_how_to_go_on_once_it_is_mended(tmp_path: Path) -> None:
    out, broken = tmp_path / "run", True

    def own(inputs: RewardInputs) -> list[float]:
        return [1.0 / 0] if broken else [0.0] * inputs.rollouts.n_rows

    rewards = {"own": reward_of("own", own, uses_labels=False)}
    with pytest.raises(RlifError, match=r"it raised ZeroDivisionError: .*; mend the function; to go on ") as raised:
        train(tiny(1, "reward=own"), out, rewards=rewards)
    raised.value.command_line = True
    assert str(raised.value).endswith(f"; to go on with it mended: rlif train --resume {out} --allow-changed")
    broken = False
    assert resume(out, rewards=rewards, allow_changed=True) == out / FINAL


def test_what_a_run_ended_at_once_has_kept_is_said(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert kept_line(out) == "nothing is kept: the run had not begun; the same command begins it"
    go_on = f"rlif train --resume {out}"

    class Second(NullCallback):
        def logged(self, step: int, metrics: object) -> None:
            if step == self.at:
                raise AtOnce(2)

        at = 1

    with pytest.raises(AtOnce):
        train(tiny(3), out, callback=Second())
    assert kept_line(out) == f"there is no checkpoint yet, and no step is kept; begin again with: {go_on}"
    resume(out, until=1)
    Second.at = 3
    with pytest.raises(AtOnce):
        resume(out, callback=Second())
    assert kept_line(out) == f"kept up to the checkpoint of step 1; go on with: {go_on}"


def test_how_often_is_looked_is_fixed_where_looks_move_the_weights() -> None:
    with_overrides(tiny(2), ["probe.every=5"])
    merged = tiny(2, "probe.every=10", "probe.start=true", "guards.merge_back=0.5")
    with pytest.raises(RlifError, match=r"^override 'probe\.every=5': a run that goes on takes ") as refused:
        with_overrides(merged, ["probe.every=5"])
    assert "max_mismatch, guards.stop" in str(refused.value)


@pytest.mark.parametrize(
    ("teacher", "merge_back", "ended_at", "said"),
    [
        (True, None, 20, "the teacher's decay (consensus.decay) is laid over all steps from here on"),
        (False, 0.5, 25, "its old end was looked at out of turn, and guards.merge_back goes by what was seen there"),
        (False, 0.5, 20, None),  # it would have been looked at there anyway
        (False, None, 25, None),
    ],
)
def test_what_else_more_steps_bend_is_said(
    teacher: bool, merge_back: float | None, ended_at: int, said: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    recipe = tiny(40, "probe.every=10", "probe.start=true", f"guards.merge_back={merge_back or 'null'}")
    setup = object.__new__(Setup)  # of it what is looked at
    setup.__dict__.update(recipe=recipe, step=ended_at, state={}, teacher=object() if teacher else None)
    check_extension(setup, Path("run"))
    expected = f"run: {said}, so this is not the run that so many steps from the start would have been"
    assert [str(one.message) for one in recwarn] == ([expected] if said else [])
