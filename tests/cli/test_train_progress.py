"""Lines about steps: whole on a terminal of 80 columns, complete in a log."""

import re
from io import StringIO
from pathlib import Path

import pytest

from hostile import run as command
from rlif.cli import train_progress
from rlif.cli.time_left import TimeLeft
from rlif.cli.train_progress import eval_parts, fitting, labelled_parts, look_parts, show_progress, step_parts
from rlif.config import Recipe
from rlif.recipes import load_recipe, shipped_recipes
from rlif.utils.terminal import Console

KEY = "eval/greedy_right_and_formatted"
METRICS = {
    "reward/trajectory_entropy/mean": -123.4567,
    "signal/entropy": 0.1234,
    "verdict/right": 0.671,
    "verdict/formatted": 0.755,
    "length/mean": 123.4,
    "tokens_per_second/rollout": 12345.0,
    "time/rollout": 1.5,
    "time/update": 0.5,
    "eval/right": 0.671,
    "eval/right_stderr": 0.021,
    "eval/right_and_formatted": 0.634,
    "eval/entropy": 0.119,
    "eval/n": 512.0,
}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_line_is_as_much_as_fits(width: int) -> None:
    parts = step_parts(7, METRICS)
    line = fitting(parts, width)
    assert len(line) <= width
    assert "  ".join(parts).startswith(line)
    assert line.split("  ")[-1] in "  ".join(parts).split("  ")  # the last part is whole
    assert (line == "  ".join(parts)) is (width == 200)


def test_a_terminal_gets_no_wrapped_line_and_no_bar_of_a_phase_that_is_over() -> None:
    console = Console(width=80, force_terminal=True, record=True, file=StringIO())
    with show_progress(console, recipe(2)) as callback:
        callback.begin("rollout", 1, 100)
        callback.advance(40)
        callback.logged(1, METRICS)
        callback.begin("eval", 2, 768)
        callback.advance(281)
        callback.logged(2, METRICS)
    shown = console.export_text()  # without the codes that move the cursor
    assert re.findall(r"step    1  .*", shown) == [
        "step    1  trajectory_entropy -123.457  entropy 0.123  right 0.67"  # 65 characters; formatted needs 16 more
    ]
    evals = "eval: right 0.671 ± 0.021  right and formatted 0.634  entropy 0.119  n 512"
    assert re.findall(r"eval: .*", shown) == [evals] * 2
    assert "768" in shown
    last_picture = shown.rpartition("run ")[2]
    assert "2/2" in last_picture
    assert "768" not in last_picture


def test_the_greedy_answers_stand_beside_the_sampled_ones_where_there_are_any() -> None:
    assert "right and formatted 0.634" in eval_parts(METRICS)
    assert "right and formatted 0.634 (greedy 0.702)" in eval_parts({**METRICS, KEY: 0.702})


def test_agreement_with_each_other_is_not_called_as_agreement_with_the_start() -> None:
    look = {"probe/agreement": 0.42, "probe/agreement/stderr": 0.03, "probe/agreement/any_form": 0.61}
    look |= {"probe/labelled_right_and_formatted": 0.8125, "probe/labelled_right_and_formatted/stderr": 0.05}
    assert look_parts(look) == ["probe: agrees with start 0.420 ± 0.030 in the asked form, 0.610 in any"]
    assert labelled_parts(look) == ["labelled: right and formatted 0.812 ± 0.050"]
    assert look_parts(METRICS) == labelled_parts(METRICS) == []
    unlabelled = {"verdict/right": float("nan"), "verdict/self_agreement": 0.69, "verdict/formatted": 0.5}
    assert step_parts(1, unlabelled) == ["step    1", "self-agree 0.69", "formatted 0.50"]
    evaluated = {"eval/right": float("nan"), "eval/right_and_formatted": float("nan"), "eval/formatted": 0.5}
    evaluated |= {"eval/entropy": 0.1, "eval/n": 8.0, "eval/problems": 4.0, "eval/self_agreement": 0.7}
    assert eval_parts(evaluated) == ["eval: self-agree 0.700", "formatted 0.500", "entropy 0.100", "n 8"]
    assert eval_parts({**evaluated, "eval/problems": 8.0})[0] == "eval: formatted 0.500"


def test_a_log_gets_one_whole_line_a_step() -> None:
    console = Console(width=80, record=True, file=StringIO())
    with show_progress(console, recipe(2)) as callback:
        callback.logged(1, METRICS)
    (line,) = console.export_text().splitlines()
    assert "12,345" in line
    assert "eval: right 0.671 ± 0.021" in line
    assert line.startswith("step    1 of 2  ")
    assert line.endswith("  2 s left")


def test_a_run_that_cannot_begin_says_only_what_is_wrong(tmp_path: Path) -> None:
    """A line that sounds like a start comes when files and labels have been looked at, also of a run that goes on."""
    data, out = tmp_path / "sums.jsonl", tmp_path / "run"
    data.write_text('{"question": "1+2=?"}\n')
    asked = ["train", "--model", "tiny-base", "--data", str(data), "--out", str(out), "eval.every=0", "steps=2"]
    for more, why in (
        (["--reward", "verifiable"], "reward verifiable needs answers"),
        (["probe.every=1", "probe.path=nowhere.jsonl"], "nowhere.jsonl"),
    ):
        ended = command([*asked, *more])
        assert (ended.code, ended.out) == (2, "")
        assert why in ended.err
    assert command([*asked, "--until", "1", "--quiet", "rollout.group_size=2", "probe.every=0"]).code == 0
    data.write_text('{"question": "1+3=?"}\n')
    ended = command(["train", "--resume", str(out)])
    assert (ended.code, ended.out) == (2, "")
    assert "changed" in ended.err


