r"""Numbers whose value reading alone can tell: decimals, fractions, mixed numbers, powers of ten, repeating decimals.

They are read from cleaned texts (`rlif.grading.normalize`), without loose space. Decimals are compared as text, exact
at any length, which int and float are not; the rest as fractions. No number is computed whose size an answer chooses:
exponents have three digits, everything else 300.

A decimal may stand for a number without an end, if it is that number rounded to the last place given: see `stands_for`.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

FIGURES = 6
"""Significant figures that a decimal needs to stand for a number without an end. Zeros at its end count."""

_DECIMAL = re.compile(r"([-+]?)((?:[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)?)(?:\.([0-9]*))?")
_INT = r"[0-9]{1,300}"
_PART = rf"(?:\{{ ?([-+]?{_INT}) ?\}}|([0-9]))"
_RATIONAL = re.compile(rf"([-+]?)(?:({_INT})(?: |(?=\\)))?(?:\\frac ?{_PART} ?{_PART}|({_INT})/({_INT}))")
_POWER = re.compile(r"([-+]?)(?:([0-9,.]{1,300})(?:\\times|\\cdot|\*))?10\^(?:\{([-+]?[0-9]{1,3})\}|([0-9]))")
_REPEATING = re.compile(rf"([-+]?)([0-9]{{0,300}})\.([0-9]{{0,300}})\\overline\{{({_INT})\}}")
_CUT = re.compile(rf"([-+]?)([0-9]{{0,300}})\.({_INT})\\ldots")
_BLOCK = re.compile(r"([0-9]{1,12}?)\1+")
_SHORT = 300
"""Digits of a decimal that is worth turning into a fraction."""


@dataclass(frozen=True)
class Number:
    """What a text says a number is."""

    value: Fraction
    percent: bool = False
    """Whether a sign of per cent follows; ``value`` is as written."""
    place: Fraction | None = None
    """What one unit of the last figure is worth, of a decimal: .01 of 0.25, 1000 of 1.25e5. None: no decimal."""
    figures: int = 0
    """Significant figures of a decimal."""
    cut: Fraction | None = None
    """Of a decimal that goes on (``1.414...``) the part that was written; ``value`` has its last block repeated."""

    def hundredth(self) -> "Number":
        """The same in units of one: 50 % is 1/2."""
        if not self.percent:
            return self
        place, cut = (part if part is None else part / 100 for part in (self.place, self.cut))
        return replace(self, value=self.value / 100, percent=False, place=place, cut=cut)


def decimal_digits(key: str) -> tuple[str, str, str] | None:
    """Sign, integer digits and decimals without superfluous zeros; None if ``key`` is no plain decimal."""
    match = _DECIMAL.fullmatch(key)
    if match is None or not (match[2] or match[3]):
        return None
    integer, decimals = match[2].replace(",", "").replace(" ", "").lstrip("0"), (match[3] or "").rstrip("0")
    return "-" if match[1] == "-" and (integer or decimals) else "", integer, decimals


def read_number(key: str) -> Number | None:
    r"""The number that ``key`` writes, if reading is enough: ``a/b``, ``\frac{a}{b}``, ``1\frac12``, ``a·10^n``."""
    bare = without_percent(key)
    number = _plain(bare) or _rational(bare) or _power(bare) or _repeating(bare) or _going_on(bare)
    return replace(number, percent=True) if number and bare is not key else number


def without_percent(key: str) -> str:
    """``key`` itself if there is no sign of per cent at its end."""
    return key.removesuffix("%").removesuffix("\\") if key.endswith("%") else key


def _plain(key: str) -> Number | None:
    digits = decimal_digits(key)
    if digits is None or len(digits[1]) + len(digits[2]) > _SHORT:
        return None
    sign, integer, decimals = digits
    value = Fraction(f"{sign}{integer or 0}.{decimals or 0}")
    written = len(key.partition(".")[2])
    if written > _SHORT:
        return Number(value)  # of zeros without an end
    return Number(value, False, Fraction(1, 10**written), len(re.sub("[^0-9]", "", key).lstrip("0")))


def _rational(key: str) -> Number | None:
    match = _RATIONAL.fullmatch(key)
    if match is None:
        return None
    sign, whole, *parts = match.groups()
    numerator, denominator = (int(part) for part in parts if part is not None)
    if denominator == 0 or (whole and not 0 < numerator < denominator):
        return None
    return Number((int(whole or 0) + Fraction(numerator, denominator)) * (-1 if sign == "-" else 1))


def _power(key: str) -> Number | None:
    match = _POWER.fullmatch(key)
    factor = _plain(match[2] or "1") if match else None
    if match is None or factor is None or factor.place is None:
        return None
    scale = Fraction(10) ** int(match[3] or match[4])
    value = factor.value * scale * (-1 if match[1] == "-" else 1)
    return Number(value, False, factor.place * scale, factor.figures) if match[2] else Number(value)


def _repeating(key: str) -> Number | None:
    match = _REPEATING.fullmatch(key)
    return None if match is None else Number(_repeated(*match.groups()))


def _repeated(sign: str, whole: str, once: str, again: str) -> Fraction:
    all_digits, first = int(whole + once + again), int(whole + once or 0)
    value = Fraction(all_digits - first, (10 ** len(again) - 1) * 10 ** len(once))
    return -value if sign == "-" else value


def _going_on(key: str) -> Number | None:
    r"""``0.333\ldots`` and ``1.41421\ldots``: a block at the end that was written more than once goes on for ever."""
    match = _CUT.fullmatch(key)
    if match is None:
        return None
    sign, whole, decimals = match.groups()
    cut = Fraction(f"{sign}{whole or 0}.{decimals}")
    figures = len((whole + decimals).lstrip("0"))
    block = _BLOCK.match(decimals[::-1])  # the shortest; a single digit has to be there three times, or be all there is
    if block is None or (len(block[1]) == 1 and len(block[0]) < min(3, len(decimals))):
        return Number(cut, False, Fraction(1, 10 ** len(decimals)), figures, cut)
    again = block[1][::-1]
    value = _repeated(sign, whole, decimals[: len(decimals) - len(again)], again)
    return Number(value, False, Fraction(1, 10 ** len(decimals)), figures, cut)


def same_number(gold: Number, answer: Number) -> bool:
    """Exactly the same, as written or with per cent as hundredths; a decimal may also stand for an endless fraction.

    As written, 50 for 50% is what was meant; below 1 a sign of per cent counts: 0.5 is not 0.5%.
    """
    pairs = [(gold.hundredth(), answer.hundredth())]
    if gold.percent == answer.percent or max(abs(gold.value), abs(answer.value)) >= 1:
        pairs.append((gold, answer))
    return any(
        left.value == right.value
        or (not ends(left.value) and stands_for(right, left.value))
        or (not ends(right.value) and stands_for(left, right.value))
        for left, right in pairs
    )


def ends(value: Fraction) -> bool:
    """Whether its decimals come to an end: no prime but 2 and 5 in the denominator."""
    return pow(10, 3 * value.denominator.bit_length(), value.denominator) == 0


def stands_for(decimal: Number, truth: Fraction) -> bool:
    """Whether a decimal is ``truth``, a number without an end, to the last place: rounded, or cut where it goes on.

    Half a unit of that place either way, and at least `FIGURES` figures. 108/19 is 5.68421, 5.684211, 5.6842105.
    """
    if decimal.place is None or decimal.figures < FIGURES:
        return False
    if decimal.cut is not None:
        further = (truth - decimal.cut) * (-1 if decimal.cut < 0 else 1)
        return 0 <= further < decimal.place
    return abs(truth - decimal.value) <= decimal.place / 2
