"""The table and the sentences say what the numbers say; the figures are drawn."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from eval_lines import greedy_line, line
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.experiments.quickstart import quickstart, variants
from rlif.recipes import dump_recipe, find_recipe, load_recipe
from rlif.report.summary import baseline_lines, explain, markdown, summarise, terminal_table
from rlif.runs.history import read_metrics
from rlif.training.loop import train
from rlif.utils.terminal import Console

VARIANTS = variants()


def result(
    label: str, *scores: float, greedy: Sequence[float] = (), majority: Sequence[float] = (), **keys: Sequence[float]
) -> dict[str, Any]:
    """A run evaluated every 10 steps; the other keys of `line` as sequences over them."""
    rows = [line(10 * i, score, **{key: values[i] for key, values in keys.items()}) for i, score in enumerate(scores)]
    rows = [
        row | greedy_line(*other) for row, other in zip(rows, zip(greedy, majority, strict=True), strict=False)
    ] or rows
    return summarise(label, rows)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((0.60, 0.75, 0.40), "The base model rises, then falls with x (0.60 → 0.75 at step 10 → 0.40) ("),
        ((0.60, 0.75, 0.90), "The base model rises and stays up with x (0.60 → 0.90) ("),
        ((0.90, 0.80, 0.50), "The base model only loses with x (0.90 → 0.50) ("),
        ((0.60, 0.61, 0.62), "The base model stays where it was with x (0.60 → 0.62) ("),  # within 2 √2 · .02 = .057
    ],
)
def test_the_fate_follows_the_numbers(scores: tuple[float, ...], said: str) -> None:
    assert explain([result("base, x", *scores)]).startswith(said)


def test_the_sentences_say_what_became_of_each_model_and_what_goes_beyond_the_baselines() -> None:
    surer = (0.3, 0.2, 0.1)
    votes = {"greedy": (0.70, 0.95, 0.60), "majority": (0.75, 0.80, 0.60)}
    results = [
        result("base, self-certainty", 0.60, 0.80, 0.40, right=(0.66, 0.81, 0.41), entropy=surer, **votes),
        result("base, token entropy", 0.60, 0.75, 0.50, entropy=surer, greedy=(0.70, 0.74, 0.5), majority=(0.75,) * 3),
        result(
            "base, verifiable (labels)", 0.60, 0.80, 0.90, entropy=surer, greedy=(0.7, 0.9, 1), majority=(0.75, 0.9, 1)
        ),
        result(
            "instruct, self-certainty",
            *(0.96, 0.90, 0.64),
            entropy=(0.1, 0.1, 0.2),
            greedy=(0.9, 0.9, 0.5),
            majority=(0.97, 0.9, 0.6),
        ),
    ]
    # The best baseline of one answer is greedy for the base model (.70), a sample for the instruct model (.96). Token
    # entropy's best, a sample at .75, is within 2 · hypot(.02, .03) = .072 of it. Self-certainty gained .20 sampled,
    # of which .15 are answers that were not right in any form before.
    assert explain(results) == (
        "The base model rises, then falls with self-certainty (0.60 → 0.80 at step 10 → 0.40) and token entropy "
        "(0.60 → 0.75 at step 10 → 0.50), rises and stays up with labels (0.60 → 0.90); the instruct model only loses "
        "with self-certainty (0.96 → 0.64) (share right and formatted of sampled answers, 128 problems × 4 samples, "
        "standard errors up to 0.03, one run each).\n\n"
        "With one answer a problem (sampled or greedy) the base model gives 0.70 before training and at its best 0.25 "
        "more with self-certainty, 0.30 with labels and nothing that stands out of the noise with token entropy; the "
        "instruct model gives 0.96 before training and at its best nothing that stands out of the noise with "
        "self-certainty. By majority of 4 the base model gives 0.75 before training and at its best 0.25 more with "
        "labels and nothing that stands out of the noise with self-certainty and token entropy; the instruct model "
        "gives 0.97 before training and at its best nothing that stands out of the noise with self-certainty.\n\n"
        "Of the 0.20 that base, self-certainty, gains at its best, sampled, 0.15 are answers newly right in any form "
        "and 0.05 are a matter of form; entropy fell in 3 of 4 runs, those that end well and those that do not: a "
        "model that grows surer need not grow better."
    )


def test_nothing_is_claimed_that_the_numbers_do_not_show() -> None:
    fallen = result("base, x", 0.6, 0.5, 0.4, entropy=(0.3, 0.2, 0.1))
    said = explain([fallen])
    assert "With base, x nothing was gained that stands out of the noise; entropy fell in 1 of 1 runs." in said
    assert "greedy" not in said  # a run that was not evaluated so
    assert "ajority" not in said
    held = result("base, y", 0.6, 0.8, 0.9, entropy=(0.1, 0.2, 0.3))  # rose, and became less sure
    assert explain([held, fallen]).endswith("; entropy fell in 1 of 2 runs.")


def test_a_decoding_that_some_evaluation_lacks_is_not_summarised() -> None:
    rows = [line(0, 0.6), line(10, 0.7) | greedy_line(0.7, 0.8)]
    assert {"greedy", "majority"}.isdisjoint(summarise("base, x", rows))
    assert "greedy" not in markdown([summarise("base, x", rows)])


@pytest.mark.parametrize("step", [1, 10])
def test_no_number_of_the_table_is_cut_at_80_columns(step: int) -> None:
    lines = [line(i * step, 1.0, right=1.0, formatted=1.0, entropy=10.25) | greedy_line(1.0, 1.0) for i in range(11)]
    half = {"eval/right_and_formatted": 0.5, "eval/greedy_right_and_formatted": 0.5}
    results = [summarise(variant.label, [lines[0], *(x | half for x in lines)]) for variant in VARIANTS]
    console = Console(width=80, record=True, file=StringIO())
    console.print(terminal_table(results))
    console.print("\n".join(baseline_lines(results)))
    table = console.export_text()
    assert "…" not in table
    assert max(len(row.rstrip()) for row in table.splitlines()) <= 80
    for cell, rows in (("1.00→1.00", 2), ("10.250→10.250", 1), (".75→.75", 1), (".20→.20", 1), ("1.00@0", 2)):
        assert table.count(cell) == rows * len(VARIANTS), cell
    assert table.splitlines()[-2:] == [
        "before training, base: sampled 1.00, greedy 1.00, majority of 4 1.00",
        "before training, instruct: sampled 1.00, greedy 1.00, majority of 4 1.00",
    ]


def test_the_table_has_start_best_and_last_sampled_and_greedy() -> None:
    rows = [line(0, 0.6), line(10, 0.75, formatted=0.9), line(20, 0.4, right=0.5)]
    others = [greedy_line(0.7, 0.65), greedy_line(0.5, 0.6), greedy_line(0.95, 0.6)]
    table = markdown([summarise("one", [row | other for row, other in zip(rows, others, strict=True)])])
    assert "| one | sampled | 0.600 | 0.750 @ 10 | 0.400 | 0.70 → 0.50 | 0.80 → 0.80 |" in table
    assert "| one | greedy | 0.700 | 0.950 @ 20 | 0.950 | 0.75 → 0.75 | 0.90 → 0.90 |  |  | 26 → 26 |" in table
    assert table.endswith("\n\nBefore training, one: greedy 0.70, majority of 4 0.65, sampled 0.60.\n")


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("mine")
    with pytest.raises(RlifError, match="not an empty folder"):
        quickstart(tmp_path)


def test_a_quickstart_of_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / VARIANTS[0].name).mkdir()
    (tmp_path / VARIANTS[0].name / "recipe.yaml").write_text(dump_recipe(load_recipe(find_recipe(Path("tiny")))))
    with pytest.raises(RlifError, match="a run of other settings"):
        quickstart(tmp_path, steps=7)


def test_the_seed_is_that_of_every_run_and_named_by_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run_all(recipes: Mapping[str, Recipe], out: Path, *, go_on_with: str, **_: Any) -> None:
        asked.update(seeds={recipe.seed for recipe in recipes.values()}, again=go_on_with)
        raise RlifError("enough")

    monkeypatch.setattr("rlif.experiments.quickstart.run_all", run_all)
    for seed, again in ((0, ""), (3, " --seed 3")):
        with pytest.raises(RlifError, match="enough"):
            quickstart(tmp_path, steps=7, seed=seed)
        assert asked == {"seeds": {seed}, "again": f"rlif quickstart --out {tmp_path} --steps 7{again}"}


def start(out: Path, *, evaluated: bool) -> "subprocess.Popen[str]":
    """`rlif quickstart` of two steps, in a session of its own, once its first run has begun, or been evaluated."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlif", "quickstart", "--out", str(out), "--steps", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = out / VARIANTS[0].name / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.stat().st_size >= evaluated):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.02)
    return process


