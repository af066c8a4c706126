r"""An answer without its packaging: characters, spacing, style, delimiters, currency, units. What is left is LaTeX.

`clean` puts a text through a table of small steps until none of them changes it: what one step lays bare, another takes
off (``5 \, \text{cm}``), and what is clean stays so. docs/grading.md says what counts as packaging.

Every step is linear in the length of the text, however hostile, and there are at most `_PASSES` rounds of them.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial

from rlif.grading.numerals import DIGITS, NUMBER, SCALE, SCALES
from rlif.grading.quantities import without_units
from rlif.grading.units import CURRENCIES, CURRENCY_LETTERS

_PASSES = 8

# Characters. One at a time, so that a text of any length is read in linear time.

_LOWER = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
)
_UPPER = "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega pi phi sigma theta"
_GREEK = {
    **dict(zip("αβγδεζηθικλμνξρστυφχψω", _LOWER.split(), strict=True)),
    **dict(zip("ΓΔΘΛΞΠΣΦΨΩπϕςϑ", _UPPER.split(), strict=True)),
}
_SIGNS = {
    **{letter: rf"\{name} " for letter, name in _GREEK.items()},
    **{
        "∞": r"\infty ",
        "×": r"\times ",
        "✕": r"\times ",
        "÷": "/",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≦": r"\le ",
        "≥": r"\ge ",
    },
    **{
        "⩾": r"\ge ",
        "≧": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "√": r"\sqrt ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "±": r"\pm ",
    },
    **{
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "°": r"^\circ ",
        "º": r"^\circ ",
        "˚": r"^\circ ",
        "∘": r"\circ ",
        "∗": "*",
        "…": "...",
    },
    **{
        "⁄": "/",
        "∕": "/",
        "∶": ":",
        "∣": "|",
        "。": ".",
        "、": ",",
        "′": "'",
        "’": "'",
        "−": "-",
        "˗": "-",
        "➖": "-",
        "∼": r"\sim ",
    },
    **{
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℚ": r"\mathbb{Q}",
        "ℂ": r"\mathbb{C}",
        "∖": r"\setminus ",
    },
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("⟨〈", r"\langle "),
    **dict.fromkeys("⟩〉", r"\rangle "),
}


class _Characters(dict[int, str]):
    """What each character is read as, found out when first seen."""

    def __missing__(self, code: int) -> str:
        self[code] = read = self._read(chr(code))
        return read

    def _read(self, character: str) -> str:
        category = unicodedata.category(character)
        if character in _SIGNS:
            return _SIGNS[character]
        if category == "Nd":
            return str(unicodedata.decimal(character))
        if category in ("Cc", "Zs", "Zl", "Zp"):
            return " "
        if category == "Cs":
            return "\ufffd"  # half a character: no file could store it
        if category == "Cf" or "\ufe00" <= character <= "\ufe0f":
            return ""  # of no width: marks of order and direction, joiners, variants
        if category == "Pd":
            return "-"
        if category == "Sc" and character not in "$":
            return r"\$"
        form, _, plain = unicodedata.decomposition(character).partition("> ")
        if not plain or character in "\u0305\u0307":
            return character
        plain = "".join(chr(int(part, 16)) for part in plain.split())
        if form == "<super":
            return f"^{{{plain.translate(self)}}}"
        if form == "<sub":
            return f"_{{{plain.translate(self)}}}"
        if form == "<fraction":
            return rf"\frac{{{plain.translate(self).replace('/', '}{')}}}"
        return plain.translate(self)  # full width, mathematical, squared and other such variants


_CHARACTERS = _Characters()
_RAISED, _LOWERED = "[¹²³⁰-⁹⁺⁻ⁿⁱ]", "[₀-₉₊₋]"
_SCRIPTS = re.compile(rf"(?P<over>[¹²³⁰-⁹]+)[⁄∕/](?P<under>[₀-₉]+)|(?P<up>{_RAISED}+)|(?P<down>{_LOWERED}+)")


def _plain(text: str) -> str:
    """ASCII and words on one line: digits of any script, signs as LaTeX, nothing of no width."""
    return " ".join(_SCRIPTS.sub(_script, text).translate(_CHARACTERS).split())


def _script(run: re.Match[str]) -> str:
    """Raised signs in a row are one exponent; a raised minus alone is a minus."""
    if run["over"]:
        return rf"\frac{{{_unraised(run['over'])}}}{{{_unraised(run['under'])}}}"
    plain = _unraised(run[0])
    if plain in "+-":
        return plain
    return f"{'^' if run['up'] else '_'}{{{plain}}}"


def _unraised(run: str) -> str:
    return unicodedata.normalize("NFKC", run).replace("\u2212", "-")


# LaTeX that decides how an answer looks, not what it is.

_NO_LETTER = "(?![A-Za-z])"
_DIMENSION = r"-?[0-9.]+ ?(?:pt|em|ex|mm|cm|in|mu|pc|bp|sp)"
_SPACING = re.compile(
    r"(?P<kept>\\\\)|(?P<none>\\[!/-])"
    r"|\\[,;:> ]|~|\\(?:q?quad|en(?:space|skip)|(?:neg)?(?:thin|med|thick)space|hfill?|null|strut|mathstrut|relax"
    rf"|allowbreak|nobreak|noindent|newline|space){_NO_LETTER}"
    rf"|\\(?:hspace|vspace|mspace)\*? ?\{{[^{{}}]*\}}|\\(?:hskip|kern|mkern|mskip) ?{_DIMENSION}"
    r"|\\[vh]?phantom ?(?:\{[^{}]*\}|[^\\{}])"
)
_DECLARATIONS = (
    r"(?:display|text|script|scriptscript)style|(?:no)?limits|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge"
    r"|Huge|bf|it|rm|sf|tt|sl|sc|em|cal|bfseries|itshape|rmfamily|sffamily|ttfamily|mdseries|upshape|normalfont|boldmath|centering"
    r"|nonumber|notag"
)
_WRAPPERS = (
    r"boldsymbol|bm|mathbf|pmb|bold|mathit|mathsf|mathtt|mathnormal|uu?line|underline|underbar|uwave|ensuremath|boxed|fbox"
    r"|smash|vcenter|math(?:ord|op|rel|bin|inner|open|close|punct)|[rlc]lap|math[rlc]lap"
)
_WITH_A_SETTING = (
    r"(?:text|math)?color|colorbox|fcolorbox ?\{[^{}]*\}|resizebox ?\{[^{}]*\}|(?:scale|rotate|raise|par)box|href|style"
    r"|class|cssId|html(?:Class|Id|Style|Data)"
)
"""Commands of a setting and what it is for: a colour, a size, a link."""
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_TEXT_FONTS = r"textnormal|textrm|textbf|textit|textsf|texttt|textsc|textup|textmd|mbox|hbox|emph"
_BOX = r"\\text ?\{"
_DEGREES = r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|\\(?:degree|textdegree)(?![A-Za-z])"
_CODE = rf"(?:(?:{'|'.join(sorted(CURRENCIES))}|Rs|RM|Rp)\.?|(?:{'|'.join(sorted(CURRENCY_LETTERS))})(?:[. ]|(?=\}})))"
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_ANGLE = re.compile(rf"({DIGITS})( ?(?:{_DEGREES}))?")  # any number is one, so that none is read twice

Step = Callable[[str], str]
Replacement = str | Callable[[re.Match[str]], str]


def _spacing(found: re.Match[str]) -> str:
    return found["kept"] or ("" if found["none"] else " ")


def _scale(found: re.Match[str]) -> str:
    return rf"\cdot 10^{{{SCALES[found[2]]}}}" + (found[1] or "")


_STYLE: tuple[tuple[re.Pattern[str], Replacement], ...] = (
    (re.compile(r"(?<=[0-9]) ?(?:,\\!|\\,|\{,\}|\{\\,\}|~) ?(?=[0-9]{3}(?![0-9]))"), ""),  # a thousands separator
    (re.compile(r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"(?<=[0-9]) ?\\! ?: ?\\! ?(?=[0-9])"), ":"),
    (re.compile(r"\\\\ ?\[[0-9.]+ ?[a-z]{2}\]"), r"\\\\"),  # the distance between two lines of a matrix
    (_SPACING, _spacing),
    (re.compile(r"(?<!\\)((?:\\\\)*)\\$"), r"\1"),  # half of a control space
    (re.compile(r"(?<!\\)(?:\\\\)+ ?$"), ""),  # an end of a line
    (re.compile(r" +"), " "),
    (re.compile(r" ?([\^_]) ?"), r"\1"),
    (re.compile(r"(?<!\\)\{ | (?=\})"), lambda found: found[0].strip()),
    (re.compile(r"(?<=[\w)}])\*\*(?=[\w({])"), "^"),
    (re.compile(r"(?<!\\)\\[()\[\]]|\*\*|^\\approx(?![A-Za-z])"), ""),  # maths delimiters, bold
    (
        re.compile(
            rf"\\(?:pounds|euro|texteuro|textsterling|textyen|yen|textcent|cent|textdollar|rupee|textwon){_NO_LETTER}"
        ),
        r"\\$",
    ),
    (
        re.compile(
            r"\\?\$ ?(?:\{\})?|(?<![A-Za-z])(?:US|CA?|AU?|HK|NT|NZ|MX|S|R)\\?\$"
            rf"|^([-+]?) ?(?:{_BOX} ?)?{_CODE} ?\}}? ?(?=[-+.0-9])"
        ),
        r"\1",
    ),
    (re.compile(r"\\(?:left|right) ?\.(?![0-9])"), ""),
    (re.compile(rf"\\(?:left|right|middle|[bB]igg?[lrm]?){_NO_LETTER} ?"), ""),
    (re.compile(rf"\\(?:{_WITH_A_SETTING}) ?(?:\[[^\[\]{{}}]*\])? ?\{{[^{{}}]*\}} ?"), ""),
    (re.compile(rf"\\(?:framebox|makebox|bbox){_NO_LETTER} ?(?:\[[^\[\]{{}}]*\] ?){{0,2}}"), ""),
    (re.compile(rf"\\(?:under|over)(?:brace|bracket) ?{_GROUP}(?: ?[_^] ?(?:{_GROUP}|[0-9A-Za-z]))?"), r"{\1}"),
    (re.compile(r"\\operatorname\*? ?(?=\{ ?[-+.]?[0-9])"), ""),
    (re.compile(r"\\(?:tag\*?|label) ?\{[^{}]*\}"), ""),  # the number of an equation
    (re.compile(rf"\\(?:{_DECLARATIONS}){_NO_LETTER} ?"), " "),
    (re.compile(rf"\\(?:{_WRAPPERS}){_NO_LETTER} ?"), ""),
    (re.compile(rf"\\(?:{_TEXT_FONTS}){_NO_LETTER} ?"), r"\\text"),
    (re.compile(r"\\mathrm ?\{ ?([ei]) ?\}"), r" \1"),
    (re.compile(rf"\\mathrm{_NO_LETTER} ?"), r"\\text"),
    (re.compile(rf"{_BOX} ?([,;]) ?\}}"), r"\1 "),
    (re.compile(rf"{_BOX} ?{_BOX}([^{{}}]*)\}} ?\}}"), r"\\text{\1}"),
    (re.compile(rf"^{_BOX} ?(\\frac.*)\}}$"), r"\1"),
    (re.compile(rf"{_BOX} ?\}}|\{{\}}"), ""),
)
_NOTATION: tuple[tuple[re.Pattern[str], Replacement], ...] = (
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac ?(\\(?:pi|alpha|beta|theta)) ?([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\^ ?(-[0-9]+)"), r"^{\1}"),
    (
        re.compile(r"\\sqrt ([0-9]+(?:\.[0-9]+)?)|\\sqrt ?\(([^(){}]*)\)"),
        r"\\sqrt{\1\2}",
    ),  # of a sign √, whose root is a whole number's
    (re.compile(r"(?<![A-Za-z\\])(?:pi)(?![A-Za-z])"), r"\\pi"),
    (re.compile(r"(?<![A-Za-z\\])(?:oo|infinity|infty)(?![A-Za-z])"), r"\\infty"),
    (re.compile(r"(?<![0-9A-Za-z)}\]])\+ ?(?=\\infty)"), ""),
    (re.compile(r"^\\begin ?\{(?:cases|aligned|gathered)\}|\\end ?\{(?:cases|aligned|gathered)\}$"), ""),
    (re.compile(r"\\varnothing|^\\\{ ?\\\}$"), r"\\emptyset"),
    (re.compile(r"^\\\{ ?[A-Za-z] ?(?:\\mid|\||:)([^{}|:]*)\\\}$"), r"\1"),  # {x | 1 < x < 3}
    (re.compile("(?:[0-9][\u0305\u0307])+"), lambda run: rf"\overline{{{run[0][::2]}}}"),  # combining signs
    (re.compile(rf"(?:\\[lc]?dots[bc]?{_NO_LETTER}|\.{{3,}}) ?"), r"\\ldots "),
    (re.compile(r"(\.[0-9]*)\\dot ?\{?([0-9])\}?([0-9]*)\\dot ?\{?([0-9])\}?"), r"\1\\overline{\2\3\4}"),
    (re.compile(r"(\.[0-9]*)\\(?:bar|dot|overline) ?(?:\{ ?([0-9]+) ?\}|([0-9]))"), r"\1\\overline{\2\3}"),
    (re.compile(r"(\.[0-9]*)\(([0-9]+)\)"), r"\1\\overline{\2}"),
    (re.compile(rf"(?:{_DEGREES}) ?(?:{_BOX})? ?[CFK](?![A-Za-z])\}}?"), " "),  # a temperature
    (re.compile(_DEGREES), ""),
    (re.compile(rf",? ?{_BOX} ?,? ?(?:and|or) ?,? ?\}} ?,? ?|(?:,|(?<=[^A-Za-z ,{{])) ?(?:and|or) "), ", "),
    (re.compile(r"^(\(?[A-Z]\)?(?:, ?\(?[A-Z]\)?)*),? ?(?:and|or) (?=\(?[A-Z]\)?$)"), r"\1, "),  # options
    (re.compile(rf"(?<=[0-9]) ?({_BOX})? ?({SCALE}) ?"), _scale),
    (re.compile(rf"(?<=[0-9}})]) ?(?:{_BOX} ?(?:percent|per cent|pct) ?\}}|(?:percent|per cent|pct)$|\\?%)"), r"\\%"),
    (re.compile(rf"^([-+]?{DIGITS})[eE]([-+]?[0-9]+)$"), r"\1\\cdot 10^{\2}"),
)


def clean(text: str) -> str:
    r"""An answer without its packaging: style, delimiters, currency, spacing, degrees, units, a final full stop.

    What is left is LaTeX for the same thing, on one line. Degrees under a sine become radians: there they count.
    """
    text = _plain(text)
    for _ in range(_PASSES):
        before = text
        for step in _STEPS:
            text = step(text)
        if text == before:
            break
    return text


def _replaced(text: str, table: tuple[tuple[re.Pattern[str], Replacement], ...]) -> str:
    for pattern, replacement in table:
        text = pattern.sub(replacement, text)
    return text


@cache
def _boxed_number() -> re.Pattern[str]:
    """Compiled when first needed, as it takes a while."""
    return re.compile(rf"^{_BOX} ?([-+]? ?{NUMBER}) ?\}}")


def _number_as_text(text: str) -> str:
    """The answer itself set as text."""
    return _boxed_number().sub(r"\1 ", text) if text.startswith(r"\text") else text


def _in_radians(text: str) -> str:
    """sin 30° is not sin 30."""
    if not _TRIGONOMETRY.search(text):
        return text
    return _ANGLE.sub(lambda angle: rf"({angle[1]} \cdot \frac{{\pi}}{{180}})" if angle[2] else angle[0], text)


# Groups that hold nothing together.

_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)?|[{}]|[^\\{}]+")
_SINGLE = re.compile(r" ?(?:[0-9A-Za-z]|\\[A-Za-z]+) ?")


def _ungrouped(text: str) -> str:
    r"""Without braces around what is no argument: ``{5}`` is 5. ``{x+1}^2`` keeps its own."""
    if "{" not in text:
        return text
    pieces: list[str] = []
    open_groups: list[tuple[int, int, bool]] = []  # of each: place among the pieces and in the text, is it an argument
    argument = False  # whether a group would be one here
    for token in _TOKEN.finditer(text):
        piece = token[0]
        pieces.append(piece)
        if piece == "{":
            open_groups.append((len(pieces) - 1, token.end(), argument))
            argument = False
        elif piece == "}":
            place, begin, argument = open_groups.pop() if open_groups else (-1, 0, False)
            raised = text[token.end() : token.end() + 1] in ("^", "_")
            if place >= 0 and not argument and (not raised or _SINGLE.fullmatch(text, begin, token.start())):
                pieces[place] = pieces[-1] = " "
        elif piece[0] == "\\":
            argument = piece[1:].isalpha()
        elif not piece.isspace():
            argument = piece.rstrip()[-1] in "^_]"
    return "".join(pieces)


def _trimmed(text: str) -> str:
    """Without the marks of Markdown around it, and a final full stop."""
    return text.strip("*_` ").rstrip(".,;: ")


_STEPS: tuple[Step, ...] = (
    partial(_replaced, table=_STYLE),
    _number_as_text,
    _ungrouped,
    _in_radians,
    partial(_replaced, table=_NOTATION),
    without_units,
    _trimmed,
)
