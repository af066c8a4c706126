r"""The one grammar of a number as text and LaTeX write it, for what finds answers and for what reads them.

Pieces of regular expressions, to be put together: no piece has a group that captures, and no sign unless it says so.
Digits are those of any script: `plain_digits` turns them into 0 to 9, ½ into 1/2 and ⁵ into ^{5}.

Matching at one place is linear in the length of the text, for every piece. Searching is so for `NUMBER` and `DIGITS`,
which take the digits they see in any case; others would see them again from the next digit on.
"""

import re
import unicodedata

MINUS_SIGNS = "-\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d\u207b"
"""Hyphen-minus, minus, hyphens, figure dash, en dash, and the small, full-width and raised minus."""
MINUS = rf"[{MINUS_SIGNS}]"
SIGN = rf"(?:(?<![\w)\]}}!%°])(?:[{MINUS_SIGNS}+±]|\\pm ?))?"
"""A sign, or nothing. After an operand it is no sign but a subtraction, or a hyphen: 10-5, A-4."""

_SEPARATORS = (
    ",",
    r"\{,\}",
    r",\\! ?",
    r"\\,",
    r"\{\\,\}",
    r"\\[;: ]",
    r"\\thinspace ?",
    "~",
    "[ \u00a0\u2007\u2008\u2009\u202f]",
    "['\u2019]",
)
"""What stands between groups of three digits; one kind in a number."""
_GROUPS = "|".join(rf"(?:{separator}\d{{3}})+" for separator in _SEPARATORS)
_GROUPED = rf"\d{{1,3}}(?:{_GROUPS})(?!\d)"
INTEGER = rf"(?:{_GROUPED}|\d+)"
"""Without a sign, perhaps with thousands separators: 9500, 9,500, 9{,}500, 9\\,500, 9 500, 9'500."""
DIGITS = rf"(?:{INTEGER}(?:\.\d+)?|\.\d+)"
"""A decimal without a sign, perhaps with thousands separators."""
REPEATING = (
    r"(?:\d*\.\d*(?:\\(?:overline|bar|dot) ?(?:\{ ?\d+ ?\}|\d)|\(\d+\))"
    r"|\d*\.\d{2,}(?:\.\.\.|…|\\[lc]?dots(?![A-Za-z])))"  # three dots
)
r"""``0.\overline{3}``, ``0.1(6)``, ``0.333...``; not signed."""

SCALES = {
    **{"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12},
    **{"quadrillion": 15, "lakh": 5, "crore": 7},
}
"""Words for powers of ten, and their exponents."""
SCALE = rf"(?:{'|'.join(SCALES)})\b"
PERCENT = r"(?:\\?[%％]|(?:percent|per cent|pct)\b)"

PI = r"(?:\\pi(?![A-Za-z])|π|pi\b)"
ROOT = rf"(?:\\sqrt ?(?:\[\d+\] ?)?(?:\{{ ?{DIGITS} ?\}}|\d)|√ ?(?:{DIGITS}|\({DIGITS}\)))"
_TIMES = r"(?: ?(?:\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|[*×·⋅]) ?|\\, ?| ?)"
TERM = rf"(?:(?:{DIGITS}{_TIMES})?{ROOT}(?:{_TIMES}{PI})?|{DIGITS}(?:{_TIMES}{PI})?|{PI}(?:{_TIMES}{ROOT})?)"
r"""A decimal times a root times π, at least one of them: ``5``, ``2\sqrt{3}``, ``12\pi``, ``√2``; not signed."""

_VULGAR_SIGNS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_PART = rf"(?:\{{ ?{MINUS}?{TERM} ?\}}|\d|{PI})"
LATEX_FRACTION = rf"(?:\\[dtc]?frac(?: ?{_PART}){{2}})"
r"""``\frac{a}{b}``, ``\tfrac12``, ``\dfrac{\pi}{2}``, ``\frac{-\sqrt{3}}{2}``."""
VULGAR = rf"[{_VULGAR_SIGNS}]"
MIXED = rf"(?:{INTEGER}(?: ?{VULGAR}|(?:\\[,; ]| )?{LATEX_FRACTION}| \d+[/⁄]\d+(?![\d/])))"
r"""``1\frac12``, ``1 1/2``, ``1½``: a whole number and a fraction; not signed."""
_FRACTION = rf"(?:(?:{VULGAR}|{LATEX_FRACTION})(?:{_TIMES}{ROOT})?(?:{_TIMES}{PI})?)"

_EXPONENT_DIGITS = rf"{MINUS}?{DIGITS}(?:/\d+)?"
EXPONENT = (
    rf"(?:(?:\^|\*\*) ?"
    rf"(?:\{{ ?(?:{_EXPONENT_DIGITS}|{MINUS}?{LATEX_FRACTION}) ?\}}|\( ?{_EXPONENT_DIGITS} ?\)|{MINUS}?\d+)"
    rf"|[⁻⁺]?[{_RAISED}]+)"
)
"""Of a power, with its caret: ^3, ^{10}, **2, ^(1/2), ⁻⁵."""
_TIMES_TEN = r"(?: ?(?:\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|[*×·⋅x]) ?10)"
POWER = (
    rf"(?:(?:{DIGITS}{_TIMES_TEN}?|\( ?{MINUS}?{DIGITS} ?\)) ?{EXPONENT}"
    rf"|{DIGITS}[eE][-+−]?\d+(?![^\W_]))"
)
r"""``2^{10}``, ``(-3)^2``, ``3 \times 10^5``, ``3e5``; else not signed."""

NUMBER = (
    rf"(?:(?:{POWER}|{MIXED}|{_FRACTION}|{REPEATING}|{TERM}(?:[/⁄]{TERM}(?![\d/]))?)"
    rf"(?:(?: |\\, ?){SCALE}|\s?{PERCENT})?)"
)
"""Any number as it stands in a text, with its power of ten in words or its sign of per cent; without its own sign."""

_DIGIT_TABLE = {
    code: str(unicodedata.digit(chr(code))) for code in range(0x660, 0x1FBFA) if unicodedata.category(chr(code)) == "Nd"
}
_VULGAR_OR_RAISED = re.compile(rf"(?P<whole>(?<=\d) ?)?(?P<vulgar>[{_VULGAR_SIGNS}])|[⁻⁺]?[{_RAISED}]+")
_RAISED_TABLE = str.maketrans(_RAISED + "⁻⁺", "0123456789-+")


def plain_digits(text: str) -> str:
    """The same text with digits 0 to 9: those of other scripts and full width, ½ as 1/2, 1½ as 1 1/2, ⁵ as ^{5}."""
    return _VULGAR_OR_RAISED.sub(_spelled, text.translate(_DIGIT_TABLE))


def _spelled(sign: re.Match[str]) -> str:
    if sign["vulgar"]:
        fraction = unicodedata.normalize("NFKD", sign["vulgar"]).replace("\u2044", "/")
        return f" {fraction}" if sign["whole"] is not None else fraction
    return f"^{{{sign.group().translate(_RAISED_TABLE)}}}"
