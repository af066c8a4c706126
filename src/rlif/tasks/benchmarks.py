"""Benchmarks by name: where the hub keeps them, in which schema, and how they are put to a model unless told otherwise.

Rows come from a local file (``--data NAME=PATH``) or, through the optional package datasets, from the hub. A name that
is not in the table is a data set of your own. A new benchmark is one line in `BENCHMARKS`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from rlif.config import ArithmeticTask, FileTask, GymTask, OwnData, OwnTask
from rlif.errors import Argument, RlifError, did_you_mean
from rlif.rng import keyed_random
from rlif.tasks.arithmetic import Arithmetic
from rlif.tasks.base import EVAL_SEED, Task
from rlif.tasks.files import problems_of
from rlif.tasks.gym import Gym, installed_version
from rlif.tasks.own import own_task
from rlif.tasks.readers import hub_rows, rows_in
from rlif.types import Problem
from rlif.utils.own_code import is_reference, record

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """A data set that models are compared on.

    Attributes:
        hub, config, split: where the hub keeps it; no hub: it is generated, or a file of yours.
        schema: a key of `rlif.tasks.files.SCHEMAS`.
        size: how many problems the whole of it has (of a generated one: without a limit); None if that is not fixed.
        template: the prompt template used unless another is asked for.
        max_new_tokens: the length limit used unless another is asked for.
        ids: the id of a row that has none, with ``{row}`` counted from 0; empty: file and line.
        format: the extractor that decides `formatted`; None: the one the template asks for.
        generated: what to generate, for one that comes from nowhere.
        leaderboard: its task in the hub's own table of results, where the data set has one; its scores are in percent.
    """

    name: str
    schema: Literal["file", "gsm8k", "math"]
    template: str
    max_new_tokens: int
    citation: str
    hub: str = ""
    config: str | None = None
    split: str = "test"
    size: int | None = None
    ids: str = ""
    format: str | None = None
    generated: ArithmeticTask | GymTask | OwnTask | None = None
    leaderboard: str = ""


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="gsm8k",
            schema="gsm8k",
            template="boxed",
            max_new_tokens=512,
            citation="arXiv 2110.14168",
            hub="openai/gsm8k",
            config="main",
            size=1319,
            ids="gsm8k/test/{row}",
            leaderboard="gsm8k",
        ),
        Benchmark(
            name="math500",
            schema="math",
            template="boxed",
            max_new_tokens=2048,
            citation="arXiv 2305.20050, a subset of arXiv 2103.03874",
            hub="HuggingFaceH4/MATH-500",
            size=500,
        ),
        Benchmark(
            name="aime2025",
            schema="math",
            template="boxed",
            max_new_tokens=8192,
            citation="American Invitational Mathematics Examination 2025, I and II",
            hub="math-ai/aime25",
            size=30,
        ),
        Benchmark(
            name="math_train",
            schema="math",
            template="boxed",
            max_new_tokens=2048,
            citation="arXiv 2103.03874; for training, not for results",
            hub="DigitalLearningGmbH/MATH-lighteval",
            split="train",
            size=7500,
            ids="math/train/{row}",
        ),
        Benchmark(
            name="arithmetic",
            schema="file",
            template="plain",
            max_new_tokens=96,
            size=512,
            citation="generated: two-digit additions, those that training never sees (rlif.tasks.arithmetic)",
            generated=ArithmeticTask(name="arithmetic"),
        ),
        Benchmark(
            name="additions",
            schema="file",
            template="plain",
            max_new_tokens=48,
            size=40,
            format="last_number",
            citation="generated: additions of 1 to 20 in words, those that training never sees (rlif.tasks.arithmetic)",
            generated=ArithmeticTask(name="arithmetic", low=1, high=20, question="What is {a} + {b}?"),
        ),
    )
}

_OWN_TOKENS = 1024
GENERATED = 512
"""Problems of a data set that has no end, unless a limit is given."""


GYM = "reasoning_gym."
"""What the names of benchmarks begin with that are data sets of the package reasoning-gym."""


def find_benchmark(name: str, *, data: str | None) -> Benchmark:
    """A benchmark by name; with ``data``, any other name stands for that file, or for what that function makes.

    Raises `RlifError` for an unknown one.
    """
    usual: dict[str, Any] = {"schema": "file", "template": "boxed", "max_new_tokens": _OWN_TOKENS}
    if data is not None and is_reference(data):
        code = record(data, "task").get("sha256", "")[:12]  # what judges: with another one no evaluation is resumed
        return Benchmark(name, **usual, citation=f"a task of yours, {data} {code}", generated=OwnTask(name=data))
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if data is not None:
        return Benchmark(name, **usual, citation="a file of yours")
    if name.startswith(GYM):
        section = GymTask(name="reasoning_gym", dataset=name.removeprefix(GYM))
        said = f"reasoning-gym {installed_version()}: problems of {section.dataset} that training never sees"
        return Benchmark(name, **usual, citation=said, size=GENERATED, generated=section)
    raise RlifError(
        *(Argument("tasks"), f": no benchmark {name!r}{did_you_mean(name, BENCHMARKS)} "),
        f"(there are {', '.join(BENCHMARKS)} and, of reasoning-gym, {GYM}DATASET; for a file of your own add ",
        *(Argument("data"), f" {name}=PATH)"),
    )


def protocol_of(name: str, *, data: str | None) -> Benchmark | None:
    """The benchmark of this name if it says itself how it is asked; None for data of your own and for the gym's."""
    return None if data is not None and is_reference(data) else BENCHMARKS.get(name)


