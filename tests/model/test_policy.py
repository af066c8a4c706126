"""Loading a policy: from where, what it knows about itself, and what it refuses."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, MiniMaxConfig, MiniMaxForCausalLM

from rlif.cli.sample import print_samples
from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.model import registry
from rlif.model.loading import compute_dtype, load_policy
from rlif.model.policy import Policy
from rlif.rollout.engine import Engine
from toys import CHARACTERS, PADDED_ROWS, SPECIAL, toy_policy

TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
QUESTION = [{"role": "user", "content": "1+1=?"}]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model folder. Read only: change a copy."""
    folder = tmp_path_factory.mktemp("policy") / "good"
    toy_policy("llama").save(folder)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of the good folder to corrupt."""
    return Path(shutil.copytree(good, tmp_path / "copy"))


def load(source: object, **options: Any) -> Policy:
    return load_policy(PolicyConfig(model=str(source), device="cpu", dtype="float32", **options))


def complaint(source: object, **options: Any) -> str:
    """The message of the `RlifError` that loading must raise; always one line."""
    with pytest.raises(RlifError) as raised:
        load(source, **options)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.arange(3, 23)[None]).logits


# --- what loads -------------------------------------------------------------------------------------------------------


def test_a_saved_folder_comes_back(good: Path) -> None:
    original, policy = toy_policy("llama"), load(good)
    assert torch.equal(logits_of(policy.model), logits_of(original.model))
    assert not policy.model.training
    assert policy.source == str(good)
    assert policy.device == torch.device("cpu")
    for field in ("eos_ids", "pad_id", "vocab_size", "context", "chat_template"):
        assert getattr(policy, field) == getattr(original, field), field


def test_saved_weights_are_safetensors_and_plain_transformers_reads_them(good: Path) -> None:
    assert [path.name for path in good.glob("*model*")] == ["model.safetensors"]
    model = AutoModelForCausalLM.from_pretrained(good)
    assert torch.equal(logits_of(model), logits_of(toy_policy("llama").model))
    assert AutoTokenizer.from_pretrained(good)("1+1")["input_ids"] == list(toy_policy().encode_text("1+1")[1])


def test_other_weights_may_be_saved_in_place_of_the_models_own(tmp_path: Path) -> None:
    policy = toy_policy()
    masters = {name: weight + 1.0 for name, weight in policy.model.state_dict().items()}
    policy.save(tmp_path, state_dict=masters)
    saved = load(tmp_path).model.state_dict()
    assert saved.keys() == masters.keys()
    assert all(torch.equal(saved[name], masters[name]) for name in masters)


def test_a_name_stands_for_its_path(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "resolve", {"toy": str(good)}.__getitem__)
    policy = load("toy")
    assert policy.source == "toy"
    assert policy.vocab_size == len(SPECIAL) + len(CHARACTERS)


@pytest.mark.parametrize("name", [name for name, model in registry.MODELS.items() if model.shipped])
def test_shipped_models_load_by_name(name: str) -> None:
    policy = load(name)
    text, ids = policy.encode_text("12+34=?")
    assert text == "12+34=?"
    assert policy.decode(ids) == "12+34=?"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_asked_for(good: Path, dtype: torch.dtype) -> None:
    policy = load_policy(PolicyConfig(model=str(good), device="cpu"), dtype=dtype)
    assert {parameter.dtype for parameter in policy.model.parameters()} == {dtype}


def test_compute_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert compute_dtype("float32", cpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    for has_hardware, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("rlif.model.loading._cpu_multiplies_bf16", lambda answer=has_hardware: answer)
        assert compute_dtype("auto", cpu) == expected


# --- what a policy knows about itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "tokenizer", "expected"),
    [
        (1, "<eos>", (1,)),
        ([1, 7], "<eos>", (1, 7)),
        (7, "<eos>", (1, 7)),
        (None, "<eos>", (1,)),
        ([7, 5], None, (5, 7)),
    ],
)
def test_eos_is_what_either_source_names(
    copy: Path, generation: Any, tokenizer: Any, expected: tuple[int], tmp_path: Path
) -> None:
    edit(copy / "config.json", eos_token_id=generation)
    edit(copy / "generation_config.json", eos_token_id=generation)
    edit(copy / "tokenizer_config.json", eos_token=tokenizer)
    policy = load(copy)
    assert policy.eos_ids == expected
    policy.save(tmp_path / "saved")
    told = GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id
    assert {*(told if isinstance(told, list) else [told])} == {*expected}, "who loads it elsewhere ends there, too"


def test_a_model_without_eos_is_refused(copy: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edit(copy / name, eos_token_id=None)
    edit(copy / "tokenizer_config.json", eos_token=None)
    assert "names no EOS token; name one in its generation config" in complaint(copy)


def test_without_a_pad_token_eos_pads(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", pad_token=None)
    edit(copy / "generation_config.json", eos_token_id=[7, 1])
    assert load(copy).pad_id == 1


def test_the_true_vocabulary_leaves_padded_rows_out(good: Path) -> None:
    policy = load(good)
    assert policy.model.config.vocab_size == len(SPECIAL) + len(CHARACTERS) + PADDED_ROWS
    assert policy.vocab_size == len(SPECIAL) + len(CHARACTERS)


BEYOND = [f"<extra{i}>" for i in range(PADDED_ROWS + 3)]
"""More tokens than the toy model has rows left."""


def test_the_true_vocabulary_is_no_larger_than_the_model(tmp_path: Path) -> None:
    """Gemma 3 has a special token for images beyond its rows; it comes from nothing but its own name."""
    policy = toy_policy()
    policy.tokenizer.add_special_tokens({"extra_special_tokens": BEYOND})
    policy.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.vocab_size == policy.model.config.vocab_size
    assert loaded.encode_text("1+1=?")[1] == toy_policy().encode_text("1+1=?")[1]
    with pytest.raises(RlifError, match=r"a prompt holds '<extra5>', token 51 of the tokenizer .+ the model knows 51"):
        loaded.encode_text("what is <extra5>?")


@pytest.mark.parametrize("kind", ["plain", "pad", "in the template"])
def test_tokens_beyond_the_embedding_are_refused(kind: str, tmp_path: Path) -> None:
    policy = toy_policy()
    if kind == "plain":
        policy.tokenizer.add_tokens(BEYOND)
    else:
        policy.tokenizer.add_special_tokens({"extra_special_tokens": BEYOND})
    if kind == "pad":
        policy.tokenizer.pad_token = BEYOND[-1]
    if kind == "in the template":
        policy.tokenizer.chat_template = f"{BEYOND[-1]}{TEMPLATE}"
    policy.save(tmp_path)
    assert "has ids up to 53 ('<extra7>'), the embedding only 51 rows; resize" in complaint(tmp_path)


@pytest.mark.parametrize("has_template", [True, False])
@pytest.mark.parametrize(("asked", "used"), [("auto", None), ("on", True), ("off", False)])
def test_chat_template(tmp_path: Path, has_template: bool, asked: str, used: bool | None) -> None:
    policy = toy_policy()
    policy.tokenizer.chat_template = TEMPLATE if has_template else None
    policy.save(tmp_path)
    if asked == "on" and not has_template:
        said = f"chat_template: {tmp_path} has no chat template; set it to off"
        assert complaint(tmp_path, chat_template=asked) == said
    else:
        assert load(tmp_path, chat_template=asked).chat_template is (has_template if used is None else used)


def test_messages_become_the_exact_text_and_ids(tmp_path: Path) -> None:
    policy = toy_policy()
    policy.tokenizer.chat_template = TEMPLATE
    policy.save(tmp_path)
    text, ids = load(tmp_path).encode_messages(QUESTION)
    assert text == "1+1=?\na:"
    known = [len(SPECIAL) + CHARACTERS.index(character) for character in "1+1=?\na"]
    assert ids == (*known, SPECIAL.index("<unk>"))  # the colon is no character of its


def test_a_prompt_stays_open_and_a_text_closed() -> None:
    policy = toy_policy()
    plain = policy.encode_text("ab")[1]
    policy.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
    )
    assert policy.encode_text("ab") == ("ab", (2, *plain))  # the opening token stays, the closing one goes
    policy.tokenizer.chat_template = TEMPLATE
    assert policy.encode_messages([{"role": "user", "content": "ab"}])[1][:2] == plain  # a template opens by itself
    assert policy.decode([*plain, 1]) == "ab"
    assert policy.decode([0, *plain, 0]) == "ab"
    assert policy.decode([]) == ""


# --- what is refused, in one line -------------------------------------------------------------------------------------


def no_such(name: str, why: str = "") -> str:
    return f"model: no such folder or file: {name}{why} (named models: {', '.join(registry.MODELS)})"


@pytest.mark.parametrize("name", ["tiny-bose", "gpt2", "./nowhere", "/no/where", "a/b/c"])
def test_nothing_there(name: str) -> None:
    assert complaint(name) == no_such(name, "; did you mean tiny-base?" if name == "tiny-bose" else "")


def test_no_gguf_file_there(tmp_path: Path) -> None:
    missing = tmp_path / "model.gguf"
    assert complaint(missing) == f"model: no such file: {missing}"


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(200), b"no model at all" * 20])
def test_a_gguf_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert complaint(path).startswith(f"model: cannot load '{path}': ")


def test_a_hub_id_while_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    why = ", not in the hub's cache either, and the hub is switched off (HF_HUB_OFFLINE)"
    assert complaint("nobody/no-such-model") == no_such("nobody/no-such-model", why)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def unreachable(url: str, timeout: float) -> None:
        asked.append(url)
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.chdir(tmp_path)  # where there is no folder runs/
    why = ", and the hub cannot be reached (Name or service not known)"
    assert complaint("runs/final") == no_such("runs/final", why)
    assert len(asked) == 1
    assert complaint("not a/name") == no_such("not a/name")  # can be no hub id: not asked
    (tmp_path / "runs").mkdir()
    assert complaint("runs/final") == no_such("runs/final")  # nor can this, for runs/ lies here
    assert len(asked) == 1


def test_a_name_comes_before_a_folder_of_the_same_name(
    good: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(good, tmp_path / "tiny-base")
    monkeypatch.chdir(tmp_path)
    assert load("tiny-base").vocab_size != load("./tiny-base").vocab_size == len(SPECIAL) + len(CHARACTERS)


def test_libraries_say_nothing_of_their_own(copy: Path) -> None:
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(listener)
    try:
        policy = load("tiny-base")
        assert policy.tokenizer.model_max_length < 5000
        policy.encode_text("1" * 5000)  # transformers would tell of its length
        edit(copy / "config.json", intermediate_size=24)
        complaint(copy)  # and of each weight that does not fit
    finally:
        logging.getLogger("transformers").removeHandler(listener)
    assert said == []


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"model: {tmp_path} is a folder without a config.json; give a model folder"


def test_pickled_weights_are_not_read(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(toy_policy("llama").model.state_dict(), copy / "pytorch_model.bin")
    message = complaint(copy)
    assert message.startswith(f"model: cannot load '{copy}': ")
    assert "safetensors" in message


def corrupt_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def corrupt_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


CORRUPTIONS: dict[str, Callable[[Path], None]] = {
    "half the weights": corrupt_weights,
    "tokenizer is no JSON": corrupt_tokenizer,
    "config is no JSON": lambda folder: (folder / "config.json").write_text("{") and None,
    "unknown architecture": lambda folder: edit(folder / "config.json", model_type="nothing-known"),
    "not a language model": lambda folder: edit(folder / "config.json", model_type="vit"),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupted_folder(corruption: str, copy: Path) -> None:
    CORRUPTIONS[corruption](copy)
    assert complaint(copy).startswith(f"model: cannot load '{copy}': ")


def test_a_folder_without_a_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    said = f"model: {copy} is a folder without a tokenizer; put its tokenizer.json there"
    assert complaint(copy) == said
    (copy / "tokenizer_config.json").write_text("{}")  # there, but of no use: the reason is not cut off at its colon
    assert "from one of: (1) a `tokenizers` library" in complaint(copy)


def test_weights_of_another_shape_are_not_made_up(copy: Path) -> None:
    edit(copy / "config.json", intermediate_size=24)
    assert complaint(copy) == (
        f"model: the weights of '{copy}' do not fit its config.json: "
        "model.layers.0.mlp.down_proj.weight is (32, 48), expected (32, 24)"
    )


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    edit(copy / "config.json", num_hidden_layers=3)
    assert complaint(copy) == (f"model: '{copy}' lacks the weights model.layers.2.input_layernorm.weight and 8 more")


@pytest.mark.parametrize("device", ["cudaa", "cuda:99"])
def test_a_device_that_is_not_there(device: str, good: Path) -> None:
    with pytest.raises(RlifError, match=rf"^device: cannot use '{device}': .+$"):
        load_policy(PolicyConfig(model=str(good), device=device))


# --- remote code ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_code(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model folder that brings code; (folder, the file that this code writes when it runs)."""
    trace = tmp_path / "trace"
    (copy / "brought.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class BroughtConfig(LlamaConfig):\n    model_type = 'brought'\n"
        "class BroughtModel(LlamaForCausalLM):\n    config_class = BroughtConfig\n"
    )
    auto_map = {"AutoConfig": "brought.BroughtConfig", "AutoModelForCausalLM": "brought.BroughtModel"}
    edit(copy / "config.json", auto_map=auto_map, model_type="brought")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return copy, trace


