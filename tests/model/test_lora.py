"""Adapters: the decoder's products and gradients against peft and autograd, files that peft reads and wrote."""

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlif.config import GrpoConfig, LoraConfig, PolicyConfig
from rlif.errors import RlifError
from rlif.model.adapter_files import WEIGHTS, load_factors, read_adapter, write_adapter
from rlif.model.decoder import PlainLinearGroup, decoder_of, has_decoder, joined
from rlif.model.fingerprint import base_mark
from rlif.model.layers import Gated, Identity, LowRank, products
from rlif.model.loading import check_source, load_policy
from rlif.model.lora import LoraLinear, adapted_layers, merged, sharing_frozen, with_adapter, without_adapter
from rlif.model.policy import Policy
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.training.grpo import grpo_step
from rlif.training.optim import MasterOptimizer
from rlif.training.setup import enable_gradient_checkpointing
from rlif.types import Rollouts, Sampling, Scored, Verdict
from toys import toy_policy, toy_prompts

# peft 0.21 asks transformers 5 by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SOME = ("q_proj", "down_proj", "up_proj")


def randomly(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapted(family: str = "llama", *, targets: tuple[str, ...] = ("all-linear",), base: str = "toy/base") -> Policy:
    """A toy whose adapter says something: B is not 0."""
    policy = toy_policy(family)
    config = LoraConfig(r=4, alpha=6, targets=targets)
    policy = with_adapter(policy, config, base=base, mark=base_mark(policy.model), seed=1)
    with torch.no_grad():
        for i, layer in enumerate(adapted_layers(policy.model).values()):
            layer.lora_B.copy_(0.3 * randomly(*layer.lora_B.shape, seed=i))
    return policy


def factors(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters() if p.requires_grad}


def by_peft(policy: Policy, folder: Path, family: str = "llama") -> Any:
    """The same adapter on the same base, as peft reads it from files."""
    write_adapter(folder, policy, factors(policy))
    return peft.PeftModel.from_pretrained(toy_policy(family).model, str(folder), is_trainable=True).eval()


def sampled(policy: Policy, **options: Any) -> Rollouts:
    prompts = toy_prompts(policy, ["ab", "12+3=?", "a"])
    return Engine(policy, max_rows=5).sample(
        prompts, group_size=4, sampling=Sampling(max_new_tokens=12, **options), key=Key(0, 0)
    )


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapted_at", [(0, 1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("frozen", [True, False])
def test_products_and_their_gradients_are_those_of_the_whole_matrices(
    adapted_at: tuple[int, ...], frozen: bool
) -> None:
    op, sizes = Gated(nn.SiLU()), (5, 3, 4)
    inputs = [randomly(7, 6, seed=i).requires_grad_() for i in range(2)]
    weights = [randomly(n, 6, seed=10 + n).requires_grad_(not frozen) for n in sizes]
    biases = [None, randomly(3, seed=20).requires_grad_(not frozen), None]
    low = [
        LowRank(at, randomly(2 + at, 6, seed=30 + at).requires_grad_(), randomly(sizes[at], 2 + at, seed=40 + at), 1.5)
        for at in adapted_at
    ]
    for each in low:
        each.b.requires_grad_()
    leaves = [*inputs, *(each.a for each in low), *(each.b for each in low)]
    leaves += [] if frozen else [*weights, biases[1]]  # type: ignore[list-item]
    whole = list(weights)
    for each in low:
        whole[each.at] = whole[each.at] + each.scaling * each.b @ each.a
    x = nn.functional.silu(inputs[0]) * inputs[1]
    expected = [nn.functional.linear(x, weight, bias) for weight, bias in zip(whole, biases, strict=True)]
    found = products(op, inputs, weights, biases, low)
    towards = [randomly(7, n, seed=50 + n) for n in sizes]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    total = sum((a * b).sum() for a, b in zip(found, towards, strict=True))
    of_whole = sum((a * b).sum() for a, b in zip(expected, towards, strict=True))
    pairs = zip(torch.autograd.grad(total, leaves), torch.autograd.grad(of_whole, leaves), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, atol=1e-11, rtol=0)
    with torch.no_grad():
        for got, wanted in zip(products(op, inputs, weights, biases, low), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_inputs_that_need_no_gradient_leave_that_of_the_adapter() -> None:
    """The first layer's inputs are frozen embeddings."""
    x, weight, a, b = (randomly(*shape, seed=i) for i, shape in enumerate([(7, 6), (5, 6), (2, 6), (5, 2)]))
    (found,) = products(Identity(), [x], [weight], [None], [LowRank(0, a.requires_grad_(), b.requires_grad_(), 0.5)])
    to_a, to_b = torch.autograd.grad(found.sum(), [a, b])
    ones = torch.ones(7, 5, dtype=torch.float64)
    torch.testing.assert_close(to_a, 0.5 * b.t() @ ones.t() @ x)
    torch.testing.assert_close(to_b, 0.5 * ones.t() @ x @ a.t())


# --- a step beside peft -----------------------------------------------------------------------------------------------


def step_by_autograd(model: Any, rollouts: Rollouts, advantages: Tensor, kl_coef: float, vocab_size: int) -> Any:
    """Gradients of the GRPO loss at ratio 1, row by row, by peft, transformers and autograd: −A + kl_coef · k3, mean
    over tokens; the reference is the model with its adapter switched off."""
    total = torch.zeros(())
    for row, prompt in enumerate(rollouts.row_prompts):
        ids = rollouts.tokens[row][rollouts.mask[row]]
        text = torch.tensor([[*prompt.token_ids, *ids.tolist()]])

        def logprobs(text: Tensor = text, ids: Tensor = ids, start: int = len(prompt.token_ids)) -> Tensor:
            logits = model(input_ids=text).logits[0, start - 1 : -1, :vocab_size].float()
            return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]

        own = logprobs()
        with torch.no_grad(), model.disable_adapter():
            reference = logprobs()
        ratio = (own - own.detach()).exp()
        away = reference - own
        total = total + (kl_coef * (away.exp() - away - 1) - ratio * advantages[row]).sum()
    total = total / rollouts.mask.sum()
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "targets", "recompute"),
    [
        ("llama", ("all-linear",), False),
        ("qwen3", SOME, False),
        ("gemma3", ("all-linear",), True),
        ("olmo2", ("all-linear",), False),  # runs through transformers' forward pass
    ],
)
def test_a_step_is_that_of_peft_and_autograd(
    family: str, targets: tuple[str, ...], recompute: bool, tmp_path: Path
) -> None:
    policy = adapted(family, targets=targets)
    assert has_decoder(policy.model) == (family != "olmo2")
    rollouts = sampled(policy)
    advantages = torch.linspace(-1.0, 1.0, rollouts.n_rows)
    scored = Scored(rollouts, (Verdict(None, False, None),) * rollouts.n_rows, {}, advantages)
    gradients = step_by_autograd(by_peft(policy, tmp_path, family), rollouts, advantages, 0.2, policy.vocab_size)
    before, base = factors(policy), base_mark(without_adapter(policy.model))
    optimizer = MasterOptimizer(policy.model, lambda masters: torch.optim.SGD(masters, lr=0.0))
    if recompute:
        enable_gradient_checkpointing(policy.model)
    reference = Policy(**{**vars(policy), "model": without_adapter(policy.model), "adapter": None})
    config = GrpoConfig(kl_coef=0.2, max_grad_norm=1e9, gradient_checkpointing=recompute, micro_batch_tokens=60)
    update = grpo_step(policy, optimizer, scored, config, lr=0.5, reference=reference)
    assert update.metrics["kl"] > 0.01
    assert len(before) == len(gradients) == len(optimizer.masters)
    for name, old in before.items():
        gradient = gradients[f"base_model.model.{name}.default.weight"]
        # Relative to the largest: fp32 sums over tokens in another order.
        scale = max(1.0, float(gradient.abs().max()))
        moved = (old - policy.model.get_parameter(name).detach()) / 0.5
        torch.testing.assert_close(moved / scale, gradient / scale, atol=1e-6, rtol=0)
    assert base_mark(without_adapter(policy.model)) == base


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [("all-linear",), SOME])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}])
def test_adapter_and_merged_model_draw_the_same_tokens(targets: tuple[str, ...], sampling: dict[str, Any]) -> None:
    policy = adapted(targets=targets)
    one, other = sampled(policy, **sampling), sampled(merged(policy), **sampling)
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.sampler_logprobs, other.sampler_logprobs)
    assert not torch.equal(one.tokens, sampled(toy_policy(), **sampling).tokens)


