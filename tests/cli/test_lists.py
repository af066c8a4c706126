"""Lists of what there is by name, and what a shell completes."""

from pathlib import Path

import pytest

from hostile import run
from rlif.config import MIXES, Recipe
from rlif.recipes import shipped_recipes
from rlif.rewards.registry import REWARDS, WRAPPERS
from rlif.signals import SIGNALS
from rlif.tasks import BUILDERS
from rlif.tasks.benchmarks import BENCHMARKS
from rlif.tasks.templates import TEMPLATES


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["rewards"], [*REWARDS, *WRAPPERS, *MIXES]),
        (["signals"], list(SIGNALS)),
        (["templates"], list(TEMPLATES)),
        (["tasks"], [*BUILDERS, "package.module:function"]),
        (["recipes"], list(shipped_recipes())),
        (["eval", "--tasks", "list"], list(BENCHMARKS)),
    ],
)
def test_a_list_has_every_name_at_the_beginning_of_a_line(arguments: list[str], names: list[str]) -> None:
    ended = run(arguments)
    assert (ended.code, ended.err) == (0, "")
    first = [line.split(" ")[0] for line in ended.out.splitlines()]
    assert set(names) <= set(first)


def test_the_list_of_rewards_says_which_need_labels() -> None:
    lines = {line.split()[0]: line.split()[1] for line in run(["rewards"]).out.splitlines() if line}
    assert {name for name, labels in lines.items() if labels == "yes"} == {
        name for name, reward in REWARDS.items() if reward.uses_labels
    }


def test_tasks_names_the_data_sets_of_the_gym() -> None:
    assert "chain_sum" in run(["tasks"]).out


def test_a_recipe_is_printed_as_it_is_written() -> None:
    assert run(["recipe", "tiny"]).out == shipped_recipes()["tiny"].read_text("utf-8")
    assert "did you mean tiny?" in run(["recipe", "tini"]).err


def test_every_key_of_a_recipe_is_explained() -> None:
    said = run(["recipe", "--keys"]).out
    firsts = {line.split(" ")[0] for line in said.splitlines()}
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    keys = {key for section in sections.values() for key in getattr(section, "model_fields", ())}
    assert keys <= firsts
    assert {"user", "dataset", "low", "question_column", "ratio", "steps"} <= firsts
    only = run(["recipe", "--keys", "guards"]).out
    assert "merge_back" in only
    assert "kl_coef" not in only


def test_help_of_train_shows_the_keys_and_where_they_are_explained() -> None:
    said = run(["train", "--help"]).out
    assert "guards: stop, merge_back, restore" in said
    assert "rlif recipe --keys" in said


def test_a_shell_is_told_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_RLIF_COMPLETE": "complete_bash", "COMP_WORDS": "rlif rec", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run([]).out.split() == ["recipes", "recipe"]


def test_a_package_that_is_installed_is_listed_and_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "their_rewards-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rewards\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rlif.rewards]\ntheirs = no_such_module_at_all:f\n")
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = [line for line in run(["rewards"]).out.splitlines() if line.startswith("theirs")]
    assert "their-rewards" in line