def test_code_that_comes_with_a_model_does_not_run(with_code: tuple[Path, Path]) -> None:
    folder, trace = with_code
    message = complaint(folder)
    assert "contains custom code" in message
    assert message.endswith("if you trust it, set remote_code=true")
    assert not trace.exists()


def test_code_is_passed_over_where_transformers_knows_the_model(with_code: tuple[Path, Path]) -> None:
    folder, trace = with_code
    edit(folder / "config.json", model_type="llama")
    assert type(load(folder).model).__module__ == "transformers.models.llama.modeling_llama"
    assert not trace.exists()


def test_code_runs_on_request(with_code: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trace = with_code
    monkeypatch.syspath_prepend(str(folder.parent / "modules"))
    assert type(load(folder, remote_code=True).model).__name__ == "BroughtModel"
    assert trace.exists()


# --- a GGUF file ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Policy:
    return load_policy(PolicyConfig(model=str(smollm2_path), device="cpu"), dtype=torch.bfloat16)


@torch.no_grad()
def test_a_gguf_file_is_dequantised_into_a_model_that_knows_things(smollm2: Policy) -> None:
    weights = list(smollm2.model.parameters())
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert sum(weight.numel() for weight in weights) == 134_515_008
    ids = smollm2.encode_text("The capital of France is")[1]
    likeliest = int(smollm2.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert smollm2.decode([likeliest]) == " Paris"


def test_a_gguf_file_brings_its_chat_template_and_eos(smollm2: Policy) -> None:
    assert smollm2.chat_template
    text, ids = smollm2.encode_messages(QUESTION)
    assert text.endswith("<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>") in smollm2.eos_ids
    assert ids.count(smollm2.tokenizer.convert_tokens_to_ids("<|im_start|>")) == text.count("<|im_start|>")
    assert (smollm2.vocab_size, smollm2.context) == (49_152, 8_192)


def test_a_gguf_file_saves_as_a_plain_folder(smollm2: Policy, tmp_path: Path) -> None:
    smollm2.save(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits_of(model), logits_of(smollm2.model))
    again = load(tmp_path)
    assert again.eos_ids == smollm2.eos_ids
    assert again.chat_template
    assert again.encode_messages(QUESTION) == smollm2.encode_messages(QUESTION)


# --- what a model does when it is used --------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_one_line_in_a_sample(tmp_path: Path) -> None:
    policy = toy_policy("llama")
    with torch.no_grad():
        next(policy.model.parameters()).fill_(float("nan"))
    policy.save(tmp_path)
    with pytest.raises(
        RlifError, match=r"^MODEL: .+: the policy's logits are not finite; the model is damaged, or needs float32$"
    ):
        print_samples(
            str(tmp_path), "1+1=?", n=1, temperature=1.0, top_p=1.0, max_new_tokens=4, chat_template="auto", seed=0
        )


def test_a_model_with_a_cache_of_its_own_is_refused_when_an_engine_is_built() -> None:
    config = MiniMaxConfig(
        vocab_size=51,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    policy = replace(toy_policy(), model=MiniMaxForCausalLM(config).eval(), source="a MiniMax")
    with pytest.raises(RlifError, match=r"^model: a MiniMax takes no key-value cache but a class of its own"):
        Engine(policy)
    Engine(toy_policy("olmo2"))  # which takes the usual one
