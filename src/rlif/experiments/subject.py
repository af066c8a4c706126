"""What is diagnosed: which prompts a model is asked, and how."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from rlif.config import (
    ArithmeticTask,
    FileTask,
    Natural,
    PolicyConfig,
    Positive,
    Section,
    SimilarityConfig,
    TaskConfig,
    TemplateSource,
)
from rlif.errors import Argument, RlifError
from rlif.experiments.untrained import Asking
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.monitoring.probe import distinct_prompts
from rlif.monitoring.sameness import sameness
from rlif.rollout.prompts import render
from rlif.runs.model_defaults import prompting_of
from rlif.tasks import build_task
from rlif.tasks.base import Task
from rlif.tasks.templates import find_template
from rlif.types import Prompt, Sampling
from rlif.utils.paths import expanded
from rlif.utils.validation import explained

_LOG = logging.getLogger(__name__)

MOST_TOKENS = 512
"""Length limit of an answer unless told: as many as the context leaves, at most these."""
PROMPTS_STEP = 1
"""The prompts are those of this step of training: what the model would be trained on."""


class DiagnoseSettings(Section):
    """How a model is asked before training.

    >>> import rlif
    >>> rlif.DiagnoseSettings(temperature=0.0).limit
    64
    """

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """At which you will decode the model, trained or not; 0 is greedy. Training samples at 1."""
    question_column: str | None = None
    """The column of the question in a file; null: problem, question, prompt or messages."""
    answer_column: str | None = None
    """The column of the answer in a file; null: answer, where there is one. Only `labels` reads it."""
    config: str | None = None
    """Which configuration of a data set of the hub, where it has several (openai/gsm8k: main)."""
    split: str | None = None
    """The split of a data set of the hub; null: train."""
    template: TemplateSource | None = None
    """Prompt template (rlif.tasks.templates); null: plain for arithmetic, else what the model brings, else boxed."""
    format: str | None = None
    """The extractor that decides what is in the asked form (docs/grading.md); null: the template's."""
    limit: Positive = 64
    """At most so many prompts, drawn from the seed."""
    samples: Annotated[int, Field(ge=4)] = 16
    """Answers to a prompt in a vote, at temperature 1 and at the low one."""
    low_temperature: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """The low temperature."""
    max_new_tokens: Positive | None = None
    """Length limit of an answer; null: what the model brings, else 512. Lowered to what the context leaves."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides those of the template; none: what the model brings."""
    similarity: SimilarityConfig | None = None
    """For answers in sentences: two are the same if their embeddings are near, as `probe.similarity` of a recipe has
    it; null: if they read alike."""
    reward: str | None = None
    """Judge training on this reward; null: on the one that the calibration finds best."""
    labels: bool = False
    """Put the truth beside it, of problems that have an answer. The verdict never reads it."""
    seed: Natural = 0
    """Chooses prompts and seeds the sampling."""


def settings_of(**values: Any) -> DiagnoseSettings:
    """Settings from options. Raises `RlifError` naming the option of the first mistake."""
    try:
        return DiagnoseSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RlifError(Argument(str(first["loc"][0])), f": {explained(first)}") from None


@dataclass(frozen=True)
class Subject:
    """What a model is asked: a task, the template that words it, and the sections of a recipe that say model and task
    (None: no recipe can, for the problems were handed over in Python)."""

    task: Task
    template: TemplateSource
    sections: Mapping[str, Any] | None

    def prompts(self, policy: Policy, settings: DiagnoseSettings) -> tuple[Prompt, ...]:
        """Distinct prompts, at most as many as the settings say, of those that the model would be trained on."""
        count = available(self.task, settings.limit, settings.seed)
        problems = self.task.train_problems(PROMPTS_STEP, count, settings.seed)
        return distinct_prompts(render(policy, self.template, problems))


def as_trained(settings: DiagnoseSettings, policy: PolicyConfig) -> tuple[DiagnoseSettings, PolicyConfig, str]:
    """Both with what the model brings where they are silent (`prompting_of`), and a line that says so. For problems
    that do not say themselves how they are asked, as arithmetic does."""
    if not isinstance(policy.model, str):
        return settings, policy, ""
    given = {name: getattr(settings, name) for name in DiagnoseSettings.model_fields}
    found = prompting_of([policy.model], given | {"chat_template": policy.chat_template})
    asked = dict(found.settings)
    chat_template = asked.pop("chat_template", policy.chat_template)
    return (
        settings.model_copy(update=asked),
        policy.model_copy(update={"chat_template": chat_template}),
        found.said,
    )


ARITHMETIC = "arithmetic"
"""The problems that need no file."""
_COLUMNS = ("question_column", "answer_column", "config", "split")


def subject_of(source: str | Path, settings: DiagnoseSettings, policy: PolicyConfig) -> Subject:
    """A file of prompts, or ``arithmetic``, asked of a model. Raises `RlifError` for what is neither."""
    task: TaskConfig
    of_file: dict[str, Any] = {name: value for name in _COLUMNS if (value := getattr(settings, name)) is not None}
    if source == ARITHMETIC:
        if of_file:
            raise RlifError(Argument(next(iter(of_file))), ": belongs to a file of prompts, and there is none")
        task = ArithmeticTask(name="arithmetic", template=settings.template or "plain", format=settings.format)
    else:
        words: dict[str, Any] = {"template": settings.template or "boxed", "format": settings.format}
        task = FileTask(name="file", path=str(expanded(source)), **words, **of_file)
    return subject_in(policy, task)


def subject_in(policy: PolicyConfig, task: TaskConfig) -> Subject:
    """What two sections of a recipe say. Raises `RlifError` as `rlif.tasks.build_task` does."""
    sections = {"policy": policy.model_dump(mode="json"), "task": task.model_dump(mode="json")}
    return Subject(build_task(task), task.template, sections)


def available(task: Task, most: int, seed: int) -> int:
    """How many distinct problems the task has, up to ``most``. Raises `RlifError`, the task's own, if it has none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        try:
            task.train_problems(PROMPTS_STEP, middle, seed)
            low = middle
        except RlifError:
            if middle == 1:
                raise
            high = middle - 1
    return low


def check_labels(prompts: Sequence[Prompt], settings: DiagnoseSettings) -> None:
    """Raise `RlifError` if labels are asked for and there are none."""
    if settings.labels and all(prompt.problem.answer is None for prompt in prompts):
        raise RlifError(Argument("labels"), ": no prompt has an answer; leave it out, or give a file with answers")


def asking_of(policy: Policy, subject: Subject, prompts: Sequence[Prompt], settings: DiagnoseSettings) -> Asking:
    """How the prompts are put to the policy. A length for which the context has no room is lowered, which is logged, as
    that of a recipe is (rollout.fit). A prompt that leaves none is told of when it is drawn."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    length = settings.max_new_tokens or MOST_TOKENS
    limit = limit_passed(policy, longest + length)
    if limit is not None and limit.tokens > longest:
        length = limit.tokens - longest
        if settings.max_new_tokens is not None:
            said = "max_new_tokens is %d, not %d: the context has no room for more"
            _LOG.warning(said, length, settings.max_new_tokens)
    return Asking(
        training=Sampling(
            max_new_tokens=length,
            stop=tuple(dict.fromkeys((*find_template(subject.template).stop, *settings.stop))),
        ),
        temperature=settings.temperature,
        low_temperature=settings.low_temperature,
        votes=settings.samples,
        look=max(4, settings.samples // 4),
        seed=settings.seed,
        labels=settings.labels,
        same=sameness(settings.similarity, policy.device, called=Argument("similarity")),
    )
