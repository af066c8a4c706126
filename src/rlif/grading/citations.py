r"""Marks of a source or a footnote behind an answer, which are no part of it: ``42 apples.[1]``, ``[^1]``, 【1】.

What stands in a bracket of its own is an answer: *the answer is [42]*. So a mark is glued to what it stands behind.
"""

import re

_NUMBER = r"\[\^?\d{1,3}\]"
_GLUED = r"(?:(?<=[A-Za-z\d.,;!?%)\]}】])|(?<=\w\*\*)|(?<=[\w)}]\$)|(?<=\^))"
CITATION = (
    rf"(?:{_GLUED}(?:{_NUMBER}|【\d{{1,3}}】)|【[^【】\n]{{1,40}}†[^【】\n]{{0,40}}】"
    r"|(?<=[.,;!?])\[\d{1,3}(?:[,;\u2013-] ?\d{1,3}){1,9}\]"
    r"|(?<=[A-Za-z.,;!?])<sup>\[?\d{1,3}\]?</sup>"
    r"|(?<=[\w.,;] )\[\d{1,3}\](?!\())"
)
"""In a text: a mark that is glued to a word, a number or the end of a sentence, or that has a space before it."""

BEHIND_A_SENTENCE = rf"(?:{_NUMBER}|【|<sup>|[¹²³⁰-⁹])"
"""What may follow a full stop without a space."""

_MARK = r"(?:\[(?:[0-9]{1,3}|\^[0-9]{1,3}|\^\{[0-9]{1,3}\})\]|【[^【】]{1,80}】)"
_AT_END = re.compile(rf"(?: ?{_MARK}|\^{_MARK}|\^\{{{_MARK}\}}){{1,9}}$")


def without_citations(tail: str) -> str:
    r"""What stands behind a number, without the marks at its end: ``\text{ apples}`` of ``\text{ apples}[1]``."""
    found = _AT_END.search(tail)
    return tail[: found.start()].rstrip(" .") if found else tail
