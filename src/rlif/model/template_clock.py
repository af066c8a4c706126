"""The clock that chat templates read: it stands still while a run or an evaluation lasts.

Some templates print today's date (Granite, Llama 3.2 and SmolLM3 call ``strftime_now``). A prompt then depends on the
day it is rendered, which no seed and no recipe holds. So the moment of the start is recorded, and every prompt is
rendered as of that moment, also by a process that goes on the next day.

``date_string``, which some templates take from their caller, stays undefined: each then prints its own fixed date, or
asks the clock.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

_LOCK = threading.RLock()


def present() -> datetime:
    """The local time as a template would read it, to the second, without a time zone."""
    return datetime.now().replace(microsecond=0)


@contextmanager
def clock_at(moment: datetime | None) -> Iterator[None]:
    """Within the block ``strftime_now`` of every chat template tells ``moment``; None: the present time.

    transformers gives templates no other clock, and hands them no function from outside: what its ``strftime_now``
    reads is replaced.
    """
    if moment is None:
        yield
        return
    from transformers.utils import chat_template_utils as library

    class Standing(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moment

    patched: Any = library
    with _LOCK:
        running = patched.datetime
        patched.datetime = Standing
        try:
            yield
        finally:
            patched.datetime = running
