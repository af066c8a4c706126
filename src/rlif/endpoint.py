"""A client for servers that speak the OpenAI protocol: vLLM, SGLang, llama.cpp, `transformers serve`.

`Client.answers` keeps a bounded number of requests on their way and yields the answers in the order they come; a
request that fails for good costs no other answer. What is tried again, with growing, jittered waits: a connection that
breaks or is refused, HTTP 408, 425, 429 and 5xx (a Retry-After of one holds back all), an answer that is not the
protocol's. Once more only: a request that runs into the time limit. Never: any other 4xx, a redirect, a web page.
After a failure that every request would meet (no such model, no access), or three failures in a row, nothing new is
asked.

The API key comes from an environment variable; it is in no record, no message and no result.
"""

import asyncio
import contextlib
import email.utils
import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2

from rlif.draw import Sampling
from rlif.errors import RlifError
from rlif.wire import Ask, MalformedError, Reply, body_of, path_of, read_reply, refused_fields

KEY_VARIABLE = "RLIF_API_KEY"
"""Read if set, unless another variable is named."""

_LONGEST_BACKOFF = 30.0  # s between two tries
_LONGEST_WAIT = 300.0  # s; a server that asks for more is given up
_LONGEST_ANSWER = 64 << 20  # bytes
_FAILURES_IN_A_ROW = 3
_AGAIN = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Server:
    """A served model and how to ask it.

    Attributes:
        url: the server's address; ``/v1`` is added to one without a path.
        key_variable: the environment variable that holds the API key; None: `KEY_VARIABLE` if that is set.
        concurrency: most requests on their way at once.
        timeout: seconds a request may take, from the connection to the last byte.
        retries: most further tries of a request.
        first_wait: seconds before the first further try; each next one waits twice as long, up to half a minute.
    """

    url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 5
    first_wait: float = 0.5

    @property
    def base(self) -> str:
        """The address that ``/chat/completions`` is added to. Raises `RlifError` for one that cannot be asked."""
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise RlifError(f"endpoint {self.url!r}: {error}; give an address like http://127.0.0.1:8000/v1") from error
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            place = f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
            raise RlifError(
                f"endpoint {place}: an address with a password, a query or a fragment would stand in the results; "
                f"put the key into an environment variable (--api-key-env, default {KEY_VARIABLE})"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RlifError(f"endpoint {self.url!r}: not an address; give one like http://127.0.0.1:8000/v1")
        path = parts.path.rstrip("/")
        for end in ("/chat/completions", "/completions"):
            path = path.removesuffix(end)
        return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"

    def key(self) -> str | None:
        """The API key. Raises `RlifError` if the named variable is not set or holds what no header can carry."""
        name = self.key_variable or KEY_VARIABLE
        key = os.environ.get(name, "").strip()
        if not key and self.key_variable:
            raise RlifError(f"endpoint {self.base}: the environment variable {name} is not set; it should hold the key")
        if not (key.isascii() and key.isprintable()):
            raise RlifError(f"endpoint {self.base}: the key in {name} holds a character that no HTTP header can carry")
        return key or None


class Client:
    """Asks one served model. Raises `RlifError` for an address or a key that cannot be used.

    Attributes:
        refused: optional fields that the server turned out not to take, and that are no longer sent.
        settled: whether it is known what the server takes: from then on a refusal is a failure of that request alone.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.refused: frozenset[str] = frozenset()
        self.settled = False
        self._base = server.base
        self._key = server.key()

    def answers(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[Ask, Reply]]:
        """The answers, as they come. Leaving the iterator early breaks off what is still on its way.

        Raises `RlifError` at the end, when all that could be had has been yielded, if a request failed for good.
        """
        run = _Run(self, asks, sampling)
        yield from run.results()
        if run.failures:
            first, problem = run.failures[0]
            which = f" ({first.label} failed for good; {run.answered} of {len(asks)} answers came)"
            where = f"endpoint {self._base}, model {self.server.model!r}"
            raise RlifError(f"{where}: {problem}{which if len(asks) > 1 else ''}")

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def shown(self, text: str, most: int = 200) -> str:
        """A server's words, fit for one line of a terminal: no key, no control characters, not endless."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * most]).split())
        return line if len(line) <= most else line[: most - 1] + "…"


class _TryError(Exception):
    """A try that failed. ``again``: worth another; ``wait``: seconds the server asks for; ``for_all``: hopeless."""

    def __init__(self, problem: str, *, again: bool = False, wait: float = 0.0, for_all: bool = False) -> None:
        super().__init__(problem)
        self.again, self.wait, self.for_all = again, wait, for_all


@dataclass
class _Run:
    """One call of `Client.answers`: an event loop in a thread of its own, so that the caller may be slow, or in one."""

    client: Client
    asks: Sequence[Ask]
    sampling: Sampling
    failures: list[tuple[Ask, _TryError]] = field(default_factory=list)
    answered: int = 0
    _in_a_row: int = 0
    _stopped: bool = False
    _not_before: float = 0.0
    _reached: bool = False
    _random: random.Random = field(default_factory=random.Random)

    def results(self) -> Iterator[tuple[Ask, Reply]]:
        inbox: queue.SimpleQueue[tuple[Ask, Reply] | BaseException | None] = queue.SimpleQueue()
        handle: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = queue.SimpleQueue()

        async def ask_all() -> None:
            handle.put((asyncio.get_running_loop(), cast("asyncio.Task[None]", asyncio.current_task())))
            await self._ask_all(inbox)

        def work() -> None:
            try:
                asyncio.run(ask_all())
            except BaseException as error:  # into the caller's thread with it
                inbox.put(error)
            else:
                inbox.put(None)

        thread = threading.Thread(target=work, name="rlif-endpoint", daemon=True)
        thread.start()
        loop, task = handle.get()
        try:
            while (item := inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def _ask_all(self, inbox: "queue.SimpleQueue[Any]") -> None:
        server = self.client.server
        try:
            http = httpx2.AsyncClient(
                headers=self.client.headers(),
                timeout=httpx2.Timeout(server.timeout, pool=None),
                limits=httpx2.Limits(max_connections=server.concurrency),
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:  # what the proxy variables may bring about
            raise RlifError(f"endpoint {server.base}: {error}; check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY") from error
        waiting = iter(self.asks)
        async with http:
            await asyncio.gather(*(self._worker(http, waiting, inbox) for _ in range(server.concurrency)))

    async def _worker(self, http: httpx2.AsyncClient, waiting: Iterator[Ask], inbox: "queue.SimpleQueue[Any]") -> None:
        for ask in waiting:
            try:
                reply = await self._ask(http, ask)
            except _TryError as failure:
                self.failures.append((ask, failure))
                self._in_a_row += 1
                self._stopped |= failure.for_all or self._in_a_row >= _FAILURES_IN_A_ROW
            else:
                self._in_a_row = 0
                self.answered += 1
                inbox.put((ask, reply))
            if self._stopped:
                return

    async def _ask(self, http: httpx2.AsyncClient, ask: Ask) -> Reply:
        """One answer, tried as often as the server's settings allow."""
        server, tries, late = self.client.server, 0, 0
        while True:
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            tries += 1
            try:
                return await asyncio.wait_for(self._try(http, ask), server.timeout)
            except (asyncio.TimeoutError, httpx2.TimeoutException):
                late += 1
                problem = f"no answer within {server.timeout:g} s; raise --timeout, or ask for less at a time"
                failure = _TryError(problem, again=late == 1)
            except httpx2.TransportError as error:
                failure = self._broken(error)
            except _TryError as known:
                failure = known
            if not failure.again or tries > server.retries or self._stopped:
                raise _TryError(f"{failure}{f' ({tries} tries)' if tries > 1 else ''}", for_all=failure.for_all)
            backoff = min(_LONGEST_BACKOFF, server.first_wait * 2.0 ** (tries - 1)) * self._random.uniform(0.5, 1.0)
            if failure.wait:
                self._not_before = max(self._not_before, time.monotonic() + failure.wait)
            await asyncio.sleep(backoff)

    def _broken(self, error: httpx2.TransportError) -> _TryError:
        """A connection that could not be made or did not last."""
        reason = self.client.shown(str(error)) or type(error).__name__
        if isinstance(error, httpx2.ConnectError):
            remedy = "does the server still run?" if self._reached else "start the server, or correct the address"
            return _TryError(f"no connection ({reason}); {remedy}", again=self._reached, for_all=True)
        return _TryError(f"the connection broke ({reason}); see the server's log", again=True)

    async def _try(self, http: httpx2.AsyncClient, ask: Ask) -> Reply:
        """One try; a field that the server refuses and that can be spared is left out and the request sent again."""
        client = self.client
        while True:
            body = body_of(client.server.model, ask, self.sampling, client.refused)
            status, headers, content = await _exchange(http, "POST", f"{client.server.base}/{path_of(ask)}", body)
            self._reached = True
            if status in (400, 422) and not client.settled:
                refused = refused_fields(content.decode("utf-8", "replace"), self.sampling, body.keys())
                if refused:
                    client.refused |= refused
                    continue
            if status != 200:
                raise await self._refusal(http, status, headers, content)
            return self._read(headers, content)

    def _read(self, headers: httpx2.Headers, content: bytes) -> Reply:
        if "html" in headers.get("content-type", ""):
            raise _TryError("it answers with a web page; check the address (most end in /v1)", for_all=True)
        beginning = self.client.shown(content[:4000].decode("utf-8", "replace"), 80)
        try:
            return read_reply(json.loads(content), self.sampling)
        except MalformedError as error:
            raise _TryError(f"{error}: {beginning}", again=True) from error
        except (ValueError, RecursionError) as error:
            raise _TryError(f"the answer is not JSON: {beginning or '(nothing)'}", again=True) from error

    async def _refusal(
        self, http: httpx2.AsyncClient, status: int, headers: httpx2.Headers, content: bytes
    ) -> _TryError:
        """What an HTTP status other than 200 means, and what to do about it."""
        client, variable = self.client, self.client.server.key_variable or KEY_VARIABLE
        said = client.shown(_detail(headers, content))
        problem = f"HTTP {status}" + (f", {said}" if said else "")
        if status in (401, 403):
            remedy = f"the key in {variable} does not open it" if client.headers() else f"put the key into {variable}"
            return _TryError(f"{problem}; {remedy}", for_all=True)
        if 300 <= status < 400:
            place = client.shown(headers.get("location", "elsewhere"))
            return _TryError(f"{problem}: it redirects to {place}; give that address", for_all=True)
        if status == 404:
            return _TryError(f"{problem}; {await self._served(http)}", for_all=True)
        if status in _AGAIN or status >= 500:
            wait = _retry_after(headers.get("retry-after"))
            if wait > _LONGEST_WAIT:
                return _TryError(f"{problem}: it asks to wait {wait:.0f} s; try again then", for_all=True)
            remedy = "lower --concurrency" if status == 429 else "see the server's log"
            return _TryError(f"{problem}; {remedy}", again=True, wait=wait)
        return _TryError(problem)

    async def _served(self, http: httpx2.AsyncClient) -> str:
        """The models this server has, as a remedy for a wrong name."""
        remedy = "check the address (most end in /v1) and the model's name"
        try:
            status, _, content = await _exchange(http, "GET", f"{self.client.server.base}/models", None)
            names = [str(model["id"]) for model in json.loads(content)["data"]] if status == 200 else []
        except (httpx2.HTTPError, ValueError, KeyError, TypeError, RecursionError, _TryError):
            return remedy
        return f"it serves {self.client.shown(', '.join(names))}" if names else remedy


async def _exchange(http: httpx2.AsyncClient, method: str, url: str, body: Any) -> tuple[int, httpx2.Headers, bytes]:
    """Send one request, read all of the answer: status, headers, body."""
    content = bytearray()
    async with http.stream(method, url, json=body) as response:
        async for block in response.aiter_bytes():
            content += block
            if len(content) > _LONGEST_ANSWER:
                raise _TryError(f"an answer of more than {_LONGEST_ANSWER >> 20} MiB")
    return response.status_code, response.headers, bytes(content)


def _detail(headers: httpx2.Headers, content: bytes) -> str:
    """The server's own words: error.message (OpenAI), message (vLLM, SGLang), detail (FastAPI), or the text itself."""
    if "html" in headers.get("content-type", ""):
        return "a web page"
    text = content[:4000].decode("utf-8", "replace")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        while isinstance(said, dict) and name in said:
            said = said[name]
    return said if isinstance(said, str) else text


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number, or a date); 0 if it asks for nothing sensible."""
    if not value:
        return 0.0
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, wait) if wait == wait else 0.0
