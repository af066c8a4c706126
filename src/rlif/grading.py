r"""Two verdicts on an answer: is it right, and does it stand in the form that was asked for?

`right` reads the answer in whatever form it was given (a box, after ``####``, after "the answer is", else the last
number). `formatted` asks one extractor of the task's choice. The two are kept apart because an early gain in the
usual score is often the format alone (arXiv 2506.17219).

Equivalence is decided by the cheapest judge that can: equal text, then exact comparison of decimals, then math-verify
in a worker process that can be killed (`rlif._math_worker`). Differences from math-verify alone:

1. two decimals are equal only if they are exactly equal (math-verify rounds to six places);
2. numbers in different bases differ (``52_8`` and ``52_9``);
3. ``5 million`` is 5·10^6, ``6.7e-5`` is a number, and bare words after a number are its unit (``18 dollars``);
4. words in ``\text{}`` are words (``East``), not products of letters;
5. a sum that was not worked out (``27+58``) does not answer a question whose answer is a number;
6. what is not LaTeX equals nothing: no number is fished out of it.
"""

import difflib
import re
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from rlif._math_worker import MathWorker
from rlif.errors import RlifError

if TYPE_CHECKING:
    import rlif.types  # it loads torch, which a grader can do without

Extractor = Callable[[str], str | None]

LONGEST_ANSWER = 2000
"""Characters by which an answer may be longer than the ground truth before it is wrong unread."""

# Extraction. All patterns are linear in the length of the text: they read what a model wrote.

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[^\s{}$\\]+))|\\\\(?!boxed|fbox)|\\[{}]|[{}]")


def boxed(text: str) -> str | None:
    r"""The content of the last closed ``\boxed{...}`` or ``\fbox{...}``; of nested ones the innermost last.

    None if there is no such box or it is empty. ``\boxed 5`` counts, as in TeX.
    """
    last_start, content = -1, ""
    open_groups: list[tuple[int, int]] = []  # where each open group and its content start; -1: not a box
    for token in _BRACES.finditer(text):
        symbol = token.group()
        if token["bare"]:
            last_start, content = token.start(), token["bare"]
        elif symbol == "{":
            open_groups.append((-1, -1))
        elif symbol == "}":
            start, inside = open_groups.pop() if open_groups else (-1, -1)
            if start > last_start:
                last_start, content = start, text[inside : token.start()]
        elif symbol.endswith("{") and symbol != r"\{":
            open_groups.append((token.start(), token.end()))
    return content.strip() or None


_HASH = re.compile(r"####[ \t]*\**(?=[-+−]?[$\\(\[{.0-9])")
_SENTENCE_END = re.compile(r"\.(?=\s|$)")


def after_hash(text: str) -> str | None:
    """What follows the last ``####`` on its line, as in GSM8K; a word there makes it a heading, not an answer."""
    return _after(_HASH, text)


_ANSWER = re.compile(r"\banswer\b\**[ \t]*(?:is|:|=)[\s:*]*", re.IGNORECASE)
_PROSE = re.compile(r"[A-Za-z]{3}")


def after_answer_is(text: str) -> str | None:
    """What follows the last "answer is" or "answer:", to the end of the sentence; in prose, its last number.

    None if nothing follows.
    """
    sentence = _after(_ANSWER, text)
    if sentence is None:
        return None
    in_math = "\\" in sentence or "^" in sentence or sentence.count("$") > 1  # a single $ is money
    if _PROSE.search(sentence) and not in_math:
        return last_number(sentence) or sentence
    return sentence


_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_SIGN = r"(?:(?<![0-9A-Za-z)\]}])[-−])?"
_FRACTION = r"\\[dt]?frac\s?\{-?[0-9]+\}\s?\{-?[0-9]+\}"
_SCALE = r"(?:hundred|thousand|million|billion|trillion)\b"
_NUMBER = re.compile(rf"{_SIGN}(?:{_FRACTION}|\\?\$?{_DIGITS}(?:/[0-9]+)?(?: {_SCALE}|\s?\\?%)?)")


def last_number(text: str) -> str | None:
    r"""The last number: with its sign, thousands separators, decimals, ``a/b``, ``\frac{a}{b}``, ``%``, ``million``."""
    found = _last(_NUMBER, text)
    return found.group() if found else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def _after(pattern: re.Pattern[str], text: str) -> str | None:
    """The rest of the line after the last match, to the end of the sentence; None without a match or a rest."""
    found = _last(pattern, text)
    if found is None:
        return None
    line = text[found.end() :].partition("\n")[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t*_") or None


EXTRACTORS: Mapping[str, Extractor] = MappingProxyType(
    {"boxed": boxed, "hash": after_hash, "answer_is": after_answer_is, "last_number": last_number}
)
"""The forms an answer can be asked for in, surest first: the order in which `extract_any` tries them."""


def find_extractor(name: str) -> Extractor:
    """An extractor by its name. Raises `RlifError` for an unknown one."""
    if name not in EXTRACTORS:
        nearest = difflib.get_close_matches(name, EXTRACTORS, n=1, cutoff=0.0)[0]
        raise RlifError(f"task.format: no format {name!r}; did you mean {nearest}? (there are {', '.join(EXTRACTORS)})")
    return EXTRACTORS[name]


def extract_any(text: str) -> str | None:
    """The answer in whatever form it was given, without its packaging (see `clean`); None if there is none."""
    found = (extract(text) for extract in EXTRACTORS.values())
    return next((answer for answer in map(clean, filter(None, found)) if answer), None)


# Equivalence.

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "°": r"^\circ ", "\u00a0": " "}
    | {chr(code): " " for code in (*range(32), 127)}
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_CLEANING: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<!\\)\\[()\[\]]|\\?\$|\*\*"), ""),  # maths delimiters, currency, bold
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\\!|(?<=[0-9])(?<!\\)\\,(?=[0-9]{3})"), ""),  # negative space, and a thousands separator
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\[,;: ]|~"), " "),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})"), ""),
    (re.compile(rf"(?<=[0-9]) ?(\\(?:text|mbox|mathrm) ?\{{)? ?({_SCALE})"), lambda m: _scale(m[2]) + (m[1] or "")),
    (re.compile(rf"^([-+]?{_DIGITS})[eE]([-+]?[0-9]+)$"), r"\1\\cdot 10^{\2}"),
    (re.compile(rf"^([-+]?{_DIGITS})(?: [A-Za-z]{{3,}}(?: [A-Za-z]+)*)$"), r"\1"),  # a number and its unit in words
)


