"""Numbers of a recipe fitted to what is there: prompts to the problems, lengths to the context (rollout.fit)."""

import logging
import math
from datetime import datetime

from rlif.config import Recipe
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.recipes import parse_recipe
from rlif.rollout.prompts import render
from rlif.tasks.base import Task, most

_LOG = logging.getLogger(__name__)


def fitted(recipe: Recipe, task: Task, policy: Policy, now: datetime, *, ranks: int = 1) -> Recipe:
    """The recipe with `rollout.prompts`, `rollout.max_new_tokens` and `eval.problems` lowered to what the task and the
    policy's context hold; what was lowered is logged. What cannot be fitted, such as a task without a single problem,
    is left to those who check it. Source: project."""
    rollout, evaluation = recipe.rollout, recipe.eval
    trainable = most(lambda count: task.train_problems(1, count, recipe.seed), rollout.prompts)
    shares = math.lcm(recipe.grpo.minibatches, ranks)  # prompts are split evenly among both
    prompts = render(policy, recipe.task.template, task.problems_to_fit(), now=now)
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    limit = limit_passed(policy, longest + rollout.max_new_tokens)
    possible = {
        ("rollout", "prompts"): trainable // shares * shares,
        ("rollout", "max_new_tokens"): limit.tokens - longest if limit else rollout.max_new_tokens,
        ("eval", "problems"): most(task.eval_problems, evaluation.problems) if evaluation.every else 0,
    }
    data = recipe.model_dump(mode="json")
    for (section, key), there in possible.items():
        if 0 < there < (asked := data[section][key]):
            data[section][key] = there
            why = "the context has no room for more" if key == "max_new_tokens" else "there are no more"
            _LOG.warning("%s.%s is %d, not %d: %s", section, key, there, asked, why)
    return parse_recipe(data)
