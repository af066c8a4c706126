"""A look at a policy, from completions written by hand; the probe with a scripted sampler, and with the tiny model."""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlif
from rlif.errors import RlifError
from rlif.model.logprobs import plain_logprobs
from rlif.model.policy import Policy
from rlif.monitoring.guards import examine
from rlif.monitoring.measurement import (
    Look,
    ProbeRecord,
    answer_starts,
    constant_share,
    judge,
    measure,
)
from rlif.monitoring.probe import Probe, distinct_prompts, freeze, kept_reference, start_logprobs
from rlif.monitoring.reference import FrozenAnswer, Reference, ReferenceSettings
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.runs.metric_keys import METRICS
from rlif.tasks.base import Task
from rlif.types import Problem, Prompt, Sampling
from scripted import Says, Scripted, written
from toys import toy_policy

SETTINGS = ReferenceSettings(Sampling(max_new_tokens=64))
TASK = rlif.task_of([Problem("any", "?", "0")], format="boxed", name="sums")


def prompts_of(n: int, answer: str | None = "0") -> list[Prompt]:
    """Prompts whose labels are wrong, so that to look at them shows."""
    return [Prompt(f"p{i}", f"{i}+{i}=", (3 + i, 4), Problem(f"p{i}", f"{i}+{i}=", answer)) for i in range(n)]


def boxed(i: int) -> str:
    return rf"so it is \boxed{{{2 * i + 100}}}"


def right(i: int, j: int, sampling: Sampling, key: Key) -> str:
    """The frozen answers: every prompt has one of its own."""
    return boxed(i)


def frozen(answer: str | None, *, low: float = 0.5, margin: float = 1.0, rival: str | None = None) -> FrozenAnswer:
    if answer is None:
        return FrozenAnswer("p", None, None, 0.0, 0.0, 0.0, disputed=False, rival=None)
    return FrozenAnswer("p", answer, "low", margin, low, 1.0, disputed=rival is not None, rival=rival)


def look(texts: Sequence[str], answers: Sequence[FrozenAnswer], task: Task = TASK, **fields: Any) -> Look:
    rollouts = written(prompts_of(len(answers)), texts, **fields)
    return Look(rollouts, judge(task, rollouts, [one.answer for one in answers]), answers)


def probe_of(says: Says, n: int = 16, *, after: Says | None = None, looks: int = 1) -> Probe:
    """A probe whose reference is made of what ``says`` says, and which then looks at ``after``."""
    engine, prompts = Scripted(says), prompts_of(n)
    probe = Probe(engine, TASK, prompts, freeze(engine, TASK, prompts, SETTINGS), SETTINGS)
    probe.measure(0)
    engine.says = after or says
    for step in range(1, looks + 1):
        probe.measure(10 * step)
    return probe


def levels(probe: Probe) -> dict[str, str]:
    return {name: finding.level for name, finding in examine(probe.records).items()}


def test_agreement_counts_answers_that_agree_and_stand_in_the_asked_form() -> None:
    texts = [r"\boxed{46}", "it is 46.", r"\boxed{47}", "nothing", r"\boxed{46.0}", r"\boxed{46}", "46~", ""]
    found = measure(look(texts, [frozen("46"), frozen("46")]), 5)
    assert found.metrics["probe/agreement"] == pytest.approx(3 / 8)
    assert found.metrics["probe/agreement/any_form"] == pytest.approx(5 / 8)
    assert found.metrics["probe/answered"] == pytest.approx(6 / 8)
    assert found.metrics["probe/formatted"] == pytest.approx(4 / 8)
    assert found.metrics["probe/truncated"] == pytest.approx(1 / 8)
    assert found.counts["agreement"] == (1, 2)
    assert found.counts["content"] == (2, 3)
    assert found.counts["ended"] == (4, 3)
    assert (found.step, found.samples) == (5, 4)


def test_agreement_is_of_prompts_with_a_reference_weighted_by_margin_and_of_trusted_ones() -> None:
    texts = [r"\boxed{1}", r"\boxed{1}", r"\boxed{2}", r"\boxed{9}", r"\boxed{3}", r"\boxed{3}"]
    answers = [frozen("1", margin=0.9), frozen("2", margin=0.3, low=-0.1, rival="9"), frozen(None)]
    found = measure(look(texts, answers), 0).metrics
    assert found["probe/agreement"] == pytest.approx((1 + 0.5) / 2)
    assert found["probe/agreement/weighted"] == pytest.approx((0.9 + 0.3 * 0.5) / 1.2)
    assert found["probe/agreement/trusted"] == 1.0
    assert found["probe/agreement/disputed"] == 0.5
    assert found["probe/rival/disputed"] == 0.5
    assert found["probe/trusted"] == pytest.approx(1 / 3)
    assert measure(look(texts, answers), 0).counts["agreement"] == (2, 1)


