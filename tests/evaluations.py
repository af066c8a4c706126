"""What several tests of evaluations share: a back-end that answers by a script, a grader that crashes, settings."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rlif.errors import RlifError
from rlif.evals.backends.base import Answer, RenderedProblem, Trace
from rlif.evals.runner import Candidate
from rlif.evals.settings import Settings, settings_of
from rlif.grading.grader import Grader
from rlif.rng import Key
from rlif.types import Sampling, Verdict


class Scripted:
    """A back-end that says what it is told to: (problem, sample) -> text; its signals are unknown, or made up."""

    def __init__(
        self, name: str = "scripted", *, right: float = 0.5, known: bool = True, fail_after: int | None = None
    ):
        self.name, self.seconds = name, 0.0
        self.asked: list[str] = []
        self._right, self._known, self._fail_after = right, known, fail_after

    def facts(self) -> dict[str, Any]:
        return {"kind": "scripted"}

    def check(self, asked: Any, sampling: Sampling) -> None: ...

    def close(self) -> None: ...

    def answer(
        self, asked: Any, *, samples: int, sampling: Sampling, key: Key, have: Any, progress: Any = None
    ) -> Iterator[Any]:
        for number, one in enumerate(asked):
            if number == self._fail_after:
                if number:
                    yield [self._say(one, 0)]  # in the middle of a problem
                raise RlifError("the server is gone")
            self.asked.append(one.problem.id)
            self.seconds += 0.001
            # One answer at a time, the last sample first: order must not matter.
            yield from ([self._say(one, sample)] for sample in reversed(range(samples)))

    def _say(self, one: RenderedProblem, sample: int) -> Answer:
        draw = np.random.default_rng([*one.problem.id.encode(), sample]).random()
        answer = one.problem.answer if draw < self._right else "0"
        text = f"wait, it is \\boxed{{{answer}}}" if sample else f"it is {answer}"
        tokens = 4 + sample
        entropy = np.full(tokens, draw, dtype=np.float32)
        trace = Trace(entropy=entropy) if self._known else None
        mean = float(entropy.mean()) if self._known else None
        return Answer(one.problem.id, sample, one.text, text, tokens, "eos", entropy=mean, trace=trace)


def settings(**changes: Any) -> Settings:
    return settings_of(**{"tasks": ("arithmetic",), "limit": 6, "samples": 3, "baselines": (), **changes})


def candidate(backend: Scripted) -> Candidate:
    return Candidate(backend.name, lambda: backend)


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Results without how long they took."""
    return {**results, "results": [{k: v for k, v in one.items() if k != "speed"} for one in results["results"]]}


class Crashing(Grader):
    """Judges so many answers, then breaks down as no user could fix."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def grade(self, *args: Any, **options: Any) -> Verdict:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("out of memory")
        return super().grade(*args, **options)
