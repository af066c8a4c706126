"""Rewards that do not ship with rlif: registered, handed over for a run, or brought by an installed package."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlif.config import AdvantageConfig, NegatedConfig, RewardConfig
from rlif.errors import RlifError
from rlif.rewards import registry
from rlif.rewards.base import Reward, RewardInputs, reward_of
from rlif.rewards.registry import REWARDS, check_rewards, find_reward, needs_labels, register_reward, rewards_of
from rlif.rewards.score import score
from rlif.rng import Key
from rlif.types import Problem, Prompt, Rollouts, Sampling, TokenSignals, Verdict

ZEROS = torch.zeros(2, 3)
ROLLOUTS = Rollouts(
    prompts=(Prompt("p", "p", (5,), Problem("p", "p")),),
    group_size=2,
    tokens=torch.full((2, 3), 7),
    mask=torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(),
    sampler_logprobs=ZEROS,
    signals=TokenSignals(ZEROS, ZEROS, ZEROS),
    texts=("a", "bb"),
    stop_reasons=("eos", "eos"),
    sampling=Sampling(),
)
INPUTS = RewardInputs(ROLLOUTS, (Verdict(None, False, None),) * 2, Key(0, 1))


def vowels(inputs: RewardInputs) -> Tensor:
    """How many vowels it has.

    Not counting y.
    """
    return torch.tensor([sum(text.count(vowel) for vowel in "aeiou") for text in inputs.rollouts.texts])


@pytest.fixture(autouse=True)
def _table_as_before() -> Iterator[None]:
    before = dict(registry._known)
    yield
    registry._known.clear()
    registry._known.update(before)


def values(config: RewardConfig, **own: Reward) -> list[float]:
    return find_reward(config, own).function(INPUTS, config).tolist()


def test_a_registered_function_is_a_reward_like_any_other() -> None:
    assert register_reward("vowels", vowels, uses_labels=False, citation="ours") is vowels
    assert values(RewardConfig(name="vowels")) == [1.0, 0.0]
    assert values(NegatedConfig(of="vowels")) == [-1.0, 0.0]
    entry = REWARDS["vowels"]
    assert (entry.meaning, entry.citation, entry.uses_labels) == ("How many vowels it has.", "ours", False)
    scored = score(ROLLOUTS, INPUTS.verdicts, [RewardConfig(name="vowels")], AdvantageConfig(std=False), Key(0, 1))
    assert scored.advantages.tolist() == [0.5, -0.5]  # mean .5


def test_the_decorator_gives_the_function_back_and_a_second_parameter_gets_the_section() -> None:
    @register_reward("weighty", uses_labels=True, meaning="its weight in the mix")
    def weighty(inputs: RewardInputs, config: RewardConfig) -> list[float]:
        return [config.weight] * inputs.rollouts.n_rows

    assert weighty(INPUTS, RewardConfig(name="weighty", weight=3.0)) == [3.0, 3.0]
    assert values(RewardConfig(name="weighty", weight=2.0)) == [2.0, 2.0]
    assert needs_labels([RewardConfig(name="weighty"), RewardConfig(name="length")]) == ["weighty"]


def test_a_second_parameter_with_a_default_gets_the_section_too() -> None:
    def weighty(inputs: RewardInputs, config: RewardConfig | None = None, scale: float = 2.0) -> list[float]:
        return [config.weight * scale if config else -1.0] * inputs.rollouts.n_rows

    own = rewards_of({"weighty": weighty})
    assert values(RewardConfig(name="weighty", weight=3.0), **own) == [6.0, 6.0]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_reward_that_is_not_finite_of_a_finite_policy_is_to_be_mended(value: float) -> None:
    own = rewards_of({"mine": lambda inputs: [0.0, value]})
    with pytest.raises(RlifError, match=f"reward mine of a completion of prompt p is {value}.*mend the reward"):
        score(ROLLOUTS, INPUTS.verdicts, [RewardConfig(name="mine")], AdvantageConfig(), Key(0, 1), rewards=own)


@pytest.mark.parametrize("name", ["self_certainty", "verifiable", "negated", "multi", "mine"])
def test_a_taken_name_is_refused(name: str) -> None:
    register_reward("mine", vowels, uses_labels=False)
    with pytest.raises(RlifError, match=f"reward {name}: the name is taken"):
        register_reward(name, vowels, uses_labels=False)
    with pytest.raises(RlifError, match=f"reward {name}: the name is taken"):
        rewards_of({name: vowels})


def test_the_table_cannot_be_written_past_the_checks() -> None:
    with pytest.raises(TypeError):
        REWARDS["mine"] = REWARDS["length"]  # type: ignore[index]


def test_rewards_handed_over_are_found_first_and_leave_nothing_behind() -> None:
    own = rewards_of({"mine": vowels, "other": reward_of("another name", vowels, uses_labels=False)})
    assert values(RewardConfig(name="mine"), **own) == values(RewardConfig(name="other"), **own) == [1.0, 0.0]
    assert values(NegatedConfig(of="mine"), **own) == [-1.0, 0.0]
    assert needs_labels([RewardConfig(name="mine"), NegatedConfig(of="other")], own) == ["mine"]  # nobody said it
    assert own["other"].name == "other"
    with pytest.raises(RlifError, match="no reward 'mine'"):
        check_rewards([RewardConfig(name="mine")])


@pytest.mark.parametrize("returned", [[1.0], [[1.0, 2.0]], 1.0, torch.zeros(2, 3)])
def test_another_number_of_rewards_than_of_completions_is_refused(returned: object) -> None:
    reward = reward_of("mine", lambda inputs: returned, uses_labels=False)
    with pytest.raises(RlifError, match=r"reward mine: returned the shape .*; expected .* 2 completions"):
        reward.function(INPUTS, RewardConfig(name="mine"))


@pytest.mark.parametrize("wrong", [lambda: 1, lambda one, two, three: 1, max])  # a builtin shows no parameters
def test_what_is_no_reward_is_refused(wrong: Callable[..., int]) -> None:
    with pytest.raises(RlifError, match="reward mine: expected a function of RewardInputs"):
        rewards_of({"mine": wrong})


def test_a_reward_carries_no_gradient() -> None:
    weight = torch.ones(2, requires_grad=True)
    reward = reward_of("mine", lambda inputs: 2.0 * weight, uses_labels=False)
    assert not reward.function(INPUTS, RewardConfig(name="mine")).requires_grad


# Another package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution of two rewards, and one whose module is missing."""
    info = tmp_path / "other_rewards-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-rewards\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[rlif.rewards]\nzeros = other_rewards:zeros\nones = other_rewards:ONES\nlost = no_such_module:lost\n"
        "length = other_rewards:zeros\n"
    )
    (tmp_path / "other_rewards.py").write_text(
        "from rlif.rewards.base import Reward\n"
        "def zeros(inputs):\n    return [0.0] * inputs.rollouts.n_rows\n"
        "ONES = Reward('ones', 'one', 'theirs', False, lambda inputs, config: (inputs.rollouts.lengths > 0).float())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("package")
def test_a_package_brings_its_rewards_when_a_recipe_names_them() -> None:
    assert "zeros" not in REWARDS  # nothing is loaded until then
    assert values(RewardConfig(name="zeros")) == [0.0, 0.0]
    assert values(RewardConfig(name="ones")) == [1.0, 1.0]
    assert values(NegatedConfig(of="ones")) == [-1.0, -1.0]
    assert (REWARDS["zeros"].uses_labels, REWARDS["ones"].uses_labels) == (True, False)  # unless it says otherwise
    assert values(RewardConfig(name="length")) == [-3.0, -1.0]  # ours comes first


@pytest.mark.usefixtures("package")
def test_a_misspelt_one_is_told_its_neighbour_of_another_package_too() -> None:
    with pytest.raises(RlifError, match=r"no reward 'zeroes'; did you mean zeros\?"):
        find_reward(RewardConfig(name="zeroes"))
    with pytest.raises(RlifError, match=r"reward lost: its package cannot be loaded \(no_such_module:lost: No module"):
        find_reward(RewardConfig(name="lost"))


def test_a_built_in_reward_asks_no_other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed: a broken package must not stop those who do not use it."""

    def refuse(**options: str) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(registry, "entry_points", refuse)
    check_rewards([*(RewardConfig(name=name) for name in REWARDS), NegatedConfig(of="length")])
    with pytest.raises(AssertionError, match="looked up"):
        find_reward(RewardConfig(name="zeros"))


PAGE = (Path(__file__).parents[2] / "docs" / "own.md").read_text("utf-8")


def test_the_page_lists_every_field_that_a_reward_may_read() -> None:
    """And none that is not there."""
    _, _, section = PAGE.partition("### What a reward may read")
    named = set(re.findall(r"`(inputs|rollouts|verdict)\.(\w+)`", section.partition("\n## ")[0]))
    values: dict[str, type] = {"inputs": RewardInputs, "rollouts": Rollouts, "verdict": Verdict}
    fields = {(name, field.name) for name, kind in values.items() for field in dataclasses.fields(kind)}
    properties = {("rollouts", name) for name, one in vars(Rollouts).items() if isinstance(one, property)}
    assert named == fields | properties


def test_the_rewards_of_the_page_are_rewards() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n# my_rewards.py\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["brief"].uses_labels is names["sure_and_short"].uses_labels is False
    assert names["brief"](INPUTS) == [-1, -1]
    certain = TokenSignals(ZEROS, ZEROS, torch.tensor([[1.0, 2.0, 6.0], [4.0, 9.0, 9.0]]))  # row 1 has one token
    read = (Verdict(None, False, "7"),) * 2
    asked = dataclasses.replace(INPUTS, rollouts=dataclasses.replace(ROLLOUTS, signals=certain), verdicts=read)
    assert names["sure_and_short"](asked) == [3.0, 4.0]
    assert names["sure_and_short"](dataclasses.replace(asked, verdicts=INPUTS.verdicts)) == [0.0, 0.0]
