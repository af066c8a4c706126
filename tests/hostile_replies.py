"""Servers that answer with whatever bytes they like, and a seeded supply of hostile replies.

Used by tests/evals/test_hostile_server.py and, for many more tries, by benchmarks/hostile_server.py.
"""

import gzip
import json
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

KEY = "sk-Hostile/Key+0123456789=="


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An HTTP/1.1 response with this body; ``length``: the Content-Length that it claims."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*blocks: bytes, headers: Sequence[str] = ()) -> bytes:
    """The same in chunks."""
    head = "\r\n".join(["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *headers, "", ""]).encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in blocks) + b"0\r\n\r\n"


class RawServer:
    """Reads a request, writes the bytes that ``reply`` gives to it (a float among them: seconds to wait), hangs up.

    ``requests``: what was sent, as it came over the line; ``written``: bytes that the other side took, in all.
    """

    def __init__(self, reply: Callable[[bytes], Iterator[bytes | float]]) -> None:
        self.requests: list[bytes] = []
        self.written = 0
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "RawServer":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            request = _request(connection)
            if not request:
                return
            self.requests.append(request)
            for piece in self._reply(request):
                if isinstance(piece, float):
                    time.sleep(piece)
                    continue
                for at in range(0, len(piece), 1 << 16):
                    block = piece[at : at + (1 << 16)]
                    connection.sendall(block)
                    self.written += len(block)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # until the client hangs up: a reset would take back what is on its way
        except OSError:
            pass
        finally:
            connection.close()


def _request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        block = connection.recv(1 << 16)
        if not block:
            return b""
        received += block
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]):
        block = connection.recv(1 << 16)
        if not block:
            return b""
        body += block
    return head + b"\r\n\r\n" + body


def good(text: str = "42", **choice: Any) -> dict[str, Any]:
    """An answer as it should be."""
    return {
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


# Values that are put where others belong.
ODD: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1.5, -9999.0, 1e308, float("nan"), float("inf"), -0.0),
    *("", "stop", "\ud83d", "\x1b[31m", "\u202e", "[/b]", "NaN", "<think>", KEY, f"Bearer {KEY}", "x" * 5000),
    *(
        [],
        {},
        [[]],
        [{}],
        {"": {}},
        [None],
        {"text": "t"},
        [{"type": "text"}],
        [{"type": "image_url"}],
        {"type": "stop"},
    ),
)


def mutated(draw: random.Random, value: Any, rate: float = 0.15) -> Any:
    """JSON with some of its values replaced, left out, doubled or nested."""
    if draw.random() < rate:
        return draw.choice(ODD)
    if isinstance(value, dict):
        found = {name: mutated(draw, one, rate) for name, one in value.items() if draw.random() > rate / 3}
        if draw.random() < rate:
            found[draw.choice(("reasoning_content", "reasoning", "text", "error", "logprobs", "refusal", "index"))] = (
                draw.choice(ODD)
            )
        return found
    if isinstance(value, list):
        return [mutated(draw, one, rate) for one in value for _ in range(draw.choice((0, 1, 1, 1, 1, 1, 2)))]
    return value


def _json(draw: random.Random) -> bytes:
    entries = [{"token": "4", "logprob": -0.5, "bytes": [52], "top_logprobs": []} for _ in range(4)]
    answer = good(draw.choice(("42", "", KEY)), logprobs={"content": entries})
    return json.dumps(mutated(draw, answer, draw.choice((0.02, 0.1, 0.4)))).encode()


