"""Runs with policy.lora: what their checkpoints hold, that resuming is exact, and what final/ and its adapter are."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from interruptions import StopAfter
from rlif.config import LoraConfig, Recipe
from rlif.errors import RlifError
from rlif.model.lora import adapted_layers, merged, with_adapter
from rlif.recipes import load_recipe, shipped_recipes
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.runs.provenance import model_files
from rlif.training.loop import resume, train
from rlif.training.lora import adapted_policy, start_for_merge_back, start_of
from rlif.training.optim import MasterOptimizer, merge_back
from rlif.training.setup import initial_policy, load_start, load_trainable, policy_at
from rlif.training.teacher import Teacher
from rlif.types import Sampling
from toys import toy_policy, toy_prompts

# peft 0.21 asks transformers 5 by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ADAPTER, TENSORS = "adapter_model.safetensors", "optimizer.safetensors"
LORA = "policy.lora={r: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}"


def recipe(model: Path, *changes: str) -> Recipe:
    """Two prompts of four completions a step."""
    small = [f"policy.model={model}", "rollout.prompts=2", "rollout.group_size=4", "eval.every=0", LORA]
    few = ["steps=3", "grpo.lr=1e-2", "grpo.kl_coef=0.1", "checkpoint.every=1", "checkpoint.keep_last=9"]
    return load_recipe(shipped_recipes()["tiny"], [*small, *few, *changes])


def at(out: Path, step: int) -> Path:
    return out / f"checkpoints/step-{step:06d}"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 25)[None]).logits


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    train(recipe(tiny_base_path), out)
    return out


def test_checkpoints_hold_the_adapter_alone(run: Path) -> None:
    files = {path.name for path in at(run, 3).iterdir()}
    assert {"adapter_config.json", ADAPTER, TENSORS, "state.json", "manifest.json", "tokenizer.json"} <= files
    assert not files & {"model.safetensors", "config.json"}
    names = {name.rpartition("/")[0] for name in load_file(at(run, 3) / TENSORS)}
    stored = load_file(at(run, 3) / ADAPTER)
    assert {f"base_model.model.{name}.weight" for name in names} == set(stored)
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj", "down_proj"}
    before = load_file(at(run, 1) / ADAPTER)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in stored.items())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The first step has no KL to the base: B is 0.
    assert [line["kl"] > 1e-5 for line in lines if line["step"] > 0] == [False, True, True]
    assert max(line["mismatch/max"] for line in lines if line["step"] > 0) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [(), ("policy.dtype=bfloat16",), ("reward=ema_vote", "consensus.samples=3", "consensus.decay=[0.5, 0.8]")],
)
def test_a_resumed_run_is_bit_for_bit_one_never_stopped(
    changes: tuple[str, ...], run: Path, tiny_base_path: Path, tmp_path: Path
) -> None:
    chosen = recipe(tiny_base_path, *changes)
    if changes:
        run = tmp_path / "whole"
        train(chosen, run)
    with pytest.raises(ConnectionAbortedError):
        train(chosen, tmp_path / "broken", callback=StopAfter(2))
    resume(tmp_path / "broken")
    files = [ADAPTER, TENSORS, *(["teacher.safetensors"] if "reward=ema_vote" in changes else [])]
    for file in files:
        one, other = load_file(at(run, 3) / file), load_file(at(tmp_path / "broken", 3) / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), file
    for file in ("model.safetensors", f"adapter/{ADAPTER}"):
        one, other = load_file(run / "final" / file), load_file(tmp_path / "broken/final" / file)
        assert one.keys() == other.keys()  # safetensors writes what stands beside the tensors in any order
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), file


def test_final_is_the_base_with_the_adapter_that_lies_beside_it(run: Path, tiny_base_path: Path) -> None:
    assert (run / "final/adapter" / ADAPTER).read_bytes() == (at(run, 3) / ADAPTER).read_bytes()
    assert json.loads((run / "final/adapter/adapter_config.json").read_text())["target_modules"] == [
        *("down_proj", "q_proj", "v_proj"),
    ]
    base = AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32)
    alone = logits(base)
    theirs = peft.PeftModel.from_pretrained(base, str(run / "final/adapter")).eval()
    whole = AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float32)
    torch.testing.assert_close(logits(whole), logits(theirs), atol=1e-4, rtol=1e-5)
    assert float((logits(whole) - alone).abs().max()) > 0.01
    model, old = dict(whole.named_parameters()), load_file(tiny_base_path / "model.safetensors")
    moved = {name for name, tensor in old.items() if not torch.equal(model[name], tensor)}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved} == {"q_proj", "v_proj", "down_proj"}


def test_the_policy_of_any_step_is_loaded_with_its_adapter(run: Path, tiny_base_path: Path) -> None:
    chosen = recipe(tiny_base_path)
    one = policy_at(chosen, run / "checkpoints", 1, torch.device("cpu"))
    stored = load_file(at(run, 1) / ADAPTER)
    for name, layer in adapted_layers(one.model).items():
        assert torch.equal(layer.lora_B, stored[f"base_model.model.{name}.lora_B.weight"])
    untrained = policy_at(chosen, run / "checkpoints", 0, torch.device("cpu"))
    plain = AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32)
    assert torch.equal(logits(untrained.model), logits(plain))


@pytest.mark.filterwarnings("ignore:step .*:RuntimeWarning")
def test_a_run_that_ends_with_an_earlier_step_ends_with_its_adapter(tiny_base_path: Path, tmp_path: Path) -> None:
    probing = ["probe.every=1", "probe.prompts=16", "probe.samples=2", "probe.reference_samples=4", "steps=2"]
    train(recipe(tiny_base_path, *probing, "guards.restore=true", "grpo.lr=0.3"), tmp_path / "run")
    selected = json.loads((tmp_path / "run/run.json").read_text())["selected"]
    assert selected["step"] < selected["last"] == 2
    final, last = (tmp_path / "run" / name / "adapter" / ADAPTER for name in ("final", "last"))
    assert last.read_bytes() == (at(tmp_path / "run", 2) / ADAPTER).read_bytes()
    assert final.read_bytes() != last.read_bytes()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "run/final", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(final.parent)).eval()
    torch.testing.assert_close(logits(whole), logits(theirs), atol=1e-4, rtol=1e-5)


def test_the_reference_is_the_base_and_takes_no_memory(run: Path, tiny_base_path: Path) -> None:
    chosen = recipe(tiny_base_path)
    policy, optimizer = load_trainable(chosen, None)
    start = load_start(chosen, policy, fresh=True)
    assert start is not None
    assert start.adapter is None
    own = {parameter.data_ptr() for parameter in policy.model.parameters()}
    assert {parameter.data_ptr() for parameter in start.model.parameters()} < own
    assert sum(master.numel() for master in optimizer.masters) < 0.1 * sum(p.numel() for p in policy.model.parameters())
    assert torch.equal(logits(start.model), logits(initial_policy(chosen, policy.device).model))


def test_a_run_goes_on_from_an_adapter(run: Path, tmp_path: Path) -> None:
    given = run / "final/adapter"
    chosen = recipe(given, "steps=1")
    before = adapted_policy(chosen)
    start = start_of(chosen, before)
    stored = load_file(given / ADAPTER)
    for policy in (before, start):
        for name, layer in adapted_layers(policy.model).items():
            assert torch.equal(layer.lora_A, stored[f"base_model.model.{name}.lora_A.weight"])
    layers = zip(adapted_layers(before.model).values(), adapted_layers(start.model).values(), strict=True)
    assert all(one.lora_A is not other.lora_A and one.weight is other.weight for one, other in layers)
    train(chosen, tmp_path / "more")
    after = load_file(tmp_path / "more/final/adapter" / ADAPTER)
    assert after.keys() == stored.keys()
    assert all(not torch.equal(tensor, stored[name]) for name, tensor in after.items())
    config = json.loads((tmp_path / "more/final/adapter/adapter_config.json").read_text())
    assert (
        config["base_model_name_or_path"]
        == json.loads((given / "adapter_config.json").read_text())["base_model_name_or_path"]
    )
    whole = recipe(given, "steps=1", "policy.lora=null")  # without policy.lora: merged, and trained whole
    train(whole, tmp_path / "whole")
    assert not (tmp_path / "whole/final/adapter").exists()
    old, new = (load_file(out / "final/model.safetensors") for out in (run, tmp_path / "whole"))
    assert all(not torch.equal(tensor, old[name]) for name, tensor in new.items())
    files, _ = model_files(str(given))
    assert {"adapter_config.json", ADAPTER, "base/config.json", "base/model.safetensors"} <= set(files)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ("policy.lora.r=8",),
            r"^policy.lora: r is 8 and alpha 8, the adapter in .* has r 4 and alpha 8; say the same",
        ),
        (("policy.lora.targets=q_proj",), r"^policy.lora.targets: only the adapter in .* has .*down_proj"),
        (("guards.merge_back=0.5",), r"^guards.merge_back: policy.model is an adapter"),
        (("policy.lora.targets=[attention]",), r"^policy.lora.targets: no linear layer of .* is called 'attention'"),
    ],
)
def test_an_adapter_that_the_recipe_describes_otherwise_is_refused(
    changes: tuple[str, ...], said: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(RlifError, match=said):
        train(recipe(run / "final/adapter", *changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_back_moves_every_weight_by_its_share(dtype: torch.dtype) -> None:
    policy = with_adapter(toy_policy(), LoraConfig(r=4), base="", mark="", seed=0)
    optimizer = MasterOptimizer(policy.model, lambda masters: torch.optim.SGD(masters, lr=0.0), compute_dtype=dtype)
    base = {name: layer.weight.detach().double() for name, layer in adapted_layers(policy.model).items()}
    with torch.no_grad():
        for master in optimizer.masters:
            master.add_(0.1)
    masters = {name: master.detach().double().clone() for name, master in optimizer.named_masters().items()}
    merge_back(optimizer, start_for_merge_back(optimizer), 0.25)
    for name, layer in adapted_layers(policy.model).items():
        weight = base[name] + layer.scaling * masters[f"{name}.lora_B"] @ masters[f"{name}.lora_A"]
        expected = 0.75 * weight + 0.25 * base[name]
        now = optimizer.named_masters()
        found = base[name] + layer.scaling * now[f"{name}.lora_B"].double() @ now[f"{name}.lora_A"].double()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert torch.equal(layer.lora_B, now[f"{name}.lora_B"].to(dtype))


def test_a_teacher_follows_the_adapter_and_shares_the_base() -> None:
    policy = with_adapter(toy_policy(), LoraConfig(r=4), base="", mark="", seed=0)
    optimizer = MasterOptimizer(policy.model, lambda masters: torch.optim.SGD(masters, lr=0.0))
    teacher = Teacher(policy, optimizer)
    old = copy.deepcopy(teacher.weights)
    assert list(teacher.weights) == optimizer.names
    with torch.no_grad():
        for master in optimizer.masters:
            master.add_(1.0)
    teacher.follow(optimizer, 0.75)
    for name, weight in teacher.weights.items():
        torch.testing.assert_close(weight, old[name] + 0.25, atol=1e-6, rtol=0)
    own = dict(policy.model.named_parameters())
    assert all((p is own[n]) == (n not in old) for n, p in teacher.policy.model.named_parameters())
    draw: dict[str, Any] = {"group_size": 2, "sampling": Sampling(max_new_tokens=8), "key": Key(0, 0)}
    prompts = toy_prompts(policy, ["ab"])
    found = Engine(teacher.policy).sample(prompts, **draw)
    expected = Engine(merged(replace(teacher.policy, adapter=policy.adapter))).sample(prompts, **draw)
    assert torch.equal(found.tokens, expected.tokens)
