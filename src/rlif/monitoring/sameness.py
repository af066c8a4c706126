"""Which answers say the same, to the probe: those that read alike, or those whose embeddings are near each other.

Reading is for answers with a value or a name. Of answers in sentences no two read alike, and nobody would agree with
anything: there `BySimilarity` counts two as one whose embeddings have a cosine of at least so much.

Nearness is not passed on: a may be near b, b near c, and a not near c. So answers are grouped greedily, in their order:
each joins the first group whose first member is near enough, or begins one. Whoever is to be compared with goes first.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from rlif.config import SimilarityConfig
from rlif.errors import Argument, named
from rlif.grading.voting import by_reading
from rlif.model.encoder import load_encoder
from rlif.tasks.base import Task
from rlif.types import Problem, Verdict


@runtime_checkable
class Sameness(Protocol):
    """Says which answers are the same.

    Attributes:
        digest: differs if what it says might; None of reading, which stands in every digest by the grader's version.
    """

    @property
    def digest(self) -> str | None: ...

    def keys(self, answers: Sequence[str | None]) -> list[str | None]:
        """What each answer is counted under (`rlif.grading.voting.Keys`)."""

    def judge(self, task: Task, text: str, problem: Problem) -> Verdict:
        """The task's verdict on a completion, ``right`` if it gives the answer of ``problem``; None if that has none.

        Raises as `Task.grade`.
        """


class ByReading:
    """Answers are the same if they read alike; in a verdict also if the task says so, by algebra."""

    digest = None

    def keys(self, answers: Sequence[str | None]) -> list[str | None]:
        """See `Sameness.keys`."""
        return by_reading(answers)

    def judge(self, task: Task, text: str, problem: Problem) -> Verdict:
        """See `Sameness.judge`."""
        return task.grade(text, problem)


BY_READING = ByReading()


@runtime_checkable
class Embeds(Protocol):
    """What turns a text into numbers; `rlif.model.encoder.Encoder` is one.

    Attributes:
        digest: differs if the numbers might.
    """

    @property
    def digest(self) -> str: ...

    def embed(self, text: str) -> Float[np.ndarray, " dimension"]:
        """A vector of length 1, or of zeros for a text without tokens; the same for a text whatever came before."""


class BySimilarity:
    """Answers are the same if they are one text, or if the cosine of their embeddings is at least ``least``, in (0, 1].

    The key of an answer is the first text of its group. Source: the threshold on cosines is that of SemDeDup (arXiv
    2303.09540) and of paraphrase mining; the groups are project.
    """

    def __init__(self, encoder: Embeds, least: float) -> None:
        self._encoder, self._least = encoder, least
        self.digest = hashlib.sha256(json.dumps(["similarity", encoder.digest, least]).encode()).hexdigest()[:16]

    def keys(self, answers: Sequence[str | None]) -> list[str | None]:
        """See `Sameness.keys`; None or "" was not read."""
        firsts: dict[str, Float[np.ndarray, " dimension"]] = {}
        return [self._group(answer, firsts) if answer else None for answer in answers]

    def _group(self, answer: str, firsts: dict[str, Float[np.ndarray, " dimension"]]) -> str:
        """The first member of the group that an answer joins; ``firsts`` are those of the groups so far, embedded."""
        embedded = self._encoder.embed(answer)
        near = (first for first, other in firsts.items() if float(embedded @ other) >= self._least)
        found = next(near, answer)  # its own, also where rounding keeps its cosine with itself below the threshold
        firsts.setdefault(found, embedded)
        return found

    def judge(self, task: Task, text: str, problem: Problem) -> Verdict:
        """See `Sameness.judge`: the task reads the answer, and is not asked whether it is right."""
        verdict = task.grade(text, dataclasses.replace(problem, answer=None))
        if problem.answer is None:
            return verdict
        frozen, given = self.keys([problem.answer, verdict.extracted])
        return dataclasses.replace(verdict, right=given is not None and given == frozen)


def sameness(
    config: SimilarityConfig | None, device: torch.device, called: str | Argument = "probe.similarity.model"
) -> Sameness:
    """As a recipe's ``probe.similarity`` asks for it; None: by reading. Raises `RlifError` as `load_encoder`
    does, which speaks of the model as ``called``."""
    if config is None:
        return BY_READING
    with named({"model": called}):
        return BySimilarity(load_encoder(config.model, device), config.least)
