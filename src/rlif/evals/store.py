"""The folder of an evaluation: what was asked, every answer, the numbers. Whole or absent, also after a kill.

    eval.json                        what was asked: settings, protocol of each task, models
    results.json                     the numbers (docs/evaluation.md); the main ones also as results.md and results.csv
    MODEL/model.json                 what answered
    MODEL/TASK/part-000000.parquet   graded answers, checksummed (rlif.utils.parquet_files); read the folder as one data
    set
    MODEL/TASK/_PASS/part-*.parquet  the same of a further pass (rlif.evals.passes), such as greedy

A folder takes one evaluation. Started again with the same settings it resumes with the answers that are missing. Of one
that ends before its first answer nothing stays.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlif.analysis.text import TENTHS, tenths
from rlif.errors import Argument, RlifError
from rlif.evals.backends.base import SIGNAL_NAMES, Answer
from rlif.evals.grader_mark import with_known_grader
from rlif.evals.json_text import as_json, first_difference
from rlif.evals.metrics import AnswerTable
from rlif.types import Problem, Verdict, labelled
from rlif.utils.atomic_io import LOCK, locked, make_folder, one_line, write_whole, writing
from rlif.utils.parquet_files import parquet_bytes, read_parquet

ASKED, RESULTS, MODEL = "eval.json", "results.json", "model.json"
BASELINES = "baselines"  # a key of eval.json, and of a result
_PART = "part-*.parquet"
_SPENT = b"rlif"  # key of a part's metadata
_DRAWN = "drawn"  # a column that is there only if it is not the length


@dataclass(frozen=True)
class GradedAnswer:
    """An answer, the problem it answers (the how-many-th of its task, from 0), and what the grader says."""

    answer: Answer
    problem: Problem
    position: int
    verdict: Verdict


@dataclass(frozen=True)
class Spent:
    """Seconds that some answers took, all in all and inside the model."""

    seconds: float = 0.0
    model_seconds: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds + other.seconds, self.model_seconds + other.model_seconds)


class Store:
    """One evaluation's folder, open for writing; made by `Store.open`."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @classmethod
    @contextmanager
    def open(cls, out: Path, asked: Mapping[str, Any]) -> Iterator["Store"]:
        """A new folder, or one in which the same was ``asked``, to resume.

        Raises `RlifError` if the folder holds anything else, if another process writes to it, or if it cannot be
        written.
        """
        if out.exists() and not out.is_dir():
            raise RlifError(f"{out}: a file, not a folder; choose another ", Argument("out"))
        known = out / ASKED
        if not known.exists() and out.is_dir() and any(path.name[0] != "." for path in out.iterdir()):
            raise RlifError(f"{out}: not empty, and no evaluation; choose a new or empty ", Argument("out"))
        made = not out.exists()
        with locked(out), _nothing_left_of_nothing(out, made=made):
            if known.exists() and not has_answers(out):
                _take_away(out)  # nothing that could be mixed up
            if not known.exists():
                with _writing(out):
                    write_whole(known, as_json(asked))
            elif difference := first_difference(
                begun := _with_known_graders(read_json(known)), _as_begun(asked, begun)
            ):
                raise RlifError(f"{out}: holds another evaluation ({difference}); choose another ", Argument("out"))
            elif first_difference(begun, json.loads(as_json(asked))):  # further passes are asked for
                when = known.stat()
                with _writing(out):
                    write_whole(known, as_json(asked))
                    os.utime(known, ns=(when.st_atime_ns, when.st_mtime_ns))  # of an old one the date of its start
            for half in out.rglob(".*.tmp"):
                half.unlink()
            yield cls(out)

    def begin_model(self, name: str, facts: Mapping[str, Any]) -> None:
        """Note what is about to answer. Raises `RlifError` if its answers so far are another model's."""
        path = self.folder(name) / MODEL
        if not path.exists():
            with _writing(self.out):
                make_folder(path.parent)
                write_whole(path, as_json({"name": name, **facts}))
        elif difference := first_difference(
            _settled(read_json(path)), _settled(json.loads(as_json({"name": name, **facts})))
        ):
            raise RlifError(f"{path.parent}: {name} has changed since ({difference}); choose another ", Argument("out"))

    def next_part(self, model: str, place: str) -> int:
        """The number of the first part of a task, or of a pass of it (`rlif.evals.passes.Pass.place`), that is not
        there yet."""
        found = parts(self.folder(model) / place)
        return max((int(path.stem.removeprefix("part-")) for path in found), default=-1) + 1

    def add(self, model: str, place: str, number: int, answers: Sequence[GradedAnswer], spent: Spent) -> None:
        """Write some graded answers as the part of that number, in the place of one that is there."""
        folder = self.folder(model) / place
        with _writing(self.out):
            make_folder(folder)
            write_whole(folder / f"part-{number:06d}.parquet", _parquet(answers, spent))

    def have(self, model: str, place: str) -> dict[str, set[int]]:
        """The problems that are answered, each with the samples that it has."""
        return answered(self.folder(model) / place)

    def write_results(self, results: Mapping[str, Any]) -> None:
        with _writing(self.out):
            write_whole(self.out / RESULTS, as_json(results))

    def write_texts(self, texts: Mapping[str, str]) -> None:
        """Files that say the results otherwise, by their names."""
        with _writing(self.out):
            for name, text in texts.items():
                write_whole(self.out / name, text.encode())

    def folder(self, model: str) -> Path:
        """Where a model's answers lie."""
        return self.out / slug(model)


