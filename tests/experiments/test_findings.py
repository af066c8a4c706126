"""Findings: hand-made runs that show a claim, the same turned round, and numbers worked out by hand."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlif.analysis.student import interval
from rlif.evals.during_training import MAJORITY_FROM
from rlif.experiments.courses import one_sided, pearson, spearman
from rlif.experiments.findings import CLAIMS, Finding, basis, findings, write_findings
from rlif.experiments.grid import Cell, cells, load_grid, shipped_grids

SIGNALS = ("self_certainty", "token_entropy", "trajectory_entropy")
STEPS = (0, 10, 20, 30, 40, 50, 60)  # early: 10 and 20
Row = dict[str, Any]


def run(model: str, kind: str, reward: str, seed: int, gains: tuple[float, ...], **more: Any) -> list[Row]:
    """Rows of one run that starts at .5 plus a little that depends on the seed; ``gains`` at each of `STEPS`.

    ``more``: other columns, as a value for all steps or one for each step.
    """
    internal = "internal" if reward in SIGNALS else reward
    rows = []
    for i, (step, gain) in enumerate(zip(STEPS, gains, strict=True)):
        noise = 0.004 * seed * (i > 0)
        row = {"grid": "g", "cell": f"{model}-{reward}-{seed}", "model": model, "model_kind": kind, "reward": reward}
        row |= {"reward_kind": internal, "seed": seed, "status": "finished", "error": None, "step": step}
        row |= {"merge_ratio": None, "eval/right_and_formatted": 0.5 + gain + noise}
        rows.append(row | {key: value[i] if isinstance(value, tuple) else value for key, value in more.items()})
    return rows


RISE_AND_FALL = (0.0, 0.15, 0.2, 0.1, -0.1, -0.2, -0.3)


def study(
    gains: tuple[float, ...] = RISE_AND_FALL, *, seeds: int = 3, columns: Mapping[str, Any] | None = None
) -> list[Row]:
    """A base model with the three internal rewards and labels (which gain .2 early)."""
    rows = []
    for seed in range(seeds):
        for signal in SIGNALS:
            rows += run("base", "base", signal, seed, gains, **(columns or {}))
        rows += run("base", "base", "verifiable", seed, (0.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2))
    return rows


def of(rows: list[Row], claim: str) -> Finding:
    """The one finding whose claim holds these words."""
    found = [finding for finding in findings(rows) if claim in finding.claim]
    assert len(found) == 1, claim
    return found[0]


def turned(gains: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(-gain for gain in gains)


def with_right(right: tuple[float, ...], prefix: str = "") -> list[Row]:
    columns: Row = {f"eval/{prefix}right": tuple(0.6 + gain for gain in right)}
    if prefix:
        columns["eval/greedy_right_and_formatted"] = tuple(0.5 + gain for gain in RISE_AND_FALL)
    return study(columns=columns)


def instruct(gain: float) -> list[Row]:
    return [
        row
        for seed in range(3)
        for signal in SIGNALS
        for row in run("tuned", "instruct", signal, seed, (0.0, *[gain] * 6))
    ]


def merges(sign: int) -> list[Row]:
    """Entropy .1 to .4; gains grow with it, or fall."""
    return [
        row
        for seed in range(3)
        for signal in SIGNALS
        for i, ratio in enumerate((0.1, 0.2, 0.3, 0.5))
        for row in run(
            f"r{ratio}",
            "merged",
            signal,
            seed,
            (0.0, *[sign * (0.05 - 0.04 * i)] * 6),
            merge_ratio=ratio,
            **{"eval/entropy": 0.4 - 0.1 * i},
        )
    ]


def correlated(r: float, kind: str) -> list[Row]:
    keys = [f"correlation/{kind}/self_certainty~{other}" for other in SIGNALS[1:]]
    return study(columns=dict.fromkeys(keys, r))


def outcomes(sign: int) -> list[Row]:
    rows = []
    for seed in range(3):
        for signal, factor in zip(SIGNALS, (1, 1, sign), strict=True):
            rows += run("base", "base", signal, seed, tuple(factor * gain for gain in RISE_AND_FALL))
    return rows


def changing(key: str, sign: int) -> list[Row]:
    return study(columns={key: tuple(0.3 - sign * 0.01 * i for i in range(7))})


def baselines(greedy: float, after: float = 0.8) -> list[Row]:
    vote = {"eval/majority_right_and_formatted": 0.55}
    return study(columns={"eval/greedy_right_and_formatted": (greedy, *[after] * 6), **vote})


PAIRS: list[tuple[str, Callable[[], list[Row]], Callable[[], list[Row]]]] = [
    ("raise a base model at first", study, lambda: study(turned(RISE_AND_FALL))),
    ("match verifiable", study, lambda: study((0.0, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0))),
    ("below its start", study, lambda: study(turned(RISE_AND_FALL))),
    ("format rather than reasoning (sampled)", lambda: with_right((0.0,) * 7), lambda: with_right(RISE_AND_FALL)),
    (
        "format rather than reasoning (greedy)",
        lambda: with_right((0.0,) * 7, "greedy_"),
        lambda: with_right(RISE_AND_FALL, "greedy_"),
    ),
    ("instruct models gain little", lambda: instruct(0.02), lambda: instruct(0.2)),
    ("the smaller the gain", lambda: merges(1), lambda: merges(-1)),
    ("entropy falls", lambda: changing("eval/entropy", 1), lambda: changing("eval/entropy", -1)),
    (
        "transitional words fall",
        lambda: changing("eval/transitional_rate", 1),
        lambda: changing("eval/transitional_rate", -1),
    ),
    ("alike: as rewards", lambda: correlated(0.9, "reward"), lambda: correlated(0.1, "reward")),
    ("alike: as advantages", lambda: correlated(0.9, "advantage"), lambda: correlated(0.1, "advantage")),
    ("alike: in outcome", lambda: outcomes(1), lambda: outcomes(-1)),
    ("more than what needs no training", lambda: baselines(0.6), lambda: baselines(0.95)),
]


@pytest.mark.parametrize(("claim", "shows", "shows_the_opposite"), PAIRS, ids=[claim for claim, _, _ in PAIRS])
def test_a_verdict_flips_with_its_data(
    claim: str, shows: Callable[[], list[Row]], shows_the_opposite: Callable[[], list[Row]]
) -> None:
    assert of(shows(), claim).verdict == "reproduced"
    assert of(shows_the_opposite(), claim).verdict == "not reproduced"


def test_every_claim_has_a_case_above() -> None:
    for claim in CLAIMS:
        assert sum(words in claim.text for words, _, _ in PAIRS) == 1, claim.text


def test_effect_and_interval_are_those_worked_out_by_hand() -> None:
    """Early gains .175, .179 and .183 for the seeds 0, 1, 2: mean .179, deviation .004, t(2) = 4.303."""
    found = of(study(), "raise a base model")
    assert found.n == 3
    assert found.effect == pytest.approx(0.179)
    assert found.high - found.effect == pytest.approx(4.303 * 0.004 / math.sqrt(3))
    assert found.effect - found.low == pytest.approx(found.high - found.effect)
    assert found.effect_text == "+0.179"
    assert found.seen.count("+0.179 (reproduced)") == 3


def test_the_signal_that_speaks_most_against_a_claim_decides() -> None:
    rows = [row for row in study() if row["reward"] != "trajectory_entropy"]
    for seed in range(3):
        rows += run("base", "base", "trajectory_entropy", seed, tuple(abs(gain) for gain in RISE_AND_FALL))
    found = of(rows, "below its start")
    assert found.verdict == "not reproduced"
    assert found.effect == pytest.approx(0.304)
    assert "self_certainty -0.296 (reproduced)" in found.seen
    assert "trajectory_entropy +0.304 (not reproduced)" in found.seen


def test_nothing_is_decided_that_the_data_do_not_decide() -> None:
    one = of(study(seeds=1), "raise a base model")
    assert (one.verdict, one.n, one.interval_text) == ("undecided", 1, "–")
    noisy = study()
    for row in noisy:
        if row["step"] > 0 and row["seed"] == 2:
            row["eval/right_and_formatted"] -= 0.3
            row["eval/entropy"] = 0.5
        row.setdefault("eval/entropy", 0.3 if row["step"] == 0 else 0.2)
    assert of(noisy, "raise a base model").verdict == "undecided"
    assert of(noisy, "entropy falls").verdict == "undecided"  # −.1, −.1 and +.2
    assert of(study(), "(greedy)").seen == "not measured"
    assert of(study(), "needs no training").verdict == "undecided"
    assert {finding.verdict for finding in findings([])} == {"undecided"}


def test_a_signal_without_an_early_gain_has_none_to_divide() -> None:
    found = of(study(turned(RISE_AND_FALL), columns={"eval/right": 0.6}), "(sampled)")
    assert found.verdict == "undecided"
    assert found.seen == f"no early gain to divide with {', '.join(SIGNALS)}"


def test_the_change_of_sign_lies_between_two_initial_entropies() -> None:
    """Gains at the entropies .4, .3, .2, .1: +.05, +.01, −.03, −.07, and up to .008 for the seed."""
    assert "changes sign between 0.200 and 0.300 nats" in of(merges(1), "the smaller the gain").seen


def test_only_finished_runs_count() -> None:
    rows = study()
    for row in rows:
        if row["reward"] == "self_certainty":
            row["status"] = "failed"
    found = of(rows, "raise a base model")
    assert found.seen.endswith("; without a number: self_certainty")
    assert "self_certainty +" not in found.seen


def test_a_claim_about_all_signals_is_undecided_until_each_of_the_grid_has_a_number() -> None:
    whole = study()
    assert of(whole, "below its start").verdict == of(whole, "in outcome").verdict == "reproduced"
    for state in ("failed", "waiting"):
        partly = [{**row, "status": state} if row["reward"] == "token_entropy" else row for row in study()]
        found = of(partly, "below its start")
        assert found.verdict == "undecided"
        assert found.seen.count("(reproduced)") == 2
        assert found.seen.endswith("without a number: token_entropy")
        pairs = "self_certainty~token_entropy, token_entropy~trajectory_entropy"
        assert of(partly, "in outcome").seen.endswith(f"without a number: {pairs}")
    one = [row for row in study() if row["reward"] in ("self_certainty", "verifiable")]  # a grid of one signal
    assert of(one, "below its start").verdict == "reproduced"


def test_nothing_is_said_of_baselines_unless_the_vote_was_measured() -> None:
    rows = baselines(0.6)
    words = "before training: sampled 0.500, greedy 0.600, majority 0.550"
    assert of(rows, "needs no training").seen.endswith(words)
    for row in rows:
        row.pop("eval/majority_right_and_formatted", None)
    found = of(rows, "needs no training")
    assert (found.verdict, found.n) == ("undecided", 0)
    assert found.seen == "before training: sampled 0.500, greedy 0.600, majority not measured"


def test_one_missing_number_does_not_erase_what_was_measured() -> None:
    rows = study()
    rows += [
        {**row, "cell": f"more-{row['cell']}", "model": "another", "eval/entropy": math.nan} for row in rows
    ]  # a second model
    for row in rows:
        row.setdefault("eval/entropy", 0.3 - 0.001 * row["step"] + 0.001 * row["seed"] * (row["step"] > 0))
        if row["step"] == 10:
            row["eval/right_and_formatted"] = math.nan  # the other early evaluation is left: .2
    assert of(rows, "entropy falls").n == 3
    assert of(rows, "entropy falls").effect == pytest.approx(-0.059)  # −.060, −.059, −.058
    assert of(rows, "raise a base model").effect == pytest.approx(0.204)
    formed = with_right((0.0,) * 7)
    for row in formed:
        if row["seed"] == 2:
            row["eval/right_and_formatted"] = row["eval/right_and_formatted"] if row["step"] else math.nan
    found = of(formed, "(sampled)")
    assert (found.verdict, found.n) == ("reproduced", 2)


def merged(gains: Sequence[float], ratios: Sequence[float], noise: Callable[[], float]) -> list[Row]:
    """Three seeds of merges whose entropy falls with the ratio and whose gain is ``gains``, plus noise."""
    rows = []
    for seed in range(3):
        for signal in SIGNALS:
            for i, (ratio, gain) in enumerate(zip(ratios, gains, strict=True)):
                after = tuple(gain + noise() for _ in STEPS[1:])
                facts: Row = {"merge_ratio": ratio, "eval/entropy": 0.4 - 0.05 * i}
                rows += run(f"r{ratio}", "merged", signal, seed, (0.0, *after), **facts)
    return rows


def test_gains_that_have_nothing_to_do_with_entropy_are_rarely_taken_for_it() -> None:
    """Each model has a gain of its own, the same with every seed: three seeds are not three samples of models."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        gains = random.normal(0, 0.1, size=6)
        rows = merged(gains, (0, 0.1, 0.2, 0.3, 0.5, 1), lambda: random.normal(0, 0.02))
        found.append(of(rows, "the smaller the gain").verdict)
    # One-sided 5 % each; 4 standard errors of a binomial of 200 above that.
    assert found.count("reproduced") <= 0.05 * 200 + 4 * math.sqrt(0.05 * 0.95 * 200)
    assert found.count("undecided") >= 0.9 * 200 - 4 * math.sqrt(0.1 * 0.9 * 200)


