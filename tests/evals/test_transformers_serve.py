"""The client against a server that is not ours: `transformers serve` with the shipped instruct model.

Needs what ``pip install transformers[serving]`` brings (part of the dev extra); without it these tests are skipped.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.evals.backends.base import RenderedProblem
from rlif.evals.backends.openai import ServedBackend
from rlif.evals.backends.openai_client import Client, Server
from rlif.evals.backends.openai_protocol import Ask
from rlif.model import registry
from rlif.model.loading import load_policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.prompts import render
from rlif.types import Problem, Sampling

for module in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(module)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """tiny-instruct behind `transformers serve`, for as long as these tests take."""
    model = str(Path(registry.resolve("tiny-instruct")).resolve())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("served") / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 200
        while not _is_up(port):
            assert process.poll() is None, log.read_text("utf-8", "replace")
            assert time.monotonic() < deadline, log.read_text("utf-8", "replace")
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}", model, concurrency=2)
    finally:
        process.terminate()
        process.wait(30)


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("as_chat", [True, False])
@pytest.mark.parametrize("stop", [(), ("=17",)])  # of the four sums, 48+49 alone has such a step
def test_greedy_answers_are_the_engine_s(served: Server, as_chat: bool, stop: tuple[str, ...]) -> None:
    mode = "on" if as_chat else "off"
    policy = load_policy(PolicyConfig(model="tiny-instruct", dtype="float32", device="cpu", chat_template=mode))
    problems = [Problem(f"sum/{a}", f"{a}+{97 - a}=?") for a in (23, 48, 61, 74)]
    prompts = render(policy, "plain", problems)
    sampling = Sampling(temperature=0.0, max_new_tokens=96, stop=stop)
    local = Engine(policy).sample(prompts, group_size=1, sampling=sampling, key=Key(0, "t"))
    asks = [Ask(p.id, [{"role": "user", "content": p.question}] if as_chat else p.question, 0) for p in problems]
    client = Client(served)
    replies = {ask.label: reply for ask, reply in client.answers(asks, sampling)}
    assert client.refused == {"top_k", "min_p", "repetition_penalty"}  # it names what it does not know
    expected = zip(local.texts, local.stop_reasons, local.lengths.tolist(), strict=True)
    assert [(r.text, r.stop, r.n_tokens) for r in (replies[p.id] for p in problems)] == list(expected)
    assert {reply.logprobs for reply in replies.values()} == {None}  # and tells no log-probabilities
    if stop:
        assert local.stop_reasons.count("stop_string") == 1


def test_a_server_that_does_not_sample_is_found_out(served: Server) -> None:
    """tiny-instruct has no do_sample in its generation config, and the server goes by that alone."""
    problem = Problem("sum", "23+74=?")
    asked = [RenderedProblem(problem, ({"role": "user", "content": problem.question},), problem.question)]
    backend = ServedBackend(Client(served))
    backend.check(asked, Sampling(temperature=0.0))
    with pytest.raises(RlifError, match="does not sample; add --temperature 0"):
        backend.check(asked, Sampling(temperature=0.6))


def test_a_length_limit_is_told_from_an_end(served: Server) -> None:
    sampling = Sampling(temperature=0.0, max_new_tokens=5)
    ((_, reply),) = Client(served).answers([Ask("p", "27+58=?", 0)], sampling)
    assert (reply.stop, reply.n_tokens) == ("length", 5)


def test_a_wrong_name_is_one_line(served: Server) -> None:
    with pytest.raises(RlifError, match=r"model 'nope': HTTP 400, Server is pinned to .*requested 'nope'"):
        list(Client(Server(served.url, "nope")).answers([Ask("p", "1+1=", 0)], Sampling(max_new_tokens=2)))