def test_in_bf16_a_change_below_the_steps_of_a_weight_reaches_the_sampler() -> None:
    # bf16 numbers at 1 lie 2⁻⁷ apart: merged, 1 + 2⁻¹⁰ would be 1 again. Here x Wᵀ is 1 − 1 = 0.
    layers = [LoraLinear(nn.Linear(2, n, bias=False, dtype=torch.bfloat16), 1, 1) for n in (1, 2)]
    with torch.no_grad():
        for layer, b in zip(layers, ([[2.0**-10]], [[0.0], [2.0**-9]]), strict=True):
            layer.weight.fill_(1.0)
            layer.lora_A.copy_(torch.tensor([[1.0, 0.0]]))
            layer.lora_B.copy_(torch.tensor(b))
            layer.lora_A.data, layer.lora_B.data = layer.lora_A.bfloat16(), layer.lora_B.bfloat16()
    x = torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16)
    assert [part.tolist() for part in joined(layers)(Identity(), x)] == [[[2.0**-10]], [[0.0, 2.0**-9]]]
    for lean in (True, False):
        found = PlainLinearGroup(layers, lean=lean)(Identity(), x)
        assert [part.tolist() for part in found] == [[[2.0**-10]], [[0.0, 2.0**-9]]]


def test_the_views_share_the_base_and_not_the_adapter() -> None:
    policy = adapted()
    bare, teacher = without_adapter(policy.model), sharing_frozen(policy.model)
    assert not adapted_layers(bare)
    own, plain = dict(policy.model.named_parameters()), dict(bare.named_parameters())
    assert list(plain) == list(dict(toy_policy().model.named_parameters()))
    assert all(parameter is own[name] for name, parameter in plain.items())
    for name, parameter in teacher.named_parameters():
        assert (parameter is own[name]) != own[name].requires_grad
        assert torch.equal(parameter, own[name])
    assert merged(policy).model.model.embed_tokens.weight is own["model.embed_tokens.weight"]  # type: ignore[union-attr]
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        found, expected = bare(tokens).logits, toy_policy().model(tokens).logits
        assert torch.equal(found, expected)
        assert float((policy.model(tokens).logits - expected).abs().max()) > 0.1
    assert adapted_layers(policy.model)  # the model itself has kept it


