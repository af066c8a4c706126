"""Grids: the cells are all combinations but those left out, equal settings have one digest, mistakes are one line."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlif.errors import RlifError
from rlif.experiments.grid import Cell, _digest, cells, choose, find_grid, load_grid, shipped_grids
from rlif.recipes import parse_recipe

SMALL: dict[str, Any] = {
    "recipe": "tiny",
    "models": {"base": "tiny-base", "instruct": "tiny-instruct"},
    "instruct": ["instruct"],
    "rewards": {"certainty": "self_certainty", "labels": "verifiable"},
    "seeds": [0, 1],
    "set": {"steps": 2},
}


def made(folder: Path, **changes: Any) -> tuple[Cell, ...]:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False), "utf-8")
    return cells(load_grid(path))


def labels(found: tuple[Cell, ...]) -> list[tuple[str, ...]]:
    return [tuple(cell.axes.values()) for cell in found]


def test_cells_are_all_combinations_one_seed_after_the_other(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert labels(found) == [
        (model, reward, seed)
        for seed in ("0", "1")
        for model in ("base", "instruct")
        for reward in ("certainty", "labels")
    ]
    last = found[-1]
    assert (last.recipe.policy.model, last.recipe.reward[0].name, last.recipe.seed) == (
        "tiny-instruct",
        "verifiable",
        1,
    )
    assert {cell.recipe.steps for cell in found} == {2}
    assert [cell.model_kind for cell in found[:4]] == ["base", "base", "instruct", "instruct"]
    assert [cell.reward_kind for cell in found[:2]] == ["internal", "verifiable"]
    assert last.name == f"instruct-labels-s1-{last.digest[:8]}"
    assert len({cell.digest for cell in found}) == 8


def test_merges_are_models_and_their_ends_are_base_and_instruct(tmp_path: Path) -> None:
    merge = {"base": "tiny-base", "instruct": "tiny-instruct", "ratios": [0, 0.25, 1]}
    found = made(tmp_path, models=None, instruct=[], merge=merge, seeds=[3], rewards=["random"])
    assert [(cell.axes["model"], cell.model_kind, cell.merge_ratio) for cell in found] == [
        ("r0", "base", 0.0),
        ("r0.25", "merged", 0.25),
        ("r1", "instruct", 1.0),
    ]
    assert str(found[1].recipe.policy.model) == "merge of tiny-base and tiny-instruct at 0.25"
    assert found[0].reward_kind == "control"


def test_what_matches_all_axes_of_an_entry_is_left_out(tmp_path: Path) -> None:
    found = made(tmp_path, leave_out=[{"model": "instruct", "reward": ["labels"]}, {"seed": 1, "model": "base"}])
    assert labels(found) == [
        ("base", "certainty", "0"),
        ("base", "labels", "0"),
        ("instruct", "certainty", "0"),
        ("instruct", "certainty", "1"),
    ]


def test_vary_is_a_product_and_one_by_one_changes_one_key_at_a_time(tmp_path: Path) -> None:
    single = {"models": None, "instruct": [], "rewards": None, "seeds": [0]}
    keys = {"grpo.lr": [1e-5, 1e-4], "rollout.group_size": {"few": 2, "as it is": 8}}
    product = made(tmp_path, **single, vary=keys)
    assert [(cell.recipe.grpo.lr, cell.recipe.rollout.group_size) for cell in product] == [
        (1e-5, 2),
        (1e-5, 8),
        (1e-4, 2),
        (1e-4, 8),
    ]
    assert product[0].axes["rollout.group_size"] == "few"
    one = made(tmp_path, **single, one_by_one=keys)
    assert [cell.axes["change"] for cell in one] == [
        "none",
        "grpo.lr=1e-05",
        "grpo.lr=0.0001",
        "rollout.group_size=few",
        "rollout.group_size=as it is",
    ]
    # The recipe has 1e-4 and 8 already: three cells of equal settings, one run.
    assert len({cell.digest for cell in one}) == 3
    assert one[0].digest == one[2].digest == one[4].digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modles": {}}, "modles: unknown key; did you mean models?"),
        ({"merge": {"base": "a", "instruct": "b", "ratio": [0]}}, "did you mean ratios?"),
        ({"merge": {"base": "a", "instruct": "b", "ratios": [2]}}, "merge.ratios.0: expected 1 or less (given 2)"),
        ({"rewards": []}, "rewards: empty; name one at least, or leave the key out"),
        ({"seeds": []}, "seeds: empty"),
        ({"vary": {"grpo.lr": []}}, "vary.grpo.lr: empty"),
        ({"recipe": None}, "recipe: expected text (given null)"),
        ({"recipe": "tyni"}, "tyni: no such recipe"),
        ({"leave_out": [{"model": "bose"}]}, "leave_out: no model 'bose'; there are base, instruct"),
        ({"leave_out": [{"modle": "base"}]}, "leave_out: no axis 'modle'; there are model, reward, seed"),
        ({"leave_out": [{"seed": [0, 1]}]}, "leave_out: it leaves no cell at all"),
        ({"instruct": ["tuned"]}, "instruct: no model 'tuned'; there are base, instruct"),
        ({"vary": {"seed": [1]}}, "vary: seed has a key of its own in a grid: seeds"),
        ({"vary": {"grpo.lr": [7]}}, "grpo.lr: expected 1 or less (given 7)"),
        ({"settings": {}}, "settings: empty"),
        ({"settings": {"other": {"seed": 1}}}, "seed has a key of its own in a grid: seeds"),
        ({"settings": {"other": {"grpo.lr": 7}}}, "grpo.lr: expected 1 or less (given 7)"),
        ({"set": {"grpo.": 1}}, "set.grpo.: write key=value"),
        ({"set": {"seed.x": 1}}, "set.seed.x: seed is not a section in this recipe"),
        ({"rewards": ["self_certinty"]}, "rewards: no reward 'self_certinty'; did you mean self_certainty?"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RlifError) as raised:
        made(tmp_path, **changes)
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_cells_are_chosen_by_pattern_and_by_label(tmp_path: Path) -> None:
    found = made(tmp_path)
    by_label = choose(found, only=(), where={"seed": ["1"], "model": ["base"]})
    assert labels(tuple(by_label)) == [("base", "certainty", "1"), ("base", "labels", "1")]
    assert choose(found, only=["base-*-s1-*"], where={}) == by_label
    assert choose(found, only=[found[3].name], where={}) == [found[3]]
    for only, where, said in (
        (["nothing*"], {}, "only: no cell 'nothing\\*'; the nearest is"),
        ([], {"seed": ["7"]}, "where: no seed '7'; there are 0, 1"),
        (["base*"], {"model": ["instruct"]}, "no cell is in both"),
    ):
        with pytest.raises(RlifError, match=said):
            choose(found, only=only, where=where)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("tiny", 102), ("paper", 26), ("sensitivity", 78), ("quickstart", 5), ("shootout", 72)),
        *(("interventions", 36), ("form", 12), ("lora", 30), ("gemma", 8)),
    ],
)
def test_every_shipped_grid_is_whole(name: str, count: int) -> None:
    """tiny: 6 models × 5 rewards × 3 seeds + 2 models × 2 controls × 3 seeds.
    paper: (3 models, r0, r1) × 4 + 2 merges × 3.
    sensitivity: (1 + 6 keys × 2 values) × 3 rewards × 2 seeds.
    shootout: 3 models × 8 rewards × 3 seeds. interventions: (1 + 5) settings × 2 rewards × 3 seeds.
    form: 4 rewards × 3 seeds. lora: (3 + 3) settings × 5 seeds. gemma: 2 models × 2 rewards × 2 seeds."""
    found = cells(load_grid(shipped_grids()[name]))
    assert len(found) == len({cell.digest for cell in found}) == count


def test_sensitivity_shares_its_unchanged_cells_with_the_grid_tiny() -> None:
    tiny, changed = (cells(load_grid(shipped_grids()[name])) for name in ("tiny", "sensitivity"))
    unchanged = {cell.digest for cell in changed if cell.axes["change"] == "none"}
    assert len(unchanged) == 6
    assert unchanged <= {cell.digest for cell in tiny}


def test_form_asks_of_other_rewards_what_the_grid_shootout_asks() -> None:
    shootout, form = (load_grid(shipped_grids()[name]) for name in ("shootout", "form"))
    assert {**form.set} == {**shootout.set}
    assert form.recipe == shootout.recipe
    assert form.seeds == shootout.seeds


def test_interventions_share_their_unchanged_cells_with_the_grid_shootout_and_nobody_is_stopped() -> None:
    shootout, changed = (cells(load_grid(shipped_grids()[name])) for name in ("shootout", "interventions"))
    unchanged = {cell.digest for cell in changed if cell.axes["setting"] == "none"}
    assert len(unchanged) == 6
    assert unchanged <= {cell.digest for cell in shootout}
    for cell in (*shootout, *changed):
        recipe = cell.recipe
        assert not recipe.guards.stop
        assert recipe.steps == 120
        assert recipe.probe.every == recipe.eval.every == 10, "a rule may choose any look"


def test_a_setting_changes_keys_together(tmp_path: Path) -> None:
    settings = {"as it is": {}, "slow": {"grpo.lr": 1e-5, "rollout.group_size": 4}}
    found = made(tmp_path, models=None, instruct=[], rewards=None, seeds=[0], settings=settings)
    assert [(c.axes["setting"], c.recipe.grpo.lr, c.recipe.rollout.group_size) for c in found] == [
        ("as it is", 1e-4, 8),
        ("slow", 1e-5, 4),
    ]


def test_a_digest_is_of_what_differs_from_the_defaults_so_that_new_keys_do_not_change_it() -> None:
    recipe = parse_recipe(
        {"steps": 1, "policy": {"model": "m"}, "task": {"name": "arithmetic", "low": 10}, "reward": "random", "seed": 7}
    )
    told = {
        "policy": {"model": "m"},
        "reward": [{"name": "random"}],
        "seed": 7,
        "steps": 1,
        "task": {"name": "arithmetic"},
    }
    assert _digest(recipe) == hashlib.sha256(json.dumps(told).encode()).hexdigest()


def test_a_grid_is_found_by_name_or_path_and_a_damaged_file_is_told_of(tmp_path: Path) -> None:
    assert find_grid(Path("tiny")) == shipped_grids()["tiny"]
    copy = tmp_path / "mine.yaml"
    shutil.copy(shipped_grids()["tiny"], copy)
    assert find_grid(copy) == copy
    with pytest.raises(
        RlifError,
        match=r"tyni: no such grid; .* one: form, gemma-votes, gemma, interventions, lora, paper, .*, shootout, tiny",
    ):
        find_grid(Path("tyni"))
    copy.write_text("- a list")
    with pytest.raises(RlifError, match="a grid is a mapping of keys to values"):
        load_grid(copy)
