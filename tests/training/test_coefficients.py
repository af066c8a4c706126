"""Coefficients that follow what is measured: by hand, in a run against a loop over its log, and after a resume."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from interruptions import StopAfter
from rlif.config import GrpoConfig, Recipe
from rlif.errors import RlifError
from rlif.recipes import load_recipe, parse_recipe, shipped_recipes
from rlif.runs.history import read_metrics
from rlif.training import loop as trainer
from rlif.training.coefficients import CONTROLLERS, kl_coef, moved_levels, settings_of
from rlif.training.loop import resume, train
from rlif.types import Rollouts, Sampling, TokenSignals, Update


def rollouts_of(*entropies: float) -> Rollouts:
    """One completion whose tokens have these entropies, and a masked position after them."""
    n = len(entropies)
    zeros, mask = torch.zeros(1, n + 1), torch.arange(n + 1)[None] < n
    entropy = torch.tensor([[*entropies, 0.0]])
    return Rollouts(
        (), 1, torch.zeros(1, n + 1, dtype=torch.long), mask, zeros, TokenSignals(zeros, entropy, zeros), ("x",),
        ("eos",), Sampling(),
    )  # fmt: skip


# The KL target


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.02, 1.0),  # on target
        (0.022, 1.01),  # a tenth above: .1 / 10
        (0.019, 0.995),
        (0.024, 1.02),  # a fifth above, where the clip begins
        (5.0, 1.02),
        (0.0, 0.98),
    ],
)
def test_the_kl_coefficient_by_hand(kl: float, factor: float) -> None:
    config = GrpoConfig(kl_target=0.02)
    assert kl_coef(0.005, kl, config) == pytest.approx(0.005 * factor, rel=1e-12)
    assert kl_coef(0.005, kl, config.model_copy(update={"kl_horizon": 1.0})) == pytest.approx(
        0.005 * (1 + 10 * (factor - 1)), rel=1e-12
    )


# The floor under entropy


def test_the_bonus_for_entropy_by_hand() -> None:
    config = GrpoConfig(entropy_floor=0.2, entropy_step=0.01, entropy_most=0.02)
    levels: dict[str, float] = {}
    used = []
    # Means over the tokens that count: .1, .1, .1, .1, .3, .2 (the floor itself is not below it), .1.
    for entropies in [(0.05, 0.15)] * 4 + [(0.3,), (0.1, 0.3), (0.1,)]:
        rollouts = rollouts_of(*entropies)
        used.append(settings_of(config, levels, rollouts).entropy_coef)
        mean = sum(entropies) / len(entropies)
        levels = moved_levels(config, levels, {"signal/entropy": mean})
    # The level goes 0, .01, .02, .02 (its bound), .02, .01, 0; nothing is paid where the entropy is not below.
    assert used == pytest.approx([0.0, 0.01, 0.02, 0.02, 0.0, 0.0, 0.0])
    assert levels == {"entropy_coef": pytest.approx(0.01)}


def test_a_bonus_that_starts_above_its_bound_is_refused() -> None:
    data: dict[str, Any] = {"steps": 1, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}}
    with pytest.raises(RlifError, match=r"grpo\.entropy_coef: it starts above entropy_most"):
        parse_recipe({**data, "reward": "length", "grpo": {"entropy_coef": 0.1, "entropy_floor": 1}})
    parse_recipe({**data, "reward": "length", "grpo": {"entropy_coef": 0.1}})


def test_where_nothing_follows_the_recipe_is_in_force_and_nothing_is_kept() -> None:
    config = GrpoConfig(kl_coef=0.3)
    assert settings_of(config, {}, rollouts_of(0.1)) == config
    assert moved_levels(config, {}, {}) == {}


def test_a_target_without_a_coefficient_to_multiply_is_refused() -> None:
    data: dict[str, Any] = {"steps": 1, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}}
    with pytest.raises(RlifError, match=r"grpo\.kl_target: kl_coef is multiplied, and 0 stays 0; give it a start"):
        parse_recipe({**data, "reward": "length", "grpo": {"kl_target": 0.1, "kl_coef": 0}})
    with pytest.raises(RlifError, match=r"grpo\.kl_horizon: expected 1 or more"):
        parse_recipe({**data, "reward": "length", "grpo": {"kl_target": 0.1, "kl_horizon": 0.5}})


# In a run


def recipe(tiny_base_path: Path, *changes: str) -> Recipe:
    """Two prompts of four completions a step, every step kept."""
    small = [f"policy.model={tiny_base_path}", "rollout.prompts=2", "rollout.group_size=4", "eval.every=0"]
    few = ["steps=4", "rollout.max_new_tokens=8", "log.entropy_share=0", "checkpoint.every=2", "grpo.lr=1e-3"]
    return load_recipe(shipped_recipes()["tiny"], [*small, *few, *changes])


def logged(out: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(out / "metrics.jsonl") if line["step"]]


CASES = {
    "kl_coef": ["grpo.kl_coef=0.02", "grpo.kl_target=1e-6", "grpo.kl_horizon=2"],
    "entropy_coef": ["grpo.entropy_floor=9", "grpo.entropy_step=0.01", "grpo.entropy_most=0.025"],
}


def expected_kl_coefs(lines: list[dict[str, float]]) -> list[float]:
    """The controller of the paper, over the KL that the run logged."""
    level, found = 0.02, []
    for line in lines:
        found.append(level)
        level *= 1 + min(max(line["kl"] / 1e-6 - 1, -0.2), 0.2) / 2
    return found


EXPECTED: dict[str, Callable[[list[dict[str, float]]], list[float]]] = {
    "kl_coef": expected_kl_coefs,
    "entropy_coef": lambda lines: [0.0, 0.01, 0.02, 0.025],  # every entropy is below 9
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_resumed_run_follows_as_one_never_stopped(name: str, tiny_base_path: Path, tmp_path: Path) -> None:
    chosen = recipe(tiny_base_path, *CASES[name])
    train(chosen, tmp_path / "whole")
    with pytest.raises(ConnectionAbortedError):
        train(chosen, tmp_path / "broken", callback=StopAfter(3))
    resume(tmp_path / "broken")
    one, other = ([line[name] for line in logged(tmp_path / run)] for run in ("whole", "broken"))
    assert one == other
    assert one == pytest.approx(EXPECTED[name](logged(tmp_path / "whole")), rel=1e-12)
    assert len(set(one)) > 1  # it moves at all
    first, second = (load_file(tmp_path / run / "final/model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    states = [
        json.loads((tmp_path / run / "checkpoints/step-000004/state.json").read_text()) for run in ("whole", "broken")
    ]
    assert states[0]["coefficients"] == states[1]["coefficients"]


def test_an_update_is_given_what_is_logged_and_the_coefficient_rises_while_the_kl_is_above_its_target(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, real = [], trainer.grpo_step

    def grpo_step(policy: Any, optimizer: Any, scored: Any, config: GrpoConfig, **more: Any) -> Update:
        used.append(config.kl_coef)
        return real(policy, optimizer, scored, config, **more)

    monkeypatch.setattr(trainer, "grpo_step", grpo_step)
    train(recipe(tiny_base_path, *CASES["kl_coef"]), tmp_path / "run")
    lines = logged(tmp_path / "run")
    assert used == [line["kl_coef"] for line in lines]
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # the policy is still its reference
    assert used[1] == pytest.approx(0.018)
    assert lines[2]["kl"] > 1e-6
    assert used[3] > used[2]


def test_a_coefficient_that_does_not_follow_is_not_logged(tiny_base_path: Path, tmp_path: Path) -> None:
    train(recipe(tiny_base_path, "steps=1", "grpo.kl_coef=0.02"), tmp_path / "run")
    assert not set(CONTROLLERS) & set(logged(tmp_path / "run")[0])
    state = json.loads((tmp_path / "run/checkpoints/step-000001/state.json").read_text())
    assert "coefficients" not in state
    assert math.isfinite(logged(tmp_path / "run")[0]["kl"])
