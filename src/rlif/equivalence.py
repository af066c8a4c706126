r"""Whether two answers are the same, as far as reading them decides it; what needs algebra goes to math-verify.

`clean` takes the packaging off, `compare_quickly` compares what is left as text, exact number, time, words. Where the
two differ from math-verify alone, and why, stands in docs/grading.md.

Every pattern is linear in the length of the text, however hostile; no number is computed whose size an answer chooses.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from rlif.numerals import DIGITS, SCALE
from rlif.numerals import SCALES as _SCALES

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "°": r"^\circ ", "\u00a0": " "}
    | {"≤": r"\le ", "≥": r"\ge ", "√": r"\sqrt ", "∪": r"\cup ", "±": r"\pm ", "∈": r"\in ", "²": "^2", "³": "^3"}
    | {chr(code): " " for code in (*range(32), 127)}
    | {chr(code): "\ufffd" for code in range(0xD800, 0xE000)}  # half a character: no file could store it
)
_BOX = r"\\(?:text|textnormal|mbox|mathrm|textrm|textbf|mathbf) ?\{"
_ORDINAL = (
    r"(?:(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|[a-z]{3,5}teenth|[a-z]{3,5}tieth"
    r"|hundredth|thousandth|[mbtr]{1,2}illionth)(?:s|(?= of\b|[ .}]{0,3}$)))"
)
_STOP = (
    rf"(?:(?:or|not|plus|minus|multiplied|divided|over|choose|factorial|squared|cubed|root|half|halves|dozens?|pair"
    rf"|(?:more|less|fewer) than|times(?= [a-z])|to the [a-z]{{1,20}} power|{_ORDINAL})(?![A-Za-z]))"
)
"""Words that make another number of the one before them. ``10 times``, ``3 more`` count something, as units do."""
_NO_STOP = rf"(?![A-Za-z .,/²³]*?(?<![A-Za-z]){_STOP})"
_UNITS = (  # of one letter only after a space: 5 m is a length, 5m a product
    rf"{_NO_STOP}"
    r"(?: (?:[mgsh]|(?:sq|cu)\.? [a-z]+\.?|(?!sin|cos|tan|cot|sec|csc|log|sqrt)[A-Za-z]{3,}(?: [A-Za-z]+)*)"
    r"| ?(?:mm|cm|dm|km|in|ft|yd|mi|kg|lbs?|oz|hrs?|min|sec|mph))"
)
_QUANTITY = (
    rf"[-+]?(?:{DIGITS}|(?:[0-9]+ ?)?\\frac ?\{{[0-9]+\}} ?\{{[0-9]+\}}|(?:[0-9]+ )?[0-9]+/[0-9]+)"
    r"(?: ?\\sqrt ?\{[0-9]+\})?(?: ?\\pi)?"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|\\degree(?![A-Za-z])"
_ANGLE = re.compile(rf"({DIGITS})( ?(?:{_DEGREES}))?")  # any number is one, so that none is read twice
_CLEANING: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<=[\w)}])\*\*(?=[\w({])"), "^"),
    (re.compile(r"(?<!\\)\\[()\[\]]|\\?\$|\*\*|^\\approx(?![A-Za-z])"), ""),  # maths delimiters, currency, bold
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"(?<=[0-9])(?:,\\! ?|\\, ?|\{,\})(?=[0-9]{3})"), ""),  # a thousands separator
    (re.compile(r"(?<=[0-9]) ?\\! ?: ?\\! ?(?=[0-9])"), ":"),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\phantom ?(?:\{[^{}]*\}|[^\\{}])"), ""),
    (re.compile(r"\\\\ ?\[[0-9.]+ ?[a-z]{2}\]"), r"\\\\"),  # the distance between two lines of a matrix
    (re.compile(r"(?<!\\)\\[,;: ]|~"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac ?(\\(?:pi|alpha|beta|theta)) ?([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\mathrm ?\{ ?([ei]) ?\}"), r" \1"),
    (re.compile(r"\^ ?(-[0-9]+)"), r"^{\1}"),
    (re.compile(r"(?<![A-Za-z\\])(?:pi)(?![A-Za-z])"), r"\\pi"),
    (re.compile(r"(?<![A-Za-z\\])(?:oo|infinity|infty)(?![A-Za-z])"), r"\\infty"),
    (re.compile(r"(?<![0-9A-Za-z)}\]])\+ ?(?=\\infty)"), ""),
    (re.compile(r"\\varnothing|\\\{ ?\\\}"), r"\\emptyset"),
    (re.compile(r"^\\\{ ?[A-Za-z] ?(?:\\mid|\||:)([^{}|:]*)\\\}$"), r"\1"),  # {x | 1 < x < 3}
    (re.compile(_DEGREES), ""),
    (re.compile(rf",? ?{_BOX} ?,? ?(?:and|or) ?,? ?\}} ?,? ?|(?:,|(?<=[^A-Za-z ,{{])) ?(?:and|or) "), ", "),
    (re.compile(rf"(?<=[0-9]) ?(\\(?:text|mbox|mathrm) ?\{{)? ?({SCALE})"), lambda m: _scale(m[2]) + (m[1] or "")),
    (re.compile(rf"(?<=[0-9]) ?(?:{_BOX} ?percent ?\}}|percent$)"), r"\\%"),
    (
        re.compile(
            rf"(?<=[0-9A-Za-z}})]) ?{_BOX}(?! ?(?i:base|[ap]\.? ?m\b)){_NO_STOP}"
            r"[A-Za-z .,/²³]*\} ?(?:\^ ?\{?[23]\}?)?\.?$"
        ),
        "",
    ),
    (re.compile(rf"^([-+]?{DIGITS})[eE]([-+]?[0-9]+)$"), r"\1\\cdot 10^{\2}"),
    (re.compile(rf"^({_QUANTITY}){_UNITS}(?: ?\^ ?\{{?[23]\}}?|²|³)?\.?$"), r"\1"),  # a number and its unit
)


def clean(text: str) -> str:
    r"""An answer without its packaging: delimiters, currency, spacing, degrees, units, a final full stop.

    What is left is LaTeX for the same thing, on one line. Degrees under a sine become radians: there they count.
    """
    text = " ".join(text.translate(_CHARACTERS).split())
    if _TRIGONOMETRY.search(text):
        text = _ANGLE.sub(_radians, text)
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".,;: ")


def _radians(angle: re.Match[str]) -> str:
    """sin 30° is not sin 30."""
    return rf"({angle[1]} \cdot \frac{{\pi}}{{180}})" if angle[2] else angle[0]


def _scale(word: str) -> str:
    return rf"\cdot 10^{{{_SCALES[word]}}}"


_TEXT = re.compile(r"\\(?:text|textnormal|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r"(?<![0-9,]) | (?![0-9])")  # it counts between digits, 1 2 is not 12, and in 58, 500
_UNWORKED = re.compile(r"[-+]?[0-9.,]+(?:(?:\\times|\\cdot|[-+*])[0-9.,]+)+")
_MAKES_ANOTHER = re.compile(rf"(?<![A-Za-z\\]){_STOP}")
_SIDES = re.compile(r"=|\\approx(?![A-Za-z])")
_LETTER = re.compile(r"[A-Za-z]")


def compare_quickly(gold: str, answer: str) -> bool | None:
    """Compare two cleaned answers without algebra: as text, as numbers, as words. None: cannot tell."""
    if not answer:
        return False
    keys = [_loosely_spaced(text) for text in (gold, answer)]
    numbers = [_number(key) for key in keys]
    bare = [_without_percent(key) for key in keys]
    if bare[0] and bare[0] == bare[1] and (keys[0] == keys[1] or numbers[0] is None):
        return True
    decimals = [_decimal(key) for key in keys]
    if None not in decimals:
        return decimals[0] == decimals[1]
    if _is_time(keys[0]):
        return _time(keys[0]) == _time(keys[1])
    if numbers[0] is not None and numbers[1] is not None:
        return _same_number(numbers[0], numbers[1])
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
    What is no number goes by its text without ``\text{}`` and loose space. No algebra: 2 + x and x + 2 are two answers.
    """
    key = _loosely_spaced(answer)
    number = _number(key)
    if number is not None:
        value, percent, _ = number
        return str(value / 100 if percent and abs(value) < 1 else value)
    decimal = _decimal(key)
    if decimal is not None:  # too long for a fraction
        sign, integer, decimals = decimal
        return f"{sign}{integer or 0}{'.' if decimals else ''}{decimals}"
    return key or answer


