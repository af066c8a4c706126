r"""Problems from a data set of yours: a file, or one of the hub; columns by your names.

GSM8K and MATH are this loader with their columns as defaults. Original hub files are read as they are: openai/gsm8k
(the answer stands after ``####``), HuggingFaceH4/MATH-500, DigitalLearningGmbH/MATH-lighteval (the answer is the last
``\boxed`` of the solution).
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from rlif.config import FileTask
from rlif.errors import Argument, RlifError
from rlif.grading.extraction import boxed, find_extractor
from rlif.rng import keyed_random
from rlif.tasks.base import EVAL_SEED, GradedTask, digest, too_few, walk
from rlif.tasks.conversations import exchange_in, is_conversation
from rlif.tasks.readers import Row, is_on_hub, rows_in
from rlif.tasks.templates import find_template
from rlif.types import Problem
from rlif.utils.paths import expanded

_LOG = logging.getLogger(__name__)

Reader = Callable[[str], str | None]


class ProblemList(GradedTask):
    """Problems that are all there: those of ``train`` to train on, those of ``held_out`` to evaluate on (None: the
    former). ``sources`` is what errors call the two."""

    def __init__(
        self, format: str, *, train: tuple[Problem, ...], held_out: tuple[Problem, ...] | None, sources: tuple[str, str]
    ) -> None:
        super().__init__(format)
        self._train, self._train_source = train, sources[0]
        self._eval, self._eval_source = (train, sources[0]) if held_out is None else (held_out, sources[1])

    def train_problems(self, step: int, count: int, seed: int) -> tuple[Problem, ...]:
        """See `Task.train_problems`. Each epoch shows every row once, in an order of its own."""
        if count > len(self._train):
            have = len(self._train)
            raise too_few(self._train_source, have, count, "lower ", Argument("prompts"), f" to {have} at most")
        return tuple(self._train[row] for row in walk(len(self._train), step, count, seed))

    def eval_problems(self, count: int, seed: int = EVAL_SEED) -> tuple[Problem, ...]:
        """See `Task.eval_problems`. Rows in their order; a smaller ``count`` takes some of a larger one's."""
        if count > len(self._eval):
            have = len(self._eval)
            raise too_few(self._eval_source, have, count, "lower ", Argument("eval_problems"), f" to {have}")
        if self._eval is self._train:
            _say_shared(self._eval_source)
        rows = list(range(len(self._eval)))
        keyed_random("eval", seed).shuffle(rows)
        return tuple(self._eval[row] for row in sorted(rows[:count]))

    def problems_to_fit(self) -> tuple[Problem, ...]:
        """See `Task.problems_to_fit`."""
        return tuple(dict.fromkeys((*self._train, *self._eval)))


class ProblemFile(ProblemList):
    """The problems of ``config.path`` to train on, those of ``config.eval_path`` to evaluate on. ``no_answers``: why
    none to train on has an answer, where a column that was not read may hold them; else empty."""

    def __init__(self, config: FileTask, base_dir: Path | None = None) -> None:
        """Reads the files; a relative path starts from ``base_dir`` (None: the current folder). Raises `RlifError`."""
        self.name: str = config.name
        format = config.format or find_template(config.template).format
        find_extractor(format)  # before anything is read
        source, held_out_source = _name(config.path, base_dir, config.split), ""
        absent: list[str] = []
        train = read_problems(config.path, config, base_dir, limit=config.limit, unanswered=absent.append)
        held_out = None
        if config.eval_path is not None or config.eval_split is not None:
            path, split = config.eval_path or config.path, config.eval_split or "test"
            argument = "path" if config.eval_path is None else "eval_path"
            held_out = read_problems(path, config, base_dir, split=split, argument=argument)
            held_out_source = _name(path, base_dir, split)
        super().__init__(format, train=train, held_out=held_out, sources=(source, held_out_source))
        self.no_answers = absent[0] if absent else ""

    def digests(self) -> Mapping[str, str]:
        """See `Task.digests`."""
        return {"task.path": digest(self._train), "task.eval_path": digest(self._eval)}


@lru_cache
def _say_shared(source: str) -> None:
    """Once for each source, not at every evaluation."""
    _LOG.warning("%s: evaluation uses training problems; set task.eval_path=FILE to held-out ones", source)


@dataclass(frozen=True)
class Schema:
    """Where a data set keeps its fields: candidate columns, the first that exists wins."""

    questions: tuple[str, ...]
    answers: Mapping[str, Reader]
    """Column to how the answer is read from its text."""
    ids: tuple[str, ...] = ("id", "unique_id")


def _whole(text: str) -> str | None:
    return text.strip() or None


_THOUSANDS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")


def _gsm8k_answer(text: str) -> str | None:
    """What follows ``####``, without thousands separators: 1,234 is one number, ``1, 2`` and ``1,2`` are two."""
    return _whole(_THOUSANDS.sub(lambda number: number.group().replace(",", ""), text.rpartition("####")[2]))


def _answer(text: str) -> str | None:
    """The answer as it is written; of a solution that ends as GSM8K's do, what follows ``####``."""
    return _gsm8k_answer(text) if "####" in text else _whole(text)


SCHEMAS: Mapping[str, Schema] = {
    "file": Schema(("problem", "question", "prompt", "messages"), {"answer": _answer}),
    "gsm8k": Schema(("question", "problem"), {"answer": _gsm8k_answer}),
    "math": Schema(("problem", "question"), {"answer": _answer, "solution": boxed}),
}
"""The usual columns of each task name."""


