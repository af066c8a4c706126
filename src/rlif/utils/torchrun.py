"""What torchrun tells the processes that it starts, in their environment. Free of torch."""

import os
from typing import NamedTuple

from rlif.errors import RlifError


class Place(NamedTuple):
    """Which of ``size`` processes this one is, from 0; and which of those on its machine.

    ``attempt`` counts how often torchrun has started them anew (--max-restarts).
    """

    rank: int
    size: int
    local_rank: int
    attempt: int


def launched() -> Place | None:
    """This process's place among those that torchrun started; None where it did not, or started one alone.

    Raises `RlifError` if the environment is torchrun's and holds no such numbers.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    try:
        place = Place(*(int(os.environ.get(name, "0" if name.startswith("TORCH") else "")) for name in names))
    except ValueError:
        raise RlifError(
            "TORCHELASTIC_RUN_ID is set as torchrun does, but RANK, WORLD_SIZE and LOCAL_RANK are no numbers; unset it,"
            " or start the command with torchrun"
        ) from None
    return place if place.size > 1 else None
