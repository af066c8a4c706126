"""Diagnosis: a policy made up for every verdict, numbers by hand, what a calibration may and may not claim."""

import dataclasses
import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml

import rlif
from rlif.cli import main
from rlif.cli.diagnose import view, write
from rlif.config import FileTask, PolicyConfig
from rlif.errors import RlifError
from rlif.experiments.calibrate import Run, brought, calibrate, check, chosen_line, usable_runs
from rlif.experiments.calibrate import _main as calibrating
from rlif.experiments.calibration import Calibration, Case, Features, fit, label_of, predict, read_calibration, together
from rlif.experiments.diagnose import Diagnosis, diagnose, rewards_named
from rlif.experiments.subject import DiagnoseSettings, Subject, settings_of, subject_of
from rlif.experiments.untrained import Untrained, look_at
from rlif.experiments.verdict import MARGIN, VERDICTS, _listed
from rlif.experiments.ways import share
from rlif.recipes import dump_recipe, find_recipe, load_recipe
from rlif.rng import Key
from rlif.types import Problem, Sampling
from rlif.utils.interrupts import STOP_SIGNALS
from rlif.utils.terminal import Console
from scripted import Says, Scripted

Command = Callable[..., tuple[Any, str, str]]
"""Arguments in; exit code, stdout and stderr out."""
N = 16
NO_CALIBRATION = Calibration()


def subject(problems: Sequence[Problem]) -> Subject:
    """What scripts say is graded once: they say the same again and again."""
    task = rlif.task_of(problems, format="boxed", name="sums")
    task.grade = functools.cache(task.grade)
    return Subject(task, "plain", None)


def yes(i: int) -> str:
    return rf"so it is \boxed{{{2 * i + 100}}}"


def no(i: int) -> str:
    return rf"so it is \boxed{{{2 * i + 101}}}"


def loose(i: int) -> str:
    return f"so it is {2 * i + 100}."


DRAWN: dict[tuple[Says, int, float], Untrained] = {}


def diagnosed(says: Says, n: int = N, calibration: Calibration = NO_CALIBRATION, **settings: Any) -> Diagnosis:
    """``says`` is told the prompt's place in the task, not among those that were drawn. What is drawn is kept: it
    depends on the temperature and on no other of these settings."""
    one = subject([Problem(f"p{i}", f"{i} and {i}", "0") for i in range(n)])  # labels that would show if they were read
    asked = DiagnoseSettings(limit=n, **settings)
    engine = Scripted(says)
    order = [int(prompt.id.removeprefix("p")) for prompt in one.prompts(engine.policy, asked)]
    engine.says = lambda i, j, sampling, key: says(order[i], j, sampling, key)

    def drawn(*args: Any, **options: Any) -> Untrained:
        if (key := (says, n, asked.temperature)) not in DRAWN:
            DRAWN[key] = look_at(*args, **options)
        return DRAWN[key]

    with patch("rlif.experiments.diagnose.look_at", drawn):
        return diagnose(engine, one, asked, calibration=calibration)


def sharp(i: int, j: int, sampling: Sampling, key: Key) -> str:
    """Always the same, right, in the asked form."""
    return yes(i)


def noisy_when_sampled(i: int, j: int, sampling: Sampling, key: Key) -> str:
    """Half of the samples slip, each in its own way; nothing does at a lower temperature."""
    return yes(i) if sampling.temperature < 1.0 or j % 2 else rf"\boxed{{{1000 + 7 * j + i}}}"


def misled_when_sharpened(i: int, j: int, sampling: Sampling, key: Key) -> str:
    """On 7 of 16 prompts the sharpest path is another answer than that of nearly all samples."""
    return no(i) if i % 16 < 7 and (sampling.temperature < 1.0 or j % 8 == 7) else yes(i)


def half_in_form(i: int, j: int, sampling: Sampling, key: Key) -> str:
    """The same answer always, boxed on every second prompt."""
    return yes(i) if i % 2 else loose(i)


def test_a_model_that_says_the_same_at_every_temperature_has_little_to_win() -> None:
    found = diagnosed(sharp)
    assert found.verdict == "little to win"
    assert found.untrained.trust["trusted"] == 1.0
    assert "leaves 0 %" in found.reasons[0]


def test_slips_that_a_lower_temperature_takes_away_need_no_training() -> None:
    found = diagnosed(noisy_when_sampled)
    assert found.verdict == "just lower the temperature"
    assert "+50 points" in found.reasons[0]
    assert diagnosed(noisy_when_sampled, temperature=0.0).verdict == "little to win"


def test_a_model_whose_sharpest_path_is_wrong_is_harmed() -> None:
    found = diagnosed(misled_when_sharpened)
    assert found.verdict == "will do harm"
    assert found.untrained.trust["disputed"] == pytest.approx(7 / 16)
    assert diagnosed(misled_when_sharpened, reward="token_entropy").verdict == "will do harm"
    # Answers that agree are no confidence, and a greedy decoder has nothing left to sharpen.
    assert diagnosed(misled_when_sharpened, reward="frozen_consensus").verdict != "will do harm"
    assert diagnosed(misled_when_sharpened, temperature=0.0).verdict != "will do harm"


