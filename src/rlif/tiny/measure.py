"""What a tiny model does when decoded: right, formatted, "wait", entropy; sampled, sharpened, greedy and by vote.

Run as ``python -m rlif.tiny.measure [NAME or FOLDER …]``; without one, both shipped models. Slow and plain on
purpose (transformers' own `generate`): the numbers in docs/tiny.md do not lean on the engine they are used to test.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from rlif.errors import with_error
from rlif.rng import is_held_out
from rlif.tiny import TINY_MODELS, path
from rlif.tiny.corpus import HIGH, LOW, prompt_text
from rlif.utils.terminal import say

BOXED = re.compile(r"\\boxed\{(\d+)\}")
NUMBER = re.compile(r"\d+")
FIRST_TENS = re.compile(r" \d\+\d=(?P<units>\d+), \d\+\d(?P<carry>\+1)?=")
"""A worked completion up to its first tens step."""

ROWS = 512
"""Completions sampled in one batch."""


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return with_error(self.mean, self.error, ".3f")


class Completion(NamedTuple):
    """One completion; ``tokens`` (EOS included) and the sum of their entropies, in nats."""

    text: str
    tokens: int
    nats: float
    ended: bool


@dataclass(frozen=True)
class Decoding:
    """A way to decode: how many completions a problem, at which temperature (None: greedy)."""

    label: str
    samples: int
    temperature: float | None


DECODINGS = (Decoding("T = 1", 16, 1.0), Decoding("T = .4", 16, 0.4), Decoding("greedy", 1, None))


@dataclass(frozen=True)
class Answered:
    """A sum and its completions."""

    a: int
    b: int
    completions: Sequence[Completion]

    @property
    def carries(self) -> bool:
        return self.a % 10 + self.b % 10 >= 10


Metric = Callable[[Answered], tuple[float, float]]
"""What a problem adds to the numerator and to the denominator of a ratio: of right completions and of completions."""


def held_out_sums(n: int | None = None, seed: int = 0) -> list[tuple[int, int]]:
    """``n`` of the pairs that the `arithmetic` task keeps for evaluation, in random order; None: all (about 1,000)."""
    pairs = [(a, b) for a in range(LOW, HIGH + 1) for b in range(LOW, HIGH + 1) if is_held_out(a, b)]
    Random(seed).shuffle(pairs)
    return pairs[:n]


def decode(
    folder: Path, pairs: Sequence[tuple[int, int]], decoding: Decoding, *, seed: int = 0, max_new_tokens: int = 96
) -> list[Answered]:
    """Complete each pair's question ``decoding.samples`` times."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [pair for pair in pairs for _ in range(decoding.samples)]
    done: list[Completion] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for first in range(0, len(rows), ROWS):
            done += _complete(model, tokenizer, rows[first : first + ROWS], decoding.temperature, max_new_tokens)
    size = decoding.samples
    return [Answered(*pair, done[i * size : (i + 1) * size]) for i, pair in enumerate(pairs)]


def estimate(metric: Metric, answered: Sequence[Answered]) -> Estimate:
    """Σ numerators / Σ denominators, with the standard error of a ratio estimator (linearised).

    Clustered by problem: completions of one problem are not independent. NaN where nothing counts.
    """
    numerators, denominators = torch.tensor([metric(one) for one in answered], dtype=torch.float64).reshape(-1, 2).T
    ratio = numerators.sum() / denominators.sum()
    residuals = numerators - ratio * denominators
    return Estimate(ratio.item(), (residuals.std() * sqrt(len(answered)) / denominators.sum()).item())


def _complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[int, int]],
    temperature: float | None,
    max_new_tokens: int,
) -> Iterator[Completion]:
    """One completion for each pair, in one batch (prompts have one length)."""
    prompts = torch.tensor([tokenizer.encode(prompt_text(a, b)) for a, b in pairs])
    sampling = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature}
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        **sampling,
        top_k=None if temperature is None else 0,
        max_new_tokens=max_new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[:, prompts.shape[1] :]
    ends = tokens == tokenizer.eos_token_id
    mask = ends.cumsum(dim=1) - ends.int() == 0  # no EOS before this token
    entropy = torch.distributions.Categorical(logits=torch.stack(out.logits, dim=1)).entropy()
    columns = (mask.sum(dim=1), (entropy * mask).sum(dim=1), ends.any(dim=1))
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return map(Completion, texts, *(column.tolist() for column in columns))


