r"""Problems from a file of yours: JSONL or Parquet, columns by your names.

GSM8K and MATH are this loader with their columns as defaults. Original hub files are read as they are: openai/gsm8k
(the answer stands after ``####``), HuggingFaceH4/MATH-500, DigitalLearningGmbH/MATH-lighteval (the answer is the last
``\boxed`` of the solution).
"""

import json
import logging
import math
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlif.config import FileTask
from rlif.errors import Argument, RlifError
from rlif.grading.extraction import boxed, find_extractor
from rlif.rng import keyed_random
from rlif.tasks.base import EVAL_SEED, GradedTask, digest, too_few, walk
from rlif.tasks.templates import find_template
from rlif.types import Problem
from rlif.utils.paths import expanded

if TYPE_CHECKING:
    import pyarrow

_LOG = logging.getLogger(__name__)

Row = dict[str, Any]
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
    """The problems of ``config.path`` to train on, those of ``config.eval_path`` to evaluate on."""

    def __init__(self, config: FileTask, base_dir: Path | None = None) -> None:
        """Reads the files; a relative path starts from ``base_dir`` (None: the current folder). Raises `RlifError`."""
        self.name: str = config.name
        format = config.format or find_template(config.template).format
        find_extractor(format)  # before anything is read
        path, eval_path = (_resolve(path, base_dir) for path in (config.path, config.eval_path or config.path))
        train = read_problems(path, config, limit=config.limit)
        held_out = None if config.eval_path is None else read_problems(eval_path, config, argument="eval_path")
        super().__init__(format, train=train, held_out=held_out, sources=(str(path), str(eval_path)))

    def digests(self) -> Mapping[str, str]:
        """See `Task.digests`."""
        return {"task.path": digest(self._train), "task.eval_path": digest(self._eval)}


@lru_cache
def _say_shared(source: str) -> None:
    """Once for each source, not at every evaluation."""
    _LOG.warning("%s: evaluation uses training problems; set eval_path to held-out ones", source)


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
    "file": Schema(("problem", "question"), {"answer": _answer}),
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
    path: Path, config: FileTask, *, limit: int | None = None, argument: str = "path"
) -> tuple[Problem, ...]:
    """The problems of a file, in its order; only the first ``limit`` if given. ``argument``: whose value the path is.

    Raises `RlifError`, with file and line (Parquet: row), for a missing or empty file, a line that is not a JSON
    object, a missing column, a field that is not text, and an id that occurs twice.
    """
    return problems_of(islice(rows_of(path, argument), limit), config, source=str(path))


def rows_of(path: Path, argument: str = "path") -> Iterator[tuple[str, Row]]:
    """The rows of a JSONL or Parquet file, each with FILE:LINE; ``argument`` is what an error tells to check.

    Raises `RlifError` for a file it cannot read.
    """
    if path.suffix not in FORMATS:
        raise RlifError(f"{path}: expected a file whose name ends in {' or '.join(FORMATS)}")
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe would be waited for, and can be read only once
            raise RlifError(f"{path}: no regular file; write the problems to one first")
        path.open("rb").close()
    except OSError as error:
        raise RlifError(f"{path}: {error.strerror}; check ", Argument(argument)) from error
    return FORMATS[path.suffix](path)


def problems_of(
    rows: Iterable[tuple[str, Row]], config: FileTask, *, source: str, name_columns: bool = True
) -> tuple[Problem, ...]:
    """Rows, each with where it stands, as problems; ``source`` is what holds them all. Raises as `read_problems`.

    ``name_columns``: whether errors may advise to name another column; an evaluation takes the usual ones.
    """
    columns: Columns | None = None
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        columns = columns or _find_columns(row, config, where, name_columns)
        if columns.answer is None and (late := _answer_column(row, config)) is not None:
            raise RlifError(f"{where}: has a column {late!r} that the first row lacks; give it to every row, or null")
        problem = _problem(row, columns, where)
        if problem.id in seen:
            raise RlifError(f"{where}: the id {problem.id!r} was used before, in {seen[problem.id]}; ids must differ")
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise RlifError(f"{source}: holds no problems")
    if columns and columns.answer and not any(problem.answer for problem in problems):
        remedy = ("name another in ", Argument("answer_column")) if name_columns else ("put the answers there",)
        raise RlifError(f"{source}: no answer in column {columns.answer!r} of any row; ", *remedy)
    return tuple(problems)


def _resolve(path: str, base_dir: Path | None) -> Path:
    return (base_dir or Path()) / expanded(path)


def _find_columns(row: Row, config: FileTask, where: str, name_columns: bool) -> Columns:
    """Decide from the first row which columns to read: those the recipe names, else the schema's usual ones."""
    schema = SCHEMAS[config.name]
    question = config.question_column or next((name for name in schema.questions if name in row), None)
    if question is None:
        usual = " or ".join(map(repr, schema.questions))
        name_it = ("name the question's in ", Argument("question_column"))
        remedy = name_it if name_columns else ("rename the question's",)
        raise RlifError(f"{where}: no column {usual}; ", *remedy, f" ({_there_are(row)})")
    answer = _answer_column(row, config)
    read_answer = schema.answers.get(answer or "", schema.answers["answer"])
    return Columns(question, answer, read_answer, config.id_column or next((n for n in schema.ids if n in row), None))


def _answer_column(row: Row, config: FileTask) -> str | None:
    """The column that the recipe names, else the first of the usual ones that this row has."""
    return config.answer_column or next((name for name in SCHEMAS[config.name].answers if name in row), None)


def _problem(row: Row, columns: Columns, where: str) -> Problem:
    text = partial(_text, row, where=where)
    question = text(columns.question)
    if not question or question.isspace():
        raise RlifError(f"{where}: column {columns.question!r} is empty")
    answer = _known(text(columns.answer)) if columns.answer else None
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


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as lines:  # bytes end a line at \n alone; text would also break at U+2028 inside a problem
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                # Numbers stay as they are written: an answer of 0.10 is not the float nearest to it.
                row = json.loads(line.decode("utf-8-sig"), parse_float=str, parse_int=str, parse_constant=_no_number)
            except UnicodeDecodeError as error:
                raise RlifError(f"{where}: not UTF-8; save the file in that encoding") from error
            except (ValueError, RecursionError) as error:
                raise RlifError(f"{where}: not JSON ({error}); each line holds one JSON object") from error
            if not isinstance(row, dict):
                raise RlifError(f"{where}: a {type(row).__name__}, not a JSON object")
            yield where, row


def _no_number(_name: str) -> None:
    """``NaN``, ``Infinity`` and ``-Infinity``, which Python's JSON knows beside the standard's, are missing values."""


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in _rows(batch))
            for number, row in enumerate(rows, start=1):
                yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise RlifError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error


def _rows(batch: "pyarrow.RecordBatch") -> list[Row]:
    """The rows of a batch; a float as the shortest decimal that its own width tells from its neighbours."""
    import pyarrow

    columns = []
    for column in batch.columns:
        narrow = pyarrow.types.is_float32(column.type) or pyarrow.types.is_float16(column.type)
        # As a Python float, 0.1 of 32 bits would be 0.10000000149011612; NumPy's scalars know their width.
        columns.append(
            [_shortest(one) for one in column.to_numpy(zero_copy_only=False)] if narrow else column.to_pylist()
        )
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _shortest(number: Any) -> Decimal | None:
    """A NumPy float as a decimal; None for what is no number. A null of Arrow comes as NaN, too."""
    return Decimal(str(number)) if math.isfinite(number) else None


FORMATS: Mapping[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
"""File name endings to readers; each yields FILE:LINE and the row."""
