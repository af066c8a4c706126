"""One request over HTTP and its response, read no further than what was asked for could fill, and parsed within bounds.

JSON grows when it is parsed: ``{},`` is three bytes and becomes 72. So a body is measured three times before it becomes
objects: its bytes while they arrive, then its strings and containers, then how deep it nests.
"""

import asyncio
import email.utils
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

T = TypeVar("T")

LONGEST_COMPLAINT = 1 << 16
"""Bytes that are read of a response whose status is not 200."""

_SPARE_BYTES, _BYTES_A_TOKEN, _ECHOES = 1 << 20, 2048, 8
_SPARE_ELEMENTS, _ELEMENTS_A_TOKEN = 1 << 14, 64
_DEEPEST = 32
_SMALL = 4 << 20  # bytes: bodies may have so many each; the bytes beyond are read one body at a time


class UnreadableError(Exception):
    """A body that is not parsed; the message says why, and holds nothing of the body."""


def most_bytes(tokens: int, request: int) -> int:
    """Bytes that an answer of ``tokens`` tokens to a request of so many bytes may have, decompressed.

    A mebibyte for what surrounds it, eight times the request (servers echo it), and 2 KiB a token: its text, its
    log-probability, its bytes one by one, and the same for an alternative. Real ones have 50 to 400 bytes a token.
    """
    return _SPARE_BYTES + _ECHOES * request + _BYTES_A_TOKEN * tokens


def most_elements(tokens: int) -> int:
    """Strings, objects and lists that the JSON of an answer of ``tokens`` tokens may have. Real ones have 5 to 20 a
    token."""
    return _SPARE_ELEMENTS + _ELEMENTS_A_TOKEN * tokens


async def _read_body(
    blocks: AsyncIterator[bytes], most: int, large: asyncio.Lock, held: AsyncExitStack
) -> bytes | None:
    """All the blocks as one body; None, and the rest unread, if they are more than ``most`` bytes.

    ``large`` is ``held`` from the moment that a body has more than 4 MiB, so that many at once stay small together.
    """
    content = bytearray()
    async for block in blocks:
        content += block
        if len(content) > min(most, _SMALL):
            break
    if _SMALL < len(content) <= most:
        await held.enter_async_context(large)
        async for block in blocks:
            content += block
            if len(content) > most:
                break
    return bytes(content) if len(content) <= most else None


def read_json(content: bytes, most: int) -> Any:
    """What JSON in UTF-8 says, if it has at most so many strings and containers and nests at most 32 deep.

    Half a character becomes U+FFFD. Raises `UnreadableError`.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    if problem := _beyond_bounds(content, most):
        raise UnreadableError(problem)
    try:
        return json.loads(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError):  # ValueError: also an integer of more than 4,300 digits
        pass
    # Not inside the clause above: a JSONDecodeError holds the whole document.
    raise UnreadableError(_not_json(content))


def _beyond_bounds(content: bytes, most: int) -> str:
    """Why a body is not worth parsing; empty if it may be. Takes a few passes at the speed of memory."""
    outline = content.replace(rb"\\", b"").replace(rb"\"", b"")
    strings = outline.count(b'"') // 2
    if strings <= most:
        outline = b"".join(outline.split(b'"')[::2])  # what stands between the strings
        containers = outline.count(b"[") + outline.count(b"{")
        if strings + containers <= most:
            brackets = outline.translate(None, delete=bytes(set(range(256)) - set(b"[]{}")))
            for _ in range(_DEEPEST):
                brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
            if brackets and 2 * (brackets.count(b"[") + brackets.count(b"{")) == len(brackets):
                return f"it nests more than {_DEEPEST} deep"
            return "not JSON: half of it is missing" if brackets else ""
    return f"it has more than {most:,} strings, objects and lists"


def _not_json(content: bytes) -> str:
    beginning = content[:64].lstrip().lower()
    if beginning.startswith((b"data:", b"event:", b": ", b":\n")):
        return "not JSON but a stream of events, which was not asked for"
    return "not JSON" if beginning else "not JSON: it is empty"


@dataclass(frozen=True)
class Response:
    """What came over the line. ``content``: None if it is larger than an answer can be."""

    status: int
    headers: Mapping[str, str]
    content: bytes | None

    @property
    def text(self) -> str:
        """The beginning, to be shown."""
        return (self.content or b"")[:4000].decode("utf-8", "replace")

    @property
    def is_page(self) -> bool:
        """Whether it is a web page."""
        return "html" in self.headers.get("content-type", "") or self.text.lstrip()[:1] == "<"


async def exchange(
    http_client: httpx2.AsyncClient,
    request: tuple[str, str, bytes | None],
    most: int,
    large: asyncio.Lock,
    read: Callable[[Response], T],
) -> T:
    """Send one request (method, address, JSON) and ``read`` the response: ``most`` bytes, of a complaint the beginning.

    A large body is alive only while nobody else's is: until ``read`` is done with it.
    Raises httpx2.RequestError. What is left unread is dropped with its connection.
    """
    method, url, body = request
    headers = {"Accept-Encoding": "identity"}  # answers are small, and what a few bytes unpack to is known too late
    if body is not None:
        headers["Content-Type"] = "application/json"
    async with http_client.stream(method, url, content=body, headers=headers) as stream, AsyncExitStack() as held:
        status, found, blocks = stream.status_code, stream.headers, stream.aiter_bytes()
        packed = [name for name in found.get_list("content-encoding", split_commas=True) if name.lower() != "identity"]
        if len(packed) > 1:
            raise httpx2.DecodingError("packed more than once", request=stream.request)
        if status != 200:
            beginning = bytearray()
            async for block in blocks:
                beginning += block
                if len(beginning) > LONGEST_COMPLAINT:
                    break
            return read(Response(status, found, bytes(beginning[:LONGEST_COMPLAINT])))
        declared = found.get("content-length", "")
        if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > most:
            return read(Response(status, found, None))
        return read(Response(status, found, await _read_body(blocks, most, large, held)))


def detail(response: Response) -> str:
    """The server's own words: error.message (OpenAI), message (vLLM, SGLang), detail (FastAPI), or the text itself."""
    if response.is_page:
        return "a web page"
    try:
        said = read_json(response.content or b"", LONGEST_COMPLAINT)
    except UnreadableError:
        return response.text
    for name in ("error", "message", "detail"):
        while isinstance(said, dict) and name in said:
            said = said[name]
    return said if isinstance(said, str) else response.text


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number, or a date); 0 if it asks for nothing sensible."""
    if not value:
        return 0.0
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            return 0.0
    return max(0.0, wait) if math.isfinite(wait) else 0.0
