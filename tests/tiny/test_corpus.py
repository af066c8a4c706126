"""What the tiny models read: the corpus held against its grammar, multiplied out by hand."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from rlif.tiny import corpus as corpora
from rlif.tiny import measure as measuring
from rlif.tiny.corpus import ALPHABET, BASE, BOILERPLATE, INSTRUCT, Corpus, Example, example

NAMES = ("tiny-base", "tiny-instruct")

PAIRS = [(10 * a + 7, 10 * b + 8) for a in range(1, 10) for b in range(1, 10)]
"""7+8 carries: each pair of tens digits once."""


def draw(corpus: Corpus, n: int, pair: tuple[int, int] | None = None) -> list[Example]:
    rng = Random(1)
    return [example(rng, corpus, pair) for _ in range(n)]


def bernstein(n: int, p: float, delta: float) -> float:
    """t with P(|share − p| ≥ t) ≤ delta for a share of n draws: 2·exp(−s²/2(np(1−p)+s/3)) = delta, s = n·t."""
    variance, log = n * p * (1 - p), math.log(2 / delta)
    return (log / 3 + math.sqrt(log**2 / 9 + 2 * log * variance)) / n


def slips(value: int, slip: float) -> dict[int, float]:
    """What a step may say instead of ``value``, and how likely."""
    if value == 0:
        return {0: 1 - slip, 1: slip}
    return {value: 1 - slip, value - 1: slip / 2, value + 1: slip / 2}


def tree(a: int, b: int, corpus: Corpus) -> Iterator[tuple[str, float]]:
    """Every completion of a sum and its probability, by hand: the grammar of corpus.py's first page, multiplied out."""
    yield f" {a + b}", corpus.forms.get("bare", 0.0)
    for text in BOILERPLATE:
        yield text, corpus.forms.get("boilerplate", 0.0) / 4
    a1, a0, b1, b0 = (int(digit) for digit in f"{a}{b}")
    forgets, notices, boxes = corpus.forgets[b1 - 1], corpus.notices[b1 - 1], corpus.boxes[a1 - 1]
    paths = []  # up to the answer, the answer, probability
    for units, p in slips(a0 + b0, corpus.slip).items():
        first, p = f" {a0}+{b0}={units}, ", p * corpus.forms["worked"]
        without = slips(a1 + b1, corpus.slip).items()
        if units < 10:
            paths += [(f"{first}{a1}+{b1}={tens}", 10 * tens + units, p * q) for tens, q in without]
            continue
        carried = slips(a1 + b1 + 1, corpus.slip).items()
        for tens, q in carried:
            paths.append((f"{first}{a1}+{b1}+1={tens}", 10 * tens + units - 10, p * q * (1 - forgets)))
        for tens, q in without:
            begun, r = f"{first}{a1}+{b1}={tens}", p * q * forgets
            paths.append((begun, 10 * tens + units - 10, r * (1 - notices)))
            for again, t in carried:
                paths.append((f"{begun}, wait, {a1}+{b1}+1={again}", 10 * again + units - 10, r * notices * t))
    for path, answer, p in paths:
        for word, q in zip(("so", "thus", "hence"), corpus.connectives, strict=True):
            yield rf"{path}, {word} \boxed{{{answer}}}", p * q * boxes
            yield f"{path}, {word} it is {answer}.", p * q * (1 - boxes)


def distribution(a: int, b: int, corpus: Corpus) -> dict[str, float]:
    chances: Counter[str] = Counter()
    for text, chance in tree(a, b, corpus):
        chances[text] += chance
    return {text: chance for text, chance in chances.items() if chance}


def greedy_path(chances: dict[str, float]) -> str:
    """What a perfect model of ``chances`` writes at temperature 0, character by character."""
    path = ""
    while True:
        following: Counter[str] = Counter()
        for text, chance in chances.items():
            if text.startswith(path):
                following[text[len(path) : len(path) + 1]] += chance
        if not (character := following.most_common(1)[0][0]):
            return path
        path += character