@pytest.mark.parametrize(("terminal", "hint"), [(True, 0), (False, 1)])
def test_what_a_run_does_is_said_once_when_it_has_begun(terminal: bool, hint: int) -> None:
    console = Console(width=200, force_terminal=terminal, record=True, file=StringIO())
    with show_progress(console, recipe(2), opening=lambda: "what it does") as callback:
        assert "what it does" not in console.export_text(clear=False)
        callback.begin("rollout", 1, 100)
        assert "what it does" in console.export_text(clear=False)
        callback.logged(1, METRICS)
    shown = console.export_text()
    assert (shown.count("what it does"), shown.count("every 30 s")) == (1, hint)
    done = Console(width=200, record=True, file=StringIO())
    with show_progress(done, recipe(2), 2, opening=lambda: "nothing is left to do"):
        pass
    assert "nothing is left to do" in done.export_text()


def recipe(steps: int, *changes: str) -> Recipe:
    return load_recipe(shipped_recipes()["tiny"], [f"steps={steps}", *changes])


def test_a_log_gets_a_line_every_half_minute_and_what_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(train_progress, "monotonic", lambda: now[0])
    console = Console(width=80, record=True, file=StringIO())
    of_a_step = {key: value for key, value in METRICS.items() if not key.startswith("eval/")}
    with show_progress(console, recipe(200)) as callback:
        callback.begin("rollout", 1, 5000)
        for tokens in (100, 200):  # within a step, too
            now[0] += 20.0
            callback.advance(tokens)
        for step in range(1, 201):
            now[0] += 1.0
            callback.logged(step, METRICS if step == 50 else of_a_step)
        now[0] += 40.0
        callback.begin("update", 201, 700)
    lines = console.export_text().splitlines()
    last = lines.pop()
    assert last.startswith("step 201 of 200, update: 0 of at most 700 tokens")
    assert "last step: trajectory_entropy -123.457, right 0.67" in last
    assert lines[0] == "step 1 of 200, rollout: 300 of at most 5,000 tokens  8 tokens/s"
    assert [int(line.split()[1]) for line in lines[1:]] == [1, 31, 50, 80, 110, 140, 170, 200]
    assert "eval: right 0.671" in lines[3]
    assert all(name in lines[2] for name in ("of 200", "trajectory_entropy", "right 0.67", "12,345", " left"))


def test_quiet_shows_nothing_and_a_narrow_terminal_no_line_that_is_cut() -> None:
    console = Console(width=80, record=True, file=StringIO())
    with show_progress(console, recipe(2), quiet=True) as callback:
        callback.begin("rollout", 1, 10)
        callback.logged(1, METRICS)
    assert console.export_text() == ""
    narrow = Console(width=40, force_terminal=True, record=True, file=StringIO())
    with show_progress(narrow, recipe(2)) as callback:
        callback.begin("rollout", 1, 100_000)
        callback.advance(40_000)
        callback.logged(1, METRICS)
    shown = narrow.export_text()
    assert "0/100000" in shown
    assert "1/2" in shown
    assert "2 s left" in shown
    lines = re.findall(r"(?:step    1|eval:|run )[^\n]*", shown.replace("run ", "\nrun "))
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40


def test_no_colour_is_sent_to_who_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        out = StringIO()
        console = Console(width=80, force_terminal=True, color_system="truecolor", file=out, legacy_windows=False)
        with show_progress(console, recipe(2)) as callback:
            callback.begin("rollout", 1, 100)
            callback.logged(1, METRICS)
        return out.getvalue()

    coloured = re.compile(r"\x1b\[[0-9;]*(3[0-9]|38;[0-9;]+)m")
    assert coloured.search(shown())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(shown())


def test_the_time_left_counts_neither_loading_nor_the_first_step_but_what_evaluations_take() -> None:
    left = TimeLeft(recipe(60, "eval.every=25"))
    assert left.seconds is None
    left.logged(0, {"time/eval": 5.0})
    left.logged(1, {"time/rollout": 15.0, "time/update": 5.0, "time": 400.0})  # kernels are made
    assert left.seconds == 59 * 20.0 + 3 * 5.0  # at steps 25, 50 and 60
    left.logged(2, {"time/rollout": 0.5, "time/update": 0.5})
    assert left.seconds == 58 * 1.0 + 3 * 5.0
    for step in range(3, 26):
        left.logged(step, {"time/rollout": 2.0, **({"time/eval": 4.0} if step == 25 else {})})
    assert left.seconds == 35 * 2.0 + 2 * 4.0
    left = TimeLeft(recipe(60, "eval.every=0"), done=50)
    left.logged(51, {"time/rollout": 3.0})
    assert left.seconds == 9 * 3.0


def test_a_reward_of_another_one_is_called_by_both_names() -> None:
    mix = "[{name: formatted, of: majority_vote}, length, {name: formatted, of: soft_consensus}]"
    console, metrics = (
        Console(width=200, file=StringIO(), record=True),
        dict.fromkeys(
            ("reward/formatted/mean", "reward/length/mean", "reward/formatted_2/mean", "verdict/formatted"), 0.5
        ),
    )
    with show_progress(console, load_recipe(shipped_recipes()["tiny"], [f"reward={mix}"])) as callback:
        callback.logged(1, metrics)
    shown = "formatted majority_vote 0.500  length 0.500  formatted soft_consensus 0.500  formatted 0.50"
    assert shown in console.export_text()
