"""The section task: where the problems come from, and how they are put."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from rlif.config.own import GymTask, OwnTask, TemplateSource
from rlif.config.section import Natural, Positive, Section
from rlif.utils.own_code import is_reference


class ArithmeticTask(Section):
    """Additions, generated from the seed; nothing to download."""

    name: Literal["arithmetic"]
    low: Natural = 10
    """Smallest summand."""
    high: Positive = 99
    """Largest summand."""
    question: str = "{a}+{b}=?"
    """How the question is put; {a} and {b} are the summands."""
    template: TemplateSource = "plain"
    """Name of a prompt template (`rlif templates`), a YAML file, or a template of your own (`TemplateText`)."""
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
    template: TemplateSource = "boxed"
    """Name of a prompt template (`rlif templates`), a YAML file, or a template of your own (`TemplateText`)."""
    format: str | None = None
    """The extractor that decides `formatted` (see docs/grading.md); null: the one for what the template asks for."""
    limit: Positive | None = None
    """Use only the first so many rows."""


TASKS_GROUP = "rlif.tasks"
"""The group of entry points by which a package brings tasks."""

OWN = "package.module:function"
"""The kind of a task that is none of rlif's."""

TASK_CONFIGS: Mapping[str, type[Section]] = {
    "arithmetic": ArithmeticTask,
    "file": FileTask,
    "gsm8k": FileTask,
    "math": FileTask,
    "reasoning_gym": GymTask,
    OWN: OwnTask,
}
"""The kinds of task: what a recipe's section may say, by its name."""


def name(value: Any) -> str | None:  # pydantic's messages call it so
    """The kind of a task that a section names; of a name that nobody knows that name itself."""
    given = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if not isinstance(given, str):
        return None
    if given in TASK_CONFIGS and given != OWN:
        return given
    return OWN if is_reference(given) or list(entry_points(group=TASKS_GROUP, name=given)) else given


TaskConfig = Annotated[
    Annotated[ArithmeticTask, Tag("arithmetic")]
    | Annotated[FileTask, Tag("file")]
    | Annotated[FileTask, Tag("gsm8k")]
    | Annotated[FileTask, Tag("math")]
    | Annotated[GymTask, Tag("reasoning_gym")]
    | Annotated[OwnTask, Tag(OWN)],
    Discriminator(name),
]
