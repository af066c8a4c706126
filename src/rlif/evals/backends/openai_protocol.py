"""What is said to a server that speaks the OpenAI protocol, and how its answers are read. No network here.

The protocol is one in name only; what differs between servers is settled here:

1. A setting that is left out is not off: vLLM then takes it from the model's generation_config.json, llama.cpp has
   defaults of its own (top_k 40, min_p 0.05). So the neutral values are sent, too.
2. One request is one answer: not every server knows ``n``, and only so does every answer have a seed of its own.
3. llama.cpp answers /completions with the logprobs of /chat/completions: both forms are read at both addresses.
4. A server that ignores stop strings, or leaves them in the text, has its text cut here.
5. Thoughts that a server put into a field of their own are put back in front of the answer, as the model wrote them;
   how much of the text they are is told, for they are no part of what is graded.
6. Of the signals only the log-probability can be known: entropy and self-certainty need the whole distribution, and
   the few likeliest tokens that a server reports give bounds of one and nothing of the other.
7. The limit of tokens has two names: servers that refuse ``max_tokens`` are sent ``max_completion_tokens``.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rlif.types import Sampling, StopReason

Message = Mapping[str, str]


@dataclass(frozen=True)
class Ask:
    """One answer to be had: plain text to go on from, or chat messages to answer. ``label`` names it in errors."""

    label: str
    prompt: str | Sequence[Message]
    seed: int


@dataclass(frozen=True)
class Reply:
    """One answer as a server gave it.

    Attributes:
        n_tokens: completion tokens as the server counts them (with the token that ended it, where it counts that).
        logprobs: of the tokens, in nats, as the server computes them; None where it tells none.
        thoughts: characters at the beginning of ``text`` that the server kept apart as thoughts, marks included.
        model: what the server calls the model that answered; None where it does not say.
    """

    text: str
    stop: StopReason
    n_tokens: int
    logprobs: tuple[float, ...] | None
    thoughts: int = 0
    model: str | None = None


class MalformedError(Exception):
    """An answer that does not follow the protocol; the message says in what."""


def path_of(ask: Ask) -> str:
    """Where a request belongs, below the server's address."""
    return "completions" if isinstance(ask.prompt, str) else "chat/completions"


def body_of(model: str, ask: Ask, sampling: Sampling, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The request for one answer, less the fields ``without`` that this server refuses (the limit of tokens is not left
    out, but goes by its other name)."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": ask.seed,
    }
    if isinstance(ask.prompt, str):
        body |= {"prompt": ask.prompt, "logprobs": 1}
    else:
        body |= {"messages": [dict(message) for message in ask.prompt], "logprobs": True}
    if "max_tokens" in without:
        body["max_completion_tokens"] = sampling.max_new_tokens
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return {name: value for name, value in body.items() if name not in without}


_NOT_KNOWN = re.compile(
    r"unsupported|not (?:\w+ )?(?:supported|permitted|allowed|recogni[sz]ed|accepted|known)"
    r"|does not (?:support|accept|take|know)|unrecogni[sz]ed|unknown|unexpected|extra (?:inputs|fields)",
    re.IGNORECASE,
)
_INSTEAD = re.compile(r"use\W{1,3}max_completion_tokens|max_completion_tokens\W{1,3}instead", re.IGNORECASE)
_TOO_MANY = re.compile(r"too (?:large|big|high|long|many)|at most|maximum|exceed|less than|greater than", re.IGNORECASE)


def refused_fields(complaint: str, sampling: Sampling, sent: Set[str]) -> frozenset[str]:
    """Fields of a request that a server's complaint names and that can be left out without changing what is measured.

    A field that was not neutral (a top_k of 20, say) is never among them. ``seed`` and ``stop`` are English words, so
    they count only in quotes. ``max_tokens`` counts where the complaint is of its name, not of its value.
    """
    optional = {"top_k", "min_p", "repetition_penalty", "logprobs", "seed", "stop"} & set(sent)
    if sampling.top_k:
        optional.discard("top_k")
    words = {"seed", "stop"}
    named = {name for name in optional - words if re.search(rf"\b{name}\b", complaint)}
    named |= {name for name in optional & words if re.search(rf"""["'`]{name}["'`]""", complaint)}
    asked_by_chat = {"max_tokens", "messages"} <= set(sent)  # at /completions the limit has one name alone
    if asked_by_chat and re.search(r"\bmax_tokens\b", complaint) and _is_about_the_name(complaint):
        named.add("max_tokens")
    return frozenset(named)


