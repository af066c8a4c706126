"""The client against an HTTP server on loopback that misbehaves as servers and networks do, and one with a model."""

import asyncio
import email.utils
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.evals.backends.openai_client import KEY_VARIABLE, Client, Server
from rlif.evals.backends.openai_protocol import Ask, Reply
from rlif.model.loading import load_policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import render
from rlif.types import Problem, Sampling
from servers import Heard, ModelServer, Said, ServerOnLoopback, chat

SAMPLING = Sampling(temperature=0.0, max_new_tokens=16)
SECRET = "sk-this-must-be-seen-nowhere"


def asks(count: int) -> list[Ask]:
    return [Ask(f"problem {i}, sample 0", [{"role": "user", "content": str(i)}], seed=i) for i in range(count)]


def echo(heard: Heard) -> Said:
    return Said(chat("=" + heard.body["messages"][0]["content"]))


def in_turn(*said: Said | Callable[[Heard], Said]) -> Callable[[Heard], Said]:
    """Says one thing after another, and then the last one for ever."""
    left, lock = list(said), threading.Lock()

    def answer(heard: Heard) -> Said:
        with lock:
            now = left.pop(0) if len(left) > 1 else left[0]
        return now(heard) if callable(now) else now

    return answer


def client(server: ServerOnLoopback, **settings: Any) -> Client:
    return Client(Server(server.url, "m", **{"first_wait": 0.01, "timeout": 30.0, **settings}))


def collect(found: Iterator[tuple[Ask, Reply]]) -> tuple[dict[str, str], str]:
    """Texts by label, and the error at the end (empty: none)."""
    texts = {}
    try:
        for ask, reply in found:
            texts[ask.label] = reply.text
    except RlifError as error:
        return texts, str(error)
    return texts, ""


def test_every_question_gets_its_own_answer() -> None:
    with ServerOnLoopback(echo) as server:
        texts, error = collect(client(server).answers(asks(40), SAMPLING))
    assert texts == {f"problem {i}, sample 0": f"={i}" for i in range(40)}
    assert not error
    assert {heard.path for heard in server.heard} == {"/v1/chat/completions"}
    assert len(server.heard) == 40


def test_no_more_requests_at_once_than_allowed_and_as_many() -> None:
    with ServerOnLoopback(lambda heard: Said(chat("."), slow=0.05)) as server:
        texts, _ = collect(client(server, concurrency=3).answers(asks(12), SAMPLING))
    assert len(texts) == 12
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    "trouble",
    [
        Said({"error": {"message": "boom"}}, 500),
        Said(b"<html>bad gateway</html>", 502, {"Content-Type": "text/html"}),
        Said({"error": {"message": "loading model"}}, 503),
        Said({"error": {"message": "slow down"}}, 429),
        Said(chat("never arrives"), cut=30),
        Said(b'{"choices": [', 200),
        Said({"object": "chat.completion"}, 200),
        Said(b"", 200),
        Said(b"[" * 100_000, 200),
    ],
    ids=["500", "502", "503", "429", "cut off", "half a JSON", "no choices", "nothing", "nested"],
)
def test_passing_trouble_passes_unseen(trouble: Said) -> None:
    with ServerOnLoopback(in_turn(trouble, trouble, echo)) as server:
        texts, error = collect(client(server, concurrency=1).answers(asks(2), SAMPLING))
    assert len(texts) == 2
    assert not error
    assert len(server.asked) == 4
    assert server.asked[0].body == server.asked[2].body  # the same question, with the same seed


def test_waits_double_and_are_jittered() -> None:
    with ServerOnLoopback(in_turn(*[Said({}, 500)] * 4, echo)) as server:
        collect(client(server, first_wait=0.04).answers(asks(1), SAMPLING))
    times = [heard.at for heard in server.heard]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(wait >= 0.5 * 0.04 * 2**i for i, wait in enumerate(waits))  # a lower bound: no machine is too slow


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_holds_back_every_request(as_date: bool) -> None:
    def busy(heard: Heard) -> Said:
        # A date has whole seconds: 2 from now is at least 1 away.
        value = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "0.5"
        return Said({}, 429, {"Retry-After": value})

    with ServerOnLoopback(in_turn(busy, echo)) as server:
        texts, error = collect(client(server, concurrency=1).answers(asks(2), SAMPLING))
    assert len(texts) == 2
    assert not error
    assert server.heard[1].at - server.heard[0].at >= (0.9 if as_date else 0.5)


