r"""Which number or formula of a text is the answer, where no form marks it: the rules of a careful reader.

A text is read as *values*: formulas between their delimiters, tuples, times and dates, numbers
(`rlif.grading.numerals`). Some digits are no value: exponents and indices, what is denied ("not 20"), and, as long as
anything else is there, list markers, ordinals, references ("step 3") and asides in parentheses. Values that are joined
make one answer: a list, a range, a sum, hours and minutes. docs/grading.md has the rules.

Every pattern is linear in the length of the text, however hostile.
"""

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from rlif.grading.numerals import EXPONENT, MINUS, MINUS_SIGNS, NUMBER, SIGN, VULGAR

# Formulas between their delimiters. A $ is one if it touches the formula and no digit follows the second, else money.
_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mbox|operatorname)\*? ?\{[^{}$]*\}"
_INSIDE = rf"(?:{_TEXT}|(?!{_TEXT})\\[A-Za-z]+(?![A-Za-z])|\\[^A-Za-z]|[A-Za-z]{{1,3}}(?![A-Za-z])|[^$\\\nA-Za-z])+"


def _formula(name: str) -> str:
    """The pattern of a formula; ``name`` is that of its group for the name of an environment."""
    return (
        r"(?:(?<!\\)\$\$(?:[^$\\]|\\[\s\S])+\$\$"
        rf"|(?<![\\$])\$(?![\s$]){_INSIDE}(?<!\s)\$(?![\d$])|(?<![\\$])\$ {_INSIDE} \$(?![\d$])"
        r"|(?<!\\)\\\((?:[^\\]|\\[^()])*\\\)|(?<!\\)\\\[(?:[^\\]|\\[^\[\]])*\\\]"
        rf"|\\begin\{{(?P<{name}>[a-z]+\*?)\}}(?:(?!\\(?:begin|end)\b)[\s\S])*\\end\{{(?P={name})\}})"
    )


FORMULA = _formula("environment")
"""A formula with its delimiters; one group, "environment"."""

# Numbers with their sign, their currency, and what makes another number of them.
_CURRENCY = r"(?:\\?\$|[€£¥₹])"
_FOLLOW = (
    r"(?: (?:dozens?|squared|cubed|factorial|or (?:more|less|fewer)|and a half|halves|thirds|quarters|fourths|fifths"
    r"|sixths|sevenths|eighths|ninths|tenths|hundredths|thousandths|millionths)\b|!(?=\s?[-+*/=^]|\.(?:\s|\Z)))?"
)
_VALUE = rf"(?:(?:\b(?:negative|minus) )?{SIGN}(?:{_CURRENCY} ?{MINUS}?)?{NUMBER}{_FOLLOW})"

_ITEM = r"(?:\\[A-Za-z]+(?![A-Za-z])|[A-Za-z]{1,2}(?![A-Za-z])|[^()\[\]{},$A-Za-z\\\n]){1,40}"
_TUPLE = rf"[(\[]{_ITEM}(?:,{_ITEM})+[)\]]"
_MOMENT = (
    r"(?<![\d.])(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}\.\d{1,2}\.\d{2,4}"
    r"|\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.?m\b\.?)?|\d{1,2}['\u2019\u2032] ?\d{1,2}[\"\u201d\u2033]"
    r"|\d+(?:\.\d+)?(?:(?::| : )\d+(?:\.\d+)?){1,5})(?![\d:])"
)
_DENIED = (
    r"(?:\b(?:not|never|unlike|rather than|instead of|as opposed to)|n['\u2019]t)[ \t]+"
    r"(?!(?:more|less|fewer|greater|only|just|at)\b)(?:[A-Za-z]{1,15}[ \t]+){0,2}?"
    rf"(?:{_formula('denied_environment')}|{_VALUE}(?:,? n?or {_VALUE})?)"
)
_REFERENCE = (
    r"\b(?:[Ss]teps?|[Qq]uestions?|[Pp]roblem|[Pp]art|[Cc]ase|[Ll]ines?|[Ff]igure|[Ff]ig\.|[Tt]able|[Ee]quations?|[Ee]q\."
    r"|[Ee]xample|[Ee]xercise|[Ss]ection|[Cc]hapter|[Rr]ule|[Mm]ethod|[Aa]pproach|[Hh]int|[Ll]emma|[Tt]heorem|[Nn]ote) "
    r"#?\(?\d+\)?"
)
_IDENTIFIER = r"(?<![\w\\])(?!(?:USD|EUR|GBP|INR|Rs)\d)[A-Za-z]+\d\w*"
_CITATION = r"(?<=[\w.,;] )\[\d{1,3}\](?!\()"
_MARKER = r"(?:(?<=\n)|\A)[ \t]*\d{1,2}[.)](?=[ \t]+\S)"
_INDEX = rf"[\^_] ?(?:\{{[^{{}}]*\}}|\(?{MINUS}?\d+\)?)"