def test_an_answer_right_in_a_new_form_agrees() -> None:
    texts = [r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"\boxed{\frac{3}{6}}", r"\boxed{\dfrac12}"]
    assert measure(look(texts, [frozen("1/2")]), 0).metrics["probe/agreement"] == 1.0


def test_labels_do_not_enter() -> None:
    says = [r"\boxed{46}", r"\boxed{0}"]
    for answer in ("0", "46", None):
        rollouts = written(prompts_of(1, answer), says)
        verdicts = judge(TASK, rollouts, ["46"])
        assert [one.right for one in verdicts] == [True, False]
        assert [one.right for one in judge(TASK, rollouts, [None])] == [None, None]


def test_what_cannot_be_known_is_left_out() -> None:
    found = measure(look(["nothing", "at all"], [frozen(None)]), 0).metrics
    assert "probe/agreement" not in found
    assert "probe/agreement/weighted" not in found
    assert "probe/distinct" not in found
    assert found["probe/answered"] == 0.0
    assert found["probe/constant"] == 0.0
    assert all(math.isfinite(value) for value in found.values())


def test_every_key_that_is_logged_is_explained() -> None:
    probe = probe_of(right)
    assert set(probe.records[-1].metrics) <= set(METRICS)


@pytest.mark.parametrize(
    ("groups", "own", "share"),
    [
        ([["1", "1"], ["1", "1"], ["1", "1"], ["1", "1"]], ["1", "2", "3", "4"], 1.0),
        ([["1", "1"], ["2", "2"], ["3", "3"], ["4", "4"]], ["1", "2", "3", "4"], 0.0),
        ([["yes", "yes"], ["yes", "yes"], ["no", "no"], ["no", "no"]], ["yes", "yes", "no", "no"], 0.0),
        ([["yes", "yes"], ["yes", "yes"], ["yes", "yes"], ["yes", "yes"]], ["yes", "yes", "no", "no"], 1.0),
        ([["1", "1"], ["1", "1"], ["1", "1"], ["1", "2"]], ["1", "1", "1", "2"], 0.25),  # 1 of at least half of 8
        ([[None, None], [None, None]], ["1", "2"], 0.0),
        ([["7", None], ["7", "8"]], [None, "2"], 0.5),
    ],
)
def test_constant_share_is_that_of_one_answer_where_it_is_not_the_frozen_one(
    groups: list[list[str | None]], own: list[str | None], share: float
) -> None:
    assert constant_share(groups, own) == pytest.approx(share)


def test_cross_entropy_and_kl_are_means_over_tokens_of_two_distributions() -> None:
    """Two completions of 2 and 1 tokens; ln π_start by hand, ln π = -0.5 each."""
    start = torch.tensor([[-1.0, -0.5], [-2.0, 0.0]])
    seen = look(["ab", "a"], [frozen("1"), frozen("2")])
    seen = dataclasses.replace(seen, start_logprobs=start, answer_starts=torch.tensor([1, -1]))
    found = measure(seen, 0)
    k3 = [math.exp(-0.5) - 1 + 0.5, 0.0, math.exp(-1.5) - 1 + 1.5]
    assert found.metrics["probe/cross_entropy"] == pytest.approx(3.5 / 3)
    assert found.metrics["probe/kl"] == pytest.approx(sum(k3) / 3)
    assert found.metrics["probe/kl/reasoning"] == pytest.approx(k3[0])
    assert found.metrics["probe/kl/answer"] == pytest.approx(k3[1], abs=1e-12)
    assert found.nats["cross_entropy"] == pytest.approx((0.75, 2.0))
    assert found.metrics["probe/tokens"] == 6.0  # three drawn, three shown to the start


def test_no_divergence_is_claimed_of_other_distributions_than_the_policy_s() -> None:
    for sampling in (Sampling(temperature=0.7), Sampling(top_p=0.9), Sampling(top_k=5)):
        seen = look(["ab"], [frozen("1")], sampling=sampling)
        found = measure(dataclasses.replace(seen, start_logprobs=torch.zeros(1, 2)), 0).metrics
        assert "probe/kl" not in found
        assert "probe/cross_entropy" in found


def test_the_answer_begins_at_its_last_mention() -> None:
    policy = toy_policy()
    texts = ["46 or 46.", "no", "7 and 46"]
    ids = [policy.encode_text(text)[1] for text in texts]
    rollouts = written(prompts_of(3), texts)
    tokens = torch.zeros_like(rollouts.tokens)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = torch.tensor(one)
    rollouts = dataclasses.replace(rollouts, tokens=tokens)
    verdicts = [rlif.Verdict(None, False, answer) for answer in ("46", None, "1/2")]
    assert answer_starts(policy, rollouts, verdicts).tolist() == [6, -1, -1]


