"""A policy that improves beyond its frozen answers: when guards stop it, what that loses, and what a renewal saves.

The policy is scripted and judged by its labels at the end, which no look reads. To half of the prompts the untrained
one knows the answer; to the others 12 of 16 samples say the same wrong thing and 4 are right, and training turns these
shares round, a quarter of the samples at each look, while its answers become ever likelier under the start.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rlif
from rlif.config import Recipe
from rlif.errors import RlifError
from rlif.monitoring import probe
from rlif.recipes import parse_recipe
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.training.looks import Looks
from rlif.training.parallel import ALONE, Ranks
from rlif.training.prompt_source import PromptSource
from rlif.training.setup import Setup
from rlif.types import Problem, Prompt, Rollouts, Sampling
from scripted import Scripted
from toys import toy_policy

pytestmark = pytest.mark.filterwarnings("ignore:step [0-9]+:RuntimeWarning")

N, LOOKS = 32, 8
PROMPTS = tuple(Prompt(f"p{i}", f"{i}", (3 + i, 4), Problem(f"p{i}", f"{i}", None)) for i in range(N))
TASK = rlif.task_of([Problem("any", "?", "0")], format="boxed", name="sums")
QUARTERS = (1, 2, 3, 4, 4, 4, 4, 4)
"""Of four samples, those that are right on a misconceived prompt, by look."""


class Course(Scripted):
    """A policy whose answers, and weights, depend on the look it is at."""

    def __init__(self, right_quarters: tuple[int, ...]) -> None:
        self.right_quarters = right_quarters
        super().__init__(self._say)
        self.move_to(0)

    def move_to(self, look: int) -> None:
        self.at, self.policy = look, toy_policy(seed=look)

    def _say(self, i: int, j: int, sampling: Sampling, key: Key) -> str:
        if not sampling.temperature:
            j = 3  # greedy: what most samples say at first
        right = i % 2 == 0 or j % 4 < self.right_quarters[self.at]
        return rf"{j}: \boxed{{{2 * i + 100 if right else 7 * i + 1000}}}"

    @property
    def truth(self) -> float:
        """Share of right samples."""
        return 0.5 + 0.5 * self.right_quarters[self.at] / 4


def recipe(**probe_keys: Any) -> Recipe:
    return parse_recipe(
        {
            "steps": 10 * (LOOKS - 1),
            "policy": {"model": "tiny-base"},
            "task": {"name": "arithmetic"},
            "rollout": {"prompts": 2, "group_size": 2, "max_new_tokens": 64},
            "reward": "self_certainty",
            "probe": {"every": 10, "prompts": N, **probe_keys},
        }
    )


def looks_of(
    engine: Engine, settings: Recipe, out: Path, state: dict[str, Any] | None = None, ranks: Ranks = ALONE
) -> Looks:
    setup, source = object.__new__(Setup), object.__new__(PromptSource)  # of each what looks read
    source.__dict__.update(task=TASK)
    setup.__dict__.update(
        recipe=settings,
        rewards={},
        prompts=source,
        probe_prompts=PROMPTS,
        labelled_prompts=(),
        engine=engine,
        start=toy_policy(),
        state={} if state is None else state,
        ranks=ranks,
    )
    return Looks(setup, out)


@pytest.fixture
def likelier(monkeypatch: pytest.MonkeyPatch) -> Callable[[Course], None]:
    """Let a policy's samples become ever likelier under the start: the nats of a token fall by .1 at each look."""

    def of(engine: Course) -> None:
        def likelihood(start: object, rollouts: Rollouts, *how: object) -> torch.Tensor:
            return torch.where(rollouts.mask, -0.9 + 0.1 * engine.at, 0.0)

        monkeypatch.setattr(probe, "start_logprobs", likelihood)
        monkeypatch.setattr(probe, "answer_starts", lambda *given: None)

    return of


def follow(engine: Course, settings: Recipe, out: Path) -> Looks:
    """Look at a run until it ends; a renewal follows where it is due, as in `rlif.training.run.Run.observe`."""
    found = looks_of(engine, settings, out)
    found.settle(engine, lambda tokens: None)
    for look in range(LOOKS):
        engine.move_to(look)
        found.look(10 * engine.at, {}, lambda tokens: None)
        if found.renewal_due:
            found.renew(lambda tokens: None)
        if found.stopped:
            break
    return found


