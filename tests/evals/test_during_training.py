"""Numbers of an evaluation, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rlif.analysis import estimators
from rlif.analysis.text import count_transitional, transitional
from rlif.evals.during_training import summarise
from rlif.runs.metric_keys import METRICS
from rlif.types import Problem, Prompt, Rollouts, Sampling, TokenSignals, Verdict


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("but wait, suppose we let me check", 4),
        ("Wait. WAIT! But", 3),
        ("button awaits supposed waiter", 0),
        ("let  me\ncheck", 1),
        ("on second thought, let's check", 2),
        ("", 0),
    ],
)
def test_transitional_words_are_whole_words_in_any_case(text: str, count: int) -> None:
    assert count_transitional(text) == count


def test_transitional_rate_is_per_token_and_share_per_completion() -> None:
    words = transitional(["wait, but no", "plain", "wait"], n_tokens=30)
    assert words.rate == pytest.approx(3 / 30)
    assert words.share == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no completions"):
        transitional([], 3)


def verdict(answer: str | None, *, right: bool | None = False, formatted: bool = True) -> Verdict:
    return Verdict(right, formatted, answer)


def test_self_agreement_counts_the_commonest_answer_and_an_unparsed_one_never_votes() -> None:
    first = ("7", "7", "8", None)  # 2 of 4
    second = (None, None, None, "")  # nobody answers: 0 of 4
    third = ("1",) * 4
    assert estimators.self_agreement([first]).value == 0.5
    assert estimators.self_agreement([first, second, third]).value == pytest.approx((0.5 + 0.0 + 1.0) / 3)


def test_standard_error_is_clustered_by_problem() -> None:
    """Two problems, one always right, one never: four samples each add no information."""
    values = np.array([1.0] * 4 + [0.0] * 4)
    # Problem means 1 and 0: their unbiased standard deviation is sqrt(1/2), over sqrt(2) problems.
    assert estimators.mean(values.reshape(2, 4)).stderr == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    # Independent rows: p(1 - p) / (n - 1) under the root, with p = 1/2 and n = 8.
    assert estimators.mean(values.reshape(8, 1)).stderr == pytest.approx(math.sqrt(0.25 / 7))
    assert math.isnan(estimators.mean(np.array([[1.0, 0.0]])).stderr)


def test_summary_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [True, True, False]])
    entropy = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.0, 0.0], [0.4, 0.5, 0.0], [0.0, 0.0, 0.0]])
    prompts = tuple(Prompt(name, name, (1,), Problem(name, name)) for name in "ab")
    rollouts = Rollouts(
        prompts=prompts,
        group_size=2,
        tokens=torch.zeros(4, 3, dtype=torch.long),
        mask=mask,
        sampler_logprobs=torch.zeros(4, 3),
        signals=TokenSignals(-entropy, entropy, 2 * entropy),
        texts=("wait", "x", "y", "z"),
        stop_reasons=("eos", "eos", "length", "eos"),
        sampling=Sampling(),
    )
    verdicts = (
        verdict("1", right=True),
        verdict("1", right=True, formatted=False),
        verdict("2", right=None),
        verdict(None, formatted=False),
    )
    metrics = summarise(rollouts, verdicts)
    assert metrics["right"] == 0.5
    assert metrics["formatted"] == 0.5
    assert metrics["right_and_formatted"] == 0.25
    assert metrics["undecided"] == 0.25
    assert metrics["truncated"] == 0.25
    assert metrics["length"] == 2.0
    assert metrics["entropy"] == pytest.approx(2.0 / 8)
    assert metrics["logprob"] == pytest.approx(-2.0 / 8)
    assert metrics["self_certainty"] == pytest.approx(4.0 / 8)
    assert metrics["self_agreement"] == pytest.approx((1.0 + 0.5) / 2)
    assert metrics["transitional_rate"] == pytest.approx(1 / 8)
    assert (metrics["n"], metrics["problems"]) == (4.0, 2.0)
    # Every number of the run log, and none that it does not know.
    assert {f"eval/{name}" for name in metrics} == {name for name in METRICS if name.startswith("eval/")}
