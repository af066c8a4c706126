"""An engine that ranks share offers all that an engine does, and gives what it would give alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.recorder import Recorder
from rlif.training.parallel import Group, Ranks, _joined
from rlif.training.split_engine import SplitEngine
from rlif.types import Prompt, Rollouts, Sampling
from toys import toy_policy, toy_prompts

DRAW: dict[str, Any] = {"group_size": 3, "sampling": Sampling(max_new_tokens=10), "key": Key(0, 1)}


class WithMate(Ranks):
    """The first of two ranks; what the other one draws is drawn here when it is asked for."""

    size = 2

    def __init__(self, policy: Policy) -> None:
        self.policy, self.shares = policy, list[int]()

    def together(self, own: Rollouts | None, prompts: Sequence[Prompt]) -> Rollouts:
        assert own is not None
        self.shares.append(own.n_rows)
        others = Engine(self.policy).sample(Group(1, 2).block(prompts), **DRAW)
        return _joined([own, others], prompts)


def assert_same(found: Rollouts, expected: Rollouts) -> None:
    assert found.texts == expected.texts
    assert [prompt.id for prompt in found.prompts] == [prompt.id for prompt in expected.prompts]
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, rtol=0.0, atol=1e-5)


def test_all_that_an_engine_offers_is_there() -> None:
    offered = {name for name in vars(Engine) if not name.startswith("_")}
    assert offered == {"facts", "close", "sample", "groups", "steps"}  # what the next lines hold for
    assert offered <= set(vars(SplitEngine))


@pytest.mark.parametrize("count", [4, 5])
def test_groups_and_steps_give_what_one_process_draws(count: int) -> None:
    policy = toy_policy()
    prompts = toy_prompts(policy, ["1+2=", "what is 27+58?", "a", "2+2=", "99+1="][:count])
    expected, ranks = Engine(policy).sample(prompts, **DRAW), WithMate(policy)
    engine, told = SplitEngine(Engine(policy), ranks), list[int]()
    (found,) = engine.groups(prompts, **DRAW, progress=told.append)
    assert_same(found, expected)
    assert ranks.shares == [2 * 3]  # half of the prompts, and not all of them
    assert sum(told) == 2 * int(expected.mask[:6].sum())
    recorder = Recorder(policy, prompts, **DRAW)
    assert sum(engine.steps(recorder)) == int(expected.mask.sum())
    assert_same(recorder.rollouts(range(count)), expected)
