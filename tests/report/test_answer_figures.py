"""A prompt step by step as a picture: which one, which steps, and that its tokens are those of the files."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pages import line, write_run
from rlif.cli.report import gather, write_report
from rlif.report import answer_figures
from rlif.report.answer_figures import SMALL, Answers, choose, cut, draw, finding, ground, laid_out, tokens_of
from rlif.report.answer_figures import write_answer_figures as write
from rlif.report.pieces import find_decoder
from rlif.report.run_record import grouped
from rlif.utils.palette import DARK, LIGHT, Theme
from rlif.utils.plotting import drawn_in

TEXTS = {0: ["so 7 2", "so 7"], 2: ["so 7", "so $7$ \\frac"], 4: ["so 2\nno", "so 7"]}
"""Of two prompts: the first is right at the best step and wrong at the last, the second always right."""


def chosen(run: Path) -> Answers:
    found = choose(gather([run]).runs[0], [])
    assert found is not None
    return found


def texts(figure: Figure) -> dict[str, str]:
    """The tokens drawn, by step and place."""
    found: dict[str, str] = {}
    for one in figure.axes[0].texts:
        if gid := one.get_gid():
            found[gid] = found.get(gid, "") + one.get_text()
    return found


def grounds(figure: Figure) -> dict[tuple[float, float], Any]:
    """Colours of what lies behind, by the left upper corner."""
    patches = [one for one in figure.axes[0].patches if isinstance(one, Rectangle)]
    return {(round(one.get_x(), 3), round(one.get_y(), 3)): one.get_facecolor() for one in patches}


def test_the_tokens_drawn_are_those_of_the_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", TEXTS)
    figure = draw(chosen(run), "toy", find_decoder(run, []))
    drawn, behind = texts(figure), grounds(figure)
    corners = {one.get_gid(): one.get_position() for one in reversed(figure.axes[0].texts) if one.get_gid()}
    for step in (0, 2, 4):
        rows = pq.read_table(run / "eval_answers" / f"step-{step:06d}.parquet").to_pylist()
        (row,) = (one for one in rows if one["prompt_id"] == "p0" and one["decoding"] == "greedy")
        shown = [drawn[f"{step}-{i}"] for i in range(len(row["tokens"]))]
        assert "".join(shown).replace("↵", "\n") == row["completion"] + "<eos>"
        assert f"{step}-{len(row['tokens'])}" not in drawn
        for i, entropy in enumerate(row["entropy"]):
            x, y = corners[f"{step}-{i}"]
            # from white to the unsure colour by the square root of the share of 3 nats
            share = min(1.0, entropy / 3) ** 0.5
            mixed = [1 + share * (int(LIGHT.unsure[at : at + 2], 16) / 255 - 1) for at in (1, 3, 5)]
            assert behind[round(x, 3), round(y - 0.02, 3)][:3] == pytest.approx(mixed, abs=1 / 255)
    said = [one.get_text() for one in figure.axes[0].texts if not one.get_gid()]
    assert said[0].startswith("Right at step 2, wrong at step 4")
    assert "the first prompt right at the best step (2) and wrong at the last, of 2 kept" in said[2]
    assert [one for one in said if one[0] in "✓✗"] == ["✓ right, reads 7", "✓ right, reads 7", "✗ wrong"]


def test_nothing_is_a_formula(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {0: ["no", "$x"], 2: ["7", "\\frac"], 4: ["$7$ $\\frac{", "2"]})
    figure = draw(chosen(run), "$a_", None)
    assert texts(figure)["4-0"] == "$7$ $\\frac{", "without a tokenizer the text is one piece"
    figure.draw_without_rendering()  # a broken formula would raise


@pytest.mark.parametrize(
    ("said", "rule", "seen"),
    [
        (
            {0: "2", 2: "7", 4: "2"},
            "wrong at the first step, right at the best (2) and wrong at the last",
            "Right at step 2, wrong at step 4",
        ),
        ({0: "7", 2: "2", 4: "2"}, "right at some step and wrong at the last", "Right at step 0, wrong at step 4"),
        ({0: "2", 2: "2", 4: "7"}, "wrong at the first step and right at the last", "Wrong at step 2, right at step 4"),
        ({0: "7", 2: "7", 4: "7"}, "in the order of the evaluation", "One prompt at steps 0, 2, 4"),
    ],
)
def test_rules_are_taken_in_turn(tmp_path: Path, said: dict[int, str], rule: str, seen: str) -> None:
    run = write_run(tmp_path / "run", {step: ["7", text] for step, text in said.items()})
    found = chosen(run)
    assert found.rule == f"the first prompt {rule}, of 2 kept"
    assert found.prompt == ("what is 1 + 1?" if rule != "in the order of the evaluation" else "what is 3 + 4?")
    assert finding(found.answers) == seen


def test_the_best_step_is_among_those_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = gather([write_run(tmp_path / "run")]).runs[0]
    steps = list(range(0, 70, 10))
    assert answer_figures._steps(run, steps) == ([0, 20, 40, 60], 0), "only step 0 of these was scored"
    lines = tuple({**line(0), "step": step, "eval/greedy_right_and_formatted": step == 50} for step in steps)
    monkeypatch.setattr(type(run), "lines", lines, raising=False)
    object.__setattr__(run, "lines", lines)
    assert answer_figures._steps(run, steps) == ([0, 20, 50, 60], 50)


def test_long_answers_are_cut_with_a_count() -> None:
    tokens = [(str(i), 0.1) for i in range(1000)]
    found = cut(tokens)
    assert found[:160] == tokens[:160]
    assert found[160] == (" … 760 tokens … ", None)
    assert found[161:] == tokens[920:]
    assert cut(tokens[:240]) == tokens[:240]


def test_lines_break_between_tokens_and_tokens_that_are_too_long_break() -> None:
    found = list(laid_out([("abc", 0.0), ("de", 0.0), ("f\n", 0.0), ("123456789", 0.0), ("中文字", 0.0)], 5))
    assert found == [
        *((0, 0, 0, "abc"), (0, 3, 1, "de"), (1, 0, 2, "f↵")),
        *((2, 0, 3, "12345"), (3, 0, 3, "6789"), (4, 0, 4, "中文"), (5, 0, 4, "字")),
    ]
    assert all(
        column + len(text) <= SMALL.columns for _, column, _, text in laid_out([("x" * 500, 0.0)], SMALL.columns)
    )


def test_a_run_without_kept_answers_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    for path in (run / "eval_answers").iterdir():
        if path.name != "step-000002.parquet":
            path.unlink()
    notes: list[str] = []
    assert write(grouped(gather([run]).runs), tmp_path / "figures", notes) == []
    assert notes[0].startswith(
        f"{run}: no answers step by step to draw, it kept those of step 2 alone; see log.eval_an"
    )
    (run / "eval_answers" / "step-000002.parquet").unlink()
    write_report([run], tmp_path / "report.html", tmp_path / "figures")
    told = capsys.readouterr().out.replace("\n", " ")
    assert "not drawn: " in told
    assert "it kept none" in told
    assert "figure-2.svg" in told


def test_pictures_of_runs_are_written_light_and_dark(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / parent / "run", TEXTS, reward=reward)
        for parent, reward in (("a", "self_certainty"), ("b", "token_entropy"))
    ]
    paths = write(grouped(gather(runs).runs), tmp_path / "figures", [])
    paths += write(grouped(gather(runs[:1]).runs), tmp_path / "figures", [], dark=True)
    names = ("answers-run", "answers-run-2", "answers-run-dark")
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    assert all(path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml") for path in paths)
    again = write(grouped(gather(runs[:1]).runs), tmp_path / "again", [])
    assert again[0].read_bytes() == paths[0].read_bytes(), "the same bytes each time"


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_tokens_can_be_read_on_every_ground(theme: Theme) -> None:
    def luminance(colour: str) -> float:  # WCAG 2.2
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
        return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    with drawn_in(theme):
        for nats in (None, 0.0, 0.1, 1.0, 3.0, 50.0):
            low, high = sorted((luminance(theme.ink), luminance(ground(nats))))
            assert (high + 0.05) / (low + 0.05) >= 4.5
        assert (ground(None), ground(0.0), ground(50.0)) == (theme.ground, theme.ground, theme.unsure)


def test_a_text_whose_tokens_share_a_character_is_whole(tmp_path: Path) -> None:
    """Two tokens that make one character: the first has no text, the second all of it."""
    run = write_run(tmp_path / "run", TEXTS)
    one = chosen(run).answers[0]
    halves = {5: b"\xe4", 6: b"\xb8\xad"}

    def decode(ids: Any) -> str:
        return b"".join(halves.get(i, b"x") for i in ids).decode(errors="replace")

    object.__setattr__(one, "value", {"tokens": [5, 6, 7], "entropy": [0.1, 0.2, 0.3], "completion": "中x"}.get)
    assert tokens_of(one, decode) == [("", 0.1), ("中", 0.2), ("x", 0.3)]
