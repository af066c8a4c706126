"""The prompts of a run: those of its steps, of its evaluations and of its looks, and whether its task can give them."""

import logging
from dataclasses import dataclass
from datetime import datetime

from rlif.config import Recipe
from rlif.errors import Argument, RlifError
from rlif.model.policy import Policy
from rlif.monitoring.probe import distinct_prompts
from rlif.rollout.prompts import check_context, render, tell_unknown
from rlif.tasks.base import Task, tell_unlabelled
from rlif.tasks.files import ProblemFile
from rlif.training.probe_problems import labelled_problems, probe_problems
from rlif.types import Problem, Prompt
from rlif.utils.own_code import is_reference

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSource:
    """The prompts of a run: functions of its recipe and the step alone."""

    recipe: Recipe
    task: Task
    policy: Policy
    now: datetime

    def train(self, step: int) -> tuple[Prompt, ...]:
        """Those of a step, counted from 1."""
        return self.rendered(self.task.train_problems(step, self.recipe.rollout.prompts, self.recipe.seed))

    def evaluation(self) -> tuple[Prompt, ...]:
        """Those of every evaluation."""
        return self.rendered(self.task.eval_problems(self.recipe.eval.problems))

    def probe(self, steps: int) -> tuple[Prompt, ...]:
        """Those of every look, each with tokens of its own; none where nobody looks. ``steps``: for how long a run they
        are chosen."""
        recipe = self.recipe.model_copy(update={"steps": steps})
        return distinct_prompts(self.rendered(probe_problems(recipe, self.task))) if recipe.probe.every else ()

    def labelled(self) -> tuple[Prompt, ...]:
        """Those with labels that are told of at every look; none where nobody looks."""
        return (
            distinct_prompts(self.rendered(labelled_problems(self.recipe, self.task)))
            if self.recipe.probe.every
            else ()
        )

    def rendered(self, problems: tuple[Problem, ...]) -> tuple[Prompt, ...]:
        return render(self.policy, self.recipe.task.template, problems, now=self.now)


def check_problems(prompts: PromptSource, labelled: list[str]) -> None:
    """Raise `RlifError` for what the task cannot give: enough problems, labels for these rewards, prompts that fit."""
    recipe, task = prompts.recipe, prompts.task
    problems = task.problems_to_fit()
    task.train_problems(1, recipe.rollout.prompts, recipe.seed)
    if recipe.eval.every:
        task.eval_problems(recipe.eval.problems)
    absent = task.no_answers if isinstance(task, ProblemFile) else ""
    if labelled and absent:
        raise RlifError(
            f"reward {labelled[0]} needs answers: {absent}; name it with ",
            Argument("answer_column"),
            " COLUMN, or choose a reward without labels",
            _that_says_nothing(labelled[0]),
        )
    if labelled and (bare := [problem.id for problem in problems if problem.answer is None]):
        raise RlifError(
            f"reward {labelled[0]} needs answers, but {len(bare)} problems have none (the first is {bare[0]}); fix ",
            Argument("answer_column"),
            ", leave those rows out, or choose a reward without labels",
            _that_says_nothing(labelled[0]),
        )
    rendered = prompts.rendered(problems)
    check_context(prompts.policy, rendered, recipe.rollout.max_new_tokens)
    tell_unknown(prompts.policy, rendered)
    if absent:
        _LOG.warning("%s: nothing is said of right and wrong", absent)
    else:
        tell_unlabelled(task, problems)


def _that_says_nothing(name: str) -> str:
    """How a function of the user's own says that it reads no label."""
    module, _, function = name.partition(":")
    return f" (one that reads none says so in {module}: {function}.uses_labels = False)" if is_reference(name) else ""