def session_is_empty(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_empty(session: int) -> None:
    deadline = time.monotonic() + 60
    while not session_is_empty(session):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)


def test_stopped_by_a_signal_and_started_again(tmp_path: Path) -> None:
    """Two steps of each run: the machinery, not the finding."""
    out = tmp_path / "out"
    process = start(out, evaluated=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the parent and its workers
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines() == [
        "stopping after this step, with a checkpoint (once more: at once)",
        f"rlif: stopped; go on with: rlif quickstart --out {out} --steps 2",
    ]
    wait_until_empty(process.pid)
    begun = [variant.name for variant in VARIANTS if (out / variant.name).exists()]
    assert len(begun) <= 2  # what had not begun did not begin
    first = (out / VARIANTS[0].name / "metrics.jsonl").read_bytes()

    quickstart(out, steps=2)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(
        [*(variant.name for variant in VARIANTS), "figures"]
    )
    assert "base, self-certainty" in (out / "report.html").read_text("utf-8")
    table = (out / "table.md").read_text()
    assert all(f"| {variant.label} | {name} |" in table for variant in VARIANTS for name in ("sampled", "greedy"))
    lines = read_metrics(out / VARIANTS[0].name / "metrics.jsonl")
    assert [row["step"] for row in lines] == [0, 1, 2]
    if b'"step": 1' in first:  # it had a checkpoint: nothing of it was made again
        assert (out / VARIANTS[0].name / "metrics.jsonl").read_bytes().startswith(first)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_worker_outlives_its_parent(tmp_path: Path, signum: int, code: int) -> None:
    process = start(tmp_path / "out", evaluated=False)
    process.send_signal(signum)  # to the parent alone
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    wait_until_empty(process.pid)


def scores(out: Path, *changes: str) -> tuple[Mapping[str, float | int], ...]:
    """The evaluations of a run of recipes/tiny.yaml: the first and the last."""
    lean = ["eval.every=20", "checkpoint.every=0", "log.rollouts_every=0"]
    train(load_recipe(find_recipe(Path("tiny")), [*lean, *changes]), out)
    lines = [row for row in read_metrics(out / "metrics.jsonl") if "eval/right" in row]
    return lines[0], lines[-1]


def test_the_base_model_rises_on_its_own_certainty(tmp_path: Path) -> None:
    """A third of the way (128 problems × 4, one seed): sampled .479 → .639, greedy .531 → .898, formatted .654 → .859.
    Asked for: half of that."""
    first, last = scores(tmp_path / "run", "steps=20")
    assert first["eval/right_and_formatted"] == pytest.approx(0.479, abs=0.01)
    assert last["eval/right_and_formatted"] - first["eval/right_and_formatted"] > 0.08
    assert last["eval/greedy_right_and_formatted"] - first["eval/greedy_right_and_formatted"] > 0.18
    assert last["eval/formatted"] - first["eval/formatted"] > 0.10
    assert last["eval/entropy"] < first["eval/entropy"]