def test_a_server_that_asks_for_an_hour_is_given_up() -> None:
    with ServerOnLoopback(lambda heard: Said({}, 429, {"Retry-After": "3600"})) as server:
        texts, error = collect(client(server).answers(asks(3), SAMPLING))
    assert not texts
    assert "asks to wait 3600 s" in error
    assert "0 of 3" in error


def test_a_request_that_fails_for_good_costs_no_other_answer_and_is_named() -> None:
    def answer(heard: Heard) -> Said:
        return Said({"error": {"message": "boom"}}, 500) if heard.body["messages"][0]["content"] == "4" else echo(heard)

    with ServerOnLoopback(answer) as server:
        texts, error = collect(client(server, retries=2).answers(asks(10), SAMPLING))
    assert len(texts) == 9
    assert "problem 4, sample 0" not in texts
    assert error == (
        f"endpoint {server.url}/v1, model 'm': HTTP 500, boom; see the server's log (3 tries) "
        "(problem 4, sample 0 failed for good; 9 of 10 answers came)"
    )
    assert len(server.heard) == 9 + 3


def test_failures_that_are_not_in_a_row_do_not_end_it() -> None:
    def answer(heard: Heard) -> Said:
        return Said({}, 400) if int(heard.body["messages"][0]["content"]) % 4 == 3 else echo(heard)

    with ServerOnLoopback(answer) as server:
        texts, error = collect(client(server, concurrency=1).answers(asks(20), SAMPLING))
    assert len(texts) == 15
    assert "problem 3, sample 0 failed for good; 15 of 20 answers came" in error


def test_three_failures_in_a_row_end_it_and_what_is_on_its_way_still_counts() -> None:
    with ServerOnLoopback(lambda heard: Said({"message": "prompt too long"}, 400)) as server:
        texts, error = collect(client(server, concurrency=1).answers(asks(50), SAMPLING))
    assert not texts
    assert len(server.heard) == 3
    assert "HTTP 400, prompt too long (problem 0" in error

    gate = threading.Event()

    def answer(heard: Heard) -> Said:
        if heard.body["messages"][0]["content"] == "0":  # the first answer is ready only after the others have failed
            gate.wait(20)
            return echo(heard)
        if len(server.heard) >= 4:
            gate.set()
        return Said({}, 400)

    with ServerOnLoopback(answer) as server:
        texts, error = collect(client(server, concurrency=2).answers(asks(50), SAMPLING))
    assert texts == {"problem 0, sample 0": "=0"}
    assert "1 of 50 answers came" in error


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Said({"error": {"message": "The model `m` does not exist."}}, 404), "does not exist.; it serves big, small"),
        (Said({"error": {"message": "who are you"}}, 401), f"who are you; put the key into {KEY_VARIABLE}"),
        (Said(b"<html>Welcome", 200, {"Content-Type": "text/html; charset=utf-8"}), "a web page; check the address"),
        (Said(b"<html>404", 404, {"Content-Type": "text/html"}), "HTTP 404, a web page; it serves big, small"),
        (Said(b"", 301, {"Location": "https://elsewhere/v1"}), "redirects to https://elsewhere/v1; give that address"),
    ],
)
def test_what_every_request_would_meet_ends_it_at_once_with_a_remedy(said: Said, expected: str) -> None:
    models = Said({"data": [{"id": "big"}, {"id": "small"}]})
    with ServerOnLoopback(lambda heard: models if heard.path == "/v1/models" else said) as server:
        texts, error = collect(client(server, concurrency=1).answers(asks(50), SAMPLING))
    assert not texts
    assert expected in error
    assert len(server.asked) == 1
    assert "\n" not in error
    assert server.url in error


def test_a_server_without_a_list_of_models_still_gets_a_remedy() -> None:
    with ServerOnLoopback(lambda heard: Said({"detail": "Not Found"}, 404)) as server:
        _, error = collect(client(server).answers(asks(1), SAMPLING))
    assert "HTTP 404, Not Found; check the address (most end in /v1) and the model's name" in error


def test_a_server_that_is_not_there_is_one_line_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        _, error = collect(Client(Server(url, "m", first_wait=60.0)).answers(asks(3), SAMPLING))
    assert error.startswith(f"endpoint {url}/v1, model 'm': no connection (")
    assert "start the server" in error


def test_a_server_that_dies_is_tried_again_and_then_one_line() -> None:
    with ServerOnLoopback(echo) as server:
        found = client(server, concurrency=1, retries=2).answers(asks(500), SAMPLING)
        next(found)
    texts, error = collect(found)  # what was on its way when it died
    assert len(texts) < 499
    assert re.search(r"(no connection|connection broke) .*\(3 tries\) \(problem \d+, sample 0 failed for good", error)


