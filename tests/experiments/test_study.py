"""Studies: one table from files, failures are lines of it, and a killed study ends as one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rlif.cli import main
from rlif.cli.study import _summary, print_findings, print_plan
from rlif.errors import RlifError
from rlif.experiments.budget import seconds, side_by_side, tokens_at_most
from rlif.experiments.grid import Cell, find_grid, load_grid
from rlif.experiments.signal_correlations import signal_correlations
from rlif.experiments.study import GRIDS, RUNS, Plan, collect, plan_study, run_study, write_results
from rlif.recipes import find_recipe, load_recipe
from rlif.rewards.advantages import advantages
from rlif.runs.history import read_metrics
from rlif.training.callbacks import NullCallback
from rlif.training.loop import train
from rlif.utils.parquet_files import parquet_bytes, read_parquet
from rlif.utils.terminal import Console

SMALL: dict[str, Any] = {
    "recipe": "tiny",
    "models": {"base": "tiny-base"},
    "rewards": ["self_certainty", "verifiable"],
    "keep_checkpoints": False,
    "set": {
        "steps": 2,
        "rollout.prompts": 2,
        "rollout.group_size": 2,
        "rollout.max_new_tokens": 4,
        "eval.every": 2,
        "eval.problems": 2,
        "eval.samples": 1,
        "eval.greedy": True,
        "log.rollouts_every": 1,
    },
}
MERGE = {"base": "tiny-base", "instruct": "tiny-instruct", "ratios": [0.5]}


def grid(folder: Path, name: str = "small", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False), "utf-8")
    return path


def run(path: Path, out: Path, **choice: Any) -> str:
    """Run a grid, two cells side by side; returns what is written where there is no terminal."""
    written = StringIO()
    plan = plan_study(path, **choice)
    run_study(plan, out, processes=2, console=Console(file=written, width=80), go_on_with="the same")
    return written.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the grid `small`: two rewards of the base model, of a merge and of a model that is not there."""
    folder = tmp_path_factory.mktemp("study")
    patch = pytest.MonkeyPatch()
    patch.setenv("RLIF_CACHE", str(folder / "cache"))
    models = {"base": "tiny-base", "nowhere": "./no-such-model"}
    path = grid(folder, models=models, merge=MERGE)
    said = run(path, folder / "out")
    (folder / "said").write_text(said)
    patch.undo()
    return folder


def test_the_table_holds_what_the_runs_logged(done: Path) -> None:
    table = read_parquet(done / "out" / "results.parquet")
    assert repr(table.to_pylist()) == repr(collect(done / "out").to_pylist())  # NaN as it is written
    rows = [row for row in table.to_pylist() if row["model"] == "base" and row["reward"] == "verifiable"]
    log = read_metrics(done / "out" / RUNS / rows[0]["cell"] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 2]
    for row, line in zip(rows, (log[0], log[-1]), strict=True):
        assert {key: row[key] for key in line if not key.startswith(("time", "tokens_per_second", "memory"))} == {
            key: pytest.approx(value, nan_ok=True)
            for key, value in line.items()
            if not key.startswith(("time", "tokens_per_second", "memory"))
        }
    assert (rows[0]["grid"], rows[0]["seed"], rows[0]["status"]) == ("small", 0, "finished")
    assert (rows[0]["model_kind"], rows[0]["reward_kind"]) == ("base", "verifiable")
    merged = [row for row in table.to_pylist() if row["model"] == "r0.5"]
    assert {(row["model_kind"], row["merge_ratio"], row["status"]) for row in merged} == {("merged", 0.5, "finished")}
    assert not [name for name in table.column_names if name.startswith(("time", "tokens_per_second", "memory"))]
    assert not list((done / "out" / RUNS).glob("*/checkpoints"))  # as the grid says


def test_a_cell_that_fails_is_a_line_and_does_not_stop_the_others(done: Path) -> None:
    table = collect(done / "out").to_pylist()
    failed = [row for row in table if row["model"] == "nowhere"]
    assert [(row["status"], row["step"]) for row in failed] == [("failed", None)] * 2
    assert all("no such folder or file: ./no-such-model" in row["error"] for row in failed)
    assert {row["status"] for row in table if row["model"] != "nowhere"} == {"finished"}
    said = (done / "said").read_text().splitlines()
    assert sum("failed: policy.model: no such folder" in line for line in said) == 2


