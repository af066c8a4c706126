"""Several ranks of a run on this machine, as torchrun starts them: the environment, and a process each.

They are forked from a process that has imported everything once. What one prints is kept.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["rlif.training.loop", "rlif.cli.main", "rlif.report.card"])

PATIENCE = 240.0
"""Seconds that ranks may take; they are killed then, and the test fails."""


class Ended(NamedTuple):
    """How a rank ended: its exit code, minus the signal's number if it was killed; what it said on stderr."""

    code: int
    said: str


def run_ranks(size: int, function: Callable[..., None], folder: Path, arguments: Sequence[object]) -> list[Ended]:
    """Call ``function(rank, argument)`` in each of ``size`` ranks; ``arguments`` are one a rank."""
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun has one, and outlives the ranks
    port = store.port
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, size, port, folder / f"{rank}.txt", function, arguments[rank]))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    until = time.monotonic() + PATIENCE
    for process in ranks:
        process.join(max(0.0, until - time.monotonic()))
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    said = [(folder / f"{rank}.txt").read_text("utf-8") for rank in range(size)]
    assert not late, f"{len(late)} ranks did not end; they said {said}"
    return [Ended(process.exitcode or 0, text) for process, text in zip(ranks, said, strict=True)]


def _rank(rank: int, size: int, port: int, said: Path, function: Callable[..., None], argument: object) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 1}
    here = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.update({name: str(value) for name, value in place.items()}, **here)
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import torch

    torch.set_num_threads(1)
    function(rank, argument)


def command(rank: int, asked: tuple[list[str], Callable[[int], None] | None]) -> None:
    """`rlif` with these words, once what is to happen in this rank has been prepared."""
    from rlif.cli import main

    words, prepare = asked
    if prepare is not None:
        prepare(rank)
    sys.argv = ["rlif", *words]
    main.main()