def made_task(benchmark: Benchmark, format: str) -> Task | None:
    """The task that makes a benchmark's problems and judges answers to them itself, which it finds in this form; None
    for one that the grader judges. Raises `RlifError` as `rlif.tasks.build_task` does."""
    section = benchmark.generated
    if isinstance(section, GymTask):
        return Gym(section.model_copy(update={"format": format}))
    return own_task(section.model_copy(update={"format": format})) if isinstance(section, OwnTask) else None


def load_benchmark(
    benchmark: Benchmark, own: OwnData | None = None, *, limit: int | None = None, sample_seed: int | None = None
) -> tuple[Problem, ...]:
    """Its problems in their order, the first ``limit`` if given: from data of your own, from the hub, or generated.
    With ``sample_seed`` not the first, but so many drawn at random from all of them.

    Problems of your own may be without an answer: nothing is said of right and wrong then. Raises `RlifError` for data
    that cannot be had or read, and for a problem of a benchmark on the hub without an answer.
    """
    first = limit if sample_seed is None else None
    if own is not None:
        rows = rows_in(own.source, config=own.config, split=own.split or "test", argument="data")
        problems = some_of(_problems(rows, benchmark, own, first), limit, sample_seed)
    elif isinstance(benchmark.generated, ArithmeticTask):
        seed = EVAL_SEED if sample_seed is None else sample_seed
        problems = Arithmetic(benchmark.generated, widen=False).eval_problems(limit or benchmark.size or 1, seed)
    else:
        give = Argument("data"), f" {benchmark.name}=PATH (.jsonl or .parquet)"
        rows = hub_rows(benchmark.hub, benchmark.config, benchmark.split, give=give)
        problems = some_of(_problems(rows, benchmark, OwnData(benchmark.hub), first), limit, sample_seed)
    if own is None and (missing := [problem.id for problem in problems if not problem.answer]):
        raise RlifError(f"{benchmark.hub}: {len(missing)} problems without an answer (the first: {missing[0]})")
    return problems


def some_of(problems: tuple[Problem, ...], limit: int | None, sample_seed: int | None) -> tuple[Problem, ...]:
    """So many problems, chosen at random and in their order; all of them without a seed. A smaller ``limit`` takes some
    of a larger one's."""
    if sample_seed is None:
        return problems
    rows = list(range(len(problems)))
    keyed_random("eval sample", sample_seed).shuffle(rows)
    return tuple(problems[row] for row in sorted(rows[:limit]))


def _problems(
    rows: Iterator[tuple[str, dict[str, Any]]], benchmark: Benchmark, data: OwnData, limit: int | None
) -> tuple[Problem, ...]:
    named = _with_ids(rows, benchmark) if benchmark.ids else rows
    columns: dict[str, Any] = {"question_column": data.question_column, "answer_column": data.answer_column}
    config = FileTask(name=benchmark.schema, path=data.source, **columns)
    return problems_of(islice(named, limit), config, source=data.source, unanswered=_tell_unanswered)


def _tell_unanswered(absent: str) -> None:
    _LOG.warning("%s: nothing is said of right and wrong", absent)


def _with_ids(rows: Iterator[tuple[str, dict[str, Any]]], benchmark: Benchmark) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that have no id get the one the benchmark gives them, wherever they come from: their random numbers, and the
    pairing of two evaluations, go by it."""
    for number, (where, row) in enumerate(rows):
        has_id = "id" in row or "unique_id" in row
        yield where, row if has_id else {**row, "id": benchmark.ids.format(row=number)}
