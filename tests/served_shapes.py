"""How servers really answer: one answer "2." of three tokens, and answers that are thought about, cut off or withheld.

Written down from the servers' own sources and documentation; each with what
`rlif.evals.backends.openai_protocol.read_reply` should make of it.
"""

from collections.abc import Mapping
from typing import Any

from rlif.evals.backends.openai_protocol import Reply

LOGPROBS = (-0.5, -1.0, -0.25)
_CONTENT = {
    "content": [
        {"token": "2", "logprob": -0.5, "bytes": [50], "top_logprobs": []},
        {"token": ".", "logprob": -1.0, "bytes": [46], "top_logprobs": []},
        {"token": "</s>", "logprob": -0.25, "bytes": None, "top_logprobs": []},
    ]
}
_LISTS = {
    "text_offset": [0, 1, 2],
    "token_logprobs": [-0.5, -1.0, -0.25],
    "tokens": ["2", ".", ""],
    "top_logprobs": [{"2": -0.5}, {".": -1.0}, {"": -0.25}],
}
_USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def _said(message: Any, usage: Any = _USAGE, model: str | None = "m", **choice: Any) -> dict[str, Any]:
    name = {} if model is None else {"model": model}
    message = {"role": "assistant", **message}
    return {**name, "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}], "usage": usage}


def _text(usage: Any = _USAGE, **choice: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "text": "2.", "finish_reason": "stop", **choice}], "usage": usage}


def _reply(text: str = "2.", **known: Any) -> Reply:
    return Reply(**{"text": text, "stop": "eos", "n_tokens": 3, "logprobs": None, "model": "m", **known})


def _thought(thoughts: str, said: str, **known: Any) -> Reply:
    before = f"<think>\n{thoughts}" + ("\n</think>\n\n" if said else "")
    return _reply(before + said, thoughts=len(before), **known)