def test_a_record_survives_json() -> None:
    record = probe_of(right).records[-1]
    assert ProbeRecord.from_json(json.loads(json.dumps(record.as_json()))) == record


def test_looks_draw_with_common_random_numbers_and_the_reference_with_others() -> None:
    engine, prompts = Scripted(right), prompts_of(3)
    settings = dataclasses.replace(SETTINGS, seed=7)
    probe = Probe(engine, TASK, prompts, freeze(engine, TASK, prompts, settings), settings)
    made = list(engine.keys)
    probe.measure(0)
    probe.measure(10)
    assert engine.keys[-1] == engine.keys[-2] == Key(7, "probe")
    assert len(set(made)) == 3
    assert engine.keys[-1] not in made


def test_a_reference_is_made_once(tmp_path: Path) -> None:
    engine, prompts = Scripted(right), prompts_of(3)
    made = kept_reference(tmp_path, engine, TASK, prompts, SETTINGS)
    engine.keys.clear()
    assert kept_reference(tmp_path, engine, TASK, prompts, SETTINGS) == made
    assert engine.keys == []
    other = kept_reference(tmp_path, Scripted(right, toy_policy(seed=1)), TASK, prompts, SETTINGS)
    assert other.digest != made.digest
    assert len(list(tmp_path.iterdir())) == 2


def test_the_reference_is_drawn_at_three_temperatures() -> None:
    asked: list[tuple[float, int]] = []

    def says(i: int, j: int, sampling: Sampling, key: Key) -> str:
        asked.append((sampling.temperature, j))
        return boxed(i)

    made = freeze(Scripted(says), TASK, prompts_of(1), SETTINGS)
    assert asked == [(t, j) for t, n in ((1.0, 16), (0.4, 16), (0.0, 1)) for j in range(n)]
    assert made.tokens == 33 * len(boxed(0))
    assert made.length == len(boxed(0))
    assert made.answers[0].answer == "100"


def test_change_is_paired_over_prompts() -> None:
    """All prompts lose one sample of four: the interval has no width, whatever the prompts are worth."""
    probe = probe_of(right, after=lambda i, j, sampling, key: boxed(i) if j else "nothing")
    metrics = probe.records[-1].metrics
    assert metrics["probe/agreement/change"] == -0.25
    assert metrics["probe/agreement/change_low"] == metrics["probe/agreement/change_high"] == -0.25


def test_one_constant_answer_stops() -> None:
    probe = probe_of(right, after=lambda i, j, sampling, key: r"\boxed{5}")
    assert levels(probe) == {
        **dict.fromkeys(("agreement", "content", "constant_answer", "no_advantage"), "stop"),
        "length": "warn",
    }
    assert probe.records[-1].metrics["probe/distinct"] == pytest.approx(1 / 16)


def test_the_constant_answer_of_a_rambling_start_is_no_alarm_by_itself() -> None:
    """One that was there before training, as long as it does not grow."""
    probe = probe_of(lambda i, j, sampling, key: r"\boxed{5}")
    assert "constant_answer" not in levels(probe)


def test_a_policy_that_repeats_itself_stops_though_it_still_answers() -> None:
    loop = "and so on and so on " * 30
    probe = probe_of(right, after=lambda i, j, sampling, key: loop + boxed(i))
    assert probe.records[-1].metrics["probe/agreement"] == 1.0
    assert levels(probe)["repetition"] == "stop"


def test_a_policy_that_answers_nothing_stops() -> None:
    found = levels(probe_of(right, after=lambda i, j, sampling, key: f"well {chr(97 + i)}, who knows {chr(97 + j)}"))
    assert found == dict.fromkeys(("agreement", "content", "no_answer"), "stop")
    silent = levels(probe_of(right, after=lambda i, j, sampling, key: ""))
    assert silent["no_answer"] == "stop"
    assert silent["length"] == "stop"


def test_a_policy_that_is_cut_off_stops() -> None:
    found = levels(probe_of(right, after=lambda i, j, sampling, key: f"let me think {j} about {i}~"))
    assert found["truncation"] == "stop"


def test_a_policy_that_answers_right_in_a_new_form_goes_on() -> None:
    assert "agreement" not in levels(
        probe_of(right, after=lambda i, j, sampling, key: rf"\boxed{{{2 * i + 100}.00}} {j}")
    )


def test_prompts_without_extractable_answers_are_no_crash_and_no_false_stop() -> None:
    probe = probe_of(lambda i, j, sampling, key: f"a poem of {chr(97 + i)} and {chr(97 + j)}", looks=3)
    assert levels(probe) == {"agreement": "warn"}
    assert "only 0 prompts" in examine(probe.records)["agreement"].reason
    assert probe.reference.trust["answered"] == 0.0


