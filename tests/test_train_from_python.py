"""Training through the public door, on rewards and problems of one's own: killed, resumed, and resumed without them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rlif
from rlif.training import loop

ROWS = [{"question": f"{a}+1=?", "answer": a + 1} for a in range(20, 32)]
SMALL = ("rollout.prompts=2", "rollout.group_size=4", "rollout.max_new_tokens=8", "log.rollouts_every=1")


def recipe(reward: str, *changes: str) -> rlif.Recipe:
    return rlif.load_recipe("tiny", ["steps=2", f"reward={reward}", "eval.every=0", *SMALL, *changes])


def few_words(inputs: rlif.RewardInputs) -> list[int]:
    return [-len(text.split()) for text in inputs.rollouts.texts]


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def begun(recipe: rlif.Recipe, out: Path, monkeypatch: pytest.MonkeyPatch, **own: Any) -> None:
    """One step of it through the door, as if it had been killed then."""
    train = loop.train
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", lambda *arguments, **options: train(*arguments, **options, until=1))
        assert rlif.train(recipe, out, **own) is None


def test_a_run_on_own_reward_and_problems_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"rewards": {"few_words": few_words}, "task": ROWS}
    mixed = recipe("[few_words, {name: negated, of: few_words, weight: 0.25}]", "eval.every=1", "eval.problems=3")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert rlif.train(mixed, whole, **own) == whole / "final"
    first = metrics(whole)[1]
    assert first["reward/few_words/mean"] == -first["reward/negated/mean"] != 0
    begun(mixed, cut, monkeypatch, **own)
    for given, lacking in (
        ({}, "the reward 'few_words' and the task"),
        ({"task": ROWS}, "the reward 'few_words'"),
        ({"rewards": own["rewards"]}, "the task"),
    ):
        with pytest.raises(rlif.RlifError, match=f"this run was given {lacking}"):
            rlif.resume(cut, **given)
    with pytest.raises(rlif.RlifError, match="task: the problems in what was given from Python have changed"):
        rlif.resume(cut, rewards=own["rewards"], task=ROWS[1:])
    assert rlif.resume(cut, **own) == cut / "final"
    assert weights(cut) == weights(whole)


def test_a_wrapped_reward_of_ones_own_is_needed_by_a_resume_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    negated = recipe("{name: negated, of: few_words}")
    begun(negated, tmp_path / "run", monkeypatch, rewards={"few_words": few_words})
    with pytest.raises(rlif.RlifError, match="this run was given the reward 'few_words'"):
        rlif.resume(tmp_path / "run")
    rlif.resume(tmp_path / "run", rewards={"few_words": few_words})


def test_the_problems_that_are_asked_are_those_given(tmp_path: Path) -> None:
    seen: list[str] = []

    def remember(inputs: rlif.RewardInputs) -> torch.Tensor:
        seen.extend(prompt.problem.question for prompt in inputs.rollouts.prompts)
        return torch.tensor([float(verdict.right is True) for verdict in inputs.verdicts])

    rlif.train(recipe("mine"), tmp_path / "run", rewards={"mine": remember}, task=iter(ROWS))
    assert len(seen) == len(set(seen)) == 4
    assert set(seen) <= {row["question"] for row in ROWS}


def test_a_function_is_taken_to_use_labels_unless_it_says_otherwise(tmp_path: Path) -> None:
    bare = [{"question": row["question"]} for row in ROWS]
    with pytest.raises(rlif.RlifError, match="reward few_words needs answers, but 12 problems have none"):
        rlif.train(recipe("few_words"), tmp_path / "run", rewards={"few_words": few_words}, task=bare)
    blind = rlif.Reward("few_words", "", "", False, lambda inputs, config: torch.tensor(few_words(inputs)))
    assert rlif.train(recipe("few_words"), tmp_path / "run", rewards={"few_words": blind}, task=bare)


def test_a_misspelt_reward_of_ones_own_is_told_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(rlif.RlifError, match=r"no reward 'few_word'; did you mean few_words\?"):
        rlif.train(recipe("few_word"), tmp_path / "run", rewards={"few_words": few_words})
    assert not (tmp_path / "run").exists()
