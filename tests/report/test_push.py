"""Publishing a model: what leaves, what stays at home, and the talk with the hub, held with a server on loopback."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from hostile import run as command
from pages import write_run
from rlif.errors import RlifError
from rlif.report import push as push_module
from rlif.report.eval_record import EvalRecord
from rlif.report.push import EVAL_RESULTS, check_repo, eval_results, parcel, upload

REPO = "somebody/a-model"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, its recipe full of paths of a home folder."""
    monkeypatch.setattr(push_module, "plotly", lambda: "/* plotly stands here */")
    task = {"name": "file", "path": "/home/somebody/data/problems.jsonl"}
    out = write_run(tmp_path / "home" / "run", policy={"model": "/home/somebody/models/toy"}, task=task)
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**info, "model": "/home/somebody/models/toy"}))
    (out / "final" / "config.json").write_text("{}")
    (out / "final" / "model.safetensors").write_bytes(b"weights")
    (out / "final" / ".cache").write_text("")
    return out


class Hub:
    """A hub of one repository, which takes a commit; ``refuses``: a status with which it ends each request."""

    def __init__(self) -> None:
        self.refuses: int | None = None
        self.public = False
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.tokens.add(self.headers.get("Authorization", ""))
                self._answer(hub.posted(self.path, body))

            def do_GET(self) -> None:
                self._answer({"id": REPO, "private": not hub.public, "sha": "0" * 40})

            def _answer(self, said: Any) -> None:
                data = json.dumps(said if hub.refuses is None else {"error": "no"}).encode()
                self.send_response(hub.refuses or 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def posted(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.address}/{REPO}"}
        if "/preupload/" in path:
            names = [one["path"] for one in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.decode().splitlines()]
            for one in lines:
                if one["key"] == "file":
                    self.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            return {"commitUrl": f"{self.address}/{REPO}/commit/1", "commitOid": "1" * 40, "success": True}
        return {"errors": [], "warnings": []}  # of the card's front matter


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    there = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", there.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    thread = threading.Thread(target=there.server.serve_forever, daemon=True)
    thread.start()
    yield there
    there.server.shutdown()
    there.server.server_close()
    thread.join()


def text_of(content: Path | bytes) -> str:
    return (content if isinstance(content, bytes) else content.read_bytes()).decode()


def test_a_run_leaves_with_card_and_page_and_no_path_of_its_home(run: Path) -> None:
    sent = parcel(run)
    names = ["README.md", "config.json", "model.safetensors", "report.html", "tokenizer.json"]
    assert sorted(sent.files) == names
    assert parcel(run / "final").files.keys() == sent.files.keys(), "the final model of a run is known as such"
    card, page = (text_of(sent.files[name]) for name in ("README.md", "report.html"))
    assert "trained with GRPO for 4 steps" in card
    assert '"entropy":' in page
    for text in (card, page):
        assert "problems.jsonl" in text
        assert "somebody" not in text
        assert str(run.parent) not in text
    assert sent.notes == (f"{run / 'final' / '.cache'} stays here",)
    assert not (run / "final" / "README.md").exists(), "nothing is written here"
    assert "report.html" not in parcel(run, report=False).files
    (run / "final" / "README.md").write_text("my own card")
    assert text_of(parcel(run).files["README.md"]) == "my own card"


def test_a_model_without_a_run_leaves_alone(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "merged"
    (run / "final").rename(model)
    sent = parcel(model)
    assert sorted(sent.files) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "there is no README.md, so the model leaves without a card" in sent.notes
    with pytest.raises(RlifError, match=r"the run is not finished \(final/ is missing\)"):
        parcel(run)
    (model / "model.safetensors").unlink()
    with pytest.raises(RlifError, match="holds no weights"):
        parcel(model)
    with pytest.raises(RlifError, match=r"holds no model \(config.json is missing\)"):
        parcel(tmp_path)
    with pytest.raises(RlifError, match="no such folder"):
        parcel(tmp_path / "none")


def evaluation(folder: Path, model: Path, **gsm8k: int) -> EvalRecord:
    """Half of the answers right, on GSM8K, MATH-500 and a file of one's own."""
    asked = {"problems": 1319, "shots": 0, "template": "boxed v1", "samples": 4, "temperature": 1.0}
    tasks = {"gsm8k": {**asked, "max_new_tokens": 512, **gsm8k}, "math500": asked, "mine": asked}
    metrics = {"right": 0.5, "right_stderr": 0.0125}
    results = tuple({"model": str(model), "task": task, "metrics": metrics} for task in tasks)
    (folder / "results.json").write_text("{}")
    return EvalRecord(folder, {"tasks": tasks}, results, ())


def test_scores_are_in_the_hubs_format(run: Path, tmp_path: Path) -> None:
    files, notes = eval_results(evaluation(tmp_path, run / "final"), run / "final")
    assert list(files) == [f"{EVAL_RESULTS}/gsm8k.yaml"]
    (entry,) = huggingface_hub.parse_eval_result_entries(yaml.safe_load(files[f"{EVAL_RESULTS}/gsm8k.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 50.0)
    assert entry.notes is not None
    assert "± 1.25; zero-shot, template boxed v1, mean of 4 samples at temperature 1, 512 tokens" in entry.notes
    assert notes == ["math500: the hub has no table of it", "mine: the hub has no table of it"]


def test_a_part_of_a_benchmark_and_another_model_are_no_score(run: Path, tmp_path: Path) -> None:
    files, notes = eval_results(evaluation(tmp_path, run / "final", problems=64), run / "final")
    assert files == {}
    assert "gsm8k: 64 of its 1319 problems are no score of the benchmark" in notes
    with pytest.raises(RlifError, match=r"has no result of .*; judge it: rlif eval"):
        eval_results(evaluation(tmp_path, run / "other"), run / "final")


def test_the_hub_gets_the_files_in_one_commit(run: Path, hub: Hub) -> None:
    outcome = command(["push", str(run), "--repo", REPO, "--private"])
    assert (outcome.code, outcome.err) == (0, "")
    assert f"uploaded: {hub.address}/{REPO}" in outcome.out
    assert hub.created[0]["visibility"] == "private"
    assert (hub.created[0]["organization"], hub.created[0]["name"]) == ("somebody", "a-model")
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.files["model.safetensors"] == b"weights"
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors", "report.html", "tokenizer.json"]
    assert "hf_secret" not in outcome.out


def test_what_should_be_private_is_not_put_into_a_public_repository(run: Path, hub: Hub) -> None:
    hub.public = True
    with pytest.raises(RlifError, match="is there and is public; make it private first"):
        upload(parcel(run), REPO, private=True)
    assert hub.files == {}
    upload(parcel(run), REPO, private=False)
    assert "README.md" in hub.files


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "hf auth login"), (403, "hf auth login"), (400, "choose another name")]
)
def test_a_refusal_is_one_line(run: Path, hub: Hub, status: int, remedy: str) -> None:
    hub.refuses = status
    outcome = command(["push", str(run), "--repo", REPO])
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"--repo: the hub refuses {REPO} ({status}" in outcome.err
    assert remedy in outcome.err


def test_without_a_token_or_a_network_nothing_leaves(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = parcel(run)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RlifError, match=r"the hub cannot be reached|does not take it"):
        upload(sent, REPO, private=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(RlifError, match="no token of the hub is at hand"):
        upload(sent, REPO, private=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RlifError, match="the hub is switched off"):
        upload(sent, REPO, private=False)
    assert hub.created == []
    assert issubclass(HfHubHTTPError, OSError), "so it is caught before what the system refuses"


def test_a_dry_run_lists_and_asks_nobody(run: Path, hub: Hub) -> None:
    outcome = command(["push", str(run), "--repo", REPO, "--dry-run"])
    assert outcome.code == 0
    assert "       7 B  model.safetensors" in outcome.out
    assert "5 files" in outcome.out
    assert f"nothing was uploaded; without --dry-run it goes to {REPO}" in outcome.out
    assert hub.created == []


@pytest.mark.parametrize("name", ["a", "a/b/c", "a b/c", "", "/", "a/", "../a", "a/b--c", "a/.b", "a/b.git", "ä/b"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(RlifError, match="is no OWNER/NAME"):
        check_repo(name)
    check_repo("Qwen/Qwen3-1.7B-Base_x")
