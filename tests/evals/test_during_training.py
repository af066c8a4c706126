"""Numbers of an evaluation, worked out by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rlif.analysis import estimators
from rlif.analysis.text import count_transitional, transitional
from rlif.evals.during_training import Evaluation, greedy_metrics, summarise
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
    # Every number of the run log, and none that it does not know; of two samples there is no vote, all have answers.
    other = ("eval/greedy_", "eval/majority_", "eval/labelled")
    known = {name for name in METRICS if name.startswith("eval/") and not name.startswith(other)}
    assert {f"eval/{name}" for name in metrics} == known


def graded(*problems: Sequence[Verdict]) -> tuple[Rollouts, tuple[Verdict, ...]]:
    """Rollouts of one token with these verdicts; the i-th has i + 1 tokens."""
    verdicts = tuple(one for problem in problems for one in problem)
    n = len(verdicts)
    lengths = torch.arange(1, n + 1)
    mask = torch.arange(n) < lengths[:, None]
    zeros = torch.zeros(n, n)
    return Rollouts(
        prompts=tuple(Prompt(str(i), "", (1,), Problem(str(i), "")) for i in range(len(problems))),
        group_size=len(problems[0]),
        tokens=zeros.long(),
        mask=mask,
        sampler_logprobs=zeros,
        signals=TokenSignals(zeros, zeros, zeros),
        texts=("",) * n,
        stop_reasons=("eos",) * n,
        sampling=Sampling(),
    ), verdicts


def test_the_majority_is_of_four_samples_and_hands_in_one_that_gave_the_winner() -> None:
    right = [verdict("7", right=True), verdict("7", right=True, formatted=False)]
    wrong = [verdict("8"), verdict("9")]
    tied = [verdict("7", right=True), verdict("7.0", right=True), verdict("8"), verdict("8", formatted=False)]
    unread = [verdict(None)] * 4
    metrics = summarise(*graded([*right, *wrong], tied, unread))
    # 7 wins (half of its answers are formatted); a tie is half a win; where nobody votes nothing is handed in.
    by_problem = {"right": [1.0, 0.5, 0.0], "right_and_formatted": [0.5, 0.5, 0.0]}
    for name, values in by_problem.items():
        assert metrics[f"majority_{name}"] == pytest.approx(np.mean(values))
        assert metrics[f"majority_{name}_stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert not any(name.startswith("majority") for name in summarise(*graded(right + wrong[:1])))


def test_greedy_numbers_by_hand() -> None:
    rollouts, verdicts = graded(
        [verdict("7", right=True)], [verdict("7", right=True, formatted=False)], [verdict("8")], [verdict(None)]
    )
    metrics = greedy_metrics(Evaluation(rollouts, verdicts, {}))
    # One answer a problem: p(1 - p) / (n - 1) under the root.
    assert metrics == pytest.approx(
        {
            "greedy_right": 0.5,
            "greedy_right_stderr": math.sqrt(0.25 / 3),
            "greedy_right_and_formatted": 0.25,
            "greedy_right_and_formatted_stderr": math.sqrt(0.25 * 0.75 / 3),
            "greedy_formatted": 0.75,
            "greedy_length": 2.5,
        }
    )
    assert {f"eval/{name}" for name in metrics} == {name for name in METRICS if name.startswith("eval/greedy_")}