# Inside a word only n't and pi begin anything: told at once, as most of a text is words.
_WITHIN_WORD = r"(?:(?<![A-Za-z])|(?![A-Za-z])|(?=n['\u2019]t|pi\b))"
_TOKEN = (
    rf"{_WITHIN_WORD}(?:(?P<formula>{FORMULA})|(?P<nothing>{_DENIED}|{_INDEX})"
    rf"|(?P<aside>{_MARKER}|{_REFERENCE}|\d+(?:st|nd|rd|th)\b|{_IDENTIFIER}|{_CITATION})"
    rf"|(?P<value>{_TUPLE}|{_MOMENT}|{_VALUE}))"
)
_ANY_VALUE = re.compile(rf"[\d$\\(\[]|{VULGAR}|[√π]|pi\b")  # what no value does without
_PARENTHESES = re.compile(r"(?<!\\)\([^()]*\)")
_WORD = re.compile(r"[^\W\d_]{3}")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """For the patterns of numbers: compiled when first needed, as they take up to half a second each."""
    return re.compile(pattern)


@dataclass(frozen=True)
class _Value:
    """A stretch of the text that may be the answer, or a part of it."""

    start: int
    end: int
    is_formula: bool
    is_aside: bool
    whole: tuple[int, int]
    """The formula around the number, with its delimiters; else the same stretch."""


def _values(text: str) -> list[_Value]:
    """The values of a text in their order, asides among them."""
    if not _ANY_VALUE.search(text):
        return []
    remarks = [found.span() for found in _PARENTHESES.finditer(text) if _WORD.search(found.group())]
    starts = [start for start, _ in remarks]
    values = []
    for token in _compiled(_TOKEN).finditer(text):
        if token["nothing"]:
            continue
        start, end = whole = token.span()
        is_aside = bool(token["aside"])
        if number := _compiled(_VALUE).search(text, start, end) if is_aside else None:
            start, end = number.span()
        if token["formula"] and (tail := _number_of(token.group())):
            start, end = start + tail[0], start + tail[1]
        place = bisect(starts, token.start()) - 1
        in_remark = place >= 0 and token.end() < remarks[place][1]
        is_formula = bool(token["formula"]) and whole == (start, end)
        values.append(_Value(start, end, is_formula, is_aside or in_remark, whole))
    return values


_DELIMITER = re.compile(r"\A(?:\$\$?|\\[(\[]|\\begin\{[a-z]+\*?\})|(?:\$\$?|\\[)\]]|\\end\{[a-z]+\*?\})\Z")
_COEFFICIENT = re.compile(r"\d ?[a-z](?![A-Za-z])")
_EQUALS = re.compile(r"=|\\approx(?![A-Za-z])|≈")
_UNIT_IN_FORMULA = (
    r"(?:(?:\\[,;: !]|~|\s){0,4}(?:\\(?:text|textrm|mathrm|mbox)\s?\{[A-Za-z .]*\}(?:\^\{?[23]\}?)?|\^\{?\\circ\}?))?"
)
_NUMBER_SIDE = rf"[\s&]*(?:\\(?:displaystyle|boldsymbol|mathbf)\s?)?(?P<number>{_VALUE}){_UNIT_IN_FORMULA}[\s.,\\]*"


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
    side = _compiled(_NUMBER_SIDE).fullmatch(formula, start, end)
    return side.span("number") if side else None


# What joins two values.
_FARTHEST_JOINED = 40  # characters
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
_TRAILING = re.compile(r"[\s.,;:!?*_`'\"“”‘’)\]}>|~$∎■□]*(?:\\(?:text|mathrm|mbox)\{[^{}]*\}[\s.!*]*)?")


@dataclass(frozen=True)
class _Group:
    """One answer of one or more values; ``is_sum``: an operation that was not worked out."""

    start: int
    end: int
    is_formula: bool
    is_sum: bool = False


def _groups(text: str, values: Sequence[_Value], *, things: bool) -> list[_Group]:
    """The values, joined where they make one answer; ``things``: 3 apples and 4 pears are one.

    Of more than 64 values the first and the last 32: nobody looks at the others.
    """
    if len(values) > 64:
        values = [*values[:32], *values[-32:]]
    groups: list[_Group] = []
    index = 0
    while index < len(values):
        last = index
        while last + 1 < len(values) and _joint(text, values[last], values[last + 1], things=things):
            last += 1
        groups += _split(text, values[index : last + 1], things=things)
        index = last + 1
    return groups


def _joint(text: str, left: _Value, right: _Value, *, things: bool) -> str:
    """How two neighbours are joined: one of "list", "sum", "is", "measure", or "" for not at all."""
    if right.whole[0] - left.whole[1] > _FARTHEST_JOINED:
        return ""
    between = text[left.whole[1] : right.whole[0]]
    joints = {"is": _IS, "sum": _OPERATOR, "list": _AND, "measure": _MEASURE} | ({"things": _THINGS} if things else {})
    if between.strip() in ("to", "by") and text[right.start] in MINUS_SIGNS:
        return ""  # it fell by 5 to -3
    found = next((name for name, pattern in joints.items() if pattern.fullmatch(between)), "")
    if found == "measure" and not re.search("[A-Za-z]", between):
        return ""
    return "measure" if found == "things" else found


