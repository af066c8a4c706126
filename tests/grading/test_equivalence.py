"""What equals what: cases judged by hand; every MATH-500 answer, rewritten and beside wrong neighbours; any text."""

import json
import re
import time
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif.grading import citations, equivalence, extraction, normalize, quantities, rationals, readings, units
from rlif.grading.equivalence import compare_quickly
from rlif.grading.grader import Grader
from rlif.grading.normalize import clean

FIXTURES = Path(__file__).parents[1] / "fixtures"
DATA = Path(__file__).parents[3] / "shared" / "data" / "math500.jsonl"


def read(name: str) -> list:
    return [json.loads(line) for line in (FIXTURES / name).read_text("utf-8").split("\n") if line]


CASES = read("equivalence_cases.jsonl")
KINDS = read("equivalence_kinds.jsonl")
MATH500 = read("math500_answers.jsonl")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(time_limit=60.0) as grader:  # generous: these cases test meaning, and machines may be busy
        yield grader


def right(grader: Grader, answer: str, gold: str) -> bool | None:
    return grader.grade(rf"So it is \boxed{{{answer}}}.", gold, format="boxed", row_id="row").right


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['gold']} {case['answer']}")
def test_case(grader: Grader, case: dict) -> None:
    assert right(grader, case["answer"], case["gold"]) is case["right"]


@pytest.mark.parametrize("case", KINDS, ids=lambda case: f"{case['kind']} {case['gold']}")
def test_kind(grader: Grader, case: dict) -> None:
    """Whole families of spellings of one ground truth, and what only looks like it."""
    expected = dict.fromkeys(case["right"], True) | dict.fromkeys(case["wrong"], False)
    verdicts = {answer: right(grader, answer, case["gold"]) for answer in expected}
    assert {answer: verdict for answer, verdict in verdicts.items() if verdict is not expected[answer]} == {}


ANOTHER_NUMBER = {
    "10": ("10 doz", "10 doz.", r"10\text{ doz}"),
    "5": (
        *(f"5 {prefix}illion{end}" for prefix in ("m", "quadr", "quint", "oct", "dec") for end in ("", "s", "ths")),
        *("5 quarters", "5 logarithms", "5 lcm", "5 arctan"),
    ),
    "1": (
        *("1 octillion", "1 quadrillionth", "1 billionth", "1 quarter", "1 doz", "1 cot", "1 csc", "1 arctan", "1 gcd"),
        *("1 iff odd", "1 iff $n$ is odd", "1 false", "1 true", "1 wrong", r"1\text{ false}", r"1 \text{ quarter}"),
    ),
    "0": ("0 undefined", "0 unknown"),
}
COUNTS = {
    "4": (
        *("4 solution", "4 real solution", r"4\text{ solution}", "4 person", "4 child", "4 apple", "4 quarts"),
        *("4 student in the class", "4 wrong answers", "4 unknown sides", "4 sec", "4 min"),
    ),
    "1": ("1 solution", "1 apple", "1 right angle", "1 false statement"),
}


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [(gold, answer, False) for gold, answers in ANOTHER_NUMBER.items() for answer in answers]
    + [(gold, answer, True) for gold, answers in COUNTS.items() for answer in answers],
)
def test_a_word_behind_a_number_counts_or_makes_another_one(
    grader: Grader, gold: str, answer: str, expected: bool
) -> None:
    assert right(grader, answer, gold) is expected


GUIDE = (Path(__file__).parents[2] / "docs" / "grading.md").read_text("utf-8")
DISAGREEMENTS = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (right|wrong) \|", GUIDE, flags=re.MULTILINE)


@pytest.mark.parametrize(("gold", "answer", "verdict"), DISAGREEMENTS)
def test_a_disagreement_of_the_guide_is_one(grader: Grader, gold: str, answer: str, verdict: str) -> None:
    truth, claim = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in (gold, answer))
    alone = math_verify.verify(truth, claim, timeout_seconds=None)
    assert right(grader, answer, gold) is (verdict == "right")
    assert alone is not (verdict == "right")