def test_better_form_at_a_lower_temperature_may_make_up_for_what_is_lost() -> None:
    def says(i: int, j: int, sampling: Sampling, key: Key) -> str:
        said = misled_when_sharpened(i, j, sampling, key)
        return said if sampling.temperature < 1.0 or i % 4 else loose(i)

    def in_no_form(i: int, j: int, sampling: Sampling, key: Key) -> str:
        return misled_when_sharpened(i, j, sampling, key) if sampling.temperature < 1.0 else loose(i)

    assert diagnosed(says).verdict == "will do harm"
    assert diagnosed(in_no_form).verdict != "will do harm"


def test_room_without_a_calibration_cannot_tell() -> None:
    found = diagnosed(half_in_form)
    assert found.verdict == "cannot tell"
    assert "leaves 50 %" in found.reasons[0]
    assert "stands on no run" in found.reasons[0]
    assert found.untrained.formatted == {"sampled": 0.5, "low": 0.5, "greedy": 0.5}
    assert share(found.untrained.ways["temperature_1"].agrees) == 1.0


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (lambda i, j, sampling, key: f"a poem of {chr(97 + i % 26)} and {chr(97 + j)}", "could be read"),
        (lambda i, j, sampling, key: f"let me think {i}~", "of the samples are cut off"),
        (lambda i, j, sampling, key: rf"\boxed{{{hash((i, j, sampling.temperature)) % 10**6}}}", "no settled answers"),
        (lambda i, j, sampling, key: no(i) if i < 9 and sampling.temperature < 1.0 else yes(i), "of two minds"),
        (lambda i, j, sampling, key: r"\boxed{5}", "one and the same answer"),
    ],
)
def test_a_model_without_a_reference_to_trust_cannot_be_told(says: Says, why: str) -> None:
    found = diagnosed(says)
    assert found.verdict == "cannot tell"
    assert why in found.reasons[0]
    json.dumps(found.as_json(), allow_nan=False)


def test_few_prompts_cannot_tell() -> None:
    assert diagnosed(sharp, 8).verdict == "cannot tell"
    assert "8 prompts are too few" in diagnosed(sharp, 8).reasons[0]


# --- with a calibration ---------------------------------------------------------------------------------------------


def case(model: str, own: float, gain: float, **fields: Any) -> Case:
    """A run of a model that agrees with its frozen answers as much sampled as it is decoded."""
    given: dict[str, Any] = {
        "model": model,
        "task": "sums",
        "reward": "self_certainty",
        "seed": 0,
        "decoding": "sampled",
        "prompts": N,
        "features": Features(own, own, trusted=1.0, disputed=0.0, entropy=0.5),
        "step": 20,
        "gain": gain,
        "change": gain,
        "lower": 0.0,
    }
    return Case(**given | fields)


def calibrated(closes: float, *, noise: float = 0.0, reward: str = "self_certainty") -> Calibration:
    """Four models of which training closes a share of what samples disagree on, sampled and greedy, give or take the
    noise."""
    owns = {"a": 0.3, "b": 0.5, "c": 0.7, "d": 0.9}
    cases = tuple(
        case(model, own, closes * (1.0 - own) + sign * noise, reward=reward, decoding=decoding)
        for decoding in ("sampled", "greedy")
        for sign, (model, own) in zip((1, -1, 1, -1), owns.items(), strict=True)
    )
    return Calibration(cases, {reward: {"steps": 40, "reward": [{"name": reward.split()[0]}], "grpo": {"lr": 1e-4}}})


def test_training_is_worth_it_where_it_beats_every_baseline() -> None:
    found = diagnosed(half_in_form, calibration=calibrated(0.8, noise=0.02))
    assert found.verdict == "worth training"
    prediction = found.prediction
    assert not isinstance(prediction, str)
    assert prediction.gain == pytest.approx(0.8 * 0.5, abs=0.02)
    assert prediction.low < prediction.gain < prediction.high
    assert any("the prediction stands on 4 runs of 4 models (a, b, c, d)" in reason for reason in found.reasons)


def test_names_are_listed_with_what_they_share_said_once() -> None:
    assert _listed(["merge of a and b at 0", "merge of a and b at 0.5"]) == "merge of a and b at 0, 0.5"
    assert _listed(["tiny-base", "tiny-instruct"]) == "tiny-base, tiny-instruct"
    assert _listed(["merge of a and b at 0"]) == "merge of a and b at 0"


