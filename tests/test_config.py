"""Recipes: what is right reads back equal, what is wrong gets one line that names its key."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif.config import (
    ArithmeticTask,
    ConsensusConfig,
    FileTask,
    LoraConfig,
    NegatedConfig,
    PolicyConfig,
    Recipe,
    RewardConfig,
)
from rlif.errors import RlifError
from rlif.recipe_hints import ALIASES
from rlif.recipes import dump_recipe, load_recipe
from rlif.recipes import parse_recipe as parse

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85"))
"""All of Unicode that a file can hold, but for the next-line character, which PyYAML writes and reads as a space."""


def minimal(**changes: Any) -> dict[str, Any]:
    """The smallest recipe, with changes at the top level."""
    data = {
        "steps": 1,
        "policy": {"model": "tiny-base"},
        "task": {"name": "arithmetic"},
        "reward": "self_certainty",
    }
    return {**data, **changes}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(minimal()), encoding="utf-8")
    return path


def complaint(action: Any, *arguments: Any, **options: Any) -> str:
    """The message of the `RlifError` that the call must raise; always one line."""
    with pytest.raises(RlifError) as raised:
        action(*arguments, **options)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


def test_recipes_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_reads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe


def test_the_dump_spells_out_every_default() -> None:
    dumped = yaml.safe_load(dump_recipe(parse(minimal())))
    assert list(dumped) == list(Recipe.model_fields)
    assert dumped["grpo"]["lr"] == 3e-6
    assert dumped["task"] == {field: getattr(ArithmeticTask(name="arithmetic"), field) for field in dumped["task"]}
    assert dumped["reward"] == [{"name": "self_certainty", "weight": 1.0, "reduce": "mean"}]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    question=TEXT,
    stop=st.lists(TEXT.filter(bool)),
    model=TEXT,
    lr=st.floats(1e-12, 1.0),
    weight=st.floats(min_value=0.0, allow_nan=False, allow_infinity=False),
    group_size=st.integers(2, 10**9),
)
def test_dump_round_trip(question: str, stop: list[str], model: str, lr: float, weight: float, group_size: int) -> None:
    recipe = parse(
        minimal(
            policy={"model": model},
            task={"name": "arithmetic", "question": question},
            rollout={"stop": stop, "group_size": group_size},
            reward=[{"name": "random", "weight": weight}, "length"],
            grpo={"lr": lr},
        )
    )
    assert parse(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_a_reward_may_be_a_name_a_mapping_or_a_list() -> None:
    one = RewardConfig(name="token_entropy")
    for reward in ("token_entropy", {"name": "token_entropy"}, ["token_entropy"], [{"name": "token_entropy"}]):
        assert parse(minimal(reward=reward)).reward == (one,)
    mixed = parse(minimal(reward=["token_entropy", {"name": "verifiable", "weight": 0.5}])).reward
    assert mixed == (one, RewardConfig(name="verifiable", weight=0.5))


def test_a_named_mix_is_written_down_as_its_parts_with_their_share_of_its_weight() -> None:
    votes, certainty = parse(minimal(reward="multi")).reward
    assert (votes.name, votes.weight, certainty.name, certainty.weight) == (
        "soft_consensus",
        0.5,
        "self_certainty",
        0.5,
    )
    recipe = parse(minimal(reward=["length", {"name": "multi", "weight": 3, "reduce": "sum"}]))
    assert [(one.name, one.weight, one.reduce) for one in recipe.reward] == [
        ("length", 1.0, "mean"),
        ("soft_consensus", 1.5, "sum"),
        ("self_certainty", 1.5, "sum"),
    ]
    assert parse(yaml.safe_load(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ([0.5, 0.2], "advantage.semantic_entropy: the least (0.5) is above the most (0.2)"),
        ([-1, 0.2], "advantage.semantic_entropy.0: expected 0 or more (given -1)"),
        ([0.1], "advantage.semantic_entropy.1: a further value is required"),
        ([2.1, 3], "advantage.semantic_entropy: no prompt reaches 2.1 nats with 8 answers; the most is ln G = 2.08"),
    ],
)
def test_bounds_that_no_prompt_can_meet_are_refused(bounds: list[float], said: str) -> None:
    with pytest.raises(RlifError) as error:
        parse(minimal(advantage={"semantic_entropy": bounds}))
    assert said in str(error.value)
    assert parse(minimal(advantage={"semantic_entropy": [0, 2.07]})).advantage.semantic_entropy == (0.0, 2.07)


def test_the_name_of_the_task_decides_its_keys() -> None:
    assert parse(minimal()).task == ArithmeticTask(name="arithmetic")
    task = {"name": "gsm8k", "path": "train.jsonl"}
    assert parse(minimal(task=task)).task == FileTask(name="gsm8k", path="train.jsonl")


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ('"off"', "off"), ("auto", "auto")])
def test_yaml_takes_on_and_off_for_booleans_but_a_recipe_does_not(written: str, meant: str, recipe_file: Path) -> None:
    assert load_recipe(recipe_file, [f"policy.chat_template={written}"]).policy.chat_template == meant


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("steps=7", None, "steps", 7),
        ("grpo.lr=1e-5", "grpo", "lr", 1e-5),  # YAML 1.1 reads this as a string
        ("grpo.lr=0.00001", "grpo", "lr", 1e-5),
        ("grpo.betas=[0.9, 0.95]", "grpo", "betas", (0.9, 0.95)),
        ("rollout.stop=['\\n\\n', ';']", "rollout", "stop", ("\\n\\n", ";")),
        ('rollout.stop=["\\n"]', "rollout", "stop", ("\n",)),
        ("rollout.group_size=16", "rollout", "group_size", 16),
        ("advantage.std=false", "advantage", "std", False),
        ("checkpoint.best=eval/right", "checkpoint", "best", "eval/right"),
        ("checkpoint.best=null", "checkpoint", "best", None),
        ("policy.model=a=b", "policy", "model", "a=b"),  # only the first = separates
        ("task.question='{a} + {b}'", "task", "question", "{a} + {b}"),
        ("reward=token_entropy", None, "reward", (RewardConfig(name="token_entropy"),)),
        ("reward=[random, length]", None, "reward", (RewardConfig(name="random"), RewardConfig(name="length"))),
        ("reward={name: negated, of: length}", None, "reward", (NegatedConfig(of="length"),)),
    ],
)
def test_overrides(override: str, section: str | None, key: str, value: object, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [override])
    holder = recipe if section is None else getattr(recipe, section)
    assert getattr(holder, key) == value
    assert type(getattr(holder, key)) is type(value)


def test_only_a_wrapping_reward_has_something_to_wrap_and_older_recipes_are_read() -> None:
    negated, plain = parse(minimal(reward=["negated", {"name": "length", "of": "self_certainty"}])).reward
    assert negated == NegatedConfig(of="self_certainty")
    assert plain == RewardConfig(name="length")  # what runs of before wrote down for every reward
    assert "of" not in RewardConfig.model_fields
    recipe = parse(minimal(reward=[{"name": "negated", "of": "length", "weight": 0.5}, "random"]))
    assert parse(yaml.safe_load(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"name": "negated", "off": "length"}, "reward.0.off: unknown key; did you mean reward.0.of?"),
        ({"name": "length", "weigth": 2}, "reward.0.weigth: unknown key; did you mean reward.0.weight?"),
        ({"name": "negated", "weight": -1}, "reward.0.weight: expected 0 or more (given -1)"),
        ({"name": ["negated"]}, "reward.0.name: expected text"),
        (3, "reward.0: expected a section"),
    ],
)
def test_a_mistake_in_a_reward_is_named_by_its_key(reward: object, said: str) -> None:
    with pytest.raises(RlifError) as error:
        parse(minimal(reward=reward))
    assert said in str(error.value)


def test_the_last_override_wins(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["seed=1", "rollout.top_k=3", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "override 'steps': write key=value, for example grpo.lr=1e-5"),
        ("=3", "override '=3': write key=value, for example grpo.lr=1e-5"),
        ("", "override '': write key=value, for example grpo.lr=1e-5"),
        ("steps.more=3", "override 'steps.more=3': steps is not a section in this recipe"),
        ("reward.0.weight=3", "override 'reward.0.weight=3': reward is not a section in this recipe"),
        (
            "rollout.stop=[",
            "override 'rollout.stop=[': the value is not YAML; text with signs in it stands in quotes: "
            "\"rollout.stop='['\"",
        ),
        (
            "reward={name: random, name: length}",
            "override 'reward={name: random, name: length}': the value is not YAML; text with signs in it stands in "
            "quotes: \"reward='{name: random, name: length}'\"",
        ),
        ("a\nb", "override 'a\\nb': write key=value, for example grpo.lr=1e-5"),
    ],
)
def test_an_override_that_cannot_be_read(override: str, said: str, recipe_file: Path) -> None:
    assert complaint(load_recipe, recipe_file, [override]) == said


def test_an_override_is_checked_like_the_file(recipe_file: Path) -> None:
    message = complaint(load_recipe, recipe_file, ["grop.lr=1e-5"])
    assert message == "override 'grop.lr=1e-5': grop: unknown key; did you mean grpo?"
    message = complaint(load_recipe, recipe_file, ["task.question={a}+{b}"])  # to YAML, {a} is a mapping
    said = "override 'task.question={a}+{b}': the value is not YAML; text with signs in it stands in quotes: "
    assert message == said + "\"task.question='{a}+{b}'\""
    assert load_recipe(recipe_file, ["task.question='{a}+{b}'"]).task.question == "{a}+{b}"  # and so it does


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # Misspelt keys: the nearest known one is named, with its whole path.
        ({"step": 3}, "step: unknown key; did you mean steps?"),
        ({"lr": 1}, "lr: unknown key; did you mean grpo.lr?"),  # a key of another section before a likeness
        ({"group_size": 4}, "group_size: unknown key; did you mean rollout.group_size?"),
        ({"rewards": "random"}, "rewards: unknown key; did you mean reward?"),
        ({"math": 1}, "my.yaml: math: unknown key"),  # the name of a task is no key, and nothing is like it
        ({"learning_rate": 1e-5}, "learning_rate: unknown key; did you mean grpo.lr?"),  # as other trainers call it
        ({"num_generations": 8}, "num_generations: unknown key; did you mean rollout.group_size?"),
        ({"grpo": {"beta": 0.1}}, "grpo.beta: unknown key; did you mean grpo.kl_coef?"),
        ({"output_dir": "x"}, "output_dir: unknown key; that is the option --out of rlif train"),
        ({"rollout": {"groupsize": 4}}, "rollout.groupsize: unknown key; did you mean rollout.group_size?"),
        ({"grpo": {"learning_rate": 1e-5}}, "grpo.learning_rate: unknown key; did you mean grpo.lr?"),
        ({"policy": {"model": "m", "chat": "on"}}, "policy.chat: unknown key; did you mean policy.chat_template?"),
        ({"policy": {"model": "m", "lora": {"rr": 8}}}, "policy.lora.rr: unknown key; did you mean policy.lora.r?"),
        ({"policy": {"model": "m", "lora": {"r": 0}}}, "policy.lora.r: "),
        ({"policy": {"model": "m", "lora": {"targets": []}}}, "policy.lora.targets: "),
        ({"policy": {"model": "m", "lora": 16}}, "policy.lora: "),
        ({"task": {"name": "arithmetic", "hihg": 9}}, "task.hihg: unknown key; did you mean task.high?"),
        (
            {"task": {"name": "arithmetic", "path": "x"}},
            "task.path: the task arithmetic reads no file; for problems of ",
        ),
        ({"task": {"name": "math", "path": "p", "limt": 9}}, "task.limt: unknown key; did you mean task.limit?"),
        ({"task": {"name": "file", "path": "p", "arithmetic": 1}}, "task.arithmetic: unknown key"),
        ({"reward": {"name": "random", "wieght": 2}}, "reward.0.wieght: unknown key; did you mean reward.0.weight?"),
        ({"reward": ["random", {"name": "length", "reduced": "sum"}]}, "did you mean reward.1.reduce?"),
        # Within a template no other trainer has a name of its own.
        (
            {"task": {"name": "arithmetic", "template": {"user": "{question}", "system_prompt": "Add."}}},
            "my.yaml: task.template.system_prompt: unknown key; did you mean task.template.system?",
        ),
        # Values out of range: key and value.
        ({"steps": 0}, "steps: expected 1 or more (given 0)"),
        ({"rollout": {"top_p": 1.5}}, "rollout.top_p: expected 1 or less (given 1.5)"),
        ({"rollout": {"top_p": 0}}, "rollout.top_p: expected a number above 0 (given 0)"),
        ({"grpo": {"betas": [0.9, 1.5]}}, "grpo.betas.1: expected a number below 1 (given 1.5)"),
        ({"grpo": {"betas": [-0.1, 0.5]}}, "grpo.betas.0: expected 0 or more (given -0.1)"),
        ({"grpo": {"lr": 1.5}}, "grpo.lr: expected 1 or less (given 1.5)"),
        ({"rollout": {"stop": ["."]}, "seed": -1}, "seed: "),
        ({"rollout": {"stop": [".", ""]}}, "rollout.stop.1: expected text that is not empty"),
        ({"rollout": {"temperature": -1.0}}, "rollout.temperature: expected 0 or more"),
        ({"grpo": {"lr": "fast"}}, "grpo.lr: expected a number"),
        ({"grpo": {"lr": float("inf")}}, "grpo.lr: expected a finite number (given inf)"),
        ({"reward": [{"name": "random", "weight": float("nan")}]}, "reward.0.weight: expected a finite number"),
        ({"grpo": {"schedule": "cubic"}}, "grpo.schedule: expected one of 'constant', 'linear' or 'cosine' (given 'cu"),
        ({"rollout": {"prompts": 2.5}}, "rollout.prompts: expected a whole number"),
        (
            {"grpo": {"micro_batch_tokens": True}},
            "grpo.micro_batch_tokens: expected a whole number (given True)",
        ),
        (
            {"grpo": {"micro_batch_tokens": "many"}},
            "grpo.micro_batch_tokens: expected a whole number (given 'm",
        ),
        ({"seed": True}, "seed: expected a whole number (given True)"),
        ({"task": {"name": "arithmetic", "low": 7, "high": 3}}, "task: low (7) is above high (3)"),
        ({"reward": []}, "reward: name at least one"),
        ({"rollout": 3}, "rollout: expected a section, which is a mapping of keys to values (given 3)"),
        # What does not go together.
        # What would train on nothing.
        ({"rollout": {"group_size": 1}}, "rollout.group_size: 1 makes every advantage 0"),
        ({"rollout": {"group_size": 1}, "advantage": {"std": False}}, "rollout.group_size: 1 makes every advantage 0"),
        ({"rollout": {"temperature": 0}}, "rollout.temperature: 0 draws the same completion for a whole group"),
        ({"rollout": {"temperature": 0, "top_k": 1}}, "rollout.temperature: 0 draws the same completion"),
        ({"rollout": {"top_k": 1}}, "rollout.top_k: 1 draws the same completion for a whole group"),
        ({"reward": {"name": "random", "weight": 0}}, "reward: every weight is 0, so nothing would be learnt"),
        ({"reward": [{"name": "random", "weight": 0}, {"name": "multi", "weight": 0}]}, "reward: every weight is 0"),
        (
            {"rollout": {"prompts": 10}, "grpo": {"minibatches": 4}},
            "grpo.minibatches: 4 does not divide rollout.prompts (10)",
        ),
        # What is missing.
        ({"policy": {}}, "policy.model: this key is required"),
        ({"task": {"name": "gsm8k"}}, "task.path: this key is required"),
        ({"task": {"low": 1}}, "task: "),
        ({"task": {"name": "sums"}}, "'arithmetic', 'file', 'gsm8k', 'math'"),
        ({"reward": {"weight": 2.0}}, "reward.0.name: this key is required"),
        # More than one mistake: misspelt keys first, and not what is missing for that reason.
        ({"steps": 0, "seed": -1}, "my.yaml: steps: expected 1 or more (given 0); also seed: expected 0 or more"),
        ({"steps": 0, "grpo": {"lrr": 1}}, "my.yaml: grpo.lrr: unknown key; did you mean grpo.lr?; also steps: exp"),
        ({"task": {"name": "file", "pathh": "x"}}, "my.yaml: task.pathh: unknown key; did you mean task.path?"),
        ({"grpo": dict.fromkeys("abcdef", 1)}, "(and 2 more)"),
    ],
)
def test_a_mistake_is_named_by_its_key(changes: dict[str, Any], said: str) -> None:
    message = complaint(parse, minimal(**changes), source="my.yaml")
    assert message.startswith("my.yaml: ")
    assert said in message


@pytest.mark.parametrize("key", ["steps", "policy", "task", "reward"])
def test_a_missing_key(key: str) -> None:
    data = minimal()
    del data[key]
    assert complaint(parse, data, source="my.yaml") == f"my.yaml: {key}: this key is required"


def test_a_weight_of_0_beside_another_logs_a_reward() -> None:
    recipe = parse(minimal(reward=[{"name": "random", "weight": 0.0}, "length"]))
    assert [reward.weight for reward in recipe.reward] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a recipe is a mapping of keys to values"),
        (b"- steps: 3\n", "a recipe is a mapping of keys to values"),
        (b"steps: 3\n  policy: {\n", "not YAML ("),
        (b"steps: !!python/object/apply:os.getcwd []\n", "not YAML ("),  # YAML that would run code is not read
        (b"steps: \xff\xfe\n", "not YAML ("),
        (b"1: 2\n", "a recipe is a mapping of keys to values"),
        (b"steps: 3\nseed: 1\nsteps: 4\n", "not YAML ('steps' stands twice in"),
        (b"grpo:\n  lr: 0.1\n  lr: 0.2\n", "line 3, column 3:"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = complaint(load_recipe, path)
    assert message.startswith(f"{path}: ")
    assert said in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert complaint(load_recipe, missing).startswith(f"{missing}: cannot read the recipe (No such file or directory)")
    assert complaint(load_recipe, tmp_path).startswith(f"{tmp_path}: cannot read the recipe (Is a directory)")


def test_a_recipe_cannot_be_changed() -> None:
    recipe = parse(minimal())
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 2
    assert recipe.policy == PolicyConfig(model="tiny-base")


def test_the_frozen_consensus_is_drawn_at_the_temperature_that_its_page_gives_the_reason_for() -> None:
    page = (Path(__file__).parents[1] / "docs/rewards.md").read_text()
    assert f"`consensus.temperature` ({ConsensusConfig().temperature:g})" in page
    assert "at temperature 1 and on .86 at 0.4" in page


def test_one_target_of_an_adapter_needs_no_list() -> None:
    lora = parse(minimal(policy={"model": "m", "lora": {"targets": "q_proj"}})).policy.lora
    assert lora is not None
    assert lora.targets == ("q_proj",)
    assert parse(minimal(policy={"model": "m", "lora": {}})).policy.lora == LoraConfig(r=16, alpha=32)


@pytest.mark.parametrize("task", [{"name": "arithmetic"}, {"name": "file", "path": "x"}], ids=["arithmetic", "file"])
def test_whatever_stands_at_a_key_the_complaint_is_in_our_words(task: dict[str, Any]) -> None:
    """The words of the library that checks mean nothing to who wrote a recipe."""
    whole = yaml.safe_load(dump_recipe(parse(minimal(task=task))))
    places = [(key, None) for key in whole]
    places += [(key, inner) for key, section in whole.items() if isinstance(section, dict) for inner in section]
    said = set()
    for key, inner in places:
        for value in (None, "", "x", -1, 0.5, 10**400, True, [], [[]], {}, {"a": 1}, [{"name": 3}], "\ud800"):
            section = value if inner is None else {**whole[key], inner: value}
            try:
                parse({**whole, key: section})
            except RlifError as error:
                said.add(str(error))
    assert len(said) > 200
    foreign = re.compile(r"(?i)input should|valid|pydantic|extra inputs|field required|unable to|type=")
    assert not [message for message in said if foreign.search(message)]


def test_every_name_of_another_trainer_leads_to_a_key_that_is_there() -> None:
    whole = parse(minimal()).model_dump()
    whole["task"] |= parse(minimal(task={"name": "file", "path": "x"})).model_dump()["task"]
    for alias, meant in ALIASES.items():
        section, _, key = meant.partition(".")
        assert meant.startswith("--") or (key in whole[section] if key else section in whole), alias
        assert alias not in whole, alias
    assert "did you mean" not in complaint(parse, minimal(zzz=1))
