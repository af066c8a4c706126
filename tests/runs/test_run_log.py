"""The run folder: lines that are whole, keys that are documented, rollouts that come back."""

import errno
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rlif import tiny
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.recipes import load_recipe, parse_recipe
from rlif.runs import run_log
from rlif.runs.environment import collect_info, git_commit
from rlif.runs.history import read_metrics
from rlif.runs.metric_keys import METRICS, find_metric, metrics_page
from rlif.runs.run_log import RunLog
from rlif.runs.trackers import SINKS, Row, Sinks, open_sinks
from rlif.types import Problem, Prompt, Rollouts, Sampling, Scored, TokenSignals, Verdict

ROOT = Path(__file__).parents[2]
INFO = {"model": "tiny-base", "versions": {"rlif": "1"}}


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(
        {"steps": 2, "policy": {"model": "tiny-base"}, "task": {"name": "arithmetic"}, "reward": "self_certainty"}
    )


@pytest.fixture
def log(tmp_path: Path, recipe: Recipe) -> RunLog:
    return RunLog.create(tmp_path / "run", recipe, info=INFO)


def scored() -> Scored:
    """Two prompts, G = 2, completions of 3, 1, 2 and 0 tokens; masked positions hold 0."""
    prompts = tuple(
        Prompt(f"p{i}", f"{i}+1=?", (5, 6), Problem(f"p{i}", f"{i}+1=?", answer))
        for i, answer in enumerate(["1", None])
    )
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    values = torch.arange(1.0, 13.0).view(4, 3) * mask
    return Scored(
        rollouts=Rollouts(
            prompts=prompts,
            group_size=2,
            tokens=values.long(),
            mask=mask,
            sampler_logprobs=-values,
            signals=TokenSignals(values / 10, values / 100, values / 1000),
            texts=("ä\n1", "", "2", ""),
            stop_reasons=("eos", "length", "stop_string", "eos"),
            sampling=Sampling(),
        ),
        verdicts=(
            Verdict(True, True, "1"),
            Verdict(False, False, None),
            Verdict(None, True, "x"),
            Verdict(False, False, ""),
        ),
        rewards={"random": torch.tensor([0.1, 0.2, 0.3, 0.4]), "length": torch.tensor([3.0, 1.0, 2.0, 0.0])},
        advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]),
    )


def lines(log: RunLog) -> list[str]:
    return (log.out / "metrics.jsonl").read_text().splitlines(keepends=True)


def test_a_new_run_says_what_it_is(log: RunLog, recipe: Recipe) -> None:
    assert load_recipe(log.out / "recipe.yaml") == recipe
    assert json.loads((log.out / "run.json").read_text()) == INFO
    assert (log.out / "metrics.jsonl").read_bytes() == b""
    assert sorted(path.name for path in log.out.iterdir()) == ["metrics.jsonl", "recipe.yaml", "run.json"]


def test_one_whole_line_a_step(log: RunLog) -> None:
    log.write(1, {"loss": 0.1 + 0.2, "tokens/total": 12, "reward/random/mean": -1e-300})
    log.write(2, {"loss": float("nan"), "kl": float("inf"), "lr": -float("inf")})
    assert lines(log) == [
        '{"step": 1, "loss": 0.30000000000000004, "tokens/total": 12, "reward/random/mean": -1e-300}\n',
        '{"step": 2, "loss": null, "kl": null, "lr": null}\n',
    ]
    first, second = read_metrics(log.out / "metrics.jsonl")
    assert first == {"step": 1, "loss": 0.1 + 0.2, "tokens/total": 12, "reward/random/mean": -1e-300}
    assert np.isnan([second["loss"], second["kl"], second["lr"]]).all()
    log.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log._descriptor)


@pytest.mark.parametrize(
    "key", ["los", "Loss", "reward/mean", "reward/a/b/mean", "reward//mean", "xloss", "lossx", "step"]
)
def test_a_key_nobody_documented_is_refused(log: RunLog, key: str) -> None:
    with pytest.raises(ValueError, match=f"METRICS to be given here: {key}$"):
        log.write(1, {"loss": 1.0, key: 1.0})
    assert lines(log) == []


def test_every_key_has_a_unit_and_a_meaning() -> None:
    for key, metric in METRICS.items():
        assert metric.unit, key
        assert metric.meaning, key
        assert find_metric(key.replace("<name>", "any_name-1")) == metric
        assert "|" not in metric.unit + metric.meaning, "would break the table"
        assert len(metric.meaning) < 110, key


def test_the_page_and_the_table_agree() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics_page(), (
        "run: python -m rlif.runs.metric_keys > docs/metrics.md"
    )
    row = "| `kl` | nats | k3 estimate of KL(policy, reference), mean over completion tokens; 0 without one |"
    assert row in metrics_page()