@pytest.mark.parametrize("temperature", [0.0, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("says", [sharp, noisy_when_sampled])
def test_it_is_never_worth_it_where_a_baseline_already_gives_the_gain(says: Says, temperature: float) -> None:
    """Training would give all that samples disagree on, with no error at all; greedy answers and votes already do."""
    found = diagnosed(says, calibration=calibrated(1.0), temperature=temperature)
    assert found.verdict in ("little to win", "just lower the temperature", "cannot tell")
    prediction = found.prediction
    assert isinstance(prediction, str) or prediction.gain <= 1e-9


def test_a_gain_that_may_be_nothing_cannot_be_told() -> None:
    found = diagnosed(half_in_form, calibration=calibrated(0.2, noise=0.1))
    assert found.verdict == "cannot tell"
    assert "may be nothing" in found.reasons[0]


def test_little_is_predicted_to_be_won() -> None:
    assert diagnosed(half_in_form, calibration=calibrated(0.05)).verdict == "little to win"


def test_a_reward_that_made_others_worse_does_harm() -> None:
    found = diagnosed(half_in_form, calibration=calibrated(-0.3, noise=0.02))
    assert found.verdict == "will do harm"
    assert "self_certainty is predicted" in found.reasons[0]


def test_a_model_unlike_those_of_the_calibration_is_told_so() -> None:
    known = calibrated(0.8)
    sharper = tuple(dataclasses.replace(one, features=one.features._replace(entropy=0.05)) for one in known.cases)
    found = diagnosed(half_in_form, calibration=dataclasses.replace(known, cases=sharper))
    assert found.verdict == "cannot tell"
    assert "initial entropy (nats) is 0.5, that of the runs 0.05 to 0.05" in found.reasons[0]
    nearly_solved = tuple(
        dataclasses.replace(one, features=one.features._replace(own=0.9 + one.features.own / 20)) for one in known.cases
    )
    found = diagnosed(half_in_form, calibration=dataclasses.replace(known, cases=nearly_solved))
    assert "agreement with its own frozen answers is 0.5" in found.reasons[0]


def test_a_share_of_few_prompts_that_may_lie_within_the_runs_is_said_to_be_of_few() -> None:
    settled = Features(0.5, 0.5, trusted=0.8, disputed=0.0, entropy=0.5)
    alike = fit([case(model, 0.5, 0.1, features=settled) for model in "ab"])
    one = settled._replace(trusted=0.62)  # lower than .75 by .13; the error of 16 prompts is .12, of 640 .02
    assert alike.unlike(one, 16) == (
        "the share of trusted answers is 0.62 ± 0.12 on 16 prompts, that of the runs 0.8 to 0.8; more prompts may tell"
    )
    assert alike.unlike(one, 640) == "the share of trusted answers is 0.62, that of the runs 0.8 to 0.8"
    assert alike.unlike(one._replace(trusted=0.76), 640) == ""


def test_three_models_are_no_calibration() -> None:
    few = dataclasses.replace(calibrated(0.8), cases=tuple(c for c in calibrated(0.8).cases if c.model in "abc"))
    assert "fewer than 4 models" in diagnosed(half_in_form, calibration=few).reasons[0]


def test_the_fit_is_least_squares_and_its_error_that_on_models_left_out() -> None:
    """Held against numpy's, on one row a model (the mean of its seeds)."""
    random = np.random.default_rng(0)
    cases, rows = [], []
    for model in "abcde":
        own = random.uniform(0.2, 0.6)
        gains = [0.6 * (1 - own) + random.normal(0, 0.05) for _ in range(3)]
        cases += [case(model, own, gain, seed=seed, change=2 * gain) for seed, gain in enumerate(gains)]
        rows.append((own, np.mean(gains)))

    def solved(of: Sequence[tuple[float, float]]) -> tuple[float, float]:
        own, gain = np.array(of).T
        slope, intercept = np.polyfit(own, gain, 1)
        return float(slope), float(intercept)

    found = fit(cases)
    assert found.gain == pytest.approx(solved(rows))
    assert found.change == pytest.approx(tuple(2 * value for value in solved(rows)))
    errors = []
    for k, model in enumerate("abcde"):
        slope, intercept = solved(rows[:k] + rows[k + 1 :])
        errors += [abs(one.gain - intercept - slope * one.features.own) for one in cases if one.model == model]
    assert found.error == pytest.approx(max(errors))


def test_models_that_agree_alike_have_a_mean_and_no_slope() -> None:
    gain = fit([case(model, 0.5, share) for model, share in zip("abc", (0.9, 0.0, 0.3), strict=True)]).gain
    assert (gain.slope, gain.intercept) == (0.0, pytest.approx(0.4))


def test_no_gain_is_predicted_beyond_what_the_best_baseline_leaves() -> None:
    """Half of the samples are in form, all agree: .5 is left, whatever runs gained elsewhere."""
    found = diagnosed(half_in_form, calibration=calibrated(1.6)).prediction
    assert not isinstance(found, str)
    assert (found.gain, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.change == pytest.approx(0.8)


def test_between_two_temperatures_the_interval_spans_both() -> None:
    greedy = [dataclasses.replace(one, gain=0.2 * (1 - one.features.own)) for one in calibrated(0).cases]
    known = calibrated(0.8)
    mixed = tuple(low if low.decoding == "greedy" else high for low, high in zip(greedy, known.cases, strict=True))
    known = dataclasses.replace(known, cases=mixed)
    untrained = diagnosed(half_in_form, temperature=0.7).untrained
    found = predict(known, untrained, 0.7)
    assert not isinstance(found, str)
    assert (found.low, found.gain, found.high) == pytest.approx((0.1, 0.25, 0.4))
    assert predict(known, untrained, 1.3) == "no run was evaluated above temperature 1"


def test_the_reward_with_the_surest_gain_is_recommended_unless_one_is_asked_for() -> None:
    best, other = calibrated(0.8, reward="majority_vote"), calibrated(0.6)
    known = Calibration(other.cases + best.cases, {**other.recipes, **best.recipes})
    found = diagnosed(half_in_form, calibration=known)
    assert not isinstance(found.prediction, str)
    assert found.prediction.reward == "majority_vote"
    asked = diagnosed(half_in_form, calibration=known, reward="self_certainty").prediction
    assert not isinstance(asked, str)
    assert asked.reward == "self_certainty"
    assert "no run was trained on length" in diagnosed(half_in_form, calibration=known, reward="length").reasons[0]


def test_fewer_prompts_than_the_calibration_s_make_a_wider_interval() -> None:
    known = calibrated(0.8, noise=0.02)
    on_more = tuple(dataclasses.replace(one, prompts=4 * N) for one in known.cases)
    found = diagnosed(half_in_form, calibration=known).prediction
    wide = diagnosed(half_in_form, calibration=dataclasses.replace(known, cases=on_more)).prediction
    assert not isinstance(found, str)
    assert not isinstance(wide, str)
    assert wide.high - wide.gain == pytest.approx(2 * (found.high - found.gain))


def test_the_shipped_calibration_says_what_it_stands_on_and_its_fits_are_those_of_its_cases() -> None:
    shipped = read_calibration()
    written = json.loads((Path(rlif.__file__).parent / "experiments" / "calibration.json").read_text("utf-8"))
    assert shipped.as_json() == written
    assert set(written["stands_on"]) == {"runs", "models", "tasks", "rewards", "seeds", "date", "rlif"}


def test_a_calibration_survives_its_file_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    known = dataclasses.replace(calibrated(0.7, noise=0.01), date="2026-01-01", rlif="0")
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(known.as_json()), "utf-8")
    assert read_calibration(path) == known
    for text, said in (
        ('{"format": 2}', r"no calibration \(KeyError\); make one with"),
        ('{"format": 1}', "a calibration of format 1, not 2; make it anew"),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(RlifError, match=said):
            read_calibration(path)


# --- numbers --------------------------------------------------------------------------------------------------------


def test_numbers_by_hand() -> None:
    """Sampled: every second answer slips. Low and greedy: right, boxed on every second prompt."""

    def says(i: int, j: int, sampling: Sampling, key: Key) -> str:
        return (
            noisy_when_sampled(i, j, sampling, key)
            if sampling.temperature == 1.0
            else half_in_form(i, j, sampling, key)
        )

    found = diagnosed(says).as_json()["numbers"]
    ways = {name: (way["agrees"]["value"], way["agrees_in_form"]["value"]) for name, way in found["ways"].items()}
    assert ways["temperature_1"] == (0.5, 0.5)
    assert ways["low_temperature"] == ways["greedy"] == (1.0, 0.5)
    assert ways["majority"] == (1.0, 1.0)
    assert found["headroom"]["over_best"] == {"best": "majority", "value": 0.0, "stderr": 0.0}
    assert found["headroom"]["sharpening"]["value"] == 0.5
    assert found["same_answer"]["low_temperature~greedy"] == 1.0
    assert found["same_answer"]["temperature_1~majority"] == 0.5
    assert found["formatted"] == {"sampled": 1.0, "low": 0.5, "greedy": 0.5}
    assert found["entropy"]["states"]["greedy"]["value"] == pytest.approx(0.5)
    tokens = {name: way["tokens"] for name, way in found["ways"].items()}
    sampled = [len(says(i, j, Sampling(), Key(0, 0))) for i in range(N) for j in range(16)]
    assert tokens["majority"] == pytest.approx(16 * np.mean(sampled))
    assert tokens["greedy"] == pytest.approx(np.mean([len(yes(i) if i % 2 else loose(i)) for i in range(N)]))


def test_one_answer_as_the_user_decodes_is_drawn_apart_where_it_has_to_be() -> None:
    def says(i: int, j: int, sampling: Sampling, key: Key) -> str:
        return no(i) if sampling.temperature == 0.7 and i % 4 == 0 else yes(i)

    assert diagnosed(says, temperature=0.7).untrained.own == "own"
    assert share(diagnosed(says, temperature=0.7).untrained.ways["own"].in_form) == 0.75
    owns = {t: diagnosed(says, temperature=t).untrained.own for t in (0.0, 0.4, 1.0)}
    assert owns == {0.0: "greedy", 0.4: "low_temperature", 1.0: "temperature_1"}


def test_labels_change_no_verdict_and_stand_beside_it() -> None:
    """Right on a third of the prompts, greedily on none of the disputed ones."""
    problems = [Problem(f"p{i}", f"{i} and {i}", str(2 * i + 100 + (i % 3 > 0) * 50)) for i in range(30)]
    problems += [Problem("p30", "30 and 30"), Problem("p31", "31 and 31")]  # without one
    one = subject(problems)
    engine = Scripted(sharp)
    order = [int(p.id.removeprefix("p")) for p in one.prompts(engine.policy, DiagnoseSettings(limit=32))]
    engine.says = lambda i, j, sampling, key: misled_when_sharpened(order[i], j, sampling, key)
    with_labels, without = (
        diagnose(engine, one, DiagnoseSettings(limit=32, labels=labels), calibration=NO_CALIBRATION).as_json()
        for labels in (True, False)
    )
    truth = with_labels.pop("labels")
    with_labels["settings"].pop("labels")
    without["settings"].pop("labels")
    assert without.pop("labels") is None
    assert with_labels == without
    assert truth["prompts"] == 30
    assert truth["ways"]["majority"]["right"]["value"] == pytest.approx(10 / 30)
    assert truth["ways"]["greedy"]["right"]["value"] == pytest.approx(5 / 30)  # 15, 18, 21, 24, 27
    assert truth["reference_right"] == pytest.approx(10 / 30)
    assert truth["greedy_mistakes"]["disputed"] == {
        "marked": 14,
        "greedy_wrong": 25,
        "both": 14,
        "precision": 1.0,
        "recall": pytest.approx(14 / 25),
    }


def test_prompts_without_a_significant_vote_are_in_doubt_beside_the_disputed_ones() -> None:
    """Samples are split on every fourth prompt, and its greedy answer is wrong; all sources give the same winner."""

    def says(i: int, j: int, sampling: Sampling, key: Key) -> str:
        return no(i) if i % 4 == 0 and (j % 2 == 0 or sampling.temperature == 0.0) else yes(i)

    one = subject([Problem(f"p{i}", f"{i}", str(2 * i + 100)) for i in range(N)])
    engine = Scripted(says)
    order = [int(p.id.removeprefix("p")) for p in one.prompts(engine.policy, DiagnoseSettings(limit=N))]
    engine.says = lambda i, j, sampling, key: says(order[i], j, sampling, key)
    found = diagnose(engine, one, DiagnoseSettings(limit=N, labels=True), calibration=NO_CALIBRATION).as_json()
    assert found["numbers"]["trust"]["disputed"] == 0.0
    assert found["numbers"]["trust"]["in_doubt"] == 0.25
    mistakes = found["labels"]["greedy_mistakes"]
    assert (mistakes["disputed"]["recall"], mistakes["disputed"]["precision"]) == (0.0, None)
    assert (mistakes["in_doubt"]["marked"], mistakes["in_doubt"]["recall"]) == (N // 4, 1.0)
    assert mistakes["in_doubt"]["precision"] == 1.0


def test_labels_that_are_not_there_are_asked_for_in_vain() -> None:
    one = subject([Problem("p0", "0"), Problem("p1", "1")])
    with pytest.raises(RlifError, match=r"^labels: no prompt has an answer; leave it out"):
        diagnose(Scripted(sharp), one, DiagnoseSettings(labels=True), calibration=NO_CALIBRATION)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward": "self_certanty"}, "did you mean self_certainty"),
        ({"reward": "verifiable"}, "reward: verifiable is trained on labels"),
    ],
)
def test_a_reward_that_cannot_be_judged_is_refused(settings: Mapping[str, Any], said: str) -> None:
    with pytest.raises(RlifError, match=said):
        diagnosed(sharp, **settings)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"low_temperature": 1.0}, {"samples": 2}, {"limit": 0}, {"seed": -1}]
)
def test_settings_that_ask_nothing_name_themselves(wrong: Mapping[str, Any]) -> None:
    with pytest.raises(RlifError, match=f"^{next(iter(wrong))}: "):
        settings_of(**wrong)