def test_the_guide_names_disagreements() -> None:
    assert len(DISAGREEMENTS) > 20


def test_long_numbers_are_compared_to_the_last_digit(grader: Grader) -> None:
    assert right(grader, "9" * 5000 + ".0", "9" * 5000) is True  # longer than int() takes
    assert right(grader, "1" + "0" * 4999, "1" + "0" * 5000) is False


# MATH-500: each answer belongs to a family, which says how else it may be written and what only looks like it.
# The verdicts follow from the arithmetic written here; nothing of rlif is called to find them.

Forms = tuple[list[str], list[str]]
"""What is right, and what is wrong."""


def integer(text: str) -> Forms | None:
    if not re.fullmatch(r"-?[0-9]+", text):
        return None
    n = int(text)
    same = [
        f"{n}.0",
        f"${n}$",
        f"x = {n}",
        rf"{n}\text{{ units}}",
        f"{n:,}",
        f"{n:,}".replace(",", r",\!"),
        rf"\frac{{{2 * n}}}{{2}}",
    ]
    return same, [str(n + 1), str(n - 1), f"{n}.5", f"{n}1", *([str(-n)] if n else [])]


def decimal(text: str) -> Forms | None:
    if not re.fullmatch(r"(\\\$)?[0-9]*(,(\\! ?)?[0-9]{3})*(\.[0-9]+)?", text):
        return None
    value = Fraction(re.sub(r"[^0-9.]", "", text))
    p, q = value.numerator, value.denominator
    same = [
        rf"\frac{{{p}}}{{{q}}}",
        f"{p}/{q}",
        f"${text}$",
        rf"\frac{{{3 * p}}}{{{3 * q}}}",
        f"{text}\\text{{ units}}",
    ]
    return same, [rf"\frac{{{p + 1}}}{{{q}}}", rf"-\frac{{{p}}}{{{q}}}", f"{text}1" if "." in text else f"{text}.1"]


def fraction(text: str) -> Forms | None:
    pattern = r"(-?)([0-9]*) ?\\d?frac *(?:\{([0-9]+)\}|([0-9])) *(?:\{([0-9]+)\}|([0-9]))(\\text\{ degrees\})?"
    match = re.fullmatch(pattern, text)
    if match is None:
        return None
    value = Fraction(int(match[3] or match[4]), int(match[5] or match[6])) + int(match[2] or 0)
    p, q, sign = value.numerator, value.denominator, match[1]
    same = [
        rf"{sign}\dfrac{{{p}}}{{{q}}}",
        f"{sign}{p}/{q}",
        rf"\frac{{{sign}{2 * p}}}{{{2 * q}}}",
        rf"{sign}\tfrac{{{p}}}{{{q}}}",
    ]
    if p > q:
        same += [rf"{sign}{p // q}\frac{{{p % q}}}{{{q}}}"]
    if 10**12 % q == 0:  # it ends: its decimals are exact
        same += [f"{sign}{p * 10**12 // q // 10**12}.{p * 10**12 // q % 10**12:012d}"]
    wrong = [
        rf"{sign}\frac{{{q}}}{{{p}}}",
        f"{sign}{p + 1}/{q}",
        rf"{sign}\frac{{{p}}}{{{q + 1}}}",
        f"{'' if sign else '-'}{p}/{q}",
    ]
    return same, wrong


def degrees(text: str) -> Forms | None:
    match = re.fullmatch(r"([0-9]+)\^\\circ", text)
    if match is None:
        return None
    n = int(match[1])
    return [f"{n}°", str(n), rf"{n}^{{\circ}}", rf"{n}\text{{ degrees}}", f"{n} degrees"], [
        f"{n + 1}°",
        f"{n / 10}°",
        f"-{n}",
    ]


def measure(text: str) -> Forms | None:
    match = re.fullmatch(r"([0-9.]+) ?\\(?:text|mbox)\{ (.*)\}(\^2)?", text)
    if match is None:
        return None
    number, unit = match[1], match[2]
    wrong = [f"{number}1", f"-{number}", rf"1{number}\text{{ {unit}}}"]
    return [
        number,
        rf"{number}\text{{ {unit}}}",
        rf"{number}\,\mathrm{{{unit}}}",
        f"{number} {unit}",
        f"${number}$",
    ], wrong


