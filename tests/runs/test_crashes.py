"""Kills and power cuts at every operation on files: what is left is resumed, to the same end.

A part of the states is tried here; `benchmarks/faults.py` tries all of them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from crash_points import Moment, Recorder, Tree, crashed, power_cut, put, states
from evaluations import Scripted, candidate, settings, timeless
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.evals import runner as loop
from rlif.evals.runner import evaluate
from rlif.recipes import parse_recipe
from rlif.runs.history import read_metrics
from rlif.runs.layout import INFO, METRICS_FILE, RECIPE
from rlif.training.loop import resume, train
from toys import toy_policy

BEGUN = {f"run/{name}" for name in (RECIPE, INFO, METRICS_FILE)}
"""What a folder holds once its run has begun."""
KINDS = ("killed", "torn", "power cut, strict", "power cut, names first", "power cut, any")


def small_recipe(model: Path) -> Recipe:
    return parse_recipe(
        {
            "steps": 3,
            "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
            "task": {"name": "arithmetic"},
            "rollout": {"prompts": 1, "group_size": 2, "max_new_tokens": 4},
            "reward": "self_certainty",
            "grpo": {"lr": 1e-3, "kl_coef": 0.05},
            "eval": {"every": 2, "problems": 2},
            "checkpoint": {"every": 1, "keep_last": 2},
        }
    )


class Marking:
    """A callback that has the recorder look whenever a step was logged."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def begin(self, phase: str, step: int, total: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self._recorder.look(f"logged {step}")


class Recorded:
    """A run that nothing disturbed, and all that its folder went through."""

    def __init__(self, base: Path, cuts: int = 2) -> None:
        self.base = base
        (base / "work").mkdir(parents=True)
        toy_policy("llama").save(base / "model")
        self.recipe = small_recipe(base / "model")
        with Recorder(base / "work") as recorder:
            train(self.recipe, base / "work" / "run", callback=Marking(recorder))
        self.moments = recorder.moments
        self.end = outcome(base / "work" / "run")
        self.states = states(self.moments, cuts=cuts)

    def of_kind(self, kind: str, *, begun: bool) -> list[tuple[str, Tree]]:
        found = self.states.get(kind, {})
        return [(label, tree) for label, tree in found.items() if (tree.keys() >= BEGUN) is begun]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded"))


def outcome(run: Path) -> dict[str, Any]:
    """All of a run that the clock does not decide."""
    clocks = ("time", "tokens_per_second", "memory")
    weights = load_file(run / "final" / "model.safetensors")
    checkpoints = sorted((run / "checkpoints").iterdir())
    return {
        "weights": {name: hashlib.sha256(x.numpy().tobytes()).hexdigest() for name, x in weights.items()},
        "metrics": [
            str({key: value for key, value in line.items() if not key.startswith(clocks)})
            for line in read_metrics(run / METRICS_FILE)
        ],
        **{
            folder: {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / folder).iterdir()}
            for folder in ("rollouts", "eval_answers")
        },
        # One more is there if the kill came before the oldest was removed.
        "checkpoints": [path.name for path in checkpoints[-2:]],
        "optimizer": hashlib.sha256((checkpoints[-1] / "optimizer.safetensors").read_bytes()).hexdigest(),
        "left": sorted(path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"),
    }


def ends_alike(recorded: Recorded, tree: Tree, folder: Path) -> str:
    """Resume what is left: "same", or what else happened. "begun anew": a refusal named the command that works."""
    put(tree, folder)
    try:
        resume(folder / "run")
        told = "same"
    except RlifError as error:
        if "\n" in str(error) or "rlif.train" not in str(error):
            return f"refused without a remedy: {error}"
        try:
            train(recorded.recipe, folder / "run")
            told = "begun anew"
        except RlifError as other:
            return f"neither command works: {error} / {other}"
    return told if outcome(folder / "run") == recorded.end else f"{told}, but it ends otherwise"


