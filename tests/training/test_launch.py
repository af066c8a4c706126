"""How ranks meet and part: twice in one process, and whatever a machine calls its files."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ranks import run_ranks
from rlif.config import Recipe
from rlif.errors import RlifError, ToldElsewhereError
from rlif.recipes import load_recipe, shipped_recipes
from rlif.training import launch
from rlif.training.launch import check_start, joined
from rlif.training.parallel import ALONE, Ranks
from rlif.utils import lifeline, terminal


def meet_twice(rank: int, port: int) -> None:
    """With a store that outlives both runs, as torchrun's agent keeps one. The first rank is late for the second."""
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    lifeline._PATIENCE = 60.0
    for run in (1, 2):
        time.sleep(0.3 * (run == 2 and rank == 0))
        with joined() as ranks:
            assert ranks.gather((run, rank)) == [(run, 0), (run, 1)]


def test_one_process_may_train_twice(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ended = run_ranks(2, meet_twice, tmp_path, [store.port] * 2)
    assert [one.code for one in ended] == [0, 0], [one.said for one in ended]


def fail_first(rank: int, argument: None) -> None:
    """The first rank fails at once; the other is slow on the way into the run."""
    if rank == 1:
        hush = terminal.hush

        def slow() -> None:
            hush()
            for _ in range(200):
                time.sleep(0.01)

        terminal.hush = slow  # type: ignore[assignment]
    try:
        with joined() as ranks:
            if ranks.first:
                raise RlifError("the disk is full")
            ranks.gather(None)
    except ToldElsewhereError as error:
        sys.exit(f"told: {error}")
    except RlifError as error:
        sys.exit(f"tells: {error}")


def test_a_loss_on_the_way_into_a_run_is_one_line(tmp_path: Path) -> None:
    """Whether the second rank still learns who spoke depends on who is faster: the first one keeps the store."""
    first, second = (one.said.splitlines()[-1] for one in run_ranks(2, fail_first, tmp_path, [None, None]))
    assert first == "tells: the disk is full"
    assert second.startswith(("told: rank 0: the disk is full", "tells: another rank of this run has gone"))


def fail_while_waited_for(rank: int, argument: None) -> None:
    """The first rank fails while the other waits for it in gloo, and is slow to ask why: the store is gone by then."""
    if rank == 1:
        claim = launch._Company._claim

        def slow(self: Any, error: BaseException) -> Any:
            time.sleep(5.0)
            return claim(self, error)

        launch._Company._claim = slow  # type: ignore[method-assign]
    try:
        with joined() as ranks:
            if ranks.first:
                time.sleep(0.5)
                raise RlifError("the disk is full")
            ranks.gather(None)
    except ToldElsewhereError as error:
        sys.exit(f"told: {error}")
    except RlifError as error:
        sys.exit(f"tells: {error}")


def test_a_rank_that_waits_learns_why_before_the_store_goes(tmp_path: Path) -> None:
    first, second = (one.said.splitlines()[-1] for one in run_ranks(2, fail_while_waited_for, tmp_path, [None, None]))
    assert first == "tells: the disk is full"
    assert second == "told: rank 0: the disk is full"


class Beside(Ranks):
    """The first of two ranks; the other one was given another recipe."""

    size = 2

    def __init__(self, other: Recipe) -> None:
        self.other = launch._flat({**other.model_dump(mode="json"), "needs": {}})

    def gather(self, value: Any) -> list[Any]:
        return [value, {key: one for key, one in self.other.items() if key not in launch._CONTENT}]


def placed(folder: str, *changes: str) -> Recipe:
    """A recipe all of whose files lie in a folder."""
    merge = f"{{merge: {{base: {folder}/base, instruct: {folder}/instruct, ratio: 0.5}}}}"
    files = [f"task.{key}={folder}/{key}.jsonl" for key in ("path", "eval_path")]
    files += [f"probe.{key}={folder}/{key}.jsonl" for key in ("path", "labels")]
    task = ["task.name=file", "policy.device=cpu"]
    return load_recipe(shipped_recipes()["tiny"], [f"policy.model={merge}", *task, *files, *changes])


def test_where_a_machine_keeps_its_files_is_its_own_affair() -> None:
    check_start(Beside(placed("/b")), placed("/a"), {})
    check_start(ALONE, placed("/a"), {})
    with pytest.raises(RlifError, match=r"policy\.model\.merge\.ratio is 0\.5 on rank 0 and 0\.7 on rank 1"):
        check_start(Beside(placed("/b", "policy.model.merge.ratio=0.7")), placed("/a"), {})
