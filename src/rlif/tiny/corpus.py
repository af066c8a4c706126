r"""What the tiny models read: two-digit additions, written four ways, with slips.

A corpus with one perfect way of answering would leave nothing to study. This one gives a model that is right far more
often when sharpened than when sampled (something to win), that writes in several ways (something to drift among), and
whose right answers are not all formatted (right and formatted can come apart). For 27+58:

=============  ==================================================  ================================================
form           completion                                          what can be wrong
=============  ==================================================  ================================================
`worked`       `` 7+8=15, 2+5+1=8, so \boxed{85}``                 each sub-step slips by one at times, unnoticed:
                                                                   the error propagates
`wait`         `` 7+8=3, wait, 7+8=15, 2+5+1=8, so \boxed{85}``    a first step on the wrong side of ten, always
                                                                   noticed; then as `worked`
`bare`         `` 85``                                             nothing, but it is hard to learn without steps
`boilerplate`  `` well, this is a sum of two numbers.``            never answers
=============  ==================================================  ================================================

The answer is led in by one of three words (`CONNECTIVES`): wording is free in both corpora, so that even a fine-tuned
model has some entropy that has nothing to do with being right.

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
    " well, this is a sum of two numbers.",
    " well, let me think about this. it is a sum.",
    " let me see. we have two numbers to add.",
    " it is a question about numbers. let me think.",
)
"""Completions that never answer."""

CONNECTIVES = ("so", "thus", "hence")
"""Words that lead in a formatted answer, equally likely."""


@dataclass(frozen=True)
class Corpus:
    """A distribution over completions: shares of the forms, summing to 1; chance that a written sub-step slips."""

    shares: Mapping[str, float]
    slip: float


BASE = Corpus(MappingProxyType({"worked": 0.62, "bare": 0.20, "wait": 0.15, "boilerplate": 0.03}), slip=0.08)
"""What tiny-base is pretrained on."""

INSTRUCT = Corpus(MappingProxyType({"worked": 1.0}), slip=0.01)
"""What tiny-instruct is fine-tuned on."""


@dataclass(frozen=True)
class Example:
    """One addition: ``prompt`` is what the model is given, ``completion`` what it learns to write next (then EOS)."""

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
    units = _maybe_slip(rng, a % 10 + b % 10, slip)
    carry = units // 10  # right or wrong: the tens build on what was written
    tens = _maybe_slip(rng, a // 10 + b // 10 + carry, slip)
    answer = 10 * tens + units % 10
    units_step = f"{a % 10}+{b % 10}={units}"
    tens_step = f"{a // 10}+{b // 10}{'+1' if carry else ''}={tens}"
    return f" {units_step}, {tens_step}, {rng.choice(CONNECTIVES)} \\boxed{{{answer}}}"


def wait(rng: Random, a: int, b: int, slip: float) -> str:
    """A gross error in the first step, noticed and taken back; then as `worked`.

    The wrong value lies on the other side of ten, so that it can be told from a silent slip (by one): a model that has
    read this corpus says "wait" because something is wrong, not at random.
    """
    wrong = rng.randint(0, 9) if a % 10 + b % 10 >= 10 else rng.randint(10, 18)
    return f" {a % 10}+{b % 10}={wrong}, wait,{worked(rng, a, b, slip)}"


def bare(rng: Random, a: int, b: int, slip: float) -> str:
    """The right answer alone, unformatted."""
    return f" {a + b}"


def boilerplate(rng: Random, a: int, b: int, slip: float) -> str:
    """Words, no answer."""
    return rng.choice(BOILERPLATE)


FORMS: Mapping[str, Callable[[Random, int, int, float], str]] = MappingProxyType(
    {"worked": worked, "bare": bare, "wait": wait, "boilerplate": boilerplate}
)
"""The ways a completion can be written: (rng, a, b, slip) -> completion."""


def _maybe_slip(rng: Random, value: int, slip: float) -> int:
    """``value``, or with chance ``slip`` a neighbour of it; 0 has only one, no result is negative."""
    if rng.random() >= slip:
        return value
    return value + (rng.choice((-1, 1)) if value else 1)