def some(found: list[tuple[str, Tree]], number: int) -> list[tuple[str, Tree]]:
    """So many of them, evenly spread."""
    return [found[i * len(found) // number] for i in range(number)] if len(found) > number else found


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_alike_whatever_was_left_of_it(recorded: Recorded, tmp_path: Path, kind: str) -> None:
    number = 8 if kind == "killed" else 5
    tried = some(recorded.of_kind(kind, begun=True), number)
    # A strict disk leaves hardly a state that is not of another kind, too: one or none.
    assert len(tried) == number or kind == "power cut, strict"
    got = {label: ends_alike(recorded, tree, tmp_path / str(i)) for i, (label, tree) in enumerate(tried)}
    assert got == dict.fromkeys(got, "same")


def test_a_start_that_was_broken_off_is_begun_anew_or_gone_on_with(recorded: Recorded, tmp_path: Path) -> None:
    """Of the two commands one works, and the other names it."""
    tried = [state for kind in KINDS for state in some(recorded.of_kind(kind, begun=False), 4)]
    assert len(tried) >= len(KINDS)
    got = {label: ends_alike(recorded, tree, tmp_path / str(i)) for i, (label, tree) in enumerate(tried)}
    assert set(got.values()) <= {"same", "begun anew"}, got


def test_the_recorder_sees_what_a_run_does(recorded: Recorded) -> None:
    """Some hundred operations: files come to be, half of them at first; checkpoints are renamed into place."""
    labels = " ".join(moment.label for moment in recorded.moments)
    for operation in ("os.mkdir", "os.rename", "os.remove", "fsync", "write", "open", "logged 3"):
        assert operation in labels
    assert len(recorded.states["killed"]) > 50
    assert len(recorded.states["torn"]) > 20
    seen = {path for tree in recorded.states["killed"].values() for path in tree}
    assert {"run/checkpoints/step-000001", "run/checkpoints/step-000003/manifest.json", "run/final/config.json"} <= seen
    assert any(path.startswith("run/checkpoints/.tmp-step-000002") for path in seen)


def test_what_was_reported_outlasts_a_power_cut(recorded: Recorded) -> None:
    """No byte of a finished run is left to the disk's leisure; nor a line, rollouts or a checkpoint before that."""
    kept, there = power_cut(recorded.moments[-1], "strict"), crashed(recorded.moments[-1])
    assert {path: kept.get(path, b"lost") for path in there} == there
    assert all("/.tmp-" in path or "/.old-" in path for path in kept.keys() - there.keys())
    for step in (1, 2, 3):
        (moment,) = [moment for moment in recorded.moments if moment.label == f"logged {step}"]
        kept, there = power_cut(moment, "strict"), crashed(moment)
        assert kept[f"run/{METRICS_FILE}"] == there[f"run/{METRICS_FILE}"]
        assert kept[f"run/rollouts/step-{step:06d}.parquet"] == there[f"run/rollouts/step-{step:06d}.parquet"]
        before = [path for path in there if path.startswith(f"run/checkpoints/step-{step - 1:06d}")]
        assert bool(before) is (step > 1)
        assert {path: kept.get(path, b"lost") for path in before} == {path: there[path] for path in before}


class RecordedEvaluation:
    """An evaluation that nothing disturbed, and all that its folder went through."""

    def __init__(self, base: Path, cuts: int = 3) -> None:
        (base / "work").mkdir(parents=True)
        with Recorder(base / "work") as recorder:
            self.results = self.run(base / "work" / "e")
        self.moments: list[Moment] = recorder.moments
        self.states = states(self.moments, cuts=cuts)

    def run(self, out: Path) -> str:
        """Its results; as text, in which NaN is NaN."""
        return json.dumps(timeless(evaluate([candidate(Scripted())], settings(limit=3, samples=2), out)))


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedEvaluation:
    monkeypatch.setattr(loop, "_EVERY", 0.0)  # a part for every answer
    return RecordedEvaluation(tmp_path / "recorded")


def test_an_evaluation_ends_alike_whatever_was_left_of_it(evaluation: RecordedEvaluation, tmp_path: Path) -> None:
    assert set(evaluation.states) >= {"killed", "torn", "power cut, names first"}
    for kind, found in evaluation.states.items():
        assert found, kind
        for i, (label, tree) in enumerate(some(list(found.items()), 8)):
            put(tree, tmp_path / f"{kind} {i}")
            assert evaluation.run(tmp_path / f"{kind} {i}" / "e") == evaluation.results, (kind, label)
    end = evaluation.moments[-1]
    assert power_cut(end, "strict") == crashed(end)


# --- elsewhere than at home -------------------------------------------------------------------------------------------


def _as_nobody(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run as a number without an entry or a home. It may read all that is there, or Python itself might be closed."""
    strangers = ["--reuid=12345", "--regid=12345", "--clear-groups"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return subprocess.run(
        ["setpriv", *strangers, *reading, sys.executable, *command],
        env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and setpriv")
def test_a_user_without_name_and_home_samples() -> None:
    """As in a container that is run under a number."""
    if _as_nobody("-c", "").returncode:
        pytest.skip("this Python cannot be run by others")
    asked = ["-m", "rlif", "sample", "tiny-base", "1+2=?", "-n", "1", "--max-new-tokens", "4"]
    done = _as_nobody(*asked)
    assert (done.returncode, done.stderr) == (0, "")
    done = _as_nobody("-m", "rlif", "sample", "smollm2-135m-instruct", "hi")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set RLIF_CACHE" in done.stderr
