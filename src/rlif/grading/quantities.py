r"""A number and what stands behind it: `without_units` takes off what `rlif.grading.units` knows to be a unit.

Part of `rlif.grading.normalize`; every step is linear in the length of the text.
"""

import re
from functools import cache

from rlif.grading.citations import without_citations
from rlif.grading.numerals import NUMBER
from rlif.grading.units import CURRENCIES, GLUED, LETTERS, is_unit

_TEXT = re.compile(r"\\text ?\{((?:[^{}]|\^\{-?[0-9]\})*)\}")
_TEXT_AT_END = re.compile(
    r"(?P<text>\\text ?\{(?:[^{}]|\^\{-?[0-9]\})*\})"
    r"|(?P<joint>\^(?:\{-?[0-9]\}|[0-9])|/|\\cdot(?![A-Za-z])| )|(?P<other>.)"
)
_FLAT_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_UNIT_FRACTION = re.compile(rf" ?\\frac ?(?=\{{ ?\\text){_FLAT_GROUP} ?{_FLAT_GROUP}$")
_UNIT_LETTERS = {r"\mu": "μ", r"\Omega": "Ω"}
_GLUED = re.compile(r"([A-Za-zμłč]+)(?:/[A-Za-z]+)?(?:\^(?:[0-9]|\{-?[0-9]\}))?")
_PART = re.compile(r", (?=[-+]?[0-9.])|(?<==) ?")


_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


@cache
def _quantity() -> re.Pattern[str]:
    """A number with its sign; compiled when first needed, as it takes a while."""
    return re.compile(rf"[-+]? ?{NUMBER}")


def without_units(text: str) -> str:
    """Numbers, each without its unit, where a text is numbers; a last unit in ``\\text{}`` behind anything else."""
    parts = _PART.split(text) if "," in text or "=" in text else [text]
    joints = _PART.findall(text) if len(parts) > 1 else []
    text = "".join(_bare_quantity(part) + joint for part, joint in zip(parts, [*joints, ""], strict=True))
    return _without_last_unit(text)


def _bare_quantity(text: str) -> str:
    if _PLAIN.fullmatch(text):  # most answers are
        return text
    boxed = _TEXT.fullmatch(text)
    number = _quantity().match(boxed[1].strip() if boxed else text)
    rest = number.string[number.end() :] if number else ""
    if not number or not rest.strip():
        return text
    tail = without_citations(rest)
    if not tail:
        return number[0]
    flat, upright = _flat(tail)
    glued = tail[0].isascii() and tail[0].isalpha()
    if glued and not ((unit := _GLUED.fullmatch(flat)) and unit[1] in GLUED | CURRENCIES):
        return text
    return number[0] if is_unit(flat, upright=upright, one=_at_most_one(number[0])) else text


def _without_last_unit(text: str) -> str:
    if r"\text" not in text:
        return text
    begin = None
    for token in _TEXT_AT_END.finditer(text):
        if token["text"]:
            begin = token.start() if begin is None else begin
        elif token["other"]:
            begin = None
    if begin is None or not re.search(r"[0-9A-Za-z})] ?$", text[max(begin - 2, 0) : begin]):
        return text
    flat, upright = _flat(text[begin:])
    return text[:begin] if is_unit(flat, upright=upright, one=False) else text


def _flat(tail: str) -> tuple[str, bool]:
    r"""What stands behind a number, without ``\text{}`` and ``\frac{}{}``; whether all its letters were in them."""
    tail = _UNIT_FRACTION.sub(r" \1/\2", tail)
    for name, letter in _UNIT_LETTERS.items():
        tail = (
            tail.replace(rf"{name} ?\text{{", rf"\text{{{letter}")
            .replace(rf"{name}\text{{", rf"\text{{{letter}")
            .replace(name, letter)
        )
    tail = tail.replace("μ ", "μ")
    upright = not re.search(r"(?<!\\)\b[A-Za-z]", _TEXT.sub("", tail))
    return re.sub(r" ?([/^]) ?", r"\1", " ".join(_TEXT.sub(r" \1 ", tail).split())), upright


_WHOLE = re.compile(r"[-+ 0]*(?:1|)(?:\.0*)?|[-+ 0]*\.[0-9]*")
_PROPER = re.compile(r"[-+ ]*(?:\\frac ?\{?([0-9]{1,300})\}? ?\{?([0-9]{1,300})\}?|([0-9]{1,300})/([0-9]{1,300}))")


def _at_most_one(number: str) -> bool:
    if _WHOLE.fullmatch(number):
        return True
    fraction = _PROPER.fullmatch(number)
    return fraction is not None and int(fraction[1] or fraction[3]) <= int(fraction[2] or fraction[4])


_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTIONS = "sqrt pi sin cos tan cot sec csc log ln exp max min gcd lcm text begin end pmatrix bmatrix"


def words_behind_a_number(text: str) -> bool:
    """Whether a number has words behind it that are no unit (units are taken off already) and no function's name."""
    number = _quantity().match(text)
    words = _WORD.findall(text, number.end()) if number else ()
    return any(word not in _FUNCTIONS.split() for word in words)


def without_letter(text: str) -> str:
    """5 of ``5 m``, which may be a length or a product with a loose space. ``5m`` is a product, and stays."""
    number, space, letter = text.rpartition(" ")
    return number if space and letter in LETTERS and _quantity().fullmatch(number) else text
