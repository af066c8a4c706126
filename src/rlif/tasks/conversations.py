"""Questions that stand in a column of chat messages, ``[{"role": "user", "content": …}, …]``, as chat data has them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlif.errors import RlifError
from rlif.grading.extraction import boxed


class Exchange(NamedTuple):
    """One question, and the answer that a reply to it ends in: None without a reply, or where it marks none."""

    question: str
    answer: str | None


def is_conversation(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in value)
    )


def exchange_in(messages: Sequence[Mapping[str, Any]], where: str) -> Exchange:
    r"""The question that a conversation asks, a system message before it with a blank line between; and the answer that
    the reply marks, in its last ``\boxed`` or behind ``####``. A reply that marks none is no ground truth: graded
    against a whole solution, everything would be wrong.

    Raises `RlifError` naming ``where`` unless there is one user message: a prompt is one question. What is no text is
    refused, too.
    """
    said = [(str(one["role"]), _text(one["content"], where)) for one in messages]
    asked = [text for role, text in said if role == "user"]
    if len(asked) != 1:
        raise RlifError(f"{where}: a conversation with {len(asked)} user messages; only one question can be put")
    system = [text for role, text in said if role == "system" and text.strip()]
    reply = next((text for role, text in said[::-1] if role == "assistant"), "")
    marked = reply.rpartition("####")[2].strip() if "####" in reply else boxed(reply)
    return Exchange("\n\n".join([*system, *asked]), marked or None)


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise RlifError(f"{where}: a message holds something else than text; only text can be read")
    return "".join(part["text"] for part in parts)
