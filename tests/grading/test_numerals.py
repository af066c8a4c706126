"""The grammar of numbers: what is one number, what is two, what is none; digits of any script; hostile text."""

import re
import time

import pytest

from rlif.grading import numerals
from rlif.grading.numerals import NUMBER, SCALE, SIGN, plain_digits

SIGNED = re.compile(SIGN + NUMBER)

WHOLE = (
    *("0", "7", "007", "3.14", ".5", "12.0", "1,234", "1,234,567.89", "-3", "−3.5", "–2", "+4", "±5", r"\pm 5", "-.5"),
    *(
        "9{,}500",
        r"9\,500",
        r"9,\!500",
        r"9{\,}500",
        r"9\ 500",
        r"9\;500",
        "9~500",
        "9 500",
        "9\u202f500",
        "9\u2009500",
    ),
    *("9\u202f500", "9\u2009500", "9\u00a0500", "9'500", "1\u2019234\u2019567", "12 345 678.9"),
    *("1/2", "-3/4", "1 1/2", "2 3/4", r"1\frac12", r"1 \frac{1}{2}", r"-2\dfrac{3}{4}", "1½", "½", "-1 ½", "1⁄2"),
    *(
        r"\frac12",
        r"\frac{1}{2}",
        r"-\frac{3}{4}",
        r"\dfrac{3}{4}",
        r"\tfrac {3} {4}",
        r"\frac{-3}{4}",
        r"\frac{\pi}{2}",
    ),
    *(r"\frac{\sqrt{3}}{2}", r"\frac{2\pi}{3}", r"\frac{3}{4}\pi", r"\frac12\sqrt{2}", r"\cfrac{1{,}000}{3}"),
    *("10^3", "2^{10}", "10^-3", "10^{-3}", "2**5", "10³", "10⁻³", "2^(1/2)", "(-2)^3", "2^{1/2}", "5^0"),
    *(r"3 \times 10^5", r"3\cdot10^{-5}", "3e5", "1.5E-3", "6.02×10²³", "3 x 10^8", "2 * 10^3"),
    *(r"\sqrt2", r"\sqrt{2}", r"3\sqrt{2}", r"\sqrt[3]{5}", "√2", "2√3", r"3 \sqrt{5}", r"2 \cdot \sqrt{3}"),
    *(r"\pi", "π", "2π", r"12\pi", r"12 \pi", r"12\,\pi", r"3\sqrt{2}\pi", "2pi", r"3\pi/4", "π/2"),
    *("50%", "50 %", r"50\%", "12.5 percent", "5 million", "2.5 billion", "3 lakh", "1/2 percent"),
    *(r"0.\overline{3}", r"0.\bar{3}", r"0.1\overline{6}", "0.(3)", "0.1(6)", "0.333...", "0.1666…", r"0.33\ldots"),
    *("\u0663\u0664", "\uff15\uff10", "\u096f"),
)
"""Each is one number."""


@pytest.mark.parametrize("text", WHOLE)
def test_a_number_is_found_whole_in_a_sentence(text: str) -> None:
    for frame in (
        "{}",
        "so it is {}.",
        "= {} ",
        "({})",
        "it is {}, and",
        "${}$",
        "{}\n",
        "**{}**",
        "{} apples",
        "“{}”",
    ):
        found = SIGNED.search(frame.format(text))
        assert found is not None
        assert found.group() == text, frame


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1, 2", ["1", "2"]),
        ("81, 256", ["81", "256"]),
        ("1,2345", ["1", "2345"]),
        ("12,34", ["12", "34"]),
        ("10-5", ["10", "5"]),
        ("x-5", ["5"]),
        ("2020 100", ["2020", "100"]),
        ("1,234 567", ["1,234", "567"]),
        ("1 2", ["1", "2"]),
        ("3 pigs", ["3"]),
        ("5 millionth", ["5"]),
        ("the pit", []),
        (r"\pit \sqrt{} \frac{a}{b}", []),
        ("18.", ["18"]),
        ("1.2.3", ["1.2", ".3"]),
        ("\x00 – − ½x", ["½"]),
    ],
)
def test_what_is_several_numbers_or_none(text: str, numbers: list[str]) -> None:
    assert [found.group() for found in SIGNED.finditer(text)] == numbers


def test_scales_are_the_words_of_the_table() -> None:
    assert all(re.fullmatch(SCALE, word) for word in numerals.SCALES)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\u0663\u0664", "34"),
        ("\uff15\uff10", "50"),
        ("½", "1/2"),
        ("1½", "1 1/2"),
        ("1 ½", "1 1/2"),
        ("⅔x", "2/3x"),
        ("⅒", "1/10"),
        ("10⁻³", "10^{-3}"),
        ("x¹² + y²", "x^{12} + y^{2}"),
        ("plain 12", "plain 12"),
    ],
)
def test_digits_of_any_script_become_plain(text: str, plain: str) -> None:
    assert plain_digits(text) == plain
    assert plain_digits(plain) == plain


PIECES = (
    *("1", "1,", "111,", "1 ", "111 ", "111'", r"\frac{1", r"\frac{", r"\sqrt{1", r"\sqrt{", "1.", "1e", "1^", "1^{"),
    *("1/", "(1", "√", "√(1", r"\pi", "pi", "π", "-", r"1\times", r"1 \cdot 10", "½", "1½", "²", "1²", "0.(", "0.(1"),
    *(
        r"\bar",
        "1...",
        " ",
        "1 1/",
        "1/1/",
        "{1}",
        r"\,",
        r"1\,",
        "1%",
        "1 hundred",
        r"\frac{1}{1}",
        r"\sqrt[1]",
        "**1",
    ),
)


@pytest.mark.parametrize("start", ["", "0.", r"\frac{", "-", r"\sqrt{", "("])
def test_searching_for_numbers_is_linear_in_the_length_of_the_text(start: str) -> None:
    """At 10,000 characters a pass takes up to 30 ms, every pair of them seconds; CPU time, the least of three."""
    for unit in PIECES:
        text = start + unit * (10_000 // len(unit)) + "!"
        for _ in range(3):
            begun = time.thread_time()
            SIGNED.sub("", text)
            if time.thread_time() - begun < 0.2:
                break
        else:
            pytest.fail(f"not linear on {start!r} and many {unit!r}")
