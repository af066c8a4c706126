"""The statements: each holds as stated, and none survives a wrong sign."""

import json
import re
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rlif.cli import theory as reporting
from rlif.cli.main import app
from rlif.cli.theory import print_run
from rlif.errors import RlifError
from rlif.theory import STATEMENTS, entropy, gradient_flow, grpo_checks, reward_equivalence, token_rewards
from rlif.theory.figures import draw_all
from rlif.theory.statements import Claim, Statement, check, check_all
from rlif.theory.tabular import Policies

TRIALS = 2000


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_holds_and_its_negation_does_not(name: str) -> None:
    statement = STATEMENTS[name]
    result = check(statement, trials=TRIALS, seed=0)
    assert result.as_stated, result
    assert result.trials >= TRIALS // 2
    assert (result.counter_example is None) == statement.theorem
    assert not check(statement.negated(), trials=TRIALS, seed=0).as_stated


def test_names_are_formulas_and_sources_are_there() -> None:
    assert len(STATEMENTS) == sum(
        len(room.STATEMENTS) for room in (entropy, token_rewards, reward_equivalence, grpo_checks)
    )  # none hides another
    for statement in STATEMENTS.values():
        assert all((statement.says, statement.assumes, statement.formula, statement.source))
        assert len(statement.name) <= 34  # what the table has room for


