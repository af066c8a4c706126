"""From a problem to the exact tokens a model is given."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from rlif.model.policy import Policy
from rlif.tasks.templates import render_messages, render_text
from rlif.types import Problem, Prompt


def render(
    policy: Policy, template: str, problems: Sequence[Problem], *, now: datetime | None = None
) -> tuple[Prompt, ...]:
    """Problems put through a named template, and through the chat template where the policy uses one.

    ``now`` is the moment that a chat template which prints the date is told; None: the present. Raises `RlifError` for
    an unknown template.
    """
    return tuple(_render(policy, template, problem, now) for problem in problems)


def _render(policy: Policy, template: str, problem: Problem, now: datetime | None) -> Prompt:
    if policy.chat_template:
        text, token_ids = policy.encode_messages(render_messages(template, problem.question), now=now)
    else:
        text, token_ids = policy.encode_text(render_text(template, problem.question))
    return Prompt(problem.id, text, token_ids, problem)


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """What a model is given, text and tokens, in 16 hexadecimal digits: equal only if every prompt is the same."""
    content = json.dumps([[prompt.id, prompt.text, prompt.token_ids] for prompt in prompts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
