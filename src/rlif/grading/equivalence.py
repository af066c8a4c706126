r"""Whether two answers are the same, as far as reading them decides it; what needs algebra goes to math-verify.

`readings` says which pairs of texts would make them so, `compare_quickly` compares a pair as text, exact number, time,
words. Both get cleaned texts (`rlif.grading.normalize`). Where they differ from math-verify alone, and why:
docs/grading.md.

Every pattern is linear in the length of the text, however hostile; no number is computed whose size an answer chooses.
"""

import re

from rlif.grading.normalize import clean
from rlif.grading.quantities import without_letter, words_behind_a_number
from rlif.grading.rationals import Number, decimal_digits, read_number, same_number, without_percent
from rlif.grading.readings import named_values, option
from rlif.grading.units import OPERATORS

__all__ = ["canonical", "clean", "compare_quickly"]

_TEXT = re.compile(r"\\(?:text|textnormal|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r"(?<![0-9,]) | (?![0-9])")  # it counts between digits, 1 2 is not 12, and in 58, 500
_UNWORKED = re.compile(r"[-+]?[0-9.,]+(?:(?:\\times|\\cdot|[-+*])[0-9.,]+)+")
_LETTER = re.compile(r"[A-Za-z]")


def compare_quickly(gold: str, answer: str) -> bool | None:
    """Compare two cleaned answers without algebra: as text, as numbers, as words. None: cannot tell."""
    if not answer:
        return False
    keys = [_loosely_spaced(text) for text in (gold, answer)]
    numbers = [read_number(key) for key in keys]
    bare = [without_percent(key) for key in keys]
    if bare[0] and bare[0] == bare[1] and (keys[0] == keys[1] or numbers[0] is None):
        return True
    decimals = [decimal_digits(key) for key in keys]
    if None not in decimals:
        return decimals[0] == decimals[1]
    if _is_time(keys[0]) or _is_time_of_half(keys[1]):
        return _same_time(keys[0], keys[1])
    if numbers[0] is not None and numbers[1] is not None:
        return same_number(numbers[0], numbers[1])
    if numbers[0] is not None and _is_another_number(numbers[0], answer):
        return False
    if (based := _compare_based(keys[0], keys[1])) is not None:
        return based
    if decimals[0] and _UNWORKED.fullmatch(keys[1]):
        return False  # 27+58 repeats the question; it does not answer it
    if _is_tuple(gold) and answer.startswith(r"\{") and "|" not in answer and r"\mid" not in answer:
        return False  # braces say that the order does not matter, where it does
    return _compare_words(gold, answer, keys)


def canonical(answer: str) -> str:
    r"""What a cleaned answer is counted under where answers are counted: spellings of one number have one key.

    18, 18.00 and 36/2 are 18; 0.5 and \frac12 are 1/2; 50% is 50, as it is to `compare_quickly`, and 0.5% is 1/200.
    x=5 is 5, 5 m is 5; ``y=3, x=2`` and ``(x,y)=(2,3)`` are (2,3), their values in the names' order; ``(A) 5`` is A.
    What is no number goes by its text without ``\text{}`` and loose space. No algebra: 2 + x and x + 2 are two answers.
    """
    if (label := option(answer)) is not None:
        return label[0]
    values = named_values(answer)
    if values is not None and len({name for name, _ in values}) == len(values):
        keys = [_key(value) for _, value in sorted(values)]
        return keys[0] if len(keys) == 1 else f"({','.join(keys)})"
    return _key(answer)


def _key(answer: str) -> str:
    key = _loosely_spaced(without_letter(answer))
    number = read_number(key)
    if number is not None:
        return str(number.hundredth().value if abs(number.value) < 1 else number.value)
    decimal = decimal_digits(key)
    if decimal is not None:  # too long for a fraction
        sign, integer, decimals = decimal
        return f"{sign}{integer or 0}{'.' if decimals else ''}{decimals}"
    return key or answer


def _loosely_spaced(text: str) -> str:
    r"""Without ``\text{}`` and the space that does not count."""
    return _LOOSE_SPACE.sub("", _TEXT.sub(r"\1", text))


def _is_another_number(gold: Number, answer: str) -> bool:
    """Whether what does not read as a number says that it is not this one: ``5 dozen``, ``8 = 7``, ``5 if n is 2``."""
    if OPERATORS.search(answer) or words_behind_a_number(answer):
        return True
    left, equals, _ = answer.partition("=")
    number = read_number(_loosely_spaced(left)) if equals else None
    return number is not None and not same_number(gold, number)


# Other bases, times, words.

_BASED = re.compile(r"([-+]?[0-9A-Z]+)_(?:\{([0-9]+|[a-z]+)\}|([0-9]+))")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
_BARE_BASED = re.compile(r"[-+]?[0-9A-Z]+")


def _compare_based(gold: str, answer: str) -> bool | None:
    r"""``52_8``: digits and base have to agree. Asked for in base 8, the base may be left out."""
    left, right = _BASED.fullmatch(gold), _BASED.fullmatch(answer)
    if left and right:
        bases = [match[2] or match[3] for match in (left, right)]
        return left[1] == right[1] and _BASES.get(bases[0], bases[0]) == _BASES.get(bases[1], bases[1])
    if left and _BARE_BASED.fullmatch(answer):
        return left[1] == answer
    return None


_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?(?:([ap])\.?m\.?)?", re.IGNORECASE)


_HOUR_OF_HALF = re.compile(r"[1-9]|1[0-2]")


def _same_time(gold: str, answer: str) -> bool:
    """Whether two are one time of the day. 7:05 leaves open which half of it, where the other one names it."""
    left, right = _TIME.fullmatch(gold), _TIME.fullmatch(answer)
    if left is None or right is None:
        return False
    times = _time(left), _time(right)
    if times[0] == times[1]:
        return True
    unnamed = [match[1] for match in (left, right) if not match[4]]
    half_is_open = len(unnamed) == 1 and _HOUR_OF_HALF.fullmatch(unnamed[0]) is not None
    return half_is_open and times[0][1:] == times[1][1:] and (times[0][0] - times[1][0]) % 12 == 0


def _time(match: re.Match[str]) -> tuple[int, int, int]:
    hours, half = int(match[1]), (match[4] or "").lower()
    if half and 1 <= hours <= 12:
        hours = hours % 12 + (12 if half == "p" else 0)
    return hours, int(match[2]), int(match[3] or 0)


def _is_time_of_half(key: str) -> bool:
    match = _TIME.fullmatch(key)
    return match is not None and match[4] is not None


def _is_time(key: str) -> bool:
    """Whether it can be nothing else: ``3:10`` is a ratio, and algebra knows that it is that of 6:20."""
    match = _TIME.fullmatch(key)
    return bool(match and (match[3] or match[4] or match[1].startswith("0") or match[2].startswith("0")))


def _is_tuple(text: str) -> bool:
    return text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text and len(_OPENING.findall(text)) == 1


_OPENING = re.compile(r"[(\[]")
_ARTICLE = re.compile(r"^(?:an?|the) ", re.IGNORECASE)
_LABEL = re.compile(r"[A-Z]{3,}")
_WORD = re.compile(r"[A-Za-z]{3,}")
_OPTIONS = re.compile(r"\(?[A-Z]\)?(?:, ?\(?[A-Z]\)?)*")


def _compare_words(gold: str, answer: str, keys: list[str]) -> bool | None:
    """Names are compared as words, not as products of letters: east is not seat. Options come in any order."""
    words = [_ARTICLE.sub("", _TEXT.sub(r"\1", text)).replace(" ", "") for text in (gold, answer)]
    if all(_OPTIONS.fullmatch(word) for word in words) and "," in words[0]:
        return sorted(_LETTER.findall(words[0])) == sorted(_LETTER.findall(words[1]))
    words = [word.strip("()").casefold() for word in words]
    named = _TEXT.fullmatch(gold) or _LABEL.fullmatch(keys[0]) or _WORD.fullmatch(gold)
    if named and all(word.isalpha() for word in words):
        return words[0] == words[1]
    return None
