"""Runs that are looked at: what a probe changes (nothing), what it keeps, and how a run ends that a guard stops."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlif
from rlif.cli.train_progress import ending_lines
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.experiments import pool_worker
from rlif.monitoring import guards
from rlif.monitoring.guards import GUARDS, Alarm, best_look
from rlif.monitoring.labelled import LabelledProbe
from rlif.monitoring.record import ProbeRecord
from rlif.recipes import dump_recipe, find_recipe, load_recipe, parse_recipe
from rlif.rng import Key
from rlif.runs.checkpoint import latest_checkpoint, load_checkpoint
from rlif.runs.history import read_metrics
from rlif.runs.metric_keys import METRICS
from rlif.tasks import build_task
from rlif.training import looks
from rlif.training.loop import resume, train
from rlif.training.probe_problems import labelled_problems, looks_every, probe_problems
from rlif.types import Problem, Prompt, Sampling
from rlif.utils.interrupts import Interrupted
from scripted import Scripted
from toys import toy_policy

pytestmark = pytest.mark.filterwarnings("ignore:step [0-9]+:RuntimeWarning")  # guards have their say on random models


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model: training it teaches nothing and costs nothing."""
    folder = tmp_path_factory.mktemp("toy")
    toy_policy("llama").save(folder)
    return folder