def _is_about_the_name(complaint: str) -> bool:
    """Whether ``max_tokens`` is refused whatever its value."""
    if _INSTEAD.search(complaint):
        return True
    return bool(_NOT_KNOWN.search(complaint)) and not _TOO_MANY.search(complaint)


def _unmasked(text: str) -> str:
    return text


def read_reply(payload: Any, sampling: Sampling, mask: Callable[[str], str] = _unmasked) -> Reply:
    """The one answer in a server's JSON; ``mask`` is applied to every text in it.

    Raises `MalformedError` where it does not follow the protocol.
    """
    choice, alone = _choice(payload)
    before, whole = (mask(replace_surrogates(part)) for part in _written(choice))
    cut = min((whole.find(stop) for stop in sampling.stop if stop in whole), default=None)
    logprobs = _token_logprobs(choice.get("logprobs"))
    n_tokens = _tokens(payload.get("usage") if alone else None, logprobs, empty=not (before or whole))
    if cut is not None and not whole.endswith(sampling.stop):
        logprobs = None  # the server went on after the stop string: these are not the answer's tokens alone
    # The token that ended an answer, and those of a stop string, may be missing from a list. More than that, and the
    # list is of a part of the answer (OpenAI leaves out thoughts).
    spare = 1 + max(map(len, sampling.stop), default=0)
    if logprobs is not None and abs(len(logprobs) - n_tokens) > spare:
        logprobs = None
    stop: StopReason = "stop_string" if cut is not None else _stop_reason(choice, n_tokens, sampling)
    name = payload.get("model")
    return Reply(
        before + whole[:cut],
        stop,
        n_tokens,
        logprobs,
        len(before),
        mask(replace_surrogates(name)) if isinstance(name, str) else None,
    )


def _choice(payload: Any) -> tuple[Mapping[str, Any], bool]:
    """The choice that was asked for (the one numbered 0), and whether it is the only one."""
    if not isinstance(payload, dict):
        raise MalformedError(f"the answer is a JSON {type(payload).__name__}, not an object")
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise MalformedError("the answer holds no choices")
    if len(choices) == 1:
        return choices[0], True
    first = [choice for choice in choices if choice.get("index") == 0]
    if len(first) != 1:
        raise MalformedError(f"the answer holds {len(choices)} choices, where one was asked for")
    return first[0], False


_OPENED, _CLOSED = "<think>\n", "\n</think>\n\n"


def _written(choice: Mapping[str, Any]) -> tuple[str, str]:
    """What the model thought, marked as such (nothing if the server keeps no thoughts apart), and what it then said."""
    message = choice.get("message")
    if isinstance(message, dict):
        holder, name = message, "content"
    elif "text" in choice:
        holder, name = dict(choice), "text"
    else:
        raise MalformedError("the choice holds neither a message nor a text")
    thoughts, said = _content(holder.get(name), name)
    # A refusal stands in a field of its own and is what the model said. Calls of tools, which nobody offered, are not.
    said = said or _string(holder.get("refusal"))
    thoughts = _apart(holder) or thoughts
    return (f"{_OPENED}{thoughts}{_CLOSED if said else ''}" if thoughts else ""), said


def _content(content: Any, name: str) -> tuple[str, str]:
    """Thoughts and text of a content: a string, nothing, or a list of parts. Raises `MalformedError` otherwise."""
    if content is None or isinstance(content, str):
        return "", content or ""
    if not isinstance(content, list):
        raise MalformedError(f"{name} is a JSON {type(content).__name__}, not text")
    thoughts, said = [], []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(part, str):
            said.append(part)
        elif kind in ("text", "output_text", "refusal"):
            said.append(_part_text(part, name))
        elif kind in ("thinking", "reasoning", "redacted_thinking"):  # Mistral, Anthropic by way of LiteLLM
            thoughts.append(_string(part.get(kind)) or _texts(part.get(kind)) or _string(part.get("text")))
        else:
            raise MalformedError(f"{name} holds a part of type {str(kind)[:40]!r}, which is not text")
    return "".join(thoughts), "".join(said)


