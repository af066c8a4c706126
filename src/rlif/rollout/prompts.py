"""From a problem to the exact tokens a model is given."""

import hashlib
import json
import logging
from collections.abc import Sequence
from datetime import datetime

from rlif.config import TemplateText
from rlif.errors import Argument, RlifError, expect, expect_each
from rlif.model.policy import Policy
from rlif.model.positions import limit_passed
from rlif.tasks.templates import Template, Wording, find_template, render_messages, render_text
from rlif.types import Problem, Prompt

_LOG = logging.getLogger(__name__)


def render(
    policy: Policy, template: Wording, problems: Sequence[Problem], *, now: datetime | None = None
) -> tuple[Prompt, ...]:
    """Problems put through a template, by its name or of one's own, and through a chat template where it is used.

    ``now`` is the moment that a chat template which prints the date is told; None: the present. Raises `RlifError` for
    an unknown template, or an argument of another type.

    >>> import rlif
    >>> policy = rlif.load_policy("tiny-base")
    >>> rlif.render(policy, "qa", [rlif.Problem("sum", "12+34=?")])[0].text
    'Question: 12+34=?\\nAnswer:'
    """
    expect(policy, Policy, "policy", "an rlif.Policy, which rlif.load_policy makes")
    expect(template, (str, TemplateText, Template), "template", "the name of a template")
    expect_each(problems, Problem, "problems", "a list of rlif.Problem")
    found = find_template(template)
    return tuple(_render(policy, found, problem, now) for problem in problems)


def _render(policy: Policy, template: Template, problem: Problem, now: datetime | None) -> Prompt:
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
    """Raise `RlifError` for a prompt that is empty or, with its completion, longer than the context (of which
    `rlif.model.positions` has two): the longest, so that its remedy serves all of them."""
    for prompt in prompts:
        if not prompt.token_ids:
            raise RlifError(*_name(prompt, prompts), ": it is empty; a model needs at least one token to go on from")
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids), default=None)
    if longest is None:
        return
    length = len(longest.token_ids)
    limit = limit_passed(policy, length + max_new_tokens)
    if limit is None:
        return
    limiting, left = Argument("max_new_tokens"), limit.tokens - length
    remedy = (limiting, f" {left} or less") if left > 0 else ("a shorter question",)
    raise RlifError(
        *(*_name(longest, prompts), f": {length} tokens and ", limiting, f" {max_new_tokens} exceed {limit.words}; "),
        *("give ", *remedy),
    )


def tell_unknown(policy: Policy, prompts: Sequence[Prompt]) -> None:
    """Warn of prompts that hold what the tokenizer has no token for: it is shown one token for all of them."""
    tokenizer = policy.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return  # byte-level tokenizers know everything, and call any token so
    if found := [prompt for prompt in prompts if unknown in prompt.token_ids]:
        _LOG.warning(
            "%d of %d prompts hold characters that the tokenizer does not know, the first is %s: the model is shown %s",
            len(found),
            len(prompts),
            found[0].id,
            tokenizer.unk_token,
        )


def _name(prompt: Prompt, prompts: Sequence[Prompt]) -> tuple[Argument, str]:
    """What an error calls a prompt: by its id where there are several."""
    return Argument("prompt"), f" {prompt.id}" if len(prompts) > 1 else ""