def _loosely_spaced(text: str) -> str:
    r"""Without ``\text{}`` and the space that does not count."""
    return _LOOSE_SPACE.sub("", _TEXT.sub(r"\1", text))


def _without_percent(key: str) -> str:
    return key.removesuffix("%").removesuffix("\\") if key.endswith("%") else key


def alternatives(gold: str) -> tuple[str, ...]:
    r"""The ways in which a cleaned ground truth writes one number: ``0.56 = 56\%`` is either, ``x = 5`` is one."""
    sides = [side.strip() for side in _SIDES.split(gold)]
    sides = [side for side in sides if side]
    numeric = all(_number(_LOOSE_SPACE.sub("", side)) is not None for side in sides)
    return tuple(sides) if sides and numeric else (gold,)


# Numbers. Decimals are compared as text, exact at any length, which int and float are not; the rest as fractions.

_DECIMAL = re.compile(r"([-+]?)((?:[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)?)(?:\.([0-9]*))?")


def _decimal(key: str) -> tuple[str, str, str] | None:
    """Sign, integer digits and decimals without superfluous zeros."""
    match = _DECIMAL.fullmatch(key)
    if match is None or not (match[2] or match[3]):
        return None
    integer, decimals = match[2].replace(",", "").replace(" ", "").lstrip("0"), (match[3] or "").rstrip("0")
    return "-" if match[1] == "-" and (integer or decimals) else "", integer, decimals