def test_a_server_that_stops_answering_is_asked_once_more() -> None:
    with ServerOnLoopback(lambda heard: Said(chat("late"), slow=1.0)) as server:
        texts, error = collect(client(server, timeout=0.2).answers(asks(1), SAMPLING))
    assert not texts
    assert len(server.heard) == 2
    assert "no answer within 0.2 s; raise --timeout, or ask for less at a time (2 tries)" in error


def test_fields_that_a_server_refuses_are_left_out_from_then_on() -> None:
    def strict(heard: Heard) -> Said:
        unknown = sorted({"top_k", "min_p", "repetition_penalty"} & set(heard.body))
        return Said({"detail": f"Unexpected fields: {unknown}"}, 422) if unknown else echo(heard)

    with ServerOnLoopback(strict) as server:
        asking = client(server, concurrency=1)
        texts, error = collect(asking.answers(asks(3), SAMPLING))
        assert len(texts) == 3
        assert not error
        assert len(server.heard) == 4
        assert asking.refused == {"top_k", "min_p", "repetition_penalty"}
        collect(asking.answers(asks(1), SAMPLING))
    assert len(server.heard) == 5


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_of_tokens_has_two_names(name: str) -> None:
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[name]

    def strict(heard: Heard) -> Said:
        complaint = f"Unsupported parameter: '{other}' is not supported with this model. Use '{name}' instead."
        return Said({"error": {"message": complaint}}, 400) if other in heard.body else echo(heard)

    with ServerOnLoopback(strict) as server:
        asking = client(server, concurrency=1)
        texts, error = collect(asking.answers(asks(3), SAMPLING))
    assert len(texts) == 3
    assert not error
    assert [heard.body[name] for heard in server.heard[-3:]] == [16] * 3
    assert len(server.heard) == 3 + (name == "max_completion_tokens")


def test_a_server_that_takes_neither_name_is_one_line() -> None:
    def strict(heard: Heard) -> Said:
        found = next(name for name in heard.body if name.startswith("max_"))
        return Said({"error": {"message": f"Unknown field: {found}"}}, 422)

    with ServerOnLoopback(strict) as server:
        texts, error = collect(client(server).answers(asks(1), SAMPLING))
    assert not texts
    assert "HTTP 422, Unknown field: max_completion_tokens" in error
    assert len(server.heard) == 2


def test_half_a_character_in_a_question_is_sent_as_json_says_it() -> None:
    with ServerOnLoopback(lambda heard: Said(chat("."))) as server:
        texts, _ = collect(client(server).answers([Ask("p", "half \ud83d", 0)], SAMPLING))
    assert texts == {"p": "."}
    assert server.heard[0].body["prompt"] == "half \ud83d"


def test_a_key_that_comes_back_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)

    def answer(heard: Heard) -> Said:
        told = f"You sent {heard.headers['authorization']}."
        return Said({**chat(told, message={"content": told, "reasoning": told}), "model": SECRET})

    with ServerOnLoopback(answer) as server:
        ((_, reply),) = client(server).answers(asks(1), SAMPLING)
    assert reply.text == "<think>\nYou sent Bearer ***.\n</think>\n\nYou sent Bearer ***."
    assert reply.text[reply.thoughts :] == "You sent Bearer ***."
    assert reply.model == "***"


def test_an_address_with_the_key_in_its_path_is_shown_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with ServerOnLoopback(lambda heard: Said({}, 400)) as server:
        asking = Client(Server(f"{server.url}/{SECRET}/v1", "m"))
        _, error = collect(asking.answers(asks(1), SAMPLING))
    assert server.heard[0].path == f"/{SECRET}/v1/chat/completions"
    assert asking.base == f"{server.url}/***/v1"
    assert error.startswith(f"endpoint {server.url}/***/v1, ")


def test_the_key_is_sent_and_seen_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)

    def answer(heard: Heard) -> Said:
        return Said({"error": {"message": f"the key {SECRET} is wrong"}}, 401)

    with ServerOnLoopback(answer) as server:
        asking = client(server, key_variable="MY_KEY")
        _, error = collect(asking.answers(asks(1), SAMPLING))
    assert server.asked[0].headers["authorization"] == f"Bearer {SECRET}"
    assert "the key *** is wrong; the key in MY_KEY does not open it" in error
    assert SECRET not in error + repr(asking) + repr(asking.server) + str(server.asked[0].body)


