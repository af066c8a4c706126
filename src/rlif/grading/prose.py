r"""Which number or formula of a text is the answer, where no form marks it: the rules of a careful reader.

A text is read as *values* (`rlif.grading.prose_values`), and values that are joined make one answer
(`rlif.grading.prose_groups`); here is which of the answers is meant. docs/grading.md has the rules.

Every pattern is linear in the length of the text, however hostile.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rlif.grading.numerals import EXPONENT, MINUS, NUMBER
from rlif.grading.prose_groups import FARTHEST_JOINED, Group, groups_of, joint
from rlif.grading.prose_values import VALUE, WORD, Value, compiled, denies, values_of


def conclusion(text: str) -> str | None:
    """The answer of a text without any form: the formula or number it ends with; None if it has neither.

    Of a sum with its result the result; a range, a list, a time whole; numbers that are mere asides only if there is
    no other.
    """
    if expression := _closing_expression(text):
        return expression
    for start in _starts_of_tails(text):
        if found := _concluded(text[start:], is_whole=start == 0):
            return found
    return None


def _concluded(text: str, *, is_whole: bool) -> str | None:
    """The answer at the end of a text, or of a tail of it: None also where more of the text might change it."""
    values = values_of(text)
    values = [value for value in values if not value.is_aside] or (values if is_whole else [])
    first_run = 0 if is_whole else _end_of_first_run(text, values)
    for group in reversed(groups_of(text, values, things=False)):
        if group.start < first_run:
            return None  # it may be joined with what stands before the tail
        if not group.is_formula or _counts(text, group):
            return _said(text, group)
    return None


def _end_of_first_run(text: str, values: Sequence[Value]) -> int:
    """Where the values end that may be joined with what stands before a tail; 0 if there are none."""
    if not values or values[0].whole[0] > FARTHEST_JOINED:
        return 0
    return next((a.end for a, b in pairwise(values) if not joint(text, a, b, things=False)), len(text))


_SHORTEST_TAIL = 500
_SENTENCE_START = re.compile(r"(?<=[a-z]{2}\. )(?=[A-Z])")
_SENTENCES = 400


def _starts_of_tails(text: str) -> Iterator[int]:
    """Where to begin reading, from the end: at lines or sentences that cut nothing in two; at last 0, the whole."""
    length = _SHORTEST_TAIL
    while 2 * length < len(text):
        latest = len(text) - length
        sentences = [found.end() for found in _SENTENCE_START.finditer(text, max(0, latest - _SENTENCES), latest)]
        start = max(text.rfind("\n", 0, latest) + 1, *sentences, 0)
        if start and not _cuts(text, start):
            yield start
        length *= 4
    yield 0


_ENDS = (("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\begin", r"\end"), ("(", ")"), ("{", "}"))


def _cuts(text: str, start: int) -> bool:
    """Whether a formula, a group or a parenthesis may begin before a place and end after it; a formula's line, too."""
    if text[:start].rstrip("\n").endswith("\\"):
        return True
    for opening, closing in _ENDS:
        is_open = (
            text.count(opening, 0, start) % 2 == 1
            if opening == closing
            else text.rfind(opening, 0, start) > text.rfind(closing, 0, start)
        )
        if is_open and text.find(closing, start) >= 0:
            return True
    return False


_TRAILING = re.compile(r"[\s.,;:!?*_`'\"“”‘’)\]}>|~$∎■□]*(?:\\(?:text|mathrm|mbox)\{[^{}]*\}[\s.!*]*)?")


def _counts(text: str, formula: Group) -> bool:
    """Whether a formula that is no number is an answer: it ends the text, or only a unit follows."""
    closing = _TRAILING.match(text, formula.end)
    if closing and closing.end() == len(text):
        return True
    return (
        len(text) < formula.end + 60
        and len(text[formula.end :].split()) <= 3
        and len(text[formula.start : formula.end].strip("$\\() ")) > 1
    )


def last_value(text: str) -> str | None:
    """The last number of a text, and no number inside a formula unless it is all of it, or what it is equal to."""
    values = [value for value in values_of(text) if not value.is_formula]
    values = [value for value in values if not value.is_aside] or values
    return text[values[-1].start : values[-1].end] if values else None


_REASON = re.compile(
    r"[,;(]?\s?\b(?:because|since|as opposed to|rather than|instead of|so that|i\.e\.|e\.g\.|namely|which|where|when|if"
    r"|not|for (?:all|every|any|each)|as (?=\w+ (?:is|are|was|were)\b))(?![A-Za-z])"
)
_FILLER = re.compile(
    r"(?:[\s:*_\"'“”‘’`=≈~]|<[a-z]{1,6}>|(?:that|is|are|be|about|approximately|approx\.?|around|roughly|nearly|almost"
    r"|exactly|precisely|simply|just|only|indeed|therefore|thus|hence|then|so|clearly|now|actually|equal|equals|to|the"
    r"|number|value|either|both|between|from|of course|[a-z]{2,10}ly|[A-Za-z]\s?=)(?![A-Za-z]),?)*"
)
_RESULT = re.compile(
    r"(?:, which (?:is|makes|equals|gives)|that is|for a total of|in total|totall?ing|altogether)[\s,]*\Z"
)
_OPTION = re.compile(r"(?:[Oo]ption |[Cc]hoice )?(?:\([A-J]\)|\*{0,2}[A-J](?=\s*(?:[.,;:*)]|\Z|because|since)))\*{0,2}")


