"""What completions are made of: transitional words, the paper's mark of reasoning (arXiv 2506.17219, figure 1)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# The paper's four in front; it does not print the rest of its list, so the rest is ours.
TRANSITIONAL_WORDS = (
    "but",
    "wait",
    "suppose",
    "let me check",
    "however",
    "actually",
    "alternatively",
    "hmm",
    "let me verify",
    "let's check",
    "on second thought",
)

# Whole words, any case, any white space inside a phrase; longer phrases first so that none is counted twice.
_PATTERN = re.compile(
    r"\b(?:"
    + "|".join(re.escape(words).replace(r"\ ", r"\s+") for words in sorted(TRANSITIONAL_WORDS, key=len, reverse=True))
    + r")\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Transitional:
    """``rate``: transitional words per completion token; ``share``: completions with at least one."""

    rate: float
    share: float


def count_transitional(text: str) -> int:
    """Number of transitional words in a text."""
    return len(_PATTERN.findall(text))


def transitional(texts: Sequence[str], n_tokens: int) -> Transitional:
    """Transitional words of completions that hold ``n_tokens`` tokens together. Raises ValueError if there are none."""
    if not texts or n_tokens < 1:
        raise ValueError("no completions to count transitional words in")
    counts = [count_transitional(text) for text in texts]
    return Transitional(rate=sum(counts) / n_tokens, share=sum(count > 0 for count in counts) / len(counts))