def test_the_chance_of_a_rank_correlation_is_counted_over_all_orders() -> None:
    four = of(merges(1), "the smaller the gain")
    assert (four.effect, four.n, four.interval_text) == (pytest.approx(1.0), 4, "–")
    assert "p = 0.042 over 4 models" in four.seen  # one order of 24
    three = [row for row in merges(1) if row["model"] != "r0.5"]
    assert of(three, "the smaller the gain").verdict == "undecided"  # one of 6
    # Of 1, 2, 3, 4 with one neighbouring pair exchanged: it, its two likes and the order itself reach r = .8.
    assert one_sided([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(4 / 24)
    assert one_sided([1.0, 2.0, 3.0, 4.0], [4.0, 2.0, 3.0, 1.0]) == pytest.approx(4 / 24)
    assert one_sided(ten := [float(i) for i in range(10)], ten) < 0.001
    assert math.isnan(one_sided([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]))


def test_signals_that_share_a_noisy_start_and_models_of_different_level_are_not_alike_in_outcome() -> None:
    """Nothing moves: each evaluation is its own noise, the start is one for all signals, models differ in level."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(100):
        rows = []
        for seed in range(3):
            for model in range(4):
                start, level = random.normal(0, 0.03), random.normal(0, 0.05)
                for signal in SIGNALS[:2]:
                    after = tuple(level + random.normal(0, 0.01) for _ in STEPS[1:])
                    rows += run(f"m{model}", "base", signal, seed, (start, *after))
        found.append(of(rows, "in outcome").verdict)
    assert found.count("reproduced") <= 3


def test_settings_are_judged_where_there_are_some_and_the_paper_on_the_unchanged_alone() -> None:
    rows = study(columns={"change": "none"}) + study(turned(RISE_AND_FALL), columns={"change": "grpo.lr=0.1"})
    found = of(rows, "no setting prevents")
    assert found.verdict == "not reproduced"
    assert "none -0.296 (reproduced)" in found.seen
    assert "grpo.lr=0.1 +0.304 (not reproduced)" in found.seen
    assert of(rows, "raise a base model").verdict == "reproduced"
    assert not [finding for finding in findings(study()) if "no setting" in finding.claim]


def test_an_undecided_claim_says_what_it_lacks() -> None:
    names = ", ".join(SIGNALS)
    assert of(study(seeds=1), "raise a base").why == f"a single seed of {names}; two at least make an interval"
    noisy = study()
    for row in noisy:
        if row["step"] > 0 and row["seed"] == 2 and row["reward"] == "token_entropy":
            row["eval/right_and_formatted"] -= 0.3
    assert of(noisy, "raise a base").why == "the interval of token_entropy holds 0"
    assert of(study(), "(greedy)").why == "not measured"
    waiting = [{**row, "status": "waiting"} if row["reward"] == "token_entropy" else row for row in study()]
    assert of(waiting, "below its start").why == "no number yet for token_entropy"
    three = [row for row in merges(1) if row["model"] != "r0.5"]
    assert of(three, "the smaller the gain").why == "p = 0.167, more than 0.05"
    assert of(study(), "raise a base").why == ""
    assert all(bool(one.why) == (one.verdict == "undecided") for rows in (noisy, three, []) for one in findings(rows))


def test_the_interval_is_student_s_t() -> None:
    """The density integrated numerically between the bounds: 95 %, for every number of seeds of the table."""
    for n in range(2, 18):
        values = np.random.default_rng(n).normal(size=n)
        mean, _, high = interval(list(values))
        t = (high - mean) / (values.std(ddof=1) / math.sqrt(n))
        df = n - 1
        x = np.linspace(0.0, t, 200_001)
        constant = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
        assert 2 * constant * np.trapezoid((1 + x**2 / df) ** (-(df + 1) / 2), x) == pytest.approx(0.95, abs=1e-4)


def test_correlations_are_numpy_s() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 9)).round(1)
    assert pearson(list(a), list(b)) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert spearman([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0]) == pytest.approx(1.0)
    # Ranks 0, 1.5, 1.5, 3 and 3, 2, 1, 0: covariance −4.5, variances 4.5 and 5.
    assert spearman([1.0, 2.0, 2.0, 5.0], [9.0, 4.0, 2.0, 1.0]) == pytest.approx(-4.5 / math.sqrt(4.5 * 5.0))
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_where_no_setting_is_the_recipe_s_own_the_paper_is_judged_on_each() -> None:
    key = "grpo.kl_coef"
    rows = [{**row, key: "0"} for row in study()] + [{**row, key: "0.005"} for row in study(turned(RISE_AND_FALL))]
    assert of(rows, "raise a base model at first (0)").verdict == "reproduced"
    assert of(rows, "raise a base model at first (0.005)").verdict == "not reproduced"
    assert of(rows, "no setting prevents").verdict == "not reproduced"


def as_logged(cell: Cell, seed: int) -> list[Row]:
    """Rows of a cell with the columns that its recipe logs."""
    recipe = cell.recipe
    config, rng = recipe.eval, np.random.default_rng([seed, int(cell.digest[:8], 16)])
    names = ["right", "right_and_formatted", "entropy", "transitional_rate"]
    names += ["greedy_right", "greedy_right_and_formatted"] * config.greedy
    names += ["majority_right_and_formatted"] * (config.samples >= MAJORITY_FROM)
    rows = []
    for step in range(0, recipe.steps + 1, config.every):
        row: Row = {"grid": "g", "cell": f"{cell.name}-{seed}", **cell.axes, "seed": seed, "status": "finished"}
        row |= {"error": None, "step": step, "model_kind": cell.model_kind, "merge_ratio": cell.merge_ratio}
        row |= {"reward_kind": cell.reward_kind} | {
            f"eval/{name}": 0.5 + step / 200 + 0.1 * rng.random() for name in names
        }
        if step and recipe.log.rollouts_every and step % recipe.log.rollouts_every == 0:
            row |= {f"correlation/{kind}/a~b": rng.random() for kind in ("reward", "advantage")}
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("grid", "not_meant"),
    [
        ("tiny", set()),
        ("paper", set()),
        ("quickstart", {"smaller the gain"}),
        ("sensitivity", {"smaller the gain", "match verifiable", "instruct models"}),
    ],
)
def test_each_shipped_grid_can_measure_each_claim_it_is_meant_for(grid: str, not_meant: set[str]) -> None:
    rows = [row for cell in cells(load_grid(shipped_grids()[grid])) for row in as_logged(cell, cell.recipe.seed)]
    found = findings(rows)
    unmeasured = {one.claim for one in found if one.n == 0 or "without a number" in one.seen}
    assert len(unmeasured) == len(not_meant)
    assert all(any(words in claim for words in not_meant) for claim in unmeasured)
    for one in found:  # and enough merges for the exact test to decide
        assert "smaller the gain" not in one.claim or one.n == 0 or 1 / math.factorial(one.n) <= 0.05


def test_findings_are_written_as_a_table_and_as_json(tmp_path: Path) -> None:
    rows = study()
    rows[0] |= {"cell": "another", "status": "failed"}
    found = findings(rows)
    page, record = write_findings({"g": found}, tmp_path, {"g": basis(rows)})
    text = page.read_text("utf-8")
    assert "## g\n\n12 of 13 cells finished.\n" in text
    for finding in found:
        assert f"| {finding.claim} |" in text
    read = json.loads(record.read_text("utf-8"))["g"]["findings"]
    assert [each["verdict"] for each in read] == [finding.verdict for finding in found]
    assert next(each for each in read if "(greedy)" in each["claim"])["effect"] is None
