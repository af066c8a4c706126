"""rlif inside TRL on two processes (torchrun, gloo): what one process computes, and all of them act alike."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trl_runs

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # TRL, accelerate and transformers warn about themselves
    pytest.mark.timeout(900),  # two processes, each of which imports everything
]

Found = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes saw; one launch for all cases, since most of its time is the imports."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, trl_runs.__file__, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text("utf-8")) for rank in range(2)]


def of_all(ranks: list[Found], case: str, what: str) -> list[list[Any]]:
    """Step by step the rows of both processes, in order; the case ran on two processes, in the wrapper it should."""
    wrapper = "FSDPLlamaForCausalLM" if case == "sharded" else "DistributedDataParallel"
    for found in ranks:
        assert (found[case]["world"], found[case]["wrapper"]) == (2, wrapper)
    return [first + second for first, second in zip(*(found[case][what] for found in ranks), strict=True)]


def assert_close(one: list[list[float]], other: list[list[float]], within: float) -> None:
    assert [len(step) for step in one] == [len(step) for step in other]
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=within, rel=0.0)


@pytest.mark.parametrize(("case", "group"), [("whole", 4), ("split", 8)])
def test_two_processes_draw_and_reward_as_one(case: str, group: int, ranks: list[Found], tmp_path: Path) -> None:
    """Groups whole on a process, and split over both."""
    alone = trl_runs.train(tmp_path, rows=8, group=group)
    assert (alone["world"], alone["step"]) == (1, trl_runs.STEPS)
    assert alone["moved"] > 1e-3, "the weights should move, or later steps test nothing"
    assert any(value > 0.0 for step in alone["votes"] for value in step), "somebody should vote"
    assert of_all(ranks, case, "completions") == alone["completions"]
    for reward in ("read", "votes", "scored"):
        assert_close(of_all(ranks, case, reward), alone[reward], 1e-6)


def test_no_two_completions_of_a_split_group_are_drawn_alike(ranks: list[Found]) -> None:
    for step in of_all(ranks, "split", "completions"):
        assert len({tuple(ids) for ids in step}) == 8


def test_a_pass_sees_what_the_engine_recorded(ranks: list[Found]) -> None:
    for case in ("whole", "sharded"):
        assert_close(of_all(ranks, case, "scored"), of_all(ranks, case, "read"), 1e-5)


def test_fsdp2_draws_and_rewards_as_ddp(ranks: list[Found]) -> None:
    """The engine samples from a gathered copy, the pass runs on the shards."""
    assert ranks[0]["sharded"]["moved"] == pytest.approx(ranks[0]["whole"]["moved"], rel=1e-3)
    assert of_all(ranks, "sharded", "completions") == of_all(ranks, "whole", "completions")
    for reward in ("read", "scored"):
        assert_close(of_all(ranks, "sharded", reward), of_all(ranks, "whole", reward), 1e-5)


def test_all_processes_stop_at_the_step_that_the_first_one_says(ranks: list[Found]) -> None:
    """The second one's guards would never stop, and its records would differ: it is told."""
    of_all(ranks, "guarded", "read")
    assert [found["guarded"]["step"] for found in ranks] == [2, 2]
    assert [found["guarded"]["best"] for found in ranks] == [1, 1]
    assert ranks[0]["guarded"]["saved"] == ["checkpoint-1"]
    first, second = (found["guarded"]["records"] for found in ranks)
    assert first == second
    assert [record["step"] for record in first] == [0, 1, 2]