def _mangled(draw: random.Random) -> bytes:
    body = bytearray(_json(draw))
    for _ in range(draw.randint(1, 8)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return bytes(body)


def _large(draw: random.Random) -> bytes:
    unit = draw.choice((b"{},", b"[],", b'"ab",', b"1e9,", b'{"a":{}},', b"null,", b'"\\u0041",', b"   ", b"\\\\"))
    return b'{"choices":[' + unit * (draw.choice((1, 2, 6)) * (1 << 20) // len(unit)) + b"{}]}"


def _nested(draw: random.Random) -> bytes:
    count = draw.choice((31, 40, 1000, 100_000, 1 << 20))
    return draw.choice((b"[" * count, b'{"a":' * count, b"[" * count + b"]" * count, b'[{"a":' * count))


def _bomb(draw: random.Random) -> bytes:
    plain = draw.choice((b" ", b"[", b"{},")) * draw.choice((1 << 20, 1 << 24))
    packed, name = draw.choice(((gzip.compress(plain), "gzip"), (zlib.compress(plain), "deflate")))
    if draw.random() < 0.3:
        return http(gzip.compress(packed), f"Content-Encoding: {name}, gzip")
    return http(
        packed[: draw.choice((None, len(packed) // 2))], f"Content-Encoding: {draw.choice((name, 'GZIP', 'br'))}"
    )


_STATUSES = (
    *(100, 101, 200, 201, 204, 206, 300, 301, 302, 303, 307, 308, 400, 401, 402, 403, 404, 405, 409, 413, 418),
    *(422, 429, 499, 500, 502, 503, 504, 529, 599, 600, 999, 42, -1, "abc"),
)


def _status(draw: random.Random) -> bytes:
    status = draw.choice(_STATUSES)
    waits = ("0", "1e999", "-5", "nan", "Tue, 99 Foo 2026", "Fri, 31 Dec 9999 23:59:59 GMT", "\xff", "", "1" * 400)
    places = ("http://127.0.0.1:1/v1", "//elsewhere.invalid", "http://[", "javascript:0", f"/?{KEY}", "\x7f", "")
    words = ({"error": {"message": f"key {KEY} \x1b[2J"}}, {"error": "top_k"}, {"detail": [{"msg": "min_p"}]}, [], 0)
    said = json.dumps(draw.choice(words)).encode()
    body = draw.choice((said, said, b"<html>", b"\x00\xff\x1b", f"{KEY} ".encode() * 9999))
    headers = [f"Retry-After: {draw.choice(waits)}"] if draw.random() < 0.3 else []
    headers += [f"Location: {draw.choice(places)}"] if draw.random() < 0.5 else []
    headers += [f"Set-Cookie: a={draw.choice(('b', KEY, chr(34)))}; Max-Age=x"] if draw.random() < 0.3 else []
    return http(body, *headers, status=f"{status} {draw.choice(('OK', KEY, ''))}")


def _line(draw: random.Random) -> bytes:
    """HTTP that is none, or tells lies."""
    body = _json(draw)
    return draw.choice(
        (
            b"",
            draw.randbytes(300),
            b"HTTP/1.0 200 OK\r\n\r\n" + body,
            b"HTTP/1.0 200 OK\r\n\r\n" + body[: len(body) // 2],
            b"HTTP/2 200\r\n\r\n" + body,
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000,
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
            b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + http(body),
            http(body, length=len(body) + 50),
            http(body, length=len(body) // 2),
            http(body, length=1 << 62),
            http(body, length=-1),
            http(body, "Content-Length: 7"),
            http(body, "Content-Type: text/html"),
            http(body, "Content-Type: \xff\x1b"),
            http(body, "Transfer-Encoding: gzip"),
            chunked(*(body[i : i + 1] for i in range(len(body)))),
            chunked(body)[:-9],
            chunked(body).replace(b"\r\n0\r\n", b"\r\nzz\r\n"),
            chunked(body, headers=[f"Content-Encoding: {'gzip, ' * 9}gzip"]),
            http(b"data: " + body + b"\n\ndata: [DONE]\n\n", "Content-Type: text/event-stream"),
            http(body.decode().encode("utf-16")),
            http(b"\xef\xbb\xbf" + body),
            http(b"1" * 100_000),
            http(b"NaN"),
        )
    )


KINDS: Mapping[str, tuple[int, Callable[[random.Random], bytes]]] = {
    "JSON with odd values": (40, lambda draw: http(_json(draw))),
    "JSON with changed bytes": (15, lambda draw: http(_mangled(draw))),
    "megabytes of small values": (3, lambda draw: http(_large(draw))),
    "deep nesting": (4, lambda draw: http(_nested(draw))),
    "compression bombs": (3, _bomb),
    "any status, any header": (20, _status),
    "broken HTTP": (20, _line),
}
"""Kinds of replies, with how often they are drawn."""


def kind_of(seed: int) -> str:
    """Which kind of reply a seed stands for."""
    return random.Random(seed).choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]


def hostile_reply(seed: int) -> bytes:
    """The bytes that follow a request; the same for the same seed."""
    return KINDS[kind_of(seed)][1](random.Random(f"reply {seed}"))
