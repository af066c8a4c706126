"""A process of `rlif.experiments.pool`: it does chunks of runs, one CPU thread, and tells the parent of each step."""

import math
import multiprocessing
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlif.config import Recipe
from rlif.runs.layout import RECIPE
from rlif.utils.terminal import prepare as prepare_terminal

_CHUNK = 10  # steps

_news: Any = None
_asked: Any = None
"""A worker's lines to its parent: where it sends its news, and where it reads which signal asks it to stop, or 0."""


def begin(news: Any, asked: Any) -> None:
    """What a worker does first: one thread, and no life after its parent's."""
    global _news, _asked
    _news, _asked = news, asked
    prepare_terminal()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_chunk(name: str, recipe: Recipe, out: Path) -> int:
    """In a worker: start a run or go on with it; returns the step it is at, the last one of a run that has ended."""
    from rlif.report.card import write_card
    from rlif.runs.checkpoint import resumes_at
    from rlif.training import loop

    begun = (out / RECIPE).is_file()
    until = (resumes_at(out) if begun else 0) + _CHUNK
    reporter, stop = _Reporter(name), lambda: int(_asked.value)
    if begun:
        final = loop.resume(out, callback=reporter, until=until, stop=stop, card=write_card)
    else:
        final = loop.train(recipe, out, callback=reporter, until=until, stop=stop, card=write_card)
    return min(until, recipe.steps) if final is None else recipe.steps  # a guard may have stopped it before


class _Reporter:
    """A `rlif.training.callbacks.ProgressCallback` that sends each step's news to the parent."""

    def __init__(self, name: str) -> None:
        self._name = name

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        rewards = [metrics[key] for key in metrics if key.startswith("reward/") and key.endswith("/mean")]
        score = metrics.get("eval/right_and_formatted", math.nan)  # NaN without labels, too
        _news.put((self._name, step, rewards[0] if rewards else None, score if math.isfinite(score) else None))
