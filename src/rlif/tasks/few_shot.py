"""Worked examples that stand before a question: a fixed set of our own, or drawn from a training file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif.errors import Argument, RlifError
from rlif.grading.extraction import boxed


@dataclass(frozen=True)
class Shot:
    """A question with its solution: the steps, and the answer alone."""

    question: str
    reasoning: str
    answer: str


FIXED: tuple[Shot, ...] = (
    Shot(
        "A shelf has 4 rows of 6 jars. Nine of the jars are empty. How many jars are full?",
        "There are 4 * 6 = 24 jars on the shelf. Of these 24 - 9 = 15 are full.",
        "15",
    ),
    Shot(
        "Mira reads 12 pages every evening for a week, and 20 more pages on Sunday morning. How many pages is that?",
        "In 7 evenings she reads 7 * 12 = 84 pages. With the 20 on Sunday morning that is 84 + 20 = 104 pages.",
        "104",
    ),
    Shot(
        "A pen costs 3 dollars and a notebook costs twice as much. What do 2 pens and 3 notebooks cost, in dollars?",
        "A notebook costs 2 * 3 = 6 dollars. Two pens cost 2 * 3 = 6 dollars and three notebooks 3 * 6 = 18 dollars. "
        "Together that is 6 + 18 = 24 dollars.",
        "24",
    ),
    Shot(
        "A train leaves with 180 passengers. At the first stop a third of them get off and 25 get on. How many are in "
        "the train then?",
        "A third of 180 is 180 / 3 = 60, so 180 - 60 = 120 stay. With 25 more there are 120 + 25 = 145 passengers.",
        "145",
    ),
    Shot(
        "The sides of a rectangle are 8 and 15. How long is its diagonal?",
        "The diagonal is the hypotenuse of a right triangle with legs 8 and 15. Its square is 64 + 225 = 289, and the "
        "square root of 289 is 17.",
        "17",
    ),
    Shot(
        "For which x is 5x - 7 equal to 2x + 11?",
        "Subtracting 2x from both sides leaves 3x - 7 = 11. Adding 7 gives 3x = 18, so x = 18 / 3 = 6.",
        "6",
    ),
    Shot(
        "Tom saves 15 % of his wage of 800 dollars each month. How many dollars has he saved after half a year?",
        "15 % of 800 is 0.15 * 800 = 120 dollars a month. Half a year has 6 months, so he has saved 6 * 120 = 720 "
        "dollars.",
        "720",
    ),
    Shot(
        "Two dice are thrown. In how many of the 36 outcomes is the sum 9?",
        "The pairs with sum 9 are (3, 6), (4, 5), (5, 4) and (6, 3). That is 4 outcomes.",
        "4",
    ),
)
"""Written for this project; the first N are used."""

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations


def read_shots(path: Path, count: int | None) -> tuple[Shot, ...]:
    """The first ``count`` problems of a training file that come with a worked solution; None: all of them.

    Columns: question or problem; solution, and answer unless the solution holds it in a box; or, as in GSM8K, an answer
    that is the solution with ``####`` before the answer itself. Raises `RlifError` if the file has fewer, or none.
    """
    from rlif.tasks.readers import rows_of

    shots = [shot for shot in _shots(rows_of(path, "shots_from")) if shot is not None]
    if len(shots) < (count or 1):
        have = f"{path}: {len(shots)} rows with a question, a solution and an answer"
        if count is None:
            raise RlifError(f"{have}; give a file that has them")
        raise RlifError(f"{have}, but ", Argument("shots"), f" {count}")
    return tuple(shots[:count])


def _shots(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[Shot | None]:
    for _, row in rows:
        question = row.get("question") or row.get("problem")
        solution, answer = row.get("solution"), str(row.get("answer") or "")
        if not solution and "####" in answer:
            solution, _, answer = answer.partition("####")
        if solution and not answer:
            answer = boxed(str(solution)) or ""
        fields = [question, solution, answer]
        if all(isinstance(field, str) and field.strip() for field in fields):
            yield Shot(str(question).strip(), _CALCULATOR.sub("", str(solution)).strip(), answer.strip())
