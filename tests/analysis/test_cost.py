"""The cost model against what PyTorch counts and rlif does: parameters, operations, bytes, rows; and its arithmetic."""

import math
import os
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config, Qwen3ForCausalLM

from rlif.analysis.cost import Work, cost, engine_rows, memory
from rlif.analysis.hardware import DEVICES, SHAPES, Device, Shape
from rlif.config import LoraConfig, PolicyConfig
from rlif.errors import RlifError
from rlif.model.loading import load_policy
from rlif.model.lora import with_adapter
from rlif.recipes import load_recipe, shipped_recipes
from rlif.rollout.decode_batch import rows_that_fit

QWEN = {
    **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16},
    **{"intermediate_size": 96, "vocab_size": 200},
}
UNIT = Device("unit", 1.0, 1.0, 1.0, 1e12, link=1.0, network=0.1, matrix_share=1.0, bandwidth_share=1.0)
WORK = Work(prompts=4, group=8, prompt_tokens=10.0, tokens=20.0, limit=20, micro_batch=0)
TINY = Shape.from_config(QWEN)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_transformers_model_but_for_its_norms(tied: bool) -> None:
    config = Qwen3Config(**QWEN, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    norms = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 1)
    assert Shape.from_config(config.to_dict()).parameters == sum(p.numel() for p in model.parameters()) - norms


@pytest.mark.parametrize(
    ("name", "all_of_them", "in_layers"),  # as the models' cards have them, in 1e9
    [
        ("Qwen/Qwen3-1.7B-Base", 1.7, 1.4),
        ("Qwen/Qwen3-4B-Base", 4.0, 3.6),
        ("Qwen/Qwen3-8B-Base", 8.2, 6.95),
        ("Qwen/Qwen3-32B", 32.8, 31.2),
        ("Qwen/Qwen2.5-3B", 3.09, 2.77),
        ("smollm2-135m-instruct", 0.135, 0.106),
    ],
)
def test_shapes_have_the_parameters_of_their_cards(name: str, all_of_them: float, in_layers: float) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(all_of_them, rel=0.015)
    assert SHAPES[name].in_layers / 1e9 == pytest.approx(in_layers, rel=0.015)


def test_a_config_without_a_number_is_refused_with_its_file_and_key() -> None:
    with pytest.raises(RlifError, match=r"m/config.json: vocab_size: expected a whole number above 0 \(found None\)"):
        Shape.from_config({key: value for key, value in QWEN.items() if key != "vocab_size"}, where="m/config.json")
    with pytest.raises(RlifError, match=r"num_hidden_layers: .*found True"):
        Shape.from_config({**QWEN, "num_hidden_layers": True})


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    plain = LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96, num_hidden_layers=2).to_dict()
    shape = Shape.from_config({key: plain[key] for key in ("hidden_size", *QWEN) if key in plain and key != "head_dim"})
    assert (shape.kv_heads, shape.feature, shape.tied) == (4, 16, False)
    gemma = Gemma3TextConfig().to_dict()
    assert Shape.from_config({key: value for key, value in gemma.items() if key != "tie_word_embeddings"}).tied


def test_the_operations_of_an_update_are_those_that_pytorch_counts() -> None:
    """Transformers keeps its logits, and counts attention without its mask: twice what is needed."""
    tokens = 32
    shape = Shape.from_config({**QWEN, "tie_word_embeddings": False})
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**QWEN, attn_implementation="eager"))
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long)).logits.sum().backward()
    masked_out = 3 * shape.attention(float(tokens), tokens / 2)
    head_again = 2 * shape.head * tokens
    work = Work(prompts=1, group=1, prompt_tokens=0.0, tokens=float(tokens), limit=tokens)
    assert cost(shape, work, UNIT).update == counter.get_total_flops() - masked_out + head_again


def test_an_adapter_has_the_parameters_of_rlifs_and_half_the_way_back() -> None:
    policy = load_policy(PolicyConfig(model="tiny-base"), dtype=torch.float32)
    adapted = with_adapter(policy, LoraConfig(r=4, alpha=8), base="tiny-base", mark="", seed=0)
    trained = sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
    assert Shape.from_config(policy.model.config.to_dict()).adapter(4) == trained
    weights, low_rank = (cost(TINY, replace(WORK, lora=r), UNIT) for r in (0, 4))
    line = 4 * 10 + 32 * 20
    assert weights.update - low_rank.update == 2 * TINY.in_layers * line + 2 * TINY.head * 32 * 20


