"""The OpenAI protocol as servers really speak it: what is sent, and how the several forms of answers are read."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlif.evals.backends.openai_protocol import Ask, MalformedError, body_of, path_of, read_reply, refused_fields
from rlif.rng import Key, seed_of
from rlif.types import Sampling
from served_shapes import SHAPES

MESSAGES = ({"role": "user", "content": "1+1=?"},)
SAMPLING = Sampling(temperature=0.6, top_p=0.95, max_new_tokens=8, stop=("\n\n",))


def answer(text: Any = "2.", *, tokens: int = 3, **choice: Any) -> dict[str, Any]:
    message = {"message": {"content": text}}
    return {"choices": [{**message, "finish_reason": "stop", **choice}], "usage": {"completion_tokens": tokens}}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_server_s_form_is_read(shape: str) -> None:
    payload, expected = SHAPES[shape]
    assert read_reply(json.loads(json.dumps(payload)), SAMPLING) == expected


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
        ({"finish_reason": "novel"}, 3, "eos"),
        ({"finish_reason": "novel"}, 8, "length"),
        ({"finish_reason": ["stop"]}, 3, "eos"),
        *(
            ({"finish_reason": name}, 3, "eos")
            for name in ("tool_calls", "function_call", "end_turn", "eos_token", "STOP")
        ),
        *(
            ({"finish_reason": name}, 3, "length")
            for name in ("MAX_TOKENS", "max_tokens", "max_length", "model_length")
        ),
        ({"finish_reason": "stop_sequence"}, 3, "stop_string"),
        ({"finish_reason": "stop", "stop_reason": "end_turn"}, 3, "eos"),  # Anthropic's word, not a stop string of ours
        ({"finish_reason": None, "stop_reason": "max_tokens"}, 3, "length"),
        ({"finish_reason": "stop", "matched_stop": "<|im_end|>"}, 3, "eos"),
        ({"finish_reason": "stop", "stop_reason": ["\n\n"]}, 3, "eos"),
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


NO_LOGPROBS = (None, True, "-1.0", [], float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), 0.01, 3)


@pytest.mark.parametrize("value", [*NO_LOGPROBS, -9999.0, -9999, -10000.0, -1e9, -3.4028234663852886e38])
def test_one_that_is_no_log_probability_makes_all_unknown(value: Any) -> None:
    for values in ([value, -1.0, -2.0], [-1.0, -2.0, value]):
        assert read_reply(answer(logprobs={"token_logprobs": values}), SAMPLING).logprobs is None
        listed = {"content": [{"token": "", "logprob": one} for one in values]}
        assert read_reply(answer(logprobs=listed), SAMPLING).logprobs is None


@pytest.mark.parametrize(
    "logprobs", [None, [], {}, "no", {"token_logprobs": []}, {"content": [1, 2, 3]}, {"content": 3}]
)
def test_what_is_no_list_of_log_probabilities_is_none(logprobs: Any) -> None:
    assert read_reply(answer(logprobs=logprobs), SAMPLING).logprobs is None


def test_log_probabilities_of_a_part_of_the_answer_are_none() -> None:
    """A list may lack the token that ended the answer and those of a stop string (two characters here), no more."""
    for tokens, known in ((5, True), (6, True), (7, True), (8, True), (9, False), (300, False), (2, True), (1, False)):
        reply = read_reply(answer(tokens=tokens, logprobs={"token_logprobs": [-1.0] * 5}), SAMPLING)
        assert (reply.logprobs is not None) == known, tokens
        assert reply.n_tokens == tokens


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
        (answer(finish_reason="SAFETY"), "withheld"),
        (answer(finish_reason="error"), "broke off"),
        (answer(finish_reason="insufficient_system_resource"), "broke off"),
        ({"error": {"message": "busy", "code": 502}, "choices": []}, "no choices"),
        ({"choices": [None]}, "no choices"),
        ({"choices": [{"text": "2"}] * 3, "usage": {"completion_tokens": 3}}, "3 choices, where one was asked for"),
        ({"choices": [{"text": "2", "index": 0}] * 2, "usage": {"completion_tokens": 3}}, "2 choices"),
        ({"choices": [{"text": "2", "index": i} for i in (1, 0)], "usage": {"completion_tokens": 3}}, "its length"),
        (answer([{"type": "image_url", "image_url": {"url": "data:"}}]), "part of type 'image_url', which is not text"),
        (answer([{"type": "text", "text": 2}]), "a part that is a JSON int"),
        (answer([2]), "a part that is a JSON int"),
        (answer({"text": "2"}), "content is a JSON dict"),
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
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            {"max_tokens"},
        ),
        ("max_tokens is deprecated, use `max_completion_tokens`", {"max_tokens"}),
        ('{"detail":[{"loc":["body","max_tokens"],"msg":"Extra inputs are not permitted"}]}', {"max_tokens"}),
        ("Unrecognized request argument supplied: max_tokens", {"max_tokens"}),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 2048",
            set(),
        ),
        ("max_tokens must be at least 1", set()),
        ("max_tokens of more than 4096 is not supported: at most 4096", set()),
    ],
)
def test_refused_fields_are_those_that_can_be_spared(complaint: str, expected: set[str]) -> None:
    sent = body_of("m", Ask("", MESSAGES, 0), SAMPLING).keys()
    assert refused_fields(complaint, SAMPLING, sent) == expected
    assert refused_fields(complaint, SAMPLING, sent - expected) == set()  # what is no longer sent is refused no more


def test_a_setting_that_was_asked_for_is_not_spared() -> None:
    sampling = replace(SAMPLING, top_k=20)
    assert refused_fields("unknown fields: top_k, min_p", sampling, {"top_k", "min_p"}) == {"min_p"}


def test_the_limit_of_tokens_goes_by_its_other_name_where_a_server_refuses_the_first() -> None:
    body = body_of("m", Ask("", MESSAGES, 0), SAMPLING, {"max_tokens"})
    assert body["max_completion_tokens"] == 8
    assert "max_tokens" not in body
    for complaint in ("Unknown field: max_completion_tokens", "unknown: max_tokens"):  # both refused: it ends there
        assert refused_fields(complaint, SAMPLING, body.keys()) == set()
    text = body_of("m", Ask("", "1+1=", 0), SAMPLING)  # at /completions there is one name
    assert refused_fields("Unsupported parameter: 'max_tokens'", SAMPLING, text.keys()) == set()


def test_thoughts_are_told_from_the_answer_whatever_they_hold() -> None:
    for thoughts in ("</think>\n\n\\boxed{3}", "<think>", "\ud83d", "\n\n"):
        reply = read_reply(json.loads(json.dumps(answer("2.\n\nmore", reasoning=None))), SAMPLING)
        assert (reply.text, reply.thoughts) == ("2.", 0)
        payload = {"choices": [{"message": {"content": "2.\n\nmore", "reasoning": thoughts}}], "usage": {}}
        payload["usage"] = {"completion_tokens": 9}
        reply = read_reply(json.loads(json.dumps(payload)), SAMPLING)
        assert reply.text[reply.thoughts :] == "2."  # a stop string among the thoughts ends nothing
        assert reply.stop == "stop_string"


def test_every_text_of_an_answer_is_masked() -> None:
    payload = {
        "model": "of SECRET",
        "choices": [{"message": {"content": "the SECRET", "reasoning": "my SECRET"}}],
        "usage": {"completion_tokens": 9},
    }
    reply = read_reply(payload, SAMPLING, lambda text: text.replace("SECRET", "***"))
    assert reply.text == "<think>\nmy ***\n</think>\n\nthe ***"
    assert reply.text[reply.thoughts :] == "the ***"
    assert reply.model == "of ***"