# --- calibrating ----------------------------------------------------------------------------------------------------


def study(folder: Path, courses: Mapping[tuple[str, str, int], Sequence[Mapping[str, float]]]) -> Path:
    """A study's folder with finished runs: (model, reward, seed) → the lines of its log."""
    entries = []
    for (model, reward, seed), lines in courses.items():
        name = f"{model}-{reward}-{seed}"
        run = folder / "runs" / name
        (run / "final").mkdir(parents=True)
        overrides = [f"policy.model={model}", f"reward={reward}", f"seed={seed}"]
        (run / "recipe.yaml").write_text(dump_recipe(load_recipe(find_recipe(Path("tiny")), overrides)), "utf-8")
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        axes = {"model": model, "reward": reward, "seed": seed}
        kinds = {"model_kind": "base", "merge_ratio": None, "reward_kind": "internal"}
        entries.append({"cell": name, "axes": axes, **kinds})
    (folder / "grids").mkdir(parents=True)
    (folder / "grids" / "made-up.json").write_text(json.dumps({"grid": {}, "cells": entries}), "utf-8")
    return folder


def line(step: int, agreement: float | None, both: float, greedy: float, majority: float = 0.0) -> dict[str, float]:
    scores = {"": both, "greedy_": greedy, "majority_": majority}
    found = {f"eval/{prefix}right_and_formatted": value for prefix, value in scores.items()}
    return {"step": step, **found, **({} if agreement is None else {"probe/agreement": agreement})}


