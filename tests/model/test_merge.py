"""Merged models against a float64 loop, and what is refused."""

import fcntl
import json
import logging
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlif import tiny
from rlif.cli.merge import print_merge
from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.model import merge as merging
from rlif.model.loading import load_policy
from rlif.model.merge import merge
from rlif.recipes import find_recipe, load_recipe
from rlif.training.loop import train
from rlif.utils.atomic_io import unfinished


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def small(folder: Path, seed: int, *, dtype: torch.dtype = torch.float32, tied: bool = False, width: int = 16) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return small(tmp_path / "base", 1), small(tmp_path / "instruct", 2)


@pytest.mark.parametrize("slice_bytes", [1 << 26, 100])
def test_every_value_is_the_weighted_mean_of_a_float64_loop(
    pair: tuple[Path, Path], tmp_path: Path, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "SLICE_BYTES", slice_bytes)
    base, instruct = weights_of(pair[0]), weights_of(pair[1])
    (folder,) = merge(str(pair[0]), str(pair[1]), [0.3], tmp_path / "out")
    found = weights_of(folder)
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        pairs = zip(base[name].flatten().tolist(), instruct[name].flatten().tolist(), strict=True)
        expected = np.array([0.7 * one + 0.3 * other for one, other in pairs]).reshape(tensor.shape)
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=3e-7, atol=5e-9)


