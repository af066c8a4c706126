"""Where rlif's verdicts and those of math-verify alone differ, and how often each is what a careful reader says.

Two sets of (ground truth, answer, verdict): every answer of MATH-500 rewritten by the families of
tests/grading/test_equivalence.py, and the table of kinds in tests/fixtures/equivalence_kinds.jsonl. Prints a table for
docs/grading.md; about two minutes.

Run in the repository's root: ``python benchmarks/grading_against_math_verify.py`` (``--all`` also prints each case).
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "grading"))
import math_verify
from test_equivalence import KINDS, MATH500, forms

from rlif.grading.grader import Grader

Case = tuple[str, str, str, bool]
"""Set or kind, ground truth, answer, and what a careful reader says."""


def cases() -> Iterator[Case]:
    for gold in dict.fromkeys(MATH500):
        same, wrong = forms(gold)
        yield from (("MATH-500, rewritten", gold, answer, True) for answer in dict.fromkeys((gold, *same)))
        yield from (("MATH-500, rewritten", gold, answer, False) for answer in dict.fromkeys(wrong))
    for kind in KINDS:
        yield from ((kind["kind"], kind["gold"], answer, True) for answer in kind["right"])
        yield from ((kind["kind"], kind["gold"], answer, False) for answer in kind["wrong"])


def alone(gold: str, answer: str) -> bool:
    """The verdict of math-verify with its defaults, both sides between dollar signs as its documentation asks for."""
    truth, claim = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in (gold, answer))
    return bool(math_verify.verify(truth, claim, timeout_seconds=None))


def main() -> None:
    logging.disable(logging.CRITICAL)
    counts: dict[str, Counter[str]] = {}
    with Grader(time_limit=60.0) as grader:
        for kind, gold, answer, verdict in cases():
            ours = grader.grade(rf"\boxed{{{answer}}}", gold, format="boxed", row_id=gold).right
            theirs = alone(gold, answer)
            count = counts.setdefault(kind, Counter())
            count["cases"] += 1
            for name, said in (("rlif", ours), ("math-verify", theirs)):
                if said is not verdict:
                    count[f"{name} {'refuses' if verdict else 'accepts'}"] += 1
            if "--all" in sys.argv and ours is not theirs:
                print(f"{kind}\t{gold}\t{answer}\treader {verdict}\trlif {ours}\tmath-verify {theirs}")
    columns = ("cases", "rlif refuses", "rlif accepts", "math-verify refuses", "math-verify accepts")
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for kind, count in counts.items():
        print(f"| {kind} | {' | '.join(str(count[column]) for column in columns)} |")


if __name__ == "__main__":
    main()