def test_a_new_adapter_changes_nothing_and_is_drawn_from_the_seed() -> None:
    def fresh(seed: int) -> Policy:
        return with_adapter(toy_policy(), LoraConfig(r=4, targets=("q_proj",)), base="", mark="", seed=seed)

    tokens = torch.arange(3, 15)[None]
    one, same, other = (adapted_layers(fresh(seed).model) for seed in (1, 1, 2))
    with torch.no_grad():
        assert torch.equal(fresh(1).model(tokens).logits, toy_policy().model(tokens).logits)
    drawn = torch.cat([layer.lora_A.detach().flatten() for layer in one.values()])
    assert all(torch.equal(layer.lora_A, same[name].lora_A) for name, layer in one.items())
    assert not any(torch.equal(layer.lora_A, other[name].lora_A) for name, layer in one.items())
    bound = 32**-0.5  # kaiming_uniform with a = √5, as peft has it
    assert 0.9 * bound < float(drawn.abs().max()) <= bound
    assert abs(float(drawn.mean())) < 0.2 * bound  # of 256 numbers: 5.5 standard errors
    assert len({layer.lora_A[0, 0].item() for layer in one.values()}) == 2  # each layer has a stream of its own


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A toy as a model folder."""
    toy_policy().save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def written(base: Path, tmp_path: Path) -> Path:
    """An adapter of it in a folder, as rlif writes it."""
    (tmp_path / "adapter").mkdir()
    policy = adapted(base=str(base))
    write_adapter(tmp_path / "adapter", policy, factors(policy))
    return tmp_path / "adapter"


def load(folder: Path | str) -> Policy:
    return load_policy(PolicyConfig(model=str(folder), dtype="float32"))


def complaint(folder: Path | str) -> str:
    with pytest.raises(RlifError) as raised:
        load(folder)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 15)[None]).logits


def test_an_adapter_folder_loads_as_its_base_with_the_adapter_merged(written: Path) -> None:
    policy = load(written)
    assert policy.source == str(written)
    assert not adapted_layers(policy.model)
    assert all(parameter.requires_grad for parameter in policy.model.parameters())
    torch.testing.assert_close(logits(policy.model), logits(adapted().model), atol=1e-4, rtol=1e-5)
    check_source(PolicyConfig(model=str(written)))
    rounded = load_policy(PolicyConfig(model=str(written), dtype="bfloat16")).model
    for name, parameter in policy.model.named_parameters():
        # Rounded twice, as the base here is of fp32: by two half units of the last of 8 bits at most.
        torch.testing.assert_close(rounded.get_parameter(name).float(), parameter, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("targets", [("all-linear",), SOME, ("layers.0.self_attn.q_proj", "o_proj")])
def test_peft_finds_exactly_the_layers_that_were_trained(targets: tuple[str, ...], tmp_path: Path) -> None:
    policy = adapted(targets=targets)
    model = by_peft(policy, tmp_path)
    theirs = {n.removesuffix(".default") for n, _ in model.named_modules() if n.endswith("lora_A.default")}
    assert theirs == {f"base_model.model.{name}.lora_A" for name in adapted_layers(policy.model)}
    torch.testing.assert_close(logits(model), logits(policy.model), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_what_peft_wrote_is_merged_as_peft_merges_it(
    kind: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **kind)
    model = peft.get_peft_model(toy_policy().model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(tmp_path / "theirs"))
    if not kind:
        monkeypatch.setitem(sys.modules, "peft", None)  # plain LoRA needs no peft
    merged_model = load(tmp_path / "theirs").model
    assert all(parameter.requires_grad for parameter in merged_model.parameters())
    found = logits(merged_model)
    torch.testing.assert_close(found, logits(model.eval()), atol=1e-4, rtol=1e-5)
    if kind:
        monkeypatch.setitem(sys.modules, "peft", None)
        said = complaint(tmp_path / "theirs")
        assert f"is no plain LoRA ({next(iter(kind))} is" in said
        assert said.endswith("is missing: pip install 'rlif[lora]'")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, old: str, new: str) -> None:
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def replace_base(folder: Path) -> None:
    toy_policy(seed=1).save(folder.parent / "base")


def other_shape(folder: Path) -> None:
    tensors = {name: tensor[:, :3].contiguous() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


WRONG: dict[str, tuple[Any, str]] = {
    "no base": (lambda folder: edit(folder, base_model_name_or_path=None), "adapter_config.json: names no base model"),
    "a base that is gone": (
        lambda folder: edit(folder, base_model_name_or_path="/gone/base"),
        "adapter is an adapter of /gone/base: no such folder or file: /gone/base",
    ),
    "a base that is an adapter": (
        lambda folder: edit(folder, base_model_name_or_path=str(folder)),
        "which is an adapter itself; merge that with its base first",
    ),
    "other weights of the same shapes": (replace_base, "does not belong to"),
    "other shapes": (other_shape, "lora_A is (4, 3), expected (4, 48); name its own base model in adapter_config.json"),
    "a layer that is none": (lambda folder: rename(folder, "q_proj", "qq"), "that has no linear layer"),
    "further weights": (lambda folder: rename(folder, "q_proj.lora_A", "q_proj.bias"), "is no part of a plain LoRA"),
    "half a layer": (lambda folder: rename(folder, "0.self_attn.q_proj.lora_A", "9.lora_A"), "only lora_"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"is an adapter without its {WEIGHTS}"),
    "damaged weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"{}"), f"{WEIGHTS} is damaged"),
    "a rank that is none": (lambda folder: edit(folder, r=-1), "adapter_config.json: r is -1 and lora_alpha 6"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: no JSON"),
    "another kind for peft": (lambda folder: edit(folder, peft_type="IA3"), "peft cannot merge the adapter in"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_adapter_that_cannot_be_put_on_is_one_line(wrong: str, written: Path) -> None:
    corrupt, said = WRONG[wrong]
    corrupt(written)
    assert said in complaint(written)


def test_an_adapter_of_other_weights_says_so(written: Path) -> None:
    replace_base(written)
    assert "it was trained on other weights (marked" in complaint(written)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            LoraConfig(targets=("q_proj", "qproj")),
            "lora.targets: no linear layer of toy llama is called 'qproj'; there",
        ),
        (LoraConfig(targets=("lm_head",)), "lora.targets: no linear layer of toy llama is called 'lm_head'"),
        (
            LoraConfig(r=17),
            "lora.r: 17 is more than the rank of model.layers.0.self_attn.k_proj, 16; choose a lower one",
        ),
    ],
)
def test_an_adapter_that_cannot_be_made_is_one_line(config: LoraConfig, said: str) -> None:
    with pytest.raises(RlifError, match=r"^lora") as raised:
        with_adapter(toy_policy(), config, base="", mark="", seed=0)
    assert str(raised.value).startswith(said)


def test_factors_are_taken_only_of_an_adapter_of_the_same_kind(written: Path) -> None:
    files = read_adapter(written)
    policy = adapted()
    expected = factors(policy)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(2.0 if parameter.requires_grad else 1.0)
    load_factors(policy, files)
    assert all(torch.equal(value, expected[name]) for name, value in factors(policy).items())
    with pytest.raises(
        RlifError, match=r"lora: r is 4 and alpha 8.*the adapter in .* has r 4 and alpha 6; say the same"
    ):
        load_factors(with_adapter(toy_policy(), LoraConfig(r=4, alpha=8), base="", mark="", seed=0), files)
    other = with_adapter(toy_policy(), LoraConfig(r=4, alpha=6, targets=("q_proj",)), base="", mark="", seed=0)
    with pytest.raises(RlifError, match=r"lora.targets: only the adapter in .* has model.layers.0.mlp.down_proj"):
        load_factors(other, files)


def test_the_mark_of_a_base_is_that_of_its_weights_in_any_type() -> None:
    one = toy_policy().model
    with torch.no_grad():  # as if the file held bf16
        for parameter in one.parameters():
            parameter.copy_(parameter.bfloat16())
    mark = base_mark(one)
    assert base_mark(one.bfloat16()) == mark
    assert base_mark(toy_policy(seed=1).model) != mark


def test_a_decoder_of_an_adapted_model_is_found() -> None:
    assert decoder_of(adapted().model) is not None
