"""Runs watched from outside: each fault is heard, healthy runs are not, and following is reading afterwards."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fabricated_runs import SAMPLES, Behaves, FabricatedRun, healthy
from rlif.errors import RlifError
from rlif.monitoring.run_looks import LOOKS, RunLook, RunReader, Unit, looks_due, record_of
from rlif.monitoring.watch import FALSE_ALARM, WATCHED, constant_answer, report
from rlif.recipes import find_recipe, load_recipe
from rlif.utils.atomic_io import in_use, locked


def but(**changes: object) -> Behaves:
    """As in a healthy run, but for some fields."""
    return lambda draw, step: dataclasses.replace(healthy(draw, step), **changes)


def mostly(share: float, behaves: Behaves) -> Behaves:
    return lambda draw, step: (behaves if draw.random() < share else healthy)(draw, step)


def test_a_healthy_run_hears_nothing_and_its_looks_hold_32_prompts(tmp_path: Path) -> None:
    """16 prompts a step: 2 steps a look, 20 looks in 40 steps."""
    found = report(RunReader(FabricatedRun(tmp_path).add(40).finish().folder))
    assert (found.level, dict(found.said), found.unwatched) == ("ok", {}, ())
    assert found.looks == tuple(range(2, 41, 2))
    assert (found.state, found.step, found.steps) == ("finished", 40, 40)


LOOP = "and so on and so on " * 12
FAULTS: dict[str, Behaves] = {
    "constant_answer": mostly(0.7, but(answer="12")),
    "no_answer": mostly(0.8, but(answer=None)),
    "truncation": mostly(0.8, but(reason="length")),
    "repetition": mostly(0.8, but(text=LOOP)),
    "length": but(tokens=400),
    "entropy": but(entropy=1.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_heard_at_the_next_look_and_nothing_else(fault: str, tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path).add(20).add(4, FAULTS[fault])
    found = report(RunReader(run.folder))
    assert {name: (said.level, said.step) for name, said in found.said.items()} == {fault: ("stop", 22)}
    assert found.level == "stop"


def test_what_it_says_names_the_answer_and_the_shares(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path).add(2).add(2, but(answer="36/2")).add(2, but(answer="18"))
    said = report(RunReader(run.folder)).said["constant_answer"]
    assert said.reason.startswith("100% of the completions answer '18', whatever the question; the commonest had ")
    assert said.reason.endswith("% at step 2")


def test_an_answer_that_was_common_before_training_is_no_collapse(tmp_path: Path) -> None:
    """Yes and no: half of the answers are the same from the beginning, and .7 of them later."""
    before, later = mostly(0.5, but(answer="yes")), mostly(0.65, but(answer="yes"))
    assert (
        "constant_answer" not in report(RunReader(FabricatedRun(tmp_path).add(20, before).add(20, later).folder)).said
    )


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"advantage__zero_groups": 1.0}, {"no_advantage": "stop"}),
        ({"advantage__zero_groups": 0.95}, {}),
        ({"mismatch__mean": 0.02}, {"mismatch": "stop"}),
        ({"mismatch__mean": None}, {}),
    ],
)
def test_faults_that_only_the_log_tells(metrics: dict[str, float | None], said: dict[str, str], tmp_path: Path) -> None:
    found = report(RunReader(FabricatedRun(tmp_path).add(10).add(2, **metrics).folder))
    assert {name: each.level for name, each in found.said.items()} == said


def test_one_step_of_a_look_is_not_all_of_it(tmp_path: Path) -> None:
    found = report(
        RunReader(FabricatedRun(tmp_path).add(11).add(1, advantage__zero_groups=1.0, mismatch__mean=0.02).folder)
    )
    assert {name: each.level for name, each in found.said.items()} == {"mismatch": "warn"}


@pytest.mark.parametrize(
    ("overrides", "heard"),
    [
        ((), True),
        (("rollout.max_mismatch=0.03",), False),
        (("rollout.max_mismatch=0",), False),
        (("policy.dtype=bfloat16",), False),
        (("rollout.temperature=0.7", "rollout.top_p=0.9"), False),
        (("rollout.temperature=0.7",), True),
    ],
)
def test_the_limit_of_mismatch_is_the_recipe_s(overrides: tuple[str, ...], heard: bool, tmp_path: Path) -> None:
    found = report(RunReader(FabricatedRun(tmp_path, overrides=overrides).add(2, mismatch__mean=0.02).folder))
    assert ("mismatch" in found.said) is heard


def test_without_rollouts_the_log_is_watched_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    """20 steps a look; the fault begins with the second one."""
    run = FabricatedRun(tmp_path, steps=60, overrides=("log.rollouts_every=0",)).add(20)
    run.add(20, lambda draw, step: FAULTS["truncation"](draw, step)).add(20)
    found = report(RunReader(run.folder))
    assert found.looks == (20, 40, 60)
    assert {name: (said.level, said.step) for name, said in found.said.items()} == {"truncation": ("stop", 40)}
    assert found.unwatched == ("constant_answer", "no_answer", "repetition")


def test_rollouts_that_were_taken_away_leave_the_log(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path).add(20)
    for path in (run.folder / "rollouts").iterdir():
        path.unlink()
    assert report(RunReader(run.folder)).looks == (20,)


def test_rollouts_of_every_tenth_step_are_looks_of_two(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path, steps=60, overrides=("log.rollouts_every=10",))
    assert (found := report(RunReader(run.add(9).folder))).looks == ()
    assert (found.unwatched, found.due) == ((), 20)  # rollouts are to come
    assert report(RunReader(run.add(51, FAULTS["repetition"]).folder)).looks == (20, 40, 60)


def test_to_follow_a_run_is_to_read_it_afterwards(tmp_path: Path) -> None:
    """Whenever it is looked at, also within a step, there are the first looks of those that there will be."""
    run, seen = FabricatedRun(tmp_path), []
    reader = RunReader(run.folder)
    for _ in range(20):
        seen.append(report(reader))
        run.add(2, healthy if run.step < 20 else FAULTS["constant_answer"])
    after = report(RunReader(run.finish().folder))
    for before in seen:
        assert before.looks == after.looks[: len(before.looks)]
        assert before.level == ("stop" if before.step >= 22 else "ok")
    assert after.said["constant_answer"].step == 22


def test_a_line_that_is_being_written_is_not_there_yet(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path).add(4)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "signal/en')
    assert report(RunReader(run.folder)).step == 4


def test_a_run_that_has_only_begun_is_fine(tmp_path: Path) -> None:
    found = report(RunReader(FabricatedRun(tmp_path).folder))
    assert (found.level, found.step, found.looks, found.due) == ("ok", 0, (), 2)


def test_damaged_rollouts_are_named(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path).add(4)
    path = tmp_path / "rollouts" / "step-000003.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(RlifError, match=r"step-000003\.parquet: cannot be read \(.*\); restore it, or take it away"):
        report(RunReader(run.folder))


def test_rollouts_of_another_recipe_are_refused(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path).add(4)
    (tmp_path / "recipe.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("group_size: 4", "group_size: 8")
    )
    with pytest.raises(RlifError, match=r"64 rows, where the recipe has 16 prompts of 8"):
        report(RunReader(run.folder))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RlifError, match="holds no run"):
        RunReader(tmp_path)


def test_whether_a_run_is_going_on_is_told_by_its_lock(tmp_path: Path) -> None:
    reader = RunReader(FabricatedRun(tmp_path).folder)
    assert report(reader).state == "stopped"
    with locked(tmp_path):
        assert in_use(tmp_path)
        assert report(reader).state == "running"
    assert not in_use(tmp_path)


def test_what_the_run_s_own_guards_said_is_told(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path)
    for share, agreement, length in ((0.4, 0.0, 1.0), (0.6, 0.0, 1.0), (0.3, 2.0, 1.0), (0.5, 0.0, 0.0)):
        run.add(1, probe__agreement=share, guard__agreement=agreement, guard__length=length)
    found = report(RunReader(run.folder))
    assert {name: (said.level, said.step) for name, said in found.probe.items()} == {"agreement": ("stop", 3)}
    assert found.agreement == ((1, 0.4), (2, 0.6), (4, 0.5))
    assert (found.level, dict(found.said)) == ("stop", {})


@pytest.mark.parametrize("steps", [1, 7, 40, 60, 1000])
@pytest.mark.parametrize("width", [1, 2, 4, 20])
def test_looks_share_no_step_and_are_few(steps: int, width: int) -> None:
    ends = looks_due(steps, steps, width, over=True)
    assert len(ends) <= LOOKS + 2
    assert all(later - width >= end for end, later in itertools.pairwise(ends))
    assert not ends or (ends[0] == width and steps - ends[-1] < width)
    for done in range(steps):
        running = looks_due(done, steps, width, over=False)
        assert running == [end for end in ends if end <= done][: len(running)]
        assert len([end for end in ends[:-1] if end <= done]) <= len(running) + 1


def test_false_alarms_where_nothing_changes_are_rarer_than_said() -> None:
    """100 runs of 9 looks whose prompts differ: .05 may alarm, so 13 or more would have a chance of 2e-3."""
    draw, recipe = np.random.default_rng(0), load_recipe(find_recipe(Path("tiny")))
    tests = ("no_answer", "truncation", "repetition", "entropy", "constant_answer")

    def unit() -> Unit:
        ended, answered, straight = (int(draw.binomial(SAMPLES, share)) for share in draw.beta(2.0, 2.0, size=3))
        answers = tuple(str(draw.integers(3)) if i < answered else None for i in range(SAMPLES))
        return Unit(SAMPLES, 100.0, float(draw.lognormal()), ended, answers, straight)

    alarmed = 0
    for _ in range(100):
        units = [[unit() for _ in range(32)] for _ in range(9)]
        looks = [RunLook(record_of(step, u), tuple(one.answers or () for one in u), ()) for step, u in enumerate(units)]
        said = (WATCHED[name].guard(looks[:n], recipe) for n in (3, 6, 9) for name in tests)
        alarmed += any(alarm.level != "ok" for alarm in said)
    assert alarmed < 13
    assert pytest.approx(0.05) == FALSE_ALARM


WATCH = """
import sys
from pathlib import Path

sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises
from rlif.cli.watch import watch_runs

sys.exit(3 * watch_runs([Path(sys.argv[1])], every=None, as_json=True))
"""


def test_a_run_is_watched_without_torch(tmp_path: Path) -> None:
    run = FabricatedRun(tmp_path).add(4).add(4, FAULTS["constant_answer"])
    command = [sys.executable, "-c", WATCH, str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["guards"]["constant_answer"]["level"] == "stop"


def test_one_answer_to_many_prompts_is_no_alarm_where_chance_would_do() -> None:
    """8 and later 17 of 32 prompts are answered yes, each by all of its samples: 17 − 8 of 25 coins is no rarity."""

    def look(step: int, alike: int) -> RunLook:
        answers = [("yes",) * SAMPLES] * alike + [tuple(f"{i}{j}" for j in range(SAMPLES)) for i in range(32 - alike)]
        units = [Unit(SAMPLES, 100.0, 30.0, SAMPLES, given, SAMPLES) for given in answers]
        return RunLook(record_of(step, units), tuple(answers), ())

    first = look(2, 8)
    assert constant_answer([first, look(4, 17)]).level == "ok"
    assert constant_answer([first, look(4, 24)]).level == "stop"
    assert constant_answer([first, first]).level == "ok"
