"""A client for servers that speak the OpenAI protocol: vLLM, SGLang, llama.cpp, `transformers serve`.

`Client.answers` keeps a bounded number of requests on their way and yields the answers in the order they come; a
request that fails for good costs no other answer. What is tried again, with growing, jittered waits: a connection that
breaks or is refused, HTTP 408, 425, 429 and 5xx (a Retry-After of one holds back all), an answer that is not the
protocol's. Once more only: a request that runs into the time limit. Never: any other 4xx, a redirect, a web page.
After a failure that every request would meet (no such model, no access), or three failures in a row, nothing new is
asked.

An answer may be as large as what was asked for could be (`rlif.evals.backends.exchange`); of one that is refused
nothing is kept.

The API key comes from an environment variable; it is in no record, no message and no result
(`rlif.evals.backends.masking`).
"""

import asyncio
import contextlib
import http.cookiejar
import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2

from rlif.errors import RlifError
from rlif.evals.backends.exchange import (
    Response,
    UnreadableError,
    detail,
    exchange,
    most_bytes,
    most_elements,
    read_json,
    retry_after,
)
from rlif.evals.backends.masking import Mask
from rlif.evals.backends.openai_protocol import Ask, MalformedError, Reply, body_of, path_of, read_reply, refused_fields
from rlif.types import Sampling

KEY_VARIABLE = "RLIF_API_KEY"
"""Read if set, unless another variable is named."""

_LONGEST_BACKOFF = 30.0  # s between two tries
_LONGEST_WAIT = 300.0  # s; a server that asks for more is given up
_LONGEST_LIST = 4 << 20  # bytes that tell which models there are
_MOST_MODELS = 1 << 17  # strings and containers in that
_WAITING = 64  # answers that wait for a caller who is slower than the server
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
        given = self.url if len(self.url) <= 200 else self.url[:199] + "…"
        try:
            parts = urlsplit(self.url.strip())
            port = parts.port
        except ValueError as error:
            raise RlifError(f"endpoint {given!r}: {error}; give an address like http://127.0.0.1:8000/v1") from error
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            place = f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
            raise RlifError(
                f"endpoint {place}: an address with a password, a query or a fragment would stand in the results; "
                f"put the key into an environment variable (--api-key-env, default {KEY_VARIABLE})"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RlifError(f"endpoint {given!r}: not an address; give one like http://127.0.0.1:8000/v1")
        path = parts.path.rstrip("/")
        for end in ("/chat/completions", "/completions"):
            path = path.removesuffix(end)
        base = f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
        try:
            httpx2.URL(f"{base}/chat/completions")
        except (httpx2.InvalidURL, ValueError):  # an ending that is no host, a path that UTF-8 cannot say
            base = ""
        if not base.isprintable() or not base:
            raise RlifError(f"endpoint {given!r}: not an address; give one like http://127.0.0.1:8000/v1")
        return base

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
        mask: replaces the key in a text; every reply has been through it.
        base: the server's address, fit to be stored.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.refused: frozenset[str] = frozenset()
        self.settled = False
        self._key = server.key()
        self.mask = Mask(self._key)
        self.base = self.mask(server.base)

    def answers(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[Ask, Reply]]:
        """The answers, as they come. Leaving the iterator early breaks off what is still on its way.

        Raises `RlifError` at the end, when all that could be had has been yielded, if a request failed for good.
        """
        run = _Run(self, asks, sampling)
        yield from run.results()
        if run.failures:
            first, failure = run.failures[0]
            which = f" ({first.label} failed for good; {run.answered} of {len(asks)} answers came)"
            where = f"endpoint {self.base}, model {self.server.model!r}"
            raise RlifError(f"{where}: {failure.problem}{which if len(asks) > 1 else ''}")

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def shown(self, text: str, most: int = 200) -> str:
        """A server's words, fit for one line of a terminal: no key, no control characters, not endless."""
        text = self.mask(text)
        line = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * most]).split())
        return line if len(line) <= most else line[: most - 1] + "…"


