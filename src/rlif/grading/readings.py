r"""What an answer would have to equal to be right: names of values, labels of options, spellings side by side.

`readings` turns a cleaned ground truth and a cleaned answer into the pairs of texts of which one has to be equivalent:
named values are put in the order of the ground truth's names, so that ``y=3, x=2`` is compared with ``x=2, y=3`` as
(2,3) with (2,3). Where the names say that the two differ, there is no pair.
"""

import re
from collections.abc import Sequence

from rlif.grading.quantities import without_letter, without_units
from rlif.grading.rationals import read_number

Pair = tuple[str, str]

_SIDES = re.compile(r"=|\\approx(?![A-Za-z])")
_COMPARES = re.compile(r"[=<>]|\\(?:le|ge|leq|geq|lt|gt|ne|neq|approx|in)(?![A-Za-z])")
_BRACKET = re.compile(r"\\[{}]|[()\[\]{}]|\\begin|\\end|\\\\|[,;]|\\.|[^\\()\[\]{},;]+", re.DOTALL)
_LOOSE_SPACE = re.compile(r"(?<![0-9,]) | (?![0-9])")  # it counts between digits, 1 2 is not 12, and in 58, 500


def readings(gold: str, answer: str) -> tuple[Pair, ...]:
    r"""The pairs of texts (of the ground truth, of the answer) of which one has to be equivalent; none if none can be.

    ``x=2, y=3`` is met by the same names in any order, by a tuple or a bare list in that order, and by no set. ``x=5``
    is met by 5, and 5 by ``x=5``. The label of an option is met by the option: A by ``(A) 5``. A number with a letter
    that may be a unit is compared as it stands and without: 5 by 5 m. ``0.56 = 56\%`` is met by either side.
    """
    pairs = _options(gold, answer)
    if pairs is None:
        pairs = [(side, answer) for side in alternatives(gold)]
        named = _named(gold, answer)
        pairs = named if named is not None else pairs
    units = [(without_letter(left), without_letter(right)) for left, right in pairs]
    return tuple(dict.fromkeys([*pairs, *units]))


def alternatives(gold: str) -> tuple[str, ...]:
    r"""The ways in which a cleaned ground truth writes one number: ``0.56 = 56\%`` is either, ``x = 5`` is one."""
    sides = [side.strip() for side in _SIDES.split(gold)]
    sides = [side for side in sides if side]
    numeric = all(read_number(_LOOSE_SPACE.sub("", side)) is not None for side in sides)
    return tuple(sides) if sides and numeric else (gold,)


# Names.

_GREEK = r"alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|varphi|omega|ell"
_LETTER = rf"(?:[A-Za-z]|\\(?:{_GREEK}))"
_INDEX = r"(?:_(?:[0-9A-Za-z]|\{[0-9A-Za-z, ]+\}))?'*"
_NAME = re.compile(
    rf"{_LETTER}{_INDEX}|\\text ?\{{[A-Za-z ]+\}}{_INDEX}|[A-Z]?[a-z]{{3,}}|(?:\\angle|\\triangle)? ?[A-Z]{{1,3}}"
)
_EQUALS = re.compile(r" ?(?:=|\\approx(?![A-Za-z])|:(?=[^=])) ?")