SHAPES: Mapping[str, tuple[dict[str, Any], Reply]] = {
    "vllm, chat": (
        _said({"content": "2.", "reasoning": None, "tool_calls": []}, logprobs=_CONTENT, stop_reason=None),
        _reply(logprobs=LOGPROBS),
    ),
    "vllm, text": (_text(logprobs=_LISTS, stop_reason=None), _reply(logprobs=LOGPROBS)),
    "vllm, stop string": (_said({"content": "2."}, stop_reason="\n\n"), _reply(stop="stop_string")),
    "vllm, stop token": (_said({"content": "2."}, stop_reason=128009), _reply()),
    "vllm, thoughts": (_said({"content": "2.", "reasoning": "1 and 1."}), _thought("1 and 1.", "2.")),
    "vllm before .11, both names": (
        _said({"content": "2.", "reasoning": "1 and 1.", "reasoning_content": "1 and 1."}),
        _thought("1 and 1.", "2."),
    ),
    "vllm, cut off while it thought": (
        _said({"content": None, "reasoning": "is it \\boxed{2}?"}, finish_reason="length"),
        _thought("is it \\boxed{2}?", "", stop="length"),
    ),
    "vllm, clamped": (
        _text(logprobs={**_LISTS, "token_logprobs": [-0.5, -9999.0, -0.25]}),
        _reply(),
    ),
    "sglang, chat": (_said({"content": "2."}, logprobs=_CONTENT, matched_stop=2), _reply(logprobs=LOGPROBS)),
    "sglang, stop string": (_said({"content": "2."}, matched_stop="\n\n"), _reply(stop="stop_string")),
    "sglang, aborted like its own form": (
        _text(finish_reason={"type": "length", "length": 3}),
        _reply(stop="length"),
    ),
    "sglang, thoughts": (_said({"content": "2.", "reasoning_content": "1 and 1."}), _thought("1 and 1.", "2.")),
    "llama.cpp, chat": (
        {**_said({"content": "2."}, logprobs=_CONTENT), "timings": {"predicted_n": 3, "predicted_ms": 12.5}},
        _reply(logprobs=LOGPROBS),
    ),
    "llama.cpp, text": (_text(logprobs=_CONTENT), _reply(logprobs=LOGPROBS)),
    "llama.cpp, least float": (
        _text(logprobs={"content": [{"logprob": -0.5}, {"logprob": -3.4028234663852886e38}, {"logprob": -0.25}]}),
        _reply(),
    ),
    "tgi": (_said({"content": "2."}, finish_reason="eos_token", logprobs=None), _reply()),
    "tgi, stop sequence": (_said({"content": "2."}, finish_reason="stop_sequence"), _reply(stop="stop_string")),
    "ollama": ({**_said({"content": "2."}), "system_fingerprint": "fp_ollama"}, _reply()),
    "ollama, thoughts": (_said({"content": "2.", "reasoning": "1 and 1."}), _thought("1 and 1.", "2.")),
    "transformers serve": (_said({"content": "2.", "tool_calls": None}, logprobs=None), _reply()),
    "deepseek": (
        _said(
            {"content": "2.", "reasoning_content": "1 and 1."},
            {**_USAGE, "completion_tokens_details": {"reasoning_tokens": 2}},
        ),
        _thought("1 and 1.", "2."),
    ),
    "openai": (
        _said(
            {"content": "2.", "refusal": None, "annotations": []},
            logprobs={**_CONTENT, "refusal": None},
            model="m-2026",
        ),
        _reply(logprobs=LOGPROBS, model="m-2026"),
    ),
    "openai, thoughts counted and not told": (
        _said({"content": "2."}, {**_USAGE, "completion_tokens": 300}, logprobs=_CONTENT),
        _reply(n_tokens=300),
    ),
    "openai, refusal": (_said({"content": None, "refusal": "I cannot."}), _reply("I cannot.")),
    "openai, calls a tool": (
        _said(
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "2"}}]}, finish_reason="tool_calls"
        ),
        _reply(""),
    ),
    "openrouter": (
        _said(
            {"content": "2.", "reasoning": None, "reasoning_details": [{"type": "reasoning.text", "text": "1 and 1."}]},
            native_finish_reason="STOP",
        ),
        _thought("1 and 1.", "2."),
    ),
    "openrouter, encrypted": (
        _said({"content": "2.", "reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA"}]}),
        _reply(),
    ),
    "litellm, anthropic": (
        _said(
            {
                "content": "2.",
                "reasoning_content": "1 and 1.",
                "thinking_blocks": [{"type": "thinking", "thinking": "1 and 1.", "signature": "Er"}],
            },
            stop_reason="end_turn",
        ),
        _thought("1 and 1.", "2."),
    ),
    "litellm, anthropic, cut off": (
        _said({"content": "2."}, finish_reason="max_tokens"),
        _reply(stop="length"),
    ),
    "mistral, parts": (
        _said(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "1 and 1."}]},
                    {"type": "text", "text": "2"},
                    {"type": "text", "text": "."},
                ]
            }
        ),
        _thought("1 and 1.", "2."),
    ),
    "parts with a value": (
        _said({"content": [{"type": "text", "text": {"value": "2.", "annotations": []}}]}),
        _reply(),
    ),
    "parts that are strings": (_said({"content": ["2", "."]}), _reply()),
    "no parts": (_said({"content": []}), _reply("")),
    "a text that is null beside a message": ({**_said({"content": "2."}, text=None)}, _reply()),
    "thoughts that are no text": (_said({"content": "2.", "reasoning": {"effort": "low"}}), _reply()),
    "no model": (_said({"content": "2."}, model=None), _reply(model=None)),
    "a model that is no name": ({**_said({"content": "2."}), "model": 7}, _reply(model=None)),
    "no finish_reason": (_said({"content": "2."}, finish_reason=None), _reply()),
    "a count that is no integer in JSON": (_said({"content": "2."}, {"completion_tokens": 3.0}), _reply()),
    "no usage, but a list": (_text(False, logprobs=_LISTS), _reply(logprobs=LOGPROBS)),
    "a count of none for some text": (_text({"completion_tokens": 0}, logprobs=_LISTS), _reply(logprobs=LOGPROBS)),
    "rounded above one": (
        _text(logprobs={"token_logprobs": [1e-7, -1.0, -0.25]}),
        _reply(logprobs=(0.0, -1.0, -0.25)),
    ),
    "two choices, the second first": (
        {
            "model": "m",
            "choices": [
                {"index": 1, "text": "3.", "logprobs": {"token_logprobs": [-9.0]}},
                _text(logprobs=_LISTS)["choices"][0],
            ],
            "usage": {"completion_tokens": 4},
        },
        _reply(logprobs=LOGPROBS),
    ),
}
"""Read with stop string "\\n\\n" and a limit of 8 tokens."""