RISE_AND_FALL = [line(0, 0.5, 0.4, 0.5, 0.6), line(10, 0.8, 0.7, 0.9), line(20, 0.7, 0.8, 0.8), line(30, 0.2, 0.1, 0.1)]


def half() -> Untrained:
    return diagnosed(half_in_form).untrained


def test_a_run_is_worth_what_its_checkpoint_of_highest_agreement_gains_over_the_best_baseline(tmp_path: Path) -> None:
    never_looked = [line(0, None, 0.4, 0.5, 0.6), line(10, None, 0.7, 0.9)]
    runs = usable_runs(
        [
            study(
                tmp_path,
                {
                    ("tiny-base", "self_certainty", 0): RISE_AND_FALL,
                    ("tiny-base", "verifiable", 0): RISE_AND_FALL,  # labels
                    ("tiny-base", "random", 0): RISE_AND_FALL,  # a control
                    ("tiny-base", "token_entropy", 0): never_looked,
                },
            )
        ]
    )
    assert [run.recipe.reward[0].name for run in runs] == ["self_certainty"]
    found = calibrate(runs, {runs[0].start: half()}, {runs[0].start: 0.55})
    sampled, greedy = found.cases
    assert (sampled.decoding, sampled.step, greedy.decoding) == ("sampled", 10, "greedy")
    assert sampled.gain == pytest.approx(0.7 - 0.6)
    assert sampled.change == pytest.approx(0.7 - 0.4)
    assert sampled.lower == pytest.approx(0.55 - 0.4)  # the low temperature is worth more than greedy answers
    assert greedy.gain == pytest.approx(0.9 - 0.6)
    assert greedy.change == pytest.approx(0.9 - 0.5)
    assert greedy.lower == 0.0
    assert sampled.features.own == sampled.features.sampled == 0.5
    better = calibrate(runs, {runs[0].start: half()}, {runs[0].start: 0.65}).cases
    assert [one.gain for one in better] == pytest.approx([0.05, 0.25])
    assert found.stands_on()["runs"] == 1
    assert found.recipes["self_certainty"]["grpo"]["lr"] == 1e-4