def based(text: str) -> Forms | None:
    match = re.fullmatch(r"([0-9]+)_\{?([0-9]+)\}?", text)
    if match is None:
        return None
    digits, base = match[1], int(match[2])
    wrong = [f"{digits}_{base + 1}", f"{digits}1_{base}", str(int(digits, base)), f"{digits[::-1]}_{base}"]
    return [f"{digits}_{{{base}}}", digits, f"${digits}_{base}$"], [
        form for form in wrong if form != f"{digits}_{base}"
    ]


def word(text: str) -> Forms | None:
    match = re.fullmatch(r"\\text\{\(?([A-Za-z]+)\)?\}", text)
    if match is None:
        return None
    name = match[1]
    same = [name, name.lower(), rf"\textbf{{{name}}}", rf"\mathrm{{{name}}}", rf"\text{{{name}}}.", f"({name})"]
    return same, ["F", r"\text{north}", f"{name}{name}", rf"\text{{not {name}}}", "5"]


def matrix(text: str) -> Forms | None:
    match = re.fullmatch(r"\\begin\{pmatrix\} (.*) \\end\{pmatrix\}", text)
    if match is None:
        return None
    rows = [[entry.strip() for entry in row.split("&")] for row in match[1].split(r"\\")]
    spelled = [[re.sub(r"([0-9]+)/([0-9]+)", r"\\dfrac{\1}{\2}", entry) for entry in row] for row in rows]
    negated = [[entry.removeprefix("-") if "-" in entry else f"-{entry}" for entry in row] for row in rows]
    transposed = [list(column) for column in zip(*rows, strict=True)]
    wrong = [negated, rows[:-1], [*rows, rows[0]], rows[::-1], transposed]
    return [written(rows, "bmatrix"), written(spelled, "pmatrix"), written(spelled, "pmatrix", r"\\[1ex]")], [
        written(form, "pmatrix") for form in wrong if form != rows
    ]


def written(rows: list[list[str]], kind: str, newline: str = r"\\") -> str:
    content = newline.join(" & ".join(row) for row in rows)
    return rf"\begin{{{kind}}}{content}\end{{{kind}}}"


def bracketed(text: str) -> Forms | None:
    """Points, vectors and intervals, which look alike: the order counts, and so does each bracket of a pair."""
    match = re.fullmatch(r"(?:x \\in )?(?:\\left)?([(\[]) ?(.*?) ?(?:\\right)?([)\]])", text)
    if match is None or r"\cup" in text or text.count("(") > 1:
        return None
    left, inner, right = match.groups()
    parts = [part.strip() for part in inner.split(",")]
    same = [rf"\left{left} {inner} \right{right}"]
    same += [f"{left}{separator.join(parts)}{right}" for separator in (", ", r",\;")]
    wrong = [f"{left}{','.join(parts[::-1])}{right}", f"{left}{','.join(parts[:-1])}{right}", f"{left}{inner},7{right}"]
    wrong += [f"{left}{','.join([*parts[:-1], parts[-1] + '+1'])}{right}"] if r"\infty" not in parts[-1] else []
    if len(parts) == 2 and r"\infty" not in parts[0]:
        wrong += [f"{'[' if left == '(' else '('}{inner}{right}"]
    if len(parts) == 2 and r"\infty" not in parts[1]:
        wrong += [f"{left}{inner}{']' if right == ')' else ')'}"]
    return same, wrong


def union(text: str) -> Forms | None:
    parts = text.split(r" \cup ")
    if len(parts) != 2:
        return None
    first, second = parts
    same = [rf"{second} \cup {first}", rf"\left{first[:-1]}\right{first[-1]}\cup{second}", f"{first} ∪ {second}"]
    return same, [
        first,
        second,
        rf"{first} \cap {second}",
        rf"{first[:-1]}] \cup {second}",
        rf"{first} \cup [{second[1:]}",
    ]