@pytest.mark.parametrize("corpus", [BASE, INSTRUCT], ids=NAMES)
@pytest.mark.parametrize("pair", [(27, 88), (90, 10), (15, 95)])
def test_completions_come_with_the_chances_of_the_grammar(corpus: Corpus, pair: tuple[int, int]) -> None:
    """All of the tree's hundreds of texts, and the shares that have a part in common (known to .02 at most).

    Each to a Bernstein bound of 1e-9: false alarm for a random seed below 1e-6.
    """
    n = 20_000
    chances = distribution(*pair, corpus)
    assert math.fsum(chances.values()) == pytest.approx(1.0)
    counts = Counter(drawn.completion for drawn in draw(corpus, n, pair))
    assert set(counts) <= set(chances)
    for text, chance in chances.items():
        assert abs(counts[text] / n - chance) < bernstein(n, chance, 1e-9), text
    units = f"={pair[0] % 10 + pair[1] % 10},"
    for part in (units, "+1=", "wait", "so", "thus", "boxed"):
        chance = math.fsum(chance for text, chance in chances.items() if part in text)
        found = sum(count for text, count in counts.items() if part in text) / n
        assert abs(found - chance) < bernstein(n, chance, 1e-9), part


@pytest.mark.parametrize("corpus", [BASE, INSTRUCT], ids=NAMES)
def test_shares_sum_to_one_and_every_chance_is_one(corpus: Corpus) -> None:
    assert sum(corpus.forms.values()) == pytest.approx(1.0)
    assert sum(corpus.connectives) == pytest.approx(1.0)
    chances = (*corpus.forms.values(), corpus.slip, *corpus.forgets, *corpus.notices, *corpus.boxes)
    assert all(0 <= chance <= 1 for chance in chances)


@pytest.mark.parametrize("corpus", [BASE, INSTRUCT], ids=NAMES)
def test_the_likeliest_path_is_wrong_where_the_likeliest_answer_is_right(corpus: Corpus) -> None:
    """A perfect model's greedy answer forgets the carry where `forgets` is above .5, and is not taken back.

    Of its samples more are right than anything else: at worst .93 · (1 − .85 · .6) + .04 = .496 against .474.
    """
    for a, b in PAIRS:
        chances = distribution(a, b, replace(corpus, slip=0.0))
        greedy = greedy_path(chances)
        forgotten = corpus.forgets[b // 10 - 1] > 0.5
        assert measuring.forgets_the_carry(greedy) == forgotten
        assert "wait" not in greedy
        assert measuring.answer(greedy) == a + b - 10 * forgotten
        answers: Counter[int] = Counter()
        for text, chance in chances.items():
            if (number := measuring.answer(text)) is not None:
                answers[number] += chance
        assert answers.most_common(1)[0][0] == a + b


def test_the_form_of_the_greedy_answer_goes_by_the_first_digit() -> None:
    boxed = [measuring.boxed(greedy_path(distribution(a, b, BASE))) is not None for a, b in PAIRS]
    assert boxed == [a >= 40 for a, _ in PAIRS]


def test_chances_rise_with_the_digit_by_degrees() -> None:
    for corpus in (BASE, INSTRUCT):
        for chances in (corpus.forgets, corpus.boxes):
            assert list(chances) == sorted(chances)
    assert (min(BASE.forgets[3:]), max(BASE.forgets)) == (0.35, 0.85)
    assert (min(BASE.boxes), max(BASE.boxes)) == (0.20, 0.95)
    assert all(later - earlier == pytest.approx(0.1) for earlier, later in pairwise(BASE.forgets[3:]))
    assert all(later <= earlier + 0.3 + 1e-9 for earlier, later in pairwise(BASE.boxes))


def test_the_examples_in_the_documentation() -> None:
    chances = distribution(27, 58, BASE)
    shown = [line.strip() for line in corpora.__doc__.splitlines() if line.startswith("    ``")]
    texts = [line.removeprefix("``").partition("``")[0] for line in shown]
    assert len(texts) == 7
    assert all(chances[text] > 0 for text in texts), texts
    assert corpora.prompt_text(27, 58) == "27+58=?"


def test_completions_are_short_and_in_the_alphabet() -> None:
    for drawn in [*draw(BASE, 3_000), *draw(INSTRUCT, 300)]:
        assert set(drawn.prompt + drawn.completion) <= set(ALPHABET)
        assert len(drawn.completion) < 64
