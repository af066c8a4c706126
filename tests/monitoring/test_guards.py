"""Guards on records made by hand: what they say, and when they keep silent."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rlif.monitoring import guards
from rlif.monitoring.guards import FALSE_ALARMS, GUARDS, best_look, examine, worst
from rlif.monitoring.record import ProbeRecord

N, K = 32, 4
HEALTHY = {"trusted": 0.8, "constant": 0.05, "length": 100.0, "entropy": 0.5, "identical": 0.1}


def record(
    step: int, *, agreement: float = 0.75, cross_entropy: float | None = None, counts: Any = None, **metrics: float
) -> ProbeRecord:
    """A look at which every prompt is alike; shares are multiples of a quarter."""
    every = dict.fromkeys(("answered", "ended", "not_looping"), (K,) * N)
    values = {f"probe/{name}": value for name, value in (HEALTHY | metrics).items()}
    values["probe/agreement"] = agreement
    nats = {"entropy": (values["probe/entropy"],) * N}
    if cross_entropy is not None:
        values["probe/cross_entropy"] = cross_entropy
        nats["cross_entropy"] = tuple(cross_entropy + 0.1 * np.sin(np.arange(N)))
    return ProbeRecord(
        step,
        K,
        values,
        {**every, **dict.fromkeys(("agreement", "content"), (round(K * agreement),) * N), **(counts or {})},
        nats,
    )


def test_a_healthy_run_hears_nothing() -> None:
    records = [record(10 * t, agreement=share) for t, share in enumerate((0.5, 0.75, 0.75, 1.0))]
    assert all(examine(records[:n]) == {} for n in range(1, 5))
    assert worst({}) == "ok"
    assert set(FALSE_ALARMS) < set(GUARDS)


def test_agreement_below_its_best_stops_and_says_since_when() -> None:
    records = [record(10 * t, agreement=share) for t, share in enumerate((0.5, 1.0, 0.75))]
    found = examine(records)
    assert found["agreement"].level == worst(found) == "stop"
    assert found["agreement"].reason.startswith(
        "agreement with the frozen answers fell from 100% at step 10 to 75% (p = 2e-10 beside step 10)"
    )


def test_lost_content_stops_though_better_form_makes_up_for_it() -> None:
    records = [record(0, agreement=0.5, counts={"content": (4,) * N}), record(10, counts={"content": (3,) * N})]
    found = examine(records)
    assert set(found) == {"content"}
    assert found["content"].level == "stop"
    assert found["content"].reason.startswith("agreement with the frozen answers in whatever form fell from 100% at")


def test_agreement_back_at_its_best_is_no_alarm_any_more() -> None:
    records = [record(10 * t, agreement=share) for t, share in enumerate((0.5, 1.0, 0.75, 1.0))]
    assert examine(records) == {}


def test_improving_beyond_the_reference_only_warns() -> None:
    """Agreement falls while the samples become ever likelier under the start: its own answers may be the worse."""
    looks = ((0.75, 0.9), (1.0, 0.7), (0.5, 0.6))
    records = [record(10 * t, agreement=share, cross_entropy=nats) for t, (share, nats) in enumerate(looks)]
    assert examine(records)["agreement"].level == "warn"
    collapsed = [*records, record(30, agreement=0.5, cross_entropy=0.8)]
    assert examine(collapsed)["agreement"].level == "stop"


def test_the_start_s_veto_ends_after_three_looks_in_a_row_or_when_half_of_the_best_is_lost() -> None:
    """The samples become ever likelier under the start all the while."""

    def level(*shares: float) -> str:
        looks = [record(10 * t, agreement=share, cross_entropy=0.9 - 0.1 * t) for t, share in enumerate(shares)]
        return examine(looks)["agreement"].level

    assert [level(1.0, *(0.5,) * n) for n in range(1, 6)] == ["warn", "warn", "warn", "stop", "stop"]
    assert level(0.5, 1.0, 0.5, 0.5, 1.0, 0.5) == "warn"  # back at its best meanwhile: not in a row
    assert level(1.0, 0.25) == level(1.0, 0.0) == "stop"


def test_a_start_that_is_off_has_no_veto() -> None:
    looks = ((1.0, 0.7), (0.5, 0.6))
    records = [record(10 * t, agreement=share, cross_entropy=nats) for t, (share, nats) in enumerate(looks)]
    records[0] = record(0, agreement=1.0)
    assert examine(records)["agreement"].level == "stop"


def test_a_reference_that_is_not_trusted_stops_only_with_the_start_as_witness() -> None:
    looks = ((1.0, 0.6), (0.5, 0.8))
    alone = [record(10 * t, agreement=share, trusted=0.2) for t, (share, _) in enumerate(looks)]
    assert examine(alone)["agreement"].level == "warn"
    both = [record(10 * t, agreement=a, cross_entropy=c, trusted=0.2) for t, (a, c) in enumerate(looks)]
    assert examine(both)["agreement"].level == "stop"


@pytest.mark.parametrize(
    ("metric", "first", "now", "level"),
    [
        ("constant", 0.05, 0.24, None),
        ("constant", 0.05, 0.3, "warn"),
        ("constant", 0.05, 0.5, "stop"),
        ("constant", 0.4, 0.6, None),
        ("constant", 0.4, 0.7, "stop"),
        ("constant", 0.8, 0.9, "stop"),
        ("length", 990, 400, "warn"),
        ("length", 990, 100, "stop"),
        ("length", 48, 20, "warn"),
        ("length", 100, 150, None),
        ("length", 100, 1000, "stop"),
        ("entropy", 0.1, 0.14, None),
        ("entropy", 0.1, 0.2, "warn"),
        ("entropy", 0.1, 0.31, "stop"),
        ("entropy", 0.5, 0.05, None),
        ("identical", 0.1, 0.9, None),
        ("identical", 0.1, 1.0, "warn"),
    ],
)
def test_sizes_at_which_a_guard_speaks(metric: str, first: float, now: float, level: str | None) -> None:
    found = examine([record(0, **{metric: first}), record(10, **{metric: now})])
    assert [finding.level for finding in found.values()] == ([] if level is None else [level])


def test_a_few_prompts_of_high_entropy_are_no_alarm() -> None:
    """The mean doubles, on one prompt alone."""
    records = [record(0), record(10, entropy=1.0)]
    records[1] = dataclasses.replace(records[1], nats={"entropy": (16.5, *(0.5,) * (N - 1))})
    assert examine(records) == {}


@pytest.mark.parametrize(
    ("counted", "guard"), [("answered", "no_answer"), ("ended", "truncation"), ("not_looping", "repetition")]
)
def test_shares_that_fall_warn_and_below_half_of_their_best_stop(counted: str, guard: str) -> None:
    for now, level in ((K, None), (3, "warn"), (2, "warn"), (1, "stop")):
        records = [record(0), record(10, counts={counted: (now,) * N})]
        found = examine(records)
        assert {name: finding.level for name, finding in found.items()} == ({} if level is None else {guard: level})
    one_prompt = [record(0), record(10, counts={counted: (0, *(K,) * (N - 1))})]
    assert examine(one_prompt) == {}


def test_a_model_that_was_cut_off_before_training_may_learn_to_end() -> None:
    """As SmolLM2: .61 cut off at the start, none later."""
    assert examine([record(0, counts={"ended": (2,) * N}), record(10)]) == {}


def test_groups_without_advantage_at_two_looks_stop_by_the_training_step_s_number() -> None:
    first, last = record(0), record(10)
    none = dataclasses.replace(last, metrics={**last.metrics, "advantage/zero_groups": 1.0})
    some = dataclasses.replace(last, metrics={**last.metrics, "probe/identical": 1.0, "advantage/zero_groups": 0.9})
    assert examine([first, none])["no_advantage"].level == "warn", "a single step may be like that by chance"
    assert examine([first, none, none])["no_advantage"].level == "stop"
    assert examine([first, none, some, none])["no_advantage"].level == "warn"
    assert examine([first, some]) == {}


def test_too_few_prompts_with_a_frozen_answer_are_said() -> None:
    few = [record(t, counts=dict.fromkeys(("agreement", "content"), (K,) * 8)) for t in range(3)]
    assert examine(few)["agreement"] == guards.Alarm(
        "warn", "only 8 prompts have a frozen answer; a fall shows on 11 or more"
    )


def test_looks_choose_by_agreement_only_where_there_is_some_on_enough_prompts() -> None:
    some = [record(t, agreement=0.25 * t) for t in range(3)]
    assert guards.can_choose(some)
    assert not guards.can_choose(some[:1])  # nobody has agreed yet
    few = [record(t, counts=dict.fromkeys(("agreement", "content"), (K,) * 8)) for t in range(3)]
    assert not guards.can_choose(few)


def test_the_best_look_has_the_highest_agreement_then_the_lowest_cross_entropy_then_comes_first() -> None:
    records = [
        record(0, agreement=0.5, cross_entropy=0.1),
        record(10, agreement=0.75, cross_entropy=0.4),
        record(20, agreement=0.75, cross_entropy=0.3),
        record(30, agreement=0.75, cross_entropy=0.3),
    ]
    assert best_look(records).step == 20
    assert best_look(records[:1]).step == 0


def outgrowing(*shares: float, **last: Any) -> list[ProbeRecord]:
    """Agreement by look while the samples become ever likelier under the start and surer of themselves."""
    looks = [
        record(10 * t, agreement=share, cross_entropy=0.9 - 0.1 * t, self_agreement=0.6 + 0.05 * t)
        for t, share in enumerate(shares)
    ]
    changed = {f"probe/{name}": value for name, value in last.items()}
    return [*looks[:-1], dataclasses.replace(looks[-1], metrics={**looks[-1].metrics, **changed})]


def test_a_policy_has_outgrown_its_frozen_answers_if_all_but_agreement_speaks_for_it() -> None:
    assert guards.outgrown(outgrowing(1.0, 0.5))
    assert not guards.outgrown(outgrowing(1.0))
    assert not guards.outgrown(outgrowing(0.5, 1.0)), "nothing fell"
    assert not guards.outgrown(outgrowing(1.0, 0.5, self_agreement=0.5)), "its answers scatter"
    assert not guards.outgrown(outgrowing(1.0, 0.5, constant=0.3)), "one answer for many prompts"
    assert not guards.outgrown(outgrowing(1.0, 0.25)), "too much is lost for the start's veto"
    left = outgrowing(1.0, 0.5)
    left[1] = record(10, agreement=0.5, cross_entropy=1.2, self_agreement=0.9)
    assert not guards.outgrown(left), "its samples are less likely under the start"
    form = outgrowing(1.0, 0.5)
    form[1] = dataclasses.replace(form[1], counts={**form[1].counts, "content": form[0].counts["content"]})
    assert not guards.outgrown(form), "the same answers in another form"
    blind = [record(0, agreement=1.0, self_agreement=0.6), record(10, agreement=0.5, self_agreement=0.7)]
    assert not guards.outgrown(blind), "no start is there to speak for it"


def test_looks_before_a_renewal_are_neither_compared_nor_chosen() -> None:
    before = outgrowing(1.0, 0.5)
    renewed = [dataclasses.replace(record(step, agreement=0.75, cross_entropy=0.8), renewals=1) for step in (10, 20)]
    assert examine([*before, *renewed]) == {}
    assert best_look([*before, *renewed]).step == 10
    assert best_look([*before, renewed[0], dataclasses.replace(record(20, agreement=1.0), renewals=1)]).step == 20
    fallen = dataclasses.replace(record(20, agreement=0.5, cross_entropy=1.2), renewals=1)
    found = examine([*before, renewed[0], fallen])
    assert found["agreement"].level == "stop"
    assert "from 75% at step 10 to 50%" in found["agreement"].reason
    # What is no matter of the reference is still held against the first look of all.
    longer = dataclasses.replace(record(20, agreement=0.75, cross_entropy=0.8, length=900.0), renewals=1)
    assert examine([*before, renewed[0], longer])["length"].level == "stop"


def test_labels_choose_by_what_is_right_and_formatted() -> None:
    looks = [record(10 * t, agreement=a) for t, a in enumerate((0.5, 1.0, 0.75, 0.25))]
    right = (0.5, 0.6, 0.7, 0.7)
    labelled = [
        dataclasses.replace(one, metrics={**one.metrics, guards.LABELLED: share})
        for one, share in zip(looks, right, strict=True)
    ]
    assert best_look(labelled).step == 10
    assert guards.best_by_labels(labelled).step == 20  # of equals the one that agrees more
    without = [examine(looks[:n]) for n in range(1, 5)]
    assert [examine(labelled[:n]) for n in range(1, 5)] == without, "no guard reads labels"
