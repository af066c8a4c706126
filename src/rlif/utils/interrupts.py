"""Ctrl-C and SIGTERM: a first one asks a run to stop when it next can, a second one ends everything at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rlif.errors import Advice, spelled
from rlif.utils.terminal import note

Stop = Callable[[], int]
"""Asked between steps: the number of the signal that wants the run to stop, 0 while none does."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818  (a request that was met, not an error)
    """A signal asked a run to stop; it did, with a checkpoint. ``signum`` is the signal's number; the message is made
    of parts as that of `rlif.errors.RlifError`."""

    def __init__(self, signum: int, *parts: str | Advice) -> None:
        super().__init__(signum, *parts)  # all arguments, so that it travels between processes
        self.signum, self.parts = signum, parts
        self.command_line = False

    def __str__(self) -> str:
        return spelled(self.parts, {}, command_line=self.command_line)


class AtOnce(KeyboardInterrupt):
    """A signal, SIGTERM or that of Ctrl-C, wants the program to end now. Args: its number."""


def end_at_once(signum: int, frame: FrameType | None) -> None:
    """The signal handler where there is nothing to finish first."""
    raise AtOnce(signum)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Yields what remembers a first SIGINT or SIGTERM; a second one raises `AtOnce`."""
    caught: list[int] = []

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if caught:
            raise AtOnce(signum)
        caught.append(signum)
        note("")  # behind the terminal's own ^C
        note("stopping after this step, with a checkpoint (once more: at once)")

    on_main = threading.current_thread() is threading.main_thread()  # Python hands signals to the main thread alone
    previous = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS} if on_main else {}
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