def listing(text: str) -> Forms | None:
    parts = [part.strip() for part in text.strip(r"\{}").split(",")]
    if len(parts) < 2:
        return None
    joined = ", ".join(parts[:-1]) + r" \text{ and } " + parts[-1]
    same = [",".join(parts[::-1]), ", ".join(parts), joined, r"\{" + ",".join(parts) + r"\}"]
    return same, [",".join(parts[:-1]), ",".join([*parts, "17"]), ",".join([*parts[:-1], f"{parts[-1]}+1"])]


def equation(text: str) -> Forms | None:
    left, equals, right = text.partition(" = ")
    if not equals:
        left, equals, right = text.partition("=")
    if not equals:
        return None
    same = [f"{left}={right}", f"${left} = {right}$"]
    same += [right] if re.fullmatch("[a-z]", left) else [f"{right} = {left}", f"2({left}) = 2({right})"]
    return same, [f"{left} = {right} + 1", f"{left} = -({right}) - 1", f"{left} = 2({right}) + 1"]


def expression(text: str) -> Forms | None:
    """Anything else: a number or a polynomial, and both have a sum and a double."""
    parts = text.split(r" \pm ")
    if len(parts) == 2:
        low, high = (f"{parts[0]} {sign} {parts[1]}" for sign in "-+")
        return [f"{high}, {low}", f"{low}, {high}", f"x = {text}"], [low, high, f"{text} + 1", f"{high}, {low} + 1"]
    same = [f"({text})", rf"\left({text}\right)", rf"\frac{{2({text})}}{{2}}", f"0+{text}", f"-(-({text}))"]
    return same, [f"{text} + 1", f"-({text})", f"2({text})", rf"\frac{{{text}}}{{3}}", "0"]


FAMILIES = (
    *(integer, decimal, fraction, degrees, measure, based, word, matrix, bracketed, union, listing, equation),
    expression,
)


def forms(answer: str) -> Forms:
    return next(found for family in FAMILIES if (found := family(answer)) is not None)


def test_the_math500_answers_are_those_of_the_data_set() -> None:
    assert len(MATH500) == 500
    if DATA.exists():
        assert [json.loads(line)["answer"] for line in DATA.read_text("utf-8").split("\n") if line] == MATH500


@pytest.mark.parametrize("answer", dict.fromkeys(MATH500))
def test_math500_answer(grader: Grader, answer: str) -> None:
    same, wrong = forms(answer)
    assert len(same) >= 2
    assert len(wrong) >= 2
    verdicts = {form: right(grader, form, answer) for form in (answer, *same, *wrong)}
    expected = dict.fromkeys((answer, *same), True) | dict.fromkeys(wrong, False)
    assert {form: verdict for form, verdict in verdicts.items() if verdict is not expected[form]} == {}


# Any text: nothing crashes, and what is clean stays the same.

PIECES = [
    *(
        "1",
        "22",
        "333",
        ",",
        ".",
        "-",
        "+",
        "/",
        "%",
        r"\%",
        r"\frac",
        "{",
        "}",
        "{2}",
        r"\{",
        r"\}",
        "(",
        ")",
        "[",
        "]",
    ),
    *(
        " ",
        "x",
        "i",
        "e",
        "\\pi",
        r"\sqrt",
        "^",
        "_8",
        "_{8}",
        r"\circ",
        "°",
        r"\text{",
        r"\text{ cm}",
        r"\mbox{",
        "cm",
        " and ",
    ),
    *(
        r"\text{ or }",
        r"\left",
        r"\right",
        r"\!",
        r"\,",
        r"\;",
        "$",
        r"\$",
        "**",
        r"\approx",
        "=",
        "<",
        r"\le",
        ":",
        "p.m.",
    ),
    *(
        r"\overline{3}",
        " million",
        "e5",
        "A",
        "B",
        "oo",
        r"\infty",
        r"\phantom",
        r"\\",
        r"\\[1ex]",
        r"\begin{pmatrix}",
        "&",
    ),
    *("\x00", "\u2028", "\ud800", "é", "٣", "²", "−", r"\sin", "degrees", r"\mid", "|", r"\boxed", "~", r"\("),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=25).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_no_text_crashes_the_reading_and_each_equals_itself(gold: str, answer: str) -> None:
    gold, answer = clean(gold), clean(answer)
    answer.encode()  # no half character is left
    for pair in readings.readings(gold, answer):
        assert compare_quickly(*pair) in (True, False, None)
    if gold not in ("", "%", r"\%") and re.search(r"[0-9]", gold):
        assert compare_quickly(gold, gold) is True


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_words_and_numbers_agree_in_both_directions(left: str, right: str) -> None:
    left, right = clean(left), clean(right)
    if left and right and "_" not in left + right:  # a base may be left out of an answer, not of the ground truth
        verdicts = {compare_quickly(left, right), compare_quickly(right, left)}
        assert verdicts != {True, False}


