"""The line of tokens: the same hidden states, and the same gradients, as transformers' own forward pass."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlif.model import decoder as decoder_module
from rlif.model.decoder import JoinedLinearGroup, decoder_of, has_decoder, joined
from rlif.model.layers import Identity
from rlif.model.lm_head import _TILE, _TILE_TOKENS, Head, head_logprobs, head_of, head_signals
from rlif.model.logprobs import policy_logprobs
from rlif.model.packing import Packed, _similar
from rlif.rng import Key
from rlif.rollout.engine import Engine
from rlif.rollout.reference import sample_reference
from rlif.signals import token_signals
from rlif.types import Sampling
from toys import FAMILIES, toy_policy, toy_prompts

pytestmark = pytest.mark.usefixtures("either_way")

READ = ("llama", "qwen3", "gemma3")
PROMPTS = [[5, 9, 11], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24]]
COMPLETIONS = [(0, 4), (1, 1), (2, 7), (0, 12), (1, 2), (2, 9), (2, 1)]  # of which prompt, how many tokens


def completions() -> list[tuple[int, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    return [(owner, torch.randint(3, 40, (n,), generator=generator).tolist()) for owner, n in COMPLETIONS]


def row_by_row(model: nn.Module, rows: Sequence[tuple[int, list[int]]], vocab_size: int, temperature: float) -> Tensor:
    """Log-probabilities by transformers: one row, one pass, no padding."""
    found = []
    for owner, ids in rows:
        logits = model(input_ids=torch.tensor([PROMPTS[owner] + ids])).logits[0]
        scores = logits[len(PROMPTS[owner]) - 1 : -1, :vocab_size] / temperature
        found.append(scores.log_softmax(dim=-1).gather(-1, torch.tensor(ids)[:, None]).squeeze(-1))
    return torch.cat(found)


def in_line(model: nn.Module, rows: Sequence[tuple[int, list[int]]], vocab_size: int, temperature: float) -> Tensor:
    decoder = decoder_of(model)
    assert decoder is not None
    line = Packed(PROMPTS, rows)
    hidden = decoder(line.tokens, line.positions, line.attend)[line.predicting]
    tokens = torch.tensor([token for _, ids in rows for token in ids])
    return head_logprobs(hidden, head_of(model, vocab_size), tokens, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", READ)
def test_the_line_equals_transformers_forward_and_backward(family: str, temperature: float) -> None:
    policy = toy_policy(family)
    rows = completions()
    weights = torch.randn(sum(n for _, n in COMPLETIONS), generator=torch.Generator().manual_seed(2))
    expected = row_by_row(policy.model, rows, policy.vocab_size, temperature)
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in policy.model.named_parameters()}
    policy.model.zero_grad(set_to_none=True)
    found = in_line(policy.model, rows, policy.vocab_size, temperature)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (found * weights).sum().backward()
    for name, parameter in policy.model.named_parameters():
        scale = gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, gradients[name], atol=2e-5 * scale, rtol=0, msg=name)


@pytest.mark.parametrize("family", [Qwen2ForCausalLM, MistralForCausalLM])
def test_biases_and_windows_of_other_families(family: type) -> None:
    config = {Qwen2ForCausalLM: Qwen2Config, MistralForCausalLM: MistralConfig}[family]
    torch.manual_seed(0)
    window = {"sliding_window": 4} if family is MistralForCausalLM else {}
    model = family(
        config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **window,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0) if parameter.dim() == 2 else parameter.add_(0.3 * torch.randn_like(parameter))
    expected, found = row_by_row(model, completions(), 50, 1.0), in_line(model, completions(), 50, 1.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        *(torch.autograd.grad(x.square().sum(), parameters) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item() + 1e-7, rtol=0)


@pytest.mark.parametrize("family", READ)
def test_recomputed_activations_give_the_same_gradients(family: str) -> None:
    policy, prompts = toy_policy(family), toy_prompts(toy_policy(family), ["ab", "12+3=?"])
    rollouts = sample_reference(policy, prompts, group_size=2, sampling=Sampling(max_new_tokens=6), key=Key(0, 0))
    gradients = []
    for recompute in (False, True):
        policy.model.zero_grad(set_to_none=True)
        policy_logprobs(policy, rollouts, range(4), recompute=recompute).sum().backward()
        gradients.append([parameter.grad for parameter in policy.model.parameters()])
    for a, b in zip(*gradients, strict=True):  # the same sums, in another order
        torch.testing.assert_close(a, b, atol=2e-6 * a.abs().max().item(), rtol=0)


@pytest.mark.parametrize("family", READ)
def test_in_bf16_the_line_is_as_close_as_transformers_to_the_truth(family: str) -> None:
    """Both round; measured against fp32, neither may be much worse."""
    policy = toy_policy(family)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.copy_(parameter.bfloat16())
        truth = row_by_row(policy.model, completions(), policy.vocab_size, 1.0)
        policy.model.bfloat16()
        theirs = (row_by_row(policy.model, completions(), policy.vocab_size, 1.0).float() - truth).abs().mean()
        ours = (in_line(policy.model, completions(), policy.vocab_size, 1.0) - truth).abs().mean()
    assert ours < 1.5 * theirs + 1e-3


@pytest.mark.parametrize("family", READ)
def test_in_bf16_gradients_are_as_close_as_transformers_to_the_truth(family: str) -> None:
    policy = toy_policy(family)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.copy_(parameter.bfloat16())

    def gradients(logprobs: Callable[..., Tensor]) -> Tensor:
        policy.model.zero_grad(set_to_none=True)
        logprobs(policy.model, completions(), policy.vocab_size, 1.0).float().sum().backward()
        return torch.cat([parameter.grad.flatten().float() for parameter in policy.model.parameters()])

    truth = gradients(row_by_row)
    policy.model.bfloat16()
    theirs, ours = ((gradients(logprobs) - truth).norm() / truth.norm() for logprobs in (row_by_row, in_line))
    assert ours < 1.5 * theirs


def test_a_prompt_stands_in_the_line_once_and_only_its_end_is_filled() -> None:
    line = Packed(PROMPTS, completions())
    length = sum(map(len, PROMPTS)) + sum(n - 1 for _, n in COMPLETIONS)
    everything = [token for ids in PROMPTS for token in ids] + [token for _, ids in completions() for token in ids[:-1]]
    assert line.tokens[:length].tolist() == everything
    assert length % 64 != 0
    assert line.tokens[length:].tolist() == [0] * (64 - length % 64)  # lengths are multiples of 64
    assert line.lasts.tolist() == [2, 11, 16]
    assert line.predicting[:5].tolist() == [2, 17, 18, 19, 11]  # a prompt's last token predicts every first token


def test_rows_of_similar_length_attend_together() -> None:
    assert _similar([3, 0, 10, 9]) == [[2, 3, 0]]  # few rows: one block, padding and all; an empty row needs none
    blocks = _similar([100] * 9 + [80, 60, 10])
    assert blocks == [[*range(9), 9], [10, 11]]


@pytest.mark.parametrize("change", ["olmo2", "hook", "adapter", "rope", "class"])
def test_what_cannot_be_read_is_left_to_transformers(change: str) -> None:
    model = toy_policy("olmo2" if change == "olmo2" else "llama").model
    if change == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    if change == "adapter":

        class Adapter(nn.Linear):
            """Anything but a plain linear layer."""

        model.model.layers[0].self_attn.q_proj = Adapter(32, 32, bias=False)
    if change == "class":

        class Custom(type(model)):  # type: ignore[misc]
            """Code that came with a model and calls itself a Llama."""

        model.__class__ = Custom
    if change == "rope":
        model.config.rope_parameters["rope_type"] = "dynamic"
    assert not has_decoder(model)
    assert decoder_of(model) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_whether_there_is_a_decoder_is_asked_without_building_one(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    model = toy_policy(family).model
    found = decoder_of(model) is not None
    assert found == (family != "olmo2")
    monkeypatch.setattr(decoder_module, "Decoder", None)
    assert has_decoder(model) == found
    model.register_forward_hook(lambda *args: None)  # the answer is not remembered
    assert not has_decoder(model)


def test_a_model_on_which_a_hook_hangs_samples_the_same() -> None:
    policy = toy_policy()
    prompts, sampling = toy_prompts(policy, ["ab", "12+3=?"]), Sampling(max_new_tokens=12)
    read = Engine(policy).sample(prompts, group_size=3, sampling=sampling, key=Key(0, 0))
    calls: list[None] = []
    policy.model.model.layers[0].register_forward_hook(lambda *args: calls.append(None))
    run = Engine(policy).sample(prompts, group_size=3, sampling=sampling, key=Key(0, 0))
    assert calls
    assert torch.equal(read.tokens, run.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("small", [0, 1 << 40])  # bytes: weights below that are not laid out in fp32
def test_joined_weights_multiply_as_plain_ones(
    monkeypatch: pytest.MonkeyPatch, small: int, bias: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("rlif.model.decoder._SMALL", small)
    torch.manual_seed(0)
    modules = [nn.Linear(64, n, bias=bias).to(dtype) for n in (48, 16, 32)]
    x, residual = torch.randn(5, 64).to(dtype), torch.randn(5, 48).to(dtype)
    close = {"atol": 3e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        assert JoinedLinearGroup(modules)._laid_out == (small == 0)
    with torch.no_grad():
        for found, module in zip(joined(modules)(Identity(), x), modules, strict=True):
            torch.testing.assert_close(found, module(x), **close)
        (found,) = joined(modules[:1])(Identity(), x, residual=residual)
        torch.testing.assert_close(found, residual + modules[0](x), **close)


def test_a_processor_without_bf16_products_multiplies_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight: pytest.fail("raises there"))
    module = nn.Linear(64, 48).to(torch.bfloat16)
    x = torch.randn(5, 64).to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(joined([module])(Identity(), x)[0], module(x))


# The head


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tiles", [(1 << 21, 1024), (40, 8), (7, 1), (64, 16)])
def test_the_head_without_logits(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, scale: float, bias: bool, tiles: tuple[int, int]
) -> None:
    """Signals, log-probabilities and gradients against plain PyTorch in float64, whatever the tiles."""
    monkeypatch.setitem(_TILE, "cpu", tiles[0])
    monkeypatch.setattr("torch.empty_like", lambda x: torch.full_like(x, torch.nan))  # what fresh memory may hold
    monkeypatch.setitem(_TILE_TOKENS, "cpu", tiles[1])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(21, 16, generator=generator, requires_grad=True)
    weight = torch.randn(33, 16, generator=generator, requires_grad=True)
    added = torch.randn(33, generator=generator, requires_grad=True) if bias else None
    tokens, upstream = torch.randint(0, 29, (21,), generator=generator), torch.randn(21, generator=generator)
    head = Head(weight, added, scale, softcap, 29)  # four rows are padding

    exact = [None if x is None else x.detach().double().requires_grad_() for x in (hidden, weight, added)]
    logits = exact[0] @ exact[1][:29].T + (0.0 if exact[2] is None else exact[2][:29])
    logits = logits * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    for found, expected in zip(head_signals(hidden, head, tokens), token_signals(logits, tokens), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)

    found = head_logprobs(hidden, head, tokens, 0.7)
    expected = (logits / 0.7).log_softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    (found * upstream).sum().backward()
    (expected * upstream.double()).sum().backward()
    for mine, plain in zip((hidden, weight, added), exact, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad.double(), plain.grad, atol=2e-5, rtol=1e-4)
    assert not weight.grad[29:].any()


def test_the_head_survives_logits_that_overflow_an_exponential() -> None:
    weight = torch.tensor([[200.0], [0.0], [-200.0]])
    head = Head(weight, None, 1.0, None, 3)
    signals = head_signals(torch.ones(1, 1), head, torch.tensor([1]))
    assert signals.logprob.item() == pytest.approx(-200.0)
    assert signals.entropy.item() == pytest.approx(0.0)
    assert signals.self_certainty.item() == pytest.approx(200.0 - torch.tensor(3.0).log().item())


def test_scale_and_softcap_are_read_from_the_config() -> None:
    gemma = toy_policy("gemma3").model
    gemma.config.final_logit_softcapping = 30.0
    assert head_of(gemma, 40).softcap == 30.0
    llama = toy_policy().model
    llama.config.logit_scale = 0.25
    assert head_of(llama, 40).scale == 0.25
    llama.config.logit_scale, llama.config.logits_scaling = None, 8.0
    assert head_of(llama, 40).scale == 0.125