def turned(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: -function(*args, **kwargs)


@pytest.mark.parametrize(
    ("owner", "function", "red"),
    [
        (Policies, "covariance", "entropy difference"),
        (Policies, "covariance", "entropy difference, trajectories"),
        (Policies, "covariance", "trajectory entropy, many choices"),
        (Policies, "covariance", "token entropy, likelier is surer"),
        (token_rewards, "natural_gradient", "token entropy, in order"),
        (token_rewards, "natural_gradient", "self-certainty, in order"),
        (Policies, "covariance", "self-certainty, likelier is surer"),
        (entropy, "_second_order", "entropy difference, 2nd order"),
        (entropy, "natural_gradient", "trajectory entropy, one choice"),
        (entropy, "natural_gradient", "trajectory entropy, whole flow"),
        (entropy, "trajectory_entropy", "trajectory entropy, closed form"),
        (token_rewards, "token_entropy", "token rewards, one choice"),
        (token_rewards, "natural_gradient", "token entropy, no assumption"),
        (token_rewards, "natural_gradient", "self-certainty, no assumption"),
        (reward_equivalence, "policy_gradient", "one full gradient"),
        (reward_equivalence, "token_entropy", "two detached gradients"),
        (reward_equivalence, "natural_gradient", "mean over tokens"),
        (reward_equivalence, "natural_gradient", "labels lower entropy too"),
        (grpo_checks, "policy_gradient", "group mean as baseline"),
        (grpo_checks, "advantages", "the floor"),
    ],
)
def test_a_wrong_sign_in_the_mathematics_is_seen(
    monkeypatch: pytest.MonkeyPatch, owner: object, function: str, red: str
) -> None:
    if red == "trajectory entropy, whole flow":  # the flow takes its direction from a table
        monkeypatch.setitem(gradient_flow.DIRECTIONS, "natural", turned(entropy.natural_gradient))
    else:
        monkeypatch.setattr(owner, function, turned(getattr(owner, function)))
    assert not check(STATEMENTS[red], trials=TRIALS, seed=0).as_stated


@pytest.mark.parametrize(
    ("owner", "function", "red"),
    [
        (Policies, "covariance", "token entropy, slope"),
        (Policies, "covariance", "self-certainty, slope of a state"),
        (Policies, "covariance", "self-certainty, slope of a text"),
        (reward_equivalence, "policy_gradient", "one full gradient"),
        (reward_equivalence, "trajectory_entropy", "one full gradient"),
        (reward_equivalence, "trajectory_entropy", "two detached gradients"),
    ],
)
def test_a_wrong_size_in_the_mathematics_is_seen(
    monkeypatch: pytest.MonkeyPatch, owner: object, function: str, red: str
) -> None:
    right = getattr(owner, function)
    monkeypatch.setattr(owner, function, lambda *args: 5 * right(*args))
    assert not check(STATEMENTS[red], trials=TRIALS, seed=0).as_stated


def test_an_optimum_wrong_but_for_its_likeliest_text_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reward_equivalence._tilted

    def others_even(*args: object) -> torch.Tensor:
        exact = right(*args)  # type: ignore[arg-type]
        top = exact.max(dim=1, keepdim=True)
        others = (1 - top.values) / (exact.shape[1] - 1)
        return others.expand_as(exact).scatter(1, top.indices, top.values)

    monkeypatch.setattr(reward_equivalence, "_tilted", others_even)
    assert not check(STATEMENTS["optimum under KL"], trials=100, seed=0).as_stated


def test_the_order_of_second_choices_stands_in_the_policy() -> None:
    """What "in order" assumes is read off the table; random policies, whose second choices changed places, have it."""
    (policies,) = entropy.drawn((token_rewards._TREES[0],), 1000, torch.Generator().manual_seed(0))
    made = token_rewards._ordered(lambda p: -p.entropy)(policies)
    for each, always in ((made, True), (policies, False)):
        likelier = each.policy[:, 0].argsort(dim=1)
        surer = (-each.entropy[:, 1:]).gather(1, likelier).diff(dim=1)
        assert bool((surer >= 0).all()) == always
    assert torch.equal(made.logits[:, 0], policies.logits[:, 0])
    assert torch.equal(made.entropy.sort(dim=1).values, policies.entropy.sort(dim=1).values)


def test_counter_examples_come_from_the_seed() -> None:
    name = "self-certainty orders like −H"
    found = [check(STATEMENTS[name], trials=300, seed=seed).counter_example for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    # The example, read back: the lower entropy has the lower self-certainty.
    numbers = [float(x) for x in re.findall(r"\d+\.\d+", found[0] or "")]
    assert (numbers[0] < numbers[1]) == (numbers[2] < numbers[3])


def claimed(left: list[float], right: list[float]) -> Statement:
    claim = Claim(torch.tensor(left), torch.tensor(right), 0.1)
    return Statement("toy", "", "", "", "", lambda trials, generator: claim)


def test_a_result_counts_and_measures() -> None:
    result = check(claimed([1.0, 2.0, 3.0, 4.0], [1.05, 2.0, 5.0, 4.0]), trials=4, seed=0)
    assert (result.trials, result.held, result.deviation) == (4, 0.75, 2.0)
    assert not result.as_stated
    assert result.counter_example == "trial 2: off by 2"
    assert not check(claimed([float("nan")], [0.0]), trials=1, seed=0).as_stated
    assert not check(claimed([], []), trials=1, seed=0).as_stated  # what was never tried does not hold


def test_nothing_to_try_is_a_mistake() -> None:
    with pytest.raises(RlifError, match="at least 1"):
        check_all(STATEMENTS, trials=0, seed=0)


def test_the_command_prints_and_exits_by_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["theory", "--trials", "300", "--seed", "1"], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    for name in STATEMENTS:
        assert name in done.output
    assert f"{len(STATEMENTS)} as stated" in done.output
    assert max(len(line) for line in done.output.splitlines() if line.startswith((" ≡", " ≢", "  ≡", "  ≢"))) <= 100
    wrong = STATEMENTS["one expectation"].negated()
    monkeypatch.setattr(reporting, "STATEMENTS", {wrong.name: wrong})
    failed = runner.invoke(app, ["theory", "--trials", "50"])
    assert failed.exit_code == 1
    assert "NOT AS STATED: one expectation" in failed.output


def test_a_run_is_held_against_the_lemma(tmp_path: Path) -> None:
    predicted, measured = (-0.01, -0.02, 0.01, -0.04, -0.01), (-0.02, -0.03, 0.01, -0.05, 0.03)
    lines = [{"step": 0, "eval/right": 0.5}] + [
        {"step": i, "entropy/predicted": p, "entropy/measured": m, "entropy/predicted_stderr": 0.002,
         "entropy/advantage_covariance": -p}
        for i, (p, m) in enumerate(zip(predicted, measured, strict=True), start=1)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = CliRunner().invoke(app, ["theory", "--run", str(tmp_path)])
    assert done.exit_code == 0, done.output
    r = statistics.correlation(predicted, measured)
    for text in (
        f"r = {r:.2f}",
        f"r = {statistics.correlation(*([b - a for a, b in pairwise(x)] for x in (predicted, measured))):.2f}",
        "n = 5",
        "-0.0700",
        "-0.0600",
        "same sign in 4 of 5",
        "above 0 in 4 of 5",
        "0.0020",
        "0.0319",
    ):
        assert text in done.output, done.output
    one_row = [{key: value for key, value in line.items() if not key.endswith("stderr")} for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in one_row))
    done = CliRunner().invoke(app, ["theory", "--run", str(tmp_path)])
    assert "standard error unknown (one row)" in done.output, done.output
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(RlifError, match=r"fewer than 4 steps.*log\.entropy_share.*rollout\.top_p"):
        print_run(tmp_path)


def test_pictures(tmp_path: Path) -> None:
    paths = draw_all(tmp_path / "new", seed=0)
    assert [path.name for path in paths] == ["theory-entropy.png", "theory-simplex.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)
    assert all(path.stat().st_size > 20_000 for path in paths)
