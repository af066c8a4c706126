"""Rules of stopping on runs made by hand: what each chooses, and what the choice is worth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlif.errors import RlifError
from rlif.experiments.courses import SCORE, Course
from rlif.experiments.effects import GREEDY
from rlif.experiments.stop_rules import (
    GAINS,
    PASS,
    RULES,
    SCORES,
    Watched,
    choice,
    false_alarm,
    gains_table,
    markdown,
    read_looks,
    rules_table,
    runs_table,
    until_stopped,
    watched_runs,
)
from rlif.experiments.study import GRIDS, RUNS
from rlif.monitoring.record import ProbeRecord
from rlif.runs.layout import FINAL, LOOKS, METRICS_FILE, PROBE

N, K = 32, 4
STEPS = (0, 10, 20, 30, 40)
AGREEMENT = (0.5, 1.0, 0.75, 0.5, 0.25)
"""Highest at step 10; significantly below it from step 20 on."""


def look(step: int, agreement: float, **metrics: float) -> ProbeRecord:
    """A look at which every prompt is alike; agreement is a multiple of a quarter."""
    every = dict.fromkeys(("answered", "ended", "not_looping"), (K,) * N)
    values = {"trusted": 0.9, "constant": 0.05, "length": 100.0, "entropy": 0.5, "identical": 0.1, **metrics}
    counts = {**every, **dict.fromkeys(("agreement", "content"), (round(K * agreement),) * N)}
    named = {f"probe/{name}": value for name, value in {**values, "agreement": agreement}.items()}
    return ProbeRecord(step, K, named, counts, {"entropy": tuple(0.5 + 0.01 * np.sin(np.arange(N)))})


def looks(agreement: tuple[float, ...] = AGREEMENT) -> list[ProbeRecord]:
    return [
        look(step, share, entropy=0.5 - 0.1 * i, self_agreement=0.5 + 0.1 * i, cross_entropy=abs(step - 20) / 100)
        for i, (step, share) in enumerate(zip(STEPS, agreement, strict=True))
    ]


def course(score: tuple[float, ...], reward: str = "self_certainty", **start: float) -> Course:
    lines: list[dict[str, Any]] = [
        {"step": step, SCORE: value, GREEDY: value / 2.0} for step, value in zip(STEPS, score, strict=True)
    ]
    lines[0] |= start
    return Course("base", "base", reward, "internal", 0, "", lines)


def test_each_rule_chooses_by_its_own_number() -> None:
    records = looks()
    assert {name: rule(records) for name, rule in RULES.items()} == {
        "guards": 10,
        "agreement, never stopped": 10,
        "latest that agrees alike": 10,
        "likeliest that agrees alike": 10,
        "agreement in any form": 0,  # nobody measured it: the first of equals
        "cross-entropy under the start": 20,
        "self-agreement": 40,
        "entropy, lowest": 40,
        "the last step": 40,
        "no training": 0,
    }


@pytest.mark.parametrize(
    ("lost", "gained", "alike"), [(1, 0, False), (1, 1, True), (2, 1, True), (3, 1, False), (3, 2, True), (8, 3, False)]
)
def test_looks_agree_alike_within_a_standard_error(lost: int, gained: int, alike: bool) -> None:
    """One sample of so many prompts: with d = lost − gained the error of the sum is √(lost + gained − d²/32), so alike
    is what has d² (1 + 1/32) ≤ lost + gained."""
    assert alike == ((lost - gained) ** 2 * (1 + 1 / N) <= lost + gained)
    even = look(0, 0.5, cross_entropy=0.3)
    later = look(10, 0.5 - (lost - gained) / N / K, cross_entropy=0.2)
    agreed = (1,) * lost + (3,) * gained + (2,) * (N - lost - gained)
    later = replace(later, counts={**later.counts, "agreement": agreed, "content": agreed})
    last = look(20, 0.25, cross_entropy=0.1)
    records = [even, later, last]
    assert RULES["latest that agrees alike"](records) == RULES["likeliest that agrees alike"](records) == 10 * alike
    likelier = [replace(even, metrics={**even.metrics, "probe/cross_entropy": 0.1}), later, last]
    assert RULES["latest that agrees alike"](likelier) == 10 * alike
    assert RULES["likeliest that agrees alike"](likelier) == 0


def test_looks_before_a_renewal_agree_with_other_answers() -> None:
    before, others = look(0, 1.0), look(10, 0.5)
    renewed = replace(others, renewals=1, counts={**others.counts, "agreement": others.counts["agreement"][:-2]})
    for name in ("latest that agrees alike", "likeliest that agrees alike"):
        assert RULES[name]([before, renewed]) == 10
        none = [replace(one, counts={**one.counts, "agreement": (), "content": ()}) for one in (before, others)]
        assert RULES[name](none) in (0, 10)


def test_what_comes_after_a_stop_is_not_seen() -> None:
    again = looks((0.5, 0.75, 0.25, 0.5, 1.0))
    assert [record.step for record in until_stopped(again)] == [0, 10, 20]
    assert RULES["guards"](again) == 10
    assert RULES["agreement, never stopped"](again) == 40
    rising = looks((0.25, 0.5, 0.5, 0.75, 1.0))
    assert until_stopped(rising) == rising


def test_a_choice_is_held_against_the_oracle_the_start_and_the_best_baseline() -> None:
    run = course((0.5, 0.6, 0.7, 0.4, 0.2), **{"eval/majority_right_and_formatted": 0.65})
    found = choice(run, 10, SCORE)
    assert (found.step, found.regret) == (10, pytest.approx(0.1))
    assert (found.over_start, found.over_baselines) == (pytest.approx(0.1), pytest.approx(-0.05))
    assert choice(run, 10, GREEDY).over_start == pytest.approx(0.05)
    with pytest.raises(RlifError, match="looked at after step 15, but not evaluated"):
        choice(run, 15, SCORE)


def test_the_tables_say_means_and_the_worst_run() -> None:
    runs = [
        Watched(course((0.5, 0.6, 0.7, 0.4, 0.2)), looks()),
        Watched(course((0.5, 0.8, 0.7, 0.4, 0.1)), looks()),
    ]
    one_model = {row[0]: row[1] for row in rules_table(runs, SCORE)}
    assert one_model["guards"] == "0.050 ± –"  # two seeds of one model are no sample of models
    runs[1] = replace(runs[1], course=replace(runs[1].course, model="other"))
    table = {row[0]: row[1:] for row in rules_table(runs, SCORE)}
    assert table["guards"] == ("0.050 ± 0.050", "0.100", "+0.200 ± 0.100", "+0.100", "+0.200 ± 0.100")
    assert table["the last step"][3] == "-0.400"
    (heading, row) = runs_table([runs[0], replace(runs[1], course=replace(runs[1].course, model="base"))])
    assert len(heading) == len(row)
    assert row[:8] == ("base", "self_certainty", "20 20", "10 10", "0.500", "0.700", "0.750", "0.150")
    assert markdown([heading, row]).splitlines()[1].count("---") == len(heading)


def test_looks_are_read_from_a_run_s_folder(tmp_path: Path) -> None:
    assert read_looks(tmp_path) == []
    (tmp_path / "probe").mkdir()
    path = tmp_path / "probe" / "looks.json"
    path.write_text(json.dumps([record.as_json() for record in looks()]))
    assert read_looks(tmp_path) == looks()
    path.write_text("[{}]")
    with pytest.raises(RlifError, match=r"looks\.json: not the looks of a run"):
        read_looks(tmp_path)


def test_a_stop_is_false_where_going_on_loses_nothing() -> None:
    """Stopped after step 20, the step chosen is 10, worth .6; the last is worth more, as much within noise, or less."""

    def run(last: float, error: float = 0.03) -> Course:
        made = course((0.5, 0.6, 0.7, 0.4, last))
        return replace(made, lines=[{**line, f"{SCORE}_stderr": error} for line in made.lines])

    assert false_alarm(run(0.7), looks())
    assert false_alarm(run(0.52), looks())  # .08 less, where two standard errors of the difference are .085
    assert not false_alarm(run(0.51), looks())
    assert not false_alarm(run(0.7), looks((0.25, 0.5, 0.5, 0.75, 1.0))), "never stopped"


def test_gains_are_told_of_start_best_last_and_choice_for_each_setting() -> None:
    runs = [
        Watched(course((0.5, 0.6, 0.7, 0.4, 0.2), **{"eval/majority_right_and_formatted": 0.65}), looks()),
        Watched(course((0.5, 0.8, 0.7, 0.4, 0.1), **{"eval/majority_right_and_formatted": 0.65}), looks()),
    ]
    runs.append(replace(runs[1], course=replace(runs[1].course, setting="fixed KL")))
    heading, plain, changed = gains_table(runs, SCORE)
    assert heading == GAINS
    # best .7 and .8, last .2 and .1, chosen .6 and .8; regret .1 and 0.
    told = ("0.500", "+0.250", "-0.350", "+0.200", "+0.050", "0.050", "2", "0")
    assert plain == ("base", "self_certainty", "none", "2", *told)
    assert changed[:5] == ("base", "self_certainty", "fixed KL", "1", "0.500")
    (_, greedy) = gains_table(runs[:1], GREEDY)
    assert greedy[4:7] == ("0.250", "+0.100", "-0.150")


def test_pass_at_k_has_its_own_start_for_a_baseline() -> None:
    score, baselines = next((key, free) for key, free in SCORES.values() if key == PASS)
    made = course((0.5, 0.6, 0.7, 0.4, 0.2))
    passes = (0.9, 0.8, 0.8, 0.5, 0.3)
    made = replace(made, lines=[{**line, PASS: p} for line, p in zip(made.lines, passes, strict=True)])
    found = choice(made, 10, score, baselines)
    assert (found.over_start, found.over_baselines) == (pytest.approx(-0.1), pytest.approx(-0.1))


def test_a_run_of_two_grids_counts_once_and_settings_are_kept_apart(tmp_path: Path) -> None:
    def cell(name: str, **axes: Any) -> dict[str, Any]:
        axes = {"model": "r0", "reward": "self_certainty", "seed": 0, **axes}
        return {"cell": name, "axes": axes, "model_kind": "base", "merge_ratio": None, "reward_kind": "internal"}

    grids = {
        "first": [cell("a")],
        "second": [cell("a", setting="none"), cell("b", setting="fixed KL")],
    }
    (tmp_path / GRIDS).mkdir()
    for name, entries in grids.items():
        (tmp_path / GRIDS / f"{name}.json").write_text(json.dumps({"cells": entries}))
    for name in ("a", "b"):
        run = tmp_path / RUNS / name
        for folder in (FINAL, PROBE):
            (run / folder).mkdir(parents=True)
        lines = [{"step": step, SCORE: 0.5} for step in STEPS]
        (run / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / PROBE / LOOKS).write_text(json.dumps([record.as_json() for record in looks()]))
    found = watched_runs(tmp_path)
    assert [(run.course.setting, run.course.lines[0]["cell"]) for run in found] == [("", "a"), ("fixed KL", "b")]
    assert [len(run.course.lines) for run in found] == [5, 5]