def boxed(text: str) -> int | None:
    r"""The number in the last ``\boxed{…}``."""
    return _last(BOXED, text)


def answer(text: str) -> int | None:
    """The last number, in whatever form."""
    return _last(NUMBER, text)


def _last(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.findall(text)
    return int(found[-1]) if found else None


def forgets_the_carry(text: str) -> bool:
    """Whether the first tens step leaves out the carry that the units step wrote."""
    found = FIRST_TENS.match(text)
    return found is not None and int(found["units"]) >= 10 and not found["carry"]


def _share(holds: Callable[[Answered, str], bool]) -> Metric:
    """The share of completions for which something holds."""
    return lambda one: (sum(holds(one, done.text) for done in one.completions), len(one.completions))


def _wait(after_a_forgotten_carry: bool) -> Metric:
    def metric(one: Answered) -> tuple[float, float]:
        texts = [done.text for done in one.completions if forgets_the_carry(done.text) == after_a_forgotten_carry]
        return float(sum("wait" in text for text in texts)), float(len(texts))

    return metric


def _majority_is_right(one: Answered) -> tuple[float, float]:
    """Votes are the last numbers; a tie is broken by chance, a completion without a number does not vote."""
    votes = Counter(number for done in one.completions if (number := answer(done.text)) is not None)
    winners = [number for number, count in votes.items() if count == max(votes.values())]
    return ((one.a + one.b in winners) / len(winners) if winners else 0.0), 1.0


right = _share(lambda one, text: answer(text) == one.a + one.b)
formatted = _share(lambda one, text: boxed(text) is not None)
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "right, in any form": right,
        "right and formatted": _share(lambda one, text: boxed(text) == one.a + one.b),
        "formatted": formatted,
        "majority right, in any form": _majority_is_right,
        "forgets the carry": _share(lambda one, text: forgets_the_carry(text)),
        '"wait" after a forgotten carry': _wait(True),
        '"wait" elsewhere': _wait(False),
        "ended by itself": lambda one: (sum(done.ended for done in one.completions), len(one.completions)),
        "mean token entropy, nats": lambda one: (
            sum(done.nats for done in one.completions),
            sum(done.tokens for done in one.completions),
        ),
        "tokens with EOS": lambda one: (sum(done.tokens for done in one.completions), len(one.completions)),
    }
)
"""The rows of the table, over all sums."""

BY_DIGIT: Mapping[str, tuple[Metric, Callable[[Answered], int | None]]] = MappingProxyType(
    {
        "right, carry, b from {}0": (right, lambda one: one.b // 10 if one.carries else None),
        "majority right, carry, b from {}0": (_majority_is_right, lambda one: one.b // 10 if one.carries else None),
        "formatted, a from {}0": (formatted, lambda one: one.a // 10),
    }
)
"""Rows that a digit decides: what is measured, and the digit of the sums it is measured on (None: not on this one)."""


def table(columns: Sequence[Sequence[Answered]]) -> dict[str, list[Estimate]]:
    """Every row of `METRICS` and `BY_DIGIT`; one column for each decoding."""
    rows = {name: [estimate(metric, column) for column in columns] for name, metric in METRICS.items()}
    for name, (metric, digit_of) in BY_DIGIT.items():
        for digit in range(1, 10):
            chosen = [[one for one in column if digit_of(one) == digit] for column in columns]
            rows[name.format(digit)] = [estimate(metric, column) for column in chosen]
    return rows


def _main(names: list[str]) -> None:
    torch.set_num_threads(1)
    pairs = held_out_sums(256)
    for name in names or TINY_MODELS:
        folder = path(name) if name in TINY_MODELS else Path(name)
        columns = [decode(folder, pairs, decoding) for decoding in DECODINGS]
        say(f"{name} ({len(pairs)} held-out sums, ± one standard error, clustered by problem)")
        say(f"{'':<36}" + "".join(f"{decoding.label + f' × {decoding.samples}':<18}" for decoding in DECODINGS))
        for row, estimates in table(columns).items():
            say(f"  {row:<34}" + "".join(f"{one!s:<18}" for one in estimates))


if __name__ == "__main__":
    _main(sys.argv[1:])