@contextmanager
def _nothing_left_of_nothing(out: Path, *, made: bool) -> Iterator[None]:
    """Of an evaluation that ends before its first answer, whatever the reason, nothing stays; nor its folder, if it
    was ``made`` for it. Anything else in it does."""
    try:
        yield
    except BaseException:
        if not has_answers(out):
            _take_away(out)
            if made and {path.name for path in out.iterdir()} <= {LOCK}:
                (out / LOCK).unlink(missing_ok=True)
                out.rmdir()
        raise


def _take_away(out: Path) -> None:
    """What an evaluation writes before there is an answer."""
    for facts in list(out.glob(f"*/{MODEL}")):
        facts.unlink()
        for folder in (facts.parent, *sorted(path for path in facts.parent.rglob("*") if path.is_dir()))[::-1]:
            with suppress(OSError):  # not empty: something else lies there
                folder.rmdir()
    (out / ASKED).unlink(missing_ok=True)


def has_answers(out: Path) -> bool:
    """Whether a folder holds an answer of whatever model to whatever task."""
    return any(out.glob(f"*/*/**/{_PART}"))


def slug(name: str) -> str:
    """A model's name as a folder's: Qwen/Qwen3-1.7B-Base becomes Qwen--Qwen3-1.7B-Base, a path its last two parts."""
    parts = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..", "~")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "--".join(parts[-2:])).lstrip(".-") or "model"


def parts(folder: Path) -> list[Path]:
    """The parts of a task's answers, in order."""
    return sorted(folder.glob(_PART))


def answered(folder: Path) -> dict[str, set[int]]:
    """The problems that a folder of answers has, each with its samples. Raises `RlifError` for damaged answers."""
    columns = _read(folder, ["problem_id", "sample"])
    found: dict[str, set[int]] = defaultdict(set)
    for problem, sample in zip(columns["problem_id"], columns["sample"], strict=True):
        found[problem].add(sample)
    return found


@dataclass(frozen=True)
class Answers:
    """All answers of one model to one task: the columns that numbers are made of, and whose they are."""

    ids: tuple[str, ...]
    """Of the problems, in the order they were asked."""
    questions: tuple[str, ...]
    table: AnswerTable
    spent: Spent


