"""`rlif eval --endpoint`: a served model is evaluated as a local one is; no answer is lost to a failing server."""

import base64
import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from evaluations import Crashing, settings
from rlif.cli.evaluate import served
from rlif.cli.main import app
from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.evals.backends.base import Backend, RenderedProblem
from rlif.evals.backends.engine import EngineBackend
from rlif.evals.backends.openai import ServedBackend
from rlif.evals.backends.openai_client import KEY_VARIABLE, Client, Server
from rlif.evals.runner import Candidate, evaluate
from rlif.grading.extraction import EXTRACTORS
from rlif.grading.grader import Grader
from rlif.rng import Key
from rlif.types import Problem, Sampling
from servers import Heard, ModelServer, Said, ServerOnLoopback, chat

SECRET = "sk-this-must-be-seen-nowhere"


def candidate(server: ServerOnLoopback, model: str = "m", **chosen: Any) -> Candidate:
    return served(Server(server.url, model, first_wait=0.01, timeout=60.0, **chosen), settings())


def rows(folder: Path) -> list[dict[str, Any]]:
    found = parquet.read_table(folder).to_pylist()
    return sorted(found, key=lambda row: (row["position"], row["sample"]))


def question(heard: Heard) -> str:
    return str(heard.body["messages"][0]["content"])


def boxed(heard: Heard) -> Said:
    """Right about every sum, in a box; another wording for every seed."""
    a, _, b = question(heard).removesuffix("=?").partition("+")
    return Said(chat(f"{heard.body['seed']}: \\boxed{{{int(a) + int(b or 0)}}}"))


LIMIT = 96  # tokens of an answer to the task; the questions asked before it have fewer


def trial_or(answer: Any) -> Any:
    """The questions that are asked first get their answers; ``answer`` is for all the others."""
    return lambda heard: answer(heard) if heard.body["max_tokens"] == LIMIT else Said(chat(str(heard.body["seed"])))


@pytest.fixture(scope="module")
def tiny() -> ModelServer:
    return ModelServer("tiny-instruct")


def test_greedy_results_are_those_of_the_local_engine(tiny: ModelServer, tmp_path: Path) -> None:
    greedy = settings(temperature=0.0, samples=1, limit=4)
    config = PolicyConfig(model="tiny-instruct", dtype="float32", device="cpu")
    with ServerOnLoopback(tiny) as server:
        through = evaluate([candidate(server, "tiny-instruct")], greedy, tmp_path / "served")
    local = evaluate(
        [Candidate("tiny-instruct", lambda: EngineBackend("tiny-instruct", config))], greedy, tmp_path / "local"
    )
    pairs = list(
        zip(*(rows(tmp_path / name / "tiny-instruct" / "arithmetic") for name in ("served", "local")), strict=True)
    )
    assert len(pairs) == 4
    for there, here in pairs:
        for name in ("problem_id", "completion", "length", "stop_reason", "right", "formatted", "extracted"):
            assert there[name] == here[name], name
        assert there["logprob"] == pytest.approx(here["logprob"], abs=1e-6)
        # Tenths without a token are NaN on both sides.
        assert there["logprob_tenths"] == pytest.approx(here["logprob_tenths"], abs=1e-5, nan_ok=True)
        assert there["entropy"] is None
        assert here["entropy"] is not None
    (a,), (b,) = through["results"], local["results"]
    assert a["counts"] == b["counts"]
    assert a["metrics"]["logprob"] == pytest.approx(b["metrics"]["logprob"], abs=1e-6)
    assert not {"entropy", "self_certainty"} & set(a["metrics"])
    assert {"model": "tiny-instruct", "chat_template": True, "logprobs": True, "refused": []}.items() <= a[
        "facts"
    ].items()


def test_protocol_is_met() -> None:
    with ServerOnLoopback(lambda heard: Said(chat("2"))) as server:
        assert isinstance(ServedBackend(Client(Server(server.url, "m"))), Backend)


def test_each_answer_has_a_seed_of_its_own_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with ServerOnLoopback(trial_or(boxed)) as server:
            evaluate([candidate(server)], settings(), tmp_path / name)
    first, second = (rows(tmp_path / name / "m" / "arithmetic") for name in ("a", "b"))
    assert [row["completion"] for row in first] == [row["completion"] for row in second]
    assert len({row["completion"] for row in first}) == 18  # 6 problems, 3 samples
    assert all(row["right"] for row in first)


