"""Prompts with characters that a tokenizer has no token for."""

import json
from pathlib import Path

import pytest

from hostile import run
from rlif.config import PolicyConfig
from rlif.model.loading import load_policy
from rlif.rollout.prompts import render, tell_unknown
from rlif.types import Problem

QUESTION = "Tom has 12 and finds 34."
SAID = "1 of 1 prompts hold characters that the tokenizer does not know"


def test_prompts_that_the_model_cannot_read_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """tiny-base has lower case only; a byte-level tokenizer reads everything."""
    policy = load_policy(PolicyConfig(model="tiny-base"))
    known, unknown = Problem("a", "12+34=?"), Problem("b", QUESTION)
    tell_unknown(policy, render(policy, "plain", [known]))
    assert not caplog.text
    tell_unknown(policy, render(policy, "plain", [known, unknown]))
    assert "1 of 2 prompts hold characters that the tokenizer does not know, the first is b" in caplog.text
    assert "<unk>" in caplog.text


def test_an_evaluation_and_a_diagnosis_say_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An evaluation asks its problems twice, sampled and greedily."""
    data, few = tmp_path / "p.jsonl", ("--samples", "4", "--max-new-tokens", "8")
    data.write_text(json.dumps({"question": QUESTION, "answer": "46"}))
    for command in (["eval", "tiny-base", "--out", str(tmp_path / "e")], ["diagnose", "tiny-base"]):
        caplog.clear()
        assert run([*command, "--data", str(data), *few]).code == 0
        assert caplog.text.count(SAID) == 1
