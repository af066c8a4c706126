"""What a chat template does to a conversation: it must end, and every message must be in the text it makes."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlif.errors import Argument, RlifError, brief
from rlif.model.template_worker import WorkerError, worker

Message = Mapping[str, str]


def template_of(tokenizer: Any) -> str | None:
    """The template that conversations without tools go through; None if the tokenizer has none.

    Raises ValueError if it has several and none of them is the default, or what it has is no text.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        if "default" not in template:
            raise ValueError(f"it has the templates {', '.join(map(str, template))}, and no default among them")
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise ValueError(f"its chat_template is a {type(template).__name__}, not a text")
    return template


def limit_broken(tokenizer: Any, messages: Sequence[Message], variables: Mapping[str, Any]) -> str | None:
    """Which limit (time, memory, length) the template breaks with these messages; None if it is harmless.

    Args:
        variables: what the template is given besides the messages and the special tokens.

    Raises ValueError as `template_of` does, `RlifError` if there is no process to try it in.
    """
    template = template_of(tokenizer)
    if template is None:
        return None
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    known = {"tools": None, "documents": None, **special, **variables}
    try:
        return worker().complaint(template, messages, known)
    except WorkerError as error:
        raise RlifError(
            f"the process that tries chat templates cannot be started ({brief(str(error))}); make room for one more "
            "process, or set ",
            Argument("chat_template"),
            " to off",
        ) from error


def lost(messages: Sequence[Message], text: str) -> Message | None:
    """The first message whose words are not in ``text``, white space around them aside; None if all are."""
    return next((message for message in messages if message["content"].strip() not in text), None)


def system_in_user(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The same conversation with the system message at the head of the first user message, a blank line between."""
    instructions = [message["content"] for message in messages if message["role"] == "system"]
    others = [dict(message) for message in messages if message["role"] != "system"]
    first = next(message for message in others if message["role"] == "user")
    first["content"] = "\n\n".join([*instructions, first["content"]])
    return others


def check_complete(messages: Sequence[Message], text: str, source: str) -> None:
    """Raise `RlifError` if the template has left out a message, or put other words in its place."""
    if (message := lost(messages, text)) is not None:
        raise RlifError(
            Argument("chat_template"),
            f": the template of {source} drops or rewrites the {message['role']} message; fix it, or set ",
            Argument("chat_template"),
            " to off",
        )