def _part_text(part: Any, name: str) -> str:
    text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
    if isinstance(text, dict):  # {"value": "…", "annotations": []}
        text = text.get("value")
    if not isinstance(text, str):
        raise MalformedError(f"{name} holds a part that is a JSON {type(text).__name__}, not text")
    return text


def _apart(holder: Mapping[str, Any]) -> str:
    """Thoughts in a field of their own. They are kept to be read, and never graded: what is not text is left out."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if found := _string(holder.get(name)):
            return found
    return _texts(holder.get("reasoning_details"))  # OpenRouter


def _texts(parts: Any) -> str:
    if not isinstance(parts, list):
        return ""
    return "".join(_string(part.get("text") or part.get("summary")) for part in parts if isinstance(part, dict))


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def replace_surrogates(text: str) -> str:
    """Half a character (a lone surrogate, which JSON can say and UTF-8 cannot) becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _tokens(usage: Any, logprobs: Sequence[float] | None, *, empty: bool) -> int:
    """How many tokens the model wrote: what the server charges for, else those it reports one by one."""
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if isinstance(count, int) and not isinstance(count, bool) and (0 if empty else 1) <= count < 1 << 31:
        return count
    if logprobs is None:
        raise MalformedError("the answer does not tell its length (usage.completion_tokens)")
    return len(logprobs)


_ENDS: Mapping[str, StopReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "complete", "completed"), "eos"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "eos"),
    "stop_sequence": "stop_string",
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_output_tokens", "model_length"), "length"),
    "model_context_window_exceeded": "length",
}
"""What servers call the end of an answer, in lower case."""
_LOST: Mapping[str, str] = {
    **dict.fromkeys(("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii"), "withheld"),
    **dict.fromkeys(("abort", "error", "cancelled", "canceled", "failed", "timeout"), "broke off"),
    "insufficient_system_resource": "broke off",  # DeepSeek
}
"""What servers call an answer that is none."""


def _stop_reason(choice: Mapping[str, Any], n_tokens: int, sampling: Sampling) -> StopReason:
    """From finish_reason, and from vLLM's stop_reason or SGLang's matched_stop where the server says which it was.

    A server that does not tell an end-of-sequence token from a stop string is taken to mean the token. Of a reason that
    is missing or unknown only this is certain: at the limit of tokens it is the length.
    """
    finish = choice.get("finish_reason")
    finish = finish.get("type") if isinstance(finish, dict) else finish  # SGLang's own form
    names = [value.lower() for value in (finish, choice.get("stop_reason")) if isinstance(value, str)]
    for name in names:
        if what := _LOST.get(name):
            raise MalformedError(f"the server {what} the answer (finish_reason {name})")
    if any(choice.get(name) in sampling.stop for name in ("stop_reason", "matched_stop")):
        return "stop_string"
    for name in names:
        if known := _ENDS.get(name):
            return known
    return "length" if n_tokens >= sampling.max_new_tokens else "eos"


def _token_logprobs(logprobs: Any) -> tuple[float, ...] | None:
    """The tokens' log-probabilities in either form; None if there are none or one of them is no log-probability."""
    if not isinstance(logprobs, dict):
        return None
    content = logprobs.get("content")
    if isinstance(content, list):
        values: Any = [entry.get("logprob") if isinstance(entry, dict) else None for entry in content]
    else:
        values = logprobs.get("token_logprobs")
    if not isinstance(values, list) or not values or not all(map(_is_logprob, values)):
        return None
    return tuple(min(float(value), 0.0) for value in values)


def _is_logprob(value: Any) -> bool:
    """Whether it is the logarithm of a probability (0 to rounding). −9999 is what OpenAI and vLLM write for one that
    they do not know or that is 0; others write the least number of their type."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -9999.0 < value <= 1e-4