def test_the_module_prints_the_page() -> None:
    done = subprocess.run([sys.executable, "-m", "rlif.runs.metric_keys"], capture_output=True, text=True, check=True)
    assert done.stdout == metrics_page()


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, recipe: Recipe, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(RlifError, match=rf"holds another run.* out, or .*rlif.resume\('{tmp_path}'\)"):
        RunLog.create(tmp_path, recipe, info=INFO)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RlifError, match="not empty; choose a new or an empty folder"):
        RunLog.create(tmp_path, recipe, info=INFO)
    with pytest.raises(RlifError, match="a file, not a folder"):
        RunLog.create(tmp_path / "thesis.txt", recipe, info=INFO)
    RunLog.check_free(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["run.json", ".run.json.tmp", ".recipe.yaml.tmp"])
@pytest.mark.parametrize("beside", [None, "", "{}"])
def test_a_run_json_is_a_leftover_of_ours_only_beside_an_empty_metrics_file(
    tmp_path: Path, recipe: Recipe, name: str, beside: str | None
) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    if beside is not None:
        (tmp_path / "metrics.jsonl").write_text(beside)
    if beside == "":
        RunLog.create(tmp_path, recipe, info=INFO).close()
        return
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RlifError, match="not empty" if beside is None else "holds another run"):
        RunLog.create(tmp_path, recipe, info=INFO)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_leftover_is_removed_with_its_mark_last(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of clearing away, too, the folder can be told from somebody else's."""
    for name in ("metrics.jsonl", "run.json", ".recipe.yaml.tmp"):
        (tmp_path / name).touch()
    removed, unlink = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **given: (removed.append(path.name), unlink(path, **given))[1])
    RunLog.create(tmp_path, recipe, info=INFO).close()
    assert removed == ["run.json", ".recipe.yaml.tmp", "metrics.jsonl"]


def test_of_two_runs_started_at_once_the_second_is_refused(
    log: RunLog, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunLog, "check_free", lambda out: None)  # it looked before the first had made its files
    with pytest.raises(RlifError, match="holds another run"):
        RunLog.create(log.out, recipe, info=INFO)


