"""The section task: where the problems come from, and how they are put."""

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
    """Problems from a file: JSONL or Parquet, columns by your names."""

    name: Literal["file", "gsm8k", "math"]
    """file: any columns. gsm8k, math: the same with the schemas of those data sets as defaults."""
    path: str
    """Training problems: .jsonl or .parquet."""
    eval_path: str | None = None
    """Held-out problems for evaluation; without it, evaluation uses `path` and says so."""
    question_column: str | None = None
    """Column of the question; null: the task's usual one (problem or question)."""
    answer_column: str | None = None
    """Column of the answer; null: `answer`, or none if the first row has none. A row without a ground truth holds null
    there; no reward that needs labels can be used then."""
    id_column: str | None = None
    """Column of the row's id; null: `id` if there is one, else file name and line number."""
    template: str = "boxed"
    """Name of a prompt template (see rlif.tasks.templates)."""
    format: str | None = None
    """The extractor that decides `formatted` (see docs/grading.md); null: the one for what the template asks for."""
    limit: Positive | None = None
    """Use only the first so many rows."""


TaskConfig = Annotated[ArithmeticTask | FileTask, Field(discriminator="name")]
