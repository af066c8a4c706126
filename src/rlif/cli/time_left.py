"""How long a training still takes: what its steps take, and the evaluations and looks that lie ahead."""

from collections.abc import Mapping
from statistics import fmean

from rlif.config import Recipe

_STEP = ("rollout", "consensus", "score", "watch", "update")
_RECENT = 10
"""Steps that an estimate is made of: answers grow and shrink while a model is trained."""


class TimeLeft:
    """Told of each line of the log; the time of loading and of the first step, in which kernels are made, does not
    count as soon as there is another one."""

    def __init__(self, recipe: Recipe, done: int = 0) -> None:
        """``done``: the steps that are behind it, of a run that goes on."""
        self._steps, self._step = recipe.steps, done
        self._every = {"eval": recipe.eval.every, "probe": recipe.probe.every or 0}
        self._took: list[float] = []
        self._also: dict[str, float] = {}

    def logged(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """``time/*`` of a step, in seconds."""
        self._also |= {name: float(metrics[key]) for name in self._every if (key := f"time/{name}") in metrics}
        if step > 0:
            self._step = step
            self._took.append(sum(float(metrics.get(f"time/{name}", 0.0)) for name in _STEP))

    @property
    def seconds(self) -> float | None:
        """Until the end; None before a step is done."""
        if not self._took:
            return None
        each = fmean((self._took[1:] or self._took)[-_RECENT:])
        also = sum(seconds * self._due(self._every[name]) for name, seconds in self._also.items())
        return each * (self._steps - self._step) + also

    def _due(self, every: int) -> int:
        """How often what is due after every so many steps, and at the end, is still due."""
        if not every or self._step >= self._steps:
            return 0
        return self._steps // every - self._step // every + (self._steps % every > 0)
