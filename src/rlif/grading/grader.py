r"""Two verdicts on an answer: is it right, and does it stand in the form that was asked for?

`right` reads the answer in whatever form it was given (a box, after ``####``, after "the answer is", else what the text
ends with). `formatted` asks one extractor of the task's choice. The two are kept apart because an early gain in the
usual score is often the format alone (arXiv 2506.17219).

Equivalence is decided by the cheapest judge that can: reading (`rlif.grading.equivalence`), then math-verify in a
worker process that can be killed (`rlif.grading.math_worker`). docs/grading.md says what counts as right, and where
others disagree.
"""

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from rlif.grading.equivalence import compare_quickly
from rlif.grading.extraction import EXTRACTORS, boxed, extract_any, find_extractor, without_thoughts
from rlif.grading.math_worker import MathWorker
from rlif.grading.normalize import clean
from rlif.grading.readings import readings

if TYPE_CHECKING:
    import rlif.types  # it loads torch, which a grader can do without

__all__ = ["EXTRACTORS", "Grader", "boxed", "clean", "compare_quickly", "extract_any", "find_extractor"]

GRADER_VERSION = "3"
"""Stands in the results of every evaluation. Raise it whenever a verdict can change: an evaluation that another version
began is not resumed, and `rlif compare` says where two differ. tests/grading/test_grader_version.py asks."""

LONGEST_ANSWER = 2000
"""Characters by which an answer may be longer than the ground truth before it is wrong unread."""


class Grader:
    """Judges answers, with a worker process for those that need algebra; it starts when first needed.

    A context manager, but leaving it open harms nobody: the worker ends with its owner. One thread at a time.

    >>> import rlif
    >>> with rlif.Grader() as grader:
    ...     grader.grade(r"So it is \\boxed{1/2}.", "0.5", format="boxed", row_id="half").right
    True
    """

    def __init__(self, *, time_limit: float = 5.0, memory_limit: int = 2 << 30) -> None:
        """Limits on the algebra of one answer: seconds, and bytes of address space (enforced on Linux)."""
        self._worker = MathWorker(time_limit, memory_limit)
        self._algebra = lru_cache(maxsize=4096)(self._worker.equivalent)  # the answers of a group agree more than not

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker. The grader stays usable."""
        self._worker.close()

    def grade(self, text: str, answer: str | None, *, format: str, row_id: str) -> "rlif.types.Verdict":
        """Judge a completion against the ground truth ``answer``; ``format`` is a key of `EXTRACTORS`.

        Thoughts are not graded (`without_thoughts`): while they are not closed, there is no answer and no form.
        An answer too long to be read is wrong, and not ``extracted``. ``right`` is None if there is no ground truth,
        or if the algebra could not tell (a limit, an undefined value).
        Raises `RlifError` for an unknown format, RuntimeError naming ``row_id`` if grading itself fails.
        """
        from rlif.types import Verdict

        in_form = find_extractor(format)
        try:
            said = without_thoughts(text)
            if said is None:
                return Verdict(False if answer is not None else None, False, None)
            found = in_form(said)
            formatted = found is not None
            # The answer in the asked form is the answer: another one elsewhere in the text neither saves nor spoils it.
            found = found if found is not None else extract_any(said)
            too_long = found is not None and len(found) > len(answer or "") + LONGEST_ANSWER
            read = found if found is None or too_long or in_form.same else clean(found)
            extracted = _printable(read) if read is not None and not too_long else None
            right = self._right(answer, extracted, in_form.same) if answer is not None else None
        except Exception as error:
            raise RuntimeError(f"{row_id}: grading failed: {error}") from error
        return Verdict(right, formatted, extracted)

    def _right(self, answer: str, extracted: str | None, same: Callable[[str, str], bool] | None) -> bool | None:
        if extracted is None:
            return False
        if same is not None:
            return same(answer, extracted)
        pairs = readings(clean(answer), extracted)
        verdicts = [compare_quickly(*pair) for pair in pairs]
        if True in verdicts:
            return True
        undecided = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
        verdicts = [self._algebra(*pair) for pair in undecided]
        return True if True in verdicts else None if None in verdicts else False


def _printable(text: str) -> str:
    """What can be shown: other spaces and controls as spaces, without invisible marks, the rest as U+FFFD."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _stand_in(one) for one in text)


def _stand_in(character: str) -> str:
    category = unicodedata.category(character)
    return " " if category[0] == "Z" or category == "Cc" else "" if category == "Cf" else "\ufffd"
