"""From a problem to the exact tokens a model is given."""

from collections.abc import Sequence

from rlif.policy import Policy
from rlif.tasks.templates import render_messages, render_text
from rlif.types import Problem, Prompt


def render(policy: Policy, template: str, problems: Sequence[Problem]) -> tuple[Prompt, ...]:
    """Problems put through a named template, and through the chat template where the policy uses one.

    Raises `RlifError` for an unknown template.
    """
    return tuple(_render(policy, template, problem) for problem in problems)


def _render(policy: Policy, template: str, problem: Problem) -> Prompt:
    if policy.chat_template:
        text, token_ids = policy.encode_messages(render_messages(template, problem.question))
    else:
        text, token_ids = policy.encode_text(render_text(template, problem.question))
    return Prompt(problem.id, text, token_ids, problem)
