"""Damaged model folders: whatever is wrong with one ends in one printable line that says where."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlif.config import PolicyConfig
from rlif.errors import RlifError, brief
from rlif.model.files import DamagedFileError, inspect_gguf
from rlif.model.loading import load_policy
from rlif.model.policy import Policy
from toys import toy_policy

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model folder. Read only: change a copy."""
    folder = tmp_path_factory.mktemp("files") / "good"
    toy_policy("llama").save(folder)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def load(source: object) -> Policy:
    return load_policy(PolicyConfig(model=str(source), device="cpu", dtype="float32"))


def complaint(source: object) -> str:
    with pytest.raises(RlifError) as raised:
        load(source)
    message = str(raised.value)
    assert message.isprintable()  # neither a line break nor what a terminal obeys
    assert len(message) < 800
    return message


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def header(folder: Path, change: Callable[[dict[str, Any]], Any], length: int | None = None) -> None:
    """Write another header over the same weights, or only another length of it."""
    data = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    found = json.loads(data[8 : 8 + size])
    change(found)
    text = json.dumps(found).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :])


def tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Store other tensors: None takes one out; dots are written as two underscores."""
    stored = load_file(folder / WEIGHTS)
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del stored[key]
        else:
            stored[key] = value
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})


def shards(folder: Path, index: Any) -> None:
    """The same weights as one shard that an index names."""
    (folder / WEIGHTS).rename(folder / "one.safetensors")
    names = load_file(folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps(index(dict.fromkeys(names, "one.safetensors"))))


def text(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def pipe(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def link(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)


Q = "model.layers.0.self_attn.q_proj.weight"
DEEP = "[" * 100_000
JSON_FILES = (CONFIG, "generation_config.json", "tokenizer_config.json", "tokenizer.json")
NO_OBJECTS = {
    "empty": "",
    "white": " \n",
    "a list": "[]",
    "a string": '"x"',
    "a number": "3",
    "null": "null",
    "cut": '{"a": ',
    "nested": DEEP,
    "nested below a key": '{"a": ' + DEEP,
    "no UTF-8": b'{"a": "\xff"}',
    "another encoding": '{"a": 1}'.encode("utf-16"),
    "zeros": bytes(100),
    "long number": '{"a": ' + "9" * 5000 + "}",
}

DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{
        f"{name} is {kind}": (lambda folder, name=name, content=content: text(folder, name, content), name)  # type: ignore[misc]
        for name in JSON_FILES
        for kind, content in NO_OBJECTS.items()
    },
    **{
        f"{key} is {value!r}": (lambda folder, key=key, value=value: edit(folder, CONFIG, **{key: value}), said)  # type: ignore[misc]
        for key, value, said in (
            ("num_hidden_layers", 1_000_000, "config.json: num_hidden_layers is 1000000, but there are 21 tensors"),
            ("num_hidden_layers", 10**30, "config.json: num_hidden_layers is 1000000000000"),
            ("num_hidden_layers", 500, "config.json of"),
            ("num_hidden_layers", -1, "has no place for"),
            ("num_hidden_layers", 0, "has no place for"),
            ("num_hidden_layers", "2", "config.json: "),
            ("num_hidden_layers", float("nan"), "config.json: num_hidden_layers is not a number"),
            ("num_hidden_layers", None, "config.json: "),
            ("num_hidden_layers", [2], "config.json: "),
            ("num_hidden_layers", {}, "config.json: "),
            (
                "vocab_size",
                10**12,
                "do not fit its config.json: lm_head.weight is (51, 32), expected (1000000000000, 32)",
            ),
            ("vocab_size", 10**30, "cannot load"),
            ("hidden_size", -32, "cannot load"),
            ("hidden_size", 0, "cannot load"),
            ("intermediate_size", 10**10, "do not fit its config.json: model.layers.0.mlp.down_proj.weight"),
            ("num_attention_heads", 0, "cannot load"),
            ("num_attention_heads", 10**6, "cannot load"),
            ("head_dim", 10**9, "do not fit its config.json"),
            ("rms_norm_eps", "small", "config.json: "),
            ("hidden_act", "no such", "cannot load"),
            ("rope_parameters", [], "cannot load"),
            ("model_type", "\x1b[31mred\n", "cannot load"),
            ("model_type", None, "cannot load"),
            ("model_type", [], "cannot load"),
            ("vision_config", {"num_hidden_layers": 10**9}, "config.json: vision_config.num_hidden_layers is"),
            ("quantization_config", {"quant_method": "no such"}, "config.json: quantization_config is of the method"),
            ("quantization_config", {"bits": 4}, "config.json: quantization_config is of the method None"),
            ("quantization_config", 5, "cannot load"),
        )
    },
    **{
        f"eos_token_id is {value!r}": (
            lambda folder, value=value: edit(folder, "generation_config.json", eos_token_id=value),  # type: ignore[misc]
            said,
        )
        for value, said in (
            (["</s>"], "holds '</s>', which is no id of its 51 tokens; fix generation_config.json"),
            ([1, [2]], "holds [2], which is no id"),
            ("1", "holds '1', which is no id"),
            (1.5, "holds 1.5, which is no id"),
            (True, "holds True, which is no id"),
            (-5, "holds -5, which is no id"),
            (10**30, "which is no id of its 51 tokens"),
            ({"a": 1}, "which is no id of its 51 tokens"),
        )
    },
    "no weights at all": (lambda folder: (folder / WEIGHTS).unlink(), "cannot load"),
    "weights are empty": (lambda folder: text(folder, WEIGHTS, b""), "model.safetensors: no safetensors file"),
    "weights are 8 bytes": (lambda folder: text(folder, WEIGHTS, bytes(8)), "model.safetensors: no safetensors file"),
    "weights are text": (lambda folder: text(folder, WEIGHTS, "version https://git-lfs"), "model.safetensors: no safe"),
    "header of 2^63": (lambda folder: header(folder, lambda _: None, 2**63), "model.safetensors: no safetensors file"),
    "header of 2^40": (lambda folder: header(folder, lambda _: None, 2**40), "model.safetensors: no safetensors file"),
    "header of 1": (lambda folder: header(folder, lambda _: None, 1), "model.safetensors: no safetensors file"),
    "no such type": (lambda folder: header(folder, lambda h: h[Q].update(dtype="F31")), "model.safetensors: no safe"),
    "type of another size": (lambda folder: header(folder, lambda h: h[Q].update(dtype="F16")), "no safetensors file"),
    "whole numbers": (
        lambda folder: header(folder, lambda h: h[Q].update(dtype="I32")),
        f"model.safetensors: {Q} is of type I32",
    ),
    "another shape": (
        lambda folder: header(folder, lambda h: h[Q].update(shape=[16, 64])),
        f"do not fit its config.json: {Q} is (16, 64), expected (32, 32)",
    ),
    "a shape of 2^62": (lambda folder: header(folder, lambda h: h[Q].update(shape=[2**62, 8])), "no safetensors file"),
    "a negative shape": (lambda folder: header(folder, lambda h: h[Q].update(shape=[-32, -32])), "no safetensors file"),
    "offsets beyond the end": (
        lambda folder: header(folder, lambda h: h[Q].update(data_offsets=[0, 2**50])),
        "model.safetensors: no safetensors file",
    ),
    "a tensor is renamed": (
        lambda folder: header(folder, lambda h: h.update({"\x1b[31m": h.pop(Q)})),
        f"lacks the weights {Q} and 0 more",
    ),
    "the index is a list": (lambda folder: shards(folder, lambda names: []), f"{INDEX}: holds a JSON list"),
    "the index is empty": (lambda folder: shards(folder, lambda names: {}), f"{INDEX}: names no weights"),
    "the index maps to a list": (lambda folder: shards(folder, lambda names: {"weight_map": []}), "names no weights"),
    "a shard is a number": (lambda folder: shards(folder, lambda names: {"weight_map": {Q: 1}}), "1 is no name"),
    "a shard is absent": (
        lambda folder: shards(folder, lambda names: {"weight_map": {**names, Q: "two.safetensors"}}),
        f"{INDEX}: names two.safetensors, which is not in the folder",
    ),
    "a shard outside": (
        lambda folder: shards(folder, lambda names: {"weight_map": dict.fromkeys(names, "../../one.safetensors")}),
        f"{INDEX}: '../../one.safetensors' is no name of a file in this folder",
    ),
    "a shard from the root": (
        lambda folder: shards(folder, lambda names: {"weight_map": dict.fromkeys(names, "/etc/passwd")}),
        f"{INDEX}: '/etc/passwd' is no name of a file in this folder",
    ),
    "a shard lacks what the index says": (
        lambda folder: shards(folder, lambda names: {"weight_map": {**names, "more": "one.safetensors"}}),
        f"{INDEX}: more should be in one.safetensors, and is not",
    ),
    "the weights are a pipe": (lambda folder: pipe(folder, WEIGHTS), "model.safetensors: no file"),
    "the tokenizer is a pipe": (lambda folder: pipe(folder, "tokenizer.json"), "tokenizer.json: no file"),
    "the weights are a folder": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()),
        "model.safetensors: no file",
    ),
    "a link to nothing": (lambda folder: link(folder, WEIGHTS, "nowhere"), "model.safetensors: a link to nothing"),
    "a link to itself": (lambda folder: link(folder, WEIGHTS, WEIGHTS), "model.safetensors: "),
    "the tokenizer is a device": (
        lambda folder: link(folder, "tokenizer.json", "/dev/zero"),
        "tokenizer.json: no file",
    ),
    "the template is no UTF-8": (
        lambda folder: text(folder, "chat_template.jinja", b"\xff"),
        "chat_template.jinja: no UTF",
    ),
    "an adapter beside the weights": (
        lambda folder: text(folder, "adapter_config.json", '{"base_model_name_or_path": "x"}'),
        "holds an adapter (adapter_config.json) beside whole weights; merge it",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line(damage: str, copy: Path) -> None:
    corrupt, said = DAMAGE[damage]
    corrupt(copy)
    assert said in complaint(copy)


def test_shards_load_where_the_index_is_right(copy: Path, good: Path) -> None:
    shards(copy, lambda names: {"metadata": {}, "weight_map": names})
    weights = load(copy).model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in load_file(good / WEIGHTS).items())


# --- weights that would be left out -----------------------------------------------------------------------------------


def test_more_layers_than_the_config_says(copy: Path) -> None:
    edit(copy, CONFIG, num_hidden_layers=1)
    assert complaint(copy) == (
        f"model: the weights of '{copy}' hold model.layers.1.input_layernorm.weight in model.safetensors and 8 "
        "more that its config.json has no place for (fewer layers, or another architecture?); fix config.json, or "
        "take them out of the file"
    )


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("model.rotary_emb.inv_freq", True),
        ("model.embed_tokens.position_ids", True),
        ("model.layers.0.attn.bias", True),
        ("model.layers.1.attention.masked_bias", True),
        ("model.layers.0.self_attn._extra_state", True),
        ("model.layers.0.self_attn.k_scale", True),
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("model.layers.0.self_attn.q_norm.weight", False),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", False),
        ("model.visual.patch_embed.weight", False),
        ("v_head.summary.weight", False),
        ("lm_head.bias", False),
        ("inv_freq_table", False),
    ],
)
def test_what_no_module_asks_for(name: str, harmless: bool, copy: Path) -> None:
    tensors(copy, **{name.replace(".", "__"): torch.ones(4)})
    if harmless:
        load(copy)
    else:
        assert f"hold {name} in model.safetensors and 0 more that its config.json has no place for" in complaint(copy)


@pytest.mark.parametrize("base", ["org/base", None, 3, "\x1b[31mred"])
def test_an_adapter_alone_is_called_one(base: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    of_base = f"{tmp_path} is an adapter of {brief(base)}: no such folder or file" if isinstance(base, str) else ""
    no_base = f"{tmp_path}: adapter_config.json: names no base model; write its folder or hub id as"
    assert complaint(tmp_path).startswith(f"model: {of_base or no_base}")


def test_an_adapter_in_the_cache_of_the_hub_is_called_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tuned" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    refs = tmp_path / "models--org--tuned" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert complaint("org/tuned").startswith("model: org/tuned is an adapter of org/base: no such folder or file")


# --- one matrix or two ------------------------------------------------------------------------------------------------


def test_tied_by_the_config_and_two_matrices_in_the_file(copy: Path, good: Path) -> None:
    edit(copy, CONFIG, tie_word_embeddings=True)
    assert "says tie_word_embeddings, but the weights hold two matrices that differ" in complaint(copy)
    edit(copy, CONFIG, tie_word_embeddings=False)
    assert not torch.equal(
        *(load(copy).model.state_dict()[key] for key in ("lm_head.weight", "model.embed_tokens.weight"))
    )


def test_a_copy_of_the_tied_matrix_is_harmless(copy: Path) -> None:
    edit(copy, CONFIG, tie_word_embeddings=True)
    tensors(copy, lm_head__weight=load_file(copy / WEIGHTS)["model.embed_tokens.weight"].clone())
    model: Any = load(copy).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_two_by_the_config_and_one_matrix_in_the_file(copy: Path) -> None:
    tensors(copy, lm_head__weight=None)
    assert complaint(copy) == f"model: '{copy}' lacks the weights lm_head.weight and 0 more"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("masters", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_a_saved_config_says_what_is_so(tied: bool, masters: bool, said: bool, tmp_path: Path) -> None:
    policy = toy_policy("llama")
    model: Any = policy.model
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.config.tie_word_embeddings = said
    policy.save(tmp_path, state_dict=policy.model.state_dict() if masters else None)
    assert json.loads((tmp_path / CONFIG).read_text())["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in load_file(tmp_path / WEIGHTS)) is not tied
    again: Any = load(tmp_path).model
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied


# --- bytes at random --------------------------------------------------------------------------------------------------


def corrupted(data: bytes, seed: int, within: int) -> bytes:
    """Cut short, or a few bytes changed among the first ``within``."""
    chance = random.Random(seed)
    if chance.random() < 0.25:
        return data[: chance.randrange(min(within, len(data)))]
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 6])):
        changed[chance.randrange(min(within, len(data)))] = chance.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("name", [*JSON_FILES, WEIGHTS])
def test_random_damage_loads_or_is_one_line(name: str, copy: Path) -> None:
    data, said = (copy / name).read_bytes(), []
    for seed in range(40):
        (copy / name).write_bytes(corrupted(data, seed, within=3000))
        try:
            load(copy)
        except RlifError as error:
            said.append(str(error))
    assert len(said) >= 10
    assert [
        message
        for message in said
        if not (message.isprintable() and message.startswith(("model: ", "chat_template: ")))
    ] == []


def gguf() -> bytes:
    """A small .gguf file: a number, a text, a list of numbers, a list of texts, and a tensor of 4 numbers."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [
        text("llama.block_count") + struct.pack("<II", 4, 1),
        text("general.name") + struct.pack("<I", 8) + text("small"),
        text("sizes") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 3),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
    ]
    tensor = text("a.weight") + struct.pack("<I2QIQ", 2, 2, 2, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor + bytes(16)


def test_random_damage_to_a_gguf_header_is_passed_or_told(tmp_path: Path) -> None:
    path, said = tmp_path / "m.gguf", []
    path.write_bytes(gguf())
    inspect_gguf(path)
    for seed in range(400):
        path.write_bytes(corrupted(gguf(), seed, within=len(gguf())))
        try:
            inspect_gguf(path)
        except DamagedFileError as error:
            said.append(str(error))
    assert 100 < len(said) < 400
    assert all(message.startswith("m.gguf: ") for message in said)


def test_brief() -> None:
    assert brief("a\nb\t c") == "a b c"
    assert brief("\x1b[31m\u202e") == "\\x1b[31m\\u202e"
    assert brief("ä→𝔸") == "ä→𝔸"
    assert brief("x" * 400) == "x" * 299 + "…"
