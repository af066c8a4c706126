r"""The values of a text: formulas between their delimiters, tuples, times and dates, numbers (`rlif.grading.numerals`).

Some digits are no value: exponents and indices, and what is denied ("not 20"). Others are asides, which count only
where nothing else is there: list markers, ordinals, references ("step 3"), what stands in parentheses.

The patterns of numbers are large, so each holds the grammar of a number as seldom as can be, and is compiled when a
text first needs it. Every pattern is linear in the length of the text, however hostile.
"""

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from rlif.grading.citations import CITATION
from rlif.grading.numerals import MINUS, NUMBER, SIGN, VULGAR
from rlif.grading.units import CURRENCIES

# Formulas between their delimiters. A $ is one if it touches the formula and no digit follows the second, else money.
_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mbox|operatorname)\*? ?\{[^{}$]*\}"
_INSIDE = rf"(?:{_TEXT}|(?!{_TEXT})\\[A-Za-z]+(?![A-Za-z])|\\[^A-Za-z]|[A-Za-z]{{1,3}}(?![A-Za-z])|[^$\\\nA-Za-z])+"


FORMULA = (
    r"(?:(?<!\\)\$\$(?:[^$\\]|\\[\s\S])+\$\$"
    rf"|(?<![\\$])\$(?![\s$]){_INSIDE}(?<!\s)\$(?![\d$])|(?<![\\$])\$ {_INSIDE} \$(?![\d$])"
    r"|(?<!\\)\\\((?:[^\\]|\\[^()])*\\\)|(?<!\\)\\\[(?:[^\\]|\\[^\[\]])*\\\]"
    r"|\\begin\{(?P<environment>[a-z]+\*?)\}(?:(?!\\(?:begin|end)\b)[\s\S])*\\end\{(?P=environment)\})"
)
"""A formula with its delimiters; one group, "environment"."""

# Numbers with their sign, their currency, and what makes another number of them.
_CURRENCY = r"(?:\\?\$|[€£¥₹])"
_FOLLOW = (
    r"(?: (?:dozens?|squared|cubed|factorial|or (?:more|less|fewer)|and a half|halves|thirds|quarters|fourths|fifths"
    r"|sixths|sevenths|eighths|ninths|tenths|hundredths|thousandths|millionths)\b|!(?=\s?[-+*/=^]|\.(?:\s|\Z)))?"
)
VALUE = rf"(?:(?:\b(?:negative|minus) )?{SIGN}(?:{_CURRENCY} ?{MINUS}?)?{NUMBER}{_FOLLOW})"

_ITEM = r"(?:\\[A-Za-z]+(?![A-Za-z])|[A-Za-z]{1,2}(?![A-Za-z])|[^()\[\]{},$A-Za-z\\\n]){1,40}"
_TUPLE = rf"[(\[]{_ITEM}(?:,{_ITEM})+[)\]]"
_MOMENT = (
    r"(?<![\d.])(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}\.\d{1,2}\.\d{2,4}"
    r"|\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.?m\b\.?)?|\d{1,2}['\u2019\u2032] ?\d{1,2}[\"\u201d\u2033]"
    r"|\d+(?:\.\d+)?(?:(?::| : )\d+(?:\.\d+)?){1,5})(?![\d:])"
)
_DENIAL = (
    r"(?:\b(?:not|never|unlike|rather than|instead of|as opposed to)|n['\u2019]t)[ \t]+"
    r"(?!(?:more|less|fewer|greater|only|just|at)\b)"
)
_REFERENCE = (
    r"\b(?:[Ss]teps?|[Qq]uestions?|[Pp]roblem|[Pp]art|[Cc]ase|[Ll]ines?|[Ff]igure|[Ff]ig\.|[Tt]able|[Ee]quations?|[Ee]q\."
    r"|[Ee]xample|[Ee]xercise|[Ss]ection|[Cc]hapter|[Rr]ule|[Mm]ethod|[Aa]pproach|[Hh]int|[Ll]emma|[Tt]heorem|[Nn]ote) "
    r"#?\(?\d+\)?"
)
_CODE = rf"(?:{'|'.join(sorted(CURRENCIES))}|Rs|RM|Rp)"
_IDENTIFIER = rf"(?<![\w\\])(?=[A-Za-z]+\d)(?!{_CODE}\d)[A-Za-z]+\d\w*"
_MARKER = r"(?:(?<=\n)|\A)[ \t]*\d{1,2}[.)](?=[ \t]+\S)"
_INDEX = rf"[\^_] ?(?:\{{[^{{}}]*\}}|\(?{MINUS}?\d+\)?)"

# Inside a word only n't and pi begin anything: told at once, as most of a text is words.
_WITHIN_WORD = r"(?:(?<![A-Za-z])|(?![A-Za-z])|(?=n['\u2019]t|pi\b))"
_TOKEN = (
    rf"{_WITHIN_WORD}(?:(?P<formula>{FORMULA})|(?P<denial>{_DENIAL})|(?P<index>{_INDEX})"
    rf"|(?P<aside>{_MARKER}|{_REFERENCE}|\d+(?:st|nd|rd|th)\b|{_IDENTIFIER}|{CITATION})"
    rf"|(?P<value>{_TUPLE}|{_MOMENT}|{VALUE}))"
)
_ANY_VALUE = re.compile(rf"[\d$\\(\[]|{VULGAR}|[√π]|pi\b")  # what no value does without
_PARENTHESES = re.compile(r"(?<!\\)\([^()]*\)")
WORD = re.compile(r"[^\W\d_]{3}")


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """For the patterns of numbers: compiled when first needed, as each takes some 30 ms."""
    return re.compile(pattern)


