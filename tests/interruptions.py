"""Runs that end in the middle."""

from collections.abc import Mapping

from rlif.training.callbacks import NullCallback


class StopAfter(NullCallback):
    """Breaks the run off right after the line of a step was written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        if step == self.step:
            raise ConnectionAbortedError("pulled the plug")