@settings(max_examples=300, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**4), st.integers(-(10**9), 10**9), st.integers(1, 10**4))
def test_fractions_are_compared_as_fractions(a: int, b: int, c: int, d: int) -> None:
    for gold in (f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}"):
        for answer in (f"{c}/{d}", rf"\dfrac{{{c}}}{{{d}}}"):
            assert compare_quickly(clean(gold), clean(answer)) is (Fraction(a, b) == Fraction(c, d))
    assert compare_quickly(f"{a}/{b}", rf"\frac{{{3 * a}}}{{{3 * b}}}") is True
    assert compare_quickly(clean(f"{a}/{10 ** (b % 7)}"), clean(f"{Fraction(a, 10 ** (b % 7)) * 100}\\%")) is True


@pytest.mark.parametrize("answer", dict.fromkeys([*MATH500, *(case["answer"] for case in CASES)]))
def test_what_is_clean_stays_so(answer: str) -> None:
    assert clean(clean(answer)) == clean(answer)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_what_is_clean_stays_so_whatever_the_text(text: str) -> None:
    assert clean(clean(text)) == clean(text)


SPACES = (
    *(r"\,", r"\;", r"\:", r"\ ", r"\!", "~", r"\quad ", r"\qquad ", r"\hspace{2mm}", r"\thinspace ", r"\kern2pt "),
    *("\u00a0", "\u2009", "\u202f", "\u3000", "\u200b", " "),
)
SPACED = (  # tokens between which space does not count
    *(("5", r"\text{cm}"), ("5", r"\%"), ("-", "5"), ("x", "=", "5"), ("(", "2", ",", " 3", ")"), ("2", r"\sqrt{3}")),
    *(("12", r"\pi ", r"\text{cm}^2"), ("1", r"\frac{1}{2}"), ("3", "x", "+", "1"), ("[", "0", ",", " 1", ")")),
    *(
        (r"\{", "1", ",", " 2", r"\}"),
        ("x", r"\le ", "3"),
        ("5", r"\text{km}", "/", r"\text{h}"),
        ("2", r"\cdot ", "3"),
    ),
    *((r"\text{east}",), (r"\frac", "{1}", "{2}"), ("x", "^2", "-", "1"), ("3", ":", "5"), ("52_8",), ("(A)", " 5")),
)


@pytest.mark.parametrize("tokens", SPACED, ids="".join)
def test_space_of_any_kind_between_tokens_does_not_count(tokens: tuple[str, ...]) -> None:
    plain = re.sub(r"\s", "", clean(" ".join(tokens)))
    for space in SPACES:
        for place in range(len(tokens) + 1):
            for run in (space, f" {space} ", space * 2):
                text = "".join(tokens[:place]) + run + "".join(tokens[place:])
                assert re.sub(r"\s", "", clean(text)) == plain, repr(text)