def _split(text: str, run: Sequence[_Value], *, things: bool) -> list[_Group]:
    """A run of joined values as groups: of 3 + 4 = 7 the 7; hours and minutes, and a closing list, whole."""
    names = [_joint(text, left, right, things=things) for left, right in pairwise(run)]
    if "is" in names:
        side = len(names) - names[::-1].index("is")
        if side == len(run) - 1:
            return [_group(run[side:])]
        if "list" not in names[side:]:
            return [_Group(run[0].whole[0], run[-1].whole[1], False, is_sum=True)]
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
    return [_Group(start, end, False, is_sum=set(names) == {"sum"})]


def _group(run: Sequence[_Value]) -> _Group:
    return _Group(run[0].start, run[-1].end, run[0].is_formula)


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


# The two readers.


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
    values = _values(text)
    values = [value for value in values if not value.is_aside] or (values if is_whole else [])
    first_run = 0 if is_whole else _end_of_first_run(text, values)
    for group in reversed(_groups(text, values, things=False)):
        if group.start < first_run:
            return None  # it may be joined with what stands before the tail
        if not group.is_formula or _counts(text, group):
            return _said(text, group)
    return None


def _end_of_first_run(text: str, values: Sequence[_Value]) -> int:
    """Where the values end that may be joined with what stands before a tail; 0 if there are none."""
    if not values or values[0].whole[0] > _FARTHEST_JOINED:
        return 0
    return next((a.end for a, b in pairwise(values) if not _joint(text, a, b, things=False)), len(text))


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


def _counts(text: str, formula: _Group) -> bool:
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
    values = [value for value in _values(text) if not value.is_formula]
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
    if option and not _compiled(_VALUE).search(sentence, option.end(), reason.start() if reason else len(sentence)):
        return option.group().strip(" *")
    values = _values(sentence)
    if not _is_prose(sentence, values):
        return _without_end(sentence)
    values = [value for value in values if not value.is_aside] or values
    groups = _groups(sentence, values, things=True)
    if not groups:
        denies = _compiled(_DENIED).match(sentence) is not None
        return None if denies else (sentence[: reason.start()] if reason else sentence).strip(" \t*_,;") or None
    filler = _FILLER.match(sentence)
    first = groups[0]
    if filler is None or first.start > filler.end() or len(groups) == 1:
        begins = filler is not None and first.start <= filler.end()
        return _said(sentence, first if begins else _last_number_group(groups))
    result = next((g for g in groups[1:] if _RESULT.search(sentence, max(0, g.start - 25), g.start)), None)
    if first.is_sum and result is None:
        result = groups[-1]
    return _said(sentence, result or first)


def _last_number_group(groups: Sequence[_Group]) -> _Group:
    """The last group that is a number; the last formula if there is none."""
    return next((group for group in reversed(groups) if not group.is_formula), groups[-1])


def _is_prose(sentence: str, values: Sequence[_Value]) -> bool:
    r"""Whether there are words outside formulas and LaTeX's commands: what has none is an expression, taken whole."""
    rest = []
    end = 0
    for value in values:
        if value.is_formula or value.whole != (value.start, value.end):
            rest.append(sentence[end : value.whole[0]])
            end = value.whole[1]
    bare = re.sub(r"\\[A-Za-z]+(?:\s?\{[^{}]*\})?", " ", " ".join([*rest, sentence[end:]]))
    return bool(_WORD.search(bare))


_MARKUP = " \t*_`\"'“”‘’"
_HTML = re.compile(r"\A(?:<[a-z]{1,6}>){1,3}|(?:</[a-z]{1,6}>){1,3}\Z")


def _without_end(sentence: str) -> str | None:
    """Without the exclamation mark of the sentence; 7! is a factorial if a full stop follows, or in a formula."""
    bare = _HTML.sub("", sentence.strip(_MARKUP)).strip(_MARKUP)
    return (bare[:-1] if bare.endswith("!.") else bare.rstrip("!?")).strip(_MARKUP) or None


def _said(text: str, group: _Group) -> str:
    return text[group.start : group.end].strip()


_OPERAND = rf"(?:[(]?{MINUS}?(?:{NUMBER})?[a-z](?:{EXPONENT})?[)]?|[(]?{NUMBER}[)]?)"
_EXPRESSION = (
    rf"(?P<expression>(?:[A-Za-z](?:\([a-z]\))? ?= ?)?{MINUS}?{_OPERAND}"
    rf"(?:(?: ?[-+*/·×\u2212] ?|(?=\()){_OPERAND}){{0,6}})[\s.!*]*"
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
    found = _compiled(_EXPRESSION).fullmatch(run)
    if found is None:
        return None
    last_side = found["expression"].split("=")[-1]
    if not _VARIABLE.search(last_side) or not re.search(r"\d", last_side):
        return None
    return found["expression"].strip()
