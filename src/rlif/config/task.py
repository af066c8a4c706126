"""The section task: where the problems come from, and how they are put."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlif.config.section import Natural, Positive, Section


class ArithmeticTask(Section):
    """Additions, generated from the seed; nothing to download."""

    name: Literal["arithmetic"]
    low: Natural = 10
    """Smallest summand."""
    high: Positive = 99
    """Largest summand."""
    question: str = "{a}+{b}=?"
    """How the question is put; {a} and {b} are the summands."""
    template: str = "plain"
    """Name of a prompt template (see rlif.tasks.templates)."""
    format: str | None = None
    """The extractor that decides `formatted` (see docs/grading.md); null: the one for what the template asks for."""
    limit: Positive | None = None
    """Train on only so many sums, drawn from the seed, each once an epoch; null: fresh ones in every step."""

    @model_validator(mode="after")
    def _range(self) -> "ArithmeticTask":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self


class FileTask(Section):
    """Problems from a file (JSONL, JSON, CSV, Parquet) or from the hub; columns by your names."""

    name: Literal["file", "gsm8k", "math"]
    """file: any columns. gsm8k, math: the same with the schemas of those data sets as defaults."""
    path: str
    """Training problems: a .jsonl, .json, .csv, .tsv or .parquet file, or a data set of the hub (openai/gsm8k)."""
    eval_path: str | None = None
    """Held-out problems for evaluation; without it (and `eval_split`), evaluation uses `path` and says so."""
    config: str | None = None
    """Which configuration of a data set of the hub, where it has several (openai/gsm8k: main)."""
    split: str = "train"
    """The split of a data set of the hub that is trained on."""
    eval_split: str | None = None
    """The split of a data set of the hub that holds the problems for evaluation; null: test, if `eval_path` is one."""
    question_column: str | None = None
    """Column of the question; null: the task's usual one (problem, question, prompt, messages). It may hold chat
    messages: then the one user message, behind the system's."""
    answer_column: str | None = None
    """Column of the answer; null: `answer`, or none if the first row has none (of chat messages: what the reply has in
    \\boxed or behind ####). A row without a ground truth holds null there; no reward that needs labels can be used
    then."""
    id_column: str | None = None
    """Column of the row's id; null: `id` if there is one, else file name and line number."""
    template: str = "boxed"
    """Name of a prompt template (see rlif.tasks.templates)."""
    format: str | None = None
    """The extractor that decides `formatted` (see docs/grading.md); null: the one for what the template asks for."""
    limit: Positive | None = None
    """Use only the first so many rows."""


TaskConfig = Annotated[ArithmeticTask | FileTask, Field(discriminator="name")]


@dataclass(frozen=True)
class OwnData:
    """Where problems are read from instead of their usual place, and from which columns (None: the usual ones).
    ``source``: a file, or a data set of the hub with its ``config`` and ``split``."""

    source: str
    question_column: str | None = None
    answer_column: str | None = None
    config: str | None = None
    split: str | None = None