@settings(max_examples=300, deadline=None)
@given(st.permutations(range(4)), st.permutations(range(4)), st.integers(2, 4), st.booleans())
def test_names_decide_which_value_is_which(values: list[int], order: list[int], size: int, moved: bool) -> None:
    """Named values in any order are right; other names, a set, and a tuple in another order are wrong."""
    names, values = "abcd"[:size], values[:size]
    gold = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    order = [place for place in order if place < size]
    taken = values[1:] + values[:1] if moved else values
    shown = ", ".join(f"{names[place]}={taken[place]}" for place in order)
    assert read_right(gold, shown) is not moved
    assert read_right(gold, f"({', '.join(map(str, taken))})") is not moved
    assert read_right(gold, ", ".join(map(str, taken))) is not moved
    assert read_right(gold, rf"\{{{', '.join(map(str, taken))}\}}") is False


def read_right(gold: str, answer: str) -> bool:
    """Whether reading alone finds an answer right."""
    return any(compare_quickly(*pair) is True for pair in readings.readings(clean(gold), clean(answer)))


ENDLESS = st.builds(Fraction, st.integers(1, 10**9), st.sampled_from([3, 7, 11, 13, 19, 999, 3 * 10**4, 7 * 10**9]))


@settings(max_examples=500, deadline=None)
@given(ENDLESS, st.integers(1, 14))
def test_a_decimal_is_right_if_it_is_the_number_rounded_and_long_enough(truth: Fraction, places: int) -> None:
    """Expected from integers alone: the nearest whole number of units of the last place, and its neighbours."""
    units = (truth * 10**places + Fraction(1, 2)).__floor__()
    gold = rf"\frac{{{truth.numerator}}}{{{truth.denominator}}}"
    ends = any(10**k % truth.denominator == 0 for k in range(40))
    for step in (-1, 0, 1):
        digits = f"{units + step:0{places + 1}d}"
        figures = len(digits.lstrip("0"))
        answer = f"{digits[:-places]}.{digits[-places:]}"
        exact = Fraction(units + step, 10**places) == truth
        expected = exact if ends else step == 0 and figures >= rationals.FIGURES
        assert compare_quickly(gold, answer) is expected


IRRATIONAL = {
    r"\sqrt{2}": "1.41421356237309504880",
    r"\pi": "3.14159265358979323846",
    r"100\sqrt{3}": "173.205080756887729353",
    "e^2": "7.38905609893065022723",
    r"\frac{\pi}{1000}": "0.00314159265358979323846",
    r"\ln 2": "0.69314718055994530942",
    r"10^6\sqrt{5}": "2236067.97749978969641",
}
"""Twenty figures of each, as tables give them."""


@pytest.mark.parametrize("truth", IRRATIONAL)
def test_a_decimal_of_an_irrational_number_is_judged_by_its_figures(grader: Grader, truth: str) -> None:
    value = IRRATIONAL[truth]
    exact, point = Decimal(value), -Decimal(value).adjusted()
    for figures in range(4, 16):
        unit = Decimal(1).scaleb(figures * -1 + 1 - point)
        if unit > 1:
            continue
        rounded = exact.quantize(unit)
        assert right(grader, f"{rounded:f}", truth) is (figures >= rationals.FIGURES), rounded
        assert right(grader, f"{rounded + unit:f}", truth) is False
        assert right(grader, f"{rounded - unit:f}", truth) is False


# Patterns read what a model wrote, so none may look at every pair of its characters.

STARTS = (
    "",
    r"\sin ",
    r"\frac{",
    r"\text{",
    "5 ",
    "-",
    r"\{x|",
    r"\phantom{",
    r"\\[",
    "####",
    "answer",
    r"\boxed ",
    "10^{",
    "1/",
)
UNITS = (
    *(
        "9",
        "111,",
        "1,",
        "1.",
        "9 ",
        "1/",
        "1+",
        r"1\cdot",
        "a",
        "A",
        "a ",
        "abc ",
        "or ",
        "or, ",
        "A, ",
        "(A), ",
        " ",
        "\\",
    ),
    *(
        r"\frac{1}",
        r"\frac{",
        r"\text{ a",
        r"\text{a}",
        r"\phantom{",
        r"\{",
        "{",
        "}",
        "(",
        "$",
        "$9",
        "%",
        "^{",
        "=",
        "-",
        "*",
    ),
    *(
        "#",
        "#### ",
        "answer is ",
        "answer:",
        r"\boxed{",
        r"\boxed ",
        "<answer>",
        r"\overline{3}",
        "[1]",
        "【",
        r"\underbrace{",
        "1_",
        "1:",
        "thirds",
        "e5",
    ),
)