def test_no_answer_is_lost_to_one_that_fails_and_the_next_run_asks_for_that_alone(tmp_path: Path) -> None:
    count = itertools.count()

    def poisoned(heard: Heard) -> Said:
        return Said({"message": "out of memory"}, 400) if next(count) == 7 else boxed(heard)

    with ServerOnLoopback(trial_or(poisoned)) as server, pytest.raises(RlifError) as caught:
        evaluate([candidate(server, concurrency=1)], settings(), tmp_path / "e")
    kept = rows(tmp_path / "e" / "m" / "arithmetic")
    assert len(kept) == 17
    lost = kept[6]["problem_id"]  # the third problem: its first sample stands before it, its last one behind
    assert [(row["problem_id"], row["sample"]) for row in kept if row["problem_id"] == lost] == [(lost, 0), (lost, 2)]
    assert f"HTTP 400, out of memory ({lost}, sample 1 failed for good; 17 of 18 answers came)" in str(caught.value)
    assert not (tmp_path / "e" / "results.json").exists()

    with ServerOnLoopback(trial_or(boxed)) as moved:  # the server comes back, at another address
        evaluate([candidate(moved)], settings(), tmp_path / "e")
    assert [heard.body["max_tokens"] for heard in moved.heard] == [1, 32, 32, 32, 32, LIMIT]  # one was missing
    assert [(row["problem_id"], row["sample"]) for row in rows(tmp_path / "e" / "m" / "arithmetic")] == [
        (row["problem_id"], sample) for row in kept[::3] for sample in range(3)
    ]
    with ServerOnLoopback(trial_or(boxed)) as whole:
        evaluate([candidate(whole)], settings(), tmp_path / "whole")
    again, never = (rows(tmp_path / name / "m" / "arithmetic") for name in ("e", "whole"))
    assert [row["completion"] for row in again] == [row["completion"] for row in never]


def test_nothing_more_is_asked_once_the_evaluation_has_failed(tmp_path: Path) -> None:
    def slowly(heard: Heard) -> Said:
        return replace(boxed(heard), slow=0.1)

    with ServerOnLoopback(trial_or(slowly)) as server:
        with pytest.raises(RuntimeError, match="out of memory") as caught:
            evaluate([candidate(server, concurrency=1)], settings(), tmp_path / "e", grader=Crashing(0))
        assert not [thread for thread in threading.enumerate() if thread.name == "rlif-endpoint"]
        assert len(server.asked) < 5 + 18  # five questions come before the 18
    assert caught.traceback  # the error was alive until now, and with it the loop that asked


def test_a_complaint_that_repeats_the_request_costs_no_field(tmp_path: Path) -> None:
    count = itertools.count()

    def echoes(heard: Heard) -> Said:
        return Said({"message": f"too long: {json.dumps(heard.body)}"}, 400) if next(count) == 7 else boxed(heard)

    with ServerOnLoopback(trial_or(echoes)) as server, pytest.raises(RlifError, match="17 of 18 answers came"):
        evaluate([candidate(server, concurrency=1)], settings(), tmp_path / "e")
    assert all({"seed", "logprobs", "top_k", "min_p"} <= heard.body.keys() for heard in server.asked)


def test_a_server_that_answers_otherwise_than_before_is_refused(tmp_path: Path) -> None:
    count = itertools.count()

    def fails_soon(heard: Heard) -> Said:
        return boxed(heard) if next(count) < 4 else Said({}, 400)

    def strict(heard: Heard) -> Said:
        return Said({"detail": "unknown: min_p"}, 422) if "min_p" in heard.body else Said(chat("2"))

    with ServerOnLoopback(trial_or(fails_soon)) as server, pytest.raises(RlifError, match="4 of 18 answers came"):
        evaluate([candidate(server, concurrency=1)], settings(), tmp_path / "e")
    with ServerOnLoopback(strict) as server, pytest.raises(RlifError, match=r"m has changed since \(refused was"):
        evaluate([candidate(server)], settings(), tmp_path / "e")


def test_a_model_without_a_chat_template_is_given_text() -> None:
    def base(heard: Heard) -> Said:
        if heard.path.endswith("/chat/completions"):
            return Said({"error": {"message": "the tokenizer does not define a chat template"}}, 400)
        return Said({"choices": [{"text": "2", "finish_reason": "stop"}], "usage": {"completion_tokens": 2}})

    with ServerOnLoopback(base) as server:
        backend = ServedBackend(Client(Server(server.url, "m")))
        assert backend.facts()["chat_template"] is False
        assert backend.notes == (
            "the server says that the model has no chat template: it is given plain text",
            "the server tells no log-probabilities: the results hold no signals",
        )
        with pytest.raises(RlifError, match="does not define a chat template"):
            ServedBackend(Client(Server(server.url, "m")), "on")


