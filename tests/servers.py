"""Servers on loopback for the tests of `rlif.evals.backends.openai_client`: one that misbehaves as told, one with a
model behind it."""

import contextlib
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from rlif.config import PolicyConfig
from rlif.model.loading import load_policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.types import Problem, Prompt, Sampling


@dataclass(frozen=True)
class Said:
    """What a server answers. ``cut``: bytes after which it hangs up; ``slow``: seconds before it answers at all."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    slow: float = 0.0


@dataclass(frozen=True)
class Heard:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any
    at: float


def chat(text: str, **choice: Any) -> dict[str, Any]:
    """A chat completion as OpenAI has it, one token a character and one for the end."""
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(text) + 1, "total_tokens": len(text) + 4},
    }


class ServerOnLoopback:
    """Answers every request with what ``answer`` says to it; ``heard`` is the list of requests so far."""

    def __init__(self, answer: Callable[[Heard], Said]) -> None:
        self.heard: list[Heard] = []
        self.most_at_once = 0
        self._at_once, self._lock = 0, threading.Lock()
        self._connections: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def do_GET(self) -> None:
                self._serve(None)

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                if len(content := self.rfile.read(length)) == length:  # less: the client hung up half-way
                    self._serve(json.loads(content))

            def _serve(self, body: Any) -> None:
                heard = Heard(self.path, {k.lower(): v for k, v in self.headers.items()}, body, time.monotonic())
                with outer._lock:
                    outer.heard.append(heard)
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                try:
                    self._say(answer(heard))
                finally:
                    with outer._lock:
                        outer._at_once -= 1

            def _say(self, said: Said) -> None:
                if said.slow:
                    time.sleep(said.slow)
                content = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
                self.send_response(said.status)
                for name, value in {"Content-Type": "application/json", **said.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: said.cut])
                if said.cut is not None:
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: Any, client_address: Any) -> None:
                outer._connections.append(request)
                super().process_request(request, client_address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that hangs up is part of the tests
                    super().handle_error(request, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "ServerOnLoopback":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:  # those that are kept open die with their server
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    @property
    def asked(self) -> list[Heard]:
        """The requests for completions."""
        return [heard for heard in self.heard if heard.body is not None]


class ModelServer:
    """A shipped model behind the protocol, with its logprobs, as vLLM serves one: give it to `ServerOnLoopback`."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._policy = load_policy(PolicyConfig(model=model, dtype="float32", device="cpu"))
        self._lock = threading.Lock()

    def __call__(self, heard: Heard) -> Said:
        if heard.body is None:
            return Said({"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "tests"}]})
        body, chat = heard.body, heard.path.endswith("/chat/completions")
        if body["model"] != self.model:
            return Said({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        encode = self._policy.encode_messages if chat else self._policy.encode_text
        text, ids = encode(body["messages"] if chat else body["prompt"])
        prompt = Prompt("served", text, ids, Problem("served", text))
        stop = tuple(body.get("stop", ()))
        sampling = Sampling(body["temperature"], body["top_p"], max(body["top_k"], 0), body["max_tokens"], stop)
        with self._lock:
            rollouts = Engine(self._policy).sample(
                [prompt], group_size=1, sampling=sampling, key=Key(body["seed"], "served")
            )
        n, answer, reason = int(rollouts.lengths[0]), rollouts.texts[0], rollouts.stop_reasons[0]
        logprobs = [float(value) for value in rollouts.signals.logprob[0, :n]]
        assert all(math.isfinite(value) for value in logprobs)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "length" if reason == "length" else "stop",
            "stop_reason": next((s for s in stop if reason == "stop_string"), None),
            **(
                {
                    "message": {"role": "assistant", "content": answer},
                    "logprobs": {"content": [{"token": "", "logprob": value} for value in logprobs]},
                }
                if chat
                else {"text": answer, "logprobs": {"tokens": [""] * n, "token_logprobs": logprobs}}
            ),
        }
        return Said({"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": n}})