def test_a_policy_that_improves_beyond_its_reference_is_stopped_after_the_veto_and_loses_all_of_it(
    tmp_path: Path, likelier: Callable[[Course], None]
) -> None:
    """Agreement with the frozen majority, wrong on every second prompt, falls from 7/8 by an eighth at each look: it is
    significant at the first one, the start's veto holds for three, and the fourth ends the run. What is restored is the
    untrained policy, .375 below what was reached."""
    likelier(engine := Course(QUARTERS))
    found = follow(engine, recipe(), tmp_path)
    verdict = found.verdict(10 * engine.at)
    assert verdict is not None
    assert verdict["stopped"]["step"] == 40
    assert (verdict["step"], verdict["looks"]) == (0, 5)
    assert "renewed" not in verdict
    reached = engine.truth
    engine.move_to(verdict["step"] // 10)
    assert reached - engine.truth == pytest.approx(0.375)


def test_with_a_renewed_reference_nothing_is_lost(tmp_path: Path, likelier: Callable[[Course], None]) -> None:
    """The first fall, at step 10, is no time for it: two of four samples are right, and the policy agrees with itself
    less than at the start. At step 20 three of four are, and their answer is frozen."""
    likelier(engine := Course(QUARTERS))
    found = follow(engine, recipe(refresh=2), tmp_path)
    verdict = found.verdict(10 * engine.at)
    assert verdict is not None
    assert (verdict["stopped"], verdict["renewed"], verdict["value"]) == (None, [20], 1.0)
    assert (verdict["looks"], engine.at) == (LOOKS, LOOKS - 1)
    engine.move_to(verdict["step"] // 10)
    assert engine.truth == 1.0


def test_a_policy_that_leaves_its_start_is_stopped_with_renewals_as_without(tmp_path: Path, monkeypatch: Any) -> None:
    """The same answers, but ever less likely under the start: nothing speaks for them."""
    engine = Course(QUARTERS)
    monkeypatch.setattr(
        probe, "start_logprobs", lambda start, r, *how: torch.where(r.mask, -0.9 - 0.1 * engine.at, 0.0)
    )
    monkeypatch.setattr(probe, "answer_starts", lambda *given: None)
    verdicts = []
    for name, settings in (("without", recipe()), ("with", recipe(refresh=2))):
        engine.move_to(0)
        verdicts.append(follow(engine, settings, tmp_path / name).verdict(10 * engine.at))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0] is not None
    assert verdicts[0]["stopped"]["step"] == 10


def test_a_resumed_run_goes_on_with_the_answers_that_were_frozen_last(
    tmp_path: Path, likelier: Callable[[Course], None]
) -> None:
    likelier(engine := Course(QUARTERS))
    settings, state = recipe(refresh=1), dict[str, Any]()
    whole = looks_of(engine, settings, tmp_path, state)
    whole.settle(engine, lambda tokens: None)
    for look in (0, 1, 2):
        engine.move_to(look)
        logged = whole.look(10 * engine.at, {ZERO_GROUPS: 0.5}, lambda tokens: None)
    assert logged["probe/renewals"] == 0.0
    assert whole.renewal_due
    assert whole.renew(lambda tokens: None) == {"probe/renewals": 1.0}
    # The same look once more is told of the same step, or a guard would count it as a second one without an advantage.
    assert [record["metrics"][ZERO_GROUPS] for record in state["probe"]["records"]] == [0.5] * 4
    assert not whole.renewal_due, "probe.refresh allows one"
    kept = json.loads(json.dumps(state))
    again = looks_of(engine, settings, tmp_path, kept)
    assert again.settled
    engine.move_to(3)
    assert again.look(30, {}, lambda tokens: None) == whole.look(30, {}, lambda tokens: None)
    assert json.loads(json.dumps(kept)) == json.loads(json.dumps(state))
    path = tmp_path / "probe" / f"reference-{state['probe']['reference']}.json"
    content = path.read_bytes()
    for damaged in (content[:-1], content.replace(b'"100"', b'"101"')):
        path.write_bytes(damaged)
        with pytest.raises(RlifError, match=r"reference-.*; the policy that gave them is no longer there: .* copy"):
            looks_of(engine, settings, tmp_path, kept)
    path.unlink()
    lost = looks_of(engine, settings, tmp_path, kept)
    assert not lost.settled
    with pytest.raises(RlifError, match=r"reference-.*: the answers that were frozen after step 20 are gone; .* copy"):
        lost.settle(engine, lambda tokens: None)


def test_renewals_need_the_frozen_start() -> None:
    with pytest.raises(RlifError, match=r"probe\.refresh: only the frozen start can tell .* set probe\.start"):
        recipe(refresh=1, start=False)


class Second(Ranks):
    """A rank that measures by rounding another share of groups without an advantage than the first one does."""

    rank, size = 1, 2

    def agreed(self, value: Any) -> Any:
        return dict.fromkeys(value, 0.25) if value == {ZERO_GROUPS: 0.5} else value

    def split(self, rows: Any, work: Any, weights: Any = None) -> Any:
        return [work(rows)]  # the first one is not there to do its share


ZERO_GROUPS = "advantage/zero_groups"


def test_what_guards_read_of_a_step_is_the_first_rank_s_on_every_rank(tmp_path: Path) -> None:
    engine = Course(QUARTERS)
    found = looks_of(engine, recipe(), tmp_path, ranks=Second())
    found.settle(engine, lambda tokens: None)
    found.look(0, {ZERO_GROUPS: 0.5}, lambda tokens: None)
    assert found._state["records"][-1]["metrics"][ZERO_GROUPS] == 0.25
