"""What an evaluation asks, what it gets back, and what anything must do that answers: the back-end protocol.

The local engine is one back-end (`rlif.evals.backends.engine`), a server that speaks the OpenAI protocol another. A
back-end is given questions in both of their forms, as messages and as plain text, and uses the one that its model
takes. It hands answers back as they are finished, in whatever order, and says None to what it cannot know.
"""

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rlif.rng import Key
from rlif.rollout.power_sampling import Schedule
from rlif.types import Problem, Sampling, StopReason, TokenSignals

SIGNAL_NAMES: tuple[str, ...] = TokenSignals._fields
"""What a back-end may know of every token, in nats at temperature 1: logprob, entropy, self_certainty."""

Array = Float[np.ndarray, " tok"]


@dataclass(frozen=True)
class RenderedProblem:
    """A problem as it is put to a model: through a template, behind its worked examples, in two forms.

    ``messages`` are (role, content) mappings for a chat template, the last one the user's. ``text`` says the same in
    plain text, for a base model to go on from. ``now`` is the moment that a chat template which prints the date is to
    be told, None: the present; a server cannot be told it.
    """

    problem: Problem
    messages: tuple[Mapping[str, str], ...]
    text: str
    now: datetime | None = None


@dataclass(frozen=True)
class Trace:
    """The signals of an answer's tokens, EOS included: position t belongs to the distribution that produced token t.

    Each has ``Answer.n_tokens`` numbers, or is None where the back-end cannot know it.
    """

    logprob: Array | None = None
    entropy: Array | None = None
    self_certainty: Array | None = None


@dataclass(frozen=True)
class Answer:
    """One finished answer.

    Attributes:
        problem_id: ``RenderedProblem.problem.id``.
        sample: which of the problem's samples this is, from 0.
        prompt: the exact text the model was given; of a server that applies the chat template itself, the last message.
        text: without special tokens, cut before the first stop string.
        n_tokens: tokens the model wrote, EOS and stop string included.
        stop: eos, stop_string or length. A server that does not tell the first two apart: eos.
        logprob, entropy, self_certainty: means over the tokens, in nats at temperature 1; None where not known.
        trace: the same for every token; None where not known.
        thoughts: characters at the beginning of ``text`` that a server kept apart as thoughts: never graded.
        drawn: tokens that the model wrote to come to this answer, refused ones included; None: ``n_tokens``.
    """

    problem_id: str
    sample: int
    prompt: str
    text: str
    n_tokens: int
    stop: StopReason
    logprob: float | None = None
    entropy: float | None = None
    self_certainty: float | None = None
    trace: Trace | None = None
    thoughts: int = 0
    drawn: int | None = None


@runtime_checkable
class Backend(Protocol):
    """Whatever answers questions. It holds a model, and no state of an evaluation."""

    name: str
    """What the model is called in tables and results."""
    seconds: float
    """Time spent in the model (of a server: waiting for it) so far; what lies beyond is the evaluation's own."""

    def facts(self) -> Mapping[str, Any]:
        """What is worth recording of how it answers (weights, compute type, chat template, server): JSON values.

        An evaluation is not resumed if they have changed.
        """

    def check(self, problems: Sequence[RenderedProblem], sampling: Sampling) -> None:
        """Raise `RlifError` for what cannot work, above all a question that does not fit into the context."""

    def answer(
        self,
        problems: Sequence[RenderedProblem],
        *,
        samples: int,
        sampling: Sampling,
        key: Key,
        have: Mapping[str, Set[int]],
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Sequence[Answer], None, None]:
        """``samples`` answers to each question, some at a time, in whatever order, each exactly once.

        ``have`` are the samples of these problems that are kept from before: they need not come again, and may.
        ``progress`` is told of tokens as they are drawn, where that is known before an answer is finished.

        An evaluation is saved between two of these batches, in whole problems (in single answers if it is broken off),
        and resumes from there: a batch should not take longer than a minute or two, and a problem's samples should
        come close together. One that is broken off closes the generator: what is on its way then is given up. Where
        the back-end can, the randomness of an answer is keyed by (``key``, problem id, sample) alone. Raises
        `RlifError` for what the user can fix (a server that is gone, a context that is too short), after the last
        answer that could be had.
        """

    def close(self) -> None:
        """Free the model or the connection. Nothing is asked afterwards."""


@runtime_checkable
class KnowsPrompts(Protocol):
    """A back-end that applies the chat template itself, and so can say what its model is given."""

    def prompts_digest(self, problems: Sequence[RenderedProblem]) -> str:
        """A digest of the rendered questions, text and tokens. It is kept with the answers: an evaluation is not
        resumed if it has changed."""


@runtime_checkable
class PowerSampler(Protocol):
    """A back-end that can draw from p^α / Z: it has to draw on from wherever a text is cut."""

    def power_answer(
        self,
        problems: Sequence[RenderedProblem],
        *,
        samples: int,
        sampling: Sampling,
        schedule: Schedule,
        key: Key,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Sequence[Answer], None, None]:
        """As `Backend.answer`, by `rlif.rollout.power_sampling`, whose proposal is ``sampling``."""