def test_a_probe_of_eight_prompts_says_that_it_cannot_tell_a_fall_and_still_sees_a_constant() -> None:
    probe = probe_of(right, 8, after=lambda i, j, sampling, key: r"\boxed{5}")
    assert levels(probe)["agreement"] == "warn"
    assert levels(probe)["constant_answer"] == "stop"


def test_duplicate_prompts_are_one_voice() -> None:
    prompts = prompts_of(3)
    twice = [*prompts, dataclasses.replace(prompts[0], id="again")]
    assert distinct_prompts(twice) == tuple(prompts)
    with pytest.raises(RlifError, match=r"^prompts: some are the same; take distinct_prompts of them$"):
        freeze(Scripted(right), TASK, twice, SETTINGS)
    with pytest.raises(RlifError, match=r"^prompts: two different ones are called p0; give each an id of its own$"):
        distinct_prompts([*prompts, dataclasses.replace(prompts[1], id="p0", token_ids=(9, 9))])
    with pytest.raises(RlifError, match=r"^prompts: there are none; give the probe some$"):
        freeze(Scripted(right), TASK, [], SETTINGS)


def test_a_reference_of_other_prompts_is_refused() -> None:
    engine = Scripted(right)
    reference = freeze(engine, TASK, prompts_of(3), SETTINGS)
    with pytest.raises(RlifError, match=r"^reference: it is of other prompts than the probe's; make it anew$"):
        Probe(engine, TASK, prompts_of(2), reference, SETTINGS)


@pytest.mark.parametrize("low", [0.0, 1.0, 1.5])
def test_a_low_temperature_lies_between_0_and_the_sampling_s(low: float) -> None:
    settings = ReferenceSettings(Sampling(), low_temperature=low)
    with pytest.raises(RlifError, match=r"^low_temperature: .* does not lie between 0 and the sampling's temperature"):
        freeze(Scripted(right), TASK, prompts_of(2), settings)


@pytest.fixture(scope="module")
def tiny() -> tuple[Policy, Task, tuple[Prompt, ...]]:
    policy = rlif.load_policy("tiny-base", dtype="float32")
    task = rlif.task_of([Problem(f"{a}", f"{a}+{a + 5}=?", str(2 * a + 5)) for a in range(20, 28)], format="boxed")
    return policy, task, tuple(rlif.render(policy, "plain", task.eval_problems(8)))


def test_a_probe_of_the_tiny_model(tiny: tuple[Policy, Task, tuple[Prompt, ...]], tmp_path: Path) -> None:
    """Unchanged weights: the same record again, no divergence from the start. Noise in the weights: away from both."""
    policy, task, prompts = tiny
    trained = dataclasses.replace(policy, model=copy.deepcopy(policy.model))
    settings = ReferenceSettings(Sampling(max_new_tokens=64), samples=6)
    engine = Engine(trained)
    reference = freeze(engine, task, prompts, settings)
    assert Reference.read(reference.write(tmp_path)) == reference
    assert freeze(engine, task, prompts, settings) == reference
    assert reference.trust["answered"] > 0.8
    assert reference.tokens > 13 * len(prompts)
    probe = Probe(engine, task, prompts, reference, settings, samples=2, start=policy)
    first, second = probe.measure(0), probe.measure(1)
    assert first.counts == second.counts
    assert abs(first.metrics["probe/kl"]) < 1e-6
    assert 0.2 < first.metrics["probe/agreement"] <= 1.0
    assert first.metrics["probe/cross_entropy"] > 0.0
    assert set(second.metrics) <= set(METRICS)
    assert examine(probe.records).keys() <= {"agreement"}  # eight prompts are too few
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    spoilt = probe.measure(2).metrics
    assert spoilt["probe/agreement"] < first.metrics["probe/agreement"]
    assert spoilt["probe/cross_entropy"] > 3 * first.metrics["probe/cross_entropy"]
    assert spoilt["probe/kl"] > 0.1


def test_the_frozen_start_s_log_probabilities_are_those_of_a_plain_forward_pass(
    tiny: tuple[Policy, Task, tuple[Prompt, ...]],
) -> None:
    policy, _, prompts = tiny
    rollouts = Engine(policy).sample(prompts, group_size=2, sampling=Sampling(max_new_tokens=40), key=Key(0, 1))
    found = start_logprobs(policy, rollouts)
    for row in (0, 5, rollouts.n_rows - 1):
        n = int(rollouts.lengths[row])
        plain = plain_logprobs(policy, rollouts, row, torch.arange(n))
        np.testing.assert_allclose(found[row, :n], plain, atol=1e-4)
        assert not found[row, n:].any()