@dataclass(frozen=True)
class _Failure:
    """A try that failed. A value, no exception: that would keep alive the answer it was made of.

    ``again``: worth another try; ``wait``: seconds the server asks for; ``for_all``: every request would meet it.
    """

    problem: str
    again: bool = False
    wait: float = 0.0
    for_all: bool = False


@dataclass
class _Run:
    """One call of `Client.answers`: an event loop in a thread of its own, so that the caller may be slow, or in one."""

    client: Client
    asks: Sequence[Ask]
    sampling: Sampling
    failures: list[tuple[Ask, _Failure]] = field(default_factory=list)
    answered: int = 0
    _in_a_row: int = 0
    _stopped: bool = False
    _not_before: float = 0.0
    _reached: bool = False
    _random: random.Random = field(default_factory=random.Random)
    _large: asyncio.Lock = field(default_factory=asyncio.Lock)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_WAITING))

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
                with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
                    loop.call_soon_threadsafe(self._room.release)
                yield item
        finally:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def _ask_all(self, inbox: "queue.SimpleQueue[Any]") -> None:
        server = self.client.server
        no_cookies = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])  # a server could send ever more of them
        try:
            http_client = httpx2.AsyncClient(
                headers=self.client.headers(),
                cookies=http.cookiejar.CookieJar(no_cookies),
                timeout=httpx2.Timeout(server.timeout, pool=None),
                limits=httpx2.Limits(max_connections=server.concurrency),
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:  # what the proxy variables may bring about
            raise RlifError(
                f"endpoint {self.client.base}: {error}; check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            ) from error
        waiting = iter(self.asks)
        async with http_client:
            await asyncio.gather(*(self._worker(http_client, waiting, inbox) for _ in range(server.concurrency)))

    async def _worker(
        self, http_client: httpx2.AsyncClient, waiting: Iterator[Ask], inbox: "queue.SimpleQueue[Any]"
    ) -> None:
        for ask in waiting:
            outcome = await self._ask(http_client, ask)
            if isinstance(outcome, _Failure):
                self.failures.append((ask, outcome))
                self._in_a_row += 1
                self._stopped |= outcome.for_all or self._in_a_row >= _FAILURES_IN_A_ROW
            else:
                await self._room.acquire()
                self._in_a_row = 0
                self.answered += 1
                inbox.put((ask, outcome))
            if self._stopped:
                return

    async def _ask(self, http_client: httpx2.AsyncClient, ask: Ask) -> Reply | _Failure:
        """One answer, tried as often as the server's settings allow."""
        server, tries, late = self.client.server, 0, 0
        while True:
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            tries += 1
            try:
                outcome = await asyncio.wait_for(self._try(http_client, ask), server.timeout)
            except (asyncio.TimeoutError, httpx2.TimeoutException):
                late += 1
                problem = f"no answer within {server.timeout:g} s; raise --timeout, or ask for less at a time"
                outcome = _Failure(problem, again=late == 1)
            except httpx2.RequestError as error:
                outcome = self._broken(error)
            if isinstance(outcome, Reply):
                return outcome
            if not outcome.again or tries > server.retries or self._stopped:
                return replace(outcome, problem=outcome.problem + (f" ({tries} tries)" if tries > 1 else ""))
            backoff = min(_LONGEST_BACKOFF, server.first_wait * 2.0 ** (tries - 1)) * self._random.uniform(0.5, 1.0)
            if outcome.wait:
                self._not_before = max(self._not_before, time.monotonic() + outcome.wait)
            await asyncio.sleep(backoff)

    def _broken(self, error: httpx2.RequestError) -> _Failure:
        """A connection that could not be made or did not last, or what came over it was not HTTP."""
        reason = self.client.shown(str(error)) or type(error).__name__
        if isinstance(error, httpx2.ConnectError):
            remedy = "does the server still run?" if self._reached else "start the server, or correct the address"
            return _Failure(f"no connection ({reason}); {remedy}", again=self._reached, for_all=True)
        if isinstance(error, httpx2.DecodingError):
            return _Failure(f"the answer cannot be unpacked ({reason}); see the server's log", again=True)
        return _Failure(f"the connection broke ({reason}); see the server's log", again=True)

    async def _try(self, http_client: httpx2.AsyncClient, ask: Ask) -> Reply | _Failure:
        """One try; a field that the server refuses and that can be spared is left out and the request sent again."""
        client = self.client
        while True:
            body = body_of(client.server.model, ask, self.sampling, client.refused)
            sent = json.dumps(body).encode()  # as ASCII: a question may hold half a character, which UTF-8 cannot say
            most = most_bytes(self.sampling.max_new_tokens, len(sent))
            url = f"{client.server.base}/{path_of(ask)}"
            read = partial(self._read, most)
            outcome = await exchange(http_client, ("POST", url, sent), most, self._large, read)
            self._reached = True
            if not isinstance(outcome, Response):
                return outcome
            if outcome.status in (400, 422) and not client.settled:
                complaint = (outcome.content or b"").decode("utf-8", "replace")
                if refused := refused_fields(complaint, self.sampling, body.keys()):
                    client.refused |= refused
                    continue
            return await self._refusal(http_client, outcome)

    def _read(self, most: int, response: Response) -> Reply | _Failure | Response:
        """What a response says; one that is no answer as it is."""
        client, tokens = self.client, self.sampling.max_new_tokens
        if response.status != 200:
            return response
        if response.content is None:
            return _Failure(f"an answer of more than {_size(most)}, which {tokens} tokens do not fill", again=True)
        if response.is_page:
            return _Failure("it answers with a web page; check the address (most end in /v1)", for_all=True)
        try:
            return read_reply(read_json(response.content, most_elements(tokens)), self.sampling, client.mask)
        except MalformedError as error:
            problem = client.shown(str(error))
        except UnreadableError as error:
            problem = f"the answer cannot be read, {error}"
        beginning = client.shown(response.text, 80)
        return _Failure(f"{problem}{f': {beginning}' if beginning else ''}", again=True)

    async def _refusal(self, http_client: httpx2.AsyncClient, response: Response) -> _Failure:
        """What an HTTP status other than 200 means, and what to do about it."""
        client, variable, status = self.client, self.client.server.key_variable or KEY_VARIABLE, response.status
        said = client.shown(detail(response))
        problem = f"HTTP {status}" + (f", {said}" if said else "")
        if status in (401, 403):
            remedy = f"the key in {variable} does not open it" if client.headers() else f"put the key into {variable}"
            return _Failure(f"{problem}; {remedy}", for_all=True)
        if status == 402:
            return _Failure(f"{problem}; the server wants to be paid first", for_all=True)
        if 300 <= status < 400:
            place = client.shown(response.headers.get("location", "elsewhere"))
            return _Failure(f"{problem}: it redirects to {place}; give that address", for_all=True)
        if status == 404:
            return _Failure(f"{problem}; {await self._served(http_client)}", for_all=True)
        if status in _AGAIN or status >= 500:
            wait = retry_after(response.headers.get("retry-after"))
            if wait > _LONGEST_WAIT:
                return _Failure(f"{problem}: it asks to wait {wait:.0f} s; try again then", for_all=True)
            remedy = "lower --concurrency" if status == 429 else "see the server's log"
            return _Failure(f"{problem}; {remedy}", again=True, wait=wait)
        return _Failure(problem)

    async def _served(self, http_client: httpx2.AsyncClient) -> str:
        """The models this server has, as a remedy for a wrong name."""
        remedy = "check the address (most end in /v1) and the model's name"
        try:
            url = f"{self.client.server.base}/models"
            names = await exchange(http_client, ("GET", url, None), _LONGEST_LIST, self._large, _models)
        except (httpx2.HTTPError, UnreadableError, ValueError, KeyError, TypeError):
            return remedy
        return f"it serves {self.client.shown(', '.join(names))}" if names else remedy


def _models(response: Response) -> list[str]:
    """Names out of a list of models, at most a hundred; none where there is no list."""
    if response.status != 200 or response.content is None:
        return []
    return [str(model["id"]) for model in read_json(response.content, _MOST_MODELS)["data"][:100]]


def _size(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