def stated(sentence: str) -> str | None:
    """What a sentence that was announced as the answer says: its formula or number, its words if it has neither.

    The first value if it begins with one, or says so of it ("about", "x ="); else the last. None if nothing is said but
    what the answer is not.
    """
    option = _OPTION.match(sentence)
    reason = next((found for found in _REASON.finditer(sentence) if found.start() > 0), None)
    if option and not compiled(VALUE).search(sentence, option.end(), reason.start() if reason else len(sentence)):
        return option.group().strip(" *")
    values = values_of(sentence)
    if not _is_prose(sentence, values):
        return _without_end(sentence)
    values = [value for value in values if not value.is_aside] or values
    groups = groups_of(sentence, values, things=True)
    if not groups:
        rest = sentence[: reason.start()] if reason else sentence
        return None if denies(sentence) else rest.strip(" \t*_,;") or None
    filler = _FILLER.match(sentence)
    first = groups[0]
    if filler is None or first.start > filler.end() or len(groups) == 1:
        begins = filler is not None and first.start <= filler.end()
        return _said(sentence, first if begins else _last_number_group(groups))
    result = next((g for g in groups[1:] if _RESULT.search(sentence, max(0, g.start - 25), g.start)), None)
    if first.is_sum and result is None:
        result = groups[-1]
    return _said(sentence, result or first)


def _last_number_group(groups: Sequence[Group]) -> Group:
    """The last group that is a number; the last formula if there is none."""
    return next((group for group in reversed(groups) if not group.is_formula), groups[-1])


def _is_prose(sentence: str, values: Sequence[Value]) -> bool:
    r"""Whether there are words outside formulas and LaTeX's commands: what has none is an expression, taken whole."""
    rest = []
    end = 0
    for value in values:
        if value.is_formula or value.whole != (value.start, value.end):
            rest.append(sentence[end : value.whole[0]])
            end = value.whole[1]
    bare = re.sub(r"\\[A-Za-z]+(?:\s?\{[^{}]*\})?", " ", " ".join([*rest, sentence[end:]]))
    return bool(WORD.search(bare))


_MARKUP = " \t*_`\"'“”‘’"
_HTML = re.compile(r"\A(?:<[a-z]{1,6}>){1,3}|(?:</[a-z]{1,6}>){1,3}\Z")


def _without_end(sentence: str) -> str | None:
    """Without the exclamation mark of the sentence; 7! is a factorial if a full stop follows, or in a formula."""
    bare = _HTML.sub("", sentence.strip(_MARKUP)).strip(_MARKUP)
    return (bare[:-1] if bare.endswith("!.") else bare.rstrip("!?")).strip(_MARKUP) or None


def _said(text: str, group: Group) -> str:
    return text[group.start : group.end].strip()


_OPERAND = rf"(?:[(]?(?:{MINUS}?(?:{NUMBER})?[a-z](?:{EXPONENT})?|{NUMBER})[)]?)"
_END = r"[\s.!*]*"
_EXPRESSION = (  # each operand stands before an operator, before a parenthesis, or before the end
    rf"(?P<expression>(?:[A-Za-z](?:\([a-z]\))? ?= ?)?{MINUS}?"
    rf"(?:{_OPERAND}(?: ?[-+*/·×\u2212] ?(?!{_END}\Z)|(?=\()|(?={_END}\Z))){{1,7}}){_END}"
)
_PROSE = re.compile(
    r"(?<!\\)\b[A-Za-z]{3,}\b|\b(?:is|to|of|we|in|at|on|it|or|so|be|by|an|as|if|no)\b|[:,;?\n$]|\.(?=\s+\S)"
)
_SPEED = re.compile(r"[0-9] ?[a-z]{1,3}/[a-z]")
_WORKING = re.compile(r"[-+*/·×\u2212=^]")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])")


def _closing_expression(text: str) -> str | None:
    """An expression with a variable that ends a text without delimiters: ``y = 3x + 2``. None if there is none."""
    tail = text.rstrip()[-200:]
    cut = [found.end() for found in _PROSE.finditer(tail)]
    run = tail[cut[-1] if cut else 0 :].strip(" *=")
    if _SPEED.search(run) or not _VARIABLE.search(run) or not _WORKING.search(run):
        return None  # which the pattern of an expression, slow to compile, need not be asked
    found = compiled(_EXPRESSION).fullmatch(run)
    if found is None:
        return None
    last_side = found["expression"].split("=")[-1]
    if not _VARIABLE.search(last_side) or not re.search(r"\d", last_side):
        return None
    return found["expression"].strip()
