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
    RULES,
    Watched,
    choice,
    markdown,
    read_looks,
    rules_table,
    runs_table,
    until_stopped,
)
from rlif.monitoring.record import ProbeRecord

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
        "agreement in any form": 0,  # nobody measured it: the first of equals
        "cross-entropy under the start": 20,
        "self-agreement": 40,
        "entropy, lowest": 40,
        "the last step": 40,
        "no training": 0,
    }


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