@pytest.mark.parametrize("status", [400, 404, 405, 422, 500])
@pytest.mark.parametrize("text_is_answered", [True, False])
def test_plain_text_is_proposed_where_it_is_answered(status: int, text_is_answered: bool) -> None:
    """A hint is tried before it is given: a server that answers nothing is not said to have a base model."""

    def answer(heard: Heard) -> Said:
        if heard.path == "/v1/completions" and text_is_answered:
            return Said({"choices": [{"text": "2"}], "usage": {"completion_tokens": 1}})
        return Said({"error": {"message": "out of memory"}}, status)

    with ServerOnLoopback(answer) as server, pytest.raises(RlifError, match=f"HTTP {status}, out of memory") as caught:
        ServedBackend(Client(Server(server.url, "m", retries=0)))
    assert ("for a base model add --chat-template off" in str(caught.value)) == text_is_answered


@pytest.mark.parametrize("status", [401, 403, 429])
def test_no_plain_text_is_proposed_where_the_trouble_is_another(status: int) -> None:
    with ServerOnLoopback(lambda heard: Said({}, status)) as server, pytest.raises(RlifError) as caught:
        ServedBackend(Client(Server(server.url, "m", retries=0)))
    assert "base model" not in str(caught.value)
    assert len(server.heard) == 1


def test_what_a_user_should_know_of_a_server() -> None:
    def answer(heard: Heard) -> Said:
        return Said({**chat("as long as I like to"), "model": "an\x1bother"})

    with ServerOnLoopback(answer) as server:
        notes = ServedBackend(Client(Server(server.url, "m"))).notes
    assert notes[0] == "the server calls the model that answers an other"
    assert notes[1] == "the server does not keep the limit of tokens: asked for 1 it gave 21"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_are_kept_and_never_graded(name: str, tmp_path: Path) -> None:
    """Of six problems three are thought about to the end; all thoughts hold the right answer in a box."""
    count = itertools.count()

    def thinks(heard: Heard) -> Said:
        a, _, b = question(heard).removesuffix("=?").partition("+")
        right, done = int(a) + int(b or 0), next(count) % 2 == 0
        message = {name: f"</think> \\boxed{{{right}}}", "content": f"\\boxed{{{right + 1}}}" if done else None}
        return Said(chat("", message=message, finish_reason="stop" if done else "length"))

    chosen = settings(temperature=0.0, samples=1, limit=6)
    with ServerOnLoopback(trial_or(thinks)) as server:
        results = evaluate([served(Server(server.url, "m", concurrency=1), chosen)], chosen, tmp_path / "e")
    found = rows(tmp_path / "e" / "m" / "arithmetic")
    assert len(found) == 6
    assert all(row["completion"].startswith("<think>\n</think> \\boxed{") for row in found)
    for row in found:
        assert row["right"] is False
        if row["stop_reason"] == "length":  # it ended while it was thought about
            assert (row["formatted"], row["extracted"]) == (False, None)
        else:
            assert row["extracted"] == str(int(row["answer"]) + 1)
    assert [row["stop_reason"] for row in found].count("length") == 3
    assert results["results"][0]["metrics"]["right"] == 0.0


def test_nothing_is_an_answer_in_no_form() -> None:
    """What is graded of an answer that ended among its thoughts."""
    with Grader() as grader:
        for format in EXTRACTORS:
            verdict = grader.grade("", "5", format=format, row_id="r")
            assert (verdict.right, verdict.formatted, verdict.extracted) == (False, False, None), format


