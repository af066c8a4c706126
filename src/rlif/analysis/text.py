"""What answers are made of: transitional words, repetition, and where in the answer things happen.

Transitional words (but, wait, ...) are the paper's mark of reasoning (arXiv 2506.17219, figure 1 and its table).
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

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

TENTHS = 10
"""Parts that an answer is cut into, from its beginning to its end, whatever its length."""

LOOPING_NGRAMS, LOOPING_COMPRESSION = 0.5, 6.0
"""A completion loops if over half of its word 4-grams have stood in it before, or zlib shrinks it sixfold."""

_NGRAM = 4  # words

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


def transitional_spans(text: str) -> list[tuple[int, int]]:
    """Where transitional words stand in a text: the first character of each, and the one after its last."""
    return [match.span() for match in _PATTERN.finditer(text)]


def transitional(texts: Sequence[str], n_tokens: int) -> Transitional:
    """Transitional words of completions that hold ``n_tokens`` tokens together. Raises ValueError if there are none."""
    if not texts or n_tokens < 1:
        raise ValueError("no completions to count transitional words in")
    counts = [count_transitional(text) for text in texts]
    return Transitional(rate=sum(counts) / n_tokens, share=sum(count > 0 for count in counts) / len(counts))


def transitional_tenths(text: str) -> Float[np.ndarray, " tenth"]:
    """Transitional words in each tenth of a text; a word belongs to the tenth (by characters) in which it begins."""
    counts = np.zeros(TENTHS)
    for match in _PATTERN.finditer(text):
        counts[TENTHS * match.start() // len(text)] += 1
    return counts


def tenths(values: Float[np.ndarray, " tok"]) -> Float[np.ndarray, " tenth"]:
    """Mean over the tokens of each tenth of an answer: token t of n belongs to tenth floor(10 t / n).

    NaN for a tenth without a token: an answer of fewer than ten tokens has some.
    """
    place = TENTHS * np.arange(len(values)) // max(len(values), 1)
    counts = np.bincount(place, minlength=TENTHS)
    sums = np.bincount(place, weights=values.astype(np.float64), minlength=TENTHS)
    return np.divide(sums, counts, out=np.full(TENTHS, np.nan), where=counts > 0)


def repeated_ngrams(text: str) -> float:
    """Share of the text's word 4-grams that have stood in it before: 1 − distinct / all; 0 if it has none."""
    words = text.split()
    grams = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def compression_ratio(text: str) -> float:
    """Bytes of the text (UTF-8) over its bytes compressed (zlib, level 9): prose 2 or so, an endless loop 50 and more.

    Below 1 for a very short text, where zlib's own frame weighs most; 1 for an empty one.
    """
    raw = text.encode("utf-8", errors="surrogatepass")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 1.0


def loops(text: str) -> bool:
    """Whether a text repeats itself: most of its word 4-grams, or zlib shrinks it sixfold (`LOOPING_NGRAMS`). Source:
    project."""
    return repeated_ngrams(text) > LOOPING_NGRAMS or compression_ratio(text) > LOOPING_COMPRESSION
