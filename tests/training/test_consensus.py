"""Runs on answers that agree: what is frozen before the first step, and that a resumed run holds to it."""

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from interruptions import StopAfter
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.grading.equivalence import canonical
from rlif.model.template_clock import present
from rlif.recipes import load_recipe, parse_recipe, shipped_recipes
from rlif.rng import Key
from rlif.runs.history import read_metrics
from rlif.training import consensus, setup
from rlif.training.custom import Custom
from rlif.training.loop import resume, train
from rlif.training.prompt_source import PromptSource
from rlif.types import Problem, Rollouts, Sampling, Verdict
from rlif.utils.interrupts import Interrupted
from toys import toy_policy


def recipe(tiny_base_path: Path, *changes: str) -> Recipe:
    """Two prompts of four completions a step."""
    small = [f"policy.model={tiny_base_path}", "rollout.prompts=2", "rollout.group_size=4", "eval.every=0"]
    few = ["steps=2", "consensus.samples=3", "log.entropy_share=0", "checkpoint.every=0"]
    return load_recipe(shipped_recipes()["tiny"], [*small, *few, *changes])


def state_of(out: Path, step: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((out / f"checkpoints/step-{step:06d}/state.json").read_text())["consensus"]
    return found


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("reward", ["majority_vote", "soft_consensus", "frozen_consensus", "multi"])
def test_a_run_of_two_steps_trains_and_its_rewards_are_those_of_the_answers_it_logs(
    reward: str, tiny_base_path: Path, tmp_path: Path
) -> None:
    chosen = recipe(tiny_base_path, f"reward={reward}", "advantage.semantic_entropy=[0, 1.3]")
    final = train(chosen, tmp_path / "run")
    assert final is not None
    assert not same_weights(final, tiny_base_path)
    lines = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if line["step"]]
    assert [f"reward/{one.name}/mean" in lines[0] for one in chosen.reward] == [True] * len(chosen.reward)
    assert ("time/consensus" in lines[0]) == (reward == "frozen_consensus")
    if reward != "frozen_consensus":
        return
    frozen = state_of(tmp_path / "run", 2)
    for step in (1, 2):
        table = pq.read_table(tmp_path / f"run/rollouts/step-00000{step}.parquet").to_pylist()
        for row in table:
            winners = {canonical(answer) for answer in frozen[row["prompt_id"]]}
            voted = row["stop_reason"] != "length" and row["extracted"]
            expected = 1 / len(winners) if voted and canonical(row["extracted"]) in winners else 0.0
            assert row["reward_frozen_consensus"] == pytest.approx(expected)


