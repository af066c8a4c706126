"""Values that are joined make one answer: a list, a range, a sum, hours and minutes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlif.grading.numerals import MINUS_SIGNS
from rlif.grading.prose_values import Value

# What joins two values.
FARTHEST_JOINED = 40  # characters
_AND = re.compile(r"\s*(?:,?\s*(?:and|or|&)|[,;])\s*(?:[A-Za-z]\s?=\s?)?")
_NAME = re.compile(r"(?<![A-Za-z])[A-Za-z]\s?=\s?\Z")
_OPERATOR = re.compile(
    r"!?\s*(?:[-+*/·×÷x\u2212\u2013]|to|by|\\times|\\cdot|\\div|plus|minus|times|divided by|multiplied by|over)\s*"
)
_IS = re.compile(r"!?[\s*]*(?:=|≈)[\s*]*")
_UNITS = (
    r"(?:years?|months?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s|dollars?|cents?|euros?|pounds?|pence"
    r"|feet|foot|ft|inch(?:es)?|in|yards?|miles?|lbs?|ounces?|oz|meters?|metres?|cm|km|kg|grams?|g|liters?|ml|degrees?)"
)
_MEASURE = re.compile(rf"\s*{_UNITS}?,?\s*(?:and)?\s+|\s*{_UNITS}\s?")
_THINGS = re.compile(r"\s+[A-Za-z]+,?\s+and\s+")
_NOUN = re.compile(r"\s*[A-Za-z°']*")
_BEFORE_PAIR = re.compile(r"(?:\b(?:between|either|both|from|neither|[Bb]etween|[Ee]ither|[Bb]oth|[Ff]rom)[ \t]+)\Z")


@dataclass(frozen=True)
class Group:
    """One answer of one or more values; ``is_sum``: an operation that was not worked out."""

    start: int
    end: int
    is_formula: bool
    is_sum: bool = False


def groups_of(text: str, values: Sequence[Value], *, things: bool) -> list[Group]:
    """The values, joined where they make one answer; ``things``: 3 apples and 4 pears are one.

    Of more than 64 values the first and the last 32: nobody looks at the others.
    """
    if len(values) > 64:
        values = [*values[:32], *values[-32:]]
    groups: list[Group] = []
    index = 0
    while index < len(values):
        last = index
        while last + 1 < len(values) and joint(text, values[last], values[last + 1], things=things):
            last += 1
        groups += _split(text, values[index : last + 1], things=things)
        index = last + 1
    return groups


def joint(text: str, left: Value, right: Value, *, things: bool) -> str:
    """How two neighbours are joined: one of "list", "sum", "is", "measure", or "" for not at all."""
    if right.whole[0] - left.whole[1] > FARTHEST_JOINED:
        return ""
    between = text[left.whole[1] : right.whole[0]]
    joints = {"is": _IS, "sum": _OPERATOR, "list": _AND, "measure": _MEASURE} | ({"things": _THINGS} if things else {})
    if between.strip() in ("to", "by") and text[right.start] in MINUS_SIGNS:
        return ""  # it fell by 5 to -3
    found = next((name for name, pattern in joints.items() if pattern.fullmatch(between)), "")
    if found == "measure" and not re.search("[A-Za-z]", between):
        return ""
    return "measure" if found == "things" else found


def _split(text: str, run: Sequence[Value], *, things: bool) -> list[Group]:
    """A run of joined values as groups: of 3 + 4 = 7 the 7; hours and minutes, and a closing list, whole."""
    names = [joint(text, left, right, things=things) for left, right in pairwise(run)]
    if "is" in names:
        side = len(names) - names[::-1].index("is")
        if side == len(run) - 1:
            return [_group(run[side:])]
        if "list" not in names[side:]:
            return [Group(run[0].whole[0], run[-1].whole[1], False, is_sum=True)]
        return [*_split(text, run[: side + 1], things=things), *(_group([value]) for value in run[side + 1 :])]
    if not names:
        return [_group(run)]
    start, end = run[0].whole[0], run[-1].whole[1]
    pair = _BEFORE_PAIR.search(text, max(0, start - 12), start)
    start = pair.start() if pair else start
    name = _NAME.search(text, max(0, start - 4), start)
    start = name.start() if name else start
    if set(names) == {"list"} and not pair and not (_closes(text, end, nouns=1) and not _starts_clause(text, start)):
        return [_group([value]) for value in run]
    if "measure" in names:
        noun = _NOUN.match(text, end)
        end = noun.end() if noun else end
        if set(names) != {"measure"} or not _closes(text, end, nouns=2):
            return [_group([value]) for value in run]
    return [Group(start, end, False, is_sum=set(names) == {"sum"})]


def _group(run: Sequence[Value]) -> Group:
    return Group(run[0].start, run[-1].end, run[0].is_formula)


_CLAUSE = re.compile(
    r"\b(?:[Ii]n|[Oo]f|[Ff]or|[Ww]ith|[Aa]fter|[Ss]ince|[Aa]t|[Oo]n|sum|difference|product|ratio) (?:the )?\Z"
)


def _starts_clause(text: str, start: int) -> bool:
    """Whether a preposition stands before: in 2020, 5 are two things."""
    return bool(_CLAUSE.search(text, max(0, start - 20), start))


def _closes(text: str, end: int, *, nouns: int) -> bool:
    """Whether no more than so many words follow in the same clause."""
    rest = re.split(r"[.,;:!?()\n]", text[end : end + 80], maxsplit=1)[0]
    return len(rest.split()) <= nouns
