"""Two verdicts; hostile answers; a worker that dies. What is extracted, and what equals what: in their own tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlif.grading import math_worker, prose
from rlif.grading.extraction import EXTRACTORS
from rlif.grading.grader import LONGEST_ANSWER, Grader
from rlif.grading.math_worker import MathWorker
from rlif.grading.numerals import NUMBER


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(time_limit=60.0) as grader:  # generous: these cases test meaning, and machines may be busy
        yield grader


def right(grader: Grader, answer: str, gold: str) -> bool | None:
    return grader.grade(rf"So it is \boxed{{{answer}}}.", gold, format="boxed", row_id="row").right


@pytest.mark.parametrize(
    ("text", "format", "expected"),
    [
        (r"\boxed{85}", "boxed", (True, True)),
        ("#### 85", "boxed", (True, False)),
        (r"\boxed{86}", "boxed", (False, True)),
        (r"\boxed{}", "boxed", (False, False)),
        ("no idea", "boxed", (False, False)),
        ("#### 85", "hash", (True, True)),
        (r"\boxed{85}", "hash", (True, False)),
    ],
)
def test_right_and_formatted_are_two_verdicts(
    grader: Grader, text: str, format: str, expected: tuple[bool, bool]
) -> None:
    verdict = grader.grade(text, "85", format=format, row_id="row")
    assert (verdict.right, verdict.formatted) == expected


READING = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "fixtures" / "reading_cases.jsonl").read_text("utf-8").split("\n")
    if line
]
"""Texts without a prescribed form, judged by hand: the ground truths for which each is right, and for which wrong."""


@pytest.mark.parametrize("case", READING, ids=lambda case: f"{case['kind']}:{case['text'][:40]}")
def test_a_text_is_read_as_a_careful_reader_would(grader: Grader, case: dict[str, Any]) -> None:
    for golds, expected in ((case["right"], True), (case["wrong"], False)):
        for gold in golds:
            assert grader.grade(case["text"], gold, format="boxed", row_id="row").right is expected, gold


@pytest.mark.parametrize("name", [name for name in EXTRACTORS if not name.startswith("gsm8k_cot")])
@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("<Thought>", "</Thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("[THINK]", "[/THINK]"),
        ("", "</think>"),  # opened in the prompt
    ],
)
def test_thoughts_are_not_graded_in_any_form(grader: Grader, name: str, opening: str, closing: str) -> None:
    forms = {
        **{"boxed": r"\boxed{%s}", "boxed_once": r"\boxed{%s}", "answer_tag": "<answer>%s</answer>", "hash": "#### %s"},
        **{"gsm8k_strict": "#### %s", "minerva": "Final Answer: The final answer is %s. I hope it is correct."},
        **{"text": "%s"},
    }
    form = forms.get(name, "The answer is %s")
    text = f"{opening}\n{form % 31}\n{closing}\n{form % 42}"
    verdict = grader.grade(text, "42", format=name, row_id="row")
    assert (verdict.right, verdict.formatted, verdict.extracted) == (True, True, "42")
    if opening:
        for thoughts in (f"{opening}{form % 42}{closing}", f"{opening}{form % 42}", f"\n {opening} {form % 42}\n so"):
            verdict = grader.grade(thoughts, "42", format=name, row_id="row")
            assert (verdict.right, verdict.formatted, verdict.extracted) == (False, False, None), thoughts
        verdict = grader.grade(f"{form % 42}\n{opening}{form % 31}", "42", format=name, row_id="row")
        assert (verdict.right, verdict.formatted, verdict.extracted) == (True, True, "42")
        assert grader.grade(opening, None, format=name, row_id="row").right is None


@pytest.mark.parametrize(
    "text",
    [
        r"It makes \boxed{5}. (I wrapped my reasoning in a <think> tag.)",
        r"Mentions the <think> tag. \boxed{5}",
        r"\boxed{5}. Always close with </think>.",
        r"\boxed{5}. My reasoning stands between <think> and </think>.",
        r"First <think>, then answer: \boxed{5}" "\n",
        "\\boxed{5}\n</think>\n",
        "2 is no answer\n</think>\n\\boxed{5}",
        "<think>\n\\boxed{2}\n</think>\n\\boxed{5}. (So I used <think>.)",
        "A tag <think> is asked for.\n<think>\n\\boxed{2}\n</think>\n\\boxed{5}",
        "<reasoning>2+3\n<answer>5</answer>",
        "<think>\n<answer>2</answer>, or not\n<answer>5</answer>\n",
    ],
)
def test_a_tag_that_is_mentioned_takes_no_answer_away(grader: Grader, text: str) -> None:
    format = "boxed" if "boxed" in text else "answer_tag"
    verdict = grader.grade(text, "5", format=format, row_id="row")
    assert (verdict.right, verdict.formatted) == (True, True)


def test_a_draft_within_open_thoughts_is_no_answer(grader: Grader) -> None:
    for text in ("<think>\n<answer>5</answer> or so\n", "<think> as in <answer>5</answer>", "<think>\n<answer>5"):
        assert grader.grade(text, "5", format="answer_tag", row_id="row").extracted is None, text


@pytest.mark.parametrize("piece", ["<think>", "a <think>", "</think>", "</think>1", "\n<answer>", "\n<think></think>"])
def test_many_tags_harm_nobody(grader: Grader, piece: str) -> None:
    for text in (piece * 100_000 + "<think>", "<think>\n" + piece * 100_000):
        assert grader.grade(text, "5", format="boxed", row_id="row").right is False


@pytest.mark.parametrize("mark", ["\u202e", "\u200b", "\x1b", "\x9b", "\u2028", "\ue000", "\ud800", "\ufeff"])
def test_what_is_extracted_can_be_printed(grader: Grader, mark: str) -> None:
    found = grader.grade(rf"\boxed{{a{mark}b}}", None, format="boxed", row_id="row").extracted
    assert found is not None
    assert found.isprintable()


def test_without_ground_truth_the_answer_is_still_read(grader: Grader) -> None:
    verdict = grader.grade(r"\boxed{85}", None, format="boxed", row_id="row")
    assert (verdict.right, verdict.formatted, verdict.extracted) == (None, True, "85")


DEEP = 10_000
HOSTILE = {
    "nested boxes": r"\boxed{" * DEEP + "1" + "}" * DEEP,
    "nested braces": r"\boxed{" + "{" * DEEP + "1" + "}" * DEEP + "}",
    "open braces": r"\boxed{" * DEEP,
    "closing braces": "}" * DEEP,
    "backslashes": "\\" * 100_000 + "boxed{6}",
    "digits": "9" * 1_000_000,
    "boxed digits": r"\boxed{" + "9" * 1_000_000 + "}",
    "number groups": ",".join(["111"] * 300_000) + "1",
    "answers": "the answer is " * 50_000,
    "spaces": "answer" + " " * 500_000 + "#### " + "\t" * 500_000,
    "fractions": r"\frac{1}{" * 50_000,
    "control characters": "\\boxed{\x00\x07\x1b[2J\u2028\ud800}",
    "markup": "####" * 100_000,
    "sine of digits": r"\boxed{\sin " + "9" * 100_000 + "}",
    "sine of number groups": r"\boxed{\sin " + "111," * 30_000 + "}",
    "the sine of digits": r"the answer is \sin " + "9" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_wrong_and_harm_nobody(grader: Grader, name: str) -> None:
    assert grader.grade(HOSTILE[name], "5", format="boxed", row_id="hostile").right is False
    assert right(grader, r"\frac{10}{2}", "5") is True


BOMBS = {
    "tower": "10^{10^{10}}",
    "factorials": "((10!)!)!",
    "scientific": "1e999999999",
    "nested fractions": r"\frac{1}{" * 300 + "x" + "}" * 300,
    "nested powers": "2^{" * 300 + "2" + "}" * 300,
    "nested roots": r"\sqrt{" * 300 + "x" + "}" * 300,
    "left without right": r"\left(" * 330,
    "huge matrix": r"\begin{pmatrix}" + r" \\ ".join(["1 & 2 & 3 & 4 & 5"] * 90) + r"\end{pmatrix}",
    "long sum": "x" + "+x" * 900,
    "binomial": r"\binom{10^9}{10^8}",
    "boxes": r"\boxed{" * 200 + "x" + "}" * 200,
    "control characters": "x\x00\x07\x1b[2J\u2028+\ufffd",
    "half characters": "x\ud800 + \udc00",
}
"""Short enough to be read, and made to take for ever or to break the reader. The ground truth is x + 1/2."""


def test_a_batch_with_hostile_rows_loses_no_other() -> None:
    good = [(r"\frac{1}{2}+x", True), ("x+1", False), ("0.5 + x", True)]
    with Grader(time_limit=1.5, memory_limit=1 << 30) as grader:
        verdicts = {}
        for number, (name, bomb) in enumerate(BOMBS.items()):
            begun = time.monotonic()
            verdicts[name] = right(grader, bomb, r"x+\frac{1}{2}")
            assert time.monotonic() - begun < 60, name  # not a speed: the limit is kept, however busy the machine
            answer, verdict = good[number % 3]
            grader._algebra.cache_clear()
            assert right(grader, answer, r"x+\frac{1}{2}") is verdict, name
    assert True not in verdicts.values()
    assert verdicts["tower"] is None
    assert None in verdicts.values()
    assert False in verdicts.values()


def test_undefined_values_are_undecided_or_wrong_but_no_crash(grader: Grader) -> None:
    assert right(grader, r"05\!:\!00", "05:00") is True
    assert right(grader, "8", "05:00") is False  # a time of day, not 5/0
    assert right(grader, "8", "5:0") is None  # the algebra refuses to compare it
    assert right(grader, r"\frac{0}{0}", "5") is False


@pytest.mark.parametrize("answer", ["10^{10^{10}}", "(10^9)!", "(x+1)^{3000}"])
def test_endless_algebra_is_killed_and_the_next_row_is_graded(answer: str) -> None:
    with Grader(time_limit=0.5) as grader:
        assert right(grader, answer, r"x+\frac{1}{2}") is None
    with Grader(time_limit=60.0) as grader:
        assert right(grader, r"\frac{2}{4}", r"\frac{1}{2}") is True


def test_an_answer_longer_than_any_ground_truth_is_wrong_unread(grader: Grader) -> None:
    assert right(grader, "x" + " + x" * LONGEST_ANSWER, "x") is False
    gold = "x" + "+y" * LONGEST_ANSWER
    assert right(grader, gold, gold) is True  # measured by the ground truth


def test_an_answer_too_long_to_be_read_is_not_even_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []
    monkeypatch.setattr("rlif.grading.grader.clean", lambda text: cleaned.append(text) or text)
    long = "9" * (LONGEST_ANSWER + 2)
    verdict = Grader().grade(rf"\boxed{{{long}}}", "5", format="boxed", row_id="row")
    assert (verdict.right, verdict.formatted, verdict.extracted, cleaned) == (False, True, None, [])


# A worker whose algebra is replaced: everything it can do to us.

FAKE = (
    "import sys; sys.path[:] = sys.argv[3:]; import rlif.grading.math_worker as w; w._algebra = lambda: {0}; w.serve()"
)


def fake_worker(monkeypatch: pytest.MonkeyPatch, algebra: str, **limits: Any) -> Grader:
    """A grader whose worker decides with a Python expression: a function of (gold, answer)."""
    monkeypatch.setattr(math_worker, "_BOOT", FAKE.format(algebra))
    return Grader(**{"time_limit": 60.0, **limits})


def test_algebra_that_refuses_an_answer_leaves_it_undecided_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with fake_worker(monkeypatch, "lambda gold, answer: 1 / 0") as grader:
        assert right(grader, "x", "y") is None
    assert "ZeroDivisionError" in caplog.text


def test_algebra_that_is_always_wrong_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    yes = (
        "import sys; sys.path[:] = sys.argv[3:]; import math_verify as m, rlif.grading.math_worker as w; {0}; w.serve()"
    )
    for broken in (
        "m.verify = lambda *given, **named: True",
        "m.verify = lambda *given, **named: False",
        "del m.verify",
    ):
        monkeypatch.setattr(math_worker, "_BOOT", yes.format(broken))
        with pytest.raises(RuntimeError, match=r"row: grading failed: the grading worker did not start .exit code 1."):
            right(Grader(), "x", "y")
    assert "math-verify fails at 1/2 = 0.5" in capfd.readouterr().err


def test_extraction_that_raises_is_an_error_with_the_rows_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlif.grading.grader.clean", lambda text: text[100])
    with pytest.raises(RuntimeError, match="gsm8k/7: grading failed"):
        Grader().grade("4", "4", format="boxed", row_id="gsm8k/7")


@pytest.mark.parametrize(
    ("algebra", "problem"),
    [
        ("lambda gold, answer: w.os._exit(3)", "died .exit code 3."),
        ("lambda gold, answer: w.signal.raise_signal(w.signal.SIGUSR1)", "died .SIGUSR1."),
        ("1 / 0", "did not start .exit code 1."),
    ],
)
def test_a_worker_that_dies_of_no_limit_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], algebra: str, problem: str
) -> None:
    with fake_worker(monkeypatch, algebra) as grader, pytest.raises(RuntimeError, match=f"row: .*{problem}"):
        right(grader, "x", "y")
    capfd.readouterr()  # its traceback, which a user would see


@pytest.mark.parametrize(
    "algebra",
    [
        "lambda gold, answer: w.signal.raise_signal(9)",  # as the kernel does
        "lambda gold, answer: (_ for _ in ()).throw(RecursionError)",
        pytest.param(
            "lambda gold, answer: bytearray(4 << 30)",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the memory limit"),
        ),
    ],
)
def test_a_limit_leaves_the_answer_undecided(monkeypatch: pytest.MonkeyPatch, algebra: str) -> None:
    with fake_worker(monkeypatch, algebra, memory_limit=1 << 30) as grader:
        assert right(grader, "x", "y") is None
        assert right(grader, "x", "z") is None  # by a new worker


def test_the_parent_kills_a_worker_that_hears_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "lambda gold, answer: (w.signal.signal(14, 1), w.time.sleep(1000))"
    with fake_worker(monkeypatch, deaf, time_limit=0.5) as grader:
        assert right(grader, "x", "y") is None


class Never:
    """A timer that does not fire."""

    def start(self) -> None: ...

    def cancel(self) -> None: ...


def test_a_worker_whose_parent_is_gone_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Timer", lambda limit, kill: Never())
    with fake_worker(monkeypatch, "lambda gold, answer: w.time.sleep(1000)", time_limit=0.5) as grader:
        assert right(grader, "x", "y") is None


def test_the_same_question_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_worker(monkeypatch, "lambda gold, answer, asked=[]: asked.append(gold) or len(asked) == 1") as grader:
        assert [right(grader, "x", gold) for gold in ("y", "y", "z")] == [True, True, False]


def test_an_idle_worker_that_was_killed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_worker(monkeypatch, "lambda gold, answer: True") as grader:
        assert right(grader, "x", "y") is True
        process = grader._worker._process
        assert process is not None
        os.kill(process.pid, signal.SIGTERM)  # ignored: it is the parent's to decide
        assert right(grader, "x", "z") is True
        assert grader._worker._process is process
        process.kill()
        process.wait()
        assert right(grader, "x", "w") is True


def test_what_libraries_print_does_not_mix_with_replies(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with fake_worker(monkeypatch, "lambda gold, answer: print('{}', flush=True) or gold == 'y'") as grader:
        assert [right(grader, "x", gold) for gold in ("y", "z")] == [True, False]
    assert capfd.readouterr().err == "{}\n{}\n"


def test_closing_ends_the_worker_and_keeps_the_grader_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = fake_worker(monkeypatch, "lambda gold, answer: True")
    grader.close()  # never started
    assert right(grader, "x", "y") is True
    process = grader._worker._process
    grader.close()
    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert right(grader, "x", "z") is True
    process = grader._worker._process
    del grader  # nobody closed it
    assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_the_worker_loads_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    look = "(w._limit_memory, __import__('math_verify')) and (lambda gold, answer: 'torch' in sys.modules)"
    with fake_worker(monkeypatch, look) as grader:
        assert right(grader, "x", "y") is False


def test_grading_loads_no_torch() -> None:
    code = "import sys, rlif.grading.grader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_quick_comparison_starts_no_worker() -> None:
    grader = Grader()
    assert [right(grader, answer, "1,250") for answer in ("1250", r"\$1250.0", "1251")] == [True, True, False]
    assert grader._worker._process is None


def test_worker_agrees_without_a_grader() -> None:
    worker = MathWorker(60.0, 2 << 30)
    assert worker.equivalent(r"\frac{1}{2}", "0.5") is True
    assert worker.equivalent(r"\frac{1}{2}", "0.6") is False
    worker.close()


@pytest.mark.parametrize("joint", ["\n", "\n\n", " "])
def test_a_long_text_is_read_from_its_end_as_if_read_whole(joint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [case["text"] for case in READING]
    long = [joint.join(texts[start : start + 40]) for start in range(0, len(texts) - 40, 10)]
    long += [
        "The values are 1" + f",\n{' ' * 35}2" * 40 + ".",  # one list
        "It makes 7 (as it is\n" + "said in words and\n" * 80 + "of 12 in all).",  # one aside
        "It is \\[ x \\le y\n" + "+ xy + abc + bcd\n" * 80 + "\\text{ for } n = 12 \\]",  # one formula
        "A word. " * 300,
    ]
    assert sum(len(list(prose._starts_of_tails(text))) > 1 for text in long) > 20
    found = [prose.conclusion(text) for text in long]
    monkeypatch.setattr(prose, "_SHORTEST_TAIL", 10**9)
    assert found == [prose.conclusion(text) for text in long]


def test_no_pattern_of_numbers_is_compiled_at_import() -> None:
    """They are large: see the next test."""
    check = (
        "import re; compiled = []; compile = re.compile\n"
        "re.compile = lambda pattern, *flags: compiled.append(pattern) or compile(pattern, *flags)\n"
        "import rlif.grading.grader; print(max(map(len, filter(lambda one: isinstance(one, str), compiled))))"
    )
    longest = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
    assert int(longest) < len(NUMBER)


def test_a_text_without_a_form_compiles_one_pattern_of_numbers() -> None:
    """A text's first verdict waits for what it compiles, 30 ms for each grammar of numbers: eleven stood in these."""
    check = (
        "import re, rlif.types, rlif.grading.grader as grader\n"
        "compiled = []; compile = re.compile\n"
        "re.compile = lambda pattern, *flags: compiled.append(pattern) or compile(pattern, *flags)\n"
        "text = 'We add 3 and 4 (step 1), and the number of apples is 7.'\n"
        "print(grader.Grader().grade(text, '7', format='boxed', row_id='a').right, sum(map(len, compiled)))"
    )
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
    right, characters = done.split()
    assert right == "True"
    assert int(characters) < 2 * len(NUMBER) + 4000  # of the tokens, and of the value in "step 1"
    assert len(NUMBER) < 15_000


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("The Eiffel Tower.", "eiffel tower", True),
        ("an  Eiffel\ntower", "The Eiffel Tower!", True),
        ("It is the Eiffel Tower.", "Eiffel Tower", False),
        ("35", "3.5", False),
        ("-5", "5", False),
        ("x + 2", "2 + x", False),  # no algebra: these are texts
        ("<think>Rome?</think>Paris", "paris", True),
        ("?", "paris", False),
    ],
)
def test_free_form_answers_are_compared_as_normalised_texts(said: str, answer: str, right: bool) -> None:
    with Grader() as grader:
        verdict = grader.grade(said, answer, format="text", row_id="row")
        assert verdict.right is right
        assert verdict.formatted is (verdict.extracted is not None)
        if verdict.extracted:  # what is frozen is what was read: held against itself it agrees
            assert grader.grade(said, verdict.extracted, format="text", row_id="row").right is True