def test_a_resumed_run_asks_nobody_again_and_equals_one_never_stopped(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(tiny_base_path, "reward=frozen_consensus", "steps=3", "checkpoint.every=1")
    whole = train(chosen, tmp_path / "whole")
    with pytest.raises(ConnectionAbortedError):
        train(chosen, tmp_path / "broken", callback=StopAfter(2))
    monkeypatch.setattr(consensus, "settle", lambda *given: pytest.fail("asked again"))
    again = resume(tmp_path / "broken")
    assert whole is not None
    assert again is not None
    assert same_weights(whole, again)
    assert state_of(tmp_path / "broken", 3) == state_of(tmp_path / "whole", 3)


def test_more_steps_are_answered_by_the_initial_model_and_not_by_the_trained_one(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = recipe(tiny_base_path, "reward=frozen_consensus", "steps=4", "grpo.lr=1e-2", "consensus.temperature=1")
    whole = train(longer, tmp_path / "whole")
    train(longer.model_copy(update={"steps": 2}), tmp_path / "run")
    path = tmp_path / "run/recipe.yaml"
    path.write_text(path.read_text().replace("steps: 2", "steps: 4"))
    again = resume(tmp_path / "run")
    assert whole is not None
    assert again is not None
    assert state_of(tmp_path / "run", 4) == state_of(tmp_path / "whole", 4)
    assert same_weights(whole, again)


def questions(path: Path, first: int) -> None:
    sums = [(first + i, first + 2 * i) for i in range(4)]
    path.write_text("".join(json.dumps({"question": f"{a}+{b}=?", "answer": str(a + b)}) + "\n" for a, b in sums))


def test_an_answer_is_that_to_the_question_of_today_not_to_another_on_the_same_line(
    tiny_base_path: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "t.jsonl", tmp_path / "run"
    task = {"name": "file", "path": str(path), "template": "plain"}
    data = recipe(tiny_base_path, "reward=frozen_consensus", "grpo.lr=1e-6").model_dump(mode="json") | {"task": task}
    questions(path, 41)
    train(parse_recipe(data), tmp_path / "other")
    questions(path, 11)
    train(parse_recipe(data), out, until=1)
    before = state_of(out, 1)
    lines = path.read_text().splitlines()
    questions(path, 41)
    path.write_text("\n".join([lines[0], *path.read_text().splitlines()[1:]]))  # one question stays
    with pytest.warns(RuntimeWarning, match="consensus: 3 questions are not those that were answered"):
        resume(out, allow_changed=True)
    expected = state_of(tmp_path / "other", 2)
    (kept,) = (name for name in before if name.endswith(":1"))
    assert state_of(out, 2) == expected | {kept: before[kept]}
    assert all(before[name] != expected[name] for name in before)


def test_a_checkpoint_that_noted_no_questions_is_taken_as_before(tiny_base_path: Path, tmp_path: Path) -> None:
    made = setup.prepare(recipe(tiny_base_path, "reward=frozen_consensus"), setup.Origin(tmp_path, present()), Custom())
    problems = [problem for batch in consensus.unsettled(made.prompts, {}) for problem in batch]
    made.state["consensus"] = {problem.id: ["1"] for problem in problems[1:]}
    assert consensus.Consensus(made).pending() == [(problems[0],)]


def test_no_truth_is_shown_to_who_reads_the_frozen_answers(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(tiny_base_path, "reward=frozen_consensus")
    made = setup.prepare(chosen, setup.Origin(tmp_path, present()), Custom())
    (problems, *_), shown, real = consensus.unsettled(made.prompts, {}), [], made.prompts.task.grade

    def grade(text: str, problem: Problem) -> Verdict:
        shown.append(problem.answer)
        return real(text, problem)

    monkeypatch.setattr(made.prompts.task, "grade", grade)
    consensus.settle(made.engine, made.prompts, problems)
    assert shown == [None] * 6


def test_the_problems_of_all_steps_are_asked_once_in_the_order_they_come(tiny_base_path: Path, tmp_path: Path) -> None:
    few = recipe(tiny_base_path, "reward=frozen_consensus", "steps=9", "task.low=10", "task.high=12")
    source = PromptSource(few, setup.build_task(few.task), toy_policy(), present())
    batches = consensus.unsettled(source, {})
    ids = [problem.id for batch in batches for problem in batch]
    drawn = [p.id for step in range(1, 10) for p in source.task.train_problems(step, 2, few.seed)]
    assert ids == list(dict.fromkeys(drawn))
    assert len(ids) < len(drawn)
    assert [p.id for batch in consensus.unsettled(source, dict.fromkeys(ids[:3])) for p in batch] == ids[3:]


def test_a_signal_stops_the_asking_and_the_run_begins_again(tiny_base_path: Path, tmp_path: Path) -> None:
    chosen, whole = recipe(tiny_base_path, "reward=frozen_consensus"), tmp_path / "whole"
    answers = iter([0, int(signal.SIGTERM)])
    with pytest.raises(Interrupted, match=r"stopped before step 1; go on with: rlif\.resume"):
        train(chosen, tmp_path / "run", stop=lambda: next(answers))
    one, other = train(chosen, whole), resume(tmp_path / "run")
    assert one is not None
    assert other is not None
    assert same_weights(one, other)


def test_a_policy_that_answers_nothing_is_told_of_before_the_first_step(tiny_base_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RlifError, match=r"no readable answer to any of 4 problems.*raise rollout\.max_new_tokens"):
        train(recipe(tiny_base_path, "reward=frozen_consensus", "rollout.max_new_tokens=1"), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # its recipe would end the same way again


def test_the_frozen_answers_have_randomness_of_their_own(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(tiny_base_path, "reward=frozen_consensus", "consensus.temperature=1", "consensus.samples=4")
    made = setup.prepare(chosen, setup.Origin(tmp_path, present()), Custom())
    prompts, seen, real = made.prompts.train(1), [], made.engine.sample

    def sample(*given: Any, **more: Any) -> Rollouts:
        seen.append(real(*given, **more))
        return seen[-1]

    monkeypatch.setattr(made.engine, "sample", sample)
    consensus.settle(made.engine, made.prompts, [prompt.problem for prompt in prompts])
    step = real(prompts, group_size=4, sampling=Sampling.from_config(chosen.rollout), key=Key(0, 1))
    assert seen[0].sampling == step.sampling
    assert seen[0].texts != step.texts
