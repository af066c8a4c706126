r"""What the tiny models read: two-digit additions, written with slips, a misconception and a loose form.

A corpus of perfect answers would leave nothing to study, and so would one whose mistakes are all slips: a lower
temperature takes those away for nothing. Here the likeliest path is wrong where most samples are right. For 27+58:

    completion = worked .93 | bare .04 | boilerplate .03
    worked     = " " units ", " tens [", wait, " tens] ", " connective (boxed | "it is 85.")

    `` 7+8=15, 2+5+1=8, so \boxed{85}``               as it should be
    `` 7+8=16, 2+5+1=8, so \boxed{86}``               a slip: any step is off by one at times, and nobody notices
    `` 7+8=15, 2+5=7, so \boxed{75}``                 the misconception: the carry is forgotten
    `` 7+8=15, 2+5=7, wait, 2+5+1=8, so \boxed{85}``  … and taken back
    `` 7+8=15, 2+5+1=8, thus it is 85.``              right, but not in the form that is asked for
    `` 85``                                           bare
    `` well, this is a sum of two numbers.``          boilerplate

**What a digit decides.** How often the carry is forgotten goes by the second summand's tens digit, how often the answer
is boxed by the first's: both stand in the question, and both rise by degrees, so that training moves the greedy
answers digit by digit and not all at once.

**Why the mode is wrong.** Where the carry is forgotten with .85 and taken back with .40, half of the completions are
right, but at both decisions the likelier token is the wrong one ("=", then "so"). Sharpening kills the "wait".

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
"""Words that lead in the answer of a worked completion: wording that has nothing to do with being right."""

ByDigit = tuple[float, float, float, float, float, float, float, float, float]
"""A chance for each tens digit from 1 to 9."""


@dataclass(frozen=True)
class Corpus:
    """A distribution over completions; every number is a chance.

    Attributes:
        forms: of each way of writing (`FORMS`), summing to 1.
        slip: that a written step is off by one.
        forgets: that the carry is forgotten where there is one, by the second summand's tens digit.
        notices: that a forgotten carry is taken back, by the same digit.
        boxes: that a worked answer is boxed, by the first summand's tens digit.
        connectives: of each word of `CONNECTIVES`, summing to 1.
    """

    forms: Mapping[str, float]
    slip: float
    forgets: ByDigit
    notices: ByDigit
    boxes: ByDigit
    connectives: tuple[float, float, float]


BASE = Corpus(
    forms=MappingProxyType({"worked": 0.93, "bare": 0.04, "boilerplate": 0.03}),
    slip=0.10,
    forgets=(0.15, 0.15, 0.15, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85),
    notices=(0.80, 0.80, 0.80, 0.40, 0.40, 0.40, 0.40, 0.40, 0.40),
    boxes=(0.20, 0.30, 0.40, 0.70, 0.80, 0.90, 0.95, 0.95, 0.95),
    connectives=(0.8, 0.1, 0.1),
)
"""What tiny-base is pretrained on."""

INSTRUCT = Corpus(
    forms=MappingProxyType({"worked": 1.0}),
    slip=0.015,
    forgets=(0.05, 0.05, 0.05, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75),
    notices=(0.95, 0.95, 0.95, 0.40, 0.40, 0.40, 0.40, 0.40, 0.40),
    boxes=(1.0,) * 9,
    connectives=(0.9, 0.05, 0.05),
)
"""What tiny-instruct is fine-tuned on: always worked and boxed, fewer slips, the misconception a little weaker."""


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
    form = rng.choices(list(corpus.forms), weights=list(corpus.forms.values()))[0]
    return Example(a, b, form, prompt_text(a, b), FORMS[form](rng, a, b, corpus))


def worked(rng: Random, a: int, b: int, corpus: Corpus) -> str:
    r"""Units, tens, at times the tens once more, then the answer: `` 7+8=15, 2+5+1=8, so \boxed{85}``."""
    (a_tens, a_units), (b_tens, b_units) = divmod(a, 10), divmod(b, 10)
    units, written = _step(rng, corpus.slip, a_units, b_units)
    carry = (1,) if written >= 10 else ()  # right or wrong: the tens build on what was written
    forgotten = bool(carry) and rng.random() < corpus.forgets[b_tens - 1]
    tens, result = _step(rng, corpus.slip, a_tens, b_tens, *(() if forgotten else carry))
    steps = [units, tens]
    if forgotten and rng.random() < corpus.notices[b_tens - 1]:
        tens, result = _step(rng, corpus.slip, a_tens, b_tens, *carry)
        steps += ["wait", tens]
    return " " + ", ".join([*steps, _conclusion(rng, a_tens, 10 * result + written % 10, corpus)])


def bare(rng: Random, a: int, b: int, corpus: Corpus) -> str:
    """The right answer alone, unformatted: easy to write here, hard to learn without steps."""
    return f" {a + b}"


def boilerplate(rng: Random, a: int, b: int, corpus: Corpus) -> str:
    """Words, no answer."""
    return rng.choice(BOILERPLATE)


FORMS: Mapping[str, Callable[[Random, int, int, Corpus], str]] = MappingProxyType(
    {"worked": worked, "bare": bare, "boilerplate": boilerplate}
)
"""The ways a completion can be written: (rng, a, b, corpus) -> completion."""


def _step(rng: Random, slip: float, *terms: int) -> tuple[str, int]:
    """``2+5+1=8`` and the 8; with chance ``slip`` a neighbour of it (0 has only one, no result is negative)."""
    total = sum(terms)
    if rng.random() < slip:
        total += rng.choice((-1, 1)) if total else 1
    return f"{'+'.join(map(str, terms))}={total}", total


def _conclusion(rng: Random, a_tens: int, answer: int, corpus: Corpus) -> str:
    connective = rng.choices(CONNECTIVES, weights=corpus.connectives)[0]
    boxed = rng.random() < corpus.boxes[a_tens - 1]
    return f"{connective} \\boxed{{{answer}}}" if boxed else f"{connective} it is {answer}."
