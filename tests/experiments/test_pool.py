"""Many runs side by side: finished ones are skipped, begun ones go on, and a cut into chunks changes nothing."""

import hashlib
import os
import re
import signal
from collections import deque
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest

from rlif.config import Recipe
from rlif.errors import RlifError, named
from rlif.experiments import pool, pool_bars
from rlif.experiments.pool import _put_back, check_recipes, run_all
from rlif.experiments.pool_worker import run_chunk
from rlif.recipes import find_recipe, load_recipe
from rlif.runs.history import read_metrics
from rlif.training.loop import train
from rlif.utils.terminal import Console

SMALL = ("steps=2", "rollout.prompts=2", "rollout.group_size=2", "rollout.max_new_tokens=4", "eval.every=0")


def recipe(*changes: str) -> Recipe:
    return load_recipe(find_recipe(Path("tiny")), [*SMALL, "checkpoint.every=0", "log.rollouts_every=0", *changes])


def run(recipes: Mapping[str, Recipe], out: Path) -> str:
    """Both at once; returns what is written where there is no terminal."""
    written = StringIO()
    run_all(recipes, out, processes=2, console=Console(file=written, width=80), go_on_with="the same")
    return written.getvalue()


def weights(run: Path) -> str:
    return hashlib.sha256((run / "final" / "model.safetensors").read_bytes()).hexdigest()


def test_named_recipes_are_run_and_the_finished_ones_skipped(tmp_path: Path) -> None:
    recipes = {"one": recipe(), "other": recipe("seed=1", "eval.every=2", "eval.problems=2")}
    run({"one": recipes["one"]}, tmp_path)
    before = (tmp_path / "one" / "metrics.jsonl").stat().st_mtime_ns
    said = run(recipes, tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path / "other" / "metrics.jsonl")] == [0, 1, 2]
    assert (tmp_path / "one" / "metrics.jsonl").stat().st_mtime_ns == before
    assert "other: step 2, right and formatted" in said
    assert "one: step" not in said
    check_recipes(recipes, tmp_path)  # they are theirs, though a run's own recipe spells more out
    with pytest.raises(RlifError, match=r"one/recipe\.yaml: a run of other settings.*--out"), named({"out": "--out"}):
        check_recipes({"one": recipe("seed=5")}, tmp_path)
    alone = tmp_path / "alone"
    train(recipes["other"], alone)
    assert weights(alone) == weights(tmp_path / "other")


def test_a_run_that_cannot_be_made_ends_all_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match="no reward 'self_certinty'"):
        run({"one": recipe("reward=self_certinty"), "other": recipe()}, tmp_path)


def test_a_run_that_was_begun_goes_on_in_chunks_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = recipe("steps=12", "rollout.max_new_tokens=2")
    train(whole, tmp_path / "whole")
    train(whole, tmp_path / "runs" / "cut", until=1)
    run({"cut": whole}, tmp_path / "runs")  # 2 to 11, then 12
    assert weights(tmp_path / "whole") == weights(tmp_path / "runs" / "cut")


@pytest.mark.parametrize("runs", [5, 6, 7, 20])
def test_no_core_idles_until_the_last_chunks(runs: int) -> None:
    """The order of work, played through: 2 cores, 6 chunks each; both work until one chunk or less is left over."""
    left = {str(i): 6 for i in range(runs)}
    waiting, rounds, finished = deque(left), 0, []
    while waiting:
        at_work = [waiting.popleft() for _ in range(min(2, len(waiting)))]
        rounds += 1
        for place, name in enumerate(at_work):
            left[name] -= 1
            others = len(waiting) + len(at_work) - 1 - place
            if left[name]:
                _put_back(name, waiting, take_turns=others < 2 * 2 - 1)
            else:
                finished.append(rounds)
    assert rounds == runs * 6 // 2
    if runs == 20:
        assert finished[0] <= 6  # the first are done at once, not all of them at the end


def test_of_many_runs_only_those_at_work_have_a_bar() -> None:
    for count, shown in ((3, 3), (pool_bars._FEW + 1, 1)):
        recipes = {str(i): recipe() for i in range(count)}
        bars = pool_bars.Bars(recipes, list(recipes), {"0": "the first"}, Console(file=StringIO()))
        bars.show_bar("0")
        visible = [task.description for task in bars._progress.tasks if task.visible]
        assert len(visible) == shown + 1
        assert {visible[0], visible[-1]} == {"the first", "all"}
        bars.hide_bar("0")
        assert sum(task.visible for task in bars._progress.tasks) == (1 if count > pool_bars._FEW else shown + 1)


def test_bars_of_long_names_fit_80_columns_and_no_number_is_cut() -> None:
    name = "some-organisation-a-model-of-1.7B-Base-trajectory_entropy-s0-0123abcd"
    console = Console(file=StringIO(), width=80, force_terminal=True, no_color=True)
    bars = pool_bars.Bars({name: recipe("steps=1000")}, [name], {}, console)
    bars.show(name, 999, -123.456, 0.45)
    with console.capture() as shown:
        console.print(bars._progress.get_renderable())
    first, second = re.sub(r"\x1b\[[0-9;]*m", "", shown.get()).splitlines()
    assert first.startswith("some-organisation-a-mo")
    assert first.split()[-5:] == ["999/1000", "reward", "-123.456", "right", "0.45"]
    assert (second.split()[0], "999/1000" in second) == ("all", True)
    assert max(len(first), len(second)) <= 80


def _killed_chunk(name: str, recipe: Recipe, out: Path) -> int:
    """In a worker: a run called killed takes its process with it."""
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return run_chunk(name, recipe, out)


def test_of_two_processes_at_work_the_one_that_was_killed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "run_chunk", _killed_chunk)
    failed: dict[str, str] = {}
    run_all(
        {"one": recipe(), "killed": recipe("seed=1"), "other": recipe("seed=2"), "bad": recipe("reward=no_such")},
        tmp_path,
        processes=2,
        console=Console(file=StringIO()),
        go_on_with="the same",
        on_error=lambda name, error: failed.update({name: str(error)}),
    )
    assert failed["killed"] == "a run was killed, for lack of memory perhaps: it was the only one at work"
    assert "no reward 'no_such'" in failed["bad"]
    assert set(failed) == {"killed", "bad"}
    assert [(tmp_path / name / "final").is_dir() for name in ("one", "other", "killed")] == [True, True, False]
    with pytest.raises(RlifError, match="a run was killed, for lack of memory perhaps; try processes 1"):
        run_all({"killed": recipe()}, tmp_path, processes=2, console=Console(file=StringIO()), go_on_with="the same")


def test_nothing_runs_beside_a_run_that_is_to_be_alone() -> None:
    queue = pool._Queue(["a", "b", "c", "d"], 2)
    queue.alone.add("b")
    assert queue.next_beside([]) == "a"
    assert queue.next_beside(["a"]) is None
    assert queue.next_beside([]) == "b"
    assert queue.next_beside(["b"]) is None
    assert queue.next_beside([]) == "c"
    assert queue.next_beside(["c"]) == "d"
    assert queue.next_beside(["c", "d"]) is None