def clean(text: str) -> str:
    r"""An answer without its packaging: delimiters, currency, spacing, degrees, units in words, a final full stop.

    What is left is LaTeX for the same thing, on one line.
    """
    text = " ".join(text.translate(_CHARACTERS).split())
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".,;: ")


def _scale(word: str) -> str:
    return rf"\cdot 10^{{{_SCALES[word]}}}"


_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r" (?![0-9])|(?<![0-9]) ")  # between two digits it counts: 1 2 is not 12
_BASED = re.compile(r"([0-9A-Z]+)_(?:\{([0-9]+)\}|([0-9]+))")
_DECIMAL = re.compile(r"([-+]?)((?:[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)?)(?:\.([0-9]*))?")
_UNWORKED = re.compile(r"[-+]?[0-9.,]+(?:(?:\\times|\\cdot|[-+*])[0-9.,]+)+")


def compare_quickly(gold: str, answer: str) -> bool | None:
    """Compare two cleaned answers without algebra: as text, as numbers, as words. None: cannot tell."""
    keys = [_LOOSE_SPACE.sub("", _TEXT.sub(r"\1", text)) for text in (gold, answer)]
    bare = [key.removesuffix("%").removesuffix("\\") for key in keys]
    if bare[0] and bare[0] == bare[1]:
        return True  # 50 for 50% is what was meant; whether 0.5 is, algebra knows
    for reading in (_decimal, _based):
        values = [reading(key) for key in keys]
        if None not in values:
            return values[0] == values[1]
    if _decimal(keys[0]) and _UNWORKED.fullmatch(keys[1]):
        return False  # 27+58 repeats the question; it does not answer it
    words = [key.strip("()").casefold() for key in keys]
    if _TEXT.fullmatch(gold) and all(word.isalpha() for word in words):
        return words[0] == words[1]  # a name, not a product of letters: east is not seat
    return None


def _decimal(key: str) -> tuple[str, str, str] | None:
    """Sign, integer digits and decimals without superfluous zeros: exact at any length, which int and float are not."""
    match = _DECIMAL.fullmatch(key)
    if match is None or not (match[2] or match[3]):
        return None
    integer, decimals = match[2].replace(",", "").replace(" ", "").lstrip("0"), (match[3] or "").rstrip("0")
    return "-" if match[1] == "-" and (integer or decimals) else "", integer, decimals


def _based(key: str) -> tuple[str, str] | None:
    match = _BASED.fullmatch(key)
    return (match[1], match[2] or match[3]) if match else None


class Grader:
    """Judges answers, with a worker process for those that need algebra; it starts when first needed.

    A context manager, but leaving it open harms nobody: the worker ends with its owner. One thread at a time.
    """

    def __init__(self, *, time_limit: float = 5.0, memory_limit: int = 2 << 30) -> None:
        """Limits on the algebra of one answer: seconds, and bytes of address space (enforced on Linux)."""
        self._worker = MathWorker(time_limit, memory_limit)
        self._algebra = lru_cache(maxsize=4096)(self._worker.equivalent)  # the answers of a group agree more than not

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker. The grader stays usable."""
        self._worker.close()

    def grade(self, text: str, answer: str | None, *, format: str, row_id: str) -> "rlif.types.Verdict":
        """Judge a completion against the ground truth ``answer``; ``format`` is a key of `EXTRACTORS`.

        ``right`` is None if there is no ground truth, or if the algebra could not tell (a limit, an undefined value).
        Raises `RlifError` for an unknown format, RuntimeError naming ``row_id`` if grading itself fails.
        """
        from rlif.types import Verdict

        in_form = find_extractor(format)
        try:
            answered = in_form(text)
            formatted = answered is not None
            # The answer in the asked form is the answer: another one elsewhere in the text neither saves nor spoils it.
            extracted = clean(answered) if answered is not None else extract_any(text)
            right = self._right(answer, extracted) if answer is not None else None
        except Exception as error:
            raise RuntimeError(f"{row_id}: grading failed: {error}") from error
        return Verdict(right, formatted, extracted)

    def _right(self, answer: str, extracted: str | None) -> bool | None:
        gold = clean(answer)
        if extracted is None or len(extracted) > len(gold) + LONGEST_ANSWER:
            return False
        quick = compare_quickly(gold, extracted)
        return self._algebra(gold, extracted) if quick is None else quick