@pytest.mark.parametrize("where", ["answer", "thoughts", "model", "error"])
def test_a_key_that_a_server_repeats_is_in_no_file(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    forms = f"{SECRET} Bearer {SECRET} {base64.b64encode(f'Bearer {SECRET}'.encode()).decode()}"

    def repeats(heard: Heard) -> Said:
        if where == "error" and heard.body["max_tokens"] == LIMIT:
            return Said({"error": {"message": forms}}, 400)
        message = {"content": f"{heard.body['seed']} {forms if where == 'answer' else ''} \\boxed{{5}}"}
        message |= {"reasoning": forms} if where == "thoughts" else {}
        return Said({**chat("", message=message), "model": forms if where == "model" else "m"})

    options = ("--tasks", "arithmetic", "--limit", "2", "--samples", "2", "--out", str(tmp_path / "e"))
    with ServerOnLoopback(repeats) as server:
        code, said = run("--endpoint", f"{server.url}/{SECRET}/v1", "--model", "m", *options)
    assert (code == 0) == (where != "error"), said
    files = [path for path in (tmp_path / "e").rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in files) + said.encode()
    held += repr([rows(path) for path in (tmp_path / "e" / "m").glob("arithmetic")]).encode()  # Parquet is compressed
    assert b"***" in held
    for form in forms.split():
        assert form == "Bearer" or form.encode() not in held


def test_a_server_that_does_not_sample_is_found_out(tmp_path: Path) -> None:
    def greedy(heard: Heard) -> Said:
        return Said(chat("2"))

    with ServerOnLoopback(greedy) as server:
        with pytest.raises(RlifError, match="4 seeds at temperature 2 give one and the same answer"):
            evaluate([candidate(server)], settings(), tmp_path / "e")
        evaluate([candidate(server)], settings(temperature=0.0, samples=1), tmp_path / "greedy")


def test_a_server_that_has_not_said_anything_yet_may_sample() -> None:
    """Thoughts that are not told fill the few tokens of these questions: nothing can be concluded from no text."""
    with ServerOnLoopback(lambda heard: Said(chat("", finish_reason="length"))) as server:
        backend = ServedBackend(Client(Server(server.url, "m")))
        backend.check([RenderedProblem(Problem("p", "1+1"), ({"role": "user", "content": "1+1"},), "1+1")], Sampling())
    assert len(server.heard) == 5


def run(*options: str) -> tuple[int, str]:
    """Exit code and what was said, the error as `rlif.cli.main.main` would print it."""
    done = CliRunner().invoke(app, ["eval", *options], catch_exceptions=True)
    return done.exit_code, done.output + (f"rlif: {done.exception}" if done.exception else "")


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with ServerOnLoopback(trial_or(boxed)) as server:
        code, said = run(
            *("--endpoint", server.url, "--model", "m", "--api-key-env", "MY_KEY", "--concurrency", "2"),
            *("--tasks", "arithmetic", "--limit", "4", "--samples", "2", "--out", str(tmp_path / "e")),
        )
    assert code == 0, said
    assert "100.0" in said
    assert {heard.headers["authorization"] for heard in server.heard} == {f"Bearer {SECRET}"}
    files = [path for path in (tmp_path / "e").rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    assert SECRET not in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--endpoint", "http://127.0.0.1:9", "--model", "m"), "no connection"),
        (("--endpoint", "http://127.0.0.1:9"), "say with --model NAME"),
        (("tiny-base", "--endpoint", "http://127.0.0.1:9", "--model", "m"), "say with --model NAME, and only so"),
        (("--model", "m"), "--model NAME belongs to --endpoint URL"),
        ((), "name the models"),
        (("--endpoint", "localhost:8000", "--model", "m"), "not an address"),
        (("--endpoint", "http://127.0.0.1:9", "--model", "m", "--dtype", "float32"), "are the server's to choose"),
        (("--endpoint", "http://127.0.0.1:9", "--model", "m", "--api-key-env", "NO_SUCH"), "NO_SUCH is not set"),
    ],
)
def test_mistakes_are_one_line(options: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    code, said = run(*options, "--tasks", "arithmetic", "--limit", "2", "--out", str(tmp_path / "e"))
    assert code != 0
    assert expected in said
    assert "Traceback" not in said
    assert said.strip().count("\n") == 0


def test_problem_ids_survive_a_server(tmp_path: Path) -> None:
    """Labels are made of problem ids and sample numbers: none may be taken for another's."""
    asked = [
        RenderedProblem(Problem(name, name), ({"role": "user", "content": name},), name)
        for name in ("a", "a, sample 1", "a, sample")
    ]
    with ServerOnLoopback(lambda heard: Said(chat("=" + question(heard)))) as server:
        backend = ServedBackend(Client(Server(server.url, "m")))
        found = backend.answer(asked, samples=2, sampling=Sampling(), key=Key(0, "t"), have={"a": {0}})
        answers = [one for batch in found for one in batch]
    assert {(one.problem_id, one.sample, one.text) for one in answers} == {
        (name, sample, f"={name}")
        for name in ("a", "a, sample 1", "a, sample")
        for sample in (0, 1)
        if (name, sample) != ("a", 0)
    }
    assert backend.seconds > 0


def test_a_server_is_asked_greedily_for_a_baseline_and_ranks_by_what_it_tells(
    tiny: ModelServer, tmp_path: Path
) -> None:
    with ServerOnLoopback(tiny) as server:
        asked = settings(samples=2, limit=2, max_new_tokens=12, baselines=("greedy",))
        (found,) = evaluate([candidate(server, "tiny-instruct", concurrency=1)], asked, tmp_path / "e")["results"]
        temperatures = [heard.body["temperature"] for heard in server.heard if heard.body["max_tokens"] == 12]
        assert sorted(temperatures) == [0.0] * 2 + [0.6] * 4
        with pytest.raises(RlifError, match="power sampling"):
            evaluate(
                [candidate(server, "tiny-instruct", concurrency=1)], settings(baselines=("power",)), tmp_path / "p"
            )
    assert set(found["baselines"]) == {"sampled", "greedy", "majority", "best_of_k"}
    assert set(found["baselines"]["best_of_k"]) == {"trajectory_entropy"}