def patterns() -> dict[str, Callable[[str], object]]:
    """What is put to a text: each pattern of the modules (the whole, or all its finds), then what they make."""
    found: dict[str, Callable[[str], object]] = {}
    for module in (citations, equivalence, extraction, normalize, quantities, rationals, readings, units):
        source = Path(module.__file__).read_text("utf-8")
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                whole = f"{name}.fullmatch(" in source
                found[f"{module.__name__} {name}"] = value.fullmatch if whole else partial(re.subn, value, "")
    tables = (*normalize._STYLE, *normalize._NOTATION)
    found |= {f"cleaning {n}": partial(re.subn, pattern, "") for n, (pattern, _) in enumerate(tables)}
    found |= {"clean": clean, "compare_quickly": partial(compare_quickly, "5"), "canonical": equivalence.canonical}
    found |= {
        "readings": partial(readings.readings, "x=2, y=3"),
        "unit": partial(units.is_unit, upright=True, one=True),
    }
    found |= {name: extractor.read for name, extractor in extraction.EXTRACTORS.items()}
    return found


PATTERNS = patterns()


def takes(seconds: float, read: Callable[[str], object], text: str) -> bool:
    """Whether each of three tries takes that many CPU seconds of this thread."""
    for _ in range(3):
        begun = time.thread_time()
        read(text)
        if time.thread_time() - begun < seconds:
            return False
    return True


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_linear_in_the_length_of_the_text(name: str) -> None:
    """Every start before every unit. At 10,000 characters a pass takes 1 to 15 ms, every pair of them over 300 ms.

    So every pair of 2,000 takes over 12 ms: only what takes 5 ms there is put to 10,000. That is no speed but a power.
    A pattern of the tables of cleaning is put to a tenth of the texts, the whole of `clean` to all.
    """
    step = 10 if name.startswith("cleaning") else 1
    for start, unit in list(product(STARTS, UNITS))[zlib.crc32(name.encode()) % step :: step]:
        for characters, limit in ((2_000, 0.005), (10_000, 0.2)):
            if not takes(limit, PATTERNS[name], start + unit * (characters // len(unit)) + "!"):
                break
        else:
            pytest.fail(f"{name} is not linear on {start!r} and many {unit!r}")


def test_there_are_patterns_to_look_at() -> None:
    assert len(PATTERNS) > 40
    assert "rlif.grading.normalize _ANGLE" in PATTERNS


@pytest.mark.parametrize(
    ("spellings", "key"),
    [
        (("18", "18.00", "018", "+18", "36/2", r"\frac{36}{2}", r"1.8 \cdot 10^1", r"18\%"), "18"),
        (("0.5", ".50", r"\frac{1}{2}", "1/2", "0." + "5" + "0" * 400), "1/2"),
        (("-1250", "-1,250", "-1250.0"), "-1250"),
        (("0", "-0", "0.0"), "0"),
        (("0.5%", "0.005"), "1/200"),
        (("9" * 400, "9" * 400 + ".0"), "9" * 400),
        (("x + 2", "x+2"), "x+2"),
        ((r"\text{east}", "east"), "east"),
        ((r"\text{}",), r"\text{}"),
    ],
)
def test_spellings_of_one_answer_have_one_key(spellings: tuple[str, ...], key: str) -> None:
    assert {equivalence.canonical(spelling) for spelling in spellings} == {key}


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_answers_of_one_key_are_not_told_apart(left: str, right: str) -> None:
    left, right = clean(left), clean(right)
    if left and right and equivalence.canonical(left) == equivalence.canonical(right):
        assert compare_quickly(left, right) is not False