def recipe(model: Path | str, **changes: object) -> Recipe:
    data: dict[str, object] = {
        "steps": 4,
        "policy": {"model": str(model), "dtype": "float32", "device": "cpu"},
        "task": {"name": "arithmetic"},
        "rollout": {"prompts": 2, "group_size": 3, "max_new_tokens": 8},
        "reward": "self_certainty",
        "grpo": {"lr": 1e-2, "kl_coef": 0.0, "schedule": "constant", "warmup": 0.0},
        "eval": {"every": 2, "problems": 3, "greedy": False},
        "probe": {"every": 1, "prompts": 5, "samples": 2, "reference_samples": 3},
        "checkpoint": {"every": 0, "keep_last": 1},
    }
    return parse_recipe({**data, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_clock(line: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in line.items() if not k.startswith(("time", "tokens_per_second", "memory"))}


def agreeing_most_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the guards choose that step, whatever was seen."""
    monkeypatch.setattr(looks, "can_choose", lambda records: True)
    monkeypatch.setattr(looks, "best_look", lambda records: next((r for r in records if r.step == step), records[0]))


def stopping_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a guard say stop after that step."""

    def examine(records: list[ProbeRecord]) -> dict[str, Alarm]:
        return {"agreement": Alarm("stop", "it fell")} if records[-1].step >= step else {}

    monkeypatch.setattr(looks, "examine", examine)


def test_looking_changes_neither_weights_nor_other_numbers(toy_model: Path, tmp_path: Path) -> None:
    free = {"restore": False, "stop": False}
    watched = train(recipe(toy_model, guards=free), tmp_path / "watched")
    blind = train(recipe(toy_model, probe={"every": 0}), tmp_path / "blind")
    assert watched is not None
    assert blind is not None
    assert same(watched, blind)
    seen, unseen = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("watched", "blind"))
    assert [line["step"] for line in seen] == [line["step"] for line in unseen] == [0, 1, 2, 3, 4]
    for one, other in zip(seen, unseen, strict=True):
        kept = {k: v for k, v in without_clock(one).items() if not k.startswith(("probe/", "guard/"))}
        assert kept == without_clock(other)
        assert {"probe/agreement/any_form", "probe/cross_entropy", "guard/length"} <= one.keys() or one["step"] == 0
    assert "probe/kl" in seen[0]
    assert seen[0]["probe/kl"] == pytest.approx(0.0, abs=1e-9)


def test_every_key_of_a_look_that_is_documented_is_logged(tiny_base_path: Path, tmp_path: Path) -> None:
    probe = {"every": 1, "prompts": 16, "samples": 4, "reference_samples": 8, "refresh": 1}
    probe |= {"labels": labels_file(tmp_path, LABELS)}
    longer = {"prompts": 2, "group_size": 3, "max_new_tokens": 64}
    train(recipe(tiny_base_path, steps=1, probe=probe, rollout=longer), tmp_path / "run")
    logged = {key for line in read_metrics(tmp_path / "run" / "metrics.jsonl") for key in line}
    of_looks = {key for key in METRICS if key.startswith("probe/")} | {"time/reference", "time/probe"}
    assert of_looks <= logged
    assert {f"guard/{name}" for name in GUARDS} <= logged


def test_a_run_killed_between_looks_equals_one_that_never_stopped(toy_model: Path, tmp_path: Path) -> None:
    whole = train(recipe(toy_model), tmp_path / "whole")
    assert train(recipe(toy_model), tmp_path / "halves", until=2) is None
    again = resume(tmp_path / "halves")
    assert whole is not None
    assert again is not None
    assert same(whole, again)
    states = []
    for name in ("whole", "halves"):
        path = latest_checkpoint(tmp_path / name / "checkpoints")
        assert path is not None
        states.append(load_checkpoint(path).state["probe"])
    assert states[0] == states[1]
    assert [record["step"] for record in states[0]["records"]] == [0, 1, 2, 3, 4]
    lines = [
        [without_clock(line) for line in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "halves")
    ]
    assert lines[0] == lines[1]


def test_a_reference_that_was_removed_is_made_again_from_the_untrained_model(toy_model: Path, tmp_path: Path) -> None:
    train(recipe(toy_model), tmp_path / "run", until=2)
    (path,) = (tmp_path / "run" / "probe").glob("reference-*.json")
    before = path.read_bytes()
    path.unlink()
    resume(tmp_path / "run")
    assert path.read_bytes() == before


def test_a_guard_ends_the_run_and_final_is_the_look_that_agreed_most(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreeing_most_at(monkeypatch, 1)
    stopping_at(monkeypatch, 3)
    out = tmp_path / "run"
    with pytest.warns(RuntimeWarning, match="step 3: agreement: it fell"):
        final = train(recipe(toy_model), out)
    assert final == out / "final"
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert "eval/right" in lines[-1], "a run that is stopped ends with an evaluation, too"
    assert [line["guard/agreement"] for line in lines] == [0.0, 0.0, 0.0, 2.0]
    unguarded = recipe(toy_model, guards={"stop": False, "restore": False}, probe={"every": 0})
    for steps, folder in ((1, "final"), (3, "last")):
        expected = train(unguarded.model_copy(update={"steps": steps}), tmp_path / folder)
        assert expected is not None
        assert same(expected, out / folder)
    selected = json.loads((out / "run.json").read_text())["selected"]
    assert (selected["step"], selected["last"], selected["looks"]) == (1, 3, 4)
    assert selected["stopped"] == {"step": 3, "guard": "agreement", "reason": "it fell"}
    said = ending_lines(out)
    assert said[0] == "stopped after step 3 of 4: it fell"
    assert "of step 1" in said[1]
    assert str(out / "final") in said[1]
    assert str(out / "last") in said[2]
    # Asked again it has nothing to do, and does not go on.
    assert resume(out) == final
    assert same(out / "final", tmp_path / "final" / "final")
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 3


def test_an_ended_run_goes_on_if_its_recipe_no_longer_lets_guards_stop(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping_at(monkeypatch, 2)
    out = tmp_path / "run"
    with pytest.warns(RuntimeWarning):
        train(recipe(toy_model), out)
    path = out / "recipe.yaml"
    kept = load_recipe(path)
    path.write_text(dump_recipe(kept.model_copy(update={"guards": kept.guards.model_copy(update={"stop": False})})))
    resume(out)
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 4
    assert ending_lines(out)[0] == "would have been stopped after step 2: it fell"


def test_an_ended_run_takes_more_steps_once_its_guards_are_told_not_to_stop_it(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping_at(monkeypatch, 4)
    out = tmp_path / "run"
    train(recipe(toy_model), out)
    assert ending_lines(out)[0] == "all 4 steps are done; a guard says stop: it fell"
    with pytest.raises(RlifError, match=r"a guard ended this run after step 4 \(it fell\)") as refused:
        resume(out, steps=6)
    assert str(refused.value).endswith(f": rlif.resume({str(out)!r}, steps=6, overrides=['guards.stop=false'])")
    refused.value.command_line = True
    assert str(refused.value).endswith(f": rlif train --resume {out} --steps 6 guards.stop=false")
    resume(out, steps=6, overrides=["guards.stop=false"])
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 6
    kept = load_recipe(out / "recipe.yaml")
    assert (kept.steps, kept.guards.stop) == (6, False)
    assert (out / "final-step-000004").is_dir()
    assert ending_lines(out)[0] == "would have been stopped after step 4: it fell"


def test_where_no_training_agrees_more_final_is_the_untrained_model(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreeing_most_at(monkeypatch, 0)
    out = tmp_path / "run"
    train(recipe(toy_model), out)
    assert same(out / "final", toy_model)
    assert not same(out / "last", toy_model)


def test_the_choice_is_that_of_the_records_and_its_checkpoint_outlives_the_pruning(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "can_choose", lambda records: True)
    out = tmp_path / "run"
    train(recipe(toy_model, steps=6), out, until=5)
    path = latest_checkpoint(out / "checkpoints")
    assert path is not None
    records = [ProbeRecord.from_json(record) for record in load_checkpoint(path).state["probe"]["records"]]
    step = best_look(records).step
    kept = {int(folder.name[-6:]) for folder in (out / "checkpoints").glob("step-*")}
    assert kept == {5, step} - {0}


def test_a_chosen_checkpoint_that_is_gone_is_named(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreeing_most_at(monkeypatch, 1)
    out = tmp_path / "run"
    train(recipe(toy_model), out, until=3)
    for folder in (out / "checkpoints" / "step-000001").iterdir():
        folder.unlink()
    (out / "checkpoints" / "step-000001").rmdir()
    with pytest.raises(RlifError, match=r"step-000001: this checkpoint, .* guards\.restore"):
        resume(out)


def test_a_chosen_checkpoint_that_was_damaged_is_named(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreeing_most_at(monkeypatch, 1)
    out = tmp_path / "run"
    train(recipe(toy_model), out, until=3)
    path = out / "checkpoints" / "step-000001" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RlifError, match=r"step-000001: model.safetensors is damaged"):
        resume(out)


def test_looks_that_cannot_tell_choose_nothing(toy_model: Path, tmp_path: Path) -> None:
    """Five prompts are too few for a fall to show, and a random model's answers agree with nothing."""
    out = tmp_path / "run"
    final = train(recipe(toy_model), out)
    assert final is not None
    assert not (out / "last").exists()
    assert json.loads((out / "run.json").read_text())["selected"]["step"] == 4


def test_what_was_last_goes_when_a_run_ends_anew_with_its_last_step(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreeing_most_at(monkeypatch, 1)
    out = tmp_path / "run"
    train(recipe(toy_model), out)
    assert (out / "last").is_dir()
    agreeing_most_at(monkeypatch, 4)
    resume(out)
    assert not (out / "last").exists()


def test_evaluations_may_begin_later_and_the_probe_stays_what_it_is(toy_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(recipe(toy_model, eval={"every": 0, "problems": 3}), out, until=2)
    path = out / "recipe.yaml"
    kept = load_recipe(path)
    path.write_text(dump_recipe(kept.model_copy(update={"eval": kept.eval.model_copy(update={"every": 2})})))
    resume(out)
    lines = read_metrics(out / "metrics.jsonl")
    assert "eval/right" in lines[-1]
    assert "probe/length" in lines[-1]


def test_prompts_that_are_trained_on_come_last_and_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{a}+1=?", "answer": str(a + 1)}) for a in range(20)))
    asked = recipe("toy", task={"name": "file", "path": str(path)}, eval={"every": 0, "problems": 3})
    task = build_task(asked.task)
    trained = {p.id for step in range(1, 5) for p in task.train_problems(step, 2, 0)}
    assert len(trained) == 8
    some = probe_problems(asked, task)
    assert len(some) == 5
    assert not {problem.id for problem in some} & trained
    assert "trained on" not in caplog.text
    many = recipe("toy", **{**asked.model_dump(mode="json"), "probe": {"every": 1, "prompts": 20}})
    assert len(probe_problems(many, task)) == 20
    assert "8 of the probe's prompts are trained on" in caplog.text


def test_a_signal_while_the_reference_is_made_loses_nothing(toy_model: Path, tmp_path: Path) -> None:
    asked = iter([None, 15])
    with pytest.raises(Interrupted, match="before step 1"):
        train(recipe(toy_model), tmp_path / "run", stop=lambda: next(asked, 15))
    again, whole = resume(tmp_path / "run"), train(recipe(toy_model), tmp_path / "whole")
    assert again is not None
    assert whole is not None
    assert same(again, whole)


def test_prompts_that_have_changed_are_refused(tmp_path: Path, toy_model: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"question": f"{a}+1=?"}) for a in range(11, 17)]
    prompts.write_text("\n".join(rows))
    probe = {"every": 1, "prompts": 5, "path": str(prompts), "samples": 1, "reference_samples": 2}
    train(recipe(toy_model, probe=probe), tmp_path / "run", until=1)
    prompts.write_text("\n".join(reversed(rows)))
    with pytest.raises(RlifError, match="prompts"):
        resume(tmp_path / "run")


def test_a_run_of_before_there_were_probes_goes_on_without_one(toy_model: Path, tmp_path: Path) -> None:
    long = {"steps": 20, "probe": {"every": 0}, "eval": {"every": 0}}
    train(recipe(toy_model, **long), tmp_path / "run", until=1)
    path = tmp_path / "run" / "recipe.yaml"
    text = path.read_text()
    for section in ("probe:", "guards:"):
        start = text.index(f"\n{section}") + 1
        end = next(i for i in range(start + 1, len(text)) if text[i - 1] == "\n" and text[i] not in " -")
        text = text[:start] + text[end:]
    path.write_text(text)
    resume(tmp_path / "run", until=2)
    assert not any(key.startswith("probe/") for key in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1])


REWARDS: list[tuple[Any, bool]] = [
    ("self_certainty", True),
    ("majority_vote", True),
    ("frozen_consensus", True),
    ("multi", True),
    (["token_entropy", {"name": "verifiable", "weight": 0.0}], True),
    ("verifiable", False),
    ("random", False),
    ({"name": "negated", "of": "self_certainty"}, False),
    ({"name": "formatted", "of": "majority_vote"}, True),
    ({"name": "formatted", "of": "verifiable"}, False),
    (["token_entropy", "verifiable"], False),
]


@pytest.mark.parametrize(("reward", "looked_at"), REWARDS, ids=str)
def test_runs_on_internal_feedback_alone_are_looked_at_by_default(reward: Any, looked_at: bool) -> None:
    # A step has 2 x 3 completions, a look 64 x 4 that are read, too: 256 x 4/3 of half a step's cost each; a tenth of
    # 6 x 2 halves a step are 1.2, so that a look is paid for in 285 steps.
    assert looks_every(recipe("toy", steps=20, reward=reward, probe={})) == (285 if looked_at else 0)


def test_how_often_follows_from_what_a_look_costs() -> None:
    paper = {"rollout": {"prompts": 128, "group_size": 8, "max_new_tokens": 8}, "steps": 80}
    assert looks_every(recipe("toy", **paper, probe={})) == 2
    assert looks_every(recipe("toy", **paper, probe={"start": False, "prompts": 51, "samples": 4})) == 1
    assert looks_every(recipe("toy", steps=19, probe={})) == 0
    assert looks_every(recipe("toy", steps=19, probe={"every": 7})) == 7


def test_probe_problems_are_apart_from_training_and_evaluation_and_bear_no_label() -> None:
    asked = recipe("toy", eval={"every": 1, "problems": 100}, probe={"every": 1, "prompts": 64})
    task = build_task(asked.task)
    problems = probe_problems(asked, task)
    judged = {problem.id for problem in task.eval_problems(100)}
    trained = {problem.id for step in range(1, 200) for problem in task.train_problems(step, 16, 0)}
    assert len(problems) == 64
    assert not {p.id for p in problems} & (judged | trained)
    assert all(problem.answer is None for problem in problems)


def test_a_task_that_holds_out_too_few_shares_them_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    small = {"name": "arithmetic", "low": 1, "high": 9}
    asked = recipe("toy", task=small, eval={"every": 1, "problems": 6}, probe={"every": 1, "prompts": 64})
    task = build_task(asked.task)
    held_out = {problem.id for problem in task.eval_problems(len(probe_problems(asked, task)))}
    assert {problem.id for problem in probe_problems(asked, task)} == held_out
    assert "shares 6 of its prompts" in caplog.text
    assert "there are no more" in caplog.text


def test_the_public_door_tells_of_the_choice(toy_model: Path, tmp_path: Path) -> None:
    assert rlif.train(recipe(toy_model), tmp_path / "run") == tmp_path / "run" / "final"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["selected"]["criterion"] == "probe/agreement"


def test_merging_back_moves_the_weights_once_after_each_alarm_and_goes_on(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping_at(monkeypatch, 2)  # after steps 2, 3 and 4: merged before steps 3 and 4
    frozen = {"lr": 1e-8, "kl_coef": 0.0, "schedule": "constant", "warmup": 0.0}  # so that steps hardly move
    once = recipe(toy_model, steps=2, guards={"stop": False, "restore": False})
    path = train(once, tmp_path / "two")
    assert path is not None
    start, two = weights(toy_model), weights(path)
    run = recipe(toy_model, guards={"merge_back": 0.5, "restore": False})
    train(run, tmp_path / "whole", until=2)
    changed = run.model_copy(update={"grpo": run.grpo.model_validate(frozen)})
    (tmp_path / "whole" / "recipe.yaml").write_text(dump_recipe(changed))
    resume(tmp_path / "whole", allow_changed=True)
    merged = weights(tmp_path / "whole" / "final")
    for name, weight in merged.items():
        expected = start[name] + 0.25 * (two[name] - start[name])
        assert torch.allclose(weight, expected, atol=1e-5), name
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]["step"] == 4


def test_merging_back_needs_the_untrained_weights() -> None:
    with pytest.raises(RlifError, match=r"guards\.merge_back: the untrained weights are not kept; set probe\.start"):
        recipe("toy", guards={"merge_back": 0.3}, probe={"every": 1, "start": False})


def test_a_run_that_a_guard_stops_is_done_for_the_pool_too(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers do ten steps at a time until the last one: a run that ends at 2 of 30 must not be given ten more."""
    stopping_at(monkeypatch, 2)
    monkeypatch.setattr(pool_worker, "_asked", SimpleNamespace(value=0))
    monkeypatch.setattr(pool_worker, "_news", SimpleNamespace(put=lambda news: None))
    run = recipe(toy_model, steps=30, eval={"every": 0})
    assert pool_worker.run_chunk("cell", run, tmp_path / "run") == 30
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2


def labels_file(folder: Path, answers: list[str | None]) -> str:
    path = folder / "labels.jsonl"
    rows = [{"question": f"{20 + i}+{30 + i}=?", "answer": answer} for i, answer in enumerate(answers)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


LABELS = [str(50 + 2 * i) for i in range(6)]


def test_labelled_problems_are_told_of_apart_and_change_no_weight_and_no_guard(toy_model: Path, tmp_path: Path) -> None:
    probe = {"every": 2, "prompts": 5, "samples": 2, "reference_samples": 2}
    without = train(recipe(toy_model, steps=2, probe=probe), tmp_path / "without")
    told = {**probe, "labels": labels_file(tmp_path, LABELS)}
    with_labels = train(recipe(toy_model, steps=2, probe=told), tmp_path / "with")
    assert without is not None
    assert with_labels is not None
    assert same(without, with_labels)
    lines = [[without_clock(x) for x in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("without", "with")]
    for bare, one in zip(*lines, strict=True):
        labelled = {key for key in one if key.startswith("probe/labelled")}
        assert {key: value for key, value in one.items() if key not in labelled} == bare
        assert bool(labelled) == (one["step"] in (0, 2))
        assert labelled <= METRICS.keys()


def test_labelled_problems_are_judged_by_their_labels() -> None:
    """Of two samples a problem: both right and boxed; one right without a box, one wrong; none right."""
    texts = [r"\boxed{46}", r"\boxed{46.0}", "it is 47.", r"\boxed{4}", "", "no"]
    problems = [Problem(f"l{i}", f"{i}?", answer) for i, answer in enumerate(("46", "47", "48"))]
    prompts = [Prompt(one.id, one.question, (3 + i,), one) for i, one in enumerate(problems)]
    engine = Scripted(lambda i, j, sampling, key: texts[2 * i + j])
    task = rlif.task_of(problems, format="boxed")
    found = LabelledProbe(engine, task, prompts, Sampling(), samples=2, seed=3).measure()
    assert engine.keys == [Key(3, "probe/labelled")]
    assert found["probe/labelled_right"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["probe/labelled_right_and_formatted"] == pytest.approx(1 / 3)
    assert found["probe/labelled_right/stderr"] == pytest.approx((0.25 / 3) ** 0.5)  # variance of 1, .5, 0 is .25
    assert LabelledProbe(engine, task, (), Sampling()).measure() == {}


def test_labels_choose_the_checkpoint_if_they_are_asked_to(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = iter([0.1, 0.2, 0.4, 0.3, 0.2])
    monkeypatch.setattr(LabelledProbe, "measure", lambda self, progress=None: {guards.LABELLED: next(right)})
    probe = {"every": 1, "prompts": 5, "samples": 1, "reference_samples": 2, "labels": labels_file(tmp_path, LABELS)}
    train(recipe(toy_model, probe=probe, guards={"choose_by": "labels"}, eval={"every": 0}), tmp_path / "run")
    selected = json.loads((tmp_path / "run" / "run.json").read_text())["selected"]
    assert (selected["step"], selected["criterion"], selected["value"]) == (2, guards.LABELLED, 0.4)
    assert "the share right and formatted of the few labelled problems is 0.400" in ending_lines(tmp_path / "run")[0]


def test_labels_that_are_none_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def problems(path: str, **changes: Any) -> tuple[Problem, ...]:
        asked = recipe("toy", probe={"every": 1, "labels": path}, **changes)
        return labelled_problems(asked, build_task(asked.task))

    with pytest.raises(RlifError, match=r"labels\.jsonl: 2 of its problems have no answer \(the first is labels"):
        problems(labels_file(tmp_path, ["1", None, "3", None]))
    with pytest.raises(RlifError, match=r"gone\.jsonl: .*; check probe_labels"):
        problems(str(tmp_path / "gone.jsonl"))
    with pytest.raises(RlifError, match=r"guards\.choose_by: there are no labels to choose by; .* probe\.labels"):
        recipe("toy", guards={"choose_by": "labels"})
    assert [one.answer for one in problems(labels_file(tmp_path, LABELS))] == LABELS
    assert "trained on" not in caplog.text
    many = problems(labels_file(tmp_path, [str(i) for i in range(70)]))
    assert len(many) == 64
    assert "only its first 64 problems are looked at" in caplog.text
    path = labels_file(tmp_path, LABELS)
    problems(path, task={"name": "file", "path": path}, eval={"every": 0})
    assert "6 problems of probe.labels are trained on" in caplog.text


def test_labels_that_have_changed_are_refused(tmp_path: Path, toy_model: Path) -> None:
    probe = {"every": 1, "prompts": 5, "samples": 1, "reference_samples": 2, "labels": labels_file(tmp_path, LABELS)}
    train(recipe(toy_model, probe=probe, eval={"every": 0}), tmp_path / "run", until=1)
    labels_file(tmp_path, [*LABELS[1:], "7"])
    with pytest.raises(RlifError, match=r"probe\.labels: the problems in .*labels\.jsonl have changed"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(("name", "prompts"), [("guarded", 64), ("guarded-smollm2", 48)])
def test_the_guarded_recipes_are_looked_at_on_prompts_of_their_own(
    name: str, prompts: int, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = load_recipe(find_recipe(Path(name)))
    assert shipped.guards.stop
    assert shipped.guards.restore
    assert shipped.probe.start
    assert shipped.steps / looks_every(shipped) == 12
    task = build_task(shipped.task)
    problems = probe_problems(shipped, task)
    assert len(problems) == prompts
    assert not {one.id for one in problems} & {one.id for one in task.eval_problems(shipped.eval.problems)}
    assert not caplog.text