@dataclass(frozen=True)
class Columns:
    """The columns a file is read from; None: it has no such column."""

    question: str
    answer: str | None
    read_answer: Reader
    id: str | None


def read_problems(
    source: str | Path,
    config: FileTask,
    base_dir: Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    argument: str = "path",
    unanswered: Callable[[str], None] | None = None,
) -> tuple[Problem, ...]:
    """The problems of a data set, in its order; only the first ``limit`` if given.

    Args:
        source: a file, relative to ``base_dir`` (None: the current folder), or a data set of the hub.
        split: of the hub's; None: that of the config.
        argument: whose value the source is, for messages.
        unanswered: see `problems_of`.

    Raises `RlifError`, with file and line (Parquet: row), for a missing or empty file, a line that is not a JSON
    object, a missing column, a field that is not text, and an id that occurs twice.
    """
    source, split = str(source), split or config.split
    rows = rows_in(source, base_dir, config=config.config, split=split, argument=argument)
    return problems_of(islice(rows, limit), config, source=_name(source, base_dir, split), unanswered=unanswered)


def problems_of(
    rows: Iterable[tuple[str, Row]],
    config: FileTask,
    *,
    source: str,
    unanswered: Callable[[str], None] | None = None,
) -> tuple[Problem, ...]:
    """Rows, each with where it stands, as problems; ``source`` is what holds them all. ``unanswered`` is told if no
    column was found that could hold answers, though there are others than were read. Raises as `read_problems`."""
    columns: Columns | None = None
    first: Row = {}
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    asked = config.answer_column is not None  # or something stands in the usual column
    for where, row in rows:
        if columns is None:
            columns, first = _find_columns(row, config, where), row
        if columns.answer is None and (late := _answer_column(row, config)) is not None:
            raise RlifError(f"{where}: has a column {late!r} that the first row lacks; give it to every row, or null")
        problem = _problem(row, columns, where)
        asked = asked or (columns.answer is not None and row[columns.answer] is not None)
        if problem.id in seen:
            raise RlifError(f"{where}: the id {problem.id!r} was used before, in {seen[problem.id]}; ids must differ")
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise RlifError(f"{source}: holds no problems")
    if columns and columns.answer and asked and not any(problem.answer for problem in problems):
        said = f"{source}: no answer in column {columns.answer!r} of any row; name another in "
        raise RlifError(said, Argument("answer_column"))
    bare = columns is not None and columns.answer is None and not any(problem.answer for problem in problems)
    if unanswered and columns and bare and set(first) - {columns.question, columns.id}:
        unanswered(f"no column {next(iter(SCHEMAS[config.name].answers))!r} ({_there_are(first)})")
    return tuple(problems)


def _name(source: str, base_dir: Path | None, split: str) -> str:
    """What messages call a data set."""
    return f"{source} ({split})" if is_on_hub(source, base_dir) else str((base_dir or Path()) / expanded(source))


def _find_columns(row: Row, config: FileTask, where: str) -> Columns:
    """Decide from the first row which columns to read: those the recipe names, else the schema's usual ones."""
    schema = SCHEMAS[config.name]
    question = config.question_column or next((name for name in schema.questions if name in row), None)
    if question is None:
        *most, last = map(repr, schema.questions)
        usual = f"{', '.join(most)} or {last}"
        name_it = ("; name the question's in ", Argument("question_column"))
        raise RlifError(f"{where}: no column {usual}", *name_it, f" ({_there_are(row)})")
    answer = _answer_column(row, config)
    read_answer = schema.answers.get(answer or "", schema.answers["answer"])
    return Columns(question, answer, read_answer, config.id_column or next((n for n in schema.ids if n in row), None))


def _answer_column(row: Row, config: FileTask) -> str | None:
    """The column that the recipe names, else the first of the usual ones that this row has."""
    return config.answer_column or next((name for name in SCHEMAS[config.name].answers if name in row), None)


def _problem(row: Row, columns: Columns, where: str) -> Problem:
    text = partial(_text, row, where=where)
    exchange = None
    if is_conversation(row.get(columns.question)):
        exchange = exchange_in(row[columns.question], f"{where}: column {columns.question!r}")
    question = exchange.question if exchange else text(columns.question)
    if not question or question.isspace():
        raise RlifError(f"{where}: column {columns.question!r} is empty")
    answer = _known(text(columns.answer)) if columns.answer else exchange and exchange.answer
    name = text(columns.id) if columns.id else Path(where).name
    if not name:
        raise RlifError(f"{where}: column {columns.id!r} is empty")
    return Problem(name, question, columns.read_answer(answer) if answer else None)


MISSING = frozenset({"nan", "null", "n/a", "<na>"})
"""Ground truths, in lower case, that say that there is none. ``none`` and ``undefined`` may be answers, and stay."""


def _known(answer: str | None) -> str | None:
    """A ground truth; None where the file has another name for a missing one, or blanks."""
    return None if answer is None or answer.strip().casefold() in {"", *MISSING} else answer


def _text(row: Row, column: str, *, where: str) -> str | None:
    """A field as text; None for null and for a number that is none (NaN, infinity)."""
    if column not in row:
        raise RlifError(f"{where}: no column {column!r} ({_there_are(row)})")
    value = row[column]
    if value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = format(Decimal(repr(value)), "f")
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        value = format(value, "f")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RlifError(f"{where}: column {column!r} holds a {type(value).__name__}; expected text or a number")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RlifError(f"{where}: column {column!r} holds half a character (a lone surrogate); repair the file")
    return text


def _there_are(row: Row) -> str:
    return f"there are {', '.join(row)}" if row else "there are none"
