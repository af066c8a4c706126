"""What ``rlif sft`` does once its options are read: a line now and then while it trains, and where the model lies."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlif.errors import named
from rlif.experiments.sft import SftSettings, fine_tune
from rlif.utils.durations import duration
from rlif.utils.paths import expanded
from rlif.utils.terminal import say

_OPTIONS = ("out", "steps", "batch", "lr", "template", "low", "high", "question", "data", "dtype", "device", "seed")
_NAMES = {"model": "MODEL", "shots_from": "--data", "chat_template": "--chat-template"} | {
    name: f"--{name}" for name in _OPTIONS
}
_NAMES |= {"prompts": "--batch", "max_new_tokens": "the answer's"}


def print_sft(model: str, out: Path, options: Mapping[str, Any]) -> None:
    """Fine-tune, telling how it goes. Raises `RlifError` for what the user can mend."""
    with named(_NAMES):
        settings = SftSettings(**options)

        def tell(step: int, loss: float) -> None:
            if step % 10 == 0 or step in (1, settings.steps):
                say(f"step {step} of {settings.steps}, loss {loss:.3f} nats a token")

        started = time.monotonic()
        fine_tune(model, expanded(out), settings, progress=tell)
    say(f"{out}: {model}, tuned in {duration(time.monotonic() - started)}; README.md says how")
