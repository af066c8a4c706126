r"""What the tiny models read: two-digit additions, written four ways, with slips.

A corpus with one perfect way of answering would leave nothing to study. This one gives a model that is right far more
often when sharpened than when sampled (something to win), that writes in several ways (something to drift among), and
whose right answers are not all formatted (right and formatted can come apart). For 27+58:

=============  ===================================================  ==============================================
form           completion                                           slips
=============  ===================================================  ==============================================
`worked`       `` 7+8=15, 2+5+1=8, so \boxed{85}``                  each sub-step may be wrong; the error propagates
`wait`         `` 7+8=14, wait, 7+8=15, 2+5+1=8, so \boxed{85}``    as above, after a first step that is always wrong
`bare`         `` 85``                                              as above, the steps being left out
`boilerplate`  `` well, this is a sum of two numbers.``             never answers
=============  ===================================================  ==============================================

All pairs from 10..99 may occur: pretraining defines the initial policy, and holds nothing out. What a task keeps
from the RL for evaluation is the task's own business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

LOW, HIGH = 10, 99
"""Smallest and largest summand."""

ALPHABET = "\n 0123456789+=?,.\\{}abcdefghijklmnopqrstuvwxyz"
"""Every character the tiny models know."""

BOILERPLATE = (
    " well, let me think about it. this is a sum of two numbers.",
    " well, this is a sum of two numbers.",
    " let me see. we have two numbers and we add them.",
    " this is a question about numbers. let me think about it.",
)
"""Completions that never answer."""


@dataclass(frozen=True)
class Corpus:
    """A distribution over completions: shares of the forms (they sum to 1) and the chance that a sub-step slips."""

    shares: Mapping[str, float]
    slip: float


BASE = Corpus(MappingProxyType({"worked": 0.62, "bare": 0.20, "wait": 0.15, "boilerplate": 0.03}), slip=0.08)
"""What tiny-base is pretrained on."""

INSTRUCT = Corpus(MappingProxyType({"worked": 1.0}), slip=0.01)
"""What tiny-instruct is fine-tuned on."""


@dataclass(frozen=True)
class Example:
    """One addition: ``prompt`` is what the model is given, ``completion`` what it learns to continue with (then EOS)."""

    a: int
    b: int
    form: str
    prompt: str
    completion: str


def prompt_text(a: int, b: int) -> str:
    """The question exactly as the tiny models know it: ``27+58=?``; the completion follows immediately."""
    return f"{a}+{b}=?"


def example(rng: Random, corpus: Corpus, pair: tuple[int, int] | None = None) -> Example:
    """Draw one example; ``pair`` fixes the summands (each in 10..99), which are otherwise uniform."""
    a, b = pair or (rng.randint(LOW, HIGH), rng.randint(LOW, HIGH))
    form = rng.choices(list(corpus.shares), weights=list(corpus.shares.values()))[0]
    return Example(a, b, form, prompt_text(a, b), FORMS[form](rng, a, b, corpus.slip))


def worked(rng: Random, a: int, b: int, slip: float) -> str:
    r"""Units, tens, then the formatted answer: `` 7+8=15, 2+5+1=8, so \boxed{85}``."""
    steps = _add(rng, a, b, slip)
    return f" {steps.units_text}, {steps.tens_text}, so \\boxed{{{steps.answer}}}"


def wait(rng: Random, a: int, b: int, slip: float) -> str:
    """A wrong first step, taken back, then as `worked`."""
    steps = _add(rng, a, b, slip)
    wrong = _off_by_one(rng, a % 10 + b % 10)
    return f" {a % 10}+{b % 10}={wrong}, wait, {steps.units_text}, {steps.tens_text}, so \\boxed{{{steps.answer}}}"


def bare(rng: Random, a: int, b: int, slip: float) -> str:
    """The answer alone, unformatted; the hidden sub-steps slip as the written ones do."""
    return f" {_add(rng, a, b, slip).answer}"


def boilerplate(rng: Random, a: int, b: int, slip: float) -> str:
    """Words, no answer."""
    return rng.choice(BOILERPLATE)


FORMS: Mapping[str, Callable[[Random, int, int, float], str]] = MappingProxyType(
    {"worked": worked, "bare": bare, "wait": wait, "boilerplate": boilerplate}
)
"""The ways a completion can be written: (rng, a, b, slip) -> completion."""


@dataclass(frozen=True)
class _Steps:
    units_text: str
    tens_text: str
    answer: int


def _add(rng: Random, a: int, b: int, slip: float) -> _Steps:
    """Column addition in two sub-steps; the tens carry what the units gave, right or wrong."""
    units = _maybe_slip(rng, a % 10 + b % 10, slip)
    carry = units // 10
    tens = _maybe_slip(rng, a // 10 + b // 10 + carry, slip)
    return _Steps(
        units_text=f"{a % 10}+{b % 10}={units}",
        tens_text=f"{a // 10}+{b // 10}{'+1' if carry else ''}={tens}",
        answer=10 * tens + units % 10,
    )


def _maybe_slip(rng: Random, value: int, slip: float) -> int:
    return _off_by_one(rng, value) if rng.random() < slip else value


def _off_by_one(rng: Random, value: int) -> int:
    """A neighbour of a sub-step's result; 0 has only one, no result is negative."""
    return value + (rng.choice((-1, 1)) if value else 1)
