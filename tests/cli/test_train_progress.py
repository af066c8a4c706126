"""Lines about steps: whole on a terminal of 80 columns, complete in a log."""

import re
from io import StringIO

import pytest

from rlif.cli.train_progress import eval_parts, fitting, show_progress, step_parts
from rlif.utils.terminal import Console

KEY = "eval/greedy_right_and_formatted"
METRICS = {
    "reward/trajectory_entropy/mean": -123.4567,
    "signal/entropy": 0.1234,
    "verdict/right": 0.671,
    "verdict/formatted": 0.755,
    "length/mean": 123.4,
    "tokens_per_second/rollout": 12345.0,
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
    with show_progress(console, 2) as callback:
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


def test_a_log_gets_one_whole_line_a_step() -> None:
    console = Console(width=80, record=True, file=StringIO())
    with show_progress(console, 2) as callback:
        callback.logged(1, METRICS)
    (line,) = console.export_text().splitlines()
    assert "12,345" in line
    assert "eval: right 0.671 ± 0.021" in line
    assert line.endswith(" s left")