def test_ratios_0_and_1_copy_the_bits_of_the_two_sides(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[0] / "model.safetensors"
    base = weights_of(pair[0])
    base["model.norm.weight"][0] = -0.0  # a sum would lose its sign, and make nan of what the other side holds
    save_file(base, path, metadata={"format": "pt"})
    instruct = weights_of(pair[1])
    instruct["model.norm.weight"][0] = torch.inf
    save_file(instruct, pair[1] / "model.safetensors", metadata={"format": "pt"})
    zero, one = merge(str(pair[0]), str(pair[1]), [0.0, 1.0], tmp_path / "out")
    for folder, side in ((zero, base), (one, instruct)):
        for name, tensor in weights_of(folder).items():
            assert torch.equal(tensor.view(torch.int32), side[name].view(torch.int32)), name


def test_several_ratios_in_one_pass_equal_one_at_a_time(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folders = merge(str(pair[0]), str(pair[1]), [0.1, 0.5], tmp_path / "both")
    assert [folder.name for folder in folders] == ["r0.1", "r0.5"]
    for ratio, folder in zip((0.1, 0.5), folders, strict=True):
        (alone,) = merge(str(pair[0]), str(pair[1]), [ratio], tmp_path / f"alone-{ratio}")
        assert (alone / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("dtype", "stored"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_the_type_is_kept_or_chosen_and_sums_are_made_in_fp32(
    tmp_path: Path, dtype: str | None, stored: torch.dtype
) -> None:
    base, instruct = (small(tmp_path / name, seed, dtype=torch.bfloat16) for name, seed in (("a", 1), ("b", 2)))
    (folder,) = merge(str(base), str(instruct), [0.25], tmp_path / "out", dtype=dtype)
    one, other, found = weights_of(base), weights_of(instruct), weights_of(folder)
    for name, tensor in found.items():
        assert tensor.dtype == stored
        expected = 0.75 * one[name].double() + 0.25 * other[name].double()
        torch.testing.assert_close(tensor, expected.to(stored), rtol=1e-6, atol=5e-9)


def test_shards_with_an_index_are_read_by_transformers_as_the_single_file_is(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (whole,) = merge(str(pair[0]), str(pair[1]), [0.3], tmp_path / "whole")
    (parts,) = merge(str(pair[0]), str(pair[1]), [0.3], tmp_path / "parts", shard_bytes=4000)
    assert len(list(parts.glob("model-*-of-*.safetensors"))) > 2
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in weights_of(whole).values())
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (whole, parts))
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    (again,) = merge(str(parts), str(parts), [0.5], tmp_path / "again")  # shards are read as well
    assert torch.equal(weights_of(again)["lm_head.weight"], weights_of(whole)["lm_head.weight"])


def test_the_halfway_model_of_the_tiny_pair_loads_as_a_policy_with_the_named_sides_tokenizer(tmp_path: Path) -> None:
    for side, has_template in (("base", False), ("instruct", True)):
        (folder,) = merge("tiny-base", "tiny-instruct", [0.5], tmp_path / side, tokenizer_from=side)  # type: ignore[arg-type]
        policy = load_policy(PolicyConfig(model=str(folder), dtype="float32"))
        assert policy.chat_template is has_template
        assert policy.model.get_output_embeddings().weight is policy.model.get_input_embeddings().weight  # type: ignore[operator]
    base = weights_of(tiny.path("tiny-base"))["model.norm.weight"]
    instruct = weights_of(tiny.path("tiny-instruct"))["model.norm.weight"]
    torch.testing.assert_close(policy.model.model.norm.weight, (base + instruct) / 2)  # type: ignore[union-attr]


def test_a_tied_head_that_one_side_stores_twice_stays_tied(tmp_path: Path) -> None:
    base, instruct = small(tmp_path / "a", 1, tied=True), small(tmp_path / "b", 2, tied=True)
    weights = weights_of(base)
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder,) = merge(str(base), str(instruct), [0.5], tmp_path / "out")
    assert "lm_head.weight" not in weights_of(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_different_shapes_are_listed_with_names_files_and_shapes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    wide = small(tmp_path / "wide", 3, width=32)
    with pytest.raises(RlifError) as caught:
        merge(str(pair[0]), str(wide), [0.5], tmp_path / "out")
    message = str(caught.value)
    assert "model.embed_tokens.weight is F32 [40, 16] in" in message
    assert "(model.safetensors) and F32 [40, 32] in" in message
    assert "more; merge models of one architecture" in message
    assert not (tmp_path / "out").exists()


def test_names_that_only_one_side_has_are_listed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    weights = weights_of(pair[1])
    del weights["model.norm.weight"]
    save_file(weights, pair[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RlifError, match=r"model\.norm\.weight is only in .*base"):
        merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")


def test_a_shard_that_is_cut_short_is_named_and_nothing_is_left(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RlifError, match=r"^instruct: .*model\.safetensors: no safetensors file, or a damaged one"):
        merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "instruct"]


def test_whole_numbers_in_the_place_of_weights_are_named_with_their_file(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    weights = weights_of(pair[1])
    weights["model.norm.weight"] = torch.ones(16, dtype=torch.int32)
    save_file(weights, pair[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RlifError, match=r"model\.safetensors: model\.norm\.weight is of type I32"):
        merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")


def test_a_disk_that_fills_up_leaves_nothing_behind(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "_write", full)
    with pytest.raises(RlifError, match="disk full; nothing was kept"):
        merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "instruct"]


def test_what_killed_merges_left_goes_at_the_next_and_nothing_else(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (".out.merging-1", ".out.merging-2", ".out.merging-mine", ".out2.merging-3")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    at_work, write = os.open(tmp_path / names[1], os.O_RDONLY), merging._write
    fcntl.flock(at_work, fcntl.LOCK_EX)  # as a living process does

    def beside(*arguments: Any) -> None:
        """Another one begins in the same place while this one writes."""
        monkeypatch.setattr(merging, "_write", write)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 4)
            with unfinished(tmp_path / "out", "merging"):
                pass
        write(*arguments)

    monkeypatch.setattr(merging, "_write", beside)
    merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")
    os.close(at_work)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "base", "instruct", "out"])
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > len(b"half")


@pytest.mark.parametrize(
    ("ratios", "message"), [([1.5], "1.5 is not between 0"), ([], "give one"), ([0.1, 0.1], "none twice")]
)
def test_ratios_that_mean_nothing_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, ratios: list[float], message: str
) -> None:
    with pytest.raises(RlifError, match=message):
        merge(str(pair[0]), str(pair[1]), ratios, tmp_path / "out")


def test_a_folder_that_holds_something_is_never_written_into(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RlifError, match="there is something already"):
        merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")


def test_configs_of_another_function_and_a_missing_tokenizer_are_told_of(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pair[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    with caplog.at_level(logging.WARNING):
        merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")
    assert "differs in rms_norm_eps (1e-06 and 0.5)" in caplog.text
    assert "has no tokenizer" in caplog.text


def test_a_model_beside_itself_is_told(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "link"
    link.mkdir()
    (link / "model.safetensors").symlink_to(pair[0] / "model.safetensors")
    shutil.copy(pair[0] / "config.json", link)
    for number, instruct in enumerate((pair[0], link, pair[1])):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            merge(str(pair[0]), str(instruct), [0.5], tmp_path / f"out{number}")
        assert ("base and instruct are the same weights" in caplog.text) is (instruct != pair[1])


def test_an_adapter_and_a_file_are_refused_by_what_they_are(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(RlifError, match="LoRA adapter of some/model"):
        merge(str(adapter), str(pair[1]), [0.5], tmp_path / "out")
    shutil.copyfile(pair[0] / "model.safetensors", tmp_path / "model.gguf")
    with pytest.raises(RlifError, match=r"^instruct: .*is a file"):
        merge(str(pair[0]), str(tmp_path / "model.gguf"), [0.5], tmp_path / "out")


def test_the_head_of_a_file_is_what_the_format_says(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (folder,) = merge(str(pair[0]), str(pair[1]), [0.5], tmp_path / "out")
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert max(ends) == len(data) - 8 - length


def test_a_recipe_names_a_merged_model_which_is_made_once_and_anew_when_a_side_changes(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLIF_CACHE", str(tmp_path / "cache"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny.path("tiny-base") / name, pair[0] / name)
    named = {"merge": {"base": str(pair[0]), "instruct": str(pair[1]), "ratio": 0.3}}
    config = PolicyConfig.model_validate({"model": named, "dtype": "float32"})
    first = merging.model_source(config.model)
    (expected,) = merge(str(pair[0]), str(pair[1]), [0.3], tmp_path / "expected")
    assert (Path(first) / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert merging.model_source(config.model) == first
    save_file(weights_of(pair[1]), pair[1] / "model.safetensors", metadata={"format": "pt", "saved": "again"})
    assert merging.model_source(config.model) != first
    assert PolicyConfig.model_validate(config.model_dump(mode="json")) == config


def test_two_steps_of_training_begin_at_the_merged_weights_and_the_run_says_which(tmp_path: Path) -> None:
    recipe = load_recipe(
        find_recipe(Path("tiny")),
        [
            "policy.model={merge: {base: tiny-base, instruct: tiny-instruct, ratio: 0.5}}",
            *("steps=1", "rollout.prompts=2", "rollout.group_size=2", "eval.every=0", "rollout.max_new_tokens=8"),
        ],
    )
    train(recipe, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["model"] == "merge of tiny-base and tiny-instruct at 0.5"
    assert "model.safetensors" in info["provenance"]["model"]
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert str(again.policy.model) == info["model"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{merge: {base: a, instruct: b, ratio: 2}}", r"policy\.model\.merge\.ratio: .*1"),
        ("{merge: {base: a, instruct: b}}", r"policy\.model\.merge\.ratio: this key is required"),
        (
            "{merge: {base: a, instruct: b, ratio: .1, ratoi: 2}}",
            r"policy\.model\.merge\.ratoi: unknown key; did you mean policy\.model\.merge\.ratio",
        ),
        ("[a, b]", r"policy\.model: "),
    ],
)
def test_a_mistake_in_the_section_of_a_merge_is_named_by_its_key(model: str, message: str) -> None:
    with pytest.raises(RlifError, match=message):
        load_recipe(find_recipe(Path("tiny")), [f"policy.model={model}"])


def test_the_command_writes_a_card_without_the_folders_above(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_merge(str(pair[0]), str(pair[1]), ".1,.3", tmp_path / "out", tokenizer_from="base", dtype="auto")
    card = (tmp_path / "out" / "r0.3" / "README.md").read_text()
    assert "rlif merge base instruct --ratio 0.3 --out DIR" in card
    assert "Every weight is 0.7 · base + 0.3 · instruct" in card
    assert str(tmp_path) not in card
    assert "r0.1" in capsys.readouterr().out
    for ratios, side, message in ((".1;.3", "base", "--ratio '.1;.3'"), (".1", "both", "--tokenizer-from 'both'")):
        with pytest.raises(RlifError, match=message):
            print_merge(str(pair[0]), str(pair[1]), ratios, tmp_path / "x", tokenizer_from=side, dtype="auto")