def test_rows_are_those_that_the_engine_takes() -> None:
    policy = load_policy(PolicyConfig(model="tiny-base"), dtype=torch.float32)
    shape = Shape.from_config(policy.model.config.to_dict())
    here = DEVICES["cpu-avx2"]._replace(memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in (5_000, 500_000):  # the first as many as it takes at most
        work = replace(WORK, prompt_tokens=100.0, limit=limit, width=4)
        assert engine_rows(shape, work, here) == rows_that_fit(policy, 100 + limit)


@pytest.mark.parametrize(("width", "devices", "bytes_each"), [(2, 1, 18), (2, 8, 7.5), (4, 1, 16), (4, 2, 14)])
def test_memory_is_that_of_the_table_of_the_page_on_scaling(width: int, devices: int, bytes_each: float) -> None:
    work = replace(WORK, width=width)
    assert memory(TINY, work, UNIT, devices).update == bytes_each * TINY.parameters
    frozen = memory(TINY, replace(work, reference=True, frozen_start=True), UNIT, devices)
    assert frozen.update == (bytes_each + width) * TINY.parameters  # one copy serves both


def test_memory_of_a_rollout_and_its_cache() -> None:
    found = memory(TINY, WORK, UNIT)
    joined = 3 * (64 * (96 + 2 * 32) + 64 * 2 * 96)  # query, key, value; gate, up
    assert found.rollout == 14 * TINY.parameters + 2 * joined
    assert found.cache == 32 * (10 + 20) * 2 * 3 * 2 * 16 * 2  # rows, tokens, keys and values, layers, heads, feature
    crowded = UNIT._replace(memory=(found.rollout + 2.5 * 30 * TINY.cache(2)) / 0.9)
    assert (memory(TINY, WORK, crowded).rows, memory(TINY, WORK, crowded).fits) == (2, False)  # the update does not
    assert memory(TINY, WORK, UNIT._replace(memory=found.rollout)).rows == 0


def test_memory_where_vllm_samples() -> None:
    """It has a part of the device for itself: the weights once more, and a cache of what is left of that part."""
    weights, row = 2 * TINY.parameters, 30 * TINY.cache(2)
    small = UNIT._replace(memory=4 * (weights + 5.5 * row))
    found = memory(TINY, replace(WORK, vllm=0.25), small)
    assert found.rollout + found.cache == 14 * TINY.parameters + 0.25 * small.memory
    assert found.rows == 5
    assert found.update == 18 * TINY.parameters + 0.25 * small.memory
    asleep = memory(TINY, replace(WORK, vllm=0.25, vllm_sleeps=True), small)
    assert asleep == found._replace(update=18 * TINY.parameters)
    assert memory(TINY, replace(WORK, vllm=0.25, max_rows=3), small).rows == 3
    assert memory(TINY, replace(WORK, vllm=0.25), UNIT).rows == 32  # all there are
    crowded = memory(TINY, replace(WORK, vllm=0.1), small)  # not even its weights have room
    assert (crowded.rows, crowded.cache, crowded.fits) == (0, 0.0, False)
    adapted, plain = (memory(TINY, replace(WORK, lora=4, vllm=share), UNIT) for share in (0.25, None))
    joined = plain.rollout - 14 * TINY.adapter(4) - weights
    assert adapted.rollout - plain.rollout == weights + 2 * TINY.in_layers - joined  # merged layers beside


def test_a_decode_step_waits_for_the_slowest() -> None:
    work = replace(WORK, prompt_tokens=0.0)  # a row has seen 10 tokens when half its completion is drawn
    read = 2 * TINY.multiplied + 32 * TINY.cache(2) * 10
    arithmetic = 2 * TINY.multiplied * 32 + TINY.attention(32.0, 10.0)
    for device, seconds, waits_for in (
        (UNIT._replace(bf16=1e30), read, "weights"),
        (UNIT._replace(bandwidth=1e30), arithmetic, "matmuls"),
        (UNIT._replace(bandwidth=1e30, bf16=1e30), 3 * 30 * 5e-6, "calls"),
    ):
        found = cost(TINY, work, device)
        assert (found.decode / 20, found.decode_bound) == (pytest.approx(seconds), waits_for)
    assert cost(TINY, WORK, UNIT._replace(bf16=1e30)).decode_bound == "keys and values"


def test_half_the_rows_at_once_read_the_weights_twice() -> None:
    fast = UNIT._replace(bf16=1e30)
    all_at_once, in_turn = (cost(TINY, replace(WORK, max_rows=rows), fast).decode for rows in (32, 16))
    assert in_turn - all_at_once == pytest.approx(20 * 2 * TINY.multiplied)


def test_devices_share_the_rows_and_send_gradients_and_weights() -> None:
    one, two = (cost(TINY, WORK, UNIT, n) for n in (1, 2))
    assert (two.prefill, two.update) == (one.prefill / 2, one.update / 2)
    assert (one.exchange, two.exchange) == (0.0, 10 * TINY.parameters / 2)
    assert cost(TINY, WORK, UNIT, 16).exchange == pytest.approx(10 * TINY.parameters * 15 / 16 * 10)  # over the network
    assert cost(TINY, WORK, UNIT._replace(link=0.0), 2).exchange == math.inf
    assert cost(TINY, replace(WORK, lora=4), UNIT, 2).exchange == 10 * TINY.adapter(4) / 2
    assert two.tokens_a_second == 32 * 20 / (two.prefill + two.decode + two.update + two.exchange)


def test_further_passes_of_the_update() -> None:
    line = 4 * 10 + 32 * 20
    forward = 2 * TINY.in_layers * line + TINY.attention(32.0 * 20, 20.0) + 2 * TINY.head * 32 * 20
    plain = cost(TINY, WORK, UNIT).update
    assert cost(TINY, replace(WORK, reference=True), UNIT).update - plain == pytest.approx(forward)
    assert cost(TINY, replace(WORK, passes=2, several_steps=True), UNIT).update == pytest.approx(2 * plain + forward)
    again = 2 * TINY.in_layers * line + TINY.attention(32.0 * 20, 20.0)
    assert cost(TINY, replace(WORK, checkpointing=True), UNIT).update - plain == pytest.approx(again)


def test_a_recipes_step() -> None:
    paper = load_recipe(shipped_recipes()["paper-qwen3-1.7b-base"])
    work = Work.of(paper, DEVICES["h100"], prompt_tokens=300.0)
    assert work == Work(
        prompts=128,
        group=8,
        prompt_tokens=300.0,
        tokens=3072.0,
        limit=3072,
        reference=True,
        frozen_start=True,
        micro_batch=4096,
        checkpointing=True,
    )
    tiny = load_recipe(shipped_recipes()["tiny"], ["policy.lora={r: 4}", "grpo.epochs=2", "policy.dtype=auto"])
    work = Work.of(tiny, DEVICES["cpu-avx2"], prompt_tokens=10.0, tokens=30.0)
    assert (work.width, work.lora, work.passes, work.several_steps, work.tokens) == (4, 4, 2, True, 30.0)
    assert (work.reference, work.frozen_start, work.micro_batch) == (False, False, 1024)
    assert Work.of(tiny, DEVICES["cpu-amx"], prompt_tokens=10.0).width == 2
    sleeping = load_recipe(
        shipped_recipes()["tiny"], ["rollout.engine=vllm", "rollout.vllm={memory: 0.3, sleep: true}"]
    )
    for device, sleeps in (("h100", True), ("cpu-amx", False)):
        work = Work.of(sleeping, DEVICES[device], prompt_tokens=10.0)
        assert (work.vllm, work.vllm_sleeps) == (0.3, sleeps)


def test_a_mixture_of_experts_is_refused_and_one_expert_is_none() -> None:
    dense = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dense["vocab_size"] = 32
    assert Shape.from_config(dense | {"num_experts": 1}) == Shape.from_config(dense)
    with pytest.raises(RlifError, match=r"config\.json: num_experts: a mixture of experts"):
        Shape.from_config(dense | {"num_experts": 128})