_INT = r"[0-9]{1,300}"
_PART = rf"(?:\{{ ?([-+]?{_INT}) ?\}}|([0-9]))"
_RATIONAL = re.compile(rf"([-+]?)(?:({_INT})(?: |(?=\\)))?(?:\\frac ?{_PART} ?{_PART}|({_INT})/({_INT}))")
_POWER = re.compile(r"([-+]?)(?:([0-9,.]{1,300})(?:\\times|\\cdot|\*))?10\^(?:\{([-+]?[0-9]{1,3})\}|([0-9]))")
_REPEATING = re.compile(rf"([-+]?)([0-9]{{0,300}})\.([0-9]{{0,300}})\\overline\{{({_INT})\}}")
_SHORT = 300
"""Digits of a decimal that is worth turning into a fraction."""


def _number(key: str) -> tuple[Fraction, bool, bool] | None:
    r"""A decimal, ``a/b``, ``\frac{a}{b}``, a mixed number or ``a·10^n``; whether in per cent; whether a decimal."""
    bare = _without_percent(key)
    if (decimal := _decimal(bare)) and len(decimal[1]) + len(decimal[2]) <= _SHORT:
        value = Fraction("".join((decimal[0], decimal[1] or "0", ".", decimal[2] or "0")))
    elif match := _RATIONAL.fullmatch(bare):
        sign, whole, *parts = match.groups()
        numerator, denominator = (int(part) for part in parts if part is not None)
        if denominator == 0 or (whole and not 0 < numerator < denominator):
            return None
        value = (int(whole or 0) + Fraction(numerator, denominator)) * (-1 if sign == "-" else 1)
    elif match := _POWER.fullmatch(bare):
        decimal = _decimal(match[2] or "1")
        if decimal is None:
            return None
        value = Fraction("".join((decimal[0], decimal[1] or "0", ".", decimal[2] or "0")))
        value *= Fraction(10) ** int(match[3] or match[4]) * (-1 if match[1] == "-" else 1)
    elif match := _REPEATING.fullmatch(bare):
        sign, whole, once, again = match.groups()
        value = Fraction(
            int(whole + once + again or 0) - int(whole + once or 0), (10 ** len(again) - 1) * 10 ** len(once)
        )
        value *= -1 if sign == "-" else 1
    else:
        return None
    return value, bare is not key, decimal is not None


def _same_number(gold: tuple[Fraction, bool, bool], answer: tuple[Fraction, bool, bool]) -> bool:
    """Exactly the same, as written or with per cent as hundredths; a decimal may also be an endless fraction's.

    As written, 50 for 50% is what was meant; below 1 a sign of per cent counts: 0.5 is not 0.5%.
    """
    pairs = [tuple(value / 100 if percent else value for value, percent, _ in (gold, answer))]
    if gold[1] == answer[1] or max(abs(gold[0]), abs(answer[0])) >= 1:
        pairs.append((gold[0], answer[0]))
    if any(left == right for left, right in pairs):
        return True
    endless = not all(_ends(value) for value in pairs[0])
    return endless and (gold[2] or answer[2]) and any(_near(left, right) for left, right in pairs)


def _is_another_number(gold: tuple[Fraction, bool, bool], answer: str) -> bool:
    """Whether what does not read as a number says that it is not this one: ``5 dozen``, ``8 = 7``."""
    if _MAKES_ANOTHER.search(answer):
        return True
    left, equals, _ = answer.partition("=")
    number = _number(_loosely_spaced(left)) if equals else None
    return number is not None and not _same_number(gold, number)


def _ends(value: Fraction) -> bool:
    """Whether its decimals come to an end: no prime but 2 and 5 in the denominator."""
    return pow(10, 3 * value.denominator.bit_length(), value.denominator) == 0


def _near(a: Fraction, b: Fraction) -> bool:
    """The same six decimals and the first five figures: what `rlif._math_worker` asks of approximations, too."""
    return round(a, 6) == round(b, 6) and abs(a - b) <= max(abs(a), abs(b)) / 10**5


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


def _time(key: str) -> tuple[int, int, int] | None:
    match = _TIME.fullmatch(key)
    if match is None:
        return None
    hours, half = int(match[1]), (match[4] or "").lower()
    if half and 1 <= hours <= 12:
        hours = hours % 12 + (12 if half == "p" else 0)
    return hours, int(match[2]), int(match[3] or 0)


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