def test_resuming_cuts_back_to_the_checkpoint(log: RunLog) -> None:
    for step in range(6):
        log.write(step, {"loss": float(step)})
        log.write_rollouts(step, scored())
    whole = lines(log)
    log.close()
    with (log.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the kill came here
    (log.out / "rollouts" / ".step-000006.parquet.tmp").write_bytes(b"PAR1")
    (log.out / "rollouts" / "notes.parquet").write_bytes(b"mine")

    resumed = RunLog.resume(log.out, 3, info={"versions": {"rlif": "2"}})
    assert lines(resumed) == whole[:4]
    names = sorted(path.name for path in (log.out / "rollouts").iterdir())
    assert names == ["notes.parquet", *(f"step-{step:06d}.parquet" for step in range(4))]
    resumed.write(4, {"loss": 4.0})
    assert lines(resumed) == whole[:5]
    resumed.close()
    RunLog.resume(log.out, -1, info={"versions": {"rlif": "3"}}).close()
    assert lines(resumed) == []
    resumptions = [{"step": 3, "versions": {"rlif": "2"}}, {"step": -1, "versions": {"rlif": "3"}}]
    assert json.loads((log.out / "run.json").read_text()) == {**INFO, "resumed": resumptions}
    assert not [path for path in log.out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("tail", ['{"step": 2, "loss"', "{", '{"step": 2, "loss": 1.0', "\0\0\0\0", "\n\n"])
def test_a_half_written_last_line_is_left_out(log: RunLog, tail: str) -> None:
    log.write(1, {"loss": 1.0})
    path = log.out / "metrics.jsonl"
    with path.open("a") as file:
        file.write(tail)
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}]
    RunLog.resume(log.out, 9).write(2, {"loss": 2.0})
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_a_last_line_that_lacks_only_its_newline_is_whole(log: RunLog) -> None:
    path = log.out / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}')
    RunLog.resume(log.out, 1).write(2, {"loss": 2.0})
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("damage", ["garbage", "", "[1]", '{"loss": 1.0}'])
def test_a_damaged_line_in_the_middle_is_named(log: RunLog, damage: str) -> None:
    path = log.out / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    for read in (lambda: read_metrics(path), lambda: RunLog.resume(log.out, 3)):
        with pytest.raises(RlifError, match=r"metrics\.jsonl, line 2: not a metrics line"):
            read()
    assert path.read_text().count("\n") == 3


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match=r"no recipe\.yaml here, so no run to resume"):
        RunLog.resume(tmp_path, 1)
    with pytest.raises(RlifError, match=r"nothing\.jsonl: cannot read the metrics"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_eval_answers_are_those_of_the_first_prompts(log: RunLog) -> None:
    rollouts, verdicts = scored().rollouts, scored().verdicts
    log.write_eval_answers(10, {"sampled": (rollouts, verdicts), "greedy": (rollouts, verdicts)}, 1)
    rows = pq.read_table(log.out / "eval_answers" / "step-000010.parquet").to_pylist()
    assert [(row["decoding"], row["sample"], row["prompt_id"]) for row in rows] == [
        ("sampled", 0, "p0"),
        ("sampled", 1, "p0"),
        ("greedy", 0, "p0"),
        ("greedy", 1, "p0"),
    ]
    assert [row["tokens"] for row in rows] == [[1, 2, 3], [4]] * 2
    assert [row["right"] for row in rows] == [True, False] * 2
    assert "advantage" not in rows[0]
    log.write_eval_answers(20, {"sampled": (rollouts, verdicts)}, 0)
    log.write_eval_answers(30, {"sampled": (rollouts, verdicts)}, 99)
    assert pq.read_table(log.out / "eval_answers" / "step-000030.parquet").num_rows == 4
    log.write(1, {"loss": 1.0})
    log.close()
    RunLog.resume(log.out, 10).close()
    assert [path.name for path in (log.out / "eval_answers").iterdir()] == ["step-000010.parquet"]


def disk_full(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_half_line(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write(1, {"loss": 1.0})
    before = lines(log)
    write = os.write
    for name, broken in {"write": lambda fd, data: write(fd, data[:9]), "fsync": disk_full}.items():
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(RlifError) as caught:
                log.write(2, {"loss": 2.0})
        assert str(caught.value) == (
            f"{log.out}/metrics.jsonl: disk full; what was written before is intact; "
            f"put that right, then rlif.resume({str(log.out)!r})"
        )
        assert lines(log) == before
    log.write(2, {"loss": 2.0})
    assert len(lines(log)) == 2


def test_a_full_disk_leaves_no_half_file(
    log: RunLog, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log.write(1, {"loss": 1.0})
    log.write_rollouts(1, scored())
    files = sorted(path for path in log.out.rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(RlifError, match=rf"step-000002.parquet: disk full.*rlif.resume\('{log.out}'\)$"):
        log.write_rollouts(2, scored())
    with pytest.raises(RlifError, match=r"metrics.jsonl: disk full"):
        RunLog.resume(log.out, 0)
    assert sorted(path for path in log.out.rglob("*") if path.is_file()) == files
    assert [path.read_bytes() for path in files] == before
    with pytest.raises(RlifError, match="new: disk full; put that right, or choose another out"):
        RunLog.create(tmp_path / "new", recipe, info=INFO)
    monkeypatch.undo()
    RunLog.create(tmp_path / "new", recipe, info=INFO).close()  # room again: the same call works


def test_rollouts_come_back_row_by_row(log: RunLog) -> None:
    log.write_rollouts(7, scored())
    table = pq.read_table(log.out / "rollouts" / "step-000007.parquet")
    columns = table.to_pydict()
    assert table.schema.field("tokens").type == pa.list_(pa.int32())
    assert table.schema.field("logprob").type == pa.list_(pa.float32())
    assert columns["tokens"] == [[1, 2, 3], [4], [7, 8], []]
    assert columns["sampler_logprobs"] == [[-1, -2, -3], [-4], [-7, -8], []]
    for name, scale in {"logprob": 10, "entropy": 100, "self_certainty": 1000}.items():
        assert columns[name] == [[float(np.float32(v / scale)) for v in row] for row in columns["tokens"]], name
    exact = {name: column for name, column in columns.items() if not isinstance(column[0], list)}
    random = exact.pop("reward_random")
    assert random == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-7)  # a float32 holds 0.1 to 1e-8
    assert exact == {
        "step": [7] * 4,
        "prompt_id": ["p0", "p0", "p1", "p1"],
        "row": [0, 1, 2, 3],
        "prompt": ["0+1=?", "0+1=?", "1+1=?", "1+1=?"],
        "completion": ["ä\n1", "", "2", ""],
        "stop_reason": ["eos", "length", "stop_string", "eos"],
        "right": [True, False, None, False],
        "formatted": [True, False, True, False],
        "extracted": ["1", None, "x", ""],
        "answer": ["1", "1", None, None],
        "reward_length": [3.0, 1.0, 2.0, 0.0],
        "advantage": [1.0, -1.0, 0.5, -0.5],
    }
    assert [path.name for path in (log.out / "rollouts").iterdir()] == ["step-000007.parquet"]


def test_info_names_versions_and_machine() -> None:
    info = collect_info(model="tiny-base")
    assert json.loads(json.dumps(info)) == info
    assert info["model"] == "tiny-base"
    assert info["rlif_tiny_version"] == tiny.VERSION
    assert "rlif_tiny_version" not in collect_info(model="./tiny-base")
    assert torch.__version__.startswith(info["versions"]["torch"])  # which may leave out +cpu
    assert info["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert info["torch_threads"] == torch.get_num_threads()


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    file, stranger = tmp_path / "module.py", tmp_path / "installed.py"
    file.write_text("1")
    stranger.write_text("1")
    assert git_commit(file) is None
    git("init")
    git("add", "module.py")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert len(head) == 40
    assert git_commit(file) == head
    file.write_text("2")
    assert git_commit(file) == f"{head}-dirty"
    assert git_commit(stranger) is None  # lies in the folder, is no part of the repository
    assert git_commit(tmp_path / "never" / "there.py") is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit(Path(run_log.__file__)) is None


class Recording:
    """A sink that remembers, and fails from a given step on."""

    def __init__(self, fails_from: int = 99) -> None:
        self.fails_from = fails_from
        self.seen: list[int] = []
        self.closed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self.fails_from:
            raise ConnectionError("no\nnetwork")
        self.seen.append(step)

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        raise AssertionError("nobody evaluates here")

    def card(self, step: int, text: str) -> None:
        raise AssertionError("no run ends here")

    def close(self) -> None:
        self.closed = True
        if self.fails_from == 0:
            raise ConnectionError("no network")


def test_a_sink_that_fails_is_reported_once_and_switched_off() -> None:
    good, bad = Recording(), Recording(fails_from=2)
    with Sinks({"wandb": bad, "tensorboard": good}) as sinks:
        sinks.write(1, {"loss": 1.0})
        with pytest.warns(RuntimeWarning, match=r"log\.sinks: wandb failed at step 2 and is switched off .*no network"):
            sinks.write(2, {"loss": 1.0})
        sinks.write(3, {"loss": 1.0})  # silent: a second warning would be an error here
    assert (bad.seen, good.seen) == ([1], [1, 2, 3])
    assert good.closed
    assert not bad.closed
    broken, other = Recording(fails_from=0), Recording()
    with pytest.warns(RuntimeWarning, match="trackio failed to close"):
        Sinks({"tensorboard": other, "trackio": broken}).close()
    assert other.closed


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_that_is_not_installed_names_its_extra(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RlifError, match=rf"log\.sinks: {name} is not usable.*pip install 'rlif\[{name}\]'"):
        open_sinks([name], tmp_path, recipe)
    open_sinks([], tmp_path, recipe).close()


def test_a_sink_that_cannot_start_is_the_users_to_mend(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(RlifError, match=r"wandb cannot start \(RuntimeError: api_key not configured \(no-tty\)\)"):
        open_sinks(["wandb"], tmp_path, recipe)


def test_wandb_and_trackio_receive_the_metrics(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the few functions of the two packages that are called."""
    calls: list[tuple[str, object]] = []

    def init(**options: object) -> SimpleNamespace:
        calls.append(("init", options["project"]))
        assert options["config"] == recipe.model_dump(mode="json")
        return client

    client = SimpleNamespace(
        init=init,
        log=lambda metrics, step: calls.append(("log", (step, metrics))),
        finish=lambda: calls.append(("finish", None)),
    )
    expected = [("init", "rlif"), ("log", (1, {"loss": 2.0})), ("finish", None)]
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, client)
        calls.clear()
        with open_sinks([name], tmp_path, recipe) as sinks:
            sinks.write(1, {"loss": 2.0})
        assert calls == expected, name


@pytest.mark.filterwarnings("default")  # third-party imports
def test_tensorboard_reads_back_what_was_written(tmp_path: Path, recipe: Recipe) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_sinks(["tensorboard"], tmp_path, recipe) as sinks:
        for step in (1, 2, 3):
            sinks.write(step, {"loss": step / 4, "reward/random/mean": 0.5})
    with open_sinks(["tensorboard"], tmp_path, recipe, first_step=3) as sinks:
        sinks.write(3, {"loss": 9.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.25), (2, 0.5), (3, 9.0)]
    assert set(events.Tags()["scalars"]) == {"loss", "reward/random/mean"}


def test_going_on_without_the_kernels_it_had_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"cpu_kernels": true}')
    run_log._add_resumption(path, 2, {"cpu_kernels": True})
    with pytest.warns(RuntimeWarning, match="goes on without CPU kernels: the same to rounding, not bit for bit"):
        run_log._add_resumption(path, 4, {"cpu_kernels": False})
    assert [part["step"] for part in json.loads(path.read_text())["resumed"]] == [2, 4]
