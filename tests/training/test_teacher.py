"""A teacher that follows the policy: its average in float64, its votes in a run, and that a resumed run keeps it."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from interruptions import StopAfter
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.grading.equivalence import canonical
from rlif.recipes import load_recipe, shipped_recipes
from rlif.training import consensus
from rlif.training.loop import resume, train
from rlif.training.optim import MasterOptimizer
from rlif.training.teacher import FILE, Teacher, decay_at
from toys import toy_policy


def sgd(masters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(masters, lr=math.nan)


def recipe(tiny_base_path: Path, *changes: str) -> Recipe:
    """Two prompts of four completions a step."""
    small = [f"policy.model={tiny_base_path}", "rollout.prompts=2", "rollout.group_size=4", "eval.every=0"]
    few = ["steps=3", "consensus.samples=3", "log.entropy_share=0", "checkpoint.every=1", "checkpoint.keep_last=9"]
    return load_recipe(shipped_recipes()["tiny"], [*small, *few, "reward=ema_vote", "grpo.lr=1e-3", *changes])


def weights(out: Path, step: int, file: str) -> dict[str, Tensor]:
    return load_file(out / f"checkpoints/step-{step:06d}" / file)


def test_the_decay_rises_along_half_a_cosine() -> None:
    # cos(π k / 4) = 1, √½, 0, -√½, -1: 1 - .2 (1 + cos) / 2 = .8, .8 + .1 (1 - √½), .9, .8 + .1 (1 + √½), 1.
    root = math.sqrt(0.5)
    found = [decay_at((0.8, 1.0), step, 5) for step in range(1, 6)]
    assert found == pytest.approx([0.8, 0.8 + 0.1 * (1 - root), 0.9, 0.8 + 0.1 * (1 + root), 1.0], abs=1e-12)
    assert decay_at((0.8, 1.0), 1, 1) == pytest.approx(0.8)  # a run of a single step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_teacher_is_the_moving_average_of_the_masters(dtype: torch.dtype) -> None:
    policy, generator = toy_policy(), torch.Generator().manual_seed(0)
    optimizer = MasterOptimizer(policy.model, sgd, compute_dtype=dtype)
    teacher = Teacher(policy, optimizer)
    expected = [master.detach().double() for master in optimizer.masters]
    for decay in (0.9, 0.0, 0.99, 0.5):
        with torch.no_grad():
            for master in optimizer.masters:
                master.add_(0.1 * torch.randn(master.shape, generator=generator))
        optimizer.publish()
        kept = [parameter.clone() for parameter in policy.model.parameters()]
        teacher.follow(optimizer, decay)
        masters = [master.detach().double() for master in optimizer.masters]
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, masters, strict=True)]
        assert all(torch.equal(*pair) for pair in zip(kept, policy.model.parameters(), strict=True))
    # Weights reach about 10 (a part of them is enlarged): 1e-6 is one unit in the last place there.
    for mine, exact in zip(teacher.weights.values(), expected, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=4e-6, rtol=0)
    for name, parameter in teacher.policy.model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, teacher.weights[name].to(dtype))


def test_small_moves_add_up_though_the_teacher_computes_in_bf16() -> None:
    policy = toy_policy()
    optimizer = MasterOptimizer(policy.model, sgd, compute_dtype=torch.bfloat16)
    teacher = Teacher(policy, optimizer)
    name, weight = next(iter(teacher.weights.items()))
    start = weight.clone()
    with torch.no_grad():
        optimizer.masters[0].add_(1.0)
    for _ in range(1000):  # each moves by about 1e-3: less than bf16 numbers above 1 can tell apart
        teacher.follow(optimizer, 0.999)
    moved = teacher.policy.model.get_parameter(name).float() - start
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.999**1000), atol=0.04, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_teacher_of_one_never_stopped(dtype: str, tiny_base_path: Path, tmp_path: Path) -> None:
    chosen = recipe(tiny_base_path, "consensus.decay=[0.5, 0.8]", f"policy.dtype={dtype}")
    train(chosen, tmp_path / "whole")
    with pytest.raises(ConnectionAbortedError):
        train(chosen, tmp_path / "broken", callback=StopAfter(2))
    resume(tmp_path / "broken")
    for file in ("model.safetensors", FILE, "optimizer.safetensors"):
        one, other = (weights(tmp_path / name, 3, file) for name in ("whole", "broken"))
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), file
    rewards = [
        pq.read_table(tmp_path / name / "rollouts/step-000003.parquet")["reward_ema_vote"]
        for name in ("whole", "broken")
    ]
    assert rewards[0] == rewards[1]


def test_what_checkpoints_keep_is_the_average_of_the_policies_they_keep(tiny_base_path: Path, tmp_path: Path) -> None:
    train(recipe(tiny_base_path, "consensus.decay=[0.5, 0.9]"), tmp_path / "run")
    average = {name: tensor.double() for name, tensor in load_file(tiny_base_path / "model.safetensors").items()}
    for step, decay in ((1, 0.5), (2, 0.7), (3, 0.9)):
        policy, found = weights(tmp_path / "run", step, "model.safetensors"), weights(tmp_path / "run", step, FILE)
        average = {name: decay * old + (1 - decay) * policy[name].double() for name, old in average.items()}
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.double(), average[name], atol=1e-6, rtol=0)
    moved = max(float((policy[name] - tensor).abs().max()) for name, tensor in found.items())
    assert moved > 1e-4  # the two differ by more than rounding


def test_the_rewards_of_a_step_are_the_votes_of_the_teacher_as_it_stood(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, Tensor], dict[str, list[str]], str]] = []
    real = consensus.settle

    def settle(engine: Any, *given: Any, **more: Any) -> dict[str, list[str]]:
        now = {name: tensor.detach().clone() for name, tensor in engine.policy.model.named_parameters()}
        seen.append((now, real(engine, *given, **more), more["when"]))
        return seen[-1][1]

    monkeypatch.setattr(consensus, "settle", settle)
    train(recipe(tiny_base_path, "consensus.decay=[0.5, 0.9]"), tmp_path / "run")
    assert [when for _, _, when in seen] == ["teacher/1", "teacher/2", "teacher/3"]
    start = load_file(tiny_base_path / "model.safetensors")
    for step, (now, answers, _) in enumerate(seen, start=1):
        before = start if step == 1 else weights(tmp_path / "run", step - 1, FILE)
        assert all(torch.equal(tensor, before[name]) for name, tensor in now.items()), step
        for row in pq.read_table(tmp_path / f"run/rollouts/step-00000{step}.parquet").to_pylist():
            winners = {canonical(answer) for answer in answers[row["prompt_id"]]}
            voted = row["stop_reason"] != "length" and row["extracted"]
            expected = 1 / len(winners) if voted and canonical(row["extracted"]) in winners else 0.0
            assert row["reward_ema_vote"] == pytest.approx(expected)


def test_a_run_without_a_teacher_keeps_none(tiny_base_path: Path, tmp_path: Path) -> None:
    train(recipe(tiny_base_path, "reward=majority_vote", "steps=1"), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints/step-000001" / FILE).exists()
    state = json.loads((tmp_path / "run/checkpoints/step-000001/state.json").read_text())
    assert "consensus" not in state


def test_a_mix_of_two_teachers_is_refused(tiny_base_path: Path, tmp_path: Path) -> None:
    for reward in ("[ema_vote, frozen_consensus]", "[ema_vote, {name: negated, of: frozen_consensus}]"):
        with pytest.raises(RlifError, match=r"^reward: ema_vote asks a teacher .* name one of the two$"):
            train(recipe(tiny_base_path, f"reward={reward}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_a_teacher_or_with_anothers_is_refused(tmp_path: Path) -> None:
    policy = toy_policy()
    teacher = Teacher(policy, MasterOptimizer(policy.model, sgd))
    with pytest.raises(RlifError, match=rf"no {FILE}: this run had no teacher .* policy\.model="):
        teacher.restore(tmp_path)
    other = copy.deepcopy(teacher)
    other.weights = {name: weight[:1] for name, weight in other.weights.items()}
    other.save(tmp_path)
    with pytest.raises(RlifError, match="is of another model; resume with the recipe that wrote it"):
        teacher.restore(tmp_path)
