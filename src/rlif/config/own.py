"""What a recipe may say of things of the user's own: a prompt template, a task."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from rlif.config.section import Positive, Section


class TemplateText(Section):
    """A prompt template of your own: the wording around a question. A recipe may name a YAML file of them, too."""

    user: str
    """The user's message; {question} stands for the question."""
    system: str | None = None
    """A message before it."""
    format: str = "boxed"
    """The extractor that reads the form of answer it asks for (see docs/grading.md)."""
    closing: str = r"The answer is \boxed{{answer}}."
    """How a worked example ends, before the question; {answer} stands for its answer."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer."""

    @field_validator("user")
    @classmethod
    def _asks(cls, user: str) -> str:
        if "{question}" not in user:
            raise ValueError("expected a text that holds {question}, in whose place the question is put")
        return user


TemplateSource = Annotated[
    Annotated[str, Tag("name")] | Annotated[TemplateText, Tag("own")],
    Discriminator(lambda value: "own" if isinstance(value, dict | TemplateText) else "name"),
]


class OwnTask(Section):
    """A task of your own: a function of a module, or one that an installed package brings (`rlif.tasks`)."""

    name: str
    """package.module:function, or a name of the entry-point group rlif.tasks. The function is called with `options` and
    returns an `rlif.Task`, or rows with the columns question, answer and id."""
    options: dict[str, Any] = Field(default={})
    """What the function is called with."""
    template: TemplateSource = "boxed"
    """Name of a prompt template (`rlif templates`), a YAML file, or a template of your own."""
    format: str | None = None
    """The extractor that decides `formatted` of rows (see docs/grading.md); null: the one for what the template asks
    for. An `rlif.Task` judges by itself."""


class GymTask(Section):
    """Problems of the package reasoning-gym, made as they are asked for, judged by its own scorers: rlif[gym]."""

    name: Literal["reasoning_gym"]
    dataset: str
    """A name of its, such as chain_sum."""
    options: dict[str, Any] = Field(default={})
    """What that data set takes, such as min_terms; `seed` and `size` are rlif's to choose."""
    template: TemplateSource = "boxed"
    """Name of a prompt template (`rlif templates`), a YAML file, or a template of your own."""
    format: str | None = None
    """The extractor that finds the answer, which is then scored (see docs/grading.md); null: the one for what the
    template asks for."""
    right_from: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The score from which an answer counts as right: some scorers give parts of 1."""
    limit: Positive | None = None
    """Train on only so many problems, each once an epoch; null: fresh ones in every step."""
