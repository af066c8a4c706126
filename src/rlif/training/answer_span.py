"""Which tokens of a completion are its answer.

An answer is looked for as the grader read it (`rlif.types.Verdict.extracted`): its last place in the text where it
stands by itself, 5 and not the 5 of 15 or of 5.2. If it is nowhere, commas and spaces are allowed within (1,234 for
1234). An answer that the grader wrote otherwise than the text, and a completion without one, has no such tokens.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from rlif.model.policy import Policy
from rlif.types import Scored

_BEFORE, _AFTER = r"(?<!\w)(?<!\d[.,])", r"(?!\w|[.,]\d)"


def answer_tokens(policy: Policy, scored: Scored) -> Bool[Tensor, "row tok"]:
    """True at the tokens that hold at least one character of their completion's answer. Source: project."""
    rollouts = scored.rollouts
    found = torch.zeros_like(rollouts.mask)
    for row, (text, verdict) in enumerate(zip(rollouts.texts, scored.verdicts, strict=True)):
        if span := span_of(text, verdict.extracted):
            first, end = tokens_of(policy, rollouts.tokens[row][rollouts.mask[row]].tolist(), span)
            found[row, first:end] = True
    return found


def span_of(text: str, answer: str | None) -> tuple[int, int] | None:
    """The characters, [start, end), of an answer's last place in the text; None if it has none."""
    if not answer:
        return None
    within = r"[\s,]*".join(re.escape(character) for character in answer if not character.isspace())
    for pattern in (re.escape(answer), within):
        places = list(re.finditer(_BEFORE + pattern + _AFTER, text))
        if places:
            return places[-1].span()
    return None


def tokens_of(policy: Policy, ids: Sequence[int], span: tuple[int, int]) -> tuple[int, int]:
    """The tokens, [first, end), that hold the characters of ``span`` in the text of ``ids``.

    Where a token ends is the length of the text of all up to it, looked up by halving: a dozen decodings a completion.
    """

    def ends_at(count: int) -> int:
        return len(policy.decode(ids[:count]))

    counts, (start, end) = range(len(ids) + 1), span
    return bisect_right(counts, start, key=ends_at) - 1, bisect_left(counts, end, key=ends_at)