def test_nothing_is_done_twice_and_what_failed_is_tried_again(done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done / "out" / RUNS).glob("*/metrics.jsonl")}
    results = (done / "out" / "results.parquet").read_bytes()
    said = run(done / "small.yaml", done / "out")
    assert "tried again, having failed before: nowhere-self_certainty-s0-" in said
    assert {path: path.stat().st_mtime_ns for path in (done / "out" / RUNS).glob("*/metrics.jsonl")} == before
    assert (done / "out" / "results.parquet").read_bytes() == results


def test_equal_settings_are_run_once_also_across_grids(done: Path) -> None:
    before = sorted((done / "out" / RUNS).iterdir())
    other = grid(done, "other", models={"tiny": "tiny-base"}, rewards={"certainty": "self_certainty"})
    run(other, done / "out")
    assert sorted((done / "out" / RUNS).iterdir()) == before
    rows = [row for row in collect(done / "out").to_pylist() if row["grid"] == "other"]
    assert [(row["model"], row["reward"], row["step"]) for row in rows] == [("tiny", "certainty", s) for s in (0, 2)]
    assert rows[0]["cell"].startswith("base-self_certainty-s0-")
    (done / "out" / GRIDS / "other.json").unlink()
    write_results(done / "out")


def test_chosen_cells_alone_are_run_and_the_others_wait(tmp_path: Path) -> None:
    run(grid(tmp_path), tmp_path / "out", where={"reward": ["verifiable"]})
    states = {row["reward"]: row["status"] for row in collect(tmp_path / "out").to_pylist()}
    assert states == {"self_certainty": "waiting", "verifiable": "finished"}