def named_values(text: str) -> list[Pair] | None:
    """Name and value of each of several, as ``x=2, y=3`` and ``(x,y)=(2,3)`` write them; None if there is more."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2].strip()
    left, equals, right = text.partition("=")
    if equals and (names := in_brackets(left)) and (values := in_brackets(right)) and len(names) == len(values):
        pairs = list(zip(names, values, strict=True))
    else:
        parts = [_EQUALS.split(part) for part in split(text)]
        if any(len(part) != 2 for part in parts):
            return None
        pairs = [(part[1], part[0]) if not _NAME.fullmatch(part[0]) else (part[0], part[1]) for part in parts]
    pairs = [(name.strip(), value.strip()) for name, value in pairs]
    if not pairs or not all(_NAME.fullmatch(name) and value for name, value in pairs):
        return None
    return [(name.replace(" ", "").replace("{", "").replace("}", ""), value) for name, value in pairs]


def _named(gold: str, answer: str) -> list[Pair] | None:
    """The pairs that names make of it; an empty list if they contradict each other; None if there are none to heed."""
    truths, claims = named_values(gold), named_values(answer)
    if truths is None:
        return None if claims is None else _unnamed_gold(gold, claims)
    names = [name for name, _ in truths]
    if len(names) == 1:
        return _one_name(truths[0], claims, gold, answer)
    if len(set(names)) == 1:  # the solutions of one variable, in any order
        if claims is not None and {name for name, _ in claims} != set(names):
            return []
        return [(_listed(truths), _listed(claims) if claims is not None else answer), (gold, answer)]
    if len(set(names)) < len(names):
        return None
    order = [value for _, value in truths]
    if claims is not None:
        found = dict(claims)
        if len(claims) != len(names) or set(found) != set(names):
            return []
        return [(_tuple(order), _tuple([found[name] for name in names]))]
    values = (
        in_brackets(answer)
        if answer[:1] == "("
        else []
        if answer[:1] in ("\\", "[") and not answer[1:2].isalpha()
        else split(answer)
    )
    return [(_tuple(order), _tuple(values))] if values and len(values) == len(order) else []


def _one_name(truth: Pair, claims: list[Pair] | None, gold: str, answer: str) -> list[Pair] | None:
    """``x=5`` is met by 5 and by ``x=5``, not by ``y=5``; an equation with letters on both sides is for the algebra."""
    name, value = truth
    if claims is None:
        return [(gold, answer)] if _COMPARES.search(answer) else [(value, answer), (gold, answer)]
    if len(claims) == 1 and claims[0][0] == name:
        return [(value, claims[0][1]), (gold, answer)]
    return [] if len(claims) > 1 or not re.search("[A-Za-z]", value + claims[0][1]) else None


def _unnamed_gold(gold: str, claims: list[Pair]) -> list[Pair] | None:
    """A point is met by its coordinates' names in alphabetical order, a list and a value by any names."""
    names = [name for name, _ in claims]
    if _COMPARES.search(gold):
        return None
    if len(names) == 1:
        return [(gold, claims[0][1])]
    point = in_brackets(gold) if gold[:1] == "(" else None
    if point and len(set(names)) == len(names):
        return [(_tuple(point), _tuple([value for _, value in sorted(claims)]))]
    return [(gold, _listed(claims))]


def _listed(pairs: Sequence[Pair]) -> str:
    return ", ".join(value for _, value in pairs)


def _tuple(values: Sequence[str]) -> str:
    return f"({', '.join(values)})"


def in_brackets(text: str) -> list[str] | None:
    """The parts of ``(a, b)``; None if it is not one pair of round brackets around two parts or more."""
    text = text.strip()
    if text[:1] != "(" or text[-1:] != ")":
        return None
    parts = split(text[1:-1])
    return parts if len(parts) > 1 else None


def split(text: str) -> list[str]:
    r"""The parts between commas, semicolons and ``\\`` that stand in no bracket of any kind."""
    parts, depth = [""], 0
    for token in _BRACKET.findall(text):
        if token in ("(", "[", "{", r"\{", r"\begin"):
            depth += 1
        elif token in (")", "]", "}", r"\}", r"\end"):
            depth -= 1
        elif depth == 0 and token in (",", ";", r"\\"):
            parts.append("")
            continue
        parts[-1] += token
    return [part.strip() for part in parts]


# Options.

_OPTION = re.compile(
    r"(?:[(\[] ?(?:\\text ?\{ ?)?([A-J])(?: ?\})? ?[)\]]|(?:(?i:option|choice|answer) )\(?([A-J])\)?"
    r"|([A-J])(?=[.):]|$)) ?[.):]? ?(.*)",
    re.DOTALL,
)
_LABELLED_TEXT = re.compile(
    r" ?\\text ?\{ ?((?:(?i:option|choice|answer) )?(?:\([A-J]\)|\[[A-J]\]|[A-J][.):])[.:]?) ?(?=[^ }])"
)
_SET_AS_TEXT = re.compile(r"\\text ?\{ ?((?:(?i:option|choice|answer) )?[(\[]?[A-J][)\].:]* ?)\}")


def option(text: str) -> Pair | None:
    r"""The label and the content of ``(A) 5``, ``A. 5``, ``\text{A. 5}``, ``\text{(A)}``, ``Option A``, the content
    without its unit; None if it is no option's."""
    text = _LABELLED_TEXT.sub(r"\1 \\text{", text, count=1) if _LABELLED_TEXT.match(text) else text
    match = _OPTION.fullmatch(_SET_AS_TEXT.sub(r"\1 ", text).strip())
    return (match[1] or match[2] or match[3], without_units(match[4].strip())) if match else None


def _options(gold: str, answer: str) -> list[Pair] | None:
    """The label decides where both have one, else the content. None if there is no option to heed."""
    truth, claim = option(gold), option(answer)
    if truth is not None and truth[1]:
        if claim is None:
            return [(truth[1], answer), (gold, answer)]
        return _same_option(truth, claim)
    if truth is not None and claim is not None:
        return [(truth[0], claim[0])] if not claim[1].startswith(",") else [(gold, answer)]
    if truth is None and claim is not None and claim[1]:
        return [(gold, answer), (gold, claim[1])]
    return None


def _same_option(truth: Pair, claim: Pair) -> list[Pair]:
    if truth[0] != claim[0]:
        return []
    return [(truth[1], claim[1])] if claim[1] else [(truth[0], claim[0])]
