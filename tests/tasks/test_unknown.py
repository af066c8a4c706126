"""Prompts with characters that a tokenizer has no token for."""

import pytest

from rlif.config import PolicyConfig
from rlif.model.loading import load_policy
from rlif.rollout.prompts import render, tell_unknown
from rlif.types import Problem


def test_prompts_that_the_model_cannot_read_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """tiny-base has lower case only; a byte-level tokenizer reads everything."""
    policy = load_policy(PolicyConfig(model="tiny-base"))
    known, unknown = Problem("a", "12+34=?"), Problem("b", "Tom has 12 and finds 34.")
    tell_unknown(policy, render(policy, "plain", [known]))
    assert not caplog.text
    tell_unknown(policy, render(policy, "plain", [known, unknown]))
    assert "1 of 2 prompts hold characters that the tokenizer does not know, the first is b" in caplog.text
    assert "<unk>" in caplog.text
