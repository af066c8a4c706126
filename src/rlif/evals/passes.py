"""The ways in which an evaluation has a task answered: its own sampling, and further ones for baselines.

The answers of a further pass lie beside those of the main one, in ``TASK/_PASS``: readers of a folder of Parquet files
leave out what begins with an underscore.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlif.evals.backends.base import RenderedProblem
from rlif.rollout.power_sampling import Schedule
from rlif.types import Problem, Sampling, Verdict

LOW_TEMPERATURE = 0.4


@dataclass(frozen=True)
class Pass:
    """One way to answer a task.

    Attributes:
        task: what is asked.
        name: a key of `PASSES`, and of ``results[].baselines``; "" is the evaluation's own sampling.
        format: the extractor that decides whether an answer is formatted.
        samples: answers to each problem.
        schedule: of power sampling, whose proposal ``sampling`` is; None: answers are simply drawn.
        judge: of a task that judges answers itself; None: the grader does.
    """

    task: str
    name: str
    rendered: tuple[RenderedProblem, ...]
    format: str
    samples: int
    sampling: Sampling
    schedule: Schedule | None = None
    judge: Callable[[str, Problem], Verdict] | None = None

    @property
    def place(self) -> str:
        """Where its answers lie in the model's folder."""
        return place(self.task, self.name)

    @property
    def title(self) -> str:
        return f"{self.task}, {self.name.replace('_', ' ')}" if self.name else self.task

    @property
    def stream(self) -> str:
        """What its random numbers are named by, besides the seed: each pass has its own."""
        return f"eval/{self.task}/{self.name}" if self.name else f"eval/{self.task}"

    def protocol(self) -> dict[str, Any]:
        """In what passes may differ, in the words of the task's protocol."""
        drawn = self.sampling
        found = {
            "samples": self.samples,
            "temperature": drawn.temperature,
            "top_p": drawn.top_p,
            "top_k": drawn.top_k,
        }
        if self.schedule is None:
            return found
        return {**found, "alpha": self.schedule.alpha, "blocks": self.schedule.blocks, "moves": self.schedule.moves}


def place(task: str, name: str) -> str:
    """Where the answers of a pass lie in the model's folder; ``name`` "" is the main one."""
    return f"{task}/_{name}" if name else task


def is_main(pass_protocol: Mapping[str, Any], task_protocol: Mapping[str, Any]) -> bool:
    """Whether a pass asks what the evaluation's own sampling asks anyway: it is not run, its answers are those."""
    return all(task_protocol.get(key) == value for key, value in pass_protocol.items())


def _at(main: Pass, temperature: float) -> Pass:
    return replace(main, sampling=replace(main.sampling, temperature=temperature))


def _greedy(main: Pass) -> Pass:
    return replace(_at(main, 0.0), samples=1)


def _low_temperature(main: Pass) -> Pass:
    return _at(main, LOW_TEMPERATURE)


def _temperature_1(main: Pass) -> Pass:
    return _at(main, 1.0)


def _power(main: Pass) -> Pass:
    """As in the paper (arXiv 2510.14901): α = 4, suffixes proposed at temperature 1/α; one answer, for it is dear."""
    schedule = Schedule()
    proposal = replace(main.sampling, temperature=1.0 / schedule.alpha, top_p=1.0, top_k=0)
    return replace(main, samples=1, sampling=proposal, schedule=schedule)


PASSES: Mapping[str, Callable[[Pass], Pass]] = {
    "greedy": _greedy,
    "low_temperature": _low_temperature,
    "temperature_1": _temperature_1,
    "power": _power,
}
"""What a baseline asks, given what the evaluation itself asks. Top-p and top-k stay, but for power sampling."""

USUAL = ("greedy",)
"""Asked for unless somebody says otherwise."""


def further(main: Pass, name: str) -> Pass:
    """The pass ``name`` beside the main one. Raises KeyError if there is none."""
    return replace(PASSES[name](main), name=name)