def test_a_number_that_is_not_finite_is_a_failed_cell(tmp_path: Path, tiny_base_path: Path) -> None:
    model = tmp_path / "spoilt"
    shutil.copytree(tiny_base_path, model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    run(grid(tmp_path, models={"spoilt": str(model)}, rewards=["self_certainty"]), tmp_path / "out")
    (row,) = collect(tmp_path / "out").to_pylist()
    assert row["status"] == "failed"
    assert "not finite" in row["error"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RlifError, match="not a folder of studies, it holds mine"):
        run(grid(tmp_path), tmp_path / "out")
    with pytest.raises(RlifError, match="holds no study"):
        collect(tmp_path / "out")


def test_what_a_killed_write_or_a_desktop_leaves_does_not_block_a_study(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in (".results.parquet.tmp", ".DS_Store"):
        (tmp_path / "out" / name).touch()
    said = run(grid(tmp_path, models={"nowhere": "./no-such-model"}), tmp_path / "out")
    assert said.count("no such folder or file") == 2


def test_damaged_rollouts_are_an_error_of_their_row_and_the_table_is_whole(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "out", tmp_path / "out")
    before = collect(tmp_path / "out").to_pylist()
    damaged = sorted((tmp_path / "out" / RUNS).glob("base-*/rollouts/*2.parquet"))
    damaged[0].write_bytes(b"no table")
    whole = damaged[1].read_bytes()
    damaged[1].write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    after = collect(tmp_path / "out").to_pylist()
    assert len(after) == len(before)
    wrong = [row for row in after if row["step"] == 2 and row["model"] == "base"]
    assert len(wrong) == 2
    for row in wrong:
        assert "2.parquet of its rollouts cannot be read" in row["error"]
        assert row["correlation/reward/self_certainty~token_entropy"] is None
        assert row["eval/right"] is not None
    others = [row for row in after if row not in wrong]
    assert repr(others) == repr([row for row in before if (row["step"], row["model"]) != (2, "base")])


def start(path: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "rlif", "study", str(path), "--out", str(out), "--processes", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def test_killed_at_a_random_moment_and_started_again_it_ends_with_the_same_table(tmp_path: Path) -> None:
    """Killed without warning, with its workers, once the first run has begun and a random while later."""
    path = grid(tmp_path, seeds=[0, 1], set={**SMALL["set"], "steps": 12, "checkpoint.every": 3})
    run(path, tmp_path / "whole")
    process = start(path, tmp_path / "killed")
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed" / RUNS).glob("*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.05)
    time.sleep(random.uniform(0.0, 4.0))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run(path, tmp_path / "killed")
    assert (tmp_path / "killed" / "results.parquet").read_bytes() == (
        tmp_path / "whole" / "results.parquet"
    ).read_bytes()


def test_a_dry_run_counts_cells_and_tokens_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 steps × 2 prompts × 2 completions and 2 evaluations × 2 problems × (1 sample + greedy), of 4 tokens."""
    monkeypatch.setenv("COLUMNS", "200")
    print_plan(grid(tmp_path), tmp_path / "out", [], [])
    said = capsys.readouterr().out
    assert "2 of 2 cells of small; 2 runs to do, 128 completion tokens at most" in said
    assert said.count("waiting") == 2
    assert "time: less than a minute with" in said
    assert "rough: no cell is finished here" in said
    assert "reward: self_certainty, verifiable" in said.splitlines()
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_models_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = {"base": "tiny-base", "nowhere": "./no-such-model"}
    path = grid(tmp_path, models=models, merge={**MERGE, "instruct": "./nor-this"})
    with pytest.raises(RlifError, match=r"^\./no-such-model, \./nor-this: not to be had"):
        print_plan(path, None, [], [])
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.startswith("policy.model: no such folder or file: ./no")]) == 2
    print_plan(path, None, [], ["model=base"])  # the others were not asked for


def test_a_dry_run_of_finished_cells_takes_no_time(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(done / "small.yaml", done / "out", [], ["model=base,r0.5"])
    said = capsys.readouterr().out
    assert "0 runs to do, 0 completion tokens at most" in said
    assert "time: none, all of them are finished" in said


def test_tables_of_long_labels_fit_80_columns_and_no_number_is_cut() -> None:
    axes = {"model": "some-organisation/a-model-of-1.7B-Base", "reward": "trajectory_entropy", "seed": "0"}
    axes |= {"change": "rollout.temperature=0.7"}
    cell = Cell(axes, load_recipe(find_recipe(Path("tiny"))), "0" * 64, "base", None)
    row = {**axes, "status": "finished", "eval/entropy": 0.123}
    rows = [{**row, "step": step, "eval/right_and_formatted": 0.5 + step / 1000} for step in (0, 60)]
    written = StringIO()
    plan = Plan("g", load_grid(find_grid(Path("tiny"))), (cell,), (cell,))
    Console(file=written, width=80).print(_summary(plan, rows))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for number in (".500", ".560@60", ".560", ".123→.123", "finished"):
        assert number in lines[1].split(), lines


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["eval.samples=3"],
        ["eval.greedy=false"],
        ["eval.temperature=0"],  # the sampled answers are the greedy ones
        ["reward=frozen_consensus", "consensus.samples=3", "rollout.max_new_tokens=64"],
        ["reward=ema_vote", "consensus.samples=3"],
        ["eval.every=0"],
        ["probe.every=2", "probe.prompts=5", "probe.samples=2", "probe.reference_samples=3"],
    ],
)
@pytest.mark.filterwarnings("ignore:step [0-9]+:RuntimeWarning")  # guards have their say on answers so short
def test_tokens_at_most_are_those_that_a_run_announces(changes: list[str], tmp_path: Path) -> None:
    settings = [f"{key}={value}" for key, value in SMALL["set"].items()]
    recipe = load_recipe(find_recipe(Path("tiny")), [*settings, "steps=3", *changes])
    announced: list[int] = []

    class Announced(NullCallback):
        def begin(self, phase: str, step: int, total: int) -> None:
            announced.append(0 if phase == "update" else total)

    train(recipe, tmp_path / "run", callback=Announced())
    assert tokens_at_most(recipe) == sum(announced)


def test_time_and_memory_are_scaled_from_the_finished_runs(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipes = [cell.recipe for cell in plan_study(done / "small.yaml").cells]
    logs = [read_metrics(path)[-1] for path in (done / "out" / RUNS).glob("*/metrics.jsonl")]
    found = seconds([recipes[0]], done / "out" / RUNS)
    assert found is not None
    assert found[0] == pytest.approx(sum(log["time"] for log in logs) / len(logs))
    assert tokens_at_most(recipes[0]) == 64
    peak = max(log["memory/peak_gb"] for log in logs)
    for free, expected in ((0.5 * peak, 1), (2.5 * peak, 2), (100.0 * peak, 3)):
        monkeypatch.setattr("rlif.experiments.budget._free_gb", lambda free=free: free)
        monkeypatch.setattr("rlif.experiments.budget._cores", lambda: 3)
        assert side_by_side(recipes, done / "out" / RUNS) == expected
    assert side_by_side(recipes, done / "no runs") == 1  # one of the models is unknown
    assert seconds(recipes, done / "no runs") is None


def test_findings_are_printed_and_written(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(done / "out")
    said = capsys.readouterr().out
    assert "small: 4 of 6 cells finished" in said
    assert "entropy falls" in said
    record = json.loads((done / "out" / "findings.json").read_text())
    assert {finding["verdict"] for finding in record["small"]["findings"]} == {"undecided"}  # one seed decides nothing
    assert (done / "out" / "findings.md").is_file()
    lines = said.splitlines()
    assert "- entropy falls under each signal: a single seed of self_certainty; two at least make an interval" in lines
    assert max(len(line) for line in lines[: lines.index("why undecided:")]) <= 80


def test_correlations_are_those_of_the_rewards_and_advantages_of_training(tmp_path: Path) -> None:
    """A table of 6 prompts × 4 rows, against torch and `rlif.rewards.advantages`."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 6, size=24)
    columns = {name: [random.normal(size=n) for n in lengths] for name in ("self_certainty", "entropy", "logprob")}
    arrays = {name: pa.array([list(row) for row in rows]) for name, rows in columns.items()}
    arrays["prompt_id"] = pa.array([f"p{i // 4}" for i in range(24)])
    path = tmp_path / "rollouts.parquet"
    path.write_bytes(parquet_bytes(arrays, {}))
    found = signal_correlations(path)
    certainty = torch.tensor([row.mean() for row in columns["self_certainty"]])
    trajectory = torch.tensor([row.sum() for row in columns["logprob"]])
    entropy = -torch.tensor([row.mean() for row in columns["entropy"]])
    for name, (a, b) in {
        "self_certainty~token_entropy": (certainty, entropy),
        "self_certainty~trajectory_entropy": (certainty, trajectory),
        "token_entropy~trajectory_entropy": (entropy, trajectory),
    }.items():
        r = torch.corrcoef(torch.stack([a, b]))[0, 1]
        assert found[f"correlation/reward/{name}"] == pytest.approx(float(r))
        r = torch.corrcoef(torch.stack([advantages(a, 4), advantages(b, 4)]))[0, 1]
        assert found[f"correlation/advantage/{name}"] == pytest.approx(float(r))
    assert len(found) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny"], "give a folder for the study: rlif study tiny --out DIR (or --dry-run)"),
        (["tiny", "--out", "x", "--where", "model"], "--where 'model': write axis=label"),
        (["tiny", "--out", "x", "--where", "modle=r0"], "where: no axis 'modle'; there are model, reward, seed"),
        (["tiny", "--out", "x", "--findings"], "--findings stands alone: rlif study x --findings"),
        (["tiny", "--findings"], "tiny: a grid, not the folder that its study was written into"),
        (["nowhere", "--findings"], "nowhere: holds no study"),
        (["nothing", "--dry-run"], "nothing: no such grid"),
    ],
)
def test_what_cannot_be_meant_is_one_line(words: list[str], said: str) -> None:
    code, message = main._outcome(["study", *words])
    assert (code, message[: len(said)]) == (2, said)


def test_a_study_with_a_failed_cell_ends_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = grid(tmp_path, models={"nowhere": "./no-such-model"}, rewards=["random"])
    code, message = main._outcome(["study", str(path), "--out", str(tmp_path / "out")])
    assert code == 2
    assert message == f"1 of 1 cells failed, see {tmp_path / 'out' / 'failed'}; the same command tries again"
    said = capsys.readouterr().out
    assert "1 failed," in said
    assert "failed: policy.model: no such folder or file: ./no-such-model" in said