def read_answers(folder: Path) -> Answers:
    """Read a task's folder back: problems in the order of the data, an answer to each from every sample. Of an answer
    that stands there twice the first one counts.

    Raises `RlifError` for a folder without answers or with damaged ones.
    """
    columns = _read(folder, None)
    if not columns["problem_id"]:
        raise RlifError(f"{folder}: holds no answers; run rlif eval first")
    first: dict[tuple[int, str, int], int] = {}
    for i, answer in enumerate(zip(columns["position"], columns["problem_id"], columns["sample"], strict=True)):
        first.setdefault(answer, i)
    order = [first[answer] for answer in sorted(first)]
    column = {name: [values[i] for i in order] for name, values in columns.items() if name != _SPENT.decode()}
    samples = max(column["sample"]) + 1
    if column["sample"] != list(range(samples)) * (len(order) // samples):
        raise RlifError(f"{folder}: answers are missing; run the same rlif eval again")
    graded = zip(column["right"], column["formatted"], column["extracted"], strict=True)
    verdicts = tuple(Verdict(*verdict) for verdict in graded)
    means = {name: _known(column[name], math.nan) for name in SIGNAL_NAMES}
    along = {name: _known(column[f"{name}_tenths"], [math.nan] * TENTHS) for name in SIGNAL_NAMES}
    table = AnswerTable(
        samples=samples,
        texts=tuple(column["completion"]),
        verdicts=verdicts,
        stops=tuple(column["stop_reason"]),
        lengths=np.array(column["length"], dtype=np.float64),
        means={name: np.array(values, dtype=np.float64) for name, values in means.items() if values},
        tenths={name: np.array(values, dtype=np.float64) for name, values in along.items() if values},
        drawn=None if None in column[_DRAWN] else np.array(column[_DRAWN], dtype=np.float64),
        labelled=np.array(labelled(column["answer"][::samples], verdicts)),
    )
    spent = sum((Spent(**one) for one in columns[_SPENT.decode()]), Spent())
    return Answers(tuple(column["problem_id"][::samples]), tuple(column["question"][::samples]), table, spent)


def answers_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Each answer of a task's folder with all its columns, problems in the order of the data; of an answer that stands
    there twice the first one. Raises `RlifError` for damaged answers."""
    columns = _read(folder, None)
    columns.pop(_SPENT.decode())
    first: dict[tuple[int, str, int], int] = {}
    for i, answer in enumerate(zip(columns["position"], columns["problem_id"], columns["sample"], strict=True)):
        first.setdefault(answer, i)
    for answer in sorted(first):
        yield {name: values[first[answer]] for name, values in columns.items()}


def _known(values: list[Any], unknown: Any) -> list[Any]:
    """A signal of every answer, ``unknown`` where there is none; nothing if none is known at all."""
    if all(value is None for value in values):
        return []
    return [unknown if value is None else value for value in values]


def read_json(path: Path) -> Any:
    """A JSON file of ours. Raises `RlifError` if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RlifError(f"{path}: cannot be read ({error.strerror}); give the folder of an rlif eval") from error
    except ValueError as error:
        raise RlifError(f"{path}: not JSON ({one_line(error)}); choose another ", Argument("out")) from error


def _read(folder: Path, names: list[str] | None) -> dict[str, list[Any]]:
    """The columns of all parts, one behind the other; under the key of `_SPENT` what each part took."""
    import pyarrow

    found: dict[str, list[Any]] = {name: [] for name in names or _COLUMNS} | {_SPENT.decode(): []}
    for path in parts(folder):
        try:
            table = read_parquet(path, names)
            found[_SPENT.decode()].append(json.loads(table.schema.metadata[_SPENT]))
            for name in names or _COLUMNS:
                known = name != _DRAWN or name in table.column_names
                found[name] += table[name].to_pylist() if known else [None] * table.num_rows
        except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise RlifError(f"{path}: damaged ({one_line(error)}); delete it and run rlif eval again") from error
    return found


_COLUMNS = (
    *("position", "problem_id", "sample", "question", "answer", "prompt", "completion", "extracted", "right"),
    *("formatted", "length", "stop_reason", *SIGNAL_NAMES, *(f"{name}_tenths" for name in SIGNAL_NAMES), _DRAWN),
)


def _parquet(graded: Sequence[GradedAnswer], spent: Spent) -> bytes:
    import pyarrow as pa

    def column(type: Any, values: Iterator[Any]) -> Any:
        return pa.array(list(values), type)

    text, number = pa.string(), pa.float64()
    answers = [one.answer for one in graded]
    columns = {
        "position": column(pa.int32(), (one.position for one in graded)),
        "problem_id": column(text, (answer.problem_id for answer in answers)),
        "sample": column(pa.int32(), (answer.sample for answer in answers)),
        "question": column(text, (one.problem.question for one in graded)),
        "answer": column(text, (one.problem.answer for one in graded)),
        "prompt": column(text, (answer.prompt for answer in answers)),
        "completion": column(text, (answer.text for answer in answers)),
        "extracted": column(text, (one.verdict.extracted for one in graded)),
        "right": column(pa.bool_(), (one.verdict.right for one in graded)),
        "formatted": column(pa.bool_(), (one.verdict.formatted for one in graded)),
        "length": column(pa.int32(), (answer.n_tokens for answer in answers)),
        "stop_reason": column(text, (answer.stop for answer in answers)),
        **{name: column(number, (getattr(answer, name) for answer in answers)) for name in SIGNAL_NAMES},
        **{
            f"{name}_tenths": column(pa.list_(pa.float32()), (_tenths(answer, name) for answer in answers))
            for name in SIGNAL_NAMES
        },
    }
    if any(answer.drawn is not None for answer in answers):
        columns[_DRAWN] = column(pa.int64(), (answer.drawn for answer in answers))
    return parquet_bytes(columns, {_SPENT: json.dumps(spent.__dict__).encode()})


def _tenths(answer: Answer, name: str) -> list[float] | None:
    values = getattr(answer.trace, name) if answer.trace else None
    return tenths(values).tolist() if values is not None else None


def _as_begun(asked: Mapping[str, Any], begun: Any) -> Any:
    """What is ``asked`` now, without the passes that an evaluation was not begun with: they may be added."""
    now = json.loads(as_json(asked))
    before = begun.get(BASELINES) if isinstance(begun, dict) else None
    if before is None:
        now.pop(BASELINES, None)
    elif isinstance(before, dict):
        now[BASELINES] = {name: one for name, one in now.get(BASELINES, {}).items() if name in before}
    return now


def _with_known_graders(asked: Any) -> Any:
    """What was asked, each task's grader by its mark of today; anything that is no such record as it is."""
    tasks = asked.get("tasks") if isinstance(asked, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(protocol, dict) for protocol in tasks.values()):
        return asked
    return {**asked, "tasks": {name: with_known_grader(protocol) for name, protocol in tasks.items()}}


def _settled(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change between two sittings: a server may have moved to another address."""
    return {name: value for name, value in facts.items() if name != "endpoint"}


def _writing(out: Path) -> AbstractContextManager[None]:
    return writing(out, "what was written before is intact: put that right and run the same command")
