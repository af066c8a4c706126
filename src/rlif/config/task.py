"""The section task: where the problems come from, and how they are put."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    template: TemplateSource = "boxed"
    """Name of a prompt template (`rlif templates`), a YAML file, or a template of your own (`TemplateText`)."""
    format: str | None = None
    """The extractor that decides `formatted` (see docs/grading.md); null: the one for what the template asks for."""
    limit: Positive | None = None
    """Use only the first so many rows."""

    @property
    def holds_out(self) -> bool:
        """Whether evaluation has problems of its own."""
        return self.eval_path is not None or self.eval_split is not None


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


@dataclass(frozen=True)
class OwnData:
    """Where problems are read from instead of their usual place, and from which columns (None: the usual ones).
    ``source``: a file, or a data set of the hub with its ``config`` and ``split``."""

    source: str
    question_column: str | None = None
    answer_column: str | None = None
    config: str | None = None
    split: str | None = None
