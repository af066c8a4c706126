"""What is said to a server that speaks the OpenAI protocol, and how its answers are read. No network here.

The protocol is one in name only; what differs between servers is settled here:

1. A setting that is left out is not off: vLLM then takes it from the model's generation_config.json, llama.cpp has
   defaults of its own (top_k 40, min_p 0.05). So the neutral values are sent, too.
2. One request is one answer: not every server knows ``n``, and only so does every answer have a seed of its own.
3. llama.cpp answers /completions with the logprobs of /chat/completions: both forms are read at both addresses.
4. A server that ignores stop strings, or leaves them in the text, has its text cut here.
5. Thoughts that a server put into a field of their own are put back in front of the answer, as the model wrote them.
6. Of the signals only the log-probability can be known: entropy and self-certainty need the whole distribution, and
   the few likeliest tokens that a server reports give bounds of one and nothing of the other.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rlif.draw import Key, Sampling
from rlif.types import StopReason

Message = Mapping[str, str]

SEED_BITS = 31  # what every server takes: some hold seeds in 32 bits, signed


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
    """

    text: str
    stop: StopReason
    n_tokens: int
    logprobs: tuple[float, ...] | None


class MalformedError(Exception):
    """An answer that does not follow the protocol; the message says in what."""


def seed_of(key: Key, problem_id: str, sample: int) -> int:
    """The seed of one answer, the same on every machine: a hash of (run seed, step, problem, sample), 31 bits."""
    digest = hashlib.blake2b(f"{key.seed}/{key.step}/{problem_id}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (1 << SEED_BITS)


def path_of(ask: Ask) -> str:
    """Where a request belongs, below the server's address."""
    return "completions" if isinstance(ask.prompt, str) else "chat/completions"


def body_of(model: str, ask: Ask, sampling: Sampling, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The request for one answer, less the fields ``without`` that this server refuses."""
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
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return {name: value for name, value in body.items() if name not in without}


def refused_fields(complaint: str, sampling: Sampling, sent: Set[str]) -> frozenset[str]:
    """Fields of a request that a server's complaint names and that can be left out without changing what is measured.

    A field that was not neutral (a top_k of 20, say) is never among them. ``seed`` and ``stop`` are English words, so
    they count only in quotes.
    """
    optional = {"top_k", "min_p", "repetition_penalty", "logprobs", "seed", "stop"} & set(sent)
    if sampling.top_k:
        optional.discard("top_k")
    words = {"seed", "stop"}
    named = {name for name in optional - words if re.search(rf"\b{name}\b", complaint)}
    return frozenset(named | {name for name in optional & words if re.search(rf"""["'`]{name}["'`]""", complaint)})


def read_reply(payload: Any, sampling: Sampling) -> Reply:
    """The one answer in a server's JSON. Raises `MalformedError` where it does not follow the protocol."""
    choice = _choice(payload)
    thoughts, whole = _written(choice)
    cut = min((whole.find(stop) for stop in sampling.stop if stop in whole), default=None)
    text = mended(thoughts + whole[:cut])
    logprobs = _token_logprobs(choice.get("logprobs"))
    n_tokens = _tokens(payload.get("usage"), logprobs)
    if cut is not None and not whole.endswith(sampling.stop):
        logprobs = None  # the server went on after the stop string: these are not the answer's tokens alone
    stop: StopReason = "stop_string" if cut is not None else _stop_reason(choice, n_tokens, sampling)
    return Reply(text, stop, n_tokens, logprobs)


def _choice(payload: Any) -> Mapping[str, Any]:
    if not isinstance(payload, dict):
        raise MalformedError(f"the answer is a JSON {type(payload).__name__}, not an object")
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedError("the answer holds no choices")
    return choices[0]


def _written(choice: Mapping[str, Any]) -> tuple[str, str]:
    """What the model thought, marked as such (nothing if the server keeps no thoughts apart), and what it then said."""
    if "text" in choice:
        return "", _string(choice, "text")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedError("the choice holds neither a message nor a text")
    content = _string(message, "content")
    thoughts = _string(message, "reasoning_content") or _string(message, "reasoning")
    if not thoughts:
        return "", content
    return f"<think>\n{thoughts}\n</think>\n\n" if content else f"<think>\n{thoughts}", content


def _string(holder: Mapping[str, Any], name: str) -> str:
    """A field that may be absent or null, but is nothing other than text."""
    value = holder.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedError(f"{name} is a JSON {type(value).__name__}, not text")
    return value


def mended(text: str) -> str:
    """Half a character (a lone surrogate, which JSON can say and UTF-8 cannot) becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _tokens(usage: Any, logprobs: Sequence[float] | None) -> int:
    """How many tokens the model wrote: what the server charges for, else those it reports one by one."""
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 1 << 31:
        return count
    if logprobs is None:
        raise MalformedError("the answer does not tell its length (usage.completion_tokens)")
    return len(logprobs)


def _stop_reason(choice: Mapping[str, Any], n_tokens: int, sampling: Sampling) -> StopReason:
    """From finish_reason, and from vLLM's stop_reason or SGLang's matched_stop where the server says which it was.

    A server that does not tell an end-of-sequence token from a stop string is taken to mean the token.
    """
    finish = choice.get("finish_reason")
    if finish == "content_filter":
        raise MalformedError("the server withheld the answer (finish_reason content_filter)")
    if finish == "abort":
        raise MalformedError("the server broke off the answer (finish_reason abort)")
    if any(isinstance(choice.get(name), str) for name in ("stop_reason", "matched_stop")):
        return "stop_string"
    known = finish in ("stop", "length", "tool_calls", "function_call")
    at_limit = not known and n_tokens >= sampling.max_new_tokens
    return "length" if finish == "length" or at_limit else "eos"


def _token_logprobs(logprobs: Any) -> tuple[float, ...] | None:
    """The tokens' log-probabilities in either form; None if there are none or one of them is not a number."""
    if not isinstance(logprobs, dict):
        return None
    content = logprobs.get("content")
    if isinstance(content, list):
        values: Any = [entry.get("logprob") if isinstance(entry, dict) else None for entry in content]
    else:
        values = logprobs.get("token_logprobs")
    if not isinstance(values, list) or not values:
        return None
    numbers = tuple(float(value) for value in values if isinstance(value, int | float) and abs(value) < 1e9)  # no NaN
    return numbers if len(numbers) == len(values) else None
