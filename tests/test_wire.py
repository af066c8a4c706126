"""The OpenAI protocol as servers really speak it: what is sent, and how the several forms of answers are read."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlif.draw import Key, Sampling
from rlif.wire import Ask, MalformedError, Reply, body_of, path_of, read_reply, refused_fields, seed_of

MESSAGES = ({"role": "user", "content": "1+1=?"},)
SAMPLING = Sampling(temperature=0.6, top_p=0.95, max_new_tokens=8, stop=("\n\n",))

# The shape each server gives its answers, with the same content: "2.", the end-of-sequence token after it.
VLLM_CHAT = {
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "2.", "reasoning": None, "tool_calls": []},
            "logprobs": {
                "content": [
                    {"token": "2", "logprob": -0.5, "bytes": [50], "top_logprobs": []},
                    {"token": ".", "logprob": -1.0, "bytes": [46], "top_logprobs": []},
                    {"token": "</s>", "logprob": -0.25, "bytes": None, "top_logprobs": []},
                ]
            },
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}
VLLM_TEXT = {
    "choices": [
        {
            "index": 0,
            "text": "2.",
            "logprobs": {
                "text_offset": [0, 1, 2],
                "token_logprobs": [-0.5, -1.0, -0.25],
                "tokens": ["2", ".", ""],
                "top_logprobs": [{"2": -0.5}, {".": -1.0}, {"": -0.25}],
            },
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}
LLAMA_CPP_TEXT = {  # the chat form at the address for text
    "choices": [{"text": "2.", "index": 0, "logprobs": VLLM_CHAT["choices"][0]["logprobs"], "finish_reason": "stop"}],  # type: ignore[index]
    "usage": {"completion_tokens": 3, "prompt_tokens": 5},
}
SGLANG_CHAT = {
    "choices": [{**VLLM_CHAT["choices"][0], "matched_stop": 2}],  # type: ignore[dict-item]
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": None},
}
SHAPES = {"vllm chat": VLLM_CHAT, "vllm text": VLLM_TEXT, "llama.cpp text": LLAMA_CPP_TEXT, "sglang chat": SGLANG_CHAT}


def answer(text: Any = "2.", *, tokens: int = 3, **choice: Any) -> dict[str, Any]:
    message = {"message": {"content": text}}
    return {"choices": [{**message, "finish_reason": "stop", **choice}], "usage": {"completion_tokens": tokens}}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_server_s_form_says_the_same(shape: str) -> None:
    assert read_reply(SHAPES[shape], SAMPLING) == Reply("2.", "eos", 3, (-0.5, -1.0, -0.25))


def test_a_request_says_every_setting_so_that_no_server_puts_in_its_own() -> None:
    body = body_of("m", Ask("p, sample 0", MESSAGES, seed=7), SAMPLING)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "1+1=?"}],
        "max_tokens": 8,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 7,
        "logprobs": True,
        "stop": ["\n\n"],
    }
    text = body_of("m", Ask("p, sample 0", "1+1=", seed=7), replace(SAMPLING, top_k=20, stop=()), {"min_p", "seed"})
    assert text["prompt"] == "1+1="
    assert text["logprobs"] == 1
    assert text["top_k"] == 20
    assert not {"messages", "stop", "min_p", "seed"} & set(text)


def test_the_form_of_the_prompt_decides_the_address() -> None:
    assert path_of(Ask("", MESSAGES, 0)) == "chat/completions"
    assert path_of(Ask("", "1+1=", 0)) == "completions"


def test_seeds_differ_by_run_step_problem_and_sample_and_fit_31_bits() -> None:
    seeds = [
        seed_of(Key(run, step), problem, sample)
        for run in range(3)
        for step in ("eval/a", "eval/b")
        for problem in ("p", "q")
        for sample in range(20)
    ]
    assert len(set(seeds)) == len(seeds)  # 240 of 2**31: two alike by chance have a probability of 1.4e-5
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    assert seed_of(Key(0, "eval/gsm8k"), "gsm8k/test/1", 0) == 698020259  # and the same on every machine


@pytest.mark.parametrize(
    ("choice", "tokens", "expected"),
    [
        ({"finish_reason": "stop"}, 3, "eos"),
        ({"finish_reason": "length"}, 8, "length"),
        ({"finish_reason": "stop", "stop_reason": "\n\n"}, 3, "stop_string"),  # vLLM
        ({"finish_reason": "stop", "matched_stop": "\n\n"}, 3, "stop_string"),  # SGLang
        ({"finish_reason": "stop", "stop_reason": 128009}, 3, "eos"),  # vLLM: a stop token of generation_config.json
        ({"finish_reason": None}, 3, "eos"),
        ({"finish_reason": None}, 8, "length"),
        ({"finish_reason": "stop"}, 8, "eos"),  # it ended with the very last token it was allowed
    ],
)
def test_reasons_to_stop(choice: dict[str, Any], tokens: int, expected: str) -> None:
    assert read_reply(answer(tokens=tokens, **choice), SAMPLING).stop == expected


def test_a_server_that_leaves_stop_strings_in_has_its_text_cut() -> None:
    logprobs = {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}
    left_in = read_reply(answer("2.\n\n", logprobs=logprobs), SAMPLING)
    assert (left_in.text, left_in.stop, left_in.logprobs) == ("2.", "stop_string", (-1.0, -2.0))
    went_on = read_reply(answer("2.\n\nAnd now", logprobs=logprobs, finish_reason="length"), SAMPLING)
    assert (went_on.text, went_on.stop, went_on.logprobs) == ("2.", "stop_string", None)


def test_thoughts_stand_before_the_answer() -> None:
    for name in ("reasoning_content", "reasoning"):
        both = {"choices": [{"message": {"content": "2.", name: "1 and 1."}}], "usage": {"completion_tokens": 9}}
        assert read_reply(both, SAMPLING).text == "<think>\n1 and 1.\n</think>\n\n2."
        cut_off = {"choices": [{"message": {"content": None, name: "1 and"}}], "usage": {"completion_tokens": 9}}
        assert read_reply(cut_off, SAMPLING).text == "<think>\n1 and"


def test_logprobs_that_are_not_all_numbers_are_none() -> None:
    for values in ([-1.0, None], [-1.0, float("nan")], [-1.0, 10**400], [], "no"):
        assert read_reply(answer(logprobs={"token_logprobs": values}), SAMPLING).logprobs is None


def test_the_length_is_what_the_server_counts_or_what_it_lists() -> None:
    listed = {"choices": [{"text": "2", "logprobs": {"token_logprobs": [-1.0, -2.0]}}]}
    assert read_reply(listed, SAMPLING).n_tokens == 2
    for usage in (None, [], {}, {"completion_tokens": "3"}, {"completion_tokens": -1}, {"completion_tokens": 1 << 40}):
        with pytest.raises(MalformedError, match="length"):
            read_reply({"choices": [{"text": "2"}], "usage": usage}, SAMPLING)


def test_half_a_character_is_replaced_and_a_whole_one_kept() -> None:
    assert read_reply(json.loads(json.dumps(answer("a\ud83d"))), SAMPLING).text == "a\ufffd"
    assert read_reply(json.loads(json.dumps(answer("a\U0001f600"))), SAMPLING).text == "a\U0001f600"


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ([], "list, not an object"),
        ({"error": "busy"}, "no choices"),
        ({"choices": []}, "no choices"),
        ({"choices": "none"}, "no choices"),
        ({"choices": [{}]}, "neither a message nor a text"),
        ({"choices": [{"message": "2."}]}, "neither a message nor a text"),
        ({"choices": [{"message": {"content": 2}}]}, "content is a JSON int"),
        (answer(finish_reason="content_filter"), "withheld"),
        (answer(finish_reason="abort"), "broke off"),
    ],
)
def test_what_is_no_answer_is_named(payload: Any, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        read_reply(payload, SAMPLING)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "text", "usage", "completion_tokens", "logprobs", "logprob"]
            )
            | st.sampled_from(["token_logprobs", "finish_reason", "stop_reason", "reasoning"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(choice=JSON, usage=JSON)
def test_whatever_json_comes_is_an_answer_or_a_named_mistake(choice: Any, usage: Any) -> None:
    for payload in (choice, {"choices": [choice], "usage": usage}, {"choices": choice}):
        try:
            reply = read_reply(payload, SAMPLING)
        except MalformedError:
            continue
        assert reply.text.encode() is not None
        assert reply.n_tokens >= 0


@pytest.mark.parametrize(
    ("complaint", "expected"),
    [
        ("{\"detail\":\"Unexpected fields in the request: {'top_k', 'min_p'}\"}", {"top_k", "min_p"}),
        ('{"error":{"message":"Unrecognized request argument supplied: repetition_penalty"}}', {"repetition_penalty"}),
        ('{"error":{"message":"logprobs are not supported"}}', {"logprobs"}),
        ('{"error":{"message":"top_logprobs must be at most 5"}}', set()),
        ('{"error":{"message":"the server will stop soon"}}', set()),
        ('{"error":{"message":"\'seed\' is not supported"}}', {"seed"}),
        ('{"error":{"message":"\'temperature\' must be 1"}}', set()),
        ('{"error":{"message":"This model\'s maximum context length is 2048 tokens"}}', set()),
    ],
)
def test_refused_fields_are_those_that_can_be_spared(complaint: str, expected: set[str]) -> None:
    sent = body_of("m", Ask("", MESSAGES, 0), SAMPLING).keys()
    assert refused_fields(complaint, SAMPLING, sent) == expected
    assert refused_fields(complaint, SAMPLING, sent - expected) == set()  # what is no longer sent is refused no more


def test_a_setting_that_was_asked_for_is_not_spared() -> None:
    sampling = replace(SAMPLING, top_k=20)
    assert refused_fields("unknown fields: top_k, min_p", sampling, {"top_k", "min_p"}) == {"min_p"}