def test_equal_agreement_is_decided_by_cross_entropy() -> None:
    lines = [
        {**line(step, 0.8, 0.5, 0.5), "probe/cross_entropy": nats} for step, nats in ((0, 0.3), (10, 0.1), (20, 0.2))
    ]
    assert chosen_line(lines)["step"] == 10
    assert chosen_line([line(0, None, 1, 1), line(10, 0.1, 0, 0)])["step"] == 10


def test_runs_of_other_settings_than_most_are_left_out(tmp_path: Path) -> None:
    folder = study(tmp_path, {("tiny-base", "self_certainty", seed): RISE_AND_FALL for seed in range(3)})
    path = folder / "runs" / "tiny-base-self_certainty-2" / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text("utf-8"))
    recipe["grpo"]["lr"] = 1e-3
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    assert sorted(run.recipe.seed for run in usable_runs([folder])) == [0, 1]


def test_a_study_that_nobody_looked_at_is_no_calibration(tmp_path: Path) -> None:
    folder = study(tmp_path, {("tiny-base", "self_certainty", 0): [line(0, None, 0.4, 0.5)]})
    with pytest.raises(RlifError, match="no finished run was looked at by a probe and evaluated"):
        usable_runs([folder])


def test_the_program_writes_a_calibration_that_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four models, told apart by name alone; the check has three to judge the fourth by."""
    models = ("tiny-base", "tiny-instruct", "smollm2-135m-instruct", "gemma3-270m")
    folder = study(tmp_path / "study", {(model, "self_certainty", 0): RISE_AND_FALL for model in models})
    monkeypatch.setattr("rlif.experiments.calibrate.measure_untrained", lambda recipe: half())
    monkeypatch.setattr("rlif.experiments.calibrate.measure_low", lambda recipe: 0.5)
    out = tmp_path / "calibration.json"
    monkeypatch.setattr(sys, "argv", ["calibrate", str(folder), "--out", str(out), "--check"])
    calibrating()
    said = capsys.readouterr().out
    found = read_calibration(out)
    assert found.stands_on()["models"] == sorted(models)
    assert found.rlif == rlif.__version__
    assert "sampled, self_certainty: gain +0.10 +0.00 × sampled agreement, off by 0.000 at most" in said
    assert "8 of 8 verdicts on a reward that was named are what the runs brought" in said
    assert "8 of 8 verdicts on the best by calibration are what the runs brought" in said


def test_the_check_leaves_the_model_out_that_it_judges() -> None:
    """Three models alike gain .4; a fourth, of which its own runs would tell better, gains nothing."""
    gains = {"a": 0.4, "b": 0.4, "c": 0.4, "d": 0.0}
    known = Calibration(tuple(case(model, 0.5, gain) for model, gain in gains.items()))
    checked = list(check(known, {(model, "sums"): half() for model in gains}))
    assert len(checked) == 8, "on the reward that is named, and on the best"
    found = {one.start[0]: one for one in checked if not one.chosen}
    assert found["d"].predicted == pytest.approx(0.4)
    assert found["a"].predicted == pytest.approx(0.8 / 3)
    assert (found["d"].verdict, found["d"].brought) == ("worth training", "little to win")


def test_the_check_asks_of_the_reward_that_the_other_models_gained_most_by() -> None:
    """Votes gain .4 elsewhere and .3 on d, confidence .1 everywhere: d is told to train on votes, which bring .3."""
    cases = [case(model, 0.5, 0.1) for model in "abcd"]
    cases += [case(model, 0.5, 0.3 if model == "d" else 0.4, reward="majority_vote") for model in "abcd"]
    checked = check(Calibration(tuple(cases)), {(model, "sums"): half() for model in "abcd"})
    (found,) = (one for one in checked if one.start[0] == "d" and one.chosen)
    assert (found.reward, found.verdict, found.brought) == ("majority_vote", "worth training", "worth training")
    assert (found.predicted, found.gain) == (pytest.approx(0.4), pytest.approx(0.3))


@pytest.mark.parametrize(
    ("gain", "change", "lower", "verdict"),
    [
        (0.2, 0.4, 0.1, "worth training"),
        (0.0, 0.2, 0.2, "just lower the temperature"),
        (0.0, 0.0, 0.0, "little to win"),
        (-0.3, -0.1, 0.2, "will do harm"),
    ],
)
def test_what_runs_brought_in_the_words_of_a_verdict(gain: float, change: float, lower: float, verdict: str) -> None:
    assert verdict in VERDICTS
    assert MARGIN == 0.05
    assert brought([case("a", 0.5, gain, change=change, lower=lower)]) == verdict
    assert Run(load_recipe(find_recipe(Path("tiny"))), RISE_AND_FALL).start == ("tiny-base", "arithmetic")


# --- the shipped models, and the command ----------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`rlif diagnose` in this process; its signal handlers are taken back."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlif", "diagnose", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code, *capfd.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_tiny_base_model_end_to_end(tmp_path: Path, command: Command) -> None:
    """16 sums: JSON on the screen and in the folder, a picture, a recipe that can be trained."""
    out = tmp_path / "out"
    asked = ("tiny-base", "--task", "arithmetic", "--limit", "16", "--samples", "6", "--labels", "--json")
    code, screen, _ = command(*asked, "--dtype", "float32", "--out", str(out))
    assert not code
    said = json.loads(screen)
    assert said == json.loads((out / "diagnosis.json").read_text("utf-8"))
    assert said["verdict"] in VERDICTS
    assert said["numbers"]["entropy"]["dtype"] == "float32"
    assert 0.03 < said["numbers"]["entropy"]["states"]["sampled"]["value"] < 0.2
    assert said["labels"]["ways"]["temperature_1"]["right"]["value"] > 0.3
    assert (out / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    recipe = load_recipe(out / "recipe.yaml")
    assert (recipe.policy.model, recipe.task.name, recipe.policy.dtype) == ("tiny-base", "arithmetic", "float32")


def test_what_is_piped_is_neither_wrapped_nor_padded_and_names_the_file(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "my sums.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+1=?"}) + "\n" for n in range(10, 15)))
    asked = ("--question", "question", "--samples", "4", "--max-new-tokens", "8", "--dtype", "float32")
    code, screen, said = command("tiny-base", "--prompts", str(path), *asked)
    assert not code, said
    lines = screen.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line == "tiny-base, my sums.jsonl, 5 prompts"]
    assert not [line for line in lines if line != line.rstrip()]
    below = lines[head + 2 : lines.index("", head)]
    assert below
    assert all(line.startswith("  - ") for line in below), "a reason a line, however long"


def test_tables_are_80_columns_wide(tmp_path: Path) -> None:
    one = subject([Problem(f"p{i}", f"{i} and {i}", str(i)) for i in range(N)])
    engine = Scripted(noisy_when_sampled)
    found = diagnose(engine, one, DiagnoseSettings(labels=True, temperature=0.7), calibration=calibrated(0.8))
    console = Console(width=80, record=True, file=StringIO())
    console.print(view(found))
    screen = console.export_text()
    assert max(map(len, screen.splitlines())) <= 80
    assert f"verdict: {found.verdict}" in screen
    assert "as you decode *" in screen
    assert "recipe:" not in screen  # where no training is advised
    assert len(set(found.reasons)) == len(found.reasons)
    assert not [reason for reason in found.reasons if "gives +" in reason][1:]  # said once
    assert [path.name for path in write(found, tmp_path / "out")] == ["diagnosis.json", "diagnosis.png"]


def test_what_nothing_can_fill_is_left_out_and_why_is_said_once() -> None:
    """Not one answer can be read: nothing was frozen. Where answers are all alike there is no standard error."""

    def screen(*args: Any) -> str:
        console = Console(width=80, record=True, file=StringIO())
        console.print(view(diagnosed(*args)))
        return console.export_text().partition("\nentropy")[0]

    shown = screen(lambda i, j, sampling, key: "no idea")
    assert "no prompt has a frozen answer: there is nothing to agree with" in shown
    assert "–" not in shown
    for absent in ("agrees", "in form ", "same answer", "headroom"):
        assert absent not in shown.replace("in asked form", "")
    shown = screen(sharp)
    assert "–" not in shown
    assert "in %, ± one standard error over prompts, without where all are alike" in shown
    assert f"agrees: with its own frozen answers, which {N} of {N} prompts have" in shown
    assert "headroom" in shown


def test_the_recipe_is_shown_where_training_is_advised_and_bears_the_verdict_in_its_file(tmp_path: Path) -> None:
    found = diagnosed(half_in_form, calibration=calibrated(0.8, noise=0.02))
    console = Console(width=80, record=True, file=StringIO())
    console.print(view(found))
    assert "recipe: none can name these problems; train them from Python" in console.export_text()
    named = dataclasses.replace(found, model="m\nsteps: 3", recipe=load_recipe(find_recipe(Path("tiny"))))
    console.print(view(named))
    assert "recipe: self_certainty, 60 steps of 16 × 8, lr 0.0001; --out DIR writes it" in console.export_text()
    write(named, tmp_path)
    text = (tmp_path / "recipe.yaml").read_text("utf-8")
    assert text.splitlines()[0] == r"# rlif diagnose: m\nsteps: 3, sums: worth training"
    assert load_recipe(tmp_path / "recipe.yaml") == named.recipe


def test_a_file_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("text,gold,answer\n" + "".join(f"{a} and {a},{2 * a + 100},x\n" for a in range(20)), "utf-8")
    settings = DiagnoseSettings(question_column="text", answer_column="gold", template="plain", labels=True)
    one = subject_of(path, settings, PolicyConfig(model="tiny-base"))
    engine = Scripted(sharp)
    order = [int(p.text.split()[0]) for p in one.prompts(engine.policy, settings)]
    engine.says = lambda i, j, sampling, key: yes(order[i])
    found = diagnose(engine, one, settings, calibration=NO_CALIBRATION)
    assert found.as_json()["labels"]["ways"]["greedy"]["right"]["value"] == 1.0
    assert found.recipe is not None
    assert isinstance(found.recipe.task, FileTask)
    assert (found.recipe.task.question_column, found.recipe.task.answer_column) == ("text", "gold")


def test_a_file_of_prompts_without_answers_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"question": f"{a} and {a}"}) + "\n" for a in range(20)), "utf-8")
    settings, policy = DiagnoseSettings(template="plain"), PolicyConfig(model="tiny-base")
    found = diagnose(Scripted(sharp), subject_of(path, settings, policy), settings, calibration=NO_CALIBRATION)
    assert found.untrained.prompts == 20
    assert found.verdict == "little to win"
    assert found.recipe is not None
    assert (found.recipe.rollout.prompts, found.recipe.reward[0].name) == (20, "frozen_consensus")
    with pytest.raises(RlifError, match=r"absent.jsonl: No such file"):
        subject_of(tmp_path / "absent.jsonl", settings, policy)


def test_a_calibration_is_added_to_and_a_run_that_is_in_both_counts_once() -> None:
    known = calibrated(0.8)
    again = dataclasses.replace(known.cases[0], gain=0.123)
    other = case("e", 0.4, 0.3, reward="majority_vote")
    recipes = {"majority_vote": {**known.recipes["self_certainty"], "reward": [{"name": "majority_vote"}]}}
    new = Calibration((again, other), recipes, "2027-01-01", "9")
    found = together(known, new)
    # The run of the first case has a case a decoding; the new one knows it sampled alone.
    assert found.cases == (*(one for one in known.cases if one.run != again.run), again, other)
    assert len(found.cases) == len(known.cases)
    assert set(found.recipes) == {"self_certainty", "majority_vote"}
    assert (found.date, found.rlif) == ("2027-01-01", "9")
    slower = {name: {**recipe, "grpo": {"lr": 1e-5}} for name, recipe in recipes.items()}
    with pytest.raises(RlifError, match="the runs of the two calibrations differ in grpo; calibrate them apart"):
        together(known, dataclasses.replace(new, recipes=slower))


def test_a_reward_is_called_by_all_that_it_is_made_of() -> None:
    said = "[{name: formatted, of: majority_vote, weight: 0.5}, {name: trajectory_entropy, reduce: sum}]"
    assert label_of(rewards_named(said)) == "0.5 formatted majority_vote + trajectory_entropy (sum)"
    assert label_of(rewards_named("formatted")) == "formatted majority_vote"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny-base"], "give the prompts: --prompts FILE, or --task arithmetic"),
        (["tiny-base", "--task", "gsm8k"], "--task gsm8k: only arithmetic needs no file; give --prompts FILE"),
        (["tiny-base", "--task", "arithmetic", "--temperature", "-1"], "Invalid value for '--temperature'"),
        (["tiny-base", "--task", "arithmetic", "--reward", "verifiable"], "--reward: verifiable is trained on labels"),
        (["tiny-base", "--task", "arithmetic", "--dtype", "int4"], "--dtype: 'int4'; choose auto, float32 or bfloat16"),
        (["tiny-base", "--prompts", "absent.jsonl"], "absent.jsonl: No such file or directory; check --prompts"),
        (["tiny-base", "--task", "arithmetic", "--reward", "self_certanty"], "--reward: no reward 'self_certanty'"),
        (["tiny-base", "--task", "arithmetic", "--reward", "negated"], "--reward: negated turns another reward round"),
        (["tiny-base", "--task", "arithmetic", "--question", "q"], "--question: belongs to a file of prompts"),
    ],
)
def test_mistakes_are_one_line(arguments: Sequence[str], said: str, command: Command) -> None:
    code, _, error = command(*arguments)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
