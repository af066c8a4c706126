"""From a problem to the exact tokens a model is given."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from rlif.errors import RlifError
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.tasks.templates import render_messages, render_text
from rlif.types import Problem, Prompt


def render(
    policy: Policy, template: str, problems: Sequence[Problem], *, now: datetime | None = None
) -> tuple[Prompt, ...]:
    """Problems put through a named template, and through the chat template where the policy uses one.

    ``now`` is the moment that a chat template which prints the date is told; None: the present. Raises `RlifError` for
    an unknown template.

    >>> import rlif
    >>> policy = rlif.load_policy("tiny-base")
    >>> rlif.render(policy, "qa", [rlif.Problem("sum", "12+34=?")])[0].text
    'Question: 12+34=?\\nAnswer:'
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


def check_context(policy: Policy, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Raise `RlifError` for the first prompt that is empty or, with its completion, longer than the context (of which
    `rlif.model.positions` has two)."""
    for prompt in prompts:
        if not prompt.token_ids:
            raise RlifError(f"prompt {prompt.id}: it is empty; a model needs at least one token to go on from")
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    limit = limit_passed(policy, longest + max_new_tokens)
    if limit is None:
        return
    for prompt in prompts:
        if (length := len(prompt.token_ids)) + max_new_tokens > limit.tokens:
            raise RlifError(
                f"prompt {prompt.id}: {length} tokens and rollout.max_new_tokens={max_new_tokens} "
                f"exceed {limit.words}; shorten the prompt or lower the limit"
            )