def test_the_usual_variable_is_read_only_where_no_other_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    assert Server("http://h", "m").key() == SECRET
    with pytest.raises(RlifError, match="MY_KEY is not set"):
        Client(Server("http://h", "m", key_variable="MY_KEY"))
    monkeypatch.delenv(KEY_VARIABLE)
    assert Server("http://h", "m").key() is None
    monkeypatch.setenv(KEY_VARIABLE, "half a\nkey ü")
    with pytest.raises(RlifError, match="no HTTP header can carry") as caught:
        Client(Server("http://h", "m"))
    assert "half" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h", "http://h/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://h/openai/v1/chat/completions", "https://h/openai/v1"),
        ("http://h/v1/completions", "http://h/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_addresses(url: str, base: str) -> None:
    assert Server(url, "m").base == base


NO_ADDRESSES = (
    *("localhost:8000", "h", "", "ftp://h/v1", "http://", "http://h:port/v1", "http://[::1", "http://999.9.9.9/v1"),
    *("http://h\x00/v1", "http://h/\x1b[31m/v1", "http://h/\ud83d/v1", "http://\u2028/v1", "http://h/\u202e/v1"),
    *("http://１２７.0.0.1:9", "http://h:９/v1", "http://h/" + "a" * 70_000),
)


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(RlifError, match=r"http://127\.0\.0\.1:8000/v1") as caught:
        Client(Server(url, "m"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("url", [f"http://me:{SECRET}@h/v1", f"http://h/v1?api-key={SECRET}"])
def test_a_key_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RlifError, match="environment variable") as caught:
        Client(Server(url, "m"))
    assert SECRET not in str(caught.value)


def test_a_server_s_words_reach_the_terminal_as_one_harmless_line() -> None:
    with ServerOnLoopback(lambda heard: Said({"message": "red \x1b[31m\n\nand " + "long " * 200}, 400)) as server:
        _, error = collect(client(server).answers(asks(1), SAMPLING))
    assert error.isprintable()
    assert "red [31m and long" in error
    assert len(error) < 400


def test_leaving_early_breaks_off_what_is_on_its_way() -> None:
    def answer(heard: Heard) -> Said:
        return echo(heard) if heard.body["messages"][0]["content"] == "0" else Said(chat("late"), slow=2.0)

    with ServerOnLoopback(answer) as server:
        found = client(server, concurrency=2).answers(asks(1000), SAMPLING)
        next(found)
        found.close()  # type: ignore[attr-defined]
        assert not any(thread.name == "rlif-endpoint" for thread in threading.enumerate())
    assert len(server.heard) <= 4


def test_it_can_be_called_where_an_event_loop_runs() -> None:
    async def notebook() -> int:
        return len(list(client(server).answers(asks(2), SAMPLING)))

    with ServerOnLoopback(echo) as server:
        assert asyncio.run(notebook()) == 2


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("rlif.evals.backends.openai_client.read_reply", broken)
    with ServerOnLoopback(echo) as server, pytest.raises(ZeroDivisionError, match="ours"):
        list(client(server).answers(asks(3), SAMPLING))


def test_no_questions_no_requests() -> None:
    with ServerOnLoopback(echo) as server:
        assert list(client(server).answers([], SAMPLING)) == []
    assert not server.heard


@pytest.fixture(scope="module")
def tiny() -> ModelServer:
    return ModelServer("tiny-instruct")


@pytest.mark.parametrize("as_chat", [True, False])
def test_greedy_answers_through_a_server_are_the_engine_s(tiny: ModelServer, as_chat: bool) -> None:
    policy = load_policy(
        PolicyConfig(model="tiny-instruct", dtype="float32", device="cpu", chat_template="on" if as_chat else "off")
    )
    problems = [Problem(f"sum/{a}", f"{a}+{97 - a}=?") for a in (23, 48, 61, 74)]
    prompts = render(policy, "plain", problems)
    sampling = Sampling(temperature=0.0, max_new_tokens=96)
    local = Engine(policy).sample(prompts, group_size=1, sampling=sampling, key=Key(0, "t"))
    questions = [
        Ask(p.id, [{"role": "user", "content": p.question}] if as_chat else p.question, seed=0) for p in problems
    ]
    with ServerOnLoopback(tiny) as server:
        served = {
            ask.label: reply for ask, reply in Client(Server(server.url, "tiny-instruct")).answers(questions, sampling)
        }
    for row, prompt in enumerate(prompts):
        reply, n = served[prompt.id], int(local.lengths[row])
        assert (reply.text, reply.stop, reply.n_tokens) == (local.texts[row], local.stop_reasons[row], n)
        assert reply.logprobs == pytest.approx(local.signals.logprob[row, :n].tolist(), abs=1e-5)