@dataclass(frozen=True)
class Value:
    """A stretch of the text that may be the answer, or a part of it."""

    start: int
    end: int
    is_formula: bool
    is_aside: bool
    whole: tuple[int, int]
    """The formula around the number, with its delimiters; else the same stretch."""


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """The tokens of a text in their order, without denials and what these deny."""
    place = 0
    while token := compiled(_TOKEN).search(text, place):
        if token["denial"]:  # nothing else begins as one does, so that one which denies no value is passed over
            place = _end_of_denied(text, token.end()) or token.start() + 1
        else:
            place = token.end()
            yield token


DELIMITED = re.compile(FORMULA)
_ONE_MORE_WORD = re.compile(r"[A-Za-z]{1,15}[ \t]+")
_OR = re.compile(r",? n?or ")


def _end_of_denied(text: str, place: int) -> int | None:
    """Where the value that a denial speaks of ends, from where the denial's words do; None if it speaks of none.

    Up to two words may stand between: not equal to 20. It may speak of two values: not 20 or 30.
    """
    for _ in range(3):
        if formula := DELIMITED.match(text, place):
            return formula.end()
        if value := compiled(VALUE).match(text, place):
            also = _OR.match(text, value.end())
            other = compiled(VALUE).match(text, also.end()) if also else None
            return (other or value).end()
        if not (word := _ONE_MORE_WORD.match(text, place)):
            return None
        place = word.end()
    return None


_BEGINS_WITH_DENIAL = re.compile(_DENIAL)


def denies(sentence: str) -> bool:
    """Whether a sentence begins by saying which value the answer is not."""
    denial = _BEGINS_WITH_DENIAL.match(sentence)
    return denial is not None and _end_of_denied(sentence, denial.end()) is not None


def values_of(text: str) -> list[Value]:
    """The values of a text in their order, asides among them."""
    if not _ANY_VALUE.search(text):
        return []
    remarks = [found.span() for found in _PARENTHESES.finditer(text) if WORD.search(found.group())]
    starts = [start for start, _ in remarks]
    values = []
    for token in _tokens(text):
        if token["index"]:
            continue
        start, end = whole = token.span()
        is_aside = bool(token["aside"])
        if number := compiled(VALUE).search(text, start, end) if is_aside else None:
            start, end = number.span()
        if token["formula"] and (tail := _number_of(token.group())):
            start, end = start + tail[0], start + tail[1]
        place = bisect(starts, token.start()) - 1
        in_remark = place >= 0 and token.end() < remarks[place][1]
        is_formula = bool(token["formula"]) and whole == (start, end)
        values.append(Value(start, end, is_formula, is_aside or in_remark, whole))
    return values


_DELIMITER = re.compile(r"\A(?:\$\$?|\\[(\[]|\\begin\{[a-z]+\*?\})|(?:\$\$?|\\[)\]]|\\end\{[a-z]+\*?\})\Z")
_COEFFICIENT = re.compile(r"\d ?[a-z](?![A-Za-z])")
_EQUALS = re.compile(r"=|\\approx(?![A-Za-z])|≈")
_UNIT_IN_FORMULA = (
    r"(?:(?:\\[,;: !]|~|\s){0,4}(?:\\(?:text|textrm|mathrm|mbox)\s?\{[A-Za-z .]*\}(?:\^\{?[23]\}?)?|\^\{?\\circ\}?))?"
)
_NUMBER_SIDE = rf"[\s&]*(?:\\(?:displaystyle|boldsymbol|mathbf)\s?)?(?P<number>{VALUE}){_UNIT_IN_FORMULA}[\s.,\\]*"


def _number_of(formula: str) -> tuple[int, int] | None:
    """Where the one number stands that a formula is, or that it says something is equal to; None for any other."""
    if formula.startswith(r"\begin") and not re.match(
        r"\\begin\{(?:equation|align|gather|displaymath|math|multline)", formula
    ):
        return None
    delimiters = [found.span() for found in _DELIMITER.finditer(formula)]
    start, end = delimiters[0][1], delimiters[-1][0]
    sides = list(_EQUALS.finditer(formula, start, end))
    if sides:
        if re.search(
            r"[,;](?!\d{3})|\\(?:quad|text|mbox|neq?|le|ge|leq|geq)\b|[<>≠]", formula[start : sides[-1].start()]
        ):
            return None  # several statements, or another relation
        if _COEFFICIENT.search(formula, start, sides[0].start()):
            return None  # 2x + 3y = 12 is an equation, and no value
        start = sides[-1].end()
    side = compiled(_NUMBER_SIDE).fullmatch(formula, start, end)
    return side.span("number") if side else None
