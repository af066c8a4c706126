"""The bracket around a phase, the recipe's words for the library's arguments, and what a run will log."""

import re
from pathlib import Path

import pytest
import torch

from rlif.config import LoraConfig, Merge, Recipe
from rlif.errors import Argument, RlifError, named
from rlif.recipes import RECIPE_KEYS, parse_recipe
from rlif.runs.checkpoint import save_checkpoint
from rlif.training import phases
from rlif.training.callbacks import NullCallback
from rlif.training.optim import NonFiniteError
from rlif.training.phases import Phases
from rlif.training.resolve import check_best
from rlif.types import Sampling


class Begun(NullCallback):
    """Keeps what began."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []

    def begin(self, phase: str, step: int, total: int) -> None:
        self.phases.append((phase, step, total))


def test_seconds_of_a_phase_in_parts_are_summed_and_handed_over_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(phases.time, "monotonic", lambda: next(now))
    callback = Begun()
    bracket = Phases(callback, tmp_path)
    for name, tokens in (("watch", 0), ("update", 7), ("watch", 0)):
        with bracket.phase(name, step=3, tokens=tokens):
            pass
    assert bracket.take_seconds() == {"time/watch": 5.0, "time/update": 2.0}
    assert bracket.take_seconds() == {}
    assert callback.phases == [("update", 3, 7)]  # what works through no tokens has no bar


@pytest.mark.parametrize("saved", [False, True])
def test_a_phase_that_fails_ends_in_one_line_that_says_what_is_left(saved: bool, tmp_path: Path) -> None:
    last, begin = "there is no checkpoint yet", "begin again"
    if saved:
        path = save_checkpoint(tmp_path, 2, write_model=lambda folder: None, tensors={}, state={})
        last, begin = f"the last good checkpoint is {path}", f"begin a new run at it (policy.model={path})"
    bracket = Phases(NullCallback(), tmp_path)
    with pytest.raises(RlifError) as caught, bracket.phase("update", step=3):
        raise NonFiniteError("the loss is nan")
    assert str(caught.value) == (
        f"step 3: the loss is nan; nothing of this step is kept; {last}; {begin} with a lower grpo.lr or a higher "
        "grpo.kl_coef"
    )
    with pytest.raises(RlifError) as full, bracket.phase("rollout", step=4):
        raise torch.OutOfMemoryError("CUDA out of memory.\nOf the allocated memory")
    assert str(full.value).startswith(f"step 4: out of memory (CUDA out of memory.); {last}; lower grpo.micro_batch")
    with pytest.raises(ZeroDivisionError), bracket.phase("score", step=4):  # a bug keeps its traceback
        raise ZeroDivisionError
    assert bracket.take_seconds() == {}


def recipe(**changes: object) -> Recipe:
    data: dict[str, object] = {"steps": 1, "policy": {"model": "m"}, "task": {"name": "arithmetic"}, "reward": "length"}
    return parse_recipe({**data, **changes})


def test_every_argument_has_the_name_of_a_key_that_a_recipe_knows() -> None:
    file = recipe(task={"name": "file", "path": "p"}).model_dump()
    known = {f"{name}.{key}" for one in (file, recipe().model_dump()) for name, section in one.items()
             if isinstance(section, dict) for key in section}  # fmt: skip
    known |= {f"policy.model.merge.{key}" for key in Merge.model_fields}
    known |= {f"policy.lora.{key}" for key in LoraConfig.model_fields}
    assert set(RECIPE_KEYS.values()) <= known
    with pytest.raises(RlifError, match=r"^policy\.model: no such file$"), named(RECIPE_KEYS):
        raise RlifError(Argument("model"), ": no such file")


def test_the_best_checkpoint_may_go_by_a_reward_that_occurs_twice() -> None:
    twice = [{"name": "self_certainty"}, {"name": "self_certainty", "reduce": "sum"}]
    for name in ("self_certainty", "self_certainty_1"):
        check_best(recipe(reward=twice, checkpoint={"best": f"reward/{name}/mean"}))
    for name in ("self_certainty_0", "self_certainty_2", "length"):
        with pytest.raises(RlifError, match=rf"logs no 'reward/{name}/mean'"):
            check_best(recipe(reward=twice, checkpoint={"best": f"reward/{name}/mean"}))


UNLOGGED = [
    ("probe/agreement", "probe.every", {"probe": {"every": 0}}, {"probe": {"every": 1}}),
    ("guard/length", "probe.every", {"steps": 19}, {"steps": 20, "reward": "self_certainty"}),
    ("probe/labelled_right", "probe.labels", {"probe": {"every": 1}}, {"probe": {"every": 1, "labels": "l"}}),
    ("probe/kl/answer", "probe.start", {"probe": {"every": 1, "start": False}}, {"probe": {"every": 1}}),
    ("probe/cross_entropy", "probe.start", {"probe": {"every": 1, "start": False}}, {"probe": {"every": 1}}),
    ("probe/renewals", "probe.refresh", {"probe": {"every": 1}}, {"probe": {"every": 1, "refresh": 1}}),
    ("kl_coef", "grpo.kl_target", {}, {"grpo": {"kl_target": 0.1}}),
    ("entropy_coef", "grpo.entropy_floor", {}, {"grpo": {"entropy_floor": 0.1}}),
    ("kl_cov", "grpo.kl_cov", {}, {"grpo": {"kl_cov": 0.1, "kl_cov_from": "start"}}),
    ("importance/mean", "grpo.importance_cap", {}, {"grpo": {"importance_cap": 2.0}}),
    ("importance/capped", "grpo.importance_cap", {"grpo": {"importance_cap": 0.0}}, {"rollout": {"engine": "vllm"}}),
    ("advantage/token_share", "grpo.clip_cov or grpo.answer_share", {}, {"grpo": {"answer_share": 0.5}}),
    ("entropy/measured", "log.entropy_share", {"log": {"entropy_share": 0.0}}, {"rollout": {"top_k": 5}}),
    ("entropy/predicted", "log.entropy_share, and rollouts without", {"rollout": {"top_k": 5}}, {}),
    ("entropy/advantage_covariance", "rollouts without", {"rollout": {"top_p": 0.5}}, {"log": {"entropy_share": 0.0}}),
    ("eval/greedy_right", "eval.greedy", {"eval": {"every": 1, "greedy": False}}, {"eval": {"every": 1}}),
    ("time/eval", "eval.every", {}, {"eval": {"every": 1}}),
]


@pytest.mark.parametrize(("name", "needs", "without", "having"), UNLOGGED, ids=[row[0] for row in UNLOGGED])
def test_the_best_checkpoint_goes_by_nothing_that_this_recipe_never_logs(
    name: str, needs: str, without: dict[str, object], having: dict[str, object]
) -> None:
    best = {"checkpoint": {"best": name}}
    with pytest.raises(RlifError, match=rf"^checkpoint\.best: this run logs no '{name}': .* needs {re.escape(needs)}"):
        check_best(recipe(**without, **best))
    check_best(recipe(**having, **best))


def test_greedy_rollouts_have_a_temperature_to_be_trained_at() -> None:
    assert [Sampling(temperature=t).training_temperature for t in (0.0, 0.7, 1.0)] == [1.0, 0.7, 1.0]
