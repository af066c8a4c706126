"""What an evaluation is asked to do: everything that decides its answers, checked, and written beside them."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from rlif.config import Fraction, Natural, Positive, Section, TemplateSource
from rlif.errors import RlifError, did_you_mean
from rlif.evals.passes import PASSES
from rlif.runs.model_defaults import prompting_of
from rlif.tasks.benchmarks import protocol_of
from rlif.tasks.few_shot import FIXED
from rlif.utils.validation import explained

_OF_DATA = ("question_column", "answer_column", "config", "split")
_OPTIONS = {"question_column": "question", "answer_column": "answer"}
"""What the command line calls some of the settings."""


class Settings(Section):
    """One evaluation: the tasks and the protocol. null: what the task usually takes. Raises `RlifError` for what is
    wrong.

    >>> import rlif
    >>> settings = rlif.EvalSettings(tasks=("mine",), data={"mine": "problems.jsonl"}, temperature=0.0, samples=1)
    >>> settings.top_p
    1.0
    """

    tasks: tuple[str, ...]
    """Names of benchmarks (rlif.tasks.benchmarks), or your own names for the files in `data`."""
    data: dict[str, str] = Field(default={})
    """Task to where its problems are read from instead of its usual place: a .jsonl, .json, .csv, .tsv or .parquet
    file, a data set of the hub (openai/gsm8k), or a function of yours that makes a task, package.module:function
    (docs/own.md)."""
    question_column: str | None = None
    """The column of the question in `data`; null: problem, question, prompt or messages."""
    answer_column: str | None = None
    """The column of the answer in `data`; null: answer, where there is one."""
    config: str | None = None
    """Which configuration of a data set of the hub in `data`, where it has several (openai/gsm8k: main)."""
    split: str | None = None
    """The split of a data set of the hub in `data`; null: test."""
    limit: Positive | None = None
    """Only the first so many problems of each task."""
    sample_seed: Natural | None = None
    """Not the first `limit` problems, but as many drawn at random by this seed: a smaller limit takes some of a larger
    one's. null: the first."""
    samples: Positive = 8
    """Answers to each problem."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    """0 is greedy. Signals are recorded at temperature 1 whatever this is."""
    top_p: Fraction = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: Natural = 0
    """Sample among the k likeliest tokens; 0 is off."""
    max_new_tokens: Positive | None = None
    """Length limit of an answer, in tokens; null: the benchmark's, or what the models bring (`as_trained`)."""
    template: TemplateSource | None = None
    """Prompt template (rlif.tasks.templates); null: the benchmark's, or what the models bring."""
    format: str | None = None
    """The extractor that decides `formatted` (rlif.grading.grader.EXTRACTORS); null: the one the template asks for."""
    shots: Natural = 0
    """Worked examples before each question."""
    shots_from: str | None = None
    """A training file to take the first `shots` worked examples from; null: the fixed set in rlif.tasks.few_shot."""
    chat_template: Literal["auto", "on", "off"] = "auto"
    """Whether questions go through the model's chat template; auto: if it has one."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides those of the template."""
    baselines: tuple[str, ...] | None = None
    """Further passes (rlif.evals.passes.PASSES); null: greedy, or those that the folder's evaluation was begun with."""
    seed: Natural = 0
    """Seeds the sampling; an answer's random numbers depend on it, the problem and the number of the sample alone."""

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if not self.tasks:
            raise ValueError("tasks: name at least one")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: one is named twice")
        if odd := [name for name in self.tasks if not re.fullmatch(r"\w[\w.-]*", name)]:
            raise ValueError(f"tasks: {odd[0]!r} becomes a folder's name: use letters, digits, dots, hyphens")
        if unused := sorted(set(self.data) - set(self.tasks)):
            raise ValueError(f"data: {unused[0]} is not among the tasks ({', '.join(self.tasks)})")
        if not self.data and (odd := [name for name in _OF_DATA if getattr(self, name) is not None]):
            raise ValueError(f"{odd[0]}: belongs to data of your own, and there is none")
        if self.temperature == 0.0 and self.samples > 1:
            raise ValueError("samples: greedy answers (temperature 0) are all the same; ask for 1")
        if odd := [name for name in self.baselines or () if name not in PASSES]:
            known = ", ".join(PASSES)
            raise ValueError(f"baselines: no {odd[0]!r}{did_you_mean(odd[0], PASSES)} (there are {known})")
        if self.sample_seed is not None and self.limit is None:
            raise ValueError("sample_seed: say with limit how many problems are drawn")
        if self.shots_from and not self.shots:
            raise ValueError("shots_from: say how many with shots")
        if self.shots > len(FIXED) and not self.shots_from:
            raise ValueError(f"shots: the fixed set has {len(FIXED)}; for more, name a training file with shots_from")
        return self


def settings_of(**values: Any) -> Settings:
    """Settings from the command line's options. Raises `RlifError` naming the option of the first mistake."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = explained(first)
        key = str(first["loc"][0]) if first["loc"] else ""
        if not key:  # of several settings together: the message begins with the name of the one to change
            key, _, message = message.partition(": ")
        raise RlifError(f"--{_OPTIONS.get(key, key).replace('_', '-')}: {message}") from None


def as_trained(settings: Settings, models: Sequence[str]) -> tuple[Settings, str]:
    """The settings with what the models bring where these are silent: the folder of a run the template, form, length,
    stop strings and chat template that it was trained with, a named model its usual ones (`prompting_of`). And a line
    that says so; "" if there is nothing to say.

    A benchmark that says itself how it is asked is asked so: nothing is brought, and a run that was trained otherwise
    is told of. Raises `RlifError` for a run whose recipe cannot be read.
    """
    fixed = {name: own for name in settings.tasks if (own := protocol_of(name, data=settings.data.get(name)))}
    try:
        found = prompting_of(models, {name: getattr(settings, name) for name in Settings.model_fields})
    except RlifError:
        if fixed:  # nothing of the recipe is needed
            return settings, ""
        raise
    if not fixed:
        return settings.model_copy(update=dict(found.settings)), found.said
    wanted = found.settings.get("template")
    if not found.runs or wanted is None or all(one.template == wanted for one in fixed.values()):
        return settings, ""
    return settings, f"{', '.join(fixed)}: asked as always, not as {', '.join(found.runs)} (template {wanted})"
