"""The client against servers that mean it no good: an answer or one line, little memory, and the key nowhere."""

import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile_replies import KEY, RawServer, chunked, good, hostile_reply, http
from rlif.errors import RlifError
from rlif.evals.backends.exchange import UnreadableError, most_bytes, most_elements, read_json, retry_after
from rlif.evals.backends.openai_client import KEY_VARIABLE, Client, Server
from rlif.evals.backends.openai_protocol import Ask
from rlif.types import Sampling

ASK = Ask("p, sample 0", [{"role": "user", "content": "6*7="}], 0)
SAMPLING = Sampling(max_new_tokens=64)


def ask(server: RawServer, tokens: int = 64, **settings: Any) -> str:
    """The answer's text; a message of one line where there is none."""
    options = {"retries": 1, "first_wait": 0.001, "timeout": 20.0, **settings}
    try:
        ((_, answer),) = Client(Server(server.url, "m", **options)).answers([ASK], Sampling(max_new_tokens=tokens))
    except RlifError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 700
        assert message.startswith(f"endpoint {server.url}/v1, model 'm': ")
        return message
    return answer.text


def saying(*pieces: bytes | float) -> RawServer:
    return RawServer(lambda request: iter(pieces))


@pytest.mark.parametrize("first", range(0, 120, 10))
def test_hostile_replies_end_in_an_answer_or_one_line(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    for seed in range(first, first + 10):
        with saying(hostile_reply(seed)) as server:
            assert KEY not in ask(server), seed


def endless() -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b" " * 0x10000 + b"\r\n"


MIB = 1 << 20
MOST = most_bytes(64, 400)  # about: the request has 200 bytes
LARGE = {
    "endless": endless,
    "in chunks": lambda: iter([chunked(*[b" " * MIB] * 8)]),
    "as long as it says": lambda: iter([http(b" " * 8 * MIB)]),
    "longer than it says": lambda: iter([http(b" " * 8 * MIB, length=4)]),
    "until it hangs up": lambda: iter([b"HTTP/1.0 200 OK\r\n\r\n" + b" " * 8 * MIB]),
    "gzip": lambda: iter([http(gzip.compress(b" " * 64 * MIB), "Content-Encoding: gzip")]),
    "gzip, an error": lambda: iter(
        [http(gzip.compress(b" " * 64 * MIB), "Content-Encoding: gzip", status="400 Bad Request")]
    ),
    "an error": lambda: iter([http(b"x" * 64 * MIB, status="500 Oh")]),
    "packed twice": lambda: iter([http(gzip.compress(gzip.compress(b" " * 64 * MIB)), "Content-Encoding: gzip, gzip")]),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_more_is_read_than_was_asked_for(name: str) -> None:
    pieces = LARGE[name]() if name == "endless" else list(LARGE[name]())  # made before anything is measured
    with RawServer(lambda request: endless() if name == "endless" else iter(pieces)) as server:
        tracemalloc.start()
        try:
            message = ask(server, retries=2)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    expected = {"packed twice": "packed more than once", "longer than it says": "the answer cannot be read"}
    expected |= {"an error": "HTTP 500", "gzip, an error": "HTTP 400"}
    assert expected.get(name, "an answer of more than 1 MiB, which 64 tokens do not fill") in message
    assert peak < 4 * MOST + 8 * MIB  # and for a block of what is packed; the rest stays where it is
    assert kept < MIB


def test_a_large_answer_has_an_end_too() -> None:
    """Beyond the 4 MiB that every body may have: 4,096 tokens fill 9 MiB."""
    with RawServer(lambda request: endless()) as server:
        message = ask(server, tokens=4096, retries=0)
        written = server.written
    assert "an answer of more than 9 MiB, which 4096 tokens do not fill" in message
    assert written < 64 * MIB  # what the sockets hold comes on top


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'{"a":{}},', b'"ab",', b"1e9,", b"null,", b'"\\u0041",', b"12,"])
def test_little_grows_out_of_a_body_within_bounds_and_nothing_of_it_stays(unit: bytes) -> None:
    """Three tries of a body just within the bytes; objects are 24 times as large as ``{},``."""
    body = b'{"choices":[' + unit * ((MOST - 2000) // len(unit)) + b"{}]}"
    with saying(http(body)) as server:
        ask(server)  # what is loaded when first needed
        tracemalloc.start()
        try:
            message = ask(server, retries=2)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert "(3 tries)" in message
    assert peak < 16 * MOST
    assert kept < 100_000


IN_LITTLE_MEMORY = """
import resource, sys
sys.path.insert(0, {tests!r})
from hostile_replies import RawServer, http
from rlif.rollout.sampling import Sampling
from rlif.evals.backends.openai_client import Client, Server
from rlif.errors import RlifError
from rlif.evals.backends.openai_protocol import Ask

body = b'{{"choices":[' + b"{{}}," * {count} + b"{{}}]}}"
with RawServer(lambda request: iter([http(body)])) as server:
    sampling = Sampling(max_new_tokens=1)
    list(Client(Server("http://127.0.0.1:9", "m", retries=0)).answers([], sampling))  # what is loaded when needed
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ({room} << 20),) * 2)
    for tokens, count, retries in {asked}:
        asks = [Ask(f"p{{i}}", "1+1=", i) for i in range(count)]
        sampling = Sampling(max_new_tokens=tokens)
        try:
            list(Client(Server(server.url, "m", first_wait=0.001, retries=retries)).answers(asks, sampling))
        except RlifError as error:
            print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited and told on Linux")
def test_54_megabytes_of_empty_choices_fit_into_a_small_process() -> None:
    """Several requests at once and several tries, in 1 GiB beyond what the process starts with: it was 5.5 GB."""
    asked = ((96, 8, 2), (32768, 3, 0))  # tokens, requests at once, further tries
    code = IN_LITTLE_MEMORY.format(tests=str(Path(__file__).parents[1]), count=18_000_000, room=1024, asked=asked)
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # each arena takes 64 MiB of address space and fills none
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = done.stdout.splitlines()
    assert "an answer of more than 1 MiB, which 96 tokens do not fill (3 tries)" in small
    assert "strings, objects and lists" in large
    assert not done.stderr


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"[" * 33 + b"]" * 33, "it nests more than 32 deep"),
        (b'{"a":' * 40 + b"0" + b"}" * 40, "it nests more than 32 deep"),
        (b"[" * 90, "not JSON: half of it is missing"),
        (b'{"choices": [', "not JSON: half of it is missing"),
        (b"[]" * 50 + b"]", "not JSON: half of it is missing"),
        (b"[" + b"[]," * 100 + b"0]", "more than 100 strings, objects and lists"),
        (b"[" + b'"",' * 101 + b"0]", "more than 100 strings, objects and lists"),
        (b"1" * 5000, "not JSON"),
        (b"", "not JSON: it is empty"),
        (b" \n", "not JSON: it is empty"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),
        (b"data: {}\n\ndata: [DONE]", "not JSON but a stream of events"),
        (b": ping\n\ndata: {}", "not JSON but a stream of events"),
    ],
)
def test_what_is_not_parsed(body: bytes, problem: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{problem}|it has {problem}") as caught:
        read_json(body, 100)
    assert caught.value.__context__ is None  # a JSONDecodeError would hold the body


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    ),
    st.booleans(),
)
def test_bounds_count_what_json_holds_whatever_its_strings_hold(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    def count(one: Any) -> int:
        if isinstance(one, dict):
            return 1 + len(one) + sum(map(count, one.values()))
        return 1 + sum(map(count, one)) if isinstance(one, list) else int(isinstance(one, str))

    elements = count(value)
    read_json(body, elements)
    if elements:
        with pytest.raises(UnreadableError, match=r"it has more than [\d,]+ strings"):
            read_json(body, elements - 1)


def test_real_answers_are_far_within_the_bounds() -> None:
    """The largest that is sent: log-probabilities of every token with its bytes and one alternative, all long."""
    token = "﷽" * 4
    entry = {"token": token, "logprob": -0.12345678901234567, "bytes": list(token.encode())}
    entries = [{**entry, "top_logprobs": [entry]}] * 1000
    body = json.dumps(good(token * 1000, logprobs={"content": entries})).encode()
    assert len(body) < most_bytes(1000, 0) / 2
    assert read_json(body, (most_elements(1000) - most_elements(0)) // 2) is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, 0.0) for value in (None, "", "soon", "-5", "nan", "inf", "1e999", "1" * 400, "\xff", "12 s")),
        *(
            (value, 0.0)
            for value in ("Tue, 99 Foo 2026", "Fri, 31 Dec 99999 23:59:59 GMT", "Mon, 01 Jan 0000 00:00:00")
        ),
        *((value, 0.0) for value in ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +9999", ",")),
        *(("0", 0.0), ("1.5", 1.5), (" 120 ", 120.0)),
    ],
)
def test_retry_after_asks_for_something_sensible_or_nothing(value: str | None, expected: float) -> None:
    assert retry_after(value) == expected


@given(st.text(st.characters(max_codepoint=255)))
def test_retry_after_takes_any_header(value: str) -> None:
    assert 0.0 <= retry_after(value) < float("inf")


def test_a_slow_drip_ends_at_the_time_limit() -> None:
    body = http(json.dumps(good()).encode())

    def drip(request: bytes) -> Iterator[bytes | float]:
        for i in range(len(body)):
            yield body[i : i + 1]
            yield 0.05

    with RawServer(drip) as server:
        assert "no answer within 0.3 s" in ask(server, timeout=0.3)


def test_the_key_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with saying(http(json.dumps(good()).encode())) as other:
        for status in ("301 Moved", "302 Found", "307 Temporary", "308 Permanent"):
            with saying(http(b"", f"Location: {other.url}/v1/chat/completions?key={KEY}", status=status)) as server:
                message = ask(server)
            assert f"it redirects to {other.url}/v1/chat/completions?key=***; give that address" in message
    assert not other.requests


def test_cookies_are_not_kept() -> None:
    with saying(http(json.dumps(good()).encode(), "Set-Cookie: a=b; Path=/", status="500 Oh")) as server:
        ask(server, retries=2)
    assert len(server.requests) == 3
    assert not any(b"cookie" in request.lower() for request in server.requests)


def test_compression_is_not_asked_for_and_still_read() -> None:
    body = gzip.compress(json.dumps(good("42")).encode())
    with saying(http(body, "Content-Encoding: gzip")) as server:
        assert ask(server) == "42"
    assert b"accept-encoding: identity" in server.requests[0].lower()


def test_answers_wait_where_the_caller_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is faster than its caller does not fill the memory with answers."""
    monkeypatch.setattr("rlif.evals.backends.openai_client._WAITING", 4)
    with saying(http(json.dumps(good()).encode())) as server:
        found = Client(Server(server.url, "m", concurrency=2)).answers([ASK] * 40, SAMPLING)
        next(found)
        deadline = time.monotonic() + 0.5  # without a bound all forty would have been asked by then
        while time.monotonic() < deadline and len(server.requests) <= 1 + 4 + 2:
            time.sleep(0.01)
        assert len(server.requests) <= 1 + 4 + 2
        assert len(list(found)) == 39
