"""examples/verl_internal_feedback without verl: what its parts compute, handed what verl 0.9.1 hands them."""

import asyncio
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlif.integrations.trl_rewards import AGREEMENT

FOLDER = Path(__file__).parents[2] / "examples" / "verl_internal_feedback"
ESTIMATORS: dict[str, Callable[..., Any]] = {}


def register_adv_est(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: ESTIMATORS.setdefault(name, function)


def grpo(rewards: torch.Tensor, mask: torch.Tensor, index: np.ndarray, norm_adv_by_std_in_grpo: bool) -> Any:
    """In the place of verl's: what it was given."""
    return rewards.sum(dim=-1), (mask, index, norm_adv_by_std_in_grpo)


class OneTurn:
    """In the place of verl's SingleTurnAgentLoop."""

    def __init__(self, logprobs: list[float] | None) -> None:
        self.logprobs = logprobs

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        return SimpleNamespace(response_logprobs=self.logprobs, reward_score=None, extra_fields=dict(kwargs))


@pytest.fixture(autouse=True)
def _verl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    loops = "verl.experimental.agent_loop"
    for name, parts in {
        **{name: {} for name in ("verl", "verl.trainer", "verl.trainer.ppo", "verl.experimental", loops)},
        "verl.trainer.ppo.core_algos": {
            "register_adv_est": register_adv_est,
            "compute_grpo_outcome_advantage": grpo,
        },
        f"{loops}.agent_loop": {"AgentLoopOutput": SimpleNamespace},
        f"{loops}.single_turn_agent_loop": {"SingleTurnAgentLoop": OneTurn},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(parts)
        monkeypatch.setitem(sys.modules, name, module)


GROUPS = [
    ["so \\boxed{18}", "\\boxed{18.0}", "\\boxed{7}", "no answer"],
    ["\\boxed{1/2}", "\\boxed{\\frac{1}{2}}", "\\boxed{3}", "\\boxed{3}"],  # a tie
    ["none", "none", "none", "none"],
    ["\\boxed{18}", "\\boxed{2}", "\\boxed{2}", "\\boxed{2}"],
]
ANSWERS = [["18", "18.0", "7", None], ["1/2", "\\frac{1}{2}", "3", "3"], [None] * 4, ["18", "2", "2", "2"]]


def test_the_vote_through_rewards_is_rlifs_majority_vote_in_whatever_order_rows_come() -> None:
    score = importlib.import_module("vote_reward").compute_score
    importlib.import_module("vote_advantage")
    ballots = torch.tensor([score("", text, "")["score"] for texts in GROUPS for text in texts], dtype=torch.float32)
    rewards = torch.zeros(16, 5)
    rewards[torch.arange(16), torch.arange(16) % 5] = ballots  # verl puts them at each completion's last token
    uid = np.array([f"prompt {row // 4}" for row in range(16)], dtype=object)
    order = torch.from_numpy(np.random.RandomState(0).permutation(16))
    config = {"norm_adv_by_std_in_grpo": False}
    shares, given = ESTIMATORS["majority_vote"](
        token_level_rewards=rewards[order], response_mask="mask", index=uid[order.numpy()], config=config, more=1
    )
    expected = torch.from_numpy(AGREEMENT["majority_vote"](ANSWERS).reshape(-1)).float()
    assert torch.equal(shares, expected[order])
    assert expected.tolist() == [1, 1, 0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0, 1, 1, 1]
    assert (given[0], given[2]) == ("mask", False)


def test_ballots_survive_fp32_and_tell_answers_apart() -> None:
    score = importlib.import_module("vote_reward").compute_score
    found = [score("", f"\\boxed{{{answer}}}", "")["score"] for answer in range(300)]
    assert len(set(np.array(found, dtype=np.float32).tolist())) == 300
    assert found == np.array(found, dtype=np.float32).tolist()
    assert 1 <= min(found) <= max(found) <= 2**24
    assert score("", "\\boxed{" + "9" * 3000 + "}", "") == {"score": 0.0, "voting": 0.0}


def test_the_loop_sets_the_mean_log_probability() -> None:
    loop = importlib.import_module("likelihood_loop").LikelihoodLoop
    found = asyncio.run(loop([math.log(0.5), math.log(0.125)]).run({}, turn_scores=[]))
    assert found.reward_score == pytest.approx(-2 * math.log(2))
    assert found.extra_fields == {"turn_scores": [], "reward_extra_info": {"trajectory_entropy": found.reward_score}}
    for nothing in (None, []):
        with pytest.raises(ValueError, match="calculate_log_probs"):
            asyncio.run(loop(nothing).run({}))
