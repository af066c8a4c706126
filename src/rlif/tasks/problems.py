"""Problems of yours as a task: a list of them, rows with columns, a ``datasets.Dataset``."""

from collections.abc import Iterable, Mapping
from typing import Any

from rlif.config import FileTask
from rlif.errors import RlifError, named
from rlif.tasks.base import Task, digest
from rlif.tasks.files import ProblemList, problems_of
from rlif.types import Problem

Row = Mapping[str, Any]


class OwnProblems(ProblemList):
    """Problems handed over in Python; without ``eval_problems`` an evaluation uses those of training and says so."""

    def __init__(
        self, problems: tuple[Problem, ...], eval_problems: tuple[Problem, ...] | None, *, format: str, name: str
    ) -> None:
        super().__init__(format, train=problems, held_out=eval_problems, sources=(name, f"{name} (eval_problems)"))
        self.name = name

    def digests(self) -> Mapping[str, str]:
        """See `Task.digests`."""
        return {"task": digest(self._train), "task.eval_problems": digest(self._eval)}


def task_of(
    problems: Iterable[Problem | Row],
    *,
    eval_problems: Iterable[Problem | Row] | None = None,
    question: str | None = None,
    answer: str | None = None,
    format: str = "boxed",
    name: str = "problems",
) -> Task:
    """A task for `rlif.train`: its problems are drawn as those of a file, each once an epoch.

    Args:
        problems: `Problem`s, or rows with a column ``question`` (or ``problem``, ``prompt``, ``messages``) and, where
            known, ``answer`` and ``id``; a ``datasets.Dataset`` is such rows.
        eval_problems: held-out ones for evaluation; None: those of training.
        question: the column of the question, where it is called otherwise.
        answer: the column of the answer, where it is called otherwise.
        format: the extractor that decides `formatted` (docs/grading.md).
        name: what errors and ids call them.

    Raises `RlifError`, with the number of the row, for what is no problem and for an id that occurs twice.

    >>> import rlif
    >>> task = rlif.task_of([{"question": f"{a}+1=?", "answer": a + 1} for a in range(9)], format="last_number")
    >>> task.train_problems(step=1, count=2, seed=0) == task.train_problems(step=1, count=2, seed=0)
    True
    >>> task.grade("It is 4.", task.eval_problems(9)[3])
    Verdict(right=True, formatted=True, extracted='4')
    """
    columns = {"question_column": question, "answer_column": answer}
    with named({"question_column": "question", "answer_column": "answer"}):
        held_out = None if eval_problems is None else _read(eval_problems, f"{name} (eval_problems)", columns)
        return OwnProblems(_read(problems, name, columns), held_out, format=format, name=name)


def _read(items: Iterable[Problem | Row], name: str, columns: Mapping[str, str | None]) -> tuple[Problem, ...]:
    known = list(items)
    rows = [(f"{name}:{number}", _row(item, f"{name}:{number}")) for number, item in enumerate(known, start=1)]
    if all(isinstance(item, Problem) and item.answer is None for item in known):
        for _, row in rows:
            del row["answer"]  # a column that holds none would be taken for the wrong one
    of_rows: Mapping[str, Any] = {} if any(isinstance(item, Problem) for item in known) else columns
    return problems_of(rows, FileTask(name="file", path=name, **of_rows), source=name)


def _row(item: Any, where: str) -> dict[str, Any]:
    if isinstance(item, Problem):
        return {"id": item.id, "question": item.question, "answer": item.answer}
    if not isinstance(item, Mapping):
        raise RlifError(f"{where}: a {type(item).__name__}; expected a Problem, or a mapping with question and answer")
    return dict(item)
