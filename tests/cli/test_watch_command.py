"""`rlif watch`: exit codes, what is printed, and following a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabricated_runs import Behaves, Completion, FabricatedRun, healthy
from rlif.cli import main
from rlif.utils.atomic_io import locked


def constant(draw: Any, step: int) -> Completion:
    return Completion("It is 12.", "12")


def watch(*words: object) -> tuple[int, str]:
    return main._outcome(["watch", *map(str, words)])


def test_exit_codes_and_lines_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine, bad = tmp_path / "fine", tmp_path / "bad"
    FabricatedRun(fine, steps=16).add(16).finish()
    FabricatedRun(bad).add(20).add(6, constant)
    assert watch(fine) == (0, "")
    assert capsys.readouterr().out == f"{fine}: all 16 steps are done; 8 looks, the last at step 16: ok\n"
    assert watch(fine, bad) == (3, "")
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"{bad}: no process is at work, step 26 of 40; 13 looks, the last at step 26: stop"
    assert said[2].startswith("  constant_answer: stop since step 22: 100% of the completions answer '12', whatever")
    assert len(said) == 3


def test_a_folder_that_cannot_be_read_is_an_error_and_hides_no_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, bad, none = (tmp_path / name for name in ("fine", "bad", "none"))
    FabricatedRun(fine).add(4)
    FabricatedRun(bad).add(2).add(2, constant)
    code, message = watch(none, fine)
    assert (code, message[: len(str(none)) + 15]) == (2, f"{none}: holds no run ")
    assert f"{fine}: no process is at work, step 4 of 40" in capsys.readouterr().out
    assert watch(none, bad)[0] == 3
    assert f"rlif: {none}: holds no run" in capsys.readouterr().err


def test_json_has_one_object_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FabricatedRun(tmp_path / "bad").add(20).add(2, constant, probe__agreement=0.5, guard__content=1.0)
    assert watch(tmp_path / "bad", tmp_path / "none", "--json")[0] == 3
    bad, none = map(json.loads, capsys.readouterr().out.splitlines())
    assert (bad["state"], bad["level"], bad["step"], bad["steps"]) == ("stopped", "stop", 22, 40)
    assert (bad["guards"]["constant_answer"]["level"], bad["guards"]["constant_answer"]["step"]) == ("stop", 22)
    assert bad["probe"]["guards"] == {"content": {"level": "warn", "step": 22, "reason": ""}}
    assert bad["probe"]["best"] == {"step": 21, "agreement": 0.5}
    assert "holds no run" in none["error"]


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Callable[[], object]]], list[float]]:
    """Put what happens meanwhile in the place of waiting; returns how long was waited."""

    def put(happens: list[Callable[[], object]]) -> list[float]:
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            happens.pop(0)()

        monkeypatch.setattr("rlif.cli.watch.time.sleep", sleep)
        return waited

    return put


@pytest.mark.parametrize(("later", "code"), [(healthy, 0), (constant, 3)])
def test_follow_ends_with_the_run_or_with_the_first_stop(
    later: Behaves, code: int, tmp_path: Path, naps: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for the run to begin, and tells what is new alone."""
    runs: list[FabricatedRun] = []
    happens = [
        lambda: runs.append(FabricatedRun(tmp_path / "run", steps=12).add(3)),
        lambda: runs[0].add(1),
        lambda: None,
        lambda: runs[0].add(2, later),
        lambda: runs[0].add(6, later).finish(),
    ]
    waited = naps(happens)
    with locked(tmp_path / "run"):
        assert watch(tmp_path / "run", "--follow") == (code, "")
    said = [line.removeprefix(f"{tmp_path / 'run'}: ") for line in capsys.readouterr().out.splitlines()]
    begin = ["waiting", "step 3 of 12; 1 look, the last at step 2: ok", "step 4 of 12; 2 looks, the last at step 4: ok"]
    assert said[:3] == begin
    if code:
        assert said[3] == "step 6 of 12; 3 looks, the last at step 6: stop"
        assert waited == [10.0] * 4
    else:
        assert said[3] == "step 6 of 12; 3 looks, the last at step 6: ok"
        assert said[4:] == ["all 12 steps are done; 6 looks, the last at step 12: ok"]
        assert waited == [10.0] * 5


def test_follow_ends_when_nobody_has_been_at_work_twice_in_a_row(tmp_path: Path, naps: Any) -> None:
    FabricatedRun(tmp_path).add(4)
    waited = naps([lambda: None])
    assert watch(tmp_path, "--every", "2") == (0, "")
    assert waited == [2.0]
